//! From the servers' rings to batches in which each mailbox's records stand in its order.

use std::collections::{BTreeMap, HashMap};

use bytemuck::Zeroable;

use super::options::Entry;
use crate::abi;
use crate::port::Record;

/// One journalled record, its payload in the batch's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) head: abi::wm_journal_head,
    pub(super) msg_type: u16,
    at: usize,
    len: usize,
}

/// Records in the order in which they will be written.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) items: Vec<Item>,
    bytes: Vec<u8>,
}

impl Batch {
    fn push(&mut self, head: abi::wm_journal_head, msg_type: u16, payload: &[u8]) {
        self.items.push(Item { head, msg_type, at: self.bytes.len(), len: payload.len() });
        self.bytes.extend_from_slice(payload);
    }

    pub(super) fn entries(&self) -> Vec<Entry<'_>> {
        let entry = |item: &Item| Entry {
            mailbox: item.head.mailbox_id,
            msg_type: item.msg_type,
            flags: 0,
            producer_ns: item.head.time_ns,
            payload: &self.bytes[item.at..item.at + item.len],
            tensor: &[],
        };
        self.items.iter().map(entry).collect()
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
    pub(super) batch: Batch,
    /// Slots that did not hold what the arbiter writes: none, unless memory was overwritten.
    pub(super) faults: u64,
}

impl Merge {
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
