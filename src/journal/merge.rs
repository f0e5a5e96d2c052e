//! From the servers' rings to batches in which each mailbox's records stand in its order, by any number of threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver as Steps, Sender as ToWriter};

use super::batch;
use super::counters::TensorCounts;
use super::drain::{Asked, Step, locked};
use super::drained::{ARRIVAL, Drained, Fill, entry_of, payload_of};
use super::format::{RECORD_HEADER, record_bytes};
use super::tensors::{Held, Tensors};
use crate::abi;
use crate::error::Error;
use crate::port::{Fronts, Receiver};

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
/// will stay. Tensors are taken by one thread alone.
pub(super) struct Merge {
    state: Mutex<State>,
    /// Records taken so far.
    claimed: AtomicU64,
    mailboxes: usize,
    /// Records that are taken out of a ring at once.
    at_once: usize,
    checksums: bool,
}

struct State {
    /// Of each mailbox, the number that came last.
    last: Vec<u64>,
    batch: Drained,
    checksums: bool,
    tensors: Option<Tensors>,
    /// For records that may bring tensors.
    apart: Vec<u64>,
    out: Outlet,
    /// Nobody takes batches any more.
    over: bool,
    taken: TensorCounts,
    faults: u64,
}

/// Bytes before the payload in a ring.
const HEAD: usize = size_of::<abi::wm_journal_head>();
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
        let at_once = AT_ONCE / record_bytes(longest as u64, 0) as usize;
        let state = State {
            last: vec![0; mailboxes],
            batch,
            checksums,
            tensors,
            apart: Vec::new(),
            out,
            over: false,
            taken: TensorCounts::default(),
            faults: 0,
        };
        let at_once = at_once.clamp(1, Fronts::MOST);
        Merge { state: Mutex::new(state), claimed: AtomicU64::new(0), mailboxes, at_once, checksums }
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
    pub(super) fn drain(&self, ring: &mut Receiver, any_number: bool) -> (usize, bool) {
        let fronts = ring.look(self.at_once);
        if fronts.len() == 0 {
            return (0, false);
        }
        let mut places = [0; Fronts::MOST];
        let (n, fill) = self.claim(ring, &fronts, any_number, &mut places);
        let outcome = match fill {
            // SAFETY: each place is that of a record which `claim` laid out, and before it room for the head.
            Some(fill) => unsafe { ring.take_fronts(&fronts, &places[..n], ARRIVAL) }.map(|()| (fill, places)),
            None => return (n, n == self.at_once),
        };
        match outcome {
            Ok((fill, places)) => {
                self.complete(&fronts, &places[..n]);
                fill.done();
            }
            Err(error) => tracing::error!(%error, "a journal ring holds what cannot be"),
        }
        (n, n == self.at_once)
    }

    /// Finds out which of the records in front of a ring come next, and gives them places in the batch: the address where
    /// the head is to go, which stands before the payload. If tensors may come with them, takes them out as well.
    fn claim(
        &self,
        ring: &mut Receiver,
        fronts: &Fronts,
        any_number: bool,
        places: &mut [u64; Fronts::MOST],
    ) -> (usize, Option<Fill>) {
        let mut state = locked(&self.state);
        let n = state.accept(fronts, any_number);
        if n == 0 {
            return (0, None);
        }
        self.claimed.fetch_add(n as u64, Ordering::Relaxed);
        if state.tensors.is_some() {
            state.take_apart(ring, fronts, n);
            return (n, None);
        }
        let payload = |i: usize| {
            let (head, record) = fronts.get(i);
            payload_of(&head, record, self.mailboxes)
        };
        let bytes = (0..n).filter_map(payload).map(|len| record_bytes(len as u64, 0) as usize).sum();
        state.make_room(bytes);
        for (i, place) in places.iter_mut().enumerate().take(n) {
            match payload(i) {
                Some(len) => {
                    let at = state.batch.lay(&fronts.get(i).0, len);
                    *place = at as u64 + RECORD_HEADER - HEAD as u64;
                }
                None => state.faults += 1,
            }
        }
        (n, Some(state.batch.begin_fill()))
    }

    /// Encodes records whose payloads have arrived at their places.
    fn complete(&self, fronts: &Fronts, places: &[u64]) {
        for (i, place) in places.iter().enumerate().filter(|(_, place)| **place != 0) {
            let (head, record) = fronts.get(i);
            let len = record.len - HEAD;
            let at = (*place + HEAD as u64 - RECORD_HEADER) as *mut u8;
            // SAFETY: the bytes of a record that `claim` laid out for this thread; the batch keeps them until the fill ends.
            let bytes = unsafe { std::slice::from_raw_parts_mut(at, record_bytes(len as u64, 0) as usize) };
            batch::fill(bytes, len, &entry_of(&head, record.msg_type), self.checksums);
        }
    }
}

impl State {
    /// How many of the records come next, each in its mailbox.
    fn accept(&mut self, fronts: &Fronts, any_number: bool) -> usize {
        for i in 0..fronts.len() {
            let head = fronts.get(i).0;
            // What cannot be a record is taken and counted.
            let Some(last) = self.last.get_mut(head.mailbox_id as usize) else { continue };
            if !any_number && head.number != *last + 1 {
                return i;
            }
            *last = head.number;
        }
        fronts.len()
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

    /// Takes n records out of a ring, with the tensors that they point to.
    fn take_apart(&mut self, ring: &mut Receiver, fronts: &Fronts, n: usize) {
        // Making room for a tensor may send the batch off, so these records cannot lie in it yet.
        let mut apart = std::mem::take(&mut self.apart);
        let words: usize = (0..n).map(|i| fronts.get(i).1.len.div_ceil(8)).sum();
        apart.resize(apart.len().max(words), 0);
        let (mut places, mut next) = ([0; Fronts::MOST], 0);
        let mailboxes = self.last.len();
        for (i, place) in places.iter_mut().enumerate().take(n) {
            let (head, record) = fronts.get(i);
            if payload_of(&head, record, mailboxes).is_some() {
                *place = apart[next..].as_mut_ptr() as u64;
                next += record.len.div_ceil(8);
            } else {
                self.faults += 1;
            }
        }
        // SAFETY: the places are parts of `apart`, as long as the records are.
        if let Err(error) = unsafe { ring.take_fronts(fronts, &places[..n], ARRIVAL) } {
            tracing::error!(%error, "a journal ring holds what cannot be");
            drop(self.batch.begin_fill()); // the batch will not do
            return;
        }
        let mut next = 0;
        for i in (0..n).filter(|i| places[*i] != 0) {
            let (head, record) = fronts.get(i);
            let bytes = &bytemuck::cast_slice::<u64, u8>(&apart[next..])[HEAD..record.len];
            next += record.len.div_ceil(8);
            let held = self.hold(head.mailbox_id, record.msg_type, bytes);
            self.push(&head, record.msg_type, bytes, held);
        }
        self.apart = apart;
    }

    fn hold(&mut self, mailbox: u32, msg_type: u16, payload: &[u8]) -> Option<Held> {
        let held = self.tensors.as_ref()?.hold(mailbox, msg_type, payload)?;
        held.inspect_err(|error| self.miss(error)).ok()
    }

    fn miss(&mut self, error: &Error) {
        self.taken.missed += 1;
        tracing::debug!(%error, "a tensor is not journalled: the log has its descriptor only");
    }

    fn push(&mut self, head: &abi::wm_journal_head, kind: u16, payload: &[u8], held: Option<Held>) {
        let Some(held) = held else { return self.batch.push(head, kind, payload, None) };
        let Some(tensors) = self.tensors.take() else { return };
        let taken = tensors.take(&held, &mut || !self.batch.records.has_staged() || self.send(true));
        self.tensors = Some(tensors);
        match taken {
            Ok(tensor) => {
                self.taken.tensors += 1;
                self.taken.bytes += held.1;
                self.batch.push(head, kind, payload, Some(tensor));
            }
            Err(error) => {
                self.miss(&error);
                self.batch.push(head, kind, payload, None);
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
    use super::*;
    use crate::port::{Sender, direct_mailbox};
    use crate::{Device, MailboxOptions};

    const SLOTS: u32 = 4096;
    /// Records of one mailbox that a server writes before another one takes the module.
    const RUN: u64 = 100;

    fn payload(mailbox: u32, number: u64, len: usize) -> Vec<u8> {
        let head = abi::wm_journal_head {
            number,
            index: number - 1,
            time_ns: number,
            mailbox_id: mailbox,
            ..Default::default()
        };
        let mut bytes = bytemuck::bytes_of(&head).to_vec();
        bytes.extend((0..len).map(|i| (number as usize * 31 + i * 7 + mailbox as usize) as u8));
        bytes
    }

    fn rings(n: usize) -> (Vec<Sender>, Vec<Receiver>) {
        let ring = |_| direct_mailbox(&Device::twin(), MailboxOptions { stride: 320, slots: SLOTS }).unwrap();
        (0..n).map(ring).unzip()
    }

    fn merge(mailboxes: usize, summed: bool) -> (Merge, Steps<Step>, ToWriter<Drained>) {
        let ((to_writer, steps), (used, free)) = (channel::unbounded(), channel::bounded(64));
        (Merge::new(mailboxes, 248, summed, None, Outlet { to_writer, free }), steps, used)
    }

    fn batches(steps: &Steps<Step>) -> Vec<Drained> {
        let batch = |step| match step {
            Step::Write(batch) => batch,
            Step::Commit(_) => unreachable!("nobody asked"),
        };
        steps.try_iter().map(batch).collect()
    }

    /// Two mailboxes whose records lie in runs over two rings come out in order, of all lengths; what has no record before it
    /// stays in its ring until it is forced out; and what cannot be is counted.
    #[test]
    fn runs_of_two_rings_come_out_in_order() {
        for summed in [false, true] {
            let ((mut senders, mut rings), (merge, steps, _used)) = (rings(2), merge(2, summed));
            let len = |number: u64| if number.is_multiple_of(3) { 248 } else { (number * 37 % 249) as usize };
            for number in 1..=3 * RUN {
                for mailbox in 0..2 {
                    let ring = (number / RUN + u64::from(mailbox)) as usize % 2;
                    senders[ring].try_push(9, &payload(mailbox, number, len(number))).unwrap();
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
                    assert!(entry.payload == &bytes[HEAD..] && entry.producer_ns == number && entry.msg_type == 9);
                    next[m] += 1;
                }
                for run in &batch.runs {
                    noted[run.mailbox as usize] += run.count;
                    assert_eq!(noted[run.mailbox as usize], run.last + 1);
                }
            }
            assert!(next == [3 * RUN + 1; 2] && noted == next && merge.faults() == 0);

            senders[0].try_push(9, &payload(0, 3 * RUN + 2, 8)).unwrap();
            assert_eq!((merge.drain(&mut rings[0], false).0, merge.drain(&mut rings[0], true).0), (0, 1));
            senders[0].try_push(9, b"short").unwrap();
            senders[0].try_push(9, &payload(7, 1, 8)).unwrap();
            assert_eq!((merge.drain(&mut rings[0], false).0, merge.faults()), (2, 2));
            assert!(merge.send(true) && batches(&steps)[0].records.len() == 1);
        }
    }

    /// Several threads at the same rings, each ring one's at a time, while runs of three mailboxes move from ring to ring: every
    /// mailbox's order holds over all batches, every byte is where it belongs, and a batch is whole before it is looked at.
    #[test]
    fn threads_keep_the_order() {
        const RECORDS: u64 = if cfg!(debug_assertions) { 6_000 } else { 60_000 };
        for summed in [true, false] {
            let ((senders, rings), (merge, steps, used)) = (rings(4), merge(3, summed));
            let rings: Vec<_> = rings.into_iter().map(Mutex::new).collect();
            let (all, begin) = (3 * RECORDS, Instant::now());
            let len = |number: u64| (number * 37 % 249) as usize;
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
                    assert!(entry.payload == &payload(entry.mailbox, number, len(number))[HEAD..]);
                    next[m] += 1;
                }
                batch.records.len() as u64
            };
            std::thread::scope(|scope| {
                (0..3).for_each(|from| drop(scope.spawn(move || drain(from))));
                scope.spawn(move || produce(senders, RECORDS, len));
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
    fn produce(mut senders: Vec<Sender>, records: u64, len: impl Fn(u64) -> usize) {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut next = [1u64; 3];
        while next.iter().any(|n| *n <= records) {
            let (m, ring) = (rng.usize(..3), rng.usize(..senders.len()));
            for _ in 0..rng.u64(1..200).min(records + 1 - next[m]) {
                let bytes = payload(m as u32, next[m], len(next[m]));
                senders[ring].push(9, &bytes, Duration::from_secs(10)).unwrap();
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
        let ((mut senders, mut rings), (merge, steps, used)) = (rings(1), merge(2, false));
        let (mut number, mut spent) = (0, Duration::ZERO);
        let rounds = if cfg!(debug_assertions) { 2 } else { 200 };
        for _ in 0..rounds {
            for _ in 0..SLOTS / 64 {
                let many: Vec<u8> = (1..=64).flat_map(|i| payload(0, number + i, 248)).collect();
                assert_eq!(senders[0].try_push_batch(1, &many, HEAD + 248).unwrap(), 64);
                number += 64;
            }
            let begin = Instant::now();
            while merge.drain(&mut rings[0], false).0 > 0 {
                assert!(merge.send(false));
            }
            spent += begin.elapsed();
            batches(&steps).into_iter().for_each(|batch| drop(used.try_send(batch)));
        }
        let last = locked(&merge.state).last[0];
        assert_eq!((last, merge.faults()), (u64::from(SLOTS) * rounds, 0));
        eprintln!("{:.1} ns a record", spent.as_nanos() as f64 / number as f64);
    }
}
