//! `drain.*`: how fast journalled records and tensors reach a sink, over what the bus and the disk can do in the same run; how
//! late; and what it costs whoever is beside it.

mod disk;
mod kernels;
mod late;
mod rings;
mod tensors;

use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use warpmail::{Builder, Device, Mode, SpinBudget, Tap};

use self::kernels::Gpu;
use super::{Target, median};
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
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    target: Target,
}

pub(crate) fn execute(args: &Args) -> Result<Figures, String> {
    let gpu = args.target.gpu()?.map(Gpu::new).transpose()?;
    let device = gpu.as_ref().map_or_else(Device::twin, |gpu| gpu.device.clone());
    let mut figures = Figures::new(device.info());
    let bar = ProgressBar::new(u64::from(args.rounds) * if args.disk { 27 } else { 19 });
    if args.disk {
        disk::rows(args, &bar, &mut figures)?;
    }
    let repeat = |run: &mut dyn FnMut() -> Result<f64, String>| {
        let rates: Result<Vec<f64>, String> = (0..args.rounds).map(|_| run().inspect(|_| bar.inc(1))).collect();
        rates.map(|mut r| median(&mut r))
    };
    let of = |stride, tap| rings::Shape { stride, tap, servers: args.servers, records: args.records };
    let rate = |stride, tap| repeat(&mut || rings::rate(&device, gpu.as_ref(), of(stride, tap)));
    let (plain, tapped) = (rate(256, Tap::Off)?, rate(256, Tap::Block)?);
    figures.add("drain.records_256", tapped * 1e3, "M records/s", Some(plain * 1e3));
    let bytes = rate(4096, Tap::Block)? * 4096.0;
    let ceiling = match &gpu {
        Some(gpu) => {
            let one_sm = repeat(&mut || gpu.store_rate(1))?;
            let carried = repeat(&mut || gpu.carry_rate())?;
            println!("One SM stores {one_sm:.1} GB/s into pinned memory, and carries {carried:.1} there from its own.");
            Some(repeat(&mut || gpu.store_rate(8))?)
        }
        None => Some(repeat(&mut || Ok(tensors::copy_rate()))?),
    };
    figures.add("drain.records_4k", bytes, "GB/s", ceiling);
    let copy = match &gpu {
        Some(gpu) => repeat(&mut || gpu.copy_rate())?,
        None => repeat(&mut || Ok(tensors::copy_rate()))?,
    };
    let drained = repeat(&mut || tensors::rate(&device))?;
    figures.add("drain.tensors", drained, "GB/s", Some(copy));
    let hops = |tap| repeat(&mut || late::hop(&device, gpu.as_ref(), tap, args.servers));
    let (without, with) = (hops(Tap::Off)?, hops(Tap::Block)?);
    figures.add("drain.hop_overhead", with, "ns", Some(without));
    let spread = late::lag(&device)?;
    figures.add("drain.lag", spread[0], "ns", None).spread(spread);
    if let Some(gpu) = &gpu {
        let (alone, beside) = gpu.co_runner(of(256, Tap::Block))?;
        figures.add("drain.co_runner", beside, "GB/s", Some(alone));
    }
    bar.finish_and_clear();
    Ok(figures)
}
