//! `warpmail log verify`, `stat` and `cut`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;
use warpmail::journal::{Cut, LogStat, Reader};

use super::{Dir, Outcome, error_json, print_json, stdout, torn_text};
use crate::run::progress;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    dir: Dir,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Gives up everything behind the last valid record, so that the log can be written again. Without --yes it only says what
/// would go, and exits with 1 if something would.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cp -r journal/ journal.before/      # what is cut cannot be brought back\n  \
    warpmail log cut journal/           # says what would go\n  warpmail log cut journal/ --yes")]
pub(super) struct CutArgs {
    #[command(flatten)]
    args: Args,
    /// Do it
    #[arg(long)]
    yes: bool,
}

/// Bytes of records in all segments, if the headers can be read.
pub(super) fn total(dir: &Path) -> Option<u64> {
    let log = warpmail::journal::stat(dir).ok()?;
    Some(log.segments.iter().map(|s| s.bytes).sum())
}

pub(super) fn verify(args: &Args) -> Outcome {
    let mut reader = Reader::open(&args.dir.dir, 0)?;
    let bar = progress(|| total(&args.dir.dir), args.json);
    let (first, mut records, mut payload, mut tensors) = (reader.next_sequence(), 0u64, 0u64, 0u64);
    let mut failed = None;
    while let Some(record) = reader.next() {
        match record {
            Ok(record) => {
                records += 1;
                payload += record.payload.len() as u64;
                tensors += record.tensor.len() as u64;
                bar.set_position(reader.bytes());
            }
            Err(error) => failed = Some(error),
        }
    }
    bar.finish_and_clear();
    let last = first + records - 1;
    if args.json {
        let mut answer = json!({
            "whole": failed.is_none(), "first": first, "last": last, "records": records, "bytes": reader.bytes(),
            "payload_bytes": payload, "tensor_bytes": tensors, "torn": reader.torn(),
        });
        if let Some(error) = &failed {
            answer["damage"] = error_json(error);
        }
        print_json(&answer)?;
        return Ok(if failed.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let mut out = stdout();
    let range = if records == 0 { "none".into() } else { format!("{first} to {last}") };
    writeln!(out, "{records} valid records ({range}), {payload} bytes of payload, {tensors} of tensors")?;
    if let Some(torn) = reader.torn() {
        writeln!(out, "{}", torn_text(torn))?;
    }
    if failed.is_none() {
        writeln!(out, "the log is whole")?;
    }
    out.flush()?;
    failed.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
}

pub(super) fn stat(args: &Args) -> Outcome {
    let log = warpmail::journal::stat(&args.dir.dir)?;
    if args.json {
        print_json(&json!(log))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = stdout();
    writeln!(out, "log {}", log.id.as_deref().unwrap_or("without a header yet"))?;
    writeln!(out, "{}", held(&log))?;
    writeln!(out, "{:>20} {:>12} {:>12} {:>12}  made", "first sequence", "records", "bytes", "file bytes")?;
    for s in &log.segments {
        let made = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(s.created_ns));
        writeln!(out, "{:>20} {:>12} {:>12} {:>12}  {made}", s.first, s.records, s.bytes, s.file_bytes)?;
    }
    if let Some(torn) = &log.torn {
        writeln!(out, "{}", torn_text(torn))?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn held(log: &LogStat) -> String {
    let records = (log.last + 1).saturating_sub(log.first);
    let kept = match records {
        0 => "no records".into(),
        n => format!("{n} records, {} to {}", log.first, log.last),
    };
    let gone = if log.first > 1 { format!("; {} before them were removed", log.first - 1) } else { String::new() };
    let bytes: u64 = log.segments.iter().map(|s| s.bytes).sum();
    format!("{kept}{gone}; {} segments, {bytes} bytes, {} with space set aside", log.segments.len(), log.file_bytes)
}

pub(super) fn cut(args: &CutArgs) -> Outcome {
    let bar = progress(|| total(&args.args.dir.dir), args.args.json);
    let plan = Cut::plan(&args.args.dir.dir, |bytes| bar.set_position(bytes))?;
    bar.finish_and_clear();
    let Some(plan) = plan else {
        if args.args.json {
            print_json(&json!({"plan": null, "done": false}))?;
        } else {
            writeln!(stdout(), "the log is whole: there is nothing to cut")?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let (words, told) = (describe(&plan), json!(plan));
    if args.yes {
        plan.apply()?;
    }
    if args.args.json {
        print_json(&json!({"plan": told, "done": args.yes}))?;
    } else {
        let (begin, end) =
            if args.yes { ("cut:", "") } else { ("would be cut:", "\nnothing was changed; --yes does it") };
        writeln!(stdout(), "{begin} {words}{end}")?;
    }
    Ok(if args.yes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(plan: &Cut) -> String {
    let mut text = format!("everything after record {} ({})", plan.last, plan.reason);
    if let Some((file, offset)) = &plan.cut {
        text += &format!("\n  {} from offset {offset} on", file.display());
    }
    for file in &plan.removed {
        text += &format!("\n  {}, the whole file", file.display());
    }
    text + &format!("\n  {} bytes", plan.bytes)
}
