//! `warpmail run`: near-duplicate lines in text, found by modules that exchange records through device mailboxes.

mod input;
mod output;
mod pipeline;
mod records;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use warpmail::{Device, Error};

use input::Account;
use output::Output;
use pipeline::{Options, Shared, Summary};

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
/// Results go to standard output, one a line: `file:line ~ file:line similarity`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  warpmail run notes/ *.txt\n  sort -R big.txt | warpmail run --threshold 0.95 --json out.json -\n\n\
    Lines are compared without white space at their ends and without regard to ASCII case. Hidden files in directories and\n\
    files that are not text are left out. Exit codes: 0 done; 1 an input could not be read, or the run failed; 130 Ctrl-C,\n\
    with the results so far."
)]
pub(crate) struct Args {
    /// Files, directories, or - for standard input
    #[arg(default_value = "-", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Cosine from which a line counts as a near-duplicate, above 0 and up to 1
    #[arg(long, default_value = "0.85", value_parser = parse_threshold, value_name = "COSINE")]
    threshold: u32,
    /// Lines remembered; when full, the oldest is forgotten. About 776 bytes of device memory each
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=1 << 28), value_name = "LINES")]
    capacity: u32,
    /// Also list novel lines
    #[arg(long)]
    all: bool,
    /// Where the modules run
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    /// CUDA device
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// Also write the results and a summary as JSON; - writes it to standard output in place of the text
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// No summary and no progress bar
    #[arg(long, short)]
    quiet: bool,
}

fn parse_threshold(text: &str) -> Result<u32, String> {
    match text.parse::<f64>() {
        Ok(t) if t > 0.0 && t <= 1.0 => Ok((t * f64::from(records::ONE)).round().max(1.0) as u32),
        _ => Err("must be a number above 0 and up to 1".into()),
    }
}

pub(crate) fn execute(args: &Args) -> ExitCode {
    match run(args) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("warpmail run: {message}");
            ExitCode::FAILURE
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn run(args: &Args) -> Result<ExitCode, String> {
    let device = match args.backend {
        Backend::Auto => Device::best(),
        Backend::Cuda => Device::cuda(args.device).map_err(|e| e.to_string())?,
        Backend::Twin => Device::twin(),
    };
    let options = Options { threshold: args.threshold, emit_all: args.all, capacity: args.capacity };
    let shared = Arc::new(Shared::default());
    let on_interrupt = shared.clone();
    ctrlc::set_handler(move || on_interrupt.cancel.store(true, Ordering::Relaxed)).map_err(|e| e.to_string())?;
    let mut output = Output::new(args.json.as_deref())?;
    let bar = progress(args);
    let bytes = AtomicU64::new(0);
    // The reader writes the account, the sink looks places up in it.
    let account = Mutex::new(Account::default());
    let read = |post: &mut dyn FnMut(pipeline::InputLine<'_>) -> Result<bool, Error>| {
        let mut mine = Account::default();
        let cancelled = || shared.cancel.load(Ordering::Relaxed);
        let share = |mine: &Account| {
            let mut ours = lock(&account);
            let known = ours.files.len();
            ours.files.extend_from_slice(&mine.files[known..]);
            bytes.store(mine.bytes, Ordering::Relaxed);
        };
        let read = input::lines(&args.paths, &mut mine, cancelled, |n, text| post((n, text)).map_err(Problem), share);
        *lock(&account) = mine;
        read.map_err(|Problem(e)| e)
    };
    let on_look = || bar.set_position(bytes.load(Ordering::Relaxed));
    let found = pipeline::find(&device, &options, &shared, read, |m| output.result(m, &lock(&account)), on_look);
    bar.finish_and_clear();
    let account = account.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    account.problems.iter().for_each(|p| eprintln!("warpmail run: {p}"));
    let summary = found.map_err(|e| e.to_string())?;
    output.finish(&summary, &account, &options, &device.info().name)?;
    if !args.quiet {
        report(&summary, &account, &options, &device);
    }
    if shared.cancel.load(Ordering::Relaxed) {
        eprintln!("warpmail run: stopped by Ctrl-C; the results so far were written");
        return Ok(ExitCode::from(130));
    }
    Ok(if account.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An error of the reader, whether of the input or of the mailbox.
struct Problem(Error);

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Problem(Error::Failed(text))
    }
}

fn progress(args: &Args) -> ProgressBar {
    if args.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match input::total_bytes(&args.paths) {
        Some(total) => (ProgressBar::new(total), "{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left"),
        None => (ProgressBar::no_length(), "{spinner} {bytes}, {bytes_per_sec}"),
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    ProgressStyle::with_template(template).map_or(bar.clone(), |style| bar.with_style(style))
}

fn report(summary: &Summary, account: &Account, options: &Options, device: &Device) {
    let seconds = summary.elapsed.as_secs_f64();
    eprintln!(
        "{} lines ({} empty, {} with invalid UTF-8) of {} files: {} novel, {} near-duplicates; {} files were not text",
        account.lines,
        account.empty,
        account.invalid_utf8,
        account.files.len(),
        summary.end.novel,
        summary.end.duplicates,
        account.binary
    );
    eprintln!(
        "{:.2} s on {}: {:.0} lines/s, {:.1} MB/s; memory for {} lines: {} MiB",
        seconds,
        device.info().name,
        account.lines as f64 / seconds,
        account.bytes as f64 / seconds / 1e6,
        options.capacity,
        options.memory_bytes() >> 20
    );
    for m in &summary.stats.mailboxes {
        eprintln!("  {:20} {:>10} records, at most {} waiting", m.name, m.written, m.depth_max);
    }
    for m in summary.stats.modules.iter().filter(|m| m.rejects.dropped() > 0) {
        eprintln!("  {} dropped {} records: {:?}", m.name, m.rejects.dropped(), m.rejects);
    }
}
