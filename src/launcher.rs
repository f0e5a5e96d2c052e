//! The thread that keeps the arbiter running: it enqueues launches, two ahead, and does nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};

use crate::abi::wm_arbiter_args;
use crate::backend::Launches;
use crate::error::{Error, Result};
use crate::memory::Memory;

/// Launches kept in the queue: the next begins when one ends, without the host.
const AHEAD: usize = 2;
/// A handler that runs longer than this is named in a warning.
const SUSPICIOUS: Duration = Duration::from_secs(1);

pub(crate) enum Command {
    /// Let the arbiter leave and answer when it has.
    Pause(Duration, Sender<Result<()>>),
    /// Go on.
    Resume,
    /// As `Pause`, and end the thread.
    Stop(Duration, Sender<Result<()>>),
}

pub(crate) struct Launcher {
    memory: Arc<Memory>,
    args: wm_arbiter_args,
    launches: Box<dyn Launches>,
    launched: u64,
    warned: bool,
}

impl Launcher {
    pub(crate) fn new(memory: Arc<Memory>, args: wm_arbiter_args, launches: Box<dyn Launches>) -> Self {
        Launcher { memory, args, launches, launched: 0, warned: false }
    }

    /// Runs until told to stop. Gives the launches back when none is outstanding.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        let tick =
            Duration::from_nanos(self.args.residency_ns / 4).clamp(Duration::from_micros(50), Duration::from_millis(5));
        let mut running = true;
        let mut outcome = self.launches.adopt_thread();
        loop {
            if let Err(e) = outcome {
                tracing::error!(error = %e, "the arbiter's launches failed");
                self.memory.fail(e.to_string());
                running = false;
            }
            outcome = if running { self.top_up() } else { Ok(()) };
            match commands.recv_timeout(tick) {
                Err(RecvTimeoutError::Timeout) => self.watch(),
                Ok(Command::Resume) => running = true,
                Ok(Command::Pause(bound, answer)) => {
                    running = false;
                    let _ = answer.send(self.leave(bound));
                }
                Ok(Command::Stop(bound, answer)) => {
                    let left = self.leave(bound);
                    drop(self); // frees what the launches hold before the caller goes on
                    let _ = answer.send(left);
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn top_up(&mut self) -> Result<()> {
        let outstanding = self.launches.outstanding()?;
        let ended = self.memory.telemetry().launches_ended;
        if ended + (outstanding as u64) < self.launched {
            return Err(Error::Failed("a launch of the arbiter left without running: it refused its arguments".into()));
        }
        for _ in outstanding..AHEAD {
            self.launches.launch(&self.args)?;
            self.launched += 1;
        }
        Ok(())
    }

    /// Rings the stop doorbell and waits until nothing is outstanding.
    fn leave(&mut self, bound: Duration) -> Result<()> {
        self.memory.ring_stop(true);
        let until = Instant::now() + bound;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.launches.wait(left.min(Duration::from_millis(10))) {
                Ok(0) => break,
                Ok(_) if left.is_zero() => {
                    self.memory.abandon();
                    return Err(Error::Stuck { waited: bound, stuck: self.memory.stuck() });
                }
                Ok(_) => {}
                Err(e) => {
                    self.memory.fail(e.to_string());
                    return Err(e);
                }
            }
        }
        self.memory.ring_stop(false);
        Ok(())
    }

    /// Names a handler that has been running for suspiciously long, once. Reads memory only.
    fn watch(&mut self) {
        let slow = self.memory.stats().serving.into_iter().find(|s| s.for_ns > SUSPICIOUS.as_nanos() as u64);
        if let (Some(slow), false) = (&slow, self.warned) {
            tracing::warn!(module = %slow.module, for_ms = slow.for_ns / 1_000_000, "a handler has not returned yet");
        }
        self.warned = slow.is_some();
    }
}
