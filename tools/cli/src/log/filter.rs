//! Which records are wanted.

use std::time::{SystemTime, UNIX_EPOCH};

use warpmail::journal::Record;

/// All that are given must hold.
#[derive(clap::Args)]
pub(super) struct Filter {
    /// Only records of this mailbox; may be repeated
    #[arg(long, value_name = "N")]
    mailbox: Vec<u32>,
    /// Only records of this message type; may be repeated
    #[arg(long = "type", value_name = "N")]
    msg_type: Vec<u16>,
    /// First sequence; without it the oldest that is kept
    #[arg(long, value_name = "SEQUENCE", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) from: Option<u64>,
    /// Last sequence
    #[arg(long, value_name = "SEQUENCE", value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    /// Only records that the log took at this time or later, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    since: Option<SystemTime>,
    /// Only records that the log took before this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    until: Option<SystemTime>,
}

fn ns(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos())
}

impl Filter {
    /// Whether a record is wanted.
    pub(super) fn wants(&self, record: &Record) -> bool {
        let at = u128::from(record.wall_ns);
        (self.mailbox.is_empty() || self.mailbox.contains(&record.mailbox))
            && (self.msg_type.is_empty() || self.msg_type.contains(&record.msg_type))
            && self.since.is_none_or(|since| at >= ns(since))
            && self.until.is_none_or(|until| at < ns(until))
    }

    /// Whether no record from this sequence on is wanted.
    pub(super) fn is_past(&self, sequence: u64) -> bool {
        self.to.is_some_and(|to| sequence > to)
    }
}
