//! `warpmail bench`: each bench prints a table and writes rows as JSON.

mod arbitration;
mod blocking;
mod corun;
mod drain;
mod gpu;
mod hop;
mod pair;
mod plot;
mod spin_budget;
mod throughput;
mod twin;
mod wake;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Subcommand;
use hdrhistogram::Histogram;
use warpmail::Device;

use crate::figures::Figures;

/// Benchmarks. Every figure is compared with a floor or a peer that was measured in the same run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also write the rows as JSON to this file
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw the rows as an SVG picture in this file
    #[arg(long, global = true, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(subcommand)]
    which: Which,
}

#[derive(Subcommand)]
enum Which {
    /// Two host threads over one mailbox of the twin, beside rtrb and crossbeam (row twin.pair)
    Pair(pair::Args),
    /// One way between two SMs, and a round trip through the arbiter, over the raw flag between the same SMs; on the
    /// twin between threads
    Hop(hop::Args),
    /// Records per second between warps, over a copy through L2 and a naive ring; to and from the host; on
    /// the twin between threads
    Throughput(throughput::Args),
    /// Random arrivals under budgets from always polling to always parked: latency, and the share of an SM that it costs; how much
    /// slower the arbiter makes others on the GPU (cuBLAS, a copy, a chain of small kernels), and its power
    SpinBudget(spin_budget::Args),
    /// How soon a parked arbiter serves a record, over the front end's own way; what parking costs hot and idle (a GPU only)
    Wake(wake::Args),
    /// Which calls of the driver wait beside an arbiter that is hot, parked, or woken all the time, and how long (a GPU only)
    BlockingCalls(blocking::Args),
    /// The same pipelines arbitrated by the device and by the CPU: a hop, records per second, what each costs host and
    /// device; also with every core of the host busy
    Arbitration(arbitration::Args),
    /// Journalled records to a sink, and the log to a disk, over the disk's own rate with the same block
    Drain(drain::Args),
}

pub(crate) fn execute(args: &Args) -> ExitCode {
    let outcome = match &args.which {
        Which::Pair(a) => pair::execute(a),
        Which::Arbitration(a) => arbitration::execute(a),
        Which::Hop(a) => hop::execute(a),
        Which::Throughput(a) => throughput::execute(a),
        Which::BlockingCalls(a) => blocking::execute(a),
        Which::Drain(a) => drain::execute(a),
        Which::Wake(a) => wake::execute(a),
        Which::SpinBudget(a) => spin_budget::execute(a, args.svg.as_deref()),
    };
    match outcome.and_then(|figures| finish(args, &figures)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("warpmail bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn finish(args: &Args, figures: &Figures) -> Result<(), String> {
    figures.print();
    args.json.as_deref().map_or(Ok(()), |path| figures.write(path))?;
    let draws_its_own = matches!(args.which, Which::SpinBudget(_));
    args.svg.as_deref().filter(|_| !draws_its_own).map_or(Ok(()), |path| plot::draw(figures, path))
}

/// Where a bench runs.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    /// A GPU if it can be used, else the twin
    Auto,
    Cuda,
    Twin,
}

#[derive(clap::Args)]
struct Target {
    /// Where to run; figures of the twin say so
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    /// CUDA device
    #[arg(long, default_value_t = 0, value_name = "ORDINAL")]
    device: u32,
}

impl Target {
    /// The GPU to run on, or none for the twin.
    fn gpu(&self) -> Result<Option<Device>, String> {
        match self.backend {
            Backend::Twin => Ok(None),
            Backend::Auto if warpmail::probe().why_not_cuda(self.device).is_some() => Ok(None),
            _ => Device::cuda(self.device).map(Some).map_err(text),
        }
    }
}

fn text(e: warpmail::Error) -> String {
    e.to_string()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// P50, P99 and P99.9, nanoseconds.
fn percentiles(values: &[f64]) -> Result<[f64; 3], String> {
    let mut histogram = Histogram::<u64>::new(3).map_err(|e| e.to_string())?;
    for v in values {
        histogram.record((v * 10.0) as u64).map_err(|e| e.to_string())?;
    }
    Ok([0.5, 0.99, 0.999].map(|q| histogram.value_at_quantile(q) as f64 / 10.0))
}

/// Nanoseconds that reading the clock adds to what is timed: the bench's own part of it.
fn clock_ns() -> f64 {
    let begin = Instant::now();
    let mut sum = 0;
    for _ in 0..100_000 {
        sum += std::hint::black_box(Instant::now().elapsed().as_nanos());
    }
    std::hint::black_box(sum);
    begin.elapsed().as_nanos() as f64 / 1e5
}
