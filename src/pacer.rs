//! The thread that keeps every wait on the device bounded, and names handlers that do not return. It loads and stores mapped
//! memory and makes no driver call: a driver call could wait for the very lock that a waiting library holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::memory::Memory;

/// A handler that runs longer than this is named in a warning.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// Runs until it is dropped.
pub(crate) struct Pacer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    /// With `max_wait`, opens all doors that often, and wakes those who enqueue launches each time.
    pub(crate) fn start(memory: Arc<Memory>, max_wait: Option<Duration>, launcher: Thread) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let tick = max_wait.unwrap_or(SUSPICIOUS / 10);
        let body = move || {
            let (mut warned, mut watched) = (false, Instant::now());
            loop {
                std::thread::park_timeout(tick); // a channel would spin for a while first, every time
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                if max_wait.is_some() {
                    open_doors(&memory);
                    launcher.unpark();
                    memory.stir_runner();
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
        Ok(Pacer { stop, thread: Some(thread) })
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join(); // it waits for nothing but its own tick
        }
    }
}

/// T1 and T2 of the model: all credits that the driver has, or is about to have. The launcher, which is woken right after,
/// puts others behind them; until then whoever has news rings for a launch that is not enqueued yet, and waits for it.
fn open_doors(memory: &Memory) {
    let enqueued = memory.enqueued();
    memory.set_paced(enqueued);
    for n in memory.telemetry().launches..enqueued {
        memory.set_door(n, true);
    }
    memory.pace_gates();
}

/// Names a handler that has been running for suspiciously long, once.
fn watch(memory: &Memory, warned: &mut bool) {
    let slow = memory.stats().serving.into_iter().find(|s| s.for_ns > SUSPICIOUS.as_nanos() as u64);
    if let (Some(slow), false) = (&slow, *warned) {
        tracing::warn!(module = %slow.module, for_ms = slow.for_ns / 1_000_000, "a handler has not returned yet");
    }
    *warned = slow.is_some();
}
