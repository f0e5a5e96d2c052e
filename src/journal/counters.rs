//! What became of the records that taps saw, of each mailbox and all together.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::abi::{self, wm_tap_counts};
use crate::memory::Memory;
use crate::options::Tap;

/// What became of the records that taps saw: `accepted = durable + in_flight + dropped + lost`, always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct JournalStats {
    /// Records that passed a tap.
    pub accepted: u64,
    /// Known to be durable.
    pub durable: u64,
    /// In the rings, in batches, or written and not durable yet.
    pub in_flight: u64,
    /// Left out because a ring was full and the tap says so.
    pub dropped: u64,
    /// Drained after the sink had failed.
    pub lost: u64,
    /// Attempts to write that failed and were repeated, such as those on a full disk.
    pub retries: u64,
    /// Tensors that went to the sink with their records.
    pub tensors: u64,
    /// Their bytes.
    pub tensor_bytes: u64,
    /// Tensors that a tap wanted and that could not be taken: without a lease, or ended before the drain came to them. The
    /// log has their descriptors.
    pub tensors_missed: u64,
    /// Why the sink takes no more; none while it does.
    pub failed: Option<String>,
    /// The same of each tapped mailbox.
    pub taps: Vec<TapStats>,
}

/// Of one tapped mailbox; the counters are those of [`JournalStats`], and add up in the same way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // as in JournalStats
pub struct TapStats {
    /// Its name.
    pub mailbox: String,
    /// Its row of the mailbox table, as records of the log have it.
    pub id: u32,
    /// What gives way when the journal cannot keep up.
    pub policy: Tap,
    /// The only message type that the tap takes; none if it takes all.
    pub msg_type: Option<u16>,
    pub accepted: u64,
    pub durable: u64,
    pub in_flight: u64,
    pub dropped: u64,
    pub lost: u64,
}

/// What the drain has counted of tensors.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct TensorCounts {
    pub(super) tensors: u64,
    pub(super) bytes: u64,
    pub(super) missed: u64,
}

/// What the writer has counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    of_mailbox: Vec<Count>,
}

#[derive(Debug, Default)]
struct Count {
    durable: AtomicU64,
    lost: AtomicU64,
}

impl Counts {
    pub(super) fn of(mailboxes: usize) -> Self {
        Counts { of_mailbox: std::iter::repeat_with(Count::default).take(mailboxes).collect() }
    }

    /// So many more that are durable.
    pub(super) fn keep(&self, mailbox: u32, records: u64) {
        self.of_mailbox[mailbox as usize].durable.fetch_add(records, Ordering::Release);
    }

    /// So many more that will never be.
    pub(super) fn lose(&self, mailbox: u32, records: u64) {
        self.of_mailbox[mailbox as usize].lost.fetch_add(records, Ordering::Release);
    }

    pub(super) fn stats(&self, memory: &Memory) -> JournalStats {
        let tapped = (0..).zip(&memory.handles).filter(|(_, handle)| handle.tap != abi::WM_TAP_NONE);
        let taps: Vec<TapStats> = tapped.map(|(id, handle)| self.tap(memory, id, handle.tap)).collect();
        let sum = |count: fn(&TapStats) -> u64| taps.iter().map(count).sum();
        JournalStats {
            accepted: sum(|t| t.accepted),
            durable: sum(|t| t.durable),
            in_flight: sum(|t| t.in_flight),
            dropped: sum(|t| t.dropped),
            lost: sum(|t| t.lost),
            taps,
            ..JournalStats::default()
        }
    }

    fn tap(&self, memory: &Memory, id: u32, tap: u32) -> TapStats {
        let wm_tap_counts { taken, dropped, .. } = memory.tap_counts(id as usize);
        let count = &self.of_mailbox[id as usize];
        let (durable, lost) = (count.durable.load(Ordering::Acquire), count.lost.load(Ordering::Acquire));
        // What a launch has left in slots, not journalled yet. Of a tap of one type nobody has looked which they are.
        let behind = if Tap::type_of_word(tap).is_some() { 0 } else { memory.tap_behind(id as usize) };
        // The arbiter's counters come with its telemetry, a moment later than the records.
        let taken = (taken + behind).max(durable + lost);
        TapStats {
            mailbox: memory.mailbox_name(id).into(),
            id,
            policy: Tap::of_word(tap),
            msg_type: Tap::type_of_word(tap),
            accepted: taken + dropped,
            durable,
            in_flight: taken - durable - lost,
            dropped,
            lost,
        }
    }
}
