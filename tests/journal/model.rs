//! What a log must hold after a crash, and a check that it does.

use std::sync::Arc;

use fastrand::Rng;
use warpmail::Error;
use warpmail::journal::disk::Disk;
use warpmail::journal::{Entry, Log, Reader, Recovered};

use crate::sim::{Content, Note};

/// Everything that may be in the log, and how much of it must be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    /// Content of record `i + 1`, of the batches that the log took.
    pub(crate) taken: Vec<Content>,
    /// Batches behind them that it was given since and did not take. A crash may leave a prefix of one of them.
    attempts: Vec<Vec<Content>>,
    /// Up to here everything was acknowledged.
    pub(crate) durable: u64,
}

impl Model {
    pub(crate) fn note(&mut self, note: &Note) {
        match note {
            Note::Begin(batch) => self.attempts.push(batch.clone()),
            Note::Taken => {
                self.taken.extend(self.attempts.pop().unwrap_or_default());
                self.attempts.clear();
            }
            Note::Durable(sequence) => self.durable = self.durable.max(*sequence),
            Note::Opened(last, found) => {
                self.taken.truncate(*last as usize - found.len());
                self.taken.extend_from_slice(found);
                self.attempts.clear();
                self.durable = *last;
            }
        }
    }

    /// Compares a log that was just opened with what must be there, and says what that makes of the model. `first` is the
    /// oldest sequence that retention had left.
    pub(crate) fn opened(
        &self,
        disk: &Arc<dyn Disk>,
        log: &Log,
        recovered: &Recovered,
        first: u64,
    ) -> Result<Note, String> {
        let (last, taken) = (recovered.last, self.taken.len());
        if last < self.durable {
            return Err(format!("{last} is the last record and {} was durable", self.durable));
        }
        if recovered.first > first {
            return Err(format!("{} is the first record and {first} should be", recovered.first));
        }
        // Retention may have been at work since.
        let records = read(disk, log.first(), last)?;
        let begin = log.first() as usize - 1;
        let known = records.len().min(taken.saturating_sub(begin));
        let found = &records[known..];
        if let Some(i) = (0..known).find(|i| records[*i] != self.taken[begin + i]) {
            return Err(format!("record {} is not what was written", begin + i + 1));
        }
        if !found.is_empty() && !self.attempts.iter().any(|batch| batch.starts_with(found)) {
            return Err(format!("the {} records after {taken} are of no batch", found.len()));
        }
        Ok(Note::Opened(last, found.to_vec()))
    }
}

/// The records of a log, which must be these.
pub(crate) fn read(disk: &Arc<dyn Disk>, first: u64, last: u64) -> Result<Vec<Content>, String> {
    let mut records = Vec::new();
    for record in Reader::open_on(disk.clone(), 0).map_err(text)? {
        let r = record.map_err(text)?;
        let due = first + records.len() as u64;
        if r.sequence != due {
            return Err(format!("record {} where {due} should be", r.sequence));
        }
        records.push((r.mailbox, r.msg_type, r.payload, r.tensor));
    }
    let next = first + records.len() as u64;
    if next == last + 1 { Ok(records) } else { Err(format!("the reader ended before {next} and the log has {last}")) }
}

pub(crate) fn text(e: Error) -> String {
    e.to_string()
}

/// A record with bytes of its own: `tag` makes it unlike any other.
pub(crate) fn content(rng: &mut Rng, tag: u64, longest: usize) -> Content {
    let mut payload: Vec<u8> = tag.to_le_bytes().to_vec();
    let len = rng.usize(..=longest);
    payload.extend(std::iter::repeat_with(|| rng.u8(..)).take(len));
    let tensor_len = if rng.u8(..4) == 0 { rng.usize(..=longest) } else { 0 };
    let tensor = std::iter::repeat_with(|| rng.u8(..)).take(tensor_len).collect();
    (rng.u32(..8), rng.u16(..8), payload, tensor)
}

pub(crate) fn entries(contents: &[Content]) -> Vec<Entry<'_>> {
    let entry = |c| {
        let (mailbox, msg_type, payload, tensor): &Content = c;
        Entry { mailbox: *mailbox, msg_type: *msg_type, payload, tensor, ..Entry::default() }
    };
    contents.iter().map(entry).collect()
}
