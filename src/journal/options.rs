//! What a user may choose for a log, and what goes into it.

use std::time::Duration;

use super::format::{MARK, MAX_PAYLOAD, MAX_TENSOR, TENSOR, record_bytes};
use crate::error::{Error, Result};

/// When [`append`](super::Log::append) makes records durable by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Before every `append` returns: what it returned is durable.
    EveryBatch,
    /// When this much time has passed since the last time; `append` and [`tick`](super::Log::tick) look at the clock.
    Every(Duration),
    /// Only by [`commit`](super::Log::commit), when a segment is full, and by [`close`](super::Log::close).
    Never,
}

/// What is removed, oldest first: whole segments that are full, never the one being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Remove while all segments together have more bytes than this.
    pub max_bytes: Option<u64>,
    /// Remove segments whose last record is older than this, by the wall clock.
    pub max_age: Option<Duration>,
}

/// How a log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Bytes of a segment, set aside when it is made: 4 KiB to 1 TiB. A batch that is longer gets a longer segment.
    pub segment_bytes: u64,
    /// When records are made durable.
    pub sync: SyncPolicy,
    /// What is removed.
    pub retention: Retention,
    /// Batches of at least this many bytes are written past the page cache, where the file system can, and begin at a
    /// multiple of 4096 bytes for it. None: none are. [`LogStats::not_direct`](super::LogStats::not_direct) says why if not.
    pub direct_from: Option<u64>,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            segment_bytes: 64 << 20,
            sync: SyncPolicy::EveryBatch,
            retention: Retention::default(),
            direct_from: Some(64 << 10),
        }
    }
}

impl LogOptions {
    pub(super) fn check(&self) -> Result<()> {
        if !(4 << 10..=1 << 40).contains(&self.segment_bytes) {
            return Err(Error::refused(
                format!("segments of {} bytes", self.segment_bytes),
                "must be from 4 KiB to 1 TiB",
            ));
        }
        Ok(())
    }
}

/// One record to append.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Row of the mailbox table.
    pub mailbox: u32,
    /// Message type.
    pub msg_type: u16,
    /// The caller's own, below 0x4000.
    pub flags: u16,
    /// The producer's clock, nanoseconds.
    pub producer_ns: u64,
    /// The record's payload, up to 1 GiB.
    pub payload: &'a [u8],
    /// The bytes of a tensor that goes with it, up to 1 TiB; empty if there is none.
    pub tensor: &'a [u8],
}

impl Entry<'_> {
    /// Bytes that the record takes in a segment: header, payload and tensor, up to a multiple of 8.
    pub fn bytes(&self) -> u64 {
        record_bytes(self.payload.len() as u64, self.tensor.len() as u64)
    }

    pub(super) fn check(&self) -> Result<()> {
        let what = || format!("a record of type {} of mailbox {}", self.msg_type, self.mailbox);
        if self.payload.len() as u64 > MAX_PAYLOAD || self.tensor.len() as u64 > MAX_TENSOR {
            return Err(Error::refused(what(), "the payload may have up to 1 GiB and the tensor up to 1 TiB"));
        }
        if self.flags & (MARK | TENSOR) != 0 {
            return Err(Error::refused(what(), "flags from 0x4000 on are the log's own"));
        }
        Ok(())
    }
}
