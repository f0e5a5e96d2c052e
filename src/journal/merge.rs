//! From the servers' rings to batches in which each mailbox's records stand in its order.

use std::collections::BTreeMap;

use bytemuck::Zeroable;
use crossbeam::channel::{Receiver as Steps, Sender as ToWriter};

use super::batch::Batch;
use super::counters::TensorCounts;
use super::drain::{Asked, Step};
use super::options::Entry;
use super::tensors::{Held, Taken, Tensors};
use crate::abi;
use crate::error::Error;
use crate::port::Record;

/// Records in the order in which they will be written, encoded.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pub(super) records: Batch<'static>,
    /// Of each record, its mailbox and its number there.
    pub(super) numbers: Vec<(u32, u64)>,
}

impl Drained {
    /// Takes all records out; their memory is used again.
    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.numbers.clear();
    }

    /// Of each record, in order.
    pub(super) fn mailboxes(&self) -> impl Iterator<Item = u32> {
        self.numbers.iter().map(|(mailbox, _)| *mailbox)
    }

    /// Adds a record, with the tensor that it brings, if there is one.
    fn push(&mut self, head: abi::wm_journal_head, msg_type: u16, payload: &[u8], tensor: Option<Taken>) {
        let (mailbox, producer_ns) = (head.mailbox_id, head.time_ns);
        let entry = Entry { mailbox, msg_type, producer_ns, payload, ..Entry::default() };
        let pushed = match &tensor {
            None => self.records.push_copy(&entry),
            Some(Taken::Copied(tensor)) => self.records.push_tensor(&Entry { tensor, ..entry }),
            Some(Taken::Staged(..)) => Ok(()),
        };
        let pushed = match tensor {
            Some(Taken::Staged(room, crc)) => self.records.push_staged(&entry, room, crc),
            _ => pushed,
        };
        match pushed {
            Ok(()) => self.numbers.push((head.mailbox_id, head.number)),
            // A slot is far below the limits of a record.
            Err(error) => tracing::error!(%error, "a journalled record is left out"),
        }
    }
}

/// A record that cannot be written yet.
type Early = (abi::wm_journal_head, u16, Vec<u8>, Option<Held>);

/// Where batches go, and where those that were written come back from.
pub(super) struct Outlet {
    pub(super) to_writer: ToWriter<Step>,
    pub(super) free: Steps<Drained>,
}

/// A mailbox's records that came before one of a lower number, which another server's ring still holds.
#[derive(Debug, Default)]
struct Order {
    /// The number that came last.
    last: u64,
    early: BTreeMap<u64, Early>,
}

/// Restores each mailbox's order.
pub(super) struct Merge {
    of_mailbox: Vec<Order>,
    batch: Drained,
    checksums: bool,
    tensors: Option<Tensors>,
    out: Outlet,
    /// Tensors that were taken, their bytes, and those that could not be.
    pub(super) taken: TensorCounts,
    /// Slots that did not hold what the arbiter writes: none, unless memory was overwritten.
    pub(super) faults: u64,
}

/// Bytes of a batch that goes to the writer although there is more: what a disk writes well at once.
const BATCH: u64 = 1 << 20;
/// Bytes up to which a batch grows while the writer is behind.
const LONGEST: u64 = 4 << 20;

impl Merge {
    /// Of so many mailboxes; batches with checksums, or without.
    pub(super) fn new(mailboxes: usize, checksums: bool, tensors: Option<Tensors>, out: Outlet) -> Self {
        let of_mailbox = std::iter::repeat_with(Order::default).take(mailboxes).collect();
        let mut batch = Drained::default();
        batch.records.leave_unsummed(!checksums);
        Merge { of_mailbox, batch, checksums, tensors, out, taken: TensorCounts::default(), faults: 0 }
    }

    /// Hands on what is ready, if it is enough, or if `all` is to go. False: nobody takes it any more.
    pub(super) fn send(&mut self, all: bool) -> bool {
        let bytes = self.batch.records.bytes();
        let enough = bytes >= if self.out.to_writer.is_full() { LONGEST } else { BATCH };
        if bytes == 0 || !enough && !all {
            return true;
        }
        let mut next = self.out.free.try_recv().unwrap_or_default();
        next.clear();
        next.records.leave_unsummed(!self.checksums);
        // Waits when the writer is behind; the rings fill meanwhile, which is what back-pressure is.
        self.out.to_writer.send(Step::Write(std::mem::replace(&mut self.batch, next))).is_ok()
    }

    /// Asks for everything to be durable that was handed on.
    pub(super) fn ask(&self, asked: Asked) -> bool {
        self.out.to_writer.send(Step::Commit(asked)).is_ok()
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
        let Some(last) = self.of_mailbox.get(head.mailbox_id as usize).map(|order| order.last) else {
            self.faults += 1;
            return;
        };
        // Now, also if the record has to wait: its lease may end when the ring's slot was seen.
        let held = self.hold(head.mailbox_id, record.msg_type, payload);
        if head.number != last + 1 {
            let early = (head, record.msg_type, payload.to_vec(), held);
            self.of_mailbox[head.mailbox_id as usize].early.insert(head.number, early);
            return;
        }
        self.push(head, record.msg_type, payload, held);
        while let Some((head, msg_type, payload, held)) = self.next_early(head.mailbox_id) {
            self.push(head, msg_type, &payload, held);
        }
    }

    /// Counts the last record, and gives the next one if it came before.
    fn next_early(&mut self, mailbox: u32) -> Option<Early> {
        let order = &mut self.of_mailbox[mailbox as usize];
        order.last += 1;
        order.early.remove(&(order.last + 1))
    }

    fn hold(&mut self, mailbox: u32, msg_type: u16, payload: &[u8]) -> Option<Held> {
        let held = self.tensors.as_ref()?.hold(mailbox, msg_type, payload)?;
        held.inspect_err(|error| self.miss(error)).ok()
    }

    fn miss(&mut self, error: &Error) {
        self.taken.missed += 1;
        tracing::debug!(%error, "a tensor is not journalled: the log has its descriptor only");
    }

    fn push(&mut self, head: abi::wm_journal_head, msg_type: u16, payload: &[u8], held: Option<Held>) {
        let Some(held) = held else { return self.batch.push(head, msg_type, payload, None) };
        let Some(tensors) = self.tensors.take() else { return };
        let taken = tensors.take(&held, &mut || !self.batch.records.has_staged() || self.send(true));
        self.tensors = Some(tensors);
        match taken {
            Ok(tensor) => {
                self.taken.tensors += 1;
                self.taken.bytes += held.1;
                self.batch.push(head, msg_type, payload, Some(tensor));
            }
            Err(error) => {
                self.miss(&error);
                self.batch.push(head, msg_type, payload, None);
            }
        }
    }

    /// Records that wait for one with a lower number.
    pub(super) fn waiting(&self) -> usize {
        self.of_mailbox.iter().map(|order| order.early.len()).sum()
    }

    /// Lets go of what still waits, in order: at the end, when what it waits for cannot come any more.
    pub(super) fn give_up_waiting(&mut self) {
        for mailbox in 0..self.of_mailbox.len() {
            for (head, msg_type, payload, held) in std::mem::take(&mut self.of_mailbox[mailbox].early).into_values() {
                self.faults += 1;
                self.push(head, msg_type, &payload, held);
            }
        }
    }
}
