//! The two threads between the arbiter's rings and a sink: one empties the rings into batches and encodes them, one writes
//! and syncs them. So the next batch is made ready while the one before is on its way to the disk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver as Steps, RecvTimeoutError, Sender as ToWriter};
use serde::Serialize;

use super::merge::{Drained, Merge};
use super::sink::{Position, Sink};
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::port::{Pause, Receiver};

/// Batches on their way to the writer; when they are as many, the drain waits and the rings fill.
const BATCHES: usize = 8;
/// Records of a batch, about.
const BATCH: usize = 1024;
/// Between attempts to write a batch that a full disk refused.
const RETRY: Duration = Duration::from_millis(20);

/// What became of the records that taps saw: `accepted = durable + in_flight + dropped + lost`, always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct JournalStats {
    /// Records that passed a tap.
    pub accepted: u64,
    /// Known to be durable.
    pub durable: u64,
    /// In the rings, in batches, or written and not durable yet.
    pub in_flight: u64,
    /// Left out because a ring was full and the tap says so.
    pub dropped: u64,
    /// Drained after the sink had failed.
    pub lost: u64,
    /// Attempts to write that failed and were repeated, such as those on a full disk.
    pub retries: u64,
    /// Why the sink takes no more; none while it does.
    pub failed: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    ending: AtomicBool,
    durable: AtomicU64,
    lost: AtomicU64,
    retries: AtomicU64,
    failed: Mutex<Option<Error>>,
    /// Where the sink ended.
    ended: Mutex<Option<Position>>,
}

/// Whoever wants everything durable that the rings hold, and where that is.
type Asked = ToWriter<Result<Position>>;

/// What goes from the drain to the writer, in order.
enum Step {
    Write(Drained),
    Commit(Asked),
}

impl Shared {
    fn failure(&self) -> Option<Error> {
        locked(&self.failed).clone()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A journal at work.
pub(crate) struct Drain {
    memory: Arc<Memory>,
    shared: Arc<Shared>,
    asks: ToWriter<Asked>,
    threads: Vec<JoinHandle<()>>,
}

impl Drain {
    pub(crate) fn start(memory: Arc<Memory>, sink: Box<dyn Sink>, blocks: bool) -> Result<Self> {
        let rings: Result<Vec<Receiver>> =
            memory.journal_rings.iter().map(|ring| Receiver::attach(ring, memory.clone())).collect();
        let rings = rings?;
        let shared = Arc::new(Shared::default());
        let (to_writer, steps) = channel::bounded(BATCHES);
        let (asks, asked) = channel::unbounded();
        let slot = memory.journal_rings.first().map_or(64, |r| r.record_stride as usize);
        let thread = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .spawn(body)
                .map_err(|e| Error::Unavailable { what: "a thread for the journal", reason: e.to_string() })
        };
        let (state, merge) = (shared.clone(), Merge::new(sink.wants_checksums()));
        let drainer =
            thread("warpmail-drain", Box::new(move || drain(rings, slot, merge, &asked, &to_writer, &state)))?;
        let (state, words) = (shared.clone(), memory.clone());
        let writer = thread("warpmail-journal", Box::new(move || Writer::new(words, state, blocks).run(sink, &steps)))?;
        Ok(Drain { memory, shared, asks, threads: vec![drainer, writer] })
    }

    pub(crate) fn stats(&self) -> JournalStats {
        let counts = (0..self.memory.handles.len()).map(|m| self.memory.tap_counts(m));
        let (taken, dropped) = counts.fold((0, 0), |(t, d), c| (t + c.taken, d + c.dropped));
        let durable = self.shared.durable.load(Ordering::Acquire);
        let lost = self.shared.lost.load(Ordering::Acquire);
        // The arbiter's counters come with its telemetry, a moment later than the records.
        let taken = taken.max(durable + lost);
        JournalStats {
            accepted: taken + dropped,
            durable,
            in_flight: taken - durable - lost,
            dropped,
            lost,
            retries: self.shared.retries.load(Ordering::Relaxed),
            failed: self.shared.failure().map(|e| e.to_string()),
        }
    }

    /// While the arbiter is away: waits until everything that it has journalled is durable, and says where the sink stands
    /// then. After the end of the journal: where it ended.
    pub(crate) fn settle(&self, until: Instant) -> Result<Position> {
        let begin = Instant::now();
        let position = if self.threads.is_empty() {
            self.shared.failure().map_or(Ok(()), Err)?;
            locked(&self.shared.ended).ok_or_else(|| Error::Failed("the journal has not ended in order".into()))?
        } else {
            let (answer, reply) = channel::bounded(1);
            // Nobody listens any more when the journal has failed: then no answer comes, and the failure is told.
            let _ = self.asks.send(answer);
            match reply.recv_deadline(until) {
                Ok(outcome) => outcome?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.shared.failure().unwrap_or_else(|| Error::Failed("the journal has ended".into())));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let what = "a durable journal (is the disk full, or slow?)".into();
                    return Err(Error::Timeout { what, waited: begin.elapsed() });
                }
            }
        };
        let stats = self.stats();
        if stats.in_flight + stats.lost > 0 {
            let gone = stats.in_flight + stats.lost;
            return Err(Error::Failed(format!("{gone} journalled records never reached the journal's sink")));
        }
        Ok(position)
    }

    /// Drains what is left once the arbiter has gone, makes it durable and ends the threads.
    pub(crate) fn finish(&mut self, until: Instant) -> Result<()> {
        let begin = Instant::now();
        self.shared.ending.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                if Instant::now() >= until {
                    let what = "the end of the journal (is the disk full?)".into();
                    return Err(Error::Timeout { what, waited: begin.elapsed() });
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            thread.join().map_err(|_| Error::Failed("a journal thread panicked".into()))?;
        }
        self.shared.failure().map_or(Ok(()), Err)
    }
}

/// Empties the rings until told to end and nothing is left.
fn drain(
    mut rings: Vec<Receiver>,
    slot: usize,
    mut merge: Merge,
    asked: &Steps<Asked>,
    to_writer: &ToWriter<Step>,
    shared: &Shared,
) {
    let mut asking: Option<Asked> = None;
    let mut buffer = vec![0u8; slot * 64];
    let mut pause = Pause::new();
    loop {
        let ending = shared.ending.load(Ordering::Acquire);
        asking = asking.or_else(|| asked.try_recv().ok());
        let mut found = 0;
        for ring in &mut rings {
            let mut places: [Option<crate::port::Record>; 64] = [None; 64];
            match ring.try_pop_batch(&mut buffer, slot, |i, record| places[i] = Some(record)) {
                Ok(n) => found += n,
                Err(e) => {
                    tracing::error!(error = %e, "a journal ring holds what cannot be");
                    merge.faults += 1;
                }
            }
            for (i, record) in places.iter().enumerate().filter_map(|(i, r)| r.map(|r| (i, r))) {
                merge.take(record, &buffer[i * slot..(i + 1) * slot]);
            }
        }
        if ending && found == 0 && merge.waiting() > 0 {
            tracing::error!(records = merge.waiting(), "journalled records without the ones before them");
            merge.give_up_waiting();
        }
        if merge.batch.numbers.len() >= BATCH || (found == 0 && !merge.batch.numbers.is_empty()) {
            // Waits when the writer is behind; the rings fill meanwhile, which is what back-pressure is.
            if to_writer.send(Step::Write(merge.next_batch())).is_err() {
                return;
            }
        }
        // A round that began after somebody asked and found nothing has seen all that was in the rings then.
        if found == 0
            && let Some(asked) = asking.take()
            && to_writer.send(Step::Commit(asked)).is_err()
        {
            return;
        }
        if found > 0 {
            pause = Pause::new();
        } else if ending {
            return;
        } else {
            pause.wait();
        }
    }
}

struct Writer {
    memory: Arc<Memory>,
    shared: Arc<Shared>,
    /// Without the journal an arbiter whose taps block would stand still for ever.
    blocks: bool,
    /// What was written and is not known to be durable: sequence, mailbox, number.
    behind: VecDeque<(u64, u32, u64)>,
}

impl Writer {
    fn new(memory: Arc<Memory>, shared: Arc<Shared>, blocks: bool) -> Self {
        Writer { memory, shared, blocks, behind: VecDeque::new() }
    }

    fn run(&mut self, mut sink: Box<dyn Sink>, steps: &Steps<Step>) {
        let _span = tracing::info_span!("journal").entered();
        loop {
            let wait = sink.due_in().unwrap_or(Duration::from_millis(200));
            let mut asked = None;
            let outcome = match steps.recv_timeout(wait) {
                Ok(Step::Write(mut batch)) => self.write(sink.as_mut(), &mut batch),
                Ok(Step::Commit(by)) => {
                    asked = Some(by);
                    sink.commit().map(Some)
                }
                Err(RecvTimeoutError::Timeout) => sink.tick().map(|_| None),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.note_durable(sink.durable());
            // The counts are right before anybody is told.
            match (outcome, asked) {
                (Ok(Some(position)), Some(by)) => drop(by.send(Ok(position))),
                (Ok(_), _) => {}
                (Err(e), by) => return self.fail(&e, by, steps),
            }
        }
        let ended = sink.commit();
        match ended.and_then(|position| Ok((position, sink.finish()?))) {
            Ok((position, durable)) => {
                self.note_durable(durable);
                *locked(&self.shared.ended) = Some(position);
            }
            Err(e) => self.fail(&e, None, steps),
        }
    }

    fn write(&mut self, sink: &mut dyn Sink, batch: &mut Drained) -> Result<Option<Position>> {
        loop {
            match sink.append(&mut batch.records) {
                Ok(sequences) => {
                    let placed = sequences.zip(&batch.numbers);
                    self.behind.extend(placed.map(|(sequence, &(mailbox, number))| (sequence, mailbox, number)));
                    return Ok(None);
                }
                // Space may come back: the batch waits, and those behind it, up to the arbiter.
                Err(Error::Io { .. }) if !self.shared.ending.load(Ordering::Acquire) => {
                    if self.shared.retries.fetch_add(1, Ordering::Relaxed) == 0 {
                        tracing::warn!("the journal cannot write; records wait until it can");
                    }
                    std::thread::sleep(RETRY);
                }
                Err(e) => {
                    self.lose(batch.numbers.len());
                    return Err(e);
                }
            }
        }
    }

    /// Publishes what is durable now, to the host and to the modules.
    fn note_durable(&mut self, durable: u64) {
        let known = self.behind.partition_point(|(sequence, _, _)| *sequence <= durable);
        let mut newest: Vec<(u32, u64)> = Vec::new();
        for (_, mailbox, number) in self.behind.drain(..known) {
            match newest.iter_mut().find(|(m, _)| *m == mailbox) {
                Some(entry) => entry.1 = number,
                None => newest.push((mailbox, number)),
            }
        }
        for (mailbox, number) in newest {
            self.memory.publish_durable(mailbox as usize, number);
        }
        self.shared.durable.fetch_add(known as u64, Ordering::Release);
    }

    fn lose(&self, records: usize) {
        self.shared.lost.fetch_add(records as u64, Ordering::Release);
    }

    /// The sink takes no more: says so, and counts what still comes.
    fn fail(&mut self, error: &Error, asked: Option<Asked>, steps: &Steps<Step>) {
        tracing::error!(%error, "the journal has failed");
        *locked(&self.shared.failed) = Some(error.clone());
        let behind = std::mem::take(&mut self.behind).len();
        self.lose(behind);
        if self.blocks {
            self.memory.fail(format!("the journal: {error}"));
        }
        let tell = |by: Asked| drop(by.send(Err(error.clone())));
        asked.into_iter().for_each(tell);
        for step in steps {
            match step {
                Step::Write(batch) => self.lose(batch.numbers.len()),
                Step::Commit(by) => tell(by),
            }
        }
    }
}
