//! The segment being written: batches into it, what a failed write leaves out of it, and on to the next one.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::batch::Batch;
use super::disk::{DIRECT_BLOCK, Disk};
use super::encode::{self, Place};
use super::format::{SEGMENT_HEADER, SegmentHeader, segment_name};
use super::log::Log;
use super::options::LogOptions;
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
    /// What stands in the block of `end`, before it: a write of whole blocks begins with it.
    begun: Vec<u8>,
}

impl Active {
    /// A segment with its end, and the bytes before it in the end's block. Opens it for writes past the page cache where that
    /// is wanted; if it cannot be, says why.
    pub(super) fn new(
        mut segment: Segment,
        disk: &dyn Disk,
        options: &LogOptions,
        end: u64,
        begun: Vec<u8>,
    ) -> (Self, Option<String>) {
        debug_assert_eq!(begun.len() as u64, end % BLOCK);
        let not_direct = options.direct_from.and_then(|_| segment.go_direct(disk).err());
        (Active { segment, end, tail: Tail::Clean, marked: false, begun }, not_direct)
    }

    /// Bytes of the filler before a batch: none if it is not written in whole blocks.
    fn gap(&self, records: &Batch<'_>, options: &LogOptions) -> Option<u64> {
        let large = options.direct_from.is_some_and(|from| records.bytes() >= from);
        (large && self.segment.is_direct()).then(|| records.gap(self.end))
    }
}

const BLOCK: u64 = DIRECT_BLOCK as u64;

impl Log {
    pub(super) fn take(&mut self, records: &mut Batch<'_>) -> Result<()> {
        self.clean()?;
        let bytes = records.bytes();
        let mut gap = self.active.gap(records, &self.options);
        let empty = self.written < self.active.segment.first;
        let end = self.active.end + gap.unwrap_or(0) + bytes;
        if self.active.tail == Tail::Sealed || !empty && end > self.options.segment_bytes {
            self.roll()?;
            gap = self.active.gap(records, &self.options);
        }
        // Until all of it is written, what stands there is nobody's.
        self.active.tail = Tail::Dirty;
        let place = Place {
            id_crc: crc32c::crc32c(&self.id),
            first: self.written + 1,
            synced: self.durable,
            wall_ns: now_ns(),
        };
        records.place(place);
        if let Err(error) = self.put(records, gap, &place) {
            // A reader may be looking: remove what was written now, if that can be done.
            return Err(self.clean().err().filter(|e| matches!(e, Error::NotDurable { .. })).unwrap_or(error));
        }
        self.active.tail = Tail::Clean;
        self.active.marked = false;
        self.active.end += gap.unwrap_or(0) + bytes;
        records.tail(&mut self.active.begun, (self.active.end % BLOCK) as usize);
        self.written += records.len() as u64;
        self.stats.batches += 1;
        self.stats.direct_batches += u64::from(gap.is_some());
        Ok(())
    }

    /// Writes a batch at the end; with a gap given, in whole blocks behind a filler of so many bytes.
    fn put(&mut self, records: &mut Batch<'_>, gap: Option<u64>, place: &Place) -> Result<()> {
        let Active { segment, end, begun, .. } = &mut self.active;
        let Some(gap) = gap else { return records.write(segment, *end) };
        let mut lead = begun.clone();
        if gap > 0 {
            lead.extend(encode::filler(gap, self.written, place));
        }
        if let Some(why) = records.write_blocks(segment, *end - begun.len() as u64, &lead)? {
            tracing::info!(%why, "the log is written through the page cache");
            self.stats.not_direct = Some(why);
        }
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
        let begun = bytemuck::bytes_of(&header).to_vec();
        let (active, not_direct) = Active::new(segment, self.disk.as_ref(), &self.options, SEGMENT_HEADER, begun);
        self.active = active;
        self.stats.not_direct = not_direct;
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
