//! `warpmail run`: near-duplicate lines in text, found by modules that exchange records through device mailboxes.

mod files;
mod graph;
mod input;
mod keep;
mod live;
mod logged;
mod looking;
mod output;
mod pipeline;
mod records;
mod replay;
mod report;
mod resume;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use warpmail::Error;

use input::{Account, OnItem};
use live::Job;
pub(crate) use looking::Looking;
use pipeline::Shared;
pub(crate) use replay::{Records, replay};
pub(crate) use report::progress;

const COMMAND: &str = "run";
const INTERRUPTED: u8 = 130;
const USAGE: u8 = 2;

/// Finds lines that nearly repeat an earlier line.
///
/// A host module reads lines; on the device an encoder turns each into a feature vector (hashed byte 3-grams), a sidecar
/// memory looks it up in a banded MinHash index and compares exactly, a planner decides; a host module writes the results.
/// Results go to standard output, one a line: `file:line ~ file:line similarity`, the earlier line second.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  warpmail run notes/ *.txt\n  sort -R big.txt | warpmail run --threshold 0.95 --json out.json -\n  \
    warpmail run src/ --json - | jq '.results[] | select(.similarity < 1)'\n  \
    warpmail run --journal seen/ monday.log && warpmail run --journal seen/ --resume tuesday.log   # against monday's too\n\n\
    Lines are compared without regard to ASCII case and to how much white space there is. Directories are walked in the order\n\
    of names; hidden files in them are left out, and so is what is not text. Exit codes: 0 done; 1 something could not be read\n\
    (it is named, the rest was done) or the run failed; 2 wrong usage; 130 Ctrl-C, with the results so far.\n\
    How similarity is defined and how much is found: docs/near-duplicates.md."
)]
pub(crate) struct Args {
    /// Files, directories, or - for standard input
    #[arg(default_value = "-", value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    looking: Looking,
    /// Keep the lines and the results, as they pass, in a log in this directory, and at the end what is known then; see
    /// warpmail log --help
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    /// Go on with what the runs before knew that kept their journal there, also after one that was killed. Begins with
    /// nothing if there is nothing
    #[arg(long, requires = "journal")]
    resume: bool,
    /// Also keep what is known every so often, in seconds, so that less is to be done again after a run that was killed
    #[arg(long, value_name = "SECONDS", requires = "journal", value_parser = parse_seconds)]
    checkpoint_every: Option<Duration>,
    /// Also write the results and a summary as JSON; - writes it to standard output in place of the text
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| *s >= 0.01).and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| "must be a number of seconds, at least 0.01".into())
}

pub(crate) fn execute(args: &Args) -> ExitCode {
    args.looking.contradicts(COMMAND).unwrap_or_else(|| {
        run(args).unwrap_or_else(|message| {
            eprintln!("warpmail {COMMAND}: {message}");
            ExitCode::FAILURE
        })
    })
}

fn run(args: &Args) -> Result<ExitCode, String> {
    let text = |e: Error| e.to_string();
    let device = args.looking.device().map_err(text)?;
    let mut options = args.looking.options().map_err(text)?;
    let bar = report::progress(|| files::total_bytes(&args.paths), args.looking.quiet);
    let mut keep = |dir: &PathBuf| {
        resume::open(&device, &mut options, (dir, args.checkpoint_every, args.resume), args.looking.capacity)
    };
    let (kept, resumed) = match args.journal.as_ref().map(&mut keep).transpose().map_err(text)? {
        Some((kept, resumed)) => (Some(kept), resumed),
        None => (None, None),
    };
    if let Some(resumed) = resumed.as_ref().filter(|_| !args.looking.quiet) {
        report::resumed(resumed);
    }
    let json = args.json.as_deref();
    let job = Job { command: COMMAND, looking: &args.looking, device: &device, options, json, bar, kept, resumed };
    let lines = |shared: &Shared, account: &mut Account, post: &mut OnItem<'_>, share: &mut dyn FnMut(&Account)| {
        input::lines(&args.paths, account, || shared.cancelled(), post, share)
    };
    live::carry_out(job, Box::new(lines))
}
