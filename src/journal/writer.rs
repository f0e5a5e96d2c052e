//! The journal's last thread: batches to the sink, and word of what is durable to the host and to modules.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver as Steps, RecvTimeoutError, Sender as ToWriter};

use super::drain::{Asked, Shared, Step, locked};
use super::drained::{Drained, Run};
use super::sink::{Position, Sink};
use crate::abi;
use crate::error::{Error, Result};
use crate::memory::Memory;

/// Between attempts to write a batch that a full disk refused.
const RETRY: Duration = Duration::from_millis(20);

/// Writes batches to the sink, and tells what is durable.
pub(super) struct Writer {
    memory: Arc<Memory>,
    shared: Arc<Shared>,
    /// Without the journal an arbiter whose taps block would stand still for ever.
    blocks: bool,
    /// What was written and is not known to be durable, each with the sequence of its last record.
    behind: VecDeque<(u64, Run)>,
    /// Written batches, for their memory.
    used: ToWriter<Drained>,
    /// Of each mailbox, what became durable last; and whether, and which, since it was told.
    newest: Vec<u64>,
    changed: Vec<bool>,
    which: Vec<u32>,
}

impl Writer {
    pub(super) fn new(memory: Arc<Memory>, shared: Arc<Shared>, blocks: bool, used: ToWriter<Drained>) -> Self {
        let n = memory.handles.len();
        let (newest, changed) = (vec![0; n], vec![false; n]);
        Writer { memory, shared, blocks, behind: VecDeque::new(), used, newest, changed, which: Vec::new() }
    }

    pub(super) fn run(&mut self, mut sink: Box<dyn Sink>, steps: &Steps<Step>) {
        let _span = tracing::info_span!("journal").entered();
        loop {
            let wait = sink.due_in().unwrap_or(Duration::from_millis(200));
            let mut asked = None;
            let outcome = match steps.recv_timeout(wait) {
                Ok(Step::Write(mut batch)) => {
                    let outcome = self.write(sink.as_mut(), &mut batch);
                    batch.clear(); // gives pinned memory back
                    let _ = self.used.try_send(batch);
                    outcome
                }
                Ok(Step::Commit(by)) => {
                    asked = Some(by);
                    sink.commit().map(Some)
                }
                Err(RecvTimeoutError::Timeout) => sink.tick().map(|_| None),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.note_durable(sink.durable());
            // The counts are right before anybody is told.
            match (outcome, asked) {
                (Ok(Some(position)), Some(by)) => drop(by.send(Ok(position))),
                (Ok(_), _) => {}
                (Err(e), by) => return self.fail(&e, by, steps),
            }
        }
        let ended = sink.commit();
        match ended.and_then(|position| Ok((position, sink.finish()?))) {
            Ok((position, durable)) => {
                self.note_durable(durable);
                *locked(&self.shared.ended) = Some(position);
            }
            Err(e) => self.fail(&e, None, steps),
        }
    }

    fn write(&mut self, sink: &mut dyn Sink, batch: &mut Drained) -> Result<Option<Position>> {
        if let Err(e) = batch.wait() {
            self.lose(batch.runs.iter().copied());
            return Err(e);
        }
        loop {
            match sink.append(&mut batch.records) {
                Ok(sequences) => {
                    let mut end = *sequences.start() - 1;
                    self.behind.extend(batch.runs.iter().map(|run| {
                        end += run.count;
                        (end, *run)
                    }));
                    return Ok(None);
                }
                // Space may come back: the batch waits, and those behind it, up to the arbiter.
                Err(Error::Io { .. }) if !self.shared.ending.load(Ordering::Acquire) => {
                    if self.shared.retries.fetch_add(1, Ordering::Relaxed) == 0 {
                        tracing::warn!("the journal cannot write; records wait until it can");
                    }
                    std::thread::sleep(RETRY);
                }
                Err(e) => {
                    self.lose(batch.runs.iter().copied());
                    return Err(e);
                }
            }
        }
    }

    /// Publishes what is durable now, to the host and to the modules.
    fn note_durable(&mut self, durable: u64) {
        while let Some((end, run)) = self.behind.front_mut() {
            // How many of it are not; its first sequence is end - count + 1.
            let left = end.saturating_sub(durable);
            if left >= run.count {
                break;
            }
            let (mailbox, known) = (run.mailbox, run.count - left);
            self.newest[mailbox as usize] = run.last - left;
            run.count = left;
            if left == 0 {
                self.behind.pop_front();
            }
            self.shared.counts.keep(mailbox, known);
            if !std::mem::replace(&mut self.changed[mailbox as usize], true) {
                self.which.push(mailbox);
            }
        }
        for mailbox in self.which.drain(..) {
            self.changed[mailbox as usize] = false;
            self.memory.publish_durable(mailbox as usize, self.newest[mailbox as usize]);
        }
    }

    fn lose(&self, runs: impl Iterator<Item = Run>) {
        for run in runs {
            self.shared.counts.lose(run.mailbox, run.count);
        }
    }

    /// The sink takes no more: says so, and counts what still comes.
    fn fail(&mut self, error: &Error, asked: Option<Asked>, steps: &Steps<Step>) {
        tracing::error!(%error, "the journal has failed");
        *locked(&self.shared.failed) = Some(error.clone());
        let behind = std::mem::take(&mut self.behind);
        self.lose(behind.into_iter().map(|(_, run)| run));
        for mailbox in 0..self.newest.len() {
            self.memory.publish_durable(mailbox, self.newest[mailbox] | abi::WM_DURABLE_ENDED);
        }
        if self.blocks {
            self.memory.fail(format!("the journal: {error}"));
        }
        let tell = |by: Asked| drop(by.send(Err(error.clone())));
        asked.into_iter().for_each(tell);
        for step in steps {
            match step {
                Step::Write(batch) => self.lose(batch.runs.iter().copied()),
                Step::Commit(by) => tell(by),
            }
        }
    }
}
