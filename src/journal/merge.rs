//! From the servers' rings to batches in which each mailbox's records stand in its order.

use std::collections::{BTreeMap, HashMap};

use bytemuck::Zeroable;

use super::batch::Batch;
use super::options::Entry;
use crate::abi;
use crate::port::Record;

/// Records in the order in which they will be written, encoded.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pub(super) records: Batch<'static>,
    /// Of each record, its mailbox and its number there.
    pub(super) numbers: Vec<(u32, u64)>,
}

impl Drained {
    fn push(&mut self, head: abi::wm_journal_head, msg_type: u16, payload: &[u8]) {
        let (mailbox, producer_ns) = (head.mailbox_id, head.time_ns);
        let entry = Entry { mailbox, msg_type, producer_ns, payload, ..Entry::default() };
        match self.records.push_copy(&entry) {
            Ok(()) => self.numbers.push((head.mailbox_id, head.number)),
            // A slot is far below the limits of a record.
            Err(error) => tracing::error!(%error, "a journalled record is left out"),
        }
    }
}

/// A mailbox's records that came before one of a lower number, which another server's ring still holds.
#[derive(Debug, Default)]
struct Order {
    next: u64,
    early: BTreeMap<u64, (abi::wm_journal_head, u16, Vec<u8>)>,
}

/// Restores each mailbox's order.
#[derive(Debug, Default)]
pub(super) struct Merge {
    of_mailbox: HashMap<u32, Order>,
    pub(super) batch: Drained,
    checksums: bool,
    /// Slots that did not hold what the arbiter writes: none, unless memory was overwritten.
    pub(super) faults: u64,
}

impl Merge {
    /// Batches with checksums, or without.
    pub(super) fn new(checksums: bool) -> Self {
        let mut merge = Merge { checksums, ..Merge::default() };
        merge.next_batch();
        merge
    }

    /// Gives what is ready, and begins a new batch.
    pub(super) fn next_batch(&mut self) -> Drained {
        let records = if self.checksums { Batch::new() } else { Batch::unsummed() };
        std::mem::replace(&mut self.batch, Drained { records, numbers: Vec::new() })
    }

    /// Takes one slot of a ring.
    pub(super) fn take(&mut self, record: Record, slot: &[u8]) {
        const HEAD: usize = size_of::<abi::wm_journal_head>();
        if record.len < HEAD || record.len > slot.len() {
            self.faults += 1;
            return;
        }
        let mut head = abi::wm_journal_head::zeroed();
        bytemuck::bytes_of_mut(&mut head).copy_from_slice(&slot[..HEAD]);
        let payload = &slot[HEAD..record.len];
        let order = self.of_mailbox.entry(head.mailbox_id).or_insert_with(|| Order { next: 1, ..Order::default() });
        if head.number != order.next {
            order.early.insert(head.number, (head, record.msg_type, payload.to_vec()));
            return;
        }
        self.batch.push(head, record.msg_type, payload);
        order.next += 1;
        while let Some((head, msg_type, payload)) = order.early.remove(&order.next) {
            self.batch.push(head, msg_type, &payload);
            order.next += 1;
        }
    }

    /// Records that wait for one with a lower number.
    pub(super) fn waiting(&self) -> usize {
        self.of_mailbox.values().map(|order| order.early.len()).sum()
    }

    /// Lets go of what still waits, in order: at the end, when what it waits for cannot come any more.
    pub(super) fn give_up_waiting(&mut self) {
        for order in self.of_mailbox.values_mut() {
            for (head, msg_type, payload) in std::mem::take(&mut order.early).into_values() {
                self.faults += 1;
                self.batch.push(head, msg_type, &payload);
            }
        }
    }
}
