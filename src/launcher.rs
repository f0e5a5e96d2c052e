//! The thread that keeps the arbiter running: it enqueues launches, two ahead, and does nothing else.
//!
//! With parking, a launch is a *credit*: it waits for its door. The steps C1-C5 and S1-S4 are those of the model
//! tests/model/park.pml; the other halves are csrc/protocol/park.hpp and bell.hpp.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};

use crate::abi::wm_arbiter_args;
use crate::backend::Launches;
use crate::error::{Error, Result};
use crate::memory::Memory;

/// Launches kept in the queue: the next begins when one ends, or when its door opens, without the host.
const AHEAD: u64 = 2;

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
    /// The next launch is the first, or the first after a pause: it waits for nobody.
    at_once: bool,
}

impl Launcher {
    pub(crate) fn new(memory: Arc<Memory>, args: wm_arbiter_args, launches: Box<dyn Launches>) -> Self {
        Launcher { memory, args, launches, launched: 0, at_once: true }
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
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Command::Resume) => (running, self.at_once) = (true, true),
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
        let outstanding = self.launches.outstanding()? as u64;
        let ended = self.memory.telemetry().launches_ended;
        if ended + outstanding < self.launched {
            return Err(Error::Failed("a launch of the arbiter left without running: it refused its arguments".into()));
        }
        // One may be running; its door is used again only by a credit that comes WM_DOORS later.
        for _ in outstanding..AHEAD {
            let n = self.launched;
            let door = (self.args.idle_spin_ns != 0).then(|| self.clear_door(n));
            self.launches.launch(&self.args, door)?; // C5
            self.launched += 1;
        }
        Ok(())
    }

    /// Makes credit n ready to be rung for. Returns its door's address.
    fn clear_door(&mut self, n: u64) -> u64 {
        self.memory.set_door(n, false); // C1
        self.memory.publish_credits(n + 1); // C2, C3: before the driver call, which may wait for somebody's lock
        if std::mem::take(&mut self.at_once) || self.memory.telemetry().wanted > n {
            self.memory.set_door(n, true); // C4
        }
        self.memory.door_address(n)
    }

    /// Opens the doors of all credits that have not begun.
    fn open_doors(&self) {
        for n in self.memory.telemetry().launches..self.launched {
            self.memory.set_door(n, true);
        }
    }

    /// Rings the stop doorbell and waits until nothing is outstanding.
    fn leave(&mut self, bound: Duration) -> Result<()> {
        self.memory.ring_stop(true); // S1; S2 is the release of the doors
        self.open_doors(); // S3
        let until = Instant::now() + bound;
        // S4
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
}
