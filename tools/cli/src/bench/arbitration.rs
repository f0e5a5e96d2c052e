//! `arb.*`: the same pipelines of resident modules, arbitrated by the device and by the CPU. How long a hop takes is read from the
//! stamps that the modules leave in the records; beside it, what each mode costs the host and the device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use warpmail::{
    Builder, Device, Error, MailboxId, MailboxOptions, Mode, ModuleId, ModuleOptions, Receiver, Rule, Runtime, Sender,
    SpinBudget,
};

use super::hop::answerers;
use super::{Target, percentiles};
use crate::figures::Figures;

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
    #[command(flatten)]
    target: Target,
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

/// Who arbitrates, with which budget.
fn arbiters(cuda: bool) -> [(&'static str, Mode, SpinBudget); 3] {
    let servers = if cuda { SpinBudget::default().servers } else { 2 };
    let usual = SpinBudget { servers, ..SpinBudget::default() };
    let idle_spin = Some(Duration::from_micros(20));
    // On the CPU nobody waits for the arbiter to leave.
    let residency = Duration::from_secs(1);
    [
        ("device", Mode::Device, usual.clone()),
        ("device_parking", Mode::Device, SpinBudget { idle_spin, ..usual.clone() }),
        ("cpu", Mode::Cpu, SpinBudget { residency, ..usual }),
    ]
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
    body: Duration,
    modules: u32,
}

impl Making {
    fn module(&mut self, rule: Rule, leaves_after: u64) -> Result<ModuleId, Error> {
        let state = [self.body.as_nanos() as u64, leaves_after, u64::from(rule == Rule::All)];
        let options = ModuleOptions { out_records: 1, ..ModuleOptions::handler(WORK) };
        self.modules += 1;
        self.graph.resident(&format!("m{}", self.modules), options.with_state(&state).with_rule(rule))
    }

    fn join(&mut self, from: ModuleId, to: ModuleId) -> Result<MailboxId, Error> {
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
        pipeline: Pipeline,
        body: Duration,
        mode: Mode,
        budget: SpinBudget,
    ) -> Result<Self, Error> {
        let mut graph = Builder::new(device.clone());
        graph.mode(mode).budget(budget)?;
        let host = graph.host("host")?;
        let mut making = Making { graph, host, body, modules: 0 };
        let (there, backs) = making.lay(pipeline)?;
        let mut runtime = making.graph.build(answerers())?;
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

/// First one record after the other, then several under way.
fn measure(mut running: Running, records: u64) -> Result<Measured, Error> {
    let (mut hops, warm_up) = (Vec::new(), records / 10);
    for n in 0..warm_up {
        running.push(n)?;
        running.pop(n, &mut hops)?;
    }
    hops.clear();
    let (begin, before, held_before) = (Instant::now(), processor_time(), held(&running.runtime));
    let mut n = 0;
    while n < records || begin.elapsed() < LEAST {
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

/// Threads that keep every core of the host busy while this lives.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Busy {
    fn start() -> Result<Self, String> {
        let mut busy = Busy { stop: Arc::default(), threads: Vec::new() };
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
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

/// One pipeline with one body under every arbiter. The floor of each row is the device's, which is the first. Returns P50 and
/// P99 of a hop under each.
fn rows(
    device: &Device,
    (pipeline, name): (Pipeline, &str),
    micros: u64,
    records: u64,
    figures: &mut Figures,
) -> Result<Vec<[f64; 2]>, String> {
    let (mut spreads, mut floors) = (Vec::new(), None);
    for (arbiter, mode, budget) in arbiters(device.info().ordinal.is_some()) {
        let what = |e: Error| format!("{name}, {micros} us, {arbiter}: {e}");
        let running = Running::start(device, pipeline, Duration::from_micros(micros), mode, budget).map_err(what)?;
        let measured = measure(running, records).map_err(what)?;
        let spread = percentiles(&measured.hops)?;
        let (hop, rate) = *floors.get_or_insert((spread[0], measured.rate));
        let id = format!("arb.{name}.{micros}us.{arbiter}");
        figures.add(&format!("{id}.hop"), spread[0], "ns", Some(hop)).spread(spread);
        figures.add(&format!("{id}.rate"), measured.rate, "records/s", Some(rate));
        figures.add(&format!("{id}.host"), measured.host, "cores", None);
        figures.add(&format!("{id}.held"), measured.device, "SMs", None);
        spreads.push([spread[0], spread[1]]);
    }
    Ok(spreads)
}

pub(crate) fn execute(args: &Args) -> Result<Figures, String> {
    let device = args.target.gpu()?.unwrap_or_else(Device::twin);
    let mut figures = Figures::new(device.info());
    let bar = ProgressBar::new((PIPELINES.len() * args.bodies.len()) as u64 + 1);
    let mut fastest = None;
    for pipeline in PIPELINES {
        for &micros in &args.bodies {
            let spreads = rows(&device, pipeline, micros, args.records.into(), &mut figures)?;
            fastest.get_or_insert(spreads);
            bar.inc(1);
        }
    }
    let busy = Busy::start()?;
    let mut loaded = Figures::new(device.info());
    let strained = rows(&device, PIPELINES[0], args.bodies[0], args.records.into(), &mut loaded);
    drop(busy);
    bar.finish_and_clear();
    let (strained, idle) = (strained?, fastest.ok_or("no body was asked for")?);
    figures.add("arb.resident_vs_cpu", idle[2][0] / idle[0][0], "times", None);
    figures.add("arb.busy_vs_cpu", strained[2][1] / strained[0][1], "times", None);
    Ok(figures)
}
