//! Running the module graph: the reader on a thread of its own, the sink on the caller's.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use warpmail::journal::JournalStats;
use warpmail::{Device, Error, Receiver, Sender, Stats};

use super::graph::{Graph, Options, build};
use super::input::{InputLine, OnLine};
use super::records::{END, End, LINE, Line, Match, PART_BYTES, RESULT};

/// No single wait is longer: whoever waits looks around this often.
const LOOK: Duration = Duration::from_millis(100);
/// When records should move and none has for this long, the run is given up with an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run found, apart from the results themselves.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) end: End,
    pub(crate) stats: Stats,
    pub(crate) journal: Option<JournalStats>,
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

    /// Posts one line in as many parts as it needs.
    fn post(&self, sender: &mut Sender, (line, text): InputLine<'_>) -> Result<(), Error> {
        const HEADER: usize = size_of::<Line>();
        let total = u32::try_from(text.len())
            .map_err(|_| Error::Refused { what: format!("line {line}"), rule: "has less than 4 GiB".into() })?;
        let mut record = [0; HEADER + PART_BYTES];
        let mut offset = 0;
        for bytes in text.chunks(PART_BYTES) {
            record[..HEADER].copy_from_slice(bytemuck::bytes_of(&Line { line, total, offset }));
            record[HEADER..][..bytes.len()].copy_from_slice(bytes);
            self.push(sender, LINE, &record[..HEADER + bytes.len()])?;
            offset += bytes.len() as u32;
        }
        Ok(())
    }

    /// Posts everything that `read` has, and the end record.
    fn read_all(
        &self,
        sender: &mut Sender,
        read: impl FnOnce(&mut OnLine<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut lines = 0;
        let _told = TellOfPanic(&self.failed);
        let outcome = read(&mut |line| {
            self.post(sender, line)?;
            lines += 1;
            Ok(!self.cancelled())
        });
        let outcome =
            outcome.and_then(|()| self.push(sender, END, bytemuck::bytes_of(&End { lines, ..End::default() })));
        self.failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        self.waiting.store(true, Ordering::Relaxed);
        outcome
    }

    /// Takes results until the end record; none if the reader gave up before.
    fn take_all(&self, results: &mut Receiver, sink: &mut dyn Sink) -> Result<Option<End>, Error> {
        let mut buffer = [0; 64];
        let (mut idle, mut posted) = (Duration::ZERO, 0);
        loop {
            let record = match results.pop(&mut buffer, LOOK) {
                Ok(record) => record,
                Err(Error::Timeout { what, .. }) => {
                    sink.look();
                    if self.failed.load(Ordering::Relaxed) {
                        return Ok(None);
                    }
                    // A reader that waits for its input may do so for ever; one that waits for a slot may not.
                    let before = std::mem::replace(&mut posted, self.posted.load(Ordering::Relaxed));
                    let stalled = self.waiting.load(Ordering::Relaxed) && before == posted;
                    idle = if stalled { idle + LOOK } else { Duration::ZERO };
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
}

/// The sink must not wait for a reader that has panicked.
struct TellOfPanic<'a>(&'a AtomicBool);

impl Drop for TellOfPanic<'_> {
    fn drop(&mut self) {
        self.0.fetch_or(std::thread::panicking(), Ordering::Relaxed);
    }
}

/// Runs the pipeline over everything that `read` posts: it calls its argument once a line, until that says false.
pub(crate) fn find(
    device: &Device,
    options: &Options,
    shared: &Shared,
    read: impl FnOnce(&mut OnLine<'_>) -> Result<(), Error> + Send,
    sink: &mut dyn Sink,
) -> Result<Summary, Error> {
    let Graph { mut runtime, mut lines, mut results } = build(device, options)?;
    runtime.start()?;
    let begin = Instant::now();
    let end = std::thread::scope(|scope| {
        let reader = scope.spawn(|| shared.read_all(&mut lines, read));
        let end = shared.take_all(&mut results, sink);
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
    let stopped = runtime.stop(Duration::from_secs(10));
    let end = end?;
    stopped?;
    let interrupted = shared.interrupted.load(Ordering::Relaxed);
    Ok(Summary { end, stats: runtime.stats(), journal: runtime.journal_stats(), elapsed, interrupted })
}
