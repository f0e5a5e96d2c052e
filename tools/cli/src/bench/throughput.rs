//! `throughput.*`, `to_host.records`, `from_host.records`: how many records pairs of warps move, and one warp and one host
//! thread. Every word that a consumer takes is checked.

use std::time::{Duration, Instant};

use warpmail::{Builder, Device, DeviceBuffer, HandlerImage, MailboxOptions, Mode, ModuleId, SpinBudget};

use super::gpu::{DeviceMailboxes, Kernel, Kernels, Stream, arg};
use super::{Target, median, text, twin};
use crate::figures::Figures;

/// More than half of an SM's shared memory: one block a SM.
const ONE_PER_SM: u32 = 120 * 1024;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measurements of each kind; the row gives the median
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Pairs of warps per SM when all SMs take part
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4))]
    pairs_per_sm: u32,
    /// Slots of each ring when all SMs take part
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(32..=1024))]
    slots: u32,
    /// Records to and from the host
    #[arg(long, default_value_t = 4_000_000)]
    host_records: u64,
    #[command(flatten)]
    target: Target,
}

struct Bench {
    device: Device,
    kernels: Kernels,
    stream: Stream,
    sms: u32,
    faults: DeviceBuffer,
    spans: DeviceBuffer,
}

impl Bench {
    fn new(device: Device) -> Result<Self, String> {
        let kernels = Kernels::load(&device)?;
        let (stream, sms) = (kernels.stream()?, kernels.multiprocessors);
        let faults = device.alloc(64).map_err(text)?;
        let spans = device.alloc(16 * 32 * sms as usize).map_err(text)?;
        Ok(Bench { device, kernels, stream, sms, faults, spans })
    }

    fn check(&self) -> Result<(), String> {
        let mut faults = [0u64; 1];
        self.faults.download(0, bytemuck::bytes_of_mut(&mut faults)).map_err(text)?;
        if faults[0] == 0 { Ok(()) } else { Err(format!("{} words or waits were wrong", faults[0])) }
    }

    fn clear(&self) -> Result<(), String> {
        self.faults.upload(0, &[0; 64]).map_err(text)?;
        self.spans.upload(0, &vec![0; self.spans.len()]).map_err(text)
    }

    /// Nanoseconds from the first warp's beginning to the last one's end, by the device's clock.
    fn span(&self) -> Result<f64, String> {
        let mut spans = vec![[0u64; 2]; self.spans.len() / 16];
        self.spans.download(0, bytemuck::cast_slice_mut(&mut spans)).map_err(text)?;
        let used = || spans.iter().filter(|s| s[1] != 0);
        let (begin, end) = (used().map(|s| s[0]).min(), used().map(|s| s[1]).max());
        begin.zip(end).map(|(b, e)| (e - b) as f64).ok_or_else(|| "no warp took part".into())
    }

    /// `pairs` of warps move `records` each; records per nanosecond, the median of the rounds.
    fn pairs(&self, kernel: &str, shape: Shape, records: u64, rounds: u32) -> Result<f64, String> {
        let kernel = self.kernels.get(kernel, ONE_PER_SM as usize)?;
        let boxes = DeviceMailboxes::new(&self.device, shape.pairs, shape.stride, shape.slots)?;
        let mut rates = Vec::new();
        for _ in 0..rounds {
            boxes.reset()?;
            self.clear()?;
            let (mut table, mut pairs, mut per_block) = (boxes.table.address(), shape.pairs, shape.per_sm);
            let (mut records, mut spans, mut faults) = (records, self.spans.address(), self.faults.address());
            let mut apart = shape.apart;
            let params = &mut [
                arg(&mut table),
                arg(&mut pairs),
                arg(&mut per_block),
                arg(&mut apart),
                arg(&mut records),
                arg(&mut spans),
                arg(&mut faults),
            ];
            self.launch(kernel, 64 * shape.per_sm, params)?;
            self.check()?;
            rates.push((records * u64::from(shape.pairs)) as f64 / self.span()?);
        }
        Ok(median(&mut rates))
    }

    fn launch(&self, kernel: Kernel, threads: u32, params: &mut [*mut std::ffi::c_void]) -> Result<(), String> {
        self.kernels.launch(kernel, self.sms, threads, ONE_PER_SM, self.stream, params)?;
        self.kernels.wait(self.stream)
    }

    /// One pair over a ring with a fence and an index, records per nanosecond.
    fn naive(&self, records: u64, rounds: u32) -> Result<f64, String> {
        let kernel = self.kernels.get("move_naive", ONE_PER_SM as usize)?;
        let ring = self.device.alloc(1024 * 256 + 256).map_err(text)?;
        let mut rates = Vec::new();
        for _ in 0..rounds {
            ring.upload(0, &vec![0; ring.len()]).map_err(text)?;
            self.clear()?;
            let (mut slots, mut mask, mut per_block) = (ring.address() + 256, 1023u32, 1u32);
            let (mut written, mut read) = (ring.address(), ring.address() + 128);
            let (mut records, mut spans, mut faults) = (records, self.spans.address(), self.faults.address());
            let params = &mut [
                arg(&mut slots),
                arg(&mut mask),
                arg(&mut written),
                arg(&mut read),
                arg(&mut per_block),
                arg(&mut records),
                arg(&mut spans),
                arg(&mut faults),
            ];
            self.launch(kernel, 64, params)?;
            self.check()?;
            rates.push(records as f64 / self.span()?);
        }
        Ok(median(&mut rates))
    }

    /// Bytes read and written per nanosecond by a copy of `bytes` that stay in L2.
    fn copy(&self, bytes: usize, rounds: u32) -> Result<f64, String> {
        let kernel = self.kernels.get("copy_l2", ONE_PER_SM as usize)?;
        let (from, to) = (self.device.alloc(bytes).map_err(text)?, self.device.alloc(bytes).map_err(text)?);
        let mut rates = Vec::new();
        for _ in 0..rounds {
            self.clear()?;
            let (mut from, mut to, mut n, mut times) = (from.address(), to.address(), (bytes / 16) as u32, 200u32);
            let mut spans = self.spans.address();
            let params = &mut [arg(&mut from), arg(&mut to), arg(&mut n), arg(&mut times), arg(&mut spans)];
            self.launch(kernel, 1024, params)?;
            rates.push(2.0 * bytes as f64 * f64::from(times) / self.span()?);
        }
        Ok(median(&mut rates))
    }
}

#[derive(Clone, Copy)]
struct Shape {
    pairs: u32,
    per_sm: u32,
    /// Blocks from a producer to its consumer: 1, or half the grid.
    apart: u32,
    stride: u32,
    slots: u32,
}

/// The payload words of record `n` of pair 0, as the kernels make them.
fn words(n: u64) -> [u64; 31] {
    std::array::from_fn(|i| {
        (i as u64 + 2).wrapping_mul(0xD6E8_FEB8_6659_FD93).wrapping_add(n.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    })
}

/// A mailbox in pinned memory between a kernel and the host, with the arbiter not started.
fn host_graph(device: &Device, to_host: bool) -> Result<(warpmail::Runtime, warpmail::MailboxId), String> {
    let mut graph = Builder::new(device.clone());
    let hot = SpinBudget { idle_spin: None, ..graph.current_budget().clone() };
    graph.mode(Mode::Device).budget(hot).map_err(text)?;
    let kernel = graph.stream("kernel").map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let relay = graph.resident("idle", warpmail::builtin::DISCARD).map_err(text)?;
    let mut mailbox = |a: ModuleId, b: ModuleId, slots| graph.mailbox(a, b, MailboxOptions::slots(slots)).map_err(text);
    mailbox(host, relay, 2)?;
    let wanted = if to_host { mailbox(kernel, host, 4096)? } else { mailbox(host, kernel, 4096)? };
    Ok((graph.build(HandlerImage::builtin()).map_err(text)?, wanted))
}

const BOUND: Duration = Duration::from_secs(30);

/// Records per nanosecond from one warp into pinned memory, taken and checked by one host thread.
fn to_host(bench: &Bench, records: u64) -> Result<f64, String> {
    let (mut runtime, mailbox) = host_graph(&bench.device, true)?;
    let (mut handle, mut receiver) = (runtime.handle(mailbox).map_err(text)?, runtime.receiver(mailbox).map_err(text)?);
    let kernel = bench.kernels.get("to_host", 0)?;
    bench.clear()?;
    let (mut n, mut faults) = (records, bench.faults.address());
    bench.kernels.launch(kernel, 1, 32, 0, bench.stream, &mut [arg(&mut handle), arg(&mut n), arg(&mut faults)])?;
    let (mut seen, mut wrong, mut begin) = (0u64, 0u64, None);
    let mut buffer = vec![[0u64; 31]; 64];
    let until = Instant::now() + BOUND;
    while seen < records {
        let n = receiver.try_pop_batch(bytemuck::cast_slice_mut(&mut buffer), 248, |_, _| ()).map_err(text)?;
        if n == 0 && Instant::now() > until {
            return Err("the kernel's records did not arrive".into());
        }
        begin.get_or_insert_with(Instant::now);
        for record in &buffer[..n] {
            let expected = words(seen);
            wrong |= record.iter().zip(&expected).fold(0, |bad, (a, b)| bad | (a ^ b));
            seen += 1;
        }
    }
    let ns = begin.map_or(f64::NAN, |b| b.elapsed().as_nanos() as f64);
    bench.kernels.wait(bench.stream)?;
    bench.check()?;
    if wrong == 0 { Ok(records as f64 / ns) } else { Err("a record from the device was wrong".into()) }
}

/// Records per nanosecond from one host thread to one warp.
fn from_host(bench: &Bench, records: u64) -> Result<f64, String> {
    let (mut runtime, mailbox) = host_graph(&bench.device, false)?;
    let (mut handle, mut sender) = (runtime.handle(mailbox).map_err(text)?, runtime.sender(mailbox).map_err(text)?);
    let kernel = bench.kernels.get("from_host", 0)?;
    bench.clear()?;
    let (mut n, mut faults) = (records, bench.faults.address());
    bench.kernels.launch(kernel, 1, 32, 0, bench.stream, &mut [arg(&mut handle), arg(&mut n), arg(&mut faults)])?;
    let begin = Instant::now();
    let mut buffer = vec![[0u64; 31]; 64];
    let mut sent = 0;
    while sent < records {
        let n = (records - sent).min(buffer.len() as u64) as usize;
        for (i, record) in buffer[..n].iter_mut().enumerate() {
            *record = words(sent + i as u64);
        }
        let mut from = 0;
        while from < n {
            let batch: &[u8] = bytemuck::cast_slice(&buffer[from..n]);
            let pushed = sender.try_push_batch(1, batch, 248).map_err(text)?;
            if pushed == 0 && begin.elapsed() > BOUND {
                return Err("the kernel does not take the records".into());
            }
            from += pushed;
        }
        sent += n as u64;
    }
    bench.kernels.wait(bench.stream)?;
    let ns = begin.elapsed().as_nanos() as f64;
    bench.check()?;
    Ok(records as f64 / ns)
}

pub(crate) fn execute(args: &Args) -> Result<Figures, String> {
    let Some(device) = args.target.gpu()? else {
        return twin::throughput(args.rounds);
    };
    let bench = Bench::new(device)?;
    let mut figures = Figures::new(bench.device.info());
    let half = bench.sms / 2;
    let one = Shape { pairs: 1, per_sm: 1, apart: 1, stride: 256, slots: 1024 };
    let naive = bench.naive(200_000, args.rounds)? * 1e3;
    for (id, kernel, apart, records) in [
        ("throughput.pair", "move_256", 1, 4_000_000),
        ("throughput.pair.apart", "move_256", half, 4_000_000),
        ("throughput.pair.ordered", "move_256_ordered", 1, 4_000_000),
        ("throughput.pair.batches", "move_256_batches", 1, 4_000_000),
        ("throughput.pair.wide", "move_256_wide", 1, 4_000_000),
        ("throughput.pair.words", "move_256_words", 1, 4_000_000),
        ("throughput.pair.unbatched", "move_256_single", 1, 400_000),
    ] {
        let shape = Shape { apart, ..one };
        figures.add(id, bench.pairs(kernel, shape, records, args.rounds)? * 1e3, "M records/s", Some(naive));
    }
    figures.add("throughput.baseline.naive_pair", naive, "M records/s", None);

    let pairs = bench.sms * args.pairs_per_sm;
    let slots = args.slots.next_power_of_two();
    let all = Shape { pairs, per_sm: args.pairs_per_sm, apart: 1, stride: 256, slots };
    let ring_bytes = (pairs * all.slots * 256) as usize;
    let copy = bench.copy(ring_bytes / 2, args.rounds)?;
    println!("L2 copy of {:.1} MB: {copy:.0} GB/s read and written; {pairs} pairs", ring_bytes as f64 / 2e6);
    let rate = bench.pairs("move_256", all, 200_000, args.rounds)?;
    figures.add("throughput.all_sms", rate * 512.0, "GB/s", Some(copy));
    figures.add("throughput.all_sms.records", rate, "G records/s", None);
    for (id, kernel, shape, records) in [
        ("ordered", "move_256_ordered", all, 100_000),
        ("apart", "move_256", Shape { apart: half, ..all }, 100_000),
        ("words", "move_256_words", all, 100_000),
        ("wide", "move_256_wide", all, 100_000),
        ("stride_4096", "move_4096", Shape { stride: 4096, slots: 8, ..all }, 10_000),
        ("stride_4096.two", "move_4096_two", Shape { stride: 4096, slots: 8, ..all }, 10_000),
    ] {
        let rate = bench.pairs(kernel, shape, records, args.rounds)?;
        figures.add(&format!("throughput.all_sms.{id}"), rate * 2.0 * f64::from(shape.stride), "GB/s", Some(copy));
    }

    for (id, run) in
        [("to_host.records", to_host as fn(&Bench, u64) -> Result<f64, String>), ("from_host.records", from_host)]
    {
        let mut rates = Vec::new();
        for _ in 0..args.rounds.min(5) {
            rates.push(run(&bench, args.host_records)? * 1e3);
        }
        figures.add(id, median(&mut rates), "M records/s", None);
    }
    Ok(figures)
}
