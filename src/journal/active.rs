//! The segment being written: batches into it, what a failed write leaves out of it, and on to the next one.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::batch::{Batch, Place};
use super::format::{SEGMENT_HEADER, SegmentHeader, segment_name};
use super::log::Log;
use super::segment::Segment;
use crate::error::{Error, Result};

/// A full segment: synced, trimmed, never written again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealed {
    pub(super) first: u64,
    pub(super) bytes: u64,
    /// When the next segment was made: its last record is not younger.
    pub(super) closed_ns: u64,
}

/// What stands behind the last record of the segment being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// Zeros, or the end of the file.
    Clean,
    /// What a failed write left. It must be gone, durably, before anything is written there: a shorter batch written over it
    /// could end exactly where one of its records begins.
    Dirty,
    /// The end of the file, for ever: the next record goes to the next segment, whose making has been begun. Were it written
    /// here after all, a crash could bring back the other file, and both would hold the same sequence.
    Sealed,
}

/// The segment being written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Segment,
    /// Where the next record goes, bytes.
    pub(super) end: u64,
    pub(super) tail: Tail,
    /// Whether the last thing in it is the mark of a log that was closed.
    pub(super) marked: bool,
}

impl Log {
    pub(super) fn take(&mut self, records: &mut Batch<'_>) -> Result<()> {
        self.clean()?;
        let bytes = records.bytes();
        let empty = self.written < self.active.segment.first;
        if self.active.tail == Tail::Sealed || !empty && self.active.end + bytes > self.options.segment_bytes {
            self.roll()?;
        }
        // Until all of it is written, what stands there is nobody's.
        self.active.tail = Tail::Dirty;
        records.place(Place { log_id: self.id, first: self.written + 1, synced: self.durable, wall_ns: now_ns() });
        if let Err(error) = records.write(&self.active.segment, self.active.end) {
            // A reader may be looking: remove what was written now, if that can be done.
            return Err(self.clean().err().filter(|e| matches!(e, Error::NotDurable { .. })).unwrap_or(error));
        }
        self.active.tail = Tail::Clean;
        self.active.marked = false;
        self.active.end += bytes;
        self.written += records.len() as u64;
        self.stats.batches += 1;
        Ok(())
    }

    /// Removes what a failed write left, durably.
    pub(super) fn clean(&mut self) -> Result<()> {
        if self.active.tail == Tail::Dirty {
            self.active.segment.truncate(self.active.end)?;
            self.sync()?;
            self.active.tail = Tail::Clean;
            // Without space set aside a write may fail as this one did, and is then cleaned up as this one was.
            let _ = self.active.segment.allocate(self.options.segment_bytes.max(self.active.end));
        }
        Ok(())
    }

    /// Seals the segment and makes the next. The order is the promise: that a segment is there says that all before it is
    /// durable, and nothing is written to it before its header and its name are.
    fn roll(&mut self) -> Result<()> {
        if self.active.tail != Tail::Sealed {
            self.active.segment.truncate(self.active.end)?;
            self.sync()?;
            self.active.tail = Tail::Sealed;
        }
        let first = self.written + 1;
        if self.leftover {
            // Ours: nobody else makes files here, and none with this sequence was there when the log was opened.
            let _ = self.disk.remove(&segment_name(first));
        }
        let header = SegmentHeader::new(self.id, first, self.active.segment.first, now_ns());
        let segment = Segment::create(self.disk.as_ref(), first)?;
        segment.begin(self.disk.as_ref(), &header, self.options.segment_bytes).inspect_err(|_| {
            self.leftover = true;
            let _ = self.disk.remove(&segment_name(first));
        })?;
        self.leftover = false;
        let closed_ns = header.created_ns;
        self.sealed.push_back(Sealed { first: self.active.segment.first, bytes: self.active.end, closed_ns });
        self.active = Active { segment, end: SEGMENT_HEADER, tail: Tail::Clean, marked: false };
        self.retain_or_warn()
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        let begin = Instant::now();
        self.active.segment.sync()?;
        self.stats.syncs += 1;
        self.stats.sync_ns += begin.elapsed().as_nanos() as u64;
        self.last_sync = Instant::now();
        self.durable = self.written;
        Ok(())
    }
}

/// The wall clock, nanoseconds since 1970.
pub(super) fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}
