//! `warpmail log cat`.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::ValueEnum;
use serde_json::json;
use warpmail::journal::{Reader, Record};

use super::check::total;
use super::filter::Filter;
use super::{Dir, Outcome, stdout, torn_text};
use crate::run::progress;

/// How a payload is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Show {
    /// Text where it is text, else hexadecimal
    Auto,
    /// Text, with escapes for what is none
    Text,
    /// Hexadecimal
    Hex,
    /// Not at all
    None,
}

/// Prints records, one a line: sequence, time, mailbox, type, length, payload.
///
/// A damaged log is printed up to the damage, which is then named; from the first record of a later segment on (log stat
/// lists them) --from prints what is behind it. With --json each line is an object; payload_hex has the
/// exact bytes, payload_text is null unless they are UTF-8.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  warpmail log cat journal/ --from 1000 --payload hex\n  \
    warpmail log cat journal/ --mailbox 3 --mailbox 5 --since 2026-01-31T12:00:00Z\n  \
    warpmail log cat journal/ --json | jq -c 'select(.tensor_bytes > 0) | [.sequence, .tensor_bytes]'")]
pub(super) struct Args {
    #[command(flatten)]
    dir: Dir,
    #[command(flatten)]
    filter: Filter,
    /// How payloads are shown
    #[arg(long, value_enum, default_value = "auto", conflicts_with = "json")]
    payload: Show,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &Args) -> Outcome {
    let mut reader = Reader::open(&args.dir.dir, args.filter.from.unwrap_or(0))?;
    // Not where it would come between the records.
    let bar = progress(|| total(&args.dir.dir), std::io::stdout().is_terminal());
    let mut out = stdout();
    let mut failed = None;
    while let Some(record) = reader.next() {
        bar.set_position(reader.bytes());
        match record {
            Ok(record) if args.filter.is_past(record.sequence) => break,
            Ok(record) if !args.filter.wants(&record) => {}
            Ok(record) => print(&mut out, &record, args.payload, args.json)?,
            Err(error) => failed = Some(error),
        }
    }
    out.flush()?;
    bar.finish_and_clear();
    if let Some(torn) = reader.torn() {
        eprintln!("warpmail log cat: {}", torn_text(torn));
    }
    failed.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
}

/// Prints one record, one line.
pub(super) fn print(out: &mut dyn Write, record: &Record, show: Show, as_json: bool) -> std::io::Result<()> {
    if as_json {
        serde_json::to_writer(&mut *out, &object(record))?;
        return writeln!(out);
    }
    writeln!(out, "{}", line(record, show))
}

fn time(wall_ns: u64) -> String {
    humantime::format_rfc3339_micros(UNIX_EPOCH + Duration::from_nanos(wall_ns)).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

fn line(record: &Record, show: Show) -> String {
    let r = record;
    let is_text = |text: &&str| !text.chars().any(|c| c.is_control() && !c.is_whitespace());
    let payload = match (show, std::str::from_utf8(&r.payload).ok().filter(is_text)) {
        (Show::None, _) => String::new(),
        (Show::Auto, Some(text)) => format!(" {text:?}"),
        (Show::Text, _) => format!(" \"{}\"", r.payload.escape_ascii()),
        (Show::Auto | Show::Hex, _) => format!(" {}", hex(&r.payload)),
    };
    let flags = if r.flags == 0 { String::new() } else { format!(" flags {:#x}", r.flags) };
    let tensor = if r.tensor.is_empty() { String::new() } else { format!(" + tensor of {} bytes", r.tensor.len()) };
    format!(
        "{} {} mailbox {} type {}{flags} {} bytes{tensor}{payload}",
        r.sequence,
        time(r.wall_ns),
        r.mailbox,
        r.msg_type,
        r.payload.len()
    )
}

fn object(record: &Record) -> serde_json::Value {
    let r = record;
    json!({
        "sequence": r.sequence, "mailbox": r.mailbox, "msg_type": r.msg_type, "flags": r.flags,
        "producer_ns": r.producer_ns, "wall_ns": r.wall_ns, "time": time(r.wall_ns), "synced": r.synced,
        "payload_bytes": r.payload.len(), "payload_hex": hex(&r.payload),
        "payload_text": std::str::from_utf8(&r.payload).ok(), "tensor_bytes": r.tensor.len(),
    })
}
