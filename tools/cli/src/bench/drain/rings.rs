//! Records through tapped mailboxes to a sink that forgets them: made by kernels, a warp a mailbox; on the twin by a thread.

use std::time::{Duration, Instant};

use warpmail::journal::NullSink;
use warpmail::{
    Builder, Device, DeviceBuffer, HandlerImage, MailboxId, MailboxOptions, Runtime, Sender, Tap, abi, builtin,
};

use super::super::text;
use super::kernels::Gpu;
use super::{BOUND, hot};

#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) stride: u32,
    pub(super) tap: Tap,
    pub(super) servers: Option<u32>,
    /// Of the arbiter's launch, beside its first: `Builder::journal_blocks`.
    pub(super) further_blocks: u32,
    /// On the twin.
    pub(super) records: u64,
}

/// Mailboxes, each with a module of its own behind it that discards what comes: more than there are servers.
const BOXES_GPU: u32 = 16;
const BOXES_TWIN: u32 = 4;

fn graph(device: &Device, on_gpu: bool, shape: Shape) -> Result<(Runtime, Vec<MailboxId>), warpmail::Error> {
    let mut graph = Builder::new(device.clone());
    // With taps servers have little to do here, and more of the block's warps bring records to the rings.
    let servers = match (on_gpu, shape.tap) {
        (true, Tap::Off) => abi::WM_MAX_SERVERS - 1,
        (true, _) => 2,
        (false, _) => 1,
    };
    hot(&mut graph, shape.servers.or(Some(servers)))?;
    let slots = if shape.stride > 1024 { 256 } else { 1024 };
    let mut boxes = Vec::new();
    for i in 0..if on_gpu { BOXES_GPU } else { BOXES_TWIN } {
        let name = format!("from{i}");
        let from = if on_gpu { graph.stream(&name)? } else { graph.host(&name)? };
        let to = graph.resident(&format!("to{i}"), builtin::DISCARD)?;
        let mailbox = graph.mailbox(from, to, MailboxOptions { stride: shape.stride, slots })?;
        graph.tap(mailbox, shape.tap)?;
        boxes.push(mailbox);
    }
    graph.journal_slots(4 * slots)?.journal_blocks(shape.further_blocks)?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    if shape.tap != Tap::Off {
        runtime.journal(NullSink::default())?;
    }
    Ok((runtime, boxes))
}

/// A graph that runs, with whoever pushes into it.
pub(super) struct Flow<'a> {
    runtime: Runtime,
    shape: Shape,
    from: Source<'a>,
}

enum Source<'a> {
    Kernels(&'a Gpu, DeviceBuffer, u32),
    Thread(Vec<Sender>),
}

/// Records a nanosecond, from the first push until the sink, or without a tap the modules, had them all.
pub(super) fn rate(device: &Device, gpu: Option<&Gpu>, shape: Shape) -> Result<f64, String> {
    let mut flow = Flow::start(device, gpu, shape)?;
    let outcome = flow.rate();
    let stopped = flow.stop();
    outcome.and_then(|rate| stopped.map(|()| rate))
}

impl<'a> Flow<'a> {
    pub(super) fn start(device: &Device, gpu: Option<&'a Gpu>, shape: Shape) -> Result<Self, String> {
        let (mut runtime, boxes) = graph(device, gpu.is_some(), shape).map_err(text)?;
        let from = match gpu {
            Some(gpu) => {
                let handles: Result<Vec<_>, _> = boxes.iter().map(|b| runtime.handle(*b)).collect();
                Source::Kernels(gpu, gpu.table(&handles.map_err(text)?)?, boxes.len() as u32)
            }
            None => {
                let senders: Result<Vec<_>, _> = boxes.iter().map(|b| runtime.sender(*b)).collect();
                Source::Thread(senders.map_err(text)?)
            }
        };
        runtime.start().map_err(text)?;
        std::thread::sleep(Duration::from_millis(20)); // the arbiter is on its SM before others look for a place
        Ok(Flow { runtime, shape, from })
    }

    /// Measures it, once: the counters go on.
    pub(super) fn rate(&mut self) -> Result<f64, String> {
        let seen = |r: &Runtime| match r.journal_stats() {
            Some(journal) => journal.durable,
            None => r.stats().mailboxes.iter().map(|m| m.consumed).sum(),
        };
        let begin = Instant::now();
        let pushed = match &mut self.from {
            Source::Kernels(gpu, table, boxes) => gpu.flood(table, *boxes, self.shape.stride)?,
            Source::Thread(senders) => push_all(senders, self.shape, begin)?,
        };
        while seen(&self.runtime) < pushed {
            if begin.elapsed() > 2 * BOUND {
                let seen = seen(&self.runtime);
                return Err(format!("only {seen} of {pushed} records were taken within {:?}", 2 * BOUND));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(pushed as f64 / begin.elapsed().as_nanos() as f64)
    }

    pub(super) fn stop(mut self) -> Result<(), String> {
        self.runtime.stop(BOUND).map_err(text)
    }
}

fn push_all(senders: &mut [Sender], shape: Shape, begin: Instant) -> Result<u64, String> {
    let len = senders.first().map_or(0, |s| s.payload_bytes());
    let records = shape.records * 256 / u64::from(shape.stride);
    let (batch, mut sent) = (vec![7u8; len * 64], 0);
    while sent < records {
        let before = sent;
        for sender in senders.iter_mut() {
            let n = (records - sent).min(64) as usize;
            if n > 0 {
                sent += sender.try_push_batch(1, &batch[..len * n], len).map_err(text)? as u64;
            }
        }
        if sent == before {
            if begin.elapsed() > BOUND {
                return Err(format!("{sent} of {records} records could be pushed within {BOUND:?}"));
            }
            std::thread::yield_now();
        }
    }
    Ok(sent)
}
