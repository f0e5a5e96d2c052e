//! `hop.*` and `grant.*`: how long a record takes from one SM to another, and through the arbiter.
//!
//! One warp on one SM sends a record, a warp on another sends it back; half the round trip is one way. Every kind runs
//! between the same pairs of SMs; a ratio is taken within a pair, and the row gives the median over the pairs.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use warpmail::{Builder, Device, DeviceBuffer, HandlerImage, MailboxOptions, Mode, ModuleOptions, SpinBudget, abi};

use super::gpu::{DeviceMailbox, Kernel, Kernels, Stream, arg};
use super::{Target, median, percentiles, text, twin};
use crate::figures::Figures;

include!(concat!(env!("OUT_DIR"), "/echo.rs"));

/// The handlers that answer the benches' kernels.
pub(crate) fn answerers() -> HandlerImage {
    echo::image()
}

/// More than half of an SM's shared memory: one block a SM, so that a grid of one block a SM covers every SM.
const ONE_PER_SM: usize = 120 * 1024;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pairs of SMs
    #[arg(long, default_value_t = 24)]
    pairs: u32,
    /// Round trips per pair and kind
    #[arg(long, default_value_t = 4000)]
    rounds: u32,
    #[command(flatten)]
    target: Target,
    /// Serving warps of the arbiter; on the twin, threads
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(warpmail::abi::WM_MAX_SERVERS)))]
    servers: Option<u32>,
    /// Also measure the round trip through the arbiter
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    grants: bool,
    /// Let the arbiter's servers linger at the modules that they have run
    #[arg(long)]
    linger: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Channel {
    words: u64,
    mailbox: abi::wm_mailbox,
    tensor: u64,
}

/// Words before each channel's tensor, and the tensor's.
const WORDS_BYTES: u64 = 1024;
const TENSOR_BYTES: u64 = 65536;

/// What `bench_kernels/hop.cu` calls them, and the row id.
const KINDS: [(&str, &str); 8] = [
    ("hop_raw_flag", "hop.raw_flag"),
    ("hop_flag_after_payload", "hop.baseline.fence_flag"),
    ("hop_flag_release", "hop.baseline.release_flag"),
    ("hop_tag_b128", "hop.baseline.tag_b128"),
    ("hop_ours_self_contained", "hop.self_contained"),
    ("hop_ours_ordered", "hop.ordered"),
    ("hop_ours_fence_each", "hop.ordered.fence_each"),
    ("hop_ours_bytes", "hop.bytes"),
];

/// Which mailboxes the round trips through the arbiter take, and whether they order what was written before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grants {
    Hot,
    Random,
    Ordered,
}

struct Bench {
    device: Device,
    kernels: Kernels,
    stream: Stream,
    rounds: u32,
    times: DeviceBuffer,
    faults: DeviceBuffer,
    ns_per_cycle: f64,
    /// Made once: freeing device memory would wait for a co-runner.
    boxes: [DeviceMailbox; 2],
    words: DeviceBuffer,
}

impl Bench {
    fn new(device: &Device, rounds: u32) -> Result<Self, String> {
        let kernels = Kernels::load(device)?;
        let stream = kernels.stream()?;
        let times = device.alloc(8 * rounds as usize).map_err(text)?;
        let faults = device.alloc(64).map_err(text)?;
        let boxes = [DeviceMailbox::new(device, 256, 64)?, DeviceMailbox::new(device, 256, 64)?];
        let words = device.alloc(2 * (WORDS_BYTES + TENSOR_BYTES) as usize).map_err(text)?;
        let device = device.clone();
        let mut bench = Bench { device, kernels, stream, rounds, times, faults, ns_per_cycle: 1.0, boxes, words };
        bench.ns_per_cycle = bench.calibrate()?;
        Ok(bench)
    }

    /// Nanoseconds per cycle of the SM clock, over 20 ms after 100 ms of warming up.
    fn calibrate(&self) -> Result<f64, String> {
        let kernel = self.kernels.get("clock_rate", 0)?;
        let mut out = self.faults.address();
        for mut ns in [100_000_000u64, 20_000_000] {
            self.kernels.launch(kernel, 1, 1, 0, self.stream, &mut [arg(&mut ns), arg(&mut out)])?;
        }
        self.kernels.wait(self.stream)?;
        let mut words = [0u64; 3];
        self.faults.download(0, bytemuck::bytes_of_mut(&mut words)).map_err(text)?;
        println!("Reading %globaltimer takes {:.1} cycles.", words[2] as f64 / 64.0);
        self.faults.upload(0, &[0; 64]).map_err(text)?;
        Ok(words[1] as f64 / words[0] as f64)
    }

    /// Round trips in nanoseconds, the first tenth left out; an error if anything received was wrong.
    fn collect(&self) -> Result<Vec<f64>, String> {
        let mut faults = [0u64; 1];
        self.faults.download(0, bytemuck::bytes_of_mut(&mut faults)).map_err(text)?;
        if faults[0] != 0 {
            return Err(format!("{} words or waits were wrong", faults[0]));
        }
        let mut times = vec![0u64; self.rounds as usize];
        self.times.download(0, bytemuck::cast_slice_mut(&mut times)).map_err(text)?;
        Ok(times[times.len() / 10..].iter().map(|&c| c as f64 * self.ns_per_cycle).collect())
    }

    fn ping_pong(&self, kernel: Kernel, (mut ping, mut pong): (u32, u32)) -> Result<Vec<f64>, String> {
        self.words.upload(0, &vec![0; self.words.len()]).map_err(text)?;
        for mailbox in &self.boxes {
            mailbox.reset()?;
        }
        let channel = |i: u64| {
            let words = self.words.address() + i * (WORDS_BYTES + TENSOR_BYTES);
            Channel { words, mailbox: self.boxes[i as usize].handle, tensor: words + WORDS_BYTES }
        };
        let (mut there, mut back) = (channel(0), channel(1));
        let (mut rounds, mut times, mut faults) = (self.rounds, self.times.address(), self.faults.address());
        let params = &mut [
            arg(&mut ping),
            arg(&mut pong),
            arg(&mut there),
            arg(&mut back),
            arg(&mut rounds),
            arg(&mut times),
            arg(&mut faults),
        ];
        let blocks = self.kernels.multiprocessors;
        self.kernels.launch(kernel, blocks, 32, ONE_PER_SM as u32, self.stream, params)?;
        self.kernels.wait(self.stream)?;
        self.collect()
    }

    /// Round trips through an arbiter whose table has `requests` mailboxes from device modules: through the last of them,
    /// or through another each time.
    fn grants(&self, requests: u32, args: &Args, how: Grants) -> Result<Vec<f64>, String> {
        let mut graph = Builder::new(self.device.clone());
        graph.mode(Mode::Device).lingering(args.linger);
        let usual = graph.current_budget().clone();
        let servers = args.servers.unwrap_or(usual.servers);
        graph.budget(SpinBudget { servers, idle_spin: None, ..usual }).map_err(text)?;
        let asker = graph.stream("asker").map_err(text)?;
        let mut pairs = Vec::new();
        let per_relay = abi::WM_MAX_INPUTS.min(requests);
        for r in 0..requests / per_relay {
            let options = ModuleOptions::handler(u32::from(how == Grants::Ordered));
            let relay = graph.resident(&format!("echo{r}"), options).map_err(text)?;
            let mut there = Vec::new();
            for _ in 0..per_relay {
                there.push(graph.mailbox(asker, relay, MailboxOptions::slots(8)).map_err(text)?);
            }
            let back = graph.mailbox(relay, asker, MailboxOptions::slots(8)).map_err(text)?;
            pairs.extend(there.into_iter().map(|there| (there, back)));
        }
        let mut runtime = graph.build(answerers()).map_err(text)?;
        let mut handles = Vec::new();
        for (there, back) in pairs {
            handles.push((runtime.handle(there).map_err(text)?, runtime.handle(back).map_err(text)?));
        }
        let (mut there, mut back) = *handles.last().ok_or("no mailbox")?;
        let (mut rounds, mut times, mut faults) = (self.rounds, self.times.address(), self.faults.address());
        let lists = if how == Grants::Random {
            let (there, back): (Vec<_>, Vec<_>) = handles.iter().copied().unzip();
            Some((self.listed(&there)?, self.listed(&back)?))
        } else {
            None
        };
        runtime.start().map_err(text)?;
        if let Some((there, back)) = &lists {
            let (mut there, mut back, mut n) = (there.address(), back.address(), requests);
            let kernel = self.kernels.get("grant_ping_random", 0)?;
            let params = &mut [
                arg(&mut there),
                arg(&mut back),
                arg(&mut n),
                arg(&mut rounds),
                arg(&mut times),
                arg(&mut faults),
            ];
            self.kernels.launch(kernel, 1, 32, 0, self.stream, params)?;
        } else {
            let name = if how == Grants::Ordered { "grant_ping_ordered" } else { "grant_ping_self_contained" };
            let kernel = self.kernels.get(name, 0)?;
            let params = &mut [arg(&mut there), arg(&mut back), arg(&mut rounds), arg(&mut times), arg(&mut faults)];
            self.kernels.launch(kernel, 1, 32, 0, self.stream, params)?;
        }
        let waited = self.kernels.wait(self.stream);
        runtime.stop(Duration::from_secs(5)).map_err(text)?;
        waited?;
        self.collect()
    }

    /// Handles in device memory.
    fn listed(&self, handles: &[abi::wm_mailbox]) -> Result<DeviceBuffer, String> {
        let buffer = self.device.alloc(std::mem::size_of_val(handles)).map_err(text)?;
        buffer.upload(0, bytemuck::cast_slice(handles)).map_err(text)?;
        Ok(buffer)
    }
}

/// Keeps device memory busy on every SM while it lives.
pub(super) struct Load {
    /// The stop word, and the bytes moved so far.
    words: DeviceBuffer,
    _from: DeviceBuffer,
    _to: DeviceBuffer,
    stream: Stream,
    /// When it was first seen to move anything, and what it had moved by then.
    seen: (Instant, u64),
}

impl Load {
    /// Starts it and waits until it runs.
    pub(super) fn start(device: &Device, kernels: &Kernels, blocks: u32) -> Result<Self, String> {
        let bytes = 1usize << 30;
        let alloc = |n| device.alloc(n).map_err(text);
        let (words, from, to) = (alloc(64)?, alloc(bytes)?, alloc(bytes)?);
        let kernel = kernels.get("saturate", 0)?;
        let stream = kernels.stream()?;
        let (mut source, mut target, mut n) = (from.address(), to.address(), (bytes / 16) as u64);
        let (mut stop, mut limit, mut moved) = (words.address(), 20_000_000_000u64, words.address() + 8);
        let params =
            &mut [arg(&mut source), arg(&mut target), arg(&mut n), arg(&mut stop), arg(&mut limit), arg(&mut moved)];
        kernels.launch(kernel, blocks, 512, 0, stream, params)?;
        let mut load = Load { words, _from: from, _to: to, stream, seen: (Instant::now(), 0) };
        let until = Instant::now() + Duration::from_secs(5);
        while load.seen.1 == 0 {
            if Instant::now() > until {
                return Err("the co-runner did not begin within 5 s".into());
            }
            load.seen = (Instant::now(), load.moved()?);
        }
        Ok(load)
    }

    fn moved(&self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        self.words.download(8, &mut bytes).map_err(text)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Ends it. Returns the rate at which it moved bytes, in GB/s; an error if it was not running any more.
    pub(super) fn end(self, kernels: &Kernels) -> Result<f64, String> {
        let (begin, before) = self.seen;
        let was_running = !kernels.is_done(self.stream)?;
        let rate = (self.moved()? - before) as f64 / begin.elapsed().as_nanos() as f64;
        self.words.upload(0, &1u64.to_ne_bytes()).map_err(text)?;
        kernels.wait(self.stream)?;
        if !was_running || rate == 0.0 {
            return Err("the co-runner had ended before the loaded figures were taken: they are no figures".into());
        }
        Ok(rate)
    }
}

/// Every kind over every pair; adds a row for each, with the raw flag as the floor. Returns the raw flag's median.
fn hops(bench: &Bench, pairs: &[(u32, u32)], suffix: &str, figures: &mut Figures) -> Result<f64, String> {
    let bar = ProgressBar::new((pairs.len() * KINDS.len()) as u64);
    let mut all: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); KINDS.len()]; // samples, medians per pair
    for pair in pairs {
        for (k, (name, _)) in KINDS.iter().enumerate() {
            let mut samples =
                bench.ping_pong(bench.kernels.get(name, ONE_PER_SM)?, *pair).map_err(|e| format!("{name}: {e}"))?;
            samples.iter_mut().for_each(|s| *s /= 2.0);
            all[k].1.push(median(&mut samples));
            all[k].0.extend(samples);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let raw = all[0].1.clone();
    for ((_, id), (samples, mut medians)) in KINDS.iter().zip(all) {
        let mut ratios: Vec<f64> = medians.iter().zip(&raw).map(|(m, r)| m / r).collect();
        let value = median(&mut medians);
        let spread = percentiles(&samples)?;
        figures.add(&format!("{id}{suffix}"), value, "ns", Some(value / median(&mut ratios))).spread(spread);
    }
    Ok(median(&mut raw.clone()))
}

pub(crate) fn execute(args: &Args) -> Result<Figures, String> {
    let Some(device) = args.target.gpu()? else {
        return twin::hop(args.rounds, args.servers, args.grants);
    };
    let bench = Bench::new(&device, args.rounds.max(100))?;
    let sms = bench.kernels.multiprocessors;
    // Pairs at all distances, and every SM number once before any twice.
    let pairs: Vec<(u32, u32)> =
        (0..args.pairs).map(|i| ((i * 37) % sms, (i * 37 + 1 + i * 11) % sms)).filter(|(a, b)| a != b).collect();
    let mut figures = Figures::new(device.info());
    println!(
        "SM clock {:.3} GHz; {} pairs of SMs, {} round trips each",
        1.0 / bench.ns_per_cycle,
        pairs.len(),
        bench.rounds
    );
    let raw = hops(&bench, &pairs, "", &mut figures)?;
    if args.grants {
        use Grants::{Hot, Ordered, Random};
        let sizes = [1, 64, 512, 3584];
        let hot = sizes.map(|n| (n, Hot)).into_iter().chain([(1, Ordered)]);
        for (requests, how) in hot.chain(sizes[1..].iter().map(|&n| (n, Random))) {
            let samples = bench.grants(requests, args, how)?;
            let spread = percentiles(&samples)?;
            // 3584 requests and their answers make a table of 4032.
            let id = if requests == 3584 { 4096 } else { requests };
            let id = match how {
                Hot => format!("grant.{id}"),
                Random => format!("grant.{id}.random"),
                Ordered => format!("grant.ordered.{id}"),
            };
            figures.add(&id, spread[0], "ns", Some(2.0 * raw)).spread(spread);
        }
    }
    let load = Load::start(&bench.device, &bench.kernels, sms)?;
    let loaded = hops(&bench, &pairs[..pairs.len().min(6)], ".loaded", &mut figures);
    let rate = load.end(&bench.kernels);
    loaded?;
    figures.add("hop.co_runner", rate?, "GB/s", None);
    Ok(figures)
}
