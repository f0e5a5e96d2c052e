//! Lines out of a log once more through the modules: a source like files, with other numbers.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use warpmail::Error;
use warpmail::journal::Record;

use super::input::{Account, Item, OnItem};
use super::live::{Job, carry_out};
use super::logged::{Assembler, Logged};
use super::looking::Looking;
use super::pipeline::Shared;

/// The longest nap while a line is not due.
const NAP: Duration = Duration::from_millis(50);

/// Records in order, each with what is known when it has been read.
pub(crate) trait Records: Send {
    /// The next one; none at the end.
    fn next(&mut self) -> Option<Result<Record, Error>>;
    /// Bytes gone through.
    fn bytes(&self) -> u64;
    /// Whether what this record completes is wanted. Others may still tell the name of a file.
    fn wants(&self, record: &Record) -> bool;
    /// How long to wait before it, from now.
    fn due_in(&mut self, record: &Record) -> Duration;
}

/// Lines are numbered anew: those of a log's runs may have the same numbers.
struct Renumber {
    file_first: u64,
    new_first: u64,
}

fn source(
    mut records: impl Records,
    shared: &Shared,
    account: &mut Account,
    post: &mut OnItem<'_>,
    share: &mut dyn FnMut(&Account),
) -> Result<(), Error> {
    let mut parts = Assembler::default();
    let mut numbers = Renumber { file_first: 0, new_first: 0 };
    while let Some(record) = records.next() {
        let record = record?;
        account.bytes = records.bytes();
        match parts.take(&record) {
            Some(Logged::File(first, path)) => {
                numbers = Renumber { file_first: first, new_first: account.lines };
                account.files.push((account.lines, path.clone()));
                share(account);
                post(Item::File(account.lines, &path))?;
            }
            Some(Logged::Line(number, text)) if records.wants(&record) => {
                wait(records.due_in(&record), shared);
                // A number below the file's own would be of a log that no run wrote: it keeps the order at least.
                let number = (numbers.new_first + number.saturating_sub(numbers.file_first)).max(account.lines);
                account.lines = number + 1;
                if !post(Item::Line(number, &text))? {
                    return Ok(());
                }
            }
            _ if shared.cancelled() => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

/// Waits in short naps, so that Ctrl-C is heard.
fn wait(time: Duration, shared: &Shared) {
    let until = Instant::now() + time;
    while !shared.cancelled() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(NAP));
    }
}

/// Runs the records' lines through the modules, and shows what a run shows.
pub(crate) fn replay(
    command: &'static str,
    looking: &Looking,
    json: bool,
    bar: ProgressBar,
    records: impl Records,
) -> Result<ExitCode, String> {
    let device = looking.device().map_err(|e| e.to_string())?;
    let json = json.then_some("-".as_ref());
    let options = looking.options().map_err(|e| e.to_string())?;
    let job = Job { command, looking, device: &device, options, json, bar, kept: None, resumed: None };
    let lines = |shared: &Shared, account: &mut Account, post: &mut OnItem<'_>, share: &mut dyn FnMut(&Account)| {
        source(records, shared, account, post, share)
    };
    carry_out(job, Box::new(lines))
}
