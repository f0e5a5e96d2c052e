//! `drain.*`: how fast journalled records and tensors reach a sink, over what the bus and the disk can do in the same run; how
//! late; and what it costs whoever is beside it.

mod bus;
mod disk;
mod kernels;
mod late;
mod rings;
mod tensors;

use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use warpmail::{Builder, Device, Mode, SpinBudget, Tap};

use self::bus::Bus;
use self::kernels::Gpu;
use super::{Target, clock_ns, median};
use crate::figures::Figures;

/// Every wait of this bench, each far shorter if all is well.
const BOUND: Duration = Duration::from_secs(10);

/// An arbiter on the device that never parks: these rows are about what moves.
fn hot(graph: &mut Builder, servers: Option<u32>) -> Result<(), warpmail::Error> {
    let now = graph.current_budget().clone();
    let servers = servers.unwrap_or(now.servers);
    graph.mode(Mode::Device).budget(SpinBudget { idle_spin: None, servers, ..now }).map(drop)
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A directory on the disk to measure; a folder is made in it and removed
    #[arg(long, default_value = ".", value_name = "DIR")]
    directory: PathBuf,
    /// MiB that each measurement of the disk writes
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65536))]
    mib: u64,
    /// KiB of records behind which a sync stands
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(4..=1 << 20))]
    batch_kib: u64,
    /// Records through the rings to a sink that forgets them, at most; on a GPU kernels make them for half a second
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// Serving warps of the arbiter; on the twin, threads
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(warpmail::abi::WM_MAX_SERVERS)))]
    servers: Option<u32>,
    /// Measure the disk too
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    disk: bool,
    /// Measurements of each kind; the row gives the median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    target: Target,
}

/// Kinds that each round measures once, those of the disk apart.
const KINDS: u64 = 8;

/// What is measured, and where.
struct Bench<'a> {
    args: &'a Args,
    device: Device,
    gpu: Option<Gpu>,
    bar: ProgressBar,
}

/// A value for each round: kinds take turns, so that what drifts is in all of them.
#[derive(Default)]
struct Rounds {
    /// Records a nanosecond, without taps and with: 256 bytes, 4 KiB.
    records: [[Vec<f64>; 2]; 2],
    bus: Bus,
    tensors: Vec<f64>,
    /// P50, P99 and P99.9 of round trips, without taps and with.
    hops: [Vec<[f64; 3]>; 2],
}

const STRIDES: [u32; 2] = [256, 4096];
const TAPS: [Tap; 2] = [Tap::Off, Tap::Block];

impl Bench<'_> {
    fn shape(&self, stride: u32, tap: Tap) -> rings::Shape {
        rings::Shape { stride, tap, servers: self.args.servers, records: self.args.records }
    }

    fn round(&self, rounds: &mut Rounds) -> Result<(), String> {
        let gpu = self.gpu.as_ref();
        for (rates, stride) in rounds.records.iter_mut().zip(STRIDES) {
            for (rates, tap) in rates.iter_mut().zip(TAPS) {
                rates.push(rings::rate(&self.device, gpu, self.shape(stride, tap))?);
                self.bar.inc(1);
            }
        }
        rounds.bus.round(gpu)?;
        self.bar.inc(1);
        rounds.tensors.push(tensors::rate(&self.device)?);
        self.bar.inc(1);
        for (hops, tap) in rounds.hops.iter_mut().zip(TAPS) {
            hops.push(late::hop(&self.device, gpu, tap, self.args.servers)?);
            self.bar.inc(1);
        }
        Ok(())
    }

    /// What the bench itself adds to what it measures.
    fn tell_own_overhead(&self) -> Result<(), String> {
        let clock = clock_ns();
        match &self.gpu {
            None => println!("The twin: threads of this machine, not a GPU. Reading the clock adds {clock:.0} ns."),
            Some(gpu) => println!(
                "Reading the clock adds {clock:.0} ns on the host and {:.1} in a kernel; a launch and the wait for it, in the time of \
                 each ceiling, {:.1} µs.",
                gpu.clock()?.1,
                gpu.launch_ns()? / 1e3
            ),
        }
        Ok(())
    }
}

pub(crate) fn execute(args: &Args) -> Result<Figures, String> {
    let gpu = args.target.gpu()?.map(Gpu::new).transpose()?;
    let device = gpu.as_ref().map_or_else(Device::twin, |gpu| gpu.device.clone());
    let mut figures = Figures::new(device.info());
    let bar = ProgressBar::new(u64::from(args.rounds) * if args.disk { KINDS + disk::KINDS } else { KINDS });
    let bench = Bench { args, device, gpu, bar };
    bench.tell_own_overhead()?;
    if args.disk {
        disk::rows(args, &bench.bar, &mut figures)?;
    }
    let mut rounds = Rounds::default();
    for _ in 0..args.rounds {
        bench.round(&mut rounds)?;
    }
    rounds.rows(bench.gpu.is_some(), &mut figures);
    let spread = late::lag(&bench.device)?;
    figures.add("drain.lag", spread[0], "ns", None).spread(spread);
    if let Some(gpu) = &bench.gpu {
        let (alone, beside) = gpu.co_runner(bench.shape(256, Tap::Block))?;
        figures.add("drain.co_runner", beside, "GB/s", Some(alone));
    }
    bench.bar.finish_and_clear();
    Ok(figures)
}

impl Rounds {
    fn rows(self, on_gpu: bool, figures: &mut Figures) {
        let ceilings = self.bus.ceilings();
        let [[plain, tapped], [plain_4k, tapped_4k]] = self.records.map(|of| of.map(|mut rates| median(&mut rates)));
        figures.add("drain.records_256", tapped * 1e3, "M records/s", Some(plain * 1e3));
        let bytes = |stride: u32, rate: f64| f64::from(stride) * rate;
        if on_gpu {
            figures.add("drain.records_256.one_sm", bytes(256, tapped), "GB/s", Some(ceilings.one_sm));
        }
        let value = bytes(4096, tapped_4k);
        figures.add("drain.records_4k", value, "GB/s", Some(ceilings.stores));
        let mut bounds = vec![("untapped", "the same without taps", bytes(4096, plain_4k))];
        if on_gpu {
            bounds.push(("one_sm", "what one SM stores", ceilings.one_sm));
            bounds.push(("carried", "what one SM carries there from device memory", ceilings.carried));
        }
        for (name, _, bound) in &bounds {
            figures.add(&format!("drain.records_4k.{name}"), value, "GB/s", Some(*bound));
        }
        if let Some((_, what, bound)) = bounds.iter().min_by(|a, b| a.2.total_cmp(&b.2)) {
            println!(
                "drain.records_4k can be {:.2} of its ceiling at most: {what} is {bound:.1} of {:.1} GB/s. It is {:.2} of that.",
                (bound / ceilings.stores).min(1.0),
                ceilings.stores,
                value / bound
            );
        }
        figures.add("drain.tensors", median(&mut { self.tensors }), "GB/s", Some(ceilings.copies));
        let [without, with] = self
            .hops
            .map(|rounds| [0, 1, 2].map(|q| median(&mut rounds.iter().map(|spread| spread[q]).collect::<Vec<_>>())));
        figures.add("drain.hop", without[0], "ns", None).spread(without);
        figures.add("drain.hop_overhead", with[0], "ns", Some(without[0])).spread(with);
    }
}
