//! `park.*` that need a GPU: how long a parked arbiter takes to serve a record that another kernel pushes, over the front
//! end's own way from a door to a kernel; what parking costs while nobody parks; and what a parked arbiter costs the host.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use warpmail::{Builder, Device, DeviceBuffer, MailboxId, MailboxOptions, Mode, ModuleOptions, Runtime, SpinBudget};

use super::gpu::{Kernels, Mapped, Stream, arg};
use super::hop::answerers;
use super::{Target, median, percentiles, text};
use crate::figures::Figures;

const BOUND: Duration = Duration::from_secs(5);
/// The handler that says when it began.
const STAMP: u32 = 2;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long the pusher idles before each push, in microseconds; the first is that of the row park.wake
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 100, 5000], value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    idle: Vec<u64>,
    /// Pushes for each
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(20..))]
    rounds: u32,
    /// Seconds over which the host's work is measured, for each max_wait
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    #[command(flatten)]
    target: Target,
}

struct Bench {
    device: Device,
    kernels: Kernels,
    stream: Stream,
    words: DeviceBuffer,
}

/// An arbiter with one module that answers a kernel.
struct Answerer {
    runtime: Runtime,
    there: MailboxId,
    back: MailboxId,
}

fn parking(micros: u64) -> SpinBudget {
    SpinBudget { idle_spin: Some(Duration::from_micros(micros)), ..SpinBudget::default() }
}

impl Bench {
    fn answerer(&self, budget: SpinBudget) -> Result<Answerer, String> {
        let mut graph = Builder::new(self.device.clone());
        graph.mode(Mode::Device);
        graph.budget(budget).map_err(text)?;
        let asker = graph.stream("asker").map_err(text)?;
        let module = graph.resident("answerer", ModuleOptions::handler(STAMP)).map_err(text)?;
        let there = graph.mailbox(asker, module, MailboxOptions::slots(8)).map_err(text)?;
        let back = graph.mailbox(module, asker, MailboxOptions::slots(8)).map_err(text)?;
        let mut runtime = graph.build(answerers()).map_err(text)?;
        runtime.start().map_err(text)?;
        Ok(Answerer { runtime, there, back })
    }

    /// Nanoseconds from each push to: the answer's arrival, the handler's first instruction, and what came before that: the
    /// launch's first instruction, its image being there, the grant.
    fn wake(&self, a: &Answerer, idle: Duration, rounds: u32) -> Result<[Vec<f64>; 5], String> {
        let times = self.device.alloc(40 * rounds as usize).map_err(text)?;
        self.words.upload(0, &[0; 64]).map_err(text)?;
        let handle = |m| a.runtime.handle(m).map_err(text);
        let (mut there, mut back, mut n) = (handle(a.there)?, handle(a.back)?, rounds);
        let (mut idle_ns, mut to, mut faults) = (idle.as_nanos() as u64, times.address(), self.words.address());
        let params =
            &mut [arg(&mut there), arg(&mut back), arg(&mut n), arg(&mut idle_ns), arg(&mut to), arg(&mut faults)];
        self.kernels.launch(self.kernels.get("wake_ping", 0)?, 1, 32, 0, self.stream, params)?;
        self.kernels.wait(self.stream)?;
        let (mut wrong, mut raw) = ([0u64; 1], vec![[0i64; 5]; rounds as usize]);
        self.words.download(0, bytemuck::bytes_of_mut(&mut wrong)).map_err(text)?;
        times.download(0, bytemuck::cast_slice_mut(&mut raw)).map_err(text)?;
        if wrong[0] != 0 {
            return Err("a parked arbiter did not answer within 2 s, or wrongly".into());
        }
        let column = |c: usize| raw[raw.len() / 10..].iter().map(|t| t[c] as f64).collect();
        Ok(std::array::from_fn(column))
    }

    /// The front end alone: from a store to the first instruction of a kernel of so many threads and bytes of shared memory
    /// behind a wait for it. `aside`: the wait stands in a stream of its own, and the kernel behind an event of that, as an
    /// arbiter's launches do while records come.
    fn front_end(
        &self,
        idle: Duration,
        rounds: u32,
        (threads, shared): (u32, u32),
        aside: bool,
    ) -> Result<Vec<f64>, String> {
        let door = Mapped::new(64)?;
        let behind = self.kernels.stream()?;
        let waiting = if aside { self.kernels.stream_of(true)? } else { behind };
        let (ping, answer) = (self.kernels.get("door_ping", 0)?, self.kernels.get("door_answer", shared as usize)?);
        let (mut at, mut answered) = (door.device(), self.words.address() + 64);
        let (mut idle_ns, mut to, mut faults) =
            (idle.as_nanos() as u64, self.words.address() + 128, self.words.address());
        let mut samples = Vec::new();
        for _ in 0..rounds {
            door.store(0, 0);
            self.words.upload(0, &[0; 192]).map_err(text)?;
            let answering = &mut [arg(&mut answered)];
            let enqueued = self
                .kernels
                .wait_for_value(waiting, door.device())
                .and_then(|()| if aside { self.kernels.put_behind(waiting, behind) } else { Ok(()) })
                .and_then(|()| self.kernels.launch(answer, 1, threads, shared, behind, answering));
            let params = &mut [arg(&mut at), arg(&mut answered), arg(&mut idle_ns), arg(&mut to), arg(&mut faults)];
            let pinged = enqueued.and_then(|()| self.kernels.launch(ping, 1, 1, 0, self.stream, params));
            let waited = pinged.and_then(|()| self.kernels.wait(self.stream));
            door.store(0, 1); // whatever happened, the wait ends
            waited.and_then(|()| self.kernels.wait(behind))?;
            let mut words = [0u64; 17];
            self.words.download(0, bytemuck::bytes_of_mut(&mut words)).map_err(text)?;
            if words[0] != 0 {
                return Err("a stream's wait did not open within 2 s".into());
            }
            samples.push(words[16] as f64);
        }
        Ok(samples)
    }
}

/// Processor time of this process, all threads.
fn processor_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

pub(crate) fn execute(args: &Args) -> Result<Figures, String> {
    let device = args.target.gpu()?.ok_or("this bench measures a GPU; there is none to use here")?;
    let (kernels, words) = (Kernels::load(&device)?, device.alloc(256).map_err(text)?);
    let stream = kernels.stream()?;
    let bench = Bench { device, kernels, stream, words };
    let mut figures = Figures::new(bench.device.info());
    let bar = ProgressBar::new(2 * args.idle.len() as u64 + 5);
    for (i, &micros) in args.idle.iter().enumerate() {
        let idle = Duration::from_micros(micros);
        let suffix = if i == 0 { String::new() } else { format!(".idle_{micros}us") };
        let rounds = args.rounds.min(100);
        let floor = percentiles(&bench.front_end(idle, rounds, (32, 0), false)?)?;
        let aside = percentiles(&bench.front_end(idle, rounds, (32, 0), true)?)?;
        bar.inc(1);
        let mut parked = bench.answerer(parking(5))?;
        // As large as the arbiter's block, with nothing in it.
        let block = parked.runtime.footprint().map_or((288, 16384), |f| (f.threads, f.shared_bytes));
        let [answer, first, began, ready, granted] = bench.wake(&parked, idle, args.rounds)?;
        parked.runtime.stop(BOUND).map_err(text)?;
        let block = percentiles(&bench.front_end(idle, rounds, block, false)?)?;
        bar.inc(1);
        let (first, answer) = (percentiles(&first)?, percentiles(&answer)?);
        figures.add(&format!("park.front_end{suffix}"), floor[0], "ns", None).spread(floor);
        figures.add(&format!("park.front_end.aside{suffix}"), aside[0], "ns", Some(floor[0])).spread(aside);
        figures.add(&format!("park.front_end.block{suffix}"), block[0], "ns", Some(floor[0])).spread(block);
        figures.add(&format!("park.wake{suffix}"), first[0], "ns", Some(floor[0])).spread(first);
        figures.add(&format!("park.wake.answer{suffix}"), answer[0], "ns", Some(floor[0])).spread(answer);
        // Where the time goes: until each of them, at the median.
        for (what, mut times) in [("began", began), ("ready", ready), ("granted", granted)] {
            figures.add(&format!("park.wake.{what}{suffix}"), median(&mut times), "ns", Some(floor[0]));
        }
    }
    // The same answerer while it does not park: device ends exchange their readiness word instead of storing it.
    let rounds = args.rounds.max(2000);
    let (mut hot, mut plain) = (Vec::new(), Vec::new());
    let may_park = SpinBudget { residency: Duration::from_millis(100), ..parking(50_000) };
    let never = SpinBudget { idle_spin: None, ..may_park.clone() };
    for _ in 0..5 {
        for (budget, to) in [(may_park.clone(), &mut hot), (never.clone(), &mut plain)] {
            let mut a = bench.answerer(budget)?;
            let [mut answer, ..] = bench.wake(&a, Duration::from_micros(3), rounds)?;
            a.runtime.stop(BOUND).map_err(text)?;
            to.push(median(&mut answer));
        }
    }
    bar.inc(1);
    let (hot, plain) = (median(&mut hot), median(&mut plain));
    figures.add("park.hop_overhead", hot, "ns", Some(plain));
    for millis in [None, Some(2), Some(5), Some(10)] {
        let max_wait = millis.map_or(SpinBudget::default().max_wait, Duration::from_millis);
        let suffix = millis.map_or_else(String::new, |ms| format!(".max_wait_{ms}ms"));
        let mut idle = bench.answerer(SpinBudget { max_wait, ..parking(5) })?;
        std::thread::sleep(Duration::from_millis(100));
        let (before, used, begin) = (idle.runtime.stats(), processor_time(), Instant::now());
        std::thread::sleep(Duration::from_secs(args.seconds));
        let (after, spent, wall) = (idle.runtime.stats(), processor_time() - used, begin.elapsed());
        idle.runtime.stop(BOUND).map_err(text)?;
        bar.inc(1);
        let share = |ns: u64| ns as f64 / wall.as_nanos() as f64;
        figures.add(&format!("park.host_cpu{suffix}"), share(spent.as_nanos() as u64), "share of one core", None);
        let held = after.work_ns + after.idle_poll_ns - before.work_ns - before.idle_poll_ns;
        figures.add(&format!("park.idle_share{suffix}"), share(held), "share of one SM", None);
        let launches = (after.launches - before.launches) as f64 / wall.as_secs_f64();
        figures.add(&format!("park.idle_launches{suffix}"), launches, "launches/s", None);
    }
    bar.finish_and_clear();
    Ok(figures)
}
