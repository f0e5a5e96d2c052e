//! One error type: what happened, why, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::abi;

/// Everything that a public function can report.
///
/// No public function panics on bad input, and none waits without a bound.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The mailbox has no free slot now. The record was not taken; push it again later.
    #[error("mailbox {mailbox} is full")]
    Full {
        /// Row of the mailbox table.
        mailbox: u32,
    },
    /// A bounded wait ended without what it waited for. Nothing was lost.
    #[error("{what} did not happen within {waited:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The bound that was given.
        waited: Duration,
    },
    /// A payload is longer than a slot carries.
    #[error(
        "a payload of {len} bytes does not fit mailbox {mailbox}, whose slots carry {max}; split it, or choose a larger stride"
    )]
    PayloadTooLong {
        /// Row of the mailbox table.
        mailbox: u32,
        /// Bytes offered.
        len: usize,
        /// Bytes that fit.
        max: usize,
    },
    /// The destination is smaller than the record, which stays in the mailbox.
    #[error("the next record of mailbox {mailbox} has {len} bytes and the buffer {room}; the record is still there")]
    BufferTooSmall {
        /// Row of the mailbox table.
        mailbox: u32,
        /// Bytes of the record.
        len: usize,
        /// Bytes of the buffer.
        room: usize,
    },
    /// A slot's length field cannot be. The record was dropped.
    #[error("mailbox {mailbox} held a record with the impossible length {len}; it was dropped")]
    BadRecord {
        /// Row of the mailbox table.
        mailbox: u32,
        /// The length field.
        len: u32,
    },
    /// A mailbox header is not what it should be.
    #[error("mailbox {mailbox} cannot be trusted: {reason}")]
    BadMailbox {
        /// Row of the mailbox table.
        mailbox: u32,
        /// Which check failed.
        reason: &'static str,
    },
    /// A module graph or an option breaks a rule.
    #[error("{what}: {rule}")]
    Refused {
        /// The module, mailbox or option, by name.
        what: String,
        /// The rule that it breaks.
        rule: String,
    },
    /// This machine, or this build, cannot do it.
    #[error("{what} is not available: {reason}")]
    Unavailable {
        /// The capability.
        what: &'static str,
        /// Why not, and what would help.
        reason: String,
    },
    /// A driver call failed.
    #[error("{call} failed: {reason}")]
    Driver {
        /// The call.
        call: &'static str,
        /// The driver's name for the error.
        reason: String,
    },
    /// The runtime has failed; it stays so, and every waiter is told.
    #[error("the runtime has failed: {0}")]
    Failed(String),
    /// The arbiter did not leave in time, because a handler did not return.
    #[error("the arbiter did not stop within {waited:?}; stuck: {stuck}")]
    Stuck {
        /// The bound that was given.
        waited: Duration,
        /// Module by name, and since when it runs.
        stuck: String,
    },
    /// A file operation of the journal failed. Nothing of the call was acknowledged; it may be tried again.
    #[error("{call} {} failed: {reason}{}", path.display(), advice(*kind))]
    Io {
        /// What was tried, such as `write`.
        call: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kind of the failure; a full disk is [`StorageFull`](io::ErrorKind::StorageFull).
        kind: io::ErrorKind,
        /// The system's words.
        reason: String,
    },
    /// What was written could not be made durable. It is never tried again, because a second sync may succeed without the
    /// bytes: the log is finished, and every later call returns this error.
    #[error(
        "{call} {} failed: {reason}; the log takes no more records: look after the disk, then open the log again to see what it kept",
        path.display()
    )]
    NotDurable {
        /// What was tried, such as `fdatasync`.
        call: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// Bytes of a log that were durable once are damaged or gone. What stands before them can be read.
    #[error(
        "{} is damaged at offset {offset}, where record {sequence} should be: {reason}; `warpmail log verify` shows what can be read, `warpmail log cut` gives up the rest",
        file.display()
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where in it the first damaged record begins, bytes.
        offset: u64,
        /// The first sequence that cannot be read.
        sequence: u64,
        /// What is wrong.
        reason: String,
    },
    /// A file has a segment's name and is not a segment of this log, or not one of this version.
    #[error("{} is not usable: {reason}", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
        /// What it is instead, and what to do.
        reason: String,
    },
    /// A log has one writer, and there is one already.
    #[error("the log in {} is open for writing already, in this process or another; close it there first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A pool has no room for more. Nothing was taken.
    #[error(
        "the pool is full: {wanted} bytes wanted, {used} of {limit} in use; {holders}; release some, raise the limit, or wait with Pool::alloc_within"
    )]
    PoolFull {
        /// Bytes of the block that was needed.
        wanted: u64,
        /// Bytes in use.
        used: u64,
        /// The pool's limit.
        limit: u64,
        /// Who has the most, in words.
        holders: String,
    },
    /// The right to use a tensor's memory has ended. The memory was not touched.
    #[error("lease {lease} of epoch {epoch} is stale: {why}")]
    StaleLease {
        /// Row of the lease table.
        lease: u32,
        /// The descriptor's epoch.
        epoch: u64,
        /// What became of it.
        why: String,
    },
    /// The next record carries no tensor. It is still there.
    #[error("the next record of mailbox {mailbox} has the type {msg_type} and is no tensor; take it with a pop")]
    NotATensor {
        /// Row of the mailbox table.
        mailbox: u32,
        /// Its message type.
        msg_type: u16,
    },
    /// Debug mode of a pool: a tensor that nobody has written since its memory was freed was about to be read.
    #[error(
        "the tensor at {address:#x} holds what freed memory is filled with: its producer never wrote it, or it was freed"
    )]
    PoisonRead {
        /// First byte of the tensor.
        address: u64,
    },
    /// Debug mode of a pool: somebody wrote to memory after the last reader had released it. The block is not used again.
    #[error("a block of {bytes} bytes at {address:#x} was written at offset {offset} after its last lease had ended")]
    WrittenAfterRelease {
        /// The block.
        address: u64,
        /// Its size.
        bytes: u64,
        /// The first byte that changed.
        offset: u64,
    },
    /// A call that does not fit the runtime's state, such as a second start.
    #[error("{0}")]
    State(String),
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn refused(what: impl Into<String>, rule: impl Into<String>) -> Self {
        Error::Refused { what: what.into(), rule: rule.into() }
    }

    pub(crate) fn io(call: &'static str, path: &Path, e: &io::Error) -> Self {
        Error::Io { call, path: path.into(), kind: e.kind(), reason: e.to_string() }
    }

    pub(crate) fn not_durable(call: &'static str, path: &Path, e: &io::Error) -> Self {
        Error::NotDurable { call, path: path.into(), reason: e.to_string() }
    }

    pub(crate) fn header(mailbox: u32, status: abi::wm_status) -> Self {
        let reason = match status {
            abi::WM_BAD_MAGIC => "the magic is wrong: these bytes are no mailbox header",
            abi::WM_BAD_VERSION => "the header was made by another version of warpmail",
            abi::WM_BAD_STRIDE => "stride, slots and capacity do not fit together",
            abi::WM_BAD_INDEX => "write_idx and read_idx are further apart than the ring is long",
            _ => "the handle and the header name different mailboxes",
        };
        Error::BadMailbox { mailbox, reason }
    }
}

/// What to do about a failed file operation, where that is known.
fn advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space and try again",
        io::ErrorKind::FileTooLarge => "; raise the limit on file sizes, or choose smaller segments",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; a log needs a directory that can be read and written"
        }
        io::ErrorKind::NotFound => "; was it moved or removed?",
        _ => "",
    }
}
