//! Where drained records go.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::batch::Batch;
use super::format::id_text;
use super::log::Log;
use crate::error::Result;

/// A place in a log, between two records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The log's id; zeros if what takes the records is no log.
    #[serde(serialize_with = "as_text")]
    pub log_id: [u8; 16],
    /// The sequence of the record behind it, at least 1.
    pub next: u64,
}

fn as_text<S: Serializer>(id: &[u8; 16], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&id_text(id))
}

/// Takes the journal's records, in order, from one thread. [`Log`] is the one that keeps them.
pub trait Sink: Send {
    /// Takes a batch; gives the sequences of its first and last record. After an error none of it was taken.
    fn append(&mut self, batch: &mut Batch<'_>) -> Result<RangeInclusive<u64>>;
    /// Whether batches come with the checksums of their payloads. They are reckoned while the batch before is written.
    fn wants_checksums(&self) -> bool {
        true
    }
    /// Does what is due by the clock; called now and then. Gives the highest durable sequence.
    fn tick(&mut self) -> Result<u64>;
    /// Makes everything that was taken durable now, and says where that is.
    fn commit(&mut self) -> Result<Position>;
    /// The highest sequence known to be durable.
    fn durable(&self) -> u64;
    /// When [`tick`](Self::tick) should be called next; none if nothing waits for it.
    fn due_in(&self) -> Option<Duration>;
    /// Makes everything durable and ends.
    fn finish(self: Box<Self>) -> Result<u64>;
}

impl Sink for Log {
    fn append(&mut self, batch: &mut Batch<'_>) -> Result<RangeInclusive<u64>> {
        self.append_batch(batch)
    }

    fn tick(&mut self) -> Result<u64> {
        Log::tick(self)
    }

    fn commit(&mut self) -> Result<Position> {
        Log::commit(self)?;
        Ok(self.position())
    }

    fn durable(&self) -> u64 {
        Log::durable(self)
    }

    fn due_in(&self) -> Option<Duration> {
        Log::due_in(self)
    }

    fn finish(self: Box<Self>) -> Result<u64> {
        self.close()
    }
}

/// Forgets everything at once, and calls it durable: to measure what comes before a disk.
#[derive(Debug, Default)]
pub struct NullSink {
    taken: u64,
}

impl Sink for NullSink {
    fn append(&mut self, batch: &mut Batch<'_>) -> Result<RangeInclusive<u64>> {
        let first = self.taken + 1;
        self.taken += batch.len() as u64;
        Ok(first..=self.taken)
    }

    fn wants_checksums(&self) -> bool {
        false
    }

    fn tick(&mut self) -> Result<u64> {
        Ok(self.taken)
    }

    fn commit(&mut self) -> Result<Position> {
        Ok(Position { log_id: [0; 16], next: self.taken + 1 })
    }

    fn durable(&self) -> u64 {
        self.taken
    }

    fn due_in(&self) -> Option<Duration> {
        None
    }

    fn finish(self: Box<Self>) -> Result<u64> {
        Ok(self.taken)
    }
}
