//! From the servers' rings to batches in which each mailbox's records stand in its order.

use crossbeam::channel::{Receiver as Steps, Sender as ToWriter};

use super::batch::Batch;
use super::counters::TensorCounts;
use super::drain::{Asked, Step};
use super::format::{RECORD_HEADER, record_bytes};
use super::options::Entry;
use super::tensors::{Held, Taken, Tensors};
use crate::abi;
use crate::error::Error;
use crate::port::{Receiver, Record};

/// Consecutive records of one mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) mailbox: u32,
    /// Number of the last one in the mailbox.
    pub(super) last: u64,
    pub(super) count: u64,
}

/// Records in the order in which they will be written, encoded.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pub(super) records: Batch<'static>,
    /// Whose they are, in order.
    pub(super) runs: Vec<Run>,
}

impl Drained {
    /// Takes all records out; their memory is used again.
    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.runs.clear();
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
            Ok(()) => self.note(head.mailbox_id, head.number),
            // A slot is far below the limits of a record.
            Err(error) => tracing::error!(%error, "a journalled record is left out"),
        }
    }
}

/// Where batches go, and where those that were written come back from.
pub(super) struct Outlet {
    pub(super) to_writer: ToWriter<Step>,
    pub(super) free: Steps<Drained>,
}

/// Restores each mailbox's order: a record stays in its ring until the one before it was taken out of another.
///
/// A server gives a module back before another takes it, and each ring is in the order of time; so of all records in the
/// rings the oldest stands in front of its own, and there is always one that may come next.
pub(super) struct Merge {
    /// Of each mailbox, the number that came last.
    last: Vec<u64>,
    /// Bytes of a record of the log whose payload is the longest that a ring carries.
    step: usize,
    /// For records that may bring tensors.
    apart: Vec<u8>,
    batch: Drained,
    checksums: bool,
    tensors: Option<Tensors>,
    out: Outlet,
    /// Tensors that were taken, their bytes, and those that could not be.
    pub(super) taken: TensorCounts,
    /// Slots that did not hold what the arbiter writes: none, unless memory was overwritten.
    pub(super) faults: u64,
}

/// Bytes before the payload in a ring.
const HEAD: usize = size_of::<abi::wm_journal_head>();
/// Records that are taken out of a ring at once.
const AT_ONCE: usize = 64;
/// Bytes of a batch that goes to the writer although there is more: what a disk writes well at once.
const BATCH: u64 = 1 << 20;
/// Bytes up to which a batch grows while the writer is behind.
const LONGEST: u64 = 4 << 20;

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
        let step = record_bytes(longest as u64, 0) as usize;
        let (last, taken) = (vec![0; mailboxes], TensorCounts::default());
        Merge { last, step, apart: Vec::new(), batch, checksums, tensors, out, taken, faults: 0 }
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

    /// Takes what may come next out of a ring, up to 64 records; `any_number`: whatever is there. Returns their number.
    ///
    /// Payloads arrive where the batch will have them: a copy of each would cost as much as everything else does.
    pub(super) fn drain(&mut self, ring: &mut Receiver, any_number: bool) -> usize {
        // The head in front of a payload lands in what will be the record's header.
        const AHEAD: usize = RECORD_HEADER as usize - HEAD;
        let mut records = [Record::default(); AT_ONCE];
        let (step, bytes) = (self.step, AT_ONCE * self.step + AHEAD);
        let base = self.batch.records.end_of_bytes();
        let room = match self.tensors {
            None => self.batch.records.landing(bytes),
            // Making room for a tensor may send the batch off, so these records cannot lie in it yet.
            Some(_) => {
                self.apart.resize(bytes, 0);
                &mut self.apart
            }
        };
        let n = match ring.drain(&mut room[AHEAD..bytes], step, &mut self.last, any_number, &mut records) {
            Ok(n) => n,
            Err(error) => {
                tracing::error!(%error, "a journal ring holds what cannot be");
                self.faults += 1;
                return 0;
            }
        };
        for (i, record) in records[..n].iter().enumerate() {
            if self.tensors.is_none() {
                let place = base + i * step - self.batch.records.end_of_bytes();
                self.settle(place, *record);
            } else {
                self.take(i * step + AHEAD, *record);
            }
        }
        n
    }

    /// The head of a record of the rings, if it can be one.
    fn head(&mut self, record: Record, bytes: &[u8]) -> Option<abi::wm_journal_head> {
        let head = (record.len >= HEAD && record.len - HEAD <= self.step - RECORD_HEADER as usize)
            .then(|| bytemuck::pod_read_unaligned::<abi::wm_journal_head>(&bytes[..HEAD]))
            .filter(|head| (head.mailbox_id as usize) < self.last.len());
        self.faults += u64::from(head.is_none());
        head
    }

    /// Adds a record that arrived in the batch, `place` bytes behind its end.
    fn settle(&mut self, place: usize, record: Record) {
        let at = place + RECORD_HEADER as usize - HEAD;
        let mut bytes = [0; HEAD];
        bytes.copy_from_slice(&self.batch.records.landing(at + HEAD)[at..at + HEAD]);
        let Some(head) = self.head(record, &bytes) else { return };
        let (mailbox, msg_type, producer_ns) = (head.mailbox_id, record.msg_type, head.time_ns);
        let entry = Entry { mailbox, msg_type, producer_ns, ..Entry::default() };
        self.batch.records.land(place, record.len - HEAD, &entry);
        self.batch.note(mailbox, head.number);
    }

    /// Adds a record that lies apart, with the tensor that it points to.
    fn take(&mut self, at: usize, record: Record) {
        let apart = std::mem::take(&mut self.apart);
        if let Some(head) = self.head(record, &apart[at..]) {
            let payload = &apart[at + HEAD..at + record.len];
            let held = self.hold(head.mailbox_id, record.msg_type, payload);
            self.push(head, record.msg_type, payload, held);
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
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may end there
mod tests {
    use std::time::{Duration, Instant};

    use crossbeam::channel;

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

    fn merge(summed: bool) -> (Merge, Steps<Step>, ToWriter<Drained>) {
        let ((to_writer, steps), (used, free)) = (channel::unbounded(), channel::bounded(64));
        (Merge::new(2, 248, summed, None, Outlet { to_writer, free }), steps, used)
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
            let ((mut senders, mut rings), (mut merge, steps, _used)) = (rings(2), merge(summed));
            let len = |number: u64| if number.is_multiple_of(3) { 248 } else { (number * 37 % 249) as usize };
            for number in 1..=3 * RUN {
                for mailbox in 0..2 {
                    let ring = (number / RUN + u64::from(mailbox)) as usize % 2;
                    senders[ring].try_push(9, &payload(mailbox, number, len(number))).unwrap();
                }
            }
            while rings.iter_mut().map(|ring| merge.drain(ring, false)).sum::<usize>() > 0 {
                assert!(merge.send(true));
            }
            let (mut next, mut noted) = ([1u64; 2], [1u64; 2]);
            for batch in batches(&steps) {
                for entry in batch.records.entries() {
                    let (m, number) = (entry.mailbox as usize, next[entry.mailbox as usize]);
                    let bytes = payload(entry.mailbox, number, len(number));
                    assert!(entry.payload == &bytes[HEAD..] && entry.producer_ns == number && entry.msg_type == 9);
                    next[m] += 1;
                }
                for run in batch.runs {
                    noted[run.mailbox as usize] += run.count;
                    assert_eq!(noted[run.mailbox as usize], run.last + 1);
                }
            }
            assert!(next == [3 * RUN + 1; 2] && noted == next && merge.faults == 0);

            senders[0].try_push(9, &payload(0, 3 * RUN + 2, 8)).unwrap();
            assert_eq!((merge.drain(&mut rings[0], false), merge.drain(&mut rings[0], true)), (0, 1));
            senders[0].try_push(9, b"short").unwrap();
            senders[0].try_push(9, &payload(7, 1, 8)).unwrap();
            assert_eq!((merge.drain(&mut rings[0], false), merge.faults), (2, 2));
            assert!(merge.send(true) && batches(&steps)[0].records.len() == 1);
        }
    }

    /// What one thread takes out of rings that are full; `cargo test --release -p warpmail full_rings -- --nocapture` tells it.
    #[test]
    fn full_rings_are_emptied() {
        let ((mut senders, mut rings), (mut merge, steps, used)) = (rings(1), merge(false));
        let (mut number, mut spent) = (0, Duration::ZERO);
        let rounds = if cfg!(debug_assertions) { 2 } else { 200 };
        for _ in 0..rounds {
            for _ in 0..SLOTS / 64 {
                let many: Vec<u8> = (1..=64).flat_map(|i| payload(0, number + i, 248)).collect();
                assert_eq!(senders[0].try_push_batch(1, &many, HEAD + 248).unwrap(), 64);
                number += 64;
            }
            let begin = Instant::now();
            while merge.drain(&mut rings[0], false) > 0 {
                assert!(merge.send(false));
            }
            spent += begin.elapsed();
            batches(&steps).into_iter().for_each(|batch| drop(used.try_send(batch)));
        }
        assert_eq!((merge.last[0], merge.faults), (u64::from(SLOTS) * rounds, 0));
        eprintln!("{:.1} ns a record", spent.as_nanos() as f64 / number as f64);
    }
}
