use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver as Steps, Sender as ToWriter};

use super::super::drained::{Drained, Run};
use super::super::ring::HEAD;
use super::super::ring::tests::{Filler, ring};
use super::*;
use crate::error::Error;

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
        let last = locked(&merge.order).last[0];
        assert_eq!((last, merge.faults()), (u64::from(SLOTS) * rounds, 0));
        eprintln!("{:.1} ns a record of {longest} bytes", spent.as_nanos() as f64 / number as f64);
    }
}
