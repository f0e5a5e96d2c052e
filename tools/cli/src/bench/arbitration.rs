//! `arb.*`: the same pipelines, of resident modules and of streams, arbitrated by the device and by the CPU. How long a hop takes is
//! read from the stamps that the modules leave in the records; beside it, what each mode costs the host and the device. Chains of
//! streams stand beside the same chain with an order made in advance.

mod queued;
mod stream;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use warpmail::{
    Builder, Device, Error, MailboxId, MailboxOptions, Mode, ModuleId, ModuleOptions, Receiver, Rule, Runtime, Sender,
    SpinBudget, StreamOptions,
};

use super::hop::answerers;
use super::{Target, percentiles};
use crate::figures::Figures;
use stream::{Bodies, Work};

const BOUND: Duration = Duration::from_secs(20);
/// The handler of `bench_kernels/echo.hpp` that works for a while and notes when.
const WORK: u32 = 3;
/// The host's processor time is counted in hundredths of a second: no measurement is much shorter.
const LEAST: Duration = Duration::from_millis(200);
/// Words of a record, of which two are not stamps.
const WORDS: usize = 31;
/// Modules of the chain; hops of the ring.
const LENGTH: usize = 8;
const WIDTH: usize = 4;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Time that each module works for a record, microseconds
    #[arg(long, value_delimiter = ',', default_values_t = [0u64, 5, 50, 500])]
    bodies: Vec<u64>,
    /// Records for each pipeline, body and arbiter, at least; more where they take less than a fifth of a second
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    records: u32,
    /// What modules the pipelines are made of
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Resident, Kind::Stream, Kind::Mixed])]
    kinds: Vec<Kind>,
    /// How the bodies on streams are enqueued
    #[arg(long, value_enum, default_value_t = How::Early)]
    enqueue: How,
    #[command(flatten)]
    target: Target,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Handlers that the arbiter runs
    Resident,
    /// Bodies on CUDA streams, which the arbiter wakes
    Stream,
    /// One of each in turn
    Mixed,
}

/// How a body is enqueued.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// Captured once, launches without records run it too; its kernel takes part in programmatic dependent launch
    Early,
    /// The same with a kernel that does not
    Always,
    /// Captured once, a conditional node that launches without records skip
    Conditional,
    /// By a closure, for each step
    EachStep,
}

impl Kind {
    /// What row ids begin with.
    fn prefix(self) -> &'static str {
        match self {
            Kind::Resident => "arb",
            Kind::Stream => "arb.stream",
            Kind::Mixed => "arb.mixed",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pipeline {
    /// One module after the other.
    Chain,
    /// One gives each record to several.
    FanOut,
    /// Several give to one, which waits for all of them.
    FanIn,
    /// Round and round.
    Ring,
}

const PIPELINES: [(Pipeline, &str); 4] =
    [(Pipeline::Chain, "chain"), (Pipeline::FanOut, "fan_out"), (Pipeline::FanIn, "fan_in"), (Pipeline::Ring, "ring")];

/// Who arbitrates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arbiter {
    /// The persistent kernel, which never parks, and leaves once a second; gates of streams neither.
    Device,
    /// The same with a budget: they park after 20 us, and leave after the usual residency.
    DeviceParking,
    /// A thread of the host, which enqueues what may follow behind what is under way.
    Cpu,
    /// The same, which launches each step when its records are there.
    CpuEvents,
    /// The same for streams whose order is fixed: one captured graph for a step of each.
    CpuGraph,
}

impl Arbiter {
    /// The floor of the others first.
    const ALL: [Arbiter; 5] =
        [Arbiter::Device, Arbiter::DeviceParking, Arbiter::Cpu, Arbiter::CpuEvents, Arbiter::CpuGraph];

    /// What rows are called.
    fn name(self) -> &'static str {
        match self {
            Arbiter::Device => "device",
            Arbiter::DeviceParking => "device_parking",
            Arbiter::Cpu => "cpu",
            Arbiter::CpuEvents => "cpu_events",
            Arbiter::CpuGraph => "cpu_graph",
        }
    }

    /// Whether the order of such a pipeline's steps is fixed, which a graph needs: of streams alone, without a ring, their bodies
    /// captured.
    fn can(self, pipeline: Pipeline, kind: Kind, bodies: &Bodies) -> bool {
        self != Arbiter::CpuGraph || (kind == Kind::Stream && pipeline != Pipeline::Ring && bodies.are_captured())
    }

    fn is_on_device(self) -> bool {
        matches!(self, Arbiter::Device | Arbiter::DeviceParking)
    }

    fn set(self, graph: &mut Builder, cuda: bool) -> Result<(), Error> {
        let servers = if cuda { SpinBudget::default().servers } else { 2 };
        let mut budget = SpinBudget { servers, idle_spin: None, ..SpinBudget::default() };
        if self == Arbiter::DeviceParking {
            budget.idle_spin = Some(Duration::from_micros(20));
        }
        if self != Arbiter::DeviceParking {
            budget.residency = Duration::from_secs(1); // nobody waits for it to leave
        }
        graph.mode(if self.is_on_device() { Mode::Device } else { Mode::Cpu }).budget(budget)?;
        graph.ahead(self != Arbiter::CpuEvents).static_order(self == Arbiter::CpuGraph);
        Ok(())
    }
}

/// P50 and P99 of a hop under each arbiter that could run.
struct Hops(Vec<(Arbiter, [f64; 2])>);

impl Hops {
    fn of(&self, arbiter: Arbiter) -> Option<[f64; 2]> {
        self.0.iter().find(|(a, _)| *a == arbiter).map(|(_, hop)| *hop)
    }

    /// P50.
    fn median(&self, arbiter: Arbiter) -> Option<f64> {
        self.of(arbiter).map(|hop| hop[0])
    }

    /// How many times as long one takes as the device does, by P50 or P99.
    fn over_device(&self, arbiter: Arbiter, which: usize) -> Option<f64> {
        Some(self.of(arbiter)?[which] / self.of(Arbiter::Device)?[which])
    }
}

/// A running pipeline and the host's ends.
struct Running {
    runtime: Runtime,
    sender: Sender,
    receivers: Vec<Receiver>,
}

struct Making {
    graph: Builder,
    host: ModuleId,
    kind: Kind,
    /// Whether the gates of streams poll for ever.
    hot: bool,
    body: Duration,
    modules: u32,
    /// Of the streams among them, what their bodies do.
    works: Vec<(ModuleId, Work)>,
}

impl Making {
    fn module(&mut self, rule: Rule, leaves_after: u64) -> Result<ModuleId, Error> {
        let work_ns = self.body.as_nanos() as u64;
        self.modules += 1;
        let name = format!("m{}", self.modules);
        if self.kind == Kind::Stream || (self.kind == Kind::Mixed && self.modules.is_multiple_of(2)) {
            let usual = StreamOptions::default().with_rule(rule);
            let spin = if self.hot { None } else { usual.spin };
            let module = self.graph.steps(&name, StreamOptions { spin, ..usual })?;
            self.works.push((module, Work { work_ns, leaves_after, ..Work::default() }));
            return Ok(module);
        }
        let state = [work_ns, leaves_after, u64::from(rule == Rule::All)];
        let options = ModuleOptions { out_records: 1, ..ModuleOptions::handler(WORK) };
        self.graph.resident(&name, options.with_state(&state).with_rule(rule))
    }

    fn join(&mut self, from: ModuleId, to: ModuleId) -> Result<MailboxId, Error> {
        for (module, work) in &mut self.works {
            work.n_outputs += u64::from(*module == from);
            work.n_inputs += u64::from(*module == to);
        }
        self.graph.mailbox(from, to, MailboxOptions::slots(16))
    }

    /// The modules and mailboxes; what the host gives to, and takes from.
    fn lay(&mut self, pipeline: Pipeline) -> Result<(MailboxId, Vec<MailboxId>), Error> {
        let (host, leaves) = (self.host, if pipeline == Pipeline::Ring { LENGTH as u64 } else { 0 });
        let first = self.module(Rule::Any, 0)?;
        let there = self.join(host, first)?;
        match pipeline {
            Pipeline::Chain | Pipeline::Ring => {
                let mut last = first;
                let modules = if pipeline == Pipeline::Chain { LENGTH } else { WIDTH };
                for i in 1..modules {
                    let next = self.module(Rule::Any, if i + 1 == modules { leaves } else { 0 })?;
                    self.join(last, next)?;
                    last = next;
                }
                if pipeline == Pipeline::Ring {
                    self.join(last, first)?;
                }
                Ok((there, vec![self.join(last, host)?]))
            }
            Pipeline::FanOut | Pipeline::FanIn => {
                let mut middle = Vec::new();
                for _ in 0..WIDTH {
                    let module = self.module(Rule::Any, 0)?;
                    self.join(first, module)?;
                    middle.push(module);
                }
                if pipeline == Pipeline::FanOut {
                    let backs: Result<_, _> = middle.iter().map(|&m| self.join(m, host)).collect();
                    return Ok((there, backs?));
                }
                let last = self.module(Rule::All, 0)?;
                for module in middle {
                    self.join(module, last)?;
                }
                Ok((there, vec![self.join(last, host)?]))
            }
        }
    }
}

impl Running {
    fn start(
        device: &Device,
        bodies: &Bodies,
        (pipeline, kind): (Pipeline, Kind),
        body: Duration,
        arbiter: Arbiter,
    ) -> Result<Self, Error> {
        let hot = arbiter != Arbiter::DeviceParking;
        let mut graph = Builder::new(device.clone());
        arbiter.set(&mut graph, device.info().ordinal.is_some())?;
        let host = graph.host("host")?;
        let mut making = Making { graph, host, kind, hot, body, modules: 0, works: Vec::new() };
        let (there, backs) = making.lay(pipeline)?;
        let mut runtime = making.graph.build(answerers())?;
        for (module, work) in making.works {
            runtime.body(module, bodies.body(work))?;
        }
        let sender = runtime.sender(there)?;
        let receivers: Result<_, _> = backs.into_iter().map(|back| runtime.receiver(back)).collect();
        runtime.start()?;
        Ok(Running { runtime, sender, receivers: receivers? })
    }

    fn push(&mut self, n: u64) -> Result<(), Error> {
        let mut record = [0u64; WORDS];
        record[0] = n;
        self.sender.push(1, bytemuck::cast_slice(&record), BOUND)
    }

    /// Takes record n from every end; adds its hops, nanoseconds between the end of a step and the beginning of the next.
    fn pop(&mut self, n: u64, hops: &mut Vec<f64>) -> Result<(), Error> {
        for receiver in &mut self.receivers {
            let mut record = [0u64; WORDS];
            receiver.pop(bytemuck::cast_slice_mut(&mut record), BOUND)?;
            let stamps = &record[2..(2 + 2 * record[1] as usize).min(WORDS)];
            if record[0] != n || stamps.len() < 4 {
                return Err(Error::Failed(format!("record {n} came back as {} with {} hops", record[0], record[1])));
            }
            hops.extend(stamps[1..].chunks_exact(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64));
        }
        Ok(())
    }
}

/// What one pipeline gave under one arbiter.
struct Measured {
    hops: Vec<f64>,
    /// Records a second, several under way.
    rate: f64,
    /// Processor time of this process and time of SMs (on the twin: of the threads that stand for them), in cores and SMs.
    host: f64,
    device: f64,
}

/// Processor time of this process so far, in seconds; the kernel counts in hundredths.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// SM time held so far, nanoseconds: of the persistent kernel, or of the steps.
fn held(runtime: &Runtime) -> f64 {
    let stats = runtime.stats();
    match runtime.mode() {
        Mode::Device => (stats.work_ns + stats.idle_poll_ns) as f64,
        Mode::Cpu => stats.modules.iter().map(|m| m.busy_ns).sum::<u64>() as f64,
    }
}

/// First one record after the other, each after a gap, then several under way.
fn measure(mut running: Running, records: u64, gap: Duration) -> Result<Measured, Error> {
    let (mut hops, warm_up) = (Vec::new(), records / 10);
    for n in 0..warm_up {
        running.push(n)?;
        running.pop(n, &mut hops)?;
    }
    hops.clear();
    let (begin, before, held_before) = (Instant::now(), processor_time(), held(&running.runtime));
    let mut n = 0;
    while n < records || begin.elapsed() < LEAST {
        if !gap.is_zero() {
            std::thread::sleep(gap);
        }
        running.push(n)?;
        running.pop(n, &mut hops)?;
        n += 1;
    }
    let (records, seconds) = (n, begin.elapsed().as_secs_f64());
    let host = (processor_time() - before) / seconds;
    let device = (held(&running.runtime) - held_before) / 1e9 / seconds;
    const AHEAD: u64 = 8;
    let (begin, mut none) = (Instant::now(), Vec::new());
    for n in 0..records + AHEAD {
        if n < records {
            running.push(n)?;
        }
        if n >= AHEAD {
            none.clear();
            running.pop(n - AHEAD, &mut none)?;
        }
    }
    let rate = records as f64 / begin.elapsed().as_secs_f64();
    running.runtime.stop(BOUND)?;
    Ok(Measured { hops, rate, host, device })
}

/// Threads that keep every core of the host busy while this lives: two a core, so that one that polls has to share it.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Busy {
    fn start() -> Result<Self, String> {
        let mut busy = Busy { stop: Arc::default(), threads: Vec::new() };
        for _ in 0..2 * std::thread::available_parallelism().map_or(1, |n| n.get()) {
            let stop = busy.stop.clone();
            let spin = move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            };
            let thread = std::thread::Builder::new().name("busy".into()).spawn(spin);
            busy.threads.push(thread.map_err(|e| format!("a thread to keep a core busy: {e}"))?);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // it looks at the word all the time
        }
    }
}

/// One pipeline with one body under every arbiter that can run it. The floor of each row is the first one's, the device's.
fn rows(
    (device, bodies): (&Device, &Bodies),
    (pipeline, name): (Pipeline, &str),
    (kind, prefix, gap): (Kind, &str, Duration),
    micros: u64,
    records: u64,
    figures: &mut Figures,
) -> Result<Hops, String> {
    let (mut hops, mut floors) = (Hops(Vec::new()), None);
    for arbiter in Arbiter::ALL.into_iter().filter(|a| a.can(pipeline, kind, bodies)) {
        let what = |e: Error| format!("{prefix}, {name}, {micros} us, {}: {e}", arbiter.name());
        let body = Duration::from_micros(micros);
        let running = Running::start(device, bodies, (pipeline, kind), body, arbiter).map_err(what)?;
        let measured = measure(running, records, gap).map_err(what)?;
        let spread = percentiles(&measured.hops)?;
        let (hop, rate) = *floors.get_or_insert((spread[0], measured.rate));
        let id = format!("{prefix}.{name}.{micros}us.{}", arbiter.name());
        figures.add(&format!("{id}.hop"), spread[0], "ns", Some(hop)).spread(spread);
        figures.add(&format!("{id}.rate"), measured.rate, "records/s", Some(rate));
        figures.add(&format!("{id}.host"), measured.host, "cores", None);
        figures.add(&format!("{id}.held"), measured.device, "SMs", None);
        hops.0.push((arbiter, [spread[0], spread[1]]));
    }
    Ok(hops)
}

/// The chain of streams with each order that is made in advance; P50 of a hop under the first, events.
fn in_advance(device: &Device, micros: u64, records: u64, figures: &mut Figures) -> Result<f64, String> {
    let mut floor = None;
    for (how, name) in queued::ALL {
        let hops = queued::measure(device, how, Duration::from_micros(micros), records as usize)?;
        let spread = percentiles(&hops)?;
        let floor = *floor.get_or_insert(spread[0]);
        figures.add(&format!("arb.stream.chain.{micros}us.{name}.hop"), spread[0], "ns", Some(floor)).spread(spread);
    }
    floor.ok_or_else(|| "nothing was queued".into())
}

/// How long modules stand idle before each record in `arb.stream_hop` and `arb.resident_vs_cpu`; how long each works in
/// `arb.busy_vs_cpu`, so that the next has been idle for as long when its record comes.
const GAP: Duration = Duration::from_millis(1);

/// P50 or P99 of a hop under each of the CPU's arbiters over the device's.
fn versus(id: &str, suffix: &str, hops: &Hops, which: usize, figures: &mut Figures) {
    for (arbiter, what) in [(Arbiter::Cpu, "cpu"), (Arbiter::CpuEvents, "cpu_events")] {
        if let Some(times) = hops.over_device(arbiter, which) {
            figures.add(&format!("{id}_{what}{suffix}"), times, "times", None);
        }
    }
}

/// What resident modules come to: hops after idling, and with every core of the host busy; beside both the same with records
/// that follow each other and modules that do nothing.
fn of_residents(places: (&Device, &Bodies), args: &Args, at_once: &Hops, figures: &mut Figures) -> Result<(), String> {
    let records = args.records.into();
    let after = (Kind::Resident, "arb.after_1ms", GAP);
    let idle = rows(places, PIPELINES[0], after, 0, records, figures)?;
    let busy = Busy::start()?;
    let of = (Kind::Resident, "arb.busy", Duration::ZERO);
    let strained_at_once = rows(places, PIPELINES[0], of, 0, records, figures)?;
    let strained = rows(places, PIPELINES[0], of, GAP.as_micros() as u64, records, figures)?;
    drop(busy);
    versus("arb.resident_vs", "", &idle, 0, figures);
    versus("arb.resident_vs", ".at_once", at_once, 0, figures);
    versus("arb.busy_vs", "", &strained, 1, figures);
    versus("arb.busy_vs", ".at_once", &strained_at_once, 1, figures);
    Ok(())
}

/// What streams come to: hops after idling, and of the chain beside one made in advance.
fn of_streams(
    places: (&Device, &Bodies),
    args: &Args,
    chains: &[(u64, Hops)],
    figures: &mut Figures,
) -> Result<(), String> {
    let after = (Kind::Stream, "arb.stream.after_1ms", GAP);
    let idle = rows(places, PIPELINES[0], after, 0, args.records.into(), figures)?;
    let mut add = |id: &str, value: Option<f64>, unit| {
        if let Some(value) = value {
            figures.add(id, value, unit, None);
        }
    };
    add("arb.stream_hop", idle.median(Arbiter::Device), "ns");
    add("arb.stream_hop_parked", idle.median(Arbiter::DeviceParking), "ns");
    add("arb.stream_vs_cpu", idle.over_device(Arbiter::Cpu, 0), "times");
    add("arb.stream_vs_cpu_events", idle.over_device(Arbiter::CpuEvents, 0), "times");
    add("arb.stream_vs_cpu_graph", idle.over_device(Arbiter::CpuGraph, 0), "times");
    for (micros, chain) in chains {
        add(&format!("arb.chain8_vs_cpu.{micros}us"), chain.over_device(Arbiter::Cpu, 0), "times");
        add(&format!("arb.chain8_vs_cpu_events.{micros}us"), chain.over_device(Arbiter::CpuEvents, 0), "times");
        add(&format!("arb.chain8_vs_cpu_graph.{micros}us"), chain.over_device(Arbiter::CpuGraph, 0), "times");
    }
    if places.0.info().ordinal.is_none() {
        return Ok(());
    }
    for (micros, chain) in chains {
        let queued = in_advance(places.0, *micros, args.records.into(), figures)?;
        if let Some(hop) = chain.median(Arbiter::Device) {
            figures.add(&format!("arb.chain8_vs_queued.{micros}us"), hop / queued, "times", None);
        }
    }
    Ok(())
}

pub(crate) fn execute(args: &Args) -> Result<Figures, String> {
    let device = args.target.gpu()?.unwrap_or_else(Device::twin);
    let bodies = Bodies::new(&device, args.enqueue)?;
    let places = (&device, &bodies);
    let mut figures = Figures::new(device.info());
    let bar = ProgressBar::new((args.kinds.len() * PIPELINES.len() * args.bodies.len()) as u64 + 2);
    let (mut fastest, mut chains) = (None, Vec::new());
    for &kind in &args.kinds {
        for pipeline in PIPELINES {
            for &micros in &args.bodies {
                let of = (kind, kind.prefix(), Duration::ZERO);
                let hops = rows(places, pipeline, of, micros, args.records.into(), &mut figures)?;
                if kind == Kind::Resident {
                    fastest.get_or_insert(hops);
                } else if kind == Kind::Stream && pipeline.0 == Pipeline::Chain {
                    chains.push((micros, hops));
                }
                bar.inc(1);
            }
        }
    }
    if args.kinds.contains(&Kind::Stream) {
        of_streams(places, args, &chains, &mut figures)?;
        bar.inc(1);
    }
    if let Some(at_once) = fastest {
        of_residents(places, args, &at_once, &mut figures)?;
        bar.inc(1);
    }
    verdict::add(&mut figures);
    bar.finish_and_clear();
    Ok(figures)
}
