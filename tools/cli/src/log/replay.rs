//! `warpmail log replay`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use indicatif::ProgressBar;
use warpmail::Error;
use warpmail::journal::{Reader, Record, Tempo};

use super::cat::{Show, print};
use super::check::total;
use super::filter::Filter;
use super::{Dir, Failure, Outcome, stdout, torn_text};
use crate::run::{self, Looking, progress};

const COMMAND: &str = "log replay";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Into {
    /// The modules of warpmail run, as if their lines were read again: results on standard output
    Modules,
    /// Standard output, as warpmail log cat prints records
    Stdout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pace {
    /// As fast as they are taken
    Full,
    /// With the time between them that they had
    Recorded,
}

/// Lets what a log holds happen again.
///
/// By default the lines that warpmail run has read and logged go through its modules once more, with the options of this
/// command: another threshold, another memory, another machine. The log's runs follow each other in one memory; results
/// name the files of then. With --into stdout, records of any log are printed, which at the recorded pace is a stream
/// for another program. The log is only read.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  warpmail log replay journal/ --threshold 0.8\n  \
    warpmail log replay journal/ --from 120000 --all --json | jq .summary\n  \
    warpmail log replay journal/ --into stdout --json --pace recorded --max-gap 2 --type 5 | ./dashboard\n\n\
    The pace is that of the producers' clock; where that began anew, with another run, that of the wall clock.\n\
    With modules, --type, --mailbox, --since and --until choose lines by their last record, and --from and --to as well;\n\
    the log is read from its beginning all the same, for the names of files.\n\
    Exit codes as those of warpmail run: 130 for Ctrl-C, with the results so far.")]
pub(super) struct Args {
    #[command(flatten)]
    dir: Dir,
    #[command(flatten)]
    filter: Filter,
    /// Where the records go
    #[arg(long, value_enum, default_value = "modules")]
    into: Into,
    /// How fast
    #[arg(long, value_enum, default_value = "full")]
    pace: Pace,
    /// The longest wait between two records at the recorded pace, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_gap)]
    max_gap: Option<Duration>,
    #[command(flatten)]
    looking: Looking,
    /// Print JSON: with modules one object as warpmail run --json gives it, else one object a record
    #[arg(long)]
    json: bool,
}

fn parse_gap(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| "must be a number of seconds, 0 or more".into())
}

/// The records of a log that are wanted, when they are due.
struct Replayed<'a> {
    reader: Reader,
    filter: &'a Filter,
    tempo: Option<Tempo>,
    bar: ProgressBar,
}

impl<'a> Replayed<'a> {
    fn new(args: &'a Args, from: u64, bar: ProgressBar) -> Result<Self, Error> {
        let tempo = (args.pace == Pace::Recorded).then(|| Tempo::new(args.max_gap));
        Ok(Replayed { reader: Reader::open(&args.dir.dir, from)?, filter: &args.filter, tempo, bar })
    }
}

impl run::Records for Replayed<'_> {
    fn next(&mut self) -> Option<Result<Record, Error>> {
        let record = self.reader.next();
        self.bar.set_position(self.reader.bytes());
        match record {
            Some(Ok(record)) if self.filter.is_past(record.sequence) => None,
            other => other,
        }
    }

    fn bytes(&self) -> u64 {
        self.reader.bytes()
    }

    fn wants(&self, record: &Record) -> bool {
        self.filter.from.is_none_or(|from| record.sequence >= from) && self.filter.wants(record)
    }

    fn due_in(&mut self, record: &Record) -> Duration {
        self.tempo.as_mut().map_or(Duration::ZERO, |tempo| tempo.due_in(record))
    }
}

pub(super) fn execute(args: &Args) -> Outcome {
    if let Some(usage) = args.looking.contradicts(COMMAND) {
        return Ok(usage);
    }
    let bar = progress(|| total(&args.dir.dir), args.looking.quiet);
    if args.into == Into::Modules {
        // A damaged log ends the replay with the damage, named, as it ends cat.
        let records = Replayed::new(args, 0, bar.clone())?;
        return run::replay(COMMAND, &args.looking, args.json, bar, records).map_err(Failure::Run);
    }
    let mut records = Replayed::new(args, args.filter.from.unwrap_or(0), bar)?;
    let mut out = stdout();
    while let Some(record) = run::Records::next(&mut records) {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                out.flush()?;
                return Err(error.into());
            }
        };
        if run::Records::wants(&records, &record) {
            let due = run::Records::due_in(&mut records, &record);
            if !due.is_zero() {
                // Whoever reads has what was due before.
                out.flush()?;
                std::thread::sleep(due);
            }
            print(&mut out, &record, Show::Auto, args.json)?;
        }
    }
    out.flush()?;
    if let Some(torn) = records.reader.torn() {
        eprintln!("warpmail {COMMAND}: {}", torn_text(torn));
    }
    Ok(ExitCode::SUCCESS)
}
