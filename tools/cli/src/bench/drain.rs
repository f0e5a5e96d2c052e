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
    /// Blocks of the arbiter's launch beside its first that carry records of 4 KiB; the twin has none
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=i64::from(warpmail::abi::WM_MAX_CARRIERS)))]
    journal_blocks: u32,
    /// Measure the disk too
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    disk: bool,
    /// Measurements of each kind; the row gives the median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    target: Target,
}

/// Kinds that each round measures once, those of the disk apart, and that of records of 4 KiB without further blocks.
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
    /// Of 4 KiB, with taps, where the arbiter's launch is one block; empty if it always is.
    one_block: Vec<f64>,
    bus: Bus,
    tensors: Vec<f64>,
    /// P50, P99 and P99.9 of round trips, without taps and with.
    hops: [Vec<[f64; 3]>; 2],
}

const LONG: u32 = 4096;
const STRIDES: [u32; 2] = [256, LONG];
const TAPS: [Tap; 2] = [Tap::Off, Tap::Block];

impl Bench<'_> {
    fn shape(&self, stride: u32, tap: Tap) -> rings::Shape {
        let further_blocks = if stride == LONG { self.further_blocks() } else { 0 };
        rings::Shape { stride, tap, servers: self.args.servers, further_blocks, records: self.args.records }
    }

    /// Of launches that carry records of 4 KiB.
    fn further_blocks(&self) -> u32 {
        if self.gpu.is_some() { self.args.journal_blocks } else { 0 }
    }

    fn round(&self, rounds: &mut Rounds) -> Result<(), String> {
        let gpu = self.gpu.as_ref();
        for (rates, stride) in rounds.records.iter_mut().zip(STRIDES) {
            for (rates, tap) in rates.iter_mut().zip(TAPS) {
                rates.push(rings::rate(&self.device, gpu, self.shape(stride, tap))?);
                self.bar.inc(1);
            }
        }
        if self.further_blocks() > 0 {
            let shape = rings::Shape { further_blocks: 0, ..self.shape(LONG, Tap::Block) };
            rounds.one_block.push(rings::rate(&self.device, gpu, shape)?);
            self.bar.inc(1);
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
    let bench = Bench { args, device, gpu, bar: ProgressBar::new(0) };
    let kinds = KINDS + u64::from(bench.further_blocks() > 0) + if args.disk { disk::KINDS } else { 0 };
    bench.bar.set_length(u64::from(args.rounds) * kinds);
    bench.tell_own_overhead()?;
    if args.disk {
        disk::rows(args, &bench.bar, &mut figures)?;
    }
    let mut rounds = Rounds::default();
    for _ in 0..args.rounds {
        bench.round(&mut rounds)?;
    }
    rounds.rows(bench.gpu.is_some(), 1 + bench.further_blocks(), &mut figures);
    let spread = late::lag(&bench.device)?;
    figures.add("drain.lag", spread[0], "ns", None).spread(spread);
    if let Some(gpu) = &bench.gpu {
        let (alone, beside) = gpu.co_runner(bench.shape(256, Tap::Block))?;
        figures.add("drain.co_runner", beside, "GB/s", Some(alone));
    }
    bench.bar.finish_and_clear();
    Ok(figures)
}

fn blocks_in_words(blocks: u32) -> String {
    if blocks == 1 { "one block".into() } else { format!("{blocks} blocks") }
}

impl Rounds {
    /// `blocks`: of launches that carry records of 4 KiB.
    fn rows(mut self, on_gpu: bool, blocks: u32, figures: &mut Figures) {
        let ceilings = self.bus.ceilings();
        let [[plain, tapped], [plain_4k, tapped_4k]] = self.records.map(|of| of.map(|mut rates| median(&mut rates)));
        figures.add("drain.records_256", tapped * 1e3, "M records/s", Some(plain * 1e3));
        let bytes = |stride: u32, rate: f64| f64::from(stride) * rate;
        if on_gpu {
            figures.add("drain.records_256.one_sm", bytes(256, tapped), "GB/s", Some(ceilings.one_sm));
        }
        let value = bytes(LONG, tapped_4k);
        let row = figures.add("drain.records_4k", value, "GB/s", Some(ceilings.stores));
        if on_gpu {
            row.says = Some(format!("drain.records_4k: the arbiter's launch is {}.", blocks_in_words(blocks)));
            figures.add("drain.records_4k.blocks", f64::from(blocks), "blocks", None);
        }
        let one_block = if self.one_block.is_empty() { value } else { bytes(LONG, median(&mut self.one_block)) };
        if blocks > 1 {
            figures.add("drain.records_4k.one_block", one_block, "GB/s", Some(ceilings.stores));
        }
        let untapped = bytes(LONG, plain_4k);
        figures.add("drain.records_4k.untapped", value, "GB/s", Some(untapped));
        let mut bounds = vec![("the same without taps".to_string(), untapped)];
        if on_gpu {
            let sms = if blocks == 1 { "one SM".to_string() } else { format!("{blocks} times one SM") };
            for (name, what, bound) in [
                ("one_sm", "stores", ceilings.one_sm),
                ("carried", "carries there from device memory", ceilings.carried),
            ] {
                figures.add(&format!("drain.records_4k.{name}"), one_block, "GB/s", Some(bound));
                bounds.push((format!("what {sms} {what}"), f64::from(blocks) * bound));
            }
        }
        if let Some((what, bound)) = bounds.iter().min_by(|a, b| a.1.total_cmp(&b.1)) {
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
