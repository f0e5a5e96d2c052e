//! `drain.hop_overhead`, `drain.lag`: what a tap costs a record that passes, and how soon the sink has it.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use warpmail::journal::{Batch, NullSink, Position, Sink};
use warpmail::{Builder, Device, HandlerImage, MailboxId, MailboxOptions, ModuleId, Runtime, Tap, builtin};

use super::super::{percentiles, text};
use super::kernels::Gpu;
use super::{BOUND, hot};

const ROUNDS: u32 = 4000;
/// Records whose lag is measured, and the time between two.
const LAGS: u64 = 10_000;
const APART: Duration = Duration::from_micros(50);

/// Round trips through a relay, with both mailboxes tapped or not, from a kernel, on the twin from a thread: P50, P99 and
/// P99.9, nanoseconds.
pub(super) fn hop(device: &Device, gpu: Option<&Gpu>, tap: Tap, servers: Option<u32>) -> Result<[f64; 3], String> {
    let mut graph = Builder::new(device.clone());
    hot(&mut graph, servers).map_err(text)?;
    let asker = if gpu.is_some() { graph.stream("asker") } else { graph.host("asker") }.map_err(text)?;
    let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
    let mut mailbox = |from: ModuleId, to: ModuleId| -> Result<MailboxId, warpmail::Error> {
        let id = graph.mailbox(from, to, MailboxOptions::default())?;
        graph.tap(id, tap)?;
        Ok(id)
    };
    let (there, back) = (mailbox(asker, relay).map_err(text)?, mailbox(relay, asker).map_err(text)?);
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    if tap != Tap::Off {
        runtime.journal(NullSink::default()).map_err(text)?;
    }
    let samples = match gpu {
        Some(gpu) => {
            let handles = [runtime.handle(there).map_err(text)?, runtime.handle(back).map_err(text)?];
            runtime.start().map_err(text)?;
            gpu.ping(handles, ROUNDS)
        }
        None => ping(&mut runtime, there, back),
    };
    runtime.stop(BOUND).map_err(text)?;
    percentiles(&samples?[ROUNDS as usize / 10..])
}

fn ping(runtime: &mut Runtime, there: MailboxId, back: MailboxId) -> Result<Vec<f64>, String> {
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    runtime.start().map_err(text)?;
    let mut record = [5u8; 248];
    let mut round_trip = || {
        let begin = Instant::now();
        sender.push(1, &record, BOUND)?;
        receiver.pop(&mut record, BOUND)?;
        Ok(begin.elapsed().as_nanos() as f64)
    };
    (0..ROUNDS).map(|_| round_trip()).collect::<Result<_, _>>().map_err(text)
}

/// Notes how old each record is, by the time of its push in the payload.
struct Ages {
    began: Instant,
    ages: Arc<Mutex<Vec<f64>>>,
    taken: u64,
}

impl Sink for Ages {
    fn append(&mut self, batch: &mut Batch<'_>) -> warpmail::Result<RangeInclusive<u64>> {
        let now = self.began.elapsed().as_nanos() as f64;
        let mut ages = self.ages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for entry in batch.entries() {
            let stamp = entry.payload.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            ages.push(now - stamp as f64);
        }
        let first = self.taken + 1;
        self.taken += batch.len() as u64;
        Ok(first..=self.taken)
    }

    fn wants_checksums(&self) -> bool {
        false
    }

    fn tick(&mut self) -> warpmail::Result<u64> {
        Ok(self.taken)
    }

    fn commit(&mut self) -> warpmail::Result<Position> {
        Ok(Position { log_id: [0; 16], next: self.taken + 1 })
    }

    fn durable(&self) -> u64 {
        self.taken
    }

    fn due_in(&self) -> Option<Duration> {
        None
    }

    fn finish(self: Box<Self>) -> warpmail::Result<u64> {
        Ok(self.taken)
    }
}

/// From a push on the host, through the arbiter, to the sink: P50, P99 and P99.9, nanoseconds. Both ends go by one clock.
pub(super) fn lag(device: &Device) -> Result<[f64; 3], String> {
    let mut graph = Builder::new(device.clone());
    hot(&mut graph, None).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let sink = graph.resident("sink", builtin::DISCARD).map_err(text)?;
    let mailbox = graph.mailbox(host, sink, MailboxOptions::slots(1024)).map_err(text)?;
    graph.tap(mailbox, Tap::Block).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let mut sender = runtime.sender(mailbox).map_err(text)?;
    let (ages, began) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
    runtime.journal(Ages { began, ages: ages.clone(), taken: 0 }).map_err(text)?;
    runtime.start().map_err(text)?;
    let mut record = [0u8; 248];
    for n in 1..=LAGS {
        record[..8].copy_from_slice(&(began.elapsed().as_nanos() as u64).to_le_bytes());
        sender.push(1, &record, BOUND).map_err(text)?;
        let next = Instant::now() + APART;
        while Instant::now() < next && n < LAGS {
            std::thread::yield_now();
        }
    }
    runtime.stop(BOUND).map_err(text)?; // drains what is left
    let ages = ages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if ages.len() as u64 != LAGS {
        return Err(format!("{} of {LAGS} records reached the sink", ages.len()));
    }
    percentiles(&ages[ages.len() / 10..])
}
