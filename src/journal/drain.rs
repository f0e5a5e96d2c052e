//! The threads between the arbiter's rings and a sink: one empties the rings into batches and encodes them, with helpers while
//! there is more than it can take, and one writes and syncs them. So the next batch is made ready while the one before is on
//! its way to the disk.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver as Steps, RecvTimeoutError, Sender as ToWriter};

use super::counters::{Counts, JournalStats, TensorCounts};
use super::drained::Drained;
use super::guarded::Guarded;
use super::merge::Merge;
use super::order::Outlet;
use super::ring::Ring;
use super::sink::{Position, Sink};
use super::tensors::{EndOfWatch, Tensors, Watch};
use super::writer::Writer;
use crate::abi;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::port::Pause;
use crate::tensor::Witness;

/// Batches on their way to the writer; when they are as many, the drain waits and the rings fill.
const BATCHES: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) ending: AtomicBool,
    /// The helpers are to end.
    leaving: AtomicBool,
    pub(super) counts: Counts,
    pub(super) retries: AtomicU64,
    pub(super) tensors: Mutex<TensorCounts>,
    pub(super) failed: Mutex<Option<Error>>,
    /// Where the sink ended.
    pub(super) ended: Mutex<Option<Position>>,
}

/// Whoever wants everything durable that the rings hold, and where that is.
pub(super) type Asked = ToWriter<Result<Position>>;

/// What goes from the drain to the writer, in order.
pub(super) enum Step {
    Write(Drained),
    Commit(Asked),
}

impl Shared {
    pub(super) fn failure(&self) -> Option<Error> {
        locked(&self.failed).clone()
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
    pub(crate) fn start(memory: Arc<Memory>, sink: Box<dyn Sink>, blocks: bool, threads: Option<u32>) -> Result<Self> {
        let rings: Vec<_> = memory.journal_rings.iter().map(|ring| Ring::attach(ring, memory.clone())).collect();
        let shared = Arc::new(Shared { counts: Counts::of(memory.handles.len()), ..Shared::default() });
        let (to_writer, steps) = channel::bounded(BATCHES);
        let (asks, asked) = channel::unbounded();
        let (used, free) = channel::bounded(BATCHES + 2);
        let tapped = memory.handles.iter().filter(|m| m.tap != abi::WM_TAP_NONE);
        // SAFETY: a pure function of its argument.
        let payload = |m: &abi::wm_mailbox| unsafe { abi::wm_host_payload_bytes(m.record_stride) } as usize;
        let longest = tapped.map(payload).max().unwrap_or(0);
        let thread = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .spawn(body)
                .map_err(|e| Error::Unavailable { what: "a thread for the journal", reason: e.to_string() })
        };
        let checksums = sink.wants_checksums();
        let tensors = Tensors::of(&memory, checksums)?;
        let watch = Arc::new(Watch::new(rings.iter().map(|ring| ring.slots().clone()).collect()));
        if let Some(tensors) = &tensors {
            let watch: Arc<dyn Witness> = watch.clone();
            tensors.pool().core.add_witness(Arc::downgrade(&watch));
        }
        let out = Outlet { to_writer, free };
        let drainers = if tensors.is_some() { 1 } else { drainers(threads, rings.len()) };
        let merge = Merge::new(memory.handles.len(), longest, checksums, tensors, out);
        let rings = rings.into_iter().map(Mutex::new).collect();
        let rings = Arc::new(Rings { rings, merge, watch, shared: shared.clone() });
        let mut threads = Vec::new();
        for n in 1..drainers {
            let rings = rings.clone();
            threads.push(thread("warpmail-helper", Box::new(move || help(&rings, n)))?);
        }
        let helpers = threads.iter().map(|thread| thread.thread().clone()).collect();
        threads.push(thread(
            "warpmail-drain",
            Box::new(move || {
                let helpers = Helpers { rings: rings.clone(), threads: helpers };
                let _end = EndOfWatch(rings.watch.clone());
                drain(&rings, &helpers, &asked);
            }),
        )?);
        let (state, words) = (shared.clone(), memory.clone());
        threads.push(thread(
            "warpmail-journal",
            Box::new(move || Writer::new(words, state, blocks, used).run(Box::new(Guarded(sink)), &steps)),
        )?);
        Ok(Drain { memory, shared, asks, threads })
    }

    pub(crate) fn stats(&self) -> JournalStats {
        let tensors = *locked(&self.shared.tensors);
        JournalStats {
            retries: self.shared.retries.load(Ordering::Relaxed),
            failed: self.shared.failure().map(|e| e.to_string()),
            tensors: tensors.tensors,
            tensor_bytes: tensors.bytes,
            tensors_missed: tensors.missed,
            ..self.shared.counts.stats(&self.memory)
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
        let behind: u64 = (0..self.memory.handles.len()).map(|mailbox| self.memory.tap_behind(mailbox)).sum();
        if behind > 0 {
            return Err(Error::Failed(format!(
                "{behind} records that modules are done with found no room in the journal's rings"
            )));
        }
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

/// Threads that empty so many rings, of which each is read by one at a time: as many as were asked for, or half of the cores.
fn drainers(asked: Option<u32>, rings: usize) -> usize {
    const MOST: usize = 8;
    let half = || std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2).min(MOST);
    asked.map_or_else(half, |n| n as usize).clamp(1, rings.max(1))
}

/// What those who empty the rings share.
struct Rings {
    rings: Vec<Mutex<Ring>>,
    merge: Merge,
    watch: Arc<Watch>,
    shared: Arc<Shared>,
}

/// What a round found: records, and whether a ring may have as many again.
#[derive(Default)]
struct Found {
    records: usize,
    more: bool,
}

impl Rings {
    /// Takes what may come next out of each ring, from one of them on; a ring that somebody else is at is passed over, or, to
    /// be `sure`, waited for.
    fn round(&self, first: usize, sure: bool, any_number: bool) -> Found {
        let mut found = Found::default();
        for at in (first..self.rings.len()).chain(0..first) {
            let mut ring = match self.rings[at].try_lock() {
                Ok(ring) => ring,
                Err(TryLockError::WouldBlock) if !sure => continue,
                Err(_) => locked(&self.rings[at]),
            };
            let (records, more) = self.merge.drain(&mut ring, any_number);
            self.watch.saw(at, ring.taken());
            found.records += records;
            found.more |= more;
        }
        found
    }
}

/// Threads that stand by until there is more than one can take.
struct Helpers {
    rings: Arc<Rings>,
    threads: Vec<Thread>,
}

impl Helpers {
    fn wake(&self) {
        self.threads.iter().for_each(Thread::unpark);
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.rings.shared.leaving.store(true, Ordering::Release);
        self.wake();
    }
}

/// Empties rings beside the drain, as long as there is something.
fn help(rings: &Rings, nth: usize) {
    // Without news it looks up now and then, should whoever would have woken it be gone.
    const STANDING_BY: Duration = Duration::from_millis(500);
    let first = nth % rings.rings.len().max(1);
    let leaving = || rings.shared.leaving.load(Ordering::Acquire);
    while !leaving() {
        let mut pause = Pause::new();
        while !pause.is_long() && !leaving() {
            if rings.round(first, false, false).records > 0 {
                pause = Pause::new();
            } else {
                pause.wait();
            }
        }
        if !leaving() {
            std::thread::park_timeout(STANDING_BY);
        }
    }
}

/// Empties the rings until told to end and nothing is left.
fn drain(rings: &Rings, helpers: &Helpers, asked: &Steps<Asked>) {
    let Rings { merge, shared, .. } = rings;
    let mut asking: Option<Asked> = None;
    // Whether what stands in front of the rings may be taken although records before it are missing.
    let mut any_number = false;
    let mut pause = Pause::new();
    loop {
        let ending = shared.ending.load(Ordering::Acquire);
        asking = asking.or_else(|| asked.try_recv().ok());
        let (sure, before) = (ending || asking.is_some(), merge.claimed());
        let found = rings.round(0, sure, any_number);
        if found.more {
            helpers.wake();
        }
        let found = found.records;
        if any_number && found > 0 {
            tracing::error!(records = found, "journalled records without the ones before them");
            merge.add_faults(found as u64);
        }
        *locked(&shared.tensors) = merge.taken();
        if !merge.send(found == 0) {
            return;
        }
        // A round that began after somebody asked, and in which nobody found anything, has seen all that was in the rings then.
        let quiet = found == 0 && merge.claimed() == before;
        if quiet
            && let Some(asked) = asking.take()
            && !(merge.send(true) && merge.ask(asked))
        {
            return;
        }
        if found > 0 {
            (pause, any_number) = (Pause::new(), false);
        } else if ending && quiet && any_number {
            return;
        } else if ending && quiet {
            any_number = true;
        } else {
            pause.wait();
        }
    }
}
