//! `warpmail run`: near-duplicate lines in text, found by modules that exchange records through device mailboxes.

mod files;
mod graph;
mod input;
mod keep;
mod logged;
mod output;
mod pipeline;
mod records;
mod report;
mod resume;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use clap::ValueEnum;
use indicatif::ProgressBar;
use warpmail::{Device, Error};

use graph::Options;
use input::{Account, OnItem};
use output::Output;
use pipeline::{Shared, Sink};
pub(crate) use report::progress;

const INTERRUPTED: u8 = 130;
const USAGE: u8 = 2;

/// Where the modules run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The GPU if it can be used, else the twin
    Auto,
    /// The GPU, or an error with the reason
    Cuda,
    /// CPU threads
    Twin,
}

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
    /// Similarity (cosine) from which a line counts as a near-duplicate, above 0 and up to 1
    #[arg(long, default_value = "0.9", value_parser = parse_threshold, value_name = "COSINE", allow_hyphen_values = true)]
    threshold: u32,
    /// Lines remembered; when full, the oldest is forgotten. About 530 bytes of device memory each. 1048576 unless given or
    /// resumed
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 28), value_name = "LINES")]
    capacity: Option<u32>,
    /// Also list novel lines
    #[arg(long)]
    all: bool,
    /// Where the modules run
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    /// CUDA device, if not the first
    #[arg(long, value_name = "N")]
    device: Option<u32>,
    /// Warps (on the twin: threads) that run modules, if not as many as the machine suggests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(warpmail::abi::WM_MAX_SERVERS)))]
    servers: Option<u32>,
    /// Let the arbiter leave after this much time without work, in microseconds, until there is news
    #[arg(long, value_name = "MICROSECONDS")]
    idle_spin: Option<u64>,
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
    /// Time and steps of each module in the summary
    #[arg(long, conflicts_with = "quiet")]
    stats: bool,
    /// No summary and no progress bar; errors are named all the same
    #[arg(long, short)]
    quiet: bool,
}

fn parse_threshold(text: &str) -> Result<u32, String> {
    match text.parse::<f64>() {
        Ok(t) if t > 0.0 && t <= 1.0 => Ok((t * f64::from(records::ONE)).round().max(1.0) as u32),
        _ => Err("must be a number above 0 and up to 1".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| *s >= 0.01).and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| "must be a number of seconds, at least 0.01".into())
}

pub(crate) fn execute(args: &Args) -> ExitCode {
    if args.backend == Backend::Twin && args.device.is_some() {
        eprintln!("warpmail run: --device chooses a GPU, --backend twin uses none");
        return ExitCode::from(USAGE);
    }
    run(args).unwrap_or_else(|message| {
        eprintln!("warpmail run: {message}");
        ExitCode::FAILURE
    })
}

fn open(args: &Args) -> Result<Device, Error> {
    let ordinal = args.device.unwrap_or(0);
    match args.backend {
        Backend::Twin => Ok(Device::twin()),
        Backend::Cuda => Device::cuda(ordinal),
        Backend::Auto => Ok(Device::cuda(ordinal).unwrap_or_else(|reason| {
            tracing::info!(%reason, "using the CPU twin");
            Device::twin()
        })),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The first Ctrl-C ends the input; the second ends the program, in case a write does not return.
fn on_interrupt(shared: Arc<Shared>) -> Result<(), String> {
    let handler = move || {
        if shared.cancel() {
            std::process::exit(i32::from(INTERRUPTED));
        }
        shared.interrupted.store(true, Ordering::Relaxed);
    };
    ctrlc::set_handler(handler).map_err(|e| format!("Ctrl-C cannot be watched: {e}"))
}

/// The sink's end: results to the output, progress to the bar.
struct Live<'a> {
    output: &'a mut Output,
    account: &'a Mutex<Account>,
    bytes: &'a AtomicU64,
    bar: &'a ProgressBar,
    /// Results appear on the terminal that the bar is on.
    on_terminal: bool,
}

impl Sink for Live<'_> {
    fn result(&mut self, m: &records::Match) -> bool {
        let mut write = || {
            let listened = self.output.result(m, &lock(self.account));
            if self.on_terminal {
                self.output.flush();
            }
            listened
        };
        let listened = if self.on_terminal { self.bar.suspend(write) } else { write() };
        self.bar.set_position(self.bytes.load(Ordering::Relaxed));
        listened
    }

    fn look(&mut self) {
        self.output.flush();
        self.bar.set_position(self.bytes.load(Ordering::Relaxed));
    }
}

fn run(args: &Args) -> Result<ExitCode, String> {
    let device = open(args).map_err(|e| e.to_string())?;
    let mut options = Options {
        threshold: args.threshold,
        emit_all: args.all,
        capacity: args.capacity.unwrap_or(1 << 20),
        servers: args.servers,
        idle_spin: args.idle_spin.map(Duration::from_micros),
    };
    let shared = Arc::new(Shared::default());
    on_interrupt(shared.clone())?;
    let mut output = Output::new(args.json.as_deref())?;
    let bar = report::progress(|| files::total_bytes(&args.paths), args.quiet);
    let keep =
        |dir: &PathBuf| resume::open(&device, &mut options, (dir, args.checkpoint_every, args.resume), args.capacity);
    let (kept, resumed) = match args.journal.as_ref().map(keep).transpose().map_err(|e| e.to_string())? {
        Some((kept, resumed)) => (Some(kept), resumed),
        None => (None, None),
    };
    if let Some(resumed) = resumed.as_ref().filter(|_| !args.quiet) {
        report::resumed(resumed);
    }
    let before = || kept.as_ref().map_or_else(Account::default, |kept| Account::after(&kept.known));
    // The reader's account is copied to where the sink can look places up.
    let (account, mine, bytes) = (Mutex::new(before()), before(), AtomicU64::new(0));
    let read = |post: &mut OnItem<'_>| {
        let mut mine = mine;
        let share = |mine: &Account| {
            let mut ours = lock(&account);
            let known = ours.files.len();
            ours.files.extend_from_slice(&mine.files[known..]);
            bytes.store(mine.bytes, Ordering::Relaxed);
        };
        let outcome = input::lines(&args.paths, &mut mine, || shared.cancelled(), post, share);
        *lock(&account) = mine;
        outcome
    };
    let on_terminal = std::io::stdout().is_terminal();
    let mut sink = Live { output: &mut output, account: &account, bytes: &bytes, bar: &bar, on_terminal };
    let found = pipeline::find(&device, &options, kept, &shared, read, &mut sink);
    bar.finish_and_clear();
    let account = account.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let summary = found.map_err(|e| e.to_string())?;
    output.finish(&summary, &account, &options, device.info(), resumed.as_ref())?;
    if !args.quiet {
        report::summary(&summary, &account, &options, device.info(), args.stats);
    }
    let failed = report::problems(&summary, &account);
    if summary.interrupted {
        eprintln!("warpmail run: stopped by Ctrl-C; the results so far were written");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
