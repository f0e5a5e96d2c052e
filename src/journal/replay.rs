//! Putting journalled records back into mailboxes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::reader::Record;
use crate::abi;
use crate::error::Result;
use crate::port::Sender;

/// How fast records are put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// As fast as the mailboxes take them.
    #[default]
    Full,
    /// With the time between them that they had, as [`Tempo`] tells it.
    Recorded,
}

/// When records are due at the pace that they had.
///
/// The time between two is what their producers' clock shows. Where that clock cannot have gone on (another run began it
/// anew, or another machine), it is what the wall clock of the log shows.
#[derive(Debug, Clone)]
pub struct Tempo {
    max_gap: Duration,
    begin: Option<Instant>,
    /// Of the latest record.
    producer_ns: u64,
    wall_ns: u64,
    /// From the first record to the latest.
    elapsed: Duration,
}

impl Tempo {
    /// Records reach the log out of their producers' order by less than this, in nanoseconds, and later by less.
    const SLACK_NS: u64 = 1_000_000_000;

    /// With no more than `max_gap` between two records, if one is given.
    pub fn new(max_gap: Option<Duration>) -> Self {
        let max_gap = max_gap.unwrap_or(Duration::MAX);
        Tempo { max_gap, begin: None, producer_ns: 0, wall_ns: 0, elapsed: Duration::ZERO }
    }

    /// How long from now this record, which comes after those that were asked about before, should wait.
    pub fn due_in(&mut self, record: &Record) -> Duration {
        let begin = *self.begin.get_or_insert_with(|| {
            (self.producer_ns, self.wall_ns) = (record.producer_ns, record.wall_ns);
            Instant::now()
        });
        let wall = record.wall_ns.saturating_sub(self.wall_ns);
        let gap = match record.producer_ns.checked_sub(self.producer_ns) {
            Some(gap) if gap <= wall.saturating_add(Self::SLACK_NS) => gap,
            None if self.producer_ns - record.producer_ns < Self::SLACK_NS => 0,
            _ => {
                self.producer_ns = record.producer_ns;
                wall
            }
        };
        self.producer_ns = self.producer_ns.max(record.producer_ns);
        self.wall_ns = self.wall_ns.max(record.wall_ns);
        self.elapsed = self.elapsed.saturating_add(Duration::from_nanos(gap).min(self.max_gap));
        self.elapsed.saturating_sub(begin.elapsed())
    }
}

/// What a replay did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Records put into a mailbox.
    pub pushed: u64,
    /// Of them, those with a tensor that was made again in the sender's pool.
    pub tensors: u64,
    /// Records that point to a tensor whose bytes the log does not have; they were not pushed.
    pub without_tensor: u64,
    /// Records of mailboxes that no sender was given for.
    pub skipped: u64,
    /// The sequence of the last record looked at, 0 if there was none.
    pub last: u64,
}

/// Pushes records, in the log's order, into the sender that `senders` has for their mailbox; each waits up to `bound` for a
/// free slot. A [`Reader`](super::Reader), with any filter in between, is such an iterator. A tensor whose bytes are in the log
/// is made again in the pool of the sender's graph, which may have to wait for readers to release others, and posted.
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
    let mut tempo = Tempo::new(None);
    for record in records {
        let record = record?;
        done.last = record.sequence;
        let Some(sender) = senders.get_mut(&record.mailbox) else {
            done.skipped += 1;
            continue;
        };
        if pace == Pace::Recorded {
            std::thread::sleep(tempo.due_in(&record));
        }
        match record.descriptor()? {
            Some(descriptor) => {
                sender.post_again(
                    &descriptor,
                    &record.tensor,
                    &record.payload[size_of::<abi::wm_tensor>()..],
                    bound,
                )?;
                done.tensors += 1;
            }
            // Its address means nothing here.
            None if u32::from(record.msg_type) == abi::WM_TYPE_TENSOR => {
                done.without_tensor += 1;
                continue;
            }
            None => sender.push(record.msg_type, &record.payload, bound)?,
        }
        done.pushed += 1;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn dues(records: &[(u64, u64)], max_gap: Option<Duration>) -> Vec<u64> {
        let mut tempo = Tempo::new(max_gap);
        let due = |(producer_ms, wall_ms): &(u64, u64)| {
            let record = Record {
                sequence: 1,
                mailbox: 0,
                msg_type: 0,
                flags: 0,
                producer_ns: producer_ms * MS,
                wall_ns: wall_ms * MS,
                synced: 0,
                payload: Vec::new(),
                tensor: Vec::new(),
            };
            // The time that the test itself takes is far below the rounding.
            (tempo.due_in(&record).as_millis() as u64).div_ceil(1000)
        };
        records.iter().map(due).collect()
    }

    #[test]
    fn gaps_are_the_producers_and_where_their_clock_began_anew_the_logs() {
        let s = 1000;
        // One batch has one wall time.
        let one_run = [(0, 50 * s), (10 * s, 60 * s), (20 * s, 70 * s), (19_990, 70 * s), (30 * s, 80 * s)];
        assert_eq!(dues(&one_run, None), [0, 10, 20, 20, 30]);
        // Another run, an hour later, with a clock that began before, and one that began far behind.
        for restart in [0, 1_000_000 * s] {
            let runs = [(500 * s, 0), (510 * s, 10 * s), (restart, 3610 * s), (restart + 5 * s, 3615 * s)];
            assert_eq!(dues(&runs, None), [0, 10, 3610, 3615]);
            assert_eq!(dues(&runs, Some(Duration::from_secs(20))), [0, 10, 30, 35]);
            assert_eq!(dues(&runs, Some(Duration::ZERO)), [0, 0, 0, 0]);
        }
    }
}
