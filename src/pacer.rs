//! Keeping every wait on the device bounded, and naming handlers that do not return. Both are done by loads and stores of mapped
//! memory and without a driver call: a driver call could wait for the very lock that a waiting library holds.
//!
//! Whose turn it is: the launcher's thread opens the doors before it enqueues other launches behind them, so that one thread
//! wakes up for both. It may be stuck in the driver then; so a timer stands behind it, which it puts off each time, and when that
//! runs out the pacer's thread, which never enters the driver, opens the doors in its place until it comes back.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::{Errno, read};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::error::{Error, Result};
use crate::memory::Memory;

/// A handler that runs longer than this is named in a warning.
const SUSPICIOUS: Duration = Duration::from_secs(1);
/// How often handlers are looked at.
const WATCH: Duration = Duration::from_millis(100);

/// What is to be done every `period`, by whoever's turn it is.
pub(crate) struct Pace {
    memory: Arc<Memory>,
    /// None: nothing waits for a door.
    max_wait: Option<Duration>,
    timer: OwnedFd,
    stopped: AtomicBool,
    watched: Mutex<Watched>,
}

struct Watched {
    at: Instant,
    warned: bool,
}

impl Pace {
    pub(crate) fn new(memory: Arc<Memory>, max_wait: Option<Duration>) -> Result<Arc<Self>> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC);
        let unavailable = |e: Errno| Error::Unavailable { what: "a timer for the pacer", reason: e.to_string() };
        Ok(Arc::new(Pace {
            memory,
            max_wait,
            timer: timer.map_err(unavailable)?,
            stopped: AtomicBool::new(false),
            watched: Mutex::new(Watched { at: Instant::now(), warned: false }),
        }))
    }

    pub(crate) fn period(&self) -> Duration {
        self.max_wait.unwrap_or(WATCH)
    }

    /// T1 and T2 of the model: all credits that the driver has, or is about to have. Others are put behind them right after;
    /// until then whoever has news rings for a launch that is not enqueued yet, and waits for it.
    pub(crate) fn take_turn(&self) {
        if self.max_wait.is_some() {
            let enqueued = self.memory.enqueued();
            self.memory.set_paced(enqueued);
            for n in self.memory.telemetry().launches..enqueued {
                self.memory.set_door(n, true);
            }
            self.memory.pace_gates();
            self.memory.stir_runner();
        }
        self.watch();
    }

    /// From now on the pacer's thread takes the next turn if this is not said again within `wait`, and then each of the following
    /// ones.
    pub(crate) fn expect_within(&self, wait: Duration) {
        if !self.stopped.load(Ordering::Acquire) {
            self.set_timer(wait);
        }
    }

    fn set_timer(&self, wait: Duration) {
        let spec = |d: Duration| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) };
        let timer = Itimerspec { it_interval: spec(self.period()), it_value: spec(wait.max(Duration::from_nanos(1))) };
        // It fails for times that are none, and these are of a budget that was checked.
        if let Err(e) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer) {
            tracing::error!(error = %e, "the pacer's timer could not be set");
        }
    }

    /// Names a handler that has been running for suspiciously long, once.
    fn watch(&self) {
        let is_known = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            if watched.at.elapsed() < WATCH {
                return;
            }
            watched.at = Instant::now();
            watched.warned
        };
        let slow = self.memory.stats().serving.into_iter().find(|s| s.for_ns > SUSPICIOUS.as_nanos() as u64);
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).warned = slow.is_some();
        // The subscriber is the application's, and may take its time: without the lock, so that the other thread goes on.
        if let (Some(slow), false) = (slow, is_known) {
            tracing::warn!(module = %slow.module, for_ms = slow.for_ns / 1_000_000, "a handler has not returned yet");
        }
    }
}

/// The thread behind the launcher's. Runs until it is dropped.
pub(crate) struct Pacer {
    pace: Arc<Pace>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    pub(crate) fn start(pace: Arc<Pace>) -> Result<Self> {
        pace.expect_within(pace.period());
        let body = {
            let pace = pace.clone();
            move || {
                let mut times = [0; 8];
                while !pace.stopped.load(Ordering::Acquire) {
                    match read(&pace.timer, &mut times) {
                        Ok(_) if !pace.stopped.load(Ordering::Acquire) => pace.take_turn(),
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(e) => {
                            tracing::error!(error = %e, "the pacer's timer cannot be read; the launcher paces alone");
                            return;
                        }
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("warpmail-pacer".into())
            .spawn(body)
            .map_err(|e| Error::Unavailable { what: "a thread for the pacer", reason: e.to_string() })?;
        Ok(Pacer { pace, thread: Some(thread) })
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.pace.stopped.store(true, Ordering::Release);
        self.pace.set_timer(Duration::ZERO);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it waits for nothing but the timer
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Device, MailboxOptions, ModuleOptions};

    /// Nobody takes a turn: the pacer's thread does, again and again, until it is told to expect somebody.
    #[test]
    fn the_thread_behind_paces_when_nobody_does() {
        let mut graph = Builder::new(Device::twin());
        let host = graph.host("host").expect("the twin");
        let module = graph.resident("module", ModuleOptions::handler(1)).expect("the twin");
        graph.mailbox(host, module, MailboxOptions::slots(4)).expect("the twin");
        let memory = Arc::new(Memory::of_graph(graph).expect("the twin").0);
        let is_open = |credit| {
            let door = memory.door_of(credit).host as *const u64;
            // SAFETY: an aligned word of memory that outlives this.
            unsafe { crate::abi::wm_host_load_acquire(door) != 0 }
        };
        let wait_until_open = |credit| {
            let begin = Instant::now();
            while !is_open(credit) {
                assert!(begin.elapsed() < Duration::from_secs(60), "the door of credit {credit} is still closed");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        memory.publish_enqueued(2);
        let pace = Pace::new(memory.clone(), Some(Duration::from_millis(2))).expect("the twin");
        let pacer = Pacer::start(pace.clone()).expect("the twin");
        for _ in 0..3 {
            wait_until_open(0);
            wait_until_open(1);
            assert_eq!(memory.paced(), 2);
            assert!(!is_open(2), "a credit that the driver does not have");
            memory.set_door(0, false);
            memory.set_door(1, false);
        }
        wait_until_open(1);
        pace.expect_within(Duration::from_secs(3600));
        while is_open(1) {
            memory.set_door(1, false);
            std::thread::sleep(Duration::from_millis(20)); // a turn that had begun has ended
        }
        memory.publish_enqueued(3);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!is_open(2), "somebody else is expected");
        pace.take_turn();
        assert!(is_open(2));
        drop(pacer); // does not wait for an hour
    }
}
