//! A short life of a log, told on standard output line by line, for a parent that makes its system calls fail or kills it.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use fastrand::Rng;
use warpmail::journal::disk::{Disk, Folder};
use warpmail::journal::{Log, LogOptions, Retention, SyncPolicy};

use crate::model::{Model, content, entries};
use crate::sim::{Content, Note};

/// Set for the child: the directory.
pub(crate) const DIR: &str = "WARPMAIL_JOURNAL_CHILD";
/// Set to append batches of this many bytes now and then.
pub(crate) const LONG: &str = "WARPMAIL_JOURNAL_LONG";

pub(crate) fn options(sync: SyncPolicy) -> LogOptions {
    let retention = Retention { max_bytes: Some(16_000), max_age: None };
    LogOptions { segment_bytes: 4096, sync, retention, direct_from: Some(900) }
}

/// Record number `tag` of all that are ever made.
fn record(tag: u64, len: usize) -> Content {
    content(&mut Rng::with_seed(tag), tag, len)
}

fn batch(tag: u64, n: u64, long: usize) -> Vec<Content> {
    (tag..tag + n)
        .map(|tag| {
            if long > 0 { (0, 0, [&tag.to_le_bytes()[..], &vec![7; long]].concat(), vec![]) } else { record(tag, 500) }
        })
        .collect()
}

/// One line in one write: a kill leaves it whole or out.
pub(crate) fn tell(line: String) {
    let _ = std::io::stdout().write_all((line + "\n").as_bytes()).and_then(|()| std::io::stdout().flush());
}

/// The child. What it tells is what [`replay`] understands.
pub(crate) fn main(dir: &Path) -> ExitCode {
    let long = std::env::var(LONG).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let disk: Arc<dyn Disk> = Arc::new(Folder::new(dir));
    let (mut model, mut tag) = (Model::default(), 1);
    for round in 0..4 {
        let sync = if round % 2 == 0 { SyncPolicy::EveryBatch } else { SyncPolicy::Never };
        let (mut log, recovered) = match Log::open(dir, options(sync)) {
            Ok(opened) => opened,
            Err(error) => {
                tell(format!("error {error}"));
                continue;
            }
        };
        let note = match model.opened(&disk, &log, &recovered, u64::MAX) {
            Ok(note) => note,
            // A call that fails may be one of this check.
            Err(error) => {
                tell(format!("error {error}"));
                continue;
            }
        };
        model.note(&note);
        if let Note::Opened(last, found) = note {
            let first_tag = found.first().map_or(0, |c| u64::from_le_bytes(std::array::from_fn(|i| c.2[i])));
            tell(format!("opened {last} {} {first_tag}", found.len()));
        }
        for step in 0..9 {
            let n = 1 + (round + step) % 3;
            let bytes = if step % 4 == 3 { long } else { 0 };
            let batch = batch(tag, n, bytes);
            tell(format!("begin {tag} {n} {bytes}"));
            model.note(&Note::Begin(batch.clone()));
            tag += n;
            match log.append(&entries(&batch)) {
                Ok(_) => {
                    model.note(&Note::Taken);
                    tell("taken".into());
                }
                Err(error) => tell(format!("error {error}")),
            }
            if step % 3 == 2
                && let Err(error) = log.commit()
            {
                tell(format!("error {error}"));
            }
            model.note(&Note::Durable(log.durable()));
            tell(format!("durable {}", log.durable()));
        }
        if round == 1
            && let Err(error) = log.close()
        {
            tell(format!("error {error}"));
        }
    }
    tell("end".into());
    ExitCode::SUCCESS
}

/// What must be in the log after this much was told. The last line may be cut off.
pub(crate) fn replay(told: &str) -> Result<Model, String> {
    let mut model = Model::default();
    for line in told.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let mut words = line.split_ascii_whitespace();
        let verb = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|w| w.parse::<u64>().ok()).ok_or(format!("cannot read {line:?}"));
        match verb {
            "begin" => model.note(&Note::Begin(batch(number()?, number()?, number()? as usize))),
            "taken" => model.note(&Note::Taken),
            "durable" => model.note(&Note::Durable(number()?)),
            "opened" => {
                let (last, n, tag) = (number()?, number()?, number()?);
                model.note(&Note::Opened(last, batch(tag, n, 0)));
            }
            "error" | "end" => {}
            _ => return Err(format!("not understood: {line:?}")),
        }
    }
    Ok(model)
}
