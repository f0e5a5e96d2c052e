//! From the servers' rings to batches in which each mailbox's records stand in its order.

use std::collections::BTreeMap;

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
    /// Of each record, in order.
    pub(super) fn mailboxes(&self) -> impl Iterator<Item = u32> {
        self.numbers.iter().map(|(mailbox, _)| *mailbox)
    }

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
    /// The number that came last.
    last: u64,
    early: BTreeMap<u64, (abi::wm_journal_head, u16, Vec<u8>)>,
}

/// Restores each mailbox's order.
#[derive(Debug, Default)]
pub(super) struct Merge {
    of_mailbox: Vec<Order>,
    pub(super) batch: Drained,
    checksums: bool,
    /// Slots that did not hold what the arbiter writes: none, unless memory was overwritten.
    pub(super) faults: u64,
}

impl Merge {
    /// Of so many mailboxes; batches with checksums, or without.
    pub(super) fn new(mailboxes: usize, checksums: bool) -> Self {
        let of_mailbox = std::iter::repeat_with(Order::default).take(mailboxes).collect();
        let mut merge = Merge { of_mailbox, checksums, ..Merge::default() };
        merge.next_batch(None);
        merge
    }

    /// Gives what is ready, and begins a new batch, in the memory of one that was written if there is one.
    pub(super) fn next_batch(&mut self, written: Option<Drained>) -> Drained {
        let mut next = written.unwrap_or_default();
        next.records.clear();
        next.numbers.clear();
        next.records.leave_unsummed(!self.checksums);
        std::mem::replace(&mut self.batch, next)
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
        let Some(order) = self.of_mailbox.get_mut(head.mailbox_id as usize) else {
            self.faults += 1;
            return;
        };
        if head.number != order.last + 1 {
            order.early.insert(head.number, (head, record.msg_type, payload.to_vec()));
            return;
        }
        self.batch.push(head, record.msg_type, payload);
        order.last += 1;
        while let Some((head, msg_type, payload)) = order.early.remove(&(order.last + 1)) {
            self.batch.push(head, msg_type, &payload);
            order.last += 1;
        }
    }

    /// Records that wait for one with a lower number.
    pub(super) fn waiting(&self) -> usize {
        self.of_mailbox.iter().map(|order| order.early.len()).sum()
    }

    /// Lets go of what still waits, in order: at the end, when what it waits for cannot come any more.
    pub(super) fn give_up_waiting(&mut self) {
        for order in &mut self.of_mailbox {
            for (head, msg_type, payload) in std::mem::take(&mut order.early).into_values() {
                self.faults += 1;
                self.batch.push(head, msg_type, &payload);
            }
        }
    }
}
