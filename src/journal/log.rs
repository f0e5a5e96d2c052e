//! The writer.

use std::any::Any;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::active::{Active, Sealed, Tail, now_ns};
use super::batch::Batch;
use super::disk::{Disk, Folder};
use super::encode;
use super::options::{Entry, LogOptions, SyncPolicy};
use super::pages::Pages;
use super::recover::{self, Recovered};
use super::sink::Position;
use crate::error::{Error, Result};

/// Counters of a [`Log`] since it was opened, and what it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LogStats {
    /// The oldest sequence that is kept.
    pub first: u64,
    /// The highest sequence written, 0 if none.
    pub written: u64,
    /// The highest sequence known to be durable, 0 if none.
    pub durable: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of records and headers in them.
    pub bytes: u64,
    /// Batches appended.
    pub batches: u64,
    /// Syncs of segment files.
    pub syncs: u64,
    /// Time in them, nanoseconds.
    pub sync_ns: u64,
    /// Batches that were written past the page cache.
    pub direct_batches: u64,
    /// Why no more are, if that was asked for and cannot be.
    pub not_direct: Option<String>,
    /// Batches that were not taken because a write failed.
    pub failed_batches: u64,
    /// Segments removed by retention.
    pub removed_segments: u64,
    /// Their bytes.
    pub removed_bytes: u64,
}

/// The one writer of a log.
///
/// Dropping it releases the lock and syncs nothing; [`close`](Self::close) leaves the log so that every later damage of what
/// was acknowledged will be seen.
#[derive(Debug)]
pub struct Log {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) options: LogOptions,
    pub(super) id: [u8; 16],
    pub(super) sealed: VecDeque<Sealed>,
    pub(super) active: Active,
    pub(super) written: u64,
    pub(super) durable: u64,
    pub(super) stats: LogStats,
    pub(super) last_sync: Instant,
    failed: Option<Error>,
    /// A failed attempt may have left the file of the next segment.
    pub(super) leftover: bool,
    pub(super) buffer: Pages,
    _lock: Box<dyn Any + Send>,
}

impl Log {
    /// Opens the log in a directory for writing, or makes one where there is none; recovers what a crash left, and says so.
    ///
    /// # Errors
    /// [`Error::Locked`] if it has a writer already; [`Error::Damaged`] if bytes that were durable once are not as they were,
    /// and nothing is changed then; [`Error::Foreign`] for files of another version, log or program; [`Error::Io`].
    pub fn open(dir: impl AsRef<Path>, options: LogOptions) -> Result<(Self, Recovered)> {
        let folder = Folder::new(dir.as_ref());
        folder.make().map_err(|e| Error::io("make directory", dir.as_ref(), &e))?;
        Self::open_on(Arc::new(folder), options)
    }

    /// The same on any [`Disk`].
    pub fn open_on(disk: Arc<dyn Disk>, options: LogOptions) -> Result<(Self, Recovered)> {
        options.check()?;
        let lock = recover::lock(disk.as_ref())?;
        let state = recover::recover(disk.as_ref(), &options)?;
        let recovered = state.recovered;
        let mut log = Log {
            disk,
            options,
            id: state.id,
            sealed: state.sealed,
            active: state.active,
            written: recovered.last,
            durable: recovered.last,
            stats: LogStats { not_direct: state.not_direct, ..LogStats::default() },
            last_sync: Instant::now(),
            failed: None,
            leftover: false,
            buffer: Pages::default(),
            _lock: lock,
        };
        log.retain_or_warn()?;
        Ok((log, recovered))
    }

    /// Writes the entries in their order, with the next sequences, and makes them durable as the policy says. A batch lies
    /// in one segment. No entries: an empty range.
    ///
    /// # Errors
    /// None of the batch is acknowledged. After [`Error::Io`], such as a full disk, the log goes on: append again. After
    /// [`Error::NotDurable`] it is finished. [`Error::Refused`] for an entry that breaks a limit.
    pub fn append(&mut self, entries: &[Entry<'_>]) -> Result<RangeInclusive<u64>> {
        self.alive()?;
        let mut batch = Batch::with_memory(std::mem::take(&mut self.buffer));
        let outcome =
            entries.iter().try_for_each(|entry| batch.push(entry)).and_then(|()| self.append_batch(&mut batch));
        self.buffer = batch.into_memory();
        outcome
    }

    /// The same for a batch that was prepared, perhaps by another thread while the one before was written. After an error it
    /// is as good as new: append it again, or not.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_batch(&mut self, batch: &mut Batch<'_>) -> Result<RangeInclusive<u64>> {
        self.alive()?;
        let first = self.written + 1;
        if batch.is_empty() {
            return Ok(first..=self.written);
        }
        let outcome = self.take(batch);
        if outcome.is_err() {
            self.stats.failed_batches += 1;
        }
        self.note(outcome)?;
        let due = match self.options.sync {
            SyncPolicy::EveryBatch => true,
            SyncPolicy::Every(interval) => self.last_sync.elapsed() >= interval,
            SyncPolicy::Never => false,
        };
        if due {
            self.commit()?;
        }
        Ok(first..=self.written)
    }

    /// Makes everything written durable, and gives the highest durable sequence, 0 if there is none.
    ///
    /// # Errors
    /// [`Error::NotDurable`]: the log is finished.
    pub fn commit(&mut self) -> Result<u64> {
        self.alive()?;
        if self.durable < self.written {
            let outcome = self.sync();
            self.note(outcome)?;
        }
        Ok(self.durable)
    }

    /// What is due by the clock: the sync of [`SyncPolicy::Every`], and retention by age. Gives the highest durable sequence.
    ///
    /// # Errors
    /// As [`commit`](Self::commit) and [`retain`](Self::retain).
    pub fn tick(&mut self) -> Result<u64> {
        self.alive()?;
        if let SyncPolicy::Every(interval) = self.options.sync
            && self.last_sync.elapsed() >= interval
        {
            self.commit()?;
        }
        self.retain(SystemTime::now())?;
        Ok(self.durable)
    }

    /// When [`tick`](Self::tick) should be called next for the sync policy's sake; none if nothing waits for it.
    pub fn due_in(&self) -> Option<Duration> {
        match self.options.sync {
            SyncPolicy::Every(interval) if self.durable < self.written && self.failed.is_none() => {
                Some(interval.saturating_sub(self.last_sync.elapsed()))
            }
            _ => None,
        }
    }

    /// Makes everything durable, marks the end and trims the segment. After that a reader can tell every damaged record
    /// from a torn one, the last too. Gives the highest durable sequence.
    ///
    /// # Errors
    /// As [`append`](Self::append). What was durable stays so.
    pub fn close(mut self) -> Result<u64> {
        self.alive()?;
        self.clean()?;
        self.commit()?;
        if self.active.tail == Tail::Clean && !self.active.marked && self.written >= self.active.segment.first {
            let mark = encode::mark(&self.id, self.written, self.durable, now_ns());
            self.active.segment.write(self.active.end, bytemuck::bytes_of(&mark))?;
            self.active.end += mark.stride();
        }
        self.active.segment.truncate(self.active.end)?;
        self.active.segment.sync()?;
        Ok(self.durable)
    }

    /// The highest sequence known to be durable, 0 if none. Never goes back.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// The highest sequence written, 0 if none; after a crash those above [`durable`](Self::durable) may be gone.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Where the next record will stand.
    pub fn position(&self) -> Position {
        Position { log_id: self.id, next: self.written + 1 }
    }

    /// The oldest sequence kept, or the next one if none is.
    pub fn first(&self) -> u64 {
        self.sealed.front().map_or(self.active.segment.first, |s| s.first)
    }

    /// The log's id, random, the same in all its segments.
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// Why the log takes no more records; none while it does.
    pub fn failed(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// Counters, and what the log holds.
    pub fn stats(&self) -> LogStats {
        LogStats {
            first: self.first(),
            written: self.written,
            durable: self.durable,
            segments: self.sealed.len() as u64 + 1,
            bytes: self.bytes(),
            ..self.stats.clone()
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.sealed.iter().map(|s| s.bytes).sum::<u64>() + self.active.end
    }

    /// The stored error of a log that is finished.
    pub(super) fn alive(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Keeps the error that finishes the log.
    pub(super) fn note<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error @ Error::NotDurable { .. }) = &outcome {
            tracing::error!(%error, "the log is finished");
            self.failed = Some(error.clone());
        }
        outcome
    }
}
