//! `warpmail bench`: each bench prints a table and writes rows as JSON.

mod gpu;
mod hop;
mod pair;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::figures::Figures;

/// Benchmarks. Every figure is compared with a floor or a peer that was measured in the same run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also write the rows as JSON to this file
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    which: Which,
}

#[derive(Subcommand)]
enum Which {
    /// Two host threads over one mailbox of the twin, beside rtrb and crossbeam (row twin.pair)
    Pair(pair::Args),
    /// One way between two SMs, and a round trip through the arbiter, over the raw flag between the same SMs
    Hop(hop::Args),
}

pub(crate) fn execute(args: &Args) -> ExitCode {
    let outcome = match &args.which {
        Which::Pair(a) => pair::execute(a),
        Which::Hop(a) => hop::execute(a),
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
    args.json.as_deref().map_or(Ok(()), |path| figures.write(path))
}
