//! The order of records: which comes next in its mailbox, and the batch in which it gets its place.

use std::time::Duration;

use crossbeam::channel::{Receiver as Steps, Sender as ToWriter};

use super::counters::TensorCounts;
use super::drain::Step;
use super::drained::Drained;
use super::tensors::{Held, Tensors};
use crate::abi;
use crate::error::Error;

/// Bytes of a batch that goes to the writer although there is more: what a disk writes well at once.
const BATCH: u64 = 1 << 20;
/// Bytes up to which a batch grows while the writer is behind.
const LONGEST: u64 = 4 << 20;
/// How long a batch that must grow waits for those who fill it.
const SETTLING: Duration = Duration::from_millis(1);

/// Where batches go, and where those that were written come back from.
pub(super) struct Outlet {
    pub(super) to_writer: ToWriter<Step>,
    pub(super) free: Steps<Drained>,
}

/// What the threads that empty the rings have in common, under their lock.
pub(super) struct Order {
    /// Of each mailbox, the number that came last.
    pub(super) last: Vec<u64>,
    pub(super) batch: Drained,
    checksums: bool,
    tensors: Option<Tensors>,
    pub(super) out: Outlet,
    /// Nobody takes batches any more.
    over: bool,
    pub(super) taken: TensorCounts,
    pub(super) faults: u64,
}

impl Order {
    /// Of so many mailboxes; batches with checksums, or without.
    pub(super) fn new(mailboxes: usize, checksums: bool, tensors: Option<Tensors>, out: Outlet) -> Self {
        let mut batch = Drained::default();
        batch.records.leave_unsummed(!checksums);
        Order {
            last: vec![0; mailboxes],
            batch,
            checksums,
            tensors,
            out,
            over: false,
            taken: TensorCounts::default(),
            faults: 0,
        }
    }

    /// Whether tensors may come with the records, which then pass one by one.
    pub(super) fn has_tensors(&self) -> bool {
        self.tensors.is_some()
    }

    /// How many of the records come next, each in its mailbox.
    pub(super) fn accept(&mut self, heads: &[abi::wm_journal_head], any_number: bool) -> usize {
        for (i, head) in heads.iter().enumerate() {
            // What cannot be a record is taken and counted.
            let Some(last) = self.last.get_mut(head.mailbox_id as usize) else { continue };
            if !any_number && head.number != *last + 1 {
                return i;
            }
            *last = head.number;
        }
        heads.len()
    }

    /// Hands on what is ready, if it is enough, or if `all` is to go. False: nobody takes it any more.
    pub(super) fn send(&mut self, all: bool) -> bool {
        let bytes = self.batch.records.bytes();
        let enough = bytes >= if self.out.to_writer.is_full() { LONGEST } else { BATCH };
        if bytes == 0 || !enough && !all {
            return !self.over;
        }
        self.hand_on();
        !self.over
    }

    /// Waits when the writer is behind; the rings fill meanwhile, which is what back-pressure is.
    fn hand_on(&mut self) {
        let mut next = self.out.free.try_recv().unwrap_or_default();
        next.clear();
        next.records.leave_unsummed(!self.checksums);
        let batch = std::mem::replace(&mut self.batch, next);
        self.over |= self.out.to_writer.send(Step::Write(batch)).is_err();
    }

    /// Room for so many bytes of records.
    pub(super) fn make_room(&mut self, bytes: usize) {
        self.send(false);
        if self.batch.records.has_room(bytes) {
            return;
        }
        if !self.batch.is_settled_within(SETTLING) {
            self.hand_on(); // the next one is nobody's yet
        }
        self.batch.records.make_room(bytes);
    }

    /// Takes a record out of a ring, with the tensor that it points to.
    pub(super) fn take_apart(&mut self, head: &abi::wm_journal_head, payload: &[u8]) {
        let held = self.hold(head.mailbox_id, head.type_, payload);
        self.push(head, payload, held);
    }

    fn hold(&mut self, mailbox: u32, msg_type: u16, payload: &[u8]) -> Option<Held> {
        let held = self.tensors.as_ref()?.hold(mailbox, msg_type, payload)?;
        held.inspect_err(|error| self.miss(error)).ok()
    }

    fn miss(&mut self, error: &Error) {
        self.taken.missed += 1;
        tracing::debug!(%error, "a tensor is not journalled: the log has its descriptor only");
    }

    fn push(&mut self, head: &abi::wm_journal_head, payload: &[u8], held: Option<Held>) {
        let Some(held) = held else { return self.batch.push(head, payload, None) };
        let Some(tensors) = self.tensors.take() else { return };
        let taken = tensors.take(&held, &mut || !self.batch.records.has_staged() || self.send(true));
        self.tensors = Some(tensors);
        match taken {
            Ok(tensor) => {
                self.taken.tensors += 1;
                self.taken.bytes += held.1;
                self.batch.push(head, payload, Some(tensor));
            }
            Err(error) => {
                self.miss(&error);
                self.batch.push(head, payload, None);
            }
        }
    }
}
