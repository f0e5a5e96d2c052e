//! The two threads between the arbiter's rings and a sink: one empties the rings into batches and encodes them, one writes
//! and syncs them. So the next batch is made ready while the one before is on its way to the disk.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver as Steps, RecvTimeoutError, Sender as ToWriter};

use super::counters::{Counts, JournalStats, TensorCounts};
use super::guarded::Guarded;
use super::merge::{Drained, Merge, Outlet};
use super::sink::{Position, Sink};
use super::tensors::{EndOfWatch, Tensors, Watch};
use super::writer::Writer;
use crate::abi;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::port::{Pause, Receiver};
use crate::tensor::Witness;

/// Batches on their way to the writer; when they are as many, the drain waits and the rings fill.
const BATCHES: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) ending: AtomicBool,
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
    pub(crate) fn start(memory: Arc<Memory>, sink: Box<dyn Sink>, blocks: bool) -> Result<Self> {
        let rings: Result<Vec<Receiver>> =
            memory.journal_rings.iter().map(|ring| Receiver::attach(ring, memory.clone())).collect();
        let rings = rings?;
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
        let watch = Arc::new(Watch::new(memory.clone()));
        if let Some(tensors) = &tensors {
            let watch: Arc<dyn Witness> = watch.clone();
            tensors.pool().core.add_witness(Arc::downgrade(&watch));
        }
        let out = Outlet { to_writer, free };
        let (state, merge) = (shared.clone(), Merge::new(memory.handles.len(), longest, checksums, tensors, out));
        let drainer = thread(
            "warpmail-drain",
            Box::new(move || {
                let watch = EndOfWatch(watch);
                drain(rings, merge, &asked, &watch.0, &state);
            }),
        )?;
        let (state, words) = (shared.clone(), memory.clone());
        let writer = thread(
            "warpmail-journal",
            Box::new(move || Writer::new(words, state, blocks, used).run(Box::new(Guarded(sink)), &steps)),
        )?;
        Ok(Drain { memory, shared, asks, threads: vec![drainer, writer] })
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
fn drain(mut rings: Vec<Receiver>, mut merge: Merge, asked: &Steps<Asked>, watch: &Watch, shared: &Shared) {
    let mut asking: Option<Asked> = None;
    // Whether what stands in front of the rings may be taken although records before it are missing.
    let mut any_number = false;
    let mut pause = Pause::new();
    loop {
        let ending = shared.ending.load(Ordering::Acquire);
        asking = asking.or_else(|| asked.try_recv().ok());
        let mut found = 0;
        for (at, ring) in rings.iter_mut().enumerate() {
            found += merge.drain(ring, any_number);
            watch.saw(at, ring.popped());
        }
        if any_number && found > 0 {
            tracing::error!(records = found, "journalled records without the ones before them");
            merge.faults += found as u64;
        }
        *locked(&shared.tensors) = merge.taken;
        if !merge.send(found == 0) {
            return;
        }
        // A round that began after somebody asked and found nothing has seen all that was in the rings then.
        if found == 0
            && let Some(asked) = asking.take()
            && !merge.ask(asked)
        {
            return;
        }
        if found > 0 {
            (pause, any_number) = (Pause::new(), false);
        } else if ending && any_number {
            return;
        } else if ending {
            any_number = true;
        } else {
            pause.wait();
        }
    }
}
