//! An arbiter that is a thread of the host: the twin's, and the one on the CPU. The thread runs launches one after the other.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use crossbeam::utils::Backoff;

use super::cuda::Event;
use super::{Door, Launches};
use crate::abi::{self, wm_arbiter_args};
use crate::error::{Error, Result};
use crate::wait::deadline;

/// A launch and the door that it waits for.
type Credit = (wm_arbiter_args, Option<Door>);

pub(crate) struct ThreadLaunches {
    queue: Option<Sender<Credit>>,
    results: Receiver<Result<()>>,
    outstanding: usize,
    thread: Option<JoinHandle<()>>,
    adopt: fn() -> Result<()>,
    /// Where its grants run on a GPU.
    pub(super) server_events: Vec<Arc<Event>>,
}

impl ThreadLaunches {
    /// `arbiter` is one launch; all are made by one thread of this name. `adopt` is what whoever asks for launches does first.
    pub(crate) fn start(
        name: &str,
        adopt: fn() -> Result<()>,
        arbiter: impl FnMut(&wm_arbiter_args) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (queue, work) = channel::unbounded::<Credit>();
        let (ended, results) = channel::unbounded();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || run(arbiter, &work, &ended))
            .map_err(|e| Error::Unavailable { what: "a thread for the arbiter", reason: e.to_string() })?;
        Ok(ThreadLaunches {
            queue: Some(queue),
            results,
            outstanding: 0,
            thread: Some(thread),
            adopt,
            server_events: Vec::new(),
        })
    }
}

/// What the GPU's front end does: waits until the door is open. Spins a little, then sleeps longer and longer.
pub(super) fn wait_for_door(door: Door) {
    let backoff = Backoff::new();
    let mut nap = Duration::from_micros(20);
    // SAFETY: an aligned word of the runtime's pinned memory, which is kept until this launch has been collected. Bounded:
    // the pacer opens every door within max_wait, and a stop opens all.
    while unsafe { abi::wm_host_load_acquire(door.host as *const u64) } == 0 {
        if backoff.is_completed() {
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_micros(500));
        } else {
            backoff.snooze();
        }
    }
}

fn run(mut arbiter: impl FnMut(&wm_arbiter_args) -> Result<()>, work: &Receiver<Credit>, ended: &Sender<Result<()>>) {
    let mut broken: Option<Error> = None;
    for (args, door) in work {
        // A launch that failed left nothing that another could take up.
        let outcome = match &broken {
            Some(error) => Err(error.clone()),
            None => {
                if let Some(door) = door {
                    wait_for_door(door);
                }
                arbiter(&args)
            }
        };
        broken = broken.or(outcome.as_ref().err().cloned());
        if ended.send(outcome).is_err() {
            return;
        }
    }
}

/// What an arbiter's C function returned, as a result.
pub(crate) fn launched(status: i32) -> Result<()> {
    match status {
        0 => Ok(()),
        s => Err(Error::Failed(format!("the host's arbiter refused its arguments or lacked memory (status {s})"))),
    }
}

impl Launches for ThreadLaunches {
    fn adopt_thread(&mut self) -> Result<()> {
        (self.adopt)()
    }

    fn server_events(&self) -> Vec<Arc<Event>> {
        self.server_events.clone()
    }

    fn launch(&mut self, args: &wm_arbiter_args, door: Option<Door>) -> Result<()> {
        let gone = || Error::Failed("the arbiter's thread has ended".into());
        self.queue.as_ref().ok_or_else(gone)?.send((*args, door)).map_err(|_| gone())?;
        self.outstanding += 1;
        Ok(())
    }

    fn outstanding(&mut self) -> Result<usize> {
        while let Ok(result) = self.results.try_recv() {
            self.outstanding -= 1;
            result?;
        }
        Ok(self.outstanding)
    }

    fn wait(&mut self, bound: Duration) -> Result<usize> {
        let until = deadline(bound);
        if self.outstanding()? > 0
            && let Ok(result) = self.results.recv_deadline(until)
        {
            self.outstanding -= 1;
            result?;
        }
        self.outstanding()
    }
}

impl Drop for ThreadLaunches {
    fn drop(&mut self) {
        self.queue = None;
        // A launch that does not end keeps its thread: joining it would be a wait without a bound.
        if self.outstanding == 0
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
