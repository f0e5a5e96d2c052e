//! Bounded waits: without the interpreter's lock, and interrupted by signals.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::errors::{Refused, StateError, raise};

/// How long Ctrl-C may go unseen.
const SLICE: Duration = Duration::from_millis(20);
/// The longest timeout: more than a century is a mistake, and would not fit a clock.
const LONGEST: f64 = 3e9;

/// Whether the interpreter ends, and how many threads wait.
static ENDING: AtomicBool = AtomicBool::new(false);
static WAITERS: AtomicUsize = AtomicUsize::new(0);

/// From here on no wait comes back: a thread that then asked an ending interpreter for its lock would be killed in the
/// middle of it. Only daemon threads can be in one; the interpreter has joined all others before.
pub(crate) fn end_waits() {
    ENDING.store(true, Ordering::SeqCst);
    if WAITERS.load(Ordering::SeqCst) > 0 {
        // Those that looked at the flag before it was set come back meanwhile.
        std::thread::sleep(SLICE * 2);
    }
}

/// Seconds as Python has them.
pub(crate) fn bound(timeout: f64) -> PyResult<Duration> {
    if !(0.0..=LONGEST).contains(&timeout) {
        return Err(Refused::new_err(format!("timeout {timeout}: must be seconds, from 0 to {LONGEST}")));
    }
    Ok(Duration::from_secs_f64(timeout))
}

/// Calls `attempt` with slices of `bound` until it does not time out. Between two of them Python's signal handlers run, so that
/// Ctrl-C ends the wait.
pub(crate) fn in_slices<T: Send>(
    py: Python<'_>,
    bound: Duration,
    mut attempt: impl FnMut(Duration) -> warpmail::Result<T> + Send,
) -> PyResult<T> {
    let begin = Instant::now();
    loop {
        let left = bound.saturating_sub(begin.elapsed());
        let slice = || {
            WAITERS.fetch_add(1, Ordering::SeqCst);
            let outcome = attempt(left.min(SLICE));
            while ENDING.load(Ordering::SeqCst) {
                std::thread::park();
            }
            WAITERS.fetch_sub(1, Ordering::SeqCst);
            outcome
        };
        match py.allow_threads(slice) {
            Err(warpmail::Error::Timeout { what, .. }) if left <= SLICE => {
                return Err(raise(warpmail::Error::Timeout { what, waited: bound }));
            }
            Err(warpmail::Error::Timeout { .. }) => py.check_signals()?,
            other => return other.map_err(raise),
        }
    }
}

/// The inside of an object that one thread at a time may use. Never waits: whoever has it may be waiting for a record.
pub(crate) fn own<'a, T>(inner: &'a Mutex<T>, what: &str) -> PyResult<MutexGuard<'a, T>> {
    match inner.try_lock() {
        Ok(guard) => Ok(guard),
        Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => {
            Err(StateError::new_err(format!("another thread is using this {what}; one thread at a time may")))
        }
    }
}
