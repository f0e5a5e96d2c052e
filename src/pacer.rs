//! The thread that keeps every wait on the device bounded, and names handlers that do not return. It loads and stores mapped
//! memory and makes no driver call: a driver call could wait for the very lock that a waiting library holds.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, RecvTimeoutError, Sender};

use crate::error::{Error, Result};
use crate::memory::Memory;

/// A handler that runs longer than this is named in a warning.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// Runs until it is dropped.
pub(crate) struct Pacer {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    /// With `max_wait`, opens every door before it has been closed for that long.
    pub(crate) fn start(memory: Arc<Memory>, max_wait: Option<Duration>) -> Result<Self> {
        let (stop, stopped) = channel::bounded::<()>(0);
        let tick = max_wait.map_or(SUSPICIOUS / 10, |wait| wait / 2);
        let body = move || {
            let (mut warned, mut watched, mut due) = (false, Instant::now(), 0);
            while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
                if max_wait.is_some() {
                    open_doors(&memory, &mut due);
                }
                if watched.elapsed() >= SUSPICIOUS / 10 {
                    watched = Instant::now();
                    watch(&memory, &mut warned);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("warpmail-pacer".into())
            .spawn(body)
            .map_err(|e| Error::Unavailable { what: "a thread for the pacer", reason: e.to_string() })?;
        Ok(Pacer { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it waits for nothing but its own tick
        }
    }
}

/// T1 and T2 of the model: of the credits that have not begun, those that the driver had, or was about to have, at the last
/// tick already. The newer ones stay, so that whoever has news meanwhile finds one to ring for.
fn open_doors(memory: &Memory, due: &mut u64) {
    for n in memory.telemetry().launches..*due {
        memory.set_door(n, true);
    }
    *due = memory.enqueued();
}

/// Names a handler that has been running for suspiciously long, once.
fn watch(memory: &Memory, warned: &mut bool) {
    let slow = memory.stats().serving.into_iter().find(|s| s.for_ns > SUSPICIOUS.as_nanos() as u64);
    if let (Some(slow), false) = (&slow, *warned) {
        tracing::warn!(module = %slow.module, for_ms = slow.for_ns / 1_000_000, "a handler has not returned yet");
    }
    *warned = slow.is_some();
}
