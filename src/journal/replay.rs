//! Putting journalled records back into mailboxes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::reader::Record;
use crate::error::Result;
use crate::port::Sender;

/// How fast records are put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// As fast as the mailboxes take them.
    #[default]
    Full,
    /// With the time between them that their producers' clock shows.
    Recorded,
}

/// What a replay did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Records put into a mailbox.
    pub pushed: u64,
    /// Records of mailboxes that no sender was given for.
    pub skipped: u64,
    /// The sequence of the last record looked at, 0 if there was none.
    pub last: u64,
}

/// Pushes records, in the log's order, into the sender that `senders` has for their mailbox; each waits up to `bound` for a
/// free slot. A [`Reader`](super::Reader), with any filter in between, is such an iterator.
///
/// # Errors
/// Those of the records; [`Timeout`](crate::Error::Timeout) if a mailbox stays full; `PayloadTooLong` if a mailbox has a
/// smaller stride than the one that was journalled. What was pushed before stays pushed.
pub fn replay(
    records: impl Iterator<Item = Result<Record>>,
    pace: Pace,
    senders: &mut HashMap<u32, Sender>,
    bound: Duration,
) -> Result<Replayed> {
    let mut done = Replayed::default();
    let mut first: Option<(u64, Instant)> = None;
    for record in records {
        let record = record?;
        done.last = record.sequence;
        let Some(sender) = senders.get_mut(&record.mailbox) else {
            done.skipped += 1;
            continue;
        };
        if pace == Pace::Recorded {
            let (begin_ns, begin) = *first.get_or_insert((record.producer_ns, Instant::now()));
            let due = Duration::from_nanos(record.producer_ns.saturating_sub(begin_ns));
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        sender.push(record.msg_type, &record.payload, bound)?;
        done.pushed += 1;
    }
    Ok(done)
}
