//! Batches between the rings and the writer. A batch may go on before all bytes are in it: those who drain the rings lay records
//! out one after the other, which gives them their order, and fill them at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::options::Entry;
use super::ring::Slots;
use super::tensors::Taken;
use crate::abi;
use crate::error::{Error, Result};
use crate::port::Pause;

/// Longest wait for bytes of a record whose index was published, and for whoever copies them.
pub(super) const ARRIVAL: Duration = Duration::from_secs(10);

/// Consecutive records of one mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) mailbox: u32,
    /// Number of the last one in the mailbox.
    pub(super) last: u64,
    pub(super) count: u64,
}

/// Records in the order in which they will be written, encoded or about to be.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pub(super) records: Batch<'static>,
    /// Whose they are, in order.
    pub(super) runs: Vec<Run>,
    /// Slots of rings that it holds, and up to where they are given back when it is done.
    held: Vec<(Slots, u64)>,
    fills: Arc<Fills>,
}

#[derive(Debug, Default)]
struct Fills {
    under_way: AtomicUsize,
    /// One ended without its bytes.
    broken: AtomicBool,
}

/// Somebody fills a part of a batch, which stays where it is meanwhile.
#[derive(Debug)]
pub(super) struct Fill {
    fills: Arc<Fills>,
    done: bool,
}

impl Fill {
    /// All bytes are there.
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        if !self.done {
            self.fills.broken.store(true, Ordering::Relaxed);
        }
        // RELEASE: the bytes, for whoever sees that nobody fills it any more.
        self.fills.under_way.fetch_sub(1, Ordering::Release);
    }
}

impl Drained {
    /// Takes all records out; their memory is used again. Nobody fills it any more.
    pub(super) fn clear(&mut self) {
        debug_assert_eq!(self.fills.under_way.load(Ordering::Relaxed), 0);
        self.records.clear();
        self.runs.clear();
        self.give_back();
    }

    fn give_back(&mut self) {
        self.held.drain(..).for_each(|(slots, before)| slots.give_back(before));
    }

    /// Slots are given back when the batch is done: those of this ring before a record.
    pub(super) fn hold(&mut self, slots: &Slots, before: u64) {
        match self.held.iter_mut().find(|(held, _)| held.is(slots)) {
            Some(held) => held.1 = before,
            None => self.held.push((slots.clone(), before)),
        }
    }

    fn note(&mut self, mailbox: u32, number: u64) {
        match self.runs.last_mut() {
            Some(run) if run.mailbox == mailbox && run.last + 1 == number => {
                run.last = number;
                run.count += 1;
            }
            _ => self.runs.push(Run { mailbox, last: number, count: 1 }),
        }
    }

    /// Adds a record that will be filled in, by whoever has a [`begin_fill`](Self::begin_fill); there is room for it. Gives its
    /// place.
    pub(super) fn lay(&mut self, head: &abi::wm_journal_head) -> *mut u8 {
        self.note(head.mailbox_id, head.number);
        self.records.lay(head.len.into())
    }

    /// The same for one whose payload is lent, as long as the batch [`hold`](Self::hold)s its slot.
    pub(super) fn lay_lent(&mut self, head: &abi::wm_journal_head, payload: &'static [u8]) -> *mut u8 {
        self.note(head.mailbox_id, head.number);
        self.records.lay_lent(payload)
    }

    pub(super) fn begin_fill(&self) -> Fill {
        self.fills.under_way.fetch_add(1, Ordering::Relaxed);
        Fill { fills: self.fills.clone(), done: false }
    }

    /// Whether nobody fills it, or soon nobody does.
    pub(super) fn is_settled_within(&self, bound: Duration) -> bool {
        let (begin, mut pause) = (Instant::now(), Pause::new());
        // ACQUIRE of Fill's drop.
        while self.fills.under_way.load(Ordering::Acquire) != 0 {
            if begin.elapsed() > bound {
                return false;
            }
            pause.wait();
        }
        true
    }

    /// Waits until all bytes are there.
    pub(super) fn wait(&self) -> Result<()> {
        // Those who fill it wait for as long themselves.
        if !self.is_settled_within(2 * ARRIVAL) {
            return Err(Error::Timeout { what: "a batch of the journal's".into(), waited: 2 * ARRIVAL });
        }
        if self.fills.broken.load(Ordering::Relaxed) {
            return Err(Error::Failed("journalled records did not arrive as they were announced".into()));
        }
        self.records.wait()
    }

    /// Adds a record that is there, with the tensor that it brings, if there is one.
    pub(super) fn push(&mut self, head: &abi::wm_journal_head, payload: &[u8], tensor: Option<Taken>) {
        let entry = Entry { payload, ..entry_of(head) };
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
            Ok(()) => self.note(head.mailbox_id, head.number),
            // A slot is far below the limits of a record.
            Err(error) => tracing::error!(%error, "a journalled record is left out"),
        }
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        // Also a batch that nobody writes any more: its memory is somebody's to write until the fills have ended.
        if !self.is_settled_within(2 * ARRIVAL) {
            tracing::error!("a batch of the journal's is still being filled: its memory is kept");
            std::mem::forget(std::mem::take(&mut self.records));
            return;
        }
        self.records.clear();
        self.give_back();
    }
}

/// What a record of the rings is in a log, but for its payload.
pub(super) fn entry_of(head: &abi::wm_journal_head) -> Entry<'static> {
    let abi::wm_journal_head { mailbox_id: mailbox, type_: msg_type, time_ns: producer_ns, .. } = *head;
    Entry { mailbox, msg_type, producer_ns, ..Entry::default() }
}
