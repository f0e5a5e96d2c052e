//! A run with everything around it that a user sees: results as they come, progress, Ctrl-C, the summary.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use indicatif::ProgressBar;
use warpmail::{Device, Error};

use super::graph::Options;
use super::input::{Account, OnItem};
use super::keep::Kept;
use super::looking::Looking;
use super::output::Output;
use super::pipeline::{Shared, Sink, find};
use super::resume::Resumed;
use super::{INTERRUPTED, records, report};

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

/// What a run is about.
pub(crate) struct Job<'a> {
    /// The command's name, for what it says.
    pub(crate) command: &'static str,
    pub(crate) looking: &'a Looking,
    pub(crate) device: &'a Device,
    pub(crate) options: Options,
    /// Where JSON goes, `-` for standard output.
    pub(crate) json: Option<&'a Path>,
    pub(crate) bar: ProgressBar,
    pub(crate) kept: Option<Kept>,
    pub(crate) resumed: Option<Resumed>,
}

/// Where lines come from: says when it is to end, and takes the account and what to do with items; calls the last after
/// every change of the account's files.
pub(crate) type Source<'a> =
    dyn FnOnce(&Shared, &mut Account, &mut OnItem<'_>, &mut dyn FnMut(&Account)) -> Result<(), Error> + Send + 'a;

/// Runs everything that the source has through the modules.
pub(crate) fn carry_out(job: Job<'_>, source: Box<Source<'_>>) -> Result<ExitCode, String> {
    let Job { command, looking, device, options, json, bar, kept, resumed } = job;
    let shared = Arc::new(Shared::default());
    on_interrupt(shared.clone())?;
    let mut output = Output::new(json)?;
    let before = || kept.as_ref().map_or_else(Account::default, |kept| Account::after(&kept.known));
    // The reader's account is copied to where the sink can look places up.
    let (account, mine, bytes) = (Mutex::new(before()), before(), AtomicU64::new(0));
    let read = |post: &mut OnItem<'_>| {
        let mut mine = mine;
        let mut share = |mine: &Account| {
            let mut ours = lock(&account);
            let known = ours.files.len();
            ours.files.extend_from_slice(&mine.files[known..]);
            bytes.store(mine.bytes, Ordering::Relaxed);
        };
        let outcome = source(&shared, &mut mine, post, &mut share);
        *lock(&account) = mine;
        outcome
    };
    let on_terminal = std::io::stdout().is_terminal();
    let mut sink = Live { output: &mut output, account: &account, bytes: &bytes, bar: &bar, on_terminal };
    let found = find(device, &options, kept, &shared, read, &mut sink);
    bar.finish_and_clear();
    let account = account.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let summary = found.map_err(|e| e.to_string())?;
    output.finish(&summary, &account, &options, device.info(), resumed.as_ref())?;
    if !looking.quiet {
        report::summary(&summary, &account, &options, device.info(), looking.stats);
    }
    let failed = report::problems(command, &summary, &account);
    if summary.interrupted {
        eprintln!("warpmail {command}: stopped by Ctrl-C; the results so far were written");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
