//! From the servers' rings to batches in which each mailbox's records stand in its order, by any number of threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::counters::TensorCounts;
use super::drain::{Asked, Step, locked};
use super::drained::{Fill, entry_of};
use super::encode;
use super::format::record_bytes;
use super::options::Entry;
use super::order::{Order, Outlet};
use super::ring::{Fronts, Ring};
use super::tensors::Tensors;
use crate::abi;

/// Restores each mailbox's order: a record stays in its ring until the one before it has a place in a batch.
///
/// A record's number is taken by whoever journals it, a role or the owner of the module, one at a time for a mailbox, and each
/// ring is in the order of time; so of all records in the rings the oldest stands in front of its own, and there is always one
/// that may come next, or is about to stand there.
///
/// Threads that drain different rings meet here only to find out which records come next, and to lay them out in the
/// batch, one run behind the other. They copy payloads and reckon checksums at the same time, each where its own records
/// will stay. To a sink that wants no checksums long payloads are lent instead: they stay in their slots, which are given back
/// when the batch is done. Tensors are taken by one thread alone.
pub(super) struct Merge {
    order: Mutex<Order>,
    /// Records taken so far.
    claimed: AtomicU64,
    mailboxes: usize,
    /// Records that are taken out of a ring at once.
    at_once: usize,
    checksums: bool,
    /// Whether batches hold slots of the rings.
    lends: bool,
}

/// Bytes from which on a payload is lent rather than copied, and rings of which slots are held for that.
const LENT: usize = 1 << 10;
/// Bytes that are taken out of a ring at once, about.
const AT_ONCE: usize = 64 << 10;

impl Merge {
    /// Of so many mailboxes, whose payloads have up to `longest` bytes; batches with checksums, or without.
    pub(super) fn new(
        mailboxes: usize,
        longest: usize,
        checksums: bool,
        tensors: Option<Tensors>,
        out: Outlet,
    ) -> Self {
        let lends = !checksums && tensors.is_none() && longest >= LENT;
        let at_once = if lends { Fronts::MOST } else { AT_ONCE / record_bytes(longest as u64, 0) as usize };
        let order = Order::new(mailboxes, checksums, tensors, out);
        let at_once = at_once.clamp(1, Fronts::MOST);
        Merge { order: Mutex::new(order), claimed: AtomicU64::new(0), mailboxes, at_once, checksums, lends }
    }

    /// Hands on what is ready, if it is enough, or if `all` is to go. False: nobody takes it any more.
    pub(super) fn send(&self, all: bool) -> bool {
        locked(&self.order).send(all)
    }

    /// Asks for everything to be durable that was handed on.
    pub(super) fn ask(&self, asked: Asked) -> bool {
        locked(&self.order).out.to_writer.send(Step::Commit(asked)).is_ok()
    }

    /// Records taken so far, by all threads.
    pub(super) fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// Tensors that were taken, their bytes, and those that could not be.
    pub(super) fn taken(&self) -> TensorCounts {
        locked(&self.order).taken
    }

    /// Slots that did not hold what the arbiter writes: none, unless memory was overwritten.
    #[cfg(test)]
    pub(super) fn faults(&self) -> u64 {
        locked(&self.order).faults
    }

    pub(super) fn add_faults(&self, faults: u64) {
        locked(&self.order).faults += faults;
    }

    /// Takes what may come next out of a ring, up to what is taken at once; `any_number`: whatever is there. Returns the number
    /// of records, and whether there may be as many again.
    pub(super) fn drain(&self, ring: &mut Ring, any_number: bool) -> (usize, bool) {
        let fronts = ring.look(self.at_once);
        if fronts.heads().is_empty() {
            return (0, false);
        }
        let mut places = [std::ptr::null_mut(); Fronts::MOST];
        let (n, fill) = self.claim(ring, &fronts, any_number, &mut places);
        if let Some(fill) = fill {
            self.complete(ring, &fronts, &places[..n]);
            fill.done();
        }
        let before = ring.take(n);
        if n > 0 && !self.lends {
            ring.slots().give_back(before);
        }
        (n, n == self.at_once)
    }

    /// Whether it can be a record of one of the mailboxes.
    fn can_be(&self, head: &abi::wm_journal_head) -> bool {
        (head.mailbox_id as usize) < self.mailboxes
    }

    fn is_lent(&self, head: &abi::wm_journal_head) -> bool {
        self.lends && usize::from(head.len) >= LENT
    }

    /// Finds out which of the records in front of a ring come next, and gives them places in the batch. If tensors may come
    /// with them, takes them out as well.
    fn claim(
        &self,
        ring: &Ring,
        fronts: &Fronts,
        any_number: bool,
        places: &mut [*mut u8; Fronts::MOST],
    ) -> (usize, Option<Fill>) {
        let mut order = locked(&self.order);
        let n = order.accept(fronts.heads(), any_number);
        if n == 0 {
            return (0, None);
        }
        self.claimed.fetch_add(n as u64, Ordering::Relaxed);
        let good = || (0..n).zip(fronts.heads()).filter(|(_, head)| self.can_be(head));
        order.faults += (n - good().count()) as u64;
        if order.has_tensors() {
            for (i, head) in good() {
                // SAFETY: the slot is given back when this thread has returned from here.
                order.take_apart(head, unsafe { ring.payload(fronts, i) });
            }
            return (n, None);
        }
        let laid = |head: &abi::wm_journal_head| {
            record_bytes(head.len.into(), 0) as usize - if self.is_lent(head) { head.len.into() } else { 0 }
        };
        order.make_room(good().map(|(_, head)| laid(head)).sum());
        for (i, head) in good() {
            places[i] = if self.is_lent(head) {
                // SAFETY: the batch holds the slot, from here on, until its records have been cleared.
                order.batch.lay_lent(head, unsafe { ring.payload(fronts, i) })
            } else {
                order.batch.lay(head)
            };
        }
        if self.lends {
            order.batch.hold(ring.slots(), ring.taken() + n as u64);
        }
        (n, Some(order.batch.begin_fill()))
    }

    /// Encodes records at their places, with their payloads unless these are lent.
    fn complete(&self, ring: &Ring, fronts: &Fronts, places: &[*mut u8]) {
        for (i, (&place, head)) in
            places.iter().zip(fronts.heads()).enumerate().filter(|(_, (place, _))| !place.is_null())
        {
            let bytes = record_bytes(head.len.into(), 0) as usize;
            // SAFETY: the slot is given back after this, or by the batch that this fill is a part of.
            let entry = Entry { payload: unsafe { ring.payload(fronts, i) }, ..entry_of(head) };
            let lent = self.is_lent(head);
            let laid = if lent { bytes - entry.payload.len() } else { bytes };
            // SAFETY: what `claim` laid out for this thread; the batch keeps it until the fill ends.
            let record = unsafe { std::slice::from_raw_parts_mut(place, laid) };
            if lent {
                encode::fill_lent(record, &entry);
            } else {
                encode::fill(record, &entry, self.checksums);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may end there
mod tests;
