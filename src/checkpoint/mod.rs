//! Checkpoints: what modules know, on disk, with the place in the journal that it belongs to.
//!
//! A module's state is the bytes of [`ModuleOptions::state`](crate::ModuleOptions) and the buffers that were made part of it
//! by [`Builder::state_buffer`](crate::Builder::state_buffer). [`Runtime::checkpoint`](crate::Runtime::checkpoint) writes
//! all of it to one file in a directory, [`Runtime::restore`](crate::Runtime::restore) puts it into another runtime of the
//! same graph, before its start. The directory may be that of the journal's log. The bytes of the file are told in
//! `docs/checkpoint-format.md`.
//!
//! **What is in it.** The states as every record taken so far has left them, and no others: the mailboxes between resident
//! modules are empty at that moment, because the runtime waits until they are, and gives up with an error if that does not
//! happen. **What is not:** records that wait in mailboxes whose producer is not resident. They have changed nothing yet,
//! stand in no journal, and stay where they are; after a crash their producer pushes them again. Records given to mailboxes
//! whose consumer is not resident are that consumer's; if such a mailbox is tapped, they are in the journal.
//!
//! **Its place in the journal.** [`Checkpoint::journal`] names the first sequence that is not in the states. Everything
//! before it was durable before the checkpoint was written. So what a crash leaves is always a checkpoint and a log that
//! goes at least as far; the records from [`Position::next`](crate::journal::Position) on are what is to be done again.
//!
//! **Addresses.** Memory lies elsewhere in every run. Words of a state that hold an address are declared with
//! [`Builder::pointer`](crate::Builder::pointer): they are kept as distances and come back as addresses. Buffers themselves
//! hold indices or distances, never addresses.

mod file;
pub mod format;
mod sparse;

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::journal::Position;
use crate::journal::disk::{Disk, Folder};
pub(crate) use file::{Contents, Kind, Saved, load, save};
pub(crate) use format::PointerRow;
pub(crate) use sparse::Sparse;

/// What a checkpoint says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// Where the journal stood; none if the runtime had none and the caller named no place.
    pub journal: Option<Position>,
    /// Wall clock when the states were taken, nanoseconds since 1970.
    pub created_ns: u64,
    /// Length of the file; blocks of zeros may take no room on the disk.
    pub file_bytes: u64,
    /// What is in it, in the order of the graph: states, then buffers.
    pub parts: Vec<Part>,
    /// What has passed each mailbox, in the order of the graph, since the first of all runs that were restored.
    pub mailboxes: Vec<Counts>,
    /// The caller's own bytes, see [`CheckpointOptions::note`].
    #[serde(skip)]
    pub note: Vec<u8>,
}

/// A module's state, or one buffer of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The module's name.
    pub module: String,
    /// The buffer's name; empty for the state itself.
    pub buffer: String,
    /// Its size.
    pub bytes: u64,
}

/// Records of one mailbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// `producer->consumer`.
    pub name: String,
    /// Records that a resident producer had pushed, or that the arbiter had seen of another.
    pub given: u64,
    /// Records that were popped: with a resident consumer, those that the states know of.
    pub taken: u64,
}

/// What goes into a checkpoint besides the states.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckpointOptions<'a> {
    /// Bytes of the caller's, kept in the same file: what it must know to go on.
    pub note: &'a [u8],
    /// The place in a log that the states belong to, where the runtime itself has no journal.
    pub journal: Option<Position>,
}

impl Checkpoint {
    /// Reads what the checkpoint in a directory says of itself, its note included, and nothing else; none if there is none.
    ///
    /// # Errors
    /// [`Error::Foreign`] for a file of another version or program, or one whose header, tables or note are damaged;
    /// [`Error::Io`].
    pub fn look(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        Self::look_on(&Folder::new(dir.as_ref()))
    }

    /// The same on any [`Disk`].
    pub fn look_on(disk: &dyn Disk) -> Result<Option<Self>> {
        file::look(disk)
    }

    /// The size of a part, by the names of module and buffer.
    pub fn part_bytes(&self, module: &str, buffer: &str) -> Option<u64> {
        self.parts.iter().find(|p| p.module == module && p.buffer == buffer).map(|p| p.bytes)
    }
}

/// The checkpoint that must be there.
pub(crate) fn none_there(disk: &dyn Disk) -> Error {
    Error::refused(format!("{}", disk.path().display()), format!("holds no checkpoint: there is no {}", format::NAME))
}
