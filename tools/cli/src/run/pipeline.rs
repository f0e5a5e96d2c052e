//! The module graph: reader (host) -> encoder -> sidecar -> planner -> sink (host).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytemuck::Zeroable;
use warpmail::{Builder, Device, Error, MailboxId, MailboxOptions, ModuleOptions, Receiver, Runtime, Sender, Stats};

use super::records::{
    BANDS, BUCKET, DIMS, ENCODER, END, EncoderState, End, LINE, Line, Match, PART_BYTES, PLANNER, PlannerState, RESULT,
    SIDECAR, SidecarState, TENSORS,
};

include!(concat!(env!("OUT_DIR"), "/neardup.rs"));

/// No single wait is longer: whoever waits looks around this often.
const LOOK: Duration = Duration::from_millis(100);
/// Without any progress for this long the run is given up, with an error.
const PATIENCE: Duration = Duration::from_secs(60);
/// Slots of `features`; the encoder relies on TENSORS being larger by at least two.
const FEATURE_SLOTS: u32 = 64;

/// What to look for, and how much to remember.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// In 1/10000.
    pub(crate) threshold: u32,
    pub(crate) emit_all: bool,
    /// Lines that the sidecar remembers.
    pub(crate) capacity: u32,
}

impl Options {
    fn bucket_count(&self) -> u32 {
        (self.capacity / 2).next_power_of_two().max(64)
    }

    /// Device memory that the sidecar takes: vectors, line numbers and index.
    pub(crate) fn memory_bytes(&self) -> u64 {
        u64::from(self.capacity) * (2 * DIMS as u64 + 8) + u64::from(self.bucket_count()) * (BANDS * BUCKET * 8) as u64
    }
}

/// A line for the reader to post: its number over all inputs, and its bytes, not empty.
pub(crate) type InputLine<'a> = (u64, &'a [u8]);

/// What a run found, apart from the results themselves.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) end: End,
    pub(crate) stats: Stats,
    pub(crate) elapsed: Duration,
}

/// What the reader and the sink know of each other.
#[derive(Default)]
pub(crate) struct Shared {
    /// Asks the reader to end early.
    pub(crate) cancel: AtomicBool,
    failed: AtomicBool,
    finished: AtomicBool,
    pub(crate) posted: AtomicU64,
}

struct Graph {
    runtime: Runtime,
    lines: Sender,
    results: Receiver,
}

fn build(device: &Device, options: &Options) -> Result<Graph, Error> {
    let mut graph = Builder::new(device.clone());
    let tensors = device.alloc(TENSORS * DIMS * 2)?;
    let vectors = device.alloc(options.capacity as usize * DIMS * 2)?;
    let lines = device.alloc(options.capacity as usize * 8)?;
    let buckets = device.alloc(options.bucket_count() as usize * BANDS * BUCKET * 8)?;

    let mut encoder = EncoderState::zeroed();
    encoder.tensors = tensors.address();
    encoder.free_count = TENSORS as u32;
    (0..).zip(&mut encoder.free_list).for_each(|(i, slot)| *slot = i);
    let sidecar = SidecarState {
        vectors: vectors.address(),
        lines: lines.address(),
        buckets: buckets.address(),
        inserted: 0,
        capacity: options.capacity,
        bucket_count: options.bucket_count(),
    };
    let planner =
        PlannerState { threshold: options.threshold, emit_all: u32::from(options.emit_all), novel: 0, duplicates: 0 };
    for buffer in [tensors, vectors, lines, buckets] {
        graph.keep(buffer);
    }

    let one = |handler| ModuleOptions { out_records: 1, ..ModuleOptions::handler(handler) };
    let reader = graph.host("reader")?;
    let encoder = graph.resident("encoder", one(ENCODER).with_state(&encoder))?;
    let sidecar = graph.resident("sidecar", one(SIDECAR).with_state(&sidecar))?;
    let planner = graph.resident("planner", one(PLANNER).with_state(&planner))?;
    let sink = graph.host("sink")?;
    // Handlers know their ends by this order.
    let posted = graph.mailbox(reader, encoder, MailboxOptions::slots(1024))?;
    graph.mailbox(encoder, sidecar, MailboxOptions { stride: 512, slots: FEATURE_SLOTS })?;
    graph.mailbox(sidecar, planner, MailboxOptions::slots(64))?;
    graph.mailbox(sidecar, encoder, MailboxOptions { stride: 64, slots: TENSORS as u32 })?;
    let results: MailboxId = graph.mailbox(planner, sink, MailboxOptions::slots(1024))?;
    let mut runtime = graph.build(neardup::image())?;
    let (lines, results) = (runtime.sender(posted)?, runtime.receiver(results)?);
    Ok(Graph { runtime, lines, results })
}

impl Shared {
    /// Pushes, looking around while the mailbox is full.
    fn push(&self, sender: &mut Sender, kind: u16, payload: &[u8]) -> Result<(), Error> {
        let mut waited = Duration::ZERO;
        loop {
            match sender.push(kind, payload, LOOK) {
                Err(Error::Timeout { what, .. }) => {
                    waited += LOOK;
                    if waited >= PATIENCE || self.failed.load(Ordering::Relaxed) {
                        return Err(Error::Timeout { what, waited });
                    }
                }
                other => return other,
            }
        }
    }

    /// Posts one line in as many parts as it needs.
    fn post(&self, sender: &mut Sender, (line, text): InputLine<'_>) -> Result<(), Error> {
        let total = u32::try_from(text.len())
            .map_err(|_| Error::Refused { what: format!("line {}", line + 1), rule: "has 4 GiB or more".into() })?;
        let mut record = [0; size_of::<Line>() + PART_BYTES];
        for (part, bytes) in text.chunks(PART_BYTES).enumerate() {
            let header = Line { line, total, offset: (part * PART_BYTES) as u32 };
            record[..size_of::<Line>()].copy_from_slice(bytemuck::bytes_of(&header));
            record[size_of::<Line>()..][..bytes.len()].copy_from_slice(bytes);
            self.push(sender, LINE, &record[..size_of::<Line>() + bytes.len()])?;
        }
        self.posted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Takes results until the end record.
fn sink(
    results: &mut Receiver,
    shared: &Shared,
    on_result: &mut impl FnMut(&Match),
    on_look: &mut impl FnMut(),
) -> Result<End, Error> {
    let mut buffer = [0; 248];
    let mut last = Instant::now();
    loop {
        let record = match results.pop(&mut buffer, LOOK) {
            Ok(record) => record,
            Err(Error::Timeout { what, .. }) => {
                on_look();
                if shared.failed.load(Ordering::Relaxed) {
                    return Err(Error::Failed("the reader ended with an error".into()));
                }
                // The reader may wait for its input as long as it likes; what it has posted must come through.
                if !shared.finished.load(Ordering::Relaxed) {
                    last = Instant::now();
                } else if last.elapsed() >= PATIENCE {
                    return Err(Error::Timeout { what, waited: PATIENCE });
                }
                continue;
            }
            Err(e) => return Err(e),
        };
        last = Instant::now();
        let bytes = &buffer[..record.len];
        match record.msg_type {
            RESULT if bytes.len() == size_of::<Match>() => on_result(&bytemuck::pod_read_unaligned(bytes)),
            END if bytes.len() == size_of::<End>() => return Ok(bytemuck::pod_read_unaligned(bytes)),
            other => tracing::warn!(msg_type = other, len = bytes.len(), "the sink dropped a record it does not know"),
        }
        on_look();
    }
}

/// Runs the pipeline over everything that `read` posts. `read` calls its argument once a line, until that says false.
pub(crate) fn find(
    device: &Device,
    options: &Options,
    shared: &Shared,
    read: impl FnOnce(&mut dyn FnMut(InputLine<'_>) -> Result<bool, Error>) -> Result<(), Error> + Send,
    mut on_result: impl FnMut(&Match),
    mut on_look: impl FnMut(),
) -> Result<Summary, Error> {
    let Graph { mut runtime, mut lines, mut results } = build(device, options)?;
    runtime.start()?;
    let begin = Instant::now();
    let end = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut post = |line: InputLine<'_>| {
                shared.post(&mut lines, line)?;
                Ok(!shared.cancel.load(Ordering::Relaxed))
            };
            let outcome = read(&mut post).and_then(|()| {
                let end = End { lines: shared.posted.load(Ordering::Relaxed), ..End::default() };
                shared.push(&mut lines, END, bytemuck::bytes_of(&end))
            });
            shared.failed.store(outcome.is_err(), Ordering::Relaxed);
            shared.finished.store(true, Ordering::Relaxed);
            outcome
        });
        let end = sink(&mut results, shared, &mut on_result, &mut on_look);
        if end.is_err() {
            shared.failed.store(true, Ordering::Relaxed);
            shared.cancel.store(true, Ordering::Relaxed);
        }
        let read = reader.join().unwrap_or_else(|_| Err(Error::Failed("the reader panicked".into())));
        read.and(end)
    });
    let elapsed = begin.elapsed();
    let stopped = runtime.stop(Duration::from_secs(10));
    let end = end?;
    stopped?;
    Ok(Summary { end, stats: runtime.stats(), elapsed })
}
