//! From the servers' rings to batches in which each mailbox's records stand in its order, by any number of threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver as Steps, Sender as ToWriter};

use super::batch;
use super::counters::TensorCounts;
use super::drain::{Asked, Step, locked};
use super::drained::{Drained, Fill, entry_of};
use super::format::record_bytes;
use super::options::Entry;
use super::ring::{Fronts, Ring};
use super::tensors::{Held, Tensors};
use crate::abi;
use crate::error::Error;

/// Where batches go, and where those that were written come back from.
pub(super) struct Outlet {
    pub(super) to_writer: ToWriter<Step>,
    pub(super) free: Steps<Drained>,
}

/// Restores each mailbox's order: a record stays in its ring until the one before it has a place in a batch.
///
/// A server gives a module back before another takes it, and each ring is in the order of time; so of all records in the
/// rings the oldest stands in front of its own, and there is always one that may come next.
///
/// Threads that drain different rings meet here only to find out which records come next, and to lay them out in the
/// batch, one run behind the other. They copy payloads and reckon checksums at the same time, each where its own records
/// will stay. To a sink that wants no checksums long payloads are lent instead: they stay in their slots, which are given back
/// when the batch is done. Tensors are taken by one thread alone.
pub(super) struct Merge {
    state: Mutex<State>,
    /// Records taken so far.
    claimed: AtomicU64,
    mailboxes: usize,
    /// Records that are taken out of a ring at once.
    at_once: usize,
    checksums: bool,
    /// Whether batches hold slots of the rings.
    lends: bool,
}

struct State {
    /// Of each mailbox, the number that came last.
    last: Vec<u64>,
    batch: Drained,
    checksums: bool,
    tensors: Option<Tensors>,
    out: Outlet,
    /// Nobody takes batches any more.
    over: bool,
    taken: TensorCounts,
    faults: u64,
}

/// Bytes from which on a payload is lent rather than copied, and rings of which slots are held for that.
const LENT: usize = 1 << 10;
/// Bytes that are taken out of a ring at once, about.
const AT_ONCE: usize = 64 << 10;
/// Bytes of a batch that goes to the writer although there is more: what a disk writes well at once.
const BATCH: u64 = 1 << 20;
/// Bytes up to which a batch grows while the writer is behind.
const LONGEST: u64 = 4 << 20;
/// How long a batch that must grow waits for those who fill it.
const SETTLING: Duration = Duration::from_millis(1);

impl Merge {
    /// Of so many mailboxes, whose payloads have up to `longest` bytes; batches with checksums, or without.
    pub(super) fn new(
        mailboxes: usize,
        longest: usize,
        checksums: bool,
        tensors: Option<Tensors>,
        out: Outlet,
    ) -> Self {
        let mut batch = Drained::default();
        batch.records.leave_unsummed(!checksums);
        let lends = !checksums && tensors.is_none() && longest >= LENT;
        let at_once = if lends { Fronts::MOST } else { AT_ONCE / record_bytes(longest as u64, 0) as usize };
        let state = State {
            last: vec![0; mailboxes],
            batch,
            checksums,
            tensors,
            out,
            over: false,
            taken: TensorCounts::default(),
            faults: 0,
        };
        let at_once = at_once.clamp(1, Fronts::MOST);
        Merge { state: Mutex::new(state), claimed: AtomicU64::new(0), mailboxes, at_once, checksums, lends }
    }

    /// Hands on what is ready, if it is enough, or if `all` is to go. False: nobody takes it any more.
    pub(super) fn send(&self, all: bool) -> bool {
        locked(&self.state).send(all)
    }

    /// Asks for everything to be durable that was handed on.
    pub(super) fn ask(&self, asked: Asked) -> bool {
        locked(&self.state).out.to_writer.send(Step::Commit(asked)).is_ok()
    }

    /// Records taken so far, by all threads.
    pub(super) fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// Tensors that were taken, their bytes, and those that could not be.
    pub(super) fn taken(&self) -> TensorCounts {
        locked(&self.state).taken
    }

    /// Slots that did not hold what the arbiter writes: none, unless memory was overwritten.
    #[cfg(test)]
    pub(super) fn faults(&self) -> u64 {
        locked(&self.state).faults
    }

    pub(super) fn add_faults(&self, faults: u64) {
        locked(&self.state).faults += faults;
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
        let mut state = locked(&self.state);
        let n = state.accept(fronts.heads(), any_number);
        if n == 0 {
            return (0, None);
        }
        self.claimed.fetch_add(n as u64, Ordering::Relaxed);
        let good = || (0..n).zip(fronts.heads()).filter(|(_, head)| self.can_be(head));
        state.faults += (n - good().count()) as u64;
        if state.tensors.is_some() {
            for (i, head) in good() {
                // SAFETY: the slot is given back when this thread has returned from here.
                state.take_apart(head, unsafe { ring.payload(fronts, i) });
            }
            return (n, None);
        }
        let laid = |head: &abi::wm_journal_head| {
            record_bytes(head.len.into(), 0) as usize - if self.is_lent(head) { head.len.into() } else { 0 }
        };
        state.make_room(good().map(|(_, head)| laid(head)).sum());
        for (i, head) in good() {
            places[i] = if self.is_lent(head) {
                // SAFETY: the batch holds the slot, from here on, until its records have been cleared.
                state.batch.lay_lent(head, unsafe { ring.payload(fronts, i) })
            } else {
                state.batch.lay(head)
            };
        }
        if self.lends {
            state.batch.hold(ring.slots(), ring.taken() + n as u64);
        }
        (n, Some(state.batch.begin_fill()))
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
                batch::fill_lent(record, &entry);
            } else {
                batch::fill(record, &entry, self.checksums);
            }
        }
    }
}

impl State {
    /// How many of the records come next, each in its mailbox.
    fn accept(&mut self, heads: &[abi::wm_journal_head], any_number: bool) -> usize {
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

    fn send(&mut self, all: bool) -> bool {
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
    fn make_room(&mut self, bytes: usize) {
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
    fn take_apart(&mut self, head: &abi::wm_journal_head, payload: &[u8]) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may end there
mod tests {
    use std::time::{Duration, Instant};

    use crossbeam::channel;

    use super::super::drained::Run;
    use super::super::ring::HEAD;
    use super::super::ring::tests::{Filler, ring};
    use super::*;

    const SLOTS: u32 = 4096;
    /// Records of one mailbox that a server writes before another one takes the module.
    const RUN: u64 = 100;

    fn payload(mailbox: u32, number: u64, len: usize) -> Vec<u8> {
        (0..len).map(|i| (number as usize * 31 + i * 7 + mailbox as usize) as u8).collect()
    }

    /// A record as a server writes it.
    fn record(mailbox_id: u32, number: u64, len: usize) -> (abi::wm_journal_head, Vec<u8>) {
        let (len_word, index) = (len as u16, number - 1);
        let head = abi::wm_journal_head { number, index, time_ns: number, mailbox_id, len: len_word, type_: 9 };
        (head, payload(mailbox_id, number, len))
    }

    /// Of slots for payloads of up to so many bytes.
    fn rings(n: usize, longest: usize) -> (Vec<Filler>, Vec<Ring>) {
        (0..n).map(|_| ring((longest + HEAD) as u32, SLOTS)).unzip()
    }

    fn merge(mailboxes: usize, longest: usize, summed: bool) -> (Merge, Steps<Step>, ToWriter<Drained>) {
        let ((to_writer, steps), (used, free)) = (channel::unbounded(), channel::bounded(64));
        (Merge::new(mailboxes, longest, summed, None, Outlet { to_writer, free }), steps, used)
    }

    fn batches(steps: &Steps<Step>) -> Vec<Drained> {
        let batch = |step| match step {
            Step::Write(batch) => batch,
            Step::Commit(_) => unreachable!("nobody asked"),
        };
        steps.try_iter().map(batch).collect()
    }

    /// Two mailboxes whose records lie in runs over two rings come out in order, of all lengths, copied or lent; what has no record
    /// before it stays in its ring until it is forced out; and what cannot be is counted.
    #[test]
    fn runs_of_two_rings_come_out_in_order() {
        for (summed, longest) in [(false, 248), (true, 248), (false, 3968), (true, 3968)] {
            let ((mut fillers, mut rings), (merge, steps, _used)) = (rings(2, longest), merge(2, longest, summed));
            assert_eq!(merge.lends, !summed && longest > LENT);
            let any = longest as u64 + 1;
            let len = |number: u64| if number.is_multiple_of(3) { longest } else { (number * 37 % any) as usize };
            for number in 1..=3 * RUN {
                for mailbox in 0..2 {
                    let ring = (number / RUN + u64::from(mailbox)) as usize % 2;
                    assert!(fillers[ring].try_push(&record(mailbox, number, len(number))));
                }
            }
            while rings.iter_mut().map(|ring| merge.drain(ring, false).0).sum::<usize>() > 0 {
                assert!(merge.send(true));
            }
            let (mut next, mut noted) = ([1u64; 2], [1u64; 2]);
            for batch in batches(&steps) {
                batch.wait().unwrap();
                for entry in batch.records.entries() {
                    let (m, number) = (entry.mailbox as usize, next[entry.mailbox as usize]);
                    let bytes = payload(entry.mailbox, number, len(number));
                    assert!(entry.payload == bytes && entry.producer_ns == number && entry.msg_type == 9);
                    next[m] += 1;
                }
                for run in &batch.runs {
                    noted[run.mailbox as usize] += run.count;
                    assert_eq!(noted[run.mailbox as usize], run.last + 1);
                }
            }
            assert!(next == [3 * RUN + 1; 2] && noted == next && merge.faults() == 0);
            // Those batches are gone, and every slot is the device's again.
            assert!(fillers.iter().zip(&rings).all(|(filler, ring)| filler.given_back() == ring.taken()));

            assert!(fillers[0].try_push(&record(0, 3 * RUN + 2, 8)));
            assert_eq!((merge.drain(&mut rings[0], false).0, merge.drain(&mut rings[0], true).0), (0, 1));
            let (mut head, bytes) = record(0, 3 * RUN + 3, 8);
            head.len = u16::MAX; // longer than a slot
            assert!(fillers[0].try_push(&(head, bytes)) && fillers[0].try_push(&record(7, 1, 8)));
            assert_eq!((merge.drain(&mut rings[0], false).0, merge.faults()), (2, 2));
            assert!(merge.send(true) && batches(&steps)[0].records.len() == 1);
        }
    }

    /// Several threads at the same rings, each ring one's at a time, while runs of three mailboxes move from ring to ring: every
    /// mailbox's order holds over all batches, every byte is where it belongs, and a batch is whole before it is looked at.
    #[test]
    fn threads_keep_the_order() {
        const RECORDS: u64 = if cfg!(debug_assertions) { 6_000 } else { 60_000 };
        for (summed, longest) in [(true, 248), (false, 248), (false, 2000)] {
            let ((fillers, rings), (merge, steps, used)) = (rings(4, longest), merge(3, longest, summed));
            let rings: Vec<_> = rings.into_iter().map(Mutex::new).collect();
            let (all, begin) = (3 * RECORDS, Instant::now());
            let len = |number: u64| number as usize * 37 % (longest + 1);
            let drain = |from: usize| {
                while merge.claimed() < all && begin.elapsed() < Duration::from_secs(60) {
                    for at in 0..rings.len() {
                        if let Ok(mut ring) = rings[(from + at) % rings.len()].try_lock() {
                            merge.drain(&mut ring, false);
                        }
                    }
                    assert!(merge.send(from == 0));
                    std::thread::yield_now();
                }
                assert!(merge.send(true));
            };
            let mut next = [1u64; 3];
            let mut look = |batch: &Drained| {
                batch.wait().unwrap();
                let (mut runs, mut in_run) = (batch.runs.iter(), None);
                for entry in batch.records.entries() {
                    let (m, number) = (entry.mailbox as usize, next[entry.mailbox as usize]);
                    let run: Run = in_run.take().unwrap_or_else(|| *runs.next().unwrap());
                    assert_eq!((run.mailbox, run.last + 1 - run.count), (entry.mailbox, number));
                    in_run = (run.count > 1).then_some(Run { count: run.count - 1, ..run });
                    assert!(entry.payload == payload(entry.mailbox, number, len(number)));
                    next[m] += 1;
                }
                batch.records.len() as u64
            };
            std::thread::scope(|scope| {
                (0..3).for_each(|from| drop(scope.spawn(move || drain(from))));
                scope.spawn(move || produce(fillers, RECORDS, len));
                let mut seen = 0;
                while let Ok(Step::Write(mut batch)) = steps.recv_timeout(Duration::from_secs(10)) {
                    seen += look(&batch);
                    batch.clear();
                    let _ = used.try_send(batch);
                    if seen == all {
                        break;
                    }
                }
                assert_eq!(seen, all);
            });
            assert_eq!((next, merge.faults()), ([RECORDS + 1; 3], 0));
        }
    }

    /// As servers do: runs of each mailbox, one after the other, each into another ring than the one before.
    fn produce(mut fillers: Vec<Filler>, records: u64, len: impl Fn(u64) -> usize) {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut next = [1u64; 3];
        while next.iter().any(|n| *n <= records) {
            let (m, ring) = (rng.usize(..3), rng.usize(..fillers.len()));
            for _ in 0..rng.u64(1..200).min(records + 1 - next[m]) {
                let (record, begin) = (record(m as u32, next[m], len(next[m])), Instant::now());
                while !fillers[ring].try_push(&record) {
                    assert!(begin.elapsed() < Duration::from_secs(10));
                    std::thread::yield_now();
                }
                next[m] += 1;
            }
        }
    }

    /// A batch whose bytes never came is an error for whoever writes it, and a hole in nothing.
    #[test]
    fn a_fill_that_fails_breaks_its_batch() {
        let batch = Drained::default();
        let (fill, other) = (batch.begin_fill(), batch.begin_fill());
        assert!(!batch.is_settled_within(Duration::from_millis(1)));
        fill.done();
        assert!(!batch.is_settled_within(Duration::from_millis(1)));
        drop(other);
        assert!(batch.is_settled_within(Duration::ZERO));
        assert!(matches!(batch.wait(), Err(Error::Failed(_))));
    }

    /// What one thread takes out of rings that are full; `cargo test --release -p warpmail full_rings -- --nocapture` tells it.
    #[test]
    fn full_rings_are_emptied() {
        for longest in [248, 3968] {
            let ((mut fillers, mut rings), (merge, steps, used)) = (rings(1, longest), merge(2, longest, false));
            let (mut number, mut spent) = (0, Duration::ZERO);
            let rounds = if cfg!(debug_assertions) { 2 } else { 100 };
            for _ in 0..rounds {
                for _ in 0..SLOTS {
                    number += 1;
                    assert!(fillers[0].try_push(&record(0, number, longest)));
                }
                let begin = Instant::now();
                while merge.drain(&mut rings[0], false).0 > 0 {
                    assert!(merge.send(false));
                }
                assert!(merge.send(true));
                spent += begin.elapsed();
                for mut batch in batches(&steps) {
                    batch.clear();
                    let _ = used.try_send(batch);
                }
            }
            let last = locked(&merge.state).last[0];
            assert_eq!((last, merge.faults()), (u64::from(SLOTS) * rounds, 0));
            eprintln!("{:.1} ns a record of {longest} bytes", spent.as_nanos() as f64 / number as f64);
        }
    }
}
