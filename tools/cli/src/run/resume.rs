//! Taking up what earlier runs knew: the checkpoint, and what the log has beyond it.
//!
//! A run that died left a log that is ahead of its last checkpoint. The lines in between go through the modules once more,
//! without a journal, and a checkpoint of what they know then is written; from there on it is as if the run had ended in
//! order. A run that did not resume began with nothing: what is before it in the log is no part of what is known.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use warpmail::checkpoint::Checkpoint;
use warpmail::journal::{Log, LogOptions, Position, Reader, SyncPolicy};
use warpmail::{Device, Error};

use super::graph::{MEMORY, Options};
use super::input::{Item, OnItem};
use super::keep::{Kept, Known};
use super::logged::{Assembler, Logged};
use super::pipeline::{Shared, Sink, find};
use super::records::{Begin, Entry, Match};

/// What is on disk before this run.
struct Found {
    known: Known,
    /// Where in the log the state of the checkpoint ends, or where the last run that knew nothing began.
    from: u64,
    /// Lines that the sidecar remembers, as the checkpoint or that run has it.
    capacity: Option<u32>,
    /// Whether the checkpoint counts.
    restore: bool,
    /// Lines of the log that the checkpoint does not know.
    lines: u64,
}

/// What a user is told of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Resumed {
    /// Line numbers given so far.
    pub(crate) lines: u64,
    /// Lines that were in the log and in no checkpoint.
    pub(crate) replayed_lines: u64,
    /// The last line that is known.
    pub(crate) last: Option<String>,
}

fn refused(dir: &Path, rule: impl Into<String>) -> Error {
    Error::Refused { what: format!("--resume with {}", dir.display()), rule: rule.into() }
}

fn look(dir: &Path, log: &Log) -> Result<Found, Error> {
    let end = log.position();
    let mut found = Found { known: Known::default(), from: log.first(), capacity: None, restore: false, lines: 0 };
    if let Some(checkpoint) = Checkpoint::look(dir)? {
        let journal = checkpoint.journal.filter(|j| j.log_id == end.log_id);
        let position = journal.ok_or_else(|| refused(dir, "the checkpoint belongs to another log: move it away"))?;
        if position.next > end.next {
            let (to, has) = (position.next - 1, end.next - 1);
            return Err(refused(
                dir,
                format!(
                    "the checkpoint knows records up to {to} and the log has {has}: it was cut, or goes back to a copy"
                ),
            ));
        }
        let entries = checkpoint.part_bytes(MEMORY.0, MEMORY.1);
        let known = Known::from_bytes(&checkpoint.note);
        let (Some(entries), Some(known)) = (entries, known) else {
            return Err(refused(dir, "the checkpoint is none of warpmail run"));
        };
        let capacity = u32::try_from(entries / size_of::<Entry>() as u64).ok();
        found = Found { known, from: position.next, capacity, restore: true, lines: 0 };
    }
    if found.from == end.next {
        return Ok(found);
    }
    let from_the_start = !found.restore && found.from > 1;
    let mut parts = Assembler::default();
    let mut anew = false;
    for record in Reader::open(dir, found.from)? {
        let record = record?;
        if record.sequence >= end.next {
            break;
        }
        match parts.take(&record) {
            Some(Logged::Begin(begin)) if begin.resumed == 0 => {
                anew = true;
                let (from, capacity) = (record.sequence, Some(begin.capacity));
                found = Found { known: Known::default(), from, capacity, restore: false, lines: 0 };
            }
            Some(Logged::File(first, path)) => found.known.files.push((first, path)),
            Some(Logged::Line(number, _)) => {
                found.known.next_line = number + 1;
                found.lines += 1;
            }
            _ => {}
        }
    }
    if from_the_start && !anew {
        return Err(refused(dir, "there is no checkpoint, and the oldest records of the log have been removed"));
    }
    Ok(found)
}

/// Results of lines that had theirs before, or should have had.
struct Nowhere;

impl Sink for Nowhere {
    fn result(&mut self, _: &Match) -> bool {
        true
    }
    fn look(&mut self) {}
}

/// Posts the lines of a log from a sequence up to a position.
fn post_again(dir: &Path, from: u64, end: Position, post: &mut OnItem<'_>) -> Result<(), Error> {
    let mut parts = Assembler::default();
    for record in Reader::open(dir, from)? {
        let record = record?;
        if record.sequence >= end.next {
            break;
        }
        let go_on = match parts.take(&record) {
            Some(Logged::File(first, path)) => post(Item::File(first, &path))?,
            Some(Logged::Line(number, text)) => post(Item::Line(number, &text))?,
            _ => true,
        };
        if !go_on {
            return Err(Error::Failed("the lines of the log were not taken".into()));
        }
    }
    Ok(())
}

/// Opens the log, takes up what is there if that was asked for, and says what the run begins with. Sets the capacity where
/// it was left open; `chosen` is the user's.
pub(crate) fn open(
    device: &Device,
    options: &mut Options,
    (dir, every, resume): (&Path, Option<Duration>, bool),
    chosen: Option<u32>,
) -> Result<(Kept, Option<Resumed>), Error> {
    let sync = SyncPolicy::Every(Duration::from_millis(100));
    let (log, _) = Log::open(dir, LogOptions { sync, ..LogOptions::default() })?;
    let (dir, end) = (dir.to_path_buf(), log.position());
    let mut kept = Kept {
        dir: dir.clone(),
        log: Some(log),
        position: None,
        restore: false,
        every,
        begin: Begin::default(),
        known: Known::default(),
    };
    let found = match &kept.log {
        Some(log) if resume => Some(look(&dir, log)?),
        _ => None,
    };
    let mut told = None;
    if let Some(found) = found {
        if let (Some(wanted), Some(has)) = (chosen, found.capacity)
            && wanted != has
        {
            let rule = format!(
                "the memory there holds {has} lines, not {wanted}: leave out --capacity, or begin without --resume"
            );
            return Err(refused(&dir, rule));
        }
        options.capacity = found.capacity.unwrap_or(options.capacity);
        kept.restore = found.restore || found.lines > 0;
        kept.known = found.known.clone();
        if found.lines > 0 {
            let before =
                if found.restore { Checkpoint::look(&dir)?.and_then(|c| Known::from_bytes(&c.note)) } else { None };
            let again = Kept {
                dir: dir.clone(),
                log: None,
                position: Some(end),
                restore: found.restore,
                every: None,
                begin: Begin::default(),
                known: before.unwrap_or_default(),
            };
            let read = |post: &mut OnItem<'_>| post_again(&dir, found.from, end, post);
            let summary = find(device, options, Some(again), &Shared::default(), read, &mut Nowhere)?;
            summary.kept.unwrap_or(Err(Error::Failed("no checkpoint was written".into())))?;
        }
        let last = found.known.last_place().map(|(file, line)| format!("{}:{line}", file.display()));
        told = Some(Resumed { lines: found.known.next_line, replayed_lines: found.lines, last });
    }
    kept.begin = Begin { first: kept.known.next_line, resumed: u32::from(kept.restore), capacity: options.capacity };
    Ok((kept, told))
}
