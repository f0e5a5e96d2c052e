//! `warpmail log`: what is in a journal's log on disk, whether it is whole, and what to do if it is not.

mod cat;
mod check;
mod filter;
mod replay;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use warpmail::Error;
use warpmail::journal::Torn;

/// Reads, checks and mends a log: the directory that a journal writes its records to.
///
/// A log is a directory of segment files, NNNNNNNNNNNNNNNNNNNN.wmlog, each named after its first record. Records have
/// consecutive sequences from 1. cat, verify, stat and replay only read, and may be used while a writer is at work.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  warpmail log stat journal/\n  warpmail log cat journal/ --type 7 --from 1000 --to 1999\n  \
    warpmail log cat journal/ --json | jq -r 'select(.mailbox == 3) | .payload_text'\n  \
    warpmail log verify journal/ && echo whole\n  \
    warpmail log replay journal/ --threshold 0.8   # the lines that a run has read, looked at once more\n  warpmail log cut journal/          # says what would go\n  \
    warpmail log cut journal/ --yes\n\n\
    Exit codes: 0 the log is whole; 1 it is damaged, or something cannot be read or written (it is named); 2 wrong usage.\n\
    A torn end is no damage: a crash leaves it, nothing of it was acknowledged, and the next writer cuts it off.\n\
    The bytes and the rules are told in docs/journal-format.md."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print records, one a line
    Cat(cat::Args),
    /// Read everything and check it: checksums, sequences, segments
    Verify(check::Args),
    /// Say what the log holds, from its headers
    Stat(check::Args),
    /// Let logged lines pass the modules of warpmail run again, or give records out at the pace they had
    Replay(replay::Args),
    /// Give up everything behind the last valid record of a damaged log
    Cut(check::CutArgs),
}

pub(crate) fn execute(args: &Args) -> ExitCode {
    let (name, outcome) = match &args.command {
        Command::Cat(args) => ("cat", cat::execute(args)),
        Command::Verify(args) => ("verify", check::verify(args)),
        Command::Stat(args) => ("stat", check::stat(args)),
        Command::Replay(args) => ("replay", replay::execute(args)),
        Command::Cut(args) => ("cut", check::cut(args)),
    };
    match outcome {
        Ok(code) => code,
        Err(Failure::Run(message)) => {
            eprintln!("warpmail log {name}: {message}");
            ExitCode::FAILURE
        }
        Err(Failure::Log(error)) => {
            eprintln!("warpmail log {name}: {error}");
            ExitCode::FAILURE
        }
        // Whoever closes a pipe has seen enough: that is no error.
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(error)) => {
            eprintln!("warpmail log {name}: standard output cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why a command ended early.
enum Failure {
    Log(Error),
    Run(String),
    Output(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Log(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Failure::Output(error.into())
    }
}

type Outcome = Result<ExitCode, Failure>;

/// The directory that every command takes.
#[derive(clap::Args)]
struct Dir {
    /// Directory of the log
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

fn stdout() -> BufWriter<io::Stdout> {
    BufWriter::new(io::stdout())
}

fn print_json(value: &Value) -> Result<(), Failure> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

fn torn_text(torn: &Torn) -> String {
    format!(
        "after that a torn end: {} at offset {} of {}; nothing of it was acknowledged, the next writer cuts it off",
        torn.reason,
        torn.offset,
        torn.file.display()
    )
}

/// An error as the JSON commands tell it; place and sequence only if bytes are damaged.
fn error_json(error: &Error) -> Value {
    match error {
        Error::Damaged { file, offset, sequence, reason } => {
            json!({"error": error.to_string(), "file": file, "offset": offset, "sequence": sequence, "reason": reason})
        }
        _ => json!({"error": error.to_string()}),
    }
}
