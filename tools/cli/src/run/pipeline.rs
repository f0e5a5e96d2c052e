//! Running the module graph: the reader on a thread of its own, the sink on the caller's.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use warpmail::checkpoint::Checkpoint;
use warpmail::journal::JournalStats;
use warpmail::{Device, Error, Footprint, Receiver, Runtime, Sender, Stats};

use super::graph::{Graph, Options, build};
use super::input::{Item, OnItem};
use super::keep::{Keeper, Kept, Known};
use super::records::{BEGIN, Begin, END, End, FILE, LINE, Line, Match, PART_BYTES, RESULT};

/// No single wait is longer: whoever waits looks around this often.
const LOOK: Duration = Duration::from_millis(100);
/// The same while a checkpoint is due: the reader is held back then.
const GLANCE: Duration = Duration::from_millis(1);
/// When records should move and none has for this long, the run is given up with an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run found, apart from the results themselves.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) end: End,
    pub(crate) stats: Stats,
    pub(crate) footprint: Option<Footprint>,
    pub(crate) journal: Option<JournalStats>,
    /// The checkpoint at the end, if one was to be written.
    pub(crate) kept: Option<Result<Checkpoint, Error>>,
    pub(crate) elapsed: Duration,
    /// Ended by Ctrl-C, before the end of the input.
    pub(crate) interrupted: bool,
}

impl Summary {
    /// Lines that were posted and got no verdict, because a handler refused their records.
    pub(crate) fn lost(&self) -> u64 {
        self.end.lines - self.end.novel - self.end.duplicates
    }
}

/// What the reader and the sink know of each other.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Asks the reader to end early.
    cancel: AtomicBool,
    /// Whoever asked was the user.
    pub(crate) interrupted: AtomicBool,
    /// One of the two has given up.
    failed: AtomicBool,
    /// The reader has waited for a slot, or has posted everything: records should move.
    waiting: AtomicBool,
    /// Records posted.
    posted: AtomicU64,
    /// Asks the reader to let a checkpoint be made before it posts the next item.
    hold: AtomicBool,
    /// What was posted; locked while an item is.
    known: Mutex<Known>,
}

/// Where results go; called by one thread.
pub(crate) trait Sink {
    /// Takes a result. False: nobody wants more.
    fn result(&mut self, result: &Match) -> bool;
    /// Nothing has come for a moment.
    fn look(&mut self);
}

impl Shared {
    /// Asks the reader to end early; true if it had been asked before.
    pub(crate) fn cancel(&self) -> bool {
        self.cancel.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Pushes, looking around while the mailbox is full. Whether it is full for good is for the sink to say.
    fn push(&self, sender: &mut Sender, kind: u16, payload: &[u8]) -> Result<(), Error> {
        loop {
            match sender.push(kind, payload, LOOK) {
                Err(Error::Timeout { .. }) if !self.failed.load(Ordering::Relaxed) => {
                    self.waiting.store(true, Ordering::Relaxed);
                }
                other => {
                    self.waiting.store(false, Ordering::Relaxed);
                    self.posted.fetch_add(1, Ordering::Relaxed);
                    return other;
                }
            }
        }
    }

    /// Posts a line, or a name, in as many parts as it needs.
    fn post(&self, sender: &mut Sender, kind: u16, line: u64, text: &[u8]) -> Result<(), Error> {
        const HEADER: usize = size_of::<Line>();
        let total = u32::try_from(text.len())
            .map_err(|_| Error::Refused { what: format!("line {line}"), rule: "has less than 4 GiB".into() })?;
        let mut record = [0; HEADER + PART_BYTES];
        let mut offset = 0;
        for bytes in text.chunks(PART_BYTES) {
            record[..HEADER].copy_from_slice(bytemuck::bytes_of(&Line { line, total, offset }));
            record[HEADER..][..bytes.len()].copy_from_slice(bytes);
            self.push(sender, kind, &record[..HEADER + bytes.len()])?;
            offset += bytes.len() as u32;
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // It is changed by single assignments and pushes: whole also where a thread has panicked.
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits while a checkpoint is due; the sink ends that, or fails.
    fn wait_while_held(&self) {
        while self.hold.load(Ordering::Relaxed) && !self.failed.load(Ordering::Relaxed) {
            std::thread::sleep(GLANCE);
        }
    }

    /// Posts everything that `read` has, between `begin`, if there is one, and the end record. With a `begin` the names of
    /// files are posted too.
    fn read_all(
        &self,
        sender: &mut Sender,
        begin: Option<Begin>,
        read: impl FnOnce(&mut OnItem<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut lines = 0;
        let _told = TellOfPanic(&self.failed);
        let begun = begin.map_or(Ok(()), |begin| self.push(sender, BEGIN, bytemuck::bytes_of(&begin)));
        let outcome = begun.and_then(|()| {
            read(&mut |item| {
                self.wait_while_held();
                let mut known = self.known();
                match item {
                    Item::File(first, path) => {
                        if begin.is_some() {
                            self.post(sender, FILE, first, path.as_os_str().as_encoded_bytes())?;
                        }
                        known.files.push((first, path.to_path_buf()));
                    }
                    Item::Line(number, text) => {
                        self.post(sender, LINE, number, text)?;
                        known.next_line = number + 1;
                        lines += 1;
                    }
                }
                Ok(!self.cancelled())
            })
        });
        let outcome =
            outcome.and_then(|()| self.push(sender, END, bytemuck::bytes_of(&End { lines, ..End::default() })));
        self.failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        self.waiting.store(true, Ordering::Relaxed);
        outcome
    }

    /// Takes results until the end record; none if the reader gave up before. Makes checkpoints when they are due.
    fn take_all(
        &self,
        results: &mut Receiver,
        sink: &mut dyn Sink,
        mut keep: Option<(&mut Keeper, &mut Runtime)>,
    ) -> Result<Option<End>, Error> {
        let mut buffer = [0; 64];
        let (mut idle, mut posted) = (Duration::ZERO, 0);
        loop {
            let due_in = keep.as_ref().and_then(|(keeper, _)| keeper.due_in()).unwrap_or(Duration::MAX);
            let due = due_in.is_zero();
            self.hold.store(due, Ordering::Relaxed);
            let look = due_in.clamp(GLANCE, LOOK);
            let record = match results.pop(&mut buffer, look) {
                Ok(record) => record,
                Err(Error::Timeout { .. }) if due && self.checkpoint(keep.as_mut()) => continue,
                Err(Error::Timeout { what, .. }) => {
                    sink.look();
                    if self.failed.load(Ordering::Relaxed) {
                        return Ok(None);
                    }
                    // A reader that waits for its input may do so for ever; one that waits for a slot may not.
                    let before = std::mem::replace(&mut posted, self.posted.load(Ordering::Relaxed));
                    let stalled = self.waiting.load(Ordering::Relaxed) && before == posted;
                    idle = if stalled { idle + look } else { Duration::ZERO };
                    if idle >= PATIENCE {
                        return Err(Error::Timeout { what, waited: idle });
                    }
                    continue;
                }
                Err(e) => return Err(e),
            };
            idle = Duration::ZERO;
            let bytes = &buffer[..record.len];
            match record.msg_type {
                RESULT if bytes.len() == size_of::<Match>() => {
                    if !sink.result(&bytemuck::pod_read_unaligned(bytes)) {
                        self.cancel();
                    }
                }
                END if bytes.len() == size_of::<End>() => return Ok(Some(bytemuck::pod_read_unaligned(bytes))),
                other => tracing::warn!(msg_type = other, len = bytes.len(), "the sink dropped a record"),
            }
        }
    }

    /// Makes a checkpoint if the reader is between two items and every line has its result. False: not yet.
    fn checkpoint(&self, keep: Option<&mut (&mut Keeper, &mut Runtime)>) -> bool {
        let known = match self.known.try_lock() {
            Ok(known) => known,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let Some((keeper, runtime)) = keep else { return true };
        if runtime.drain(20 * GLANCE).is_err() {
            return false;
        }
        if let Err(error) = keeper.save(runtime, &known) {
            eprintln!("warpmail run: no checkpoint was written, the one before stands: {error}");
        }
        true
    }
}

/// The sink must not wait for a reader that has panicked.
struct TellOfPanic<'a>(&'a AtomicBool);

impl Drop for TellOfPanic<'_> {
    fn drop(&mut self) {
        self.0.fetch_or(std::thread::panicking(), Ordering::Relaxed);
    }
}

/// Runs the pipeline over everything that `read` posts: it calls its argument once an item, until that says false. With
/// `kept`, from what is there on, and with a checkpoint at the end.
pub(crate) fn find(
    device: &Device,
    options: &Options,
    kept: Option<Kept>,
    shared: &Shared,
    read: impl FnOnce(&mut OnItem<'_>) -> Result<(), Error> + Send,
    sink: &mut dyn Sink,
) -> Result<Summary, Error> {
    let mut keeper = kept.as_ref().map(Keeper::new);
    let first = kept.as_ref().filter(|k| k.log.is_some()).map(|k| k.begin);
    let (log, restore) = match kept {
        Some(Kept { dir, log, restore, known, .. }) => {
            *shared.known() = known;
            (log, restore.then_some(dir))
        }
        None => (None, None),
    };
    let mut graph = build(device, options, log)?;
    if let Some(dir) = restore {
        graph.restore(&dir)?;
    }
    let Graph { mut runtime, mut lines, mut results, .. } = graph;
    runtime.start()?;
    let begin = Instant::now();
    let end = std::thread::scope(|scope| {
        let reader = scope.spawn(|| shared.read_all(&mut lines, first, read));
        let keep = keeper.as_mut().map(|keeper| (keeper, &mut runtime));
        let end = shared.take_all(&mut results, sink, keep);
        if end.is_err() {
            shared.failed.store(true, Ordering::Relaxed);
            shared.cancel();
        }
        let read = reader.join().unwrap_or_else(|_| Err(Error::Failed("the reader panicked".into())));
        match end {
            Ok(Some(end)) => read.map(|()| end),
            Ok(None) => Err(read.err().unwrap_or_else(|| Error::Failed("the reader gave up".into()))),
            Err(e) => Err(e),
        }
    });
    let elapsed = begin.elapsed();
    let kept = keeper.filter(|_| end.is_ok()).map(|mut keeper| keeper.save(&mut runtime, &shared.known()));
    let stopped = runtime.stop(Duration::from_secs(10));
    let end = end?;
    stopped?;
    let interrupted = shared.interrupted.load(Ordering::Relaxed);
    let (stats, footprint) = (runtime.stats(), runtime.footprint());
    Ok(Summary { end, stats, footprint, journal: runtime.journal_stats(), kept, elapsed, interrupted })
}
