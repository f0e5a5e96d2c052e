//! A runtime as C threads share it: calls that change it one at a time, telemetry past them.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use super::fault::{Fault, Result};
use super::sys;
use crate::memory::Memory;
use crate::port::Pause;
use crate::runtime::{Runtime, State};

pub(super) struct Cell {
    /// For calls that need no turn: it lives as long as anybody looks at it.
    pub(super) memory: Arc<Memory>,
    /// `WARPMAIL_STATE_*` as the last call left it.
    state: AtomicU32,
    /// None once destroyed.
    runtime: Mutex<Option<Runtime>>,
}

thread_local! {
    /// The quiesces that this thread is inside of: whose, and the runtime as its closure may see it.
    static QUIET: RefCell<Vec<(*const Cell, *const Runtime)>> = const { RefCell::new(Vec::new()) };
}

impl Cell {
    pub(super) fn new(runtime: Runtime) -> Arc<Self> {
        let memory = runtime.memory().clone();
        let state = AtomicU32::new(state_of(runtime.state()));
        Arc::new(Cell { memory, state, runtime: Mutex::new(Some(runtime)) })
    }

    pub(super) fn state(&self) -> u32 {
        if self.memory.failure().is_some() {
            return sys::WARPMAIL_STATE_FAILED;
        }
        self.state.load(Ordering::Relaxed)
    }

    /// A call that changes the runtime. Waits up to `bound` for its turn, and hands on what is left of it.
    pub(super) fn change<T>(
        &self,
        bound: Duration,
        call: impl FnOnce(&mut Runtime, Duration) -> Result<T>,
    ) -> Result<T> {
        let (mut turn, left) = self.turn(bound)?;
        let runtime = turn.as_mut().ok_or_else(destroyed)?;
        let result = call(runtime, left);
        self.state.store(state_of(runtime.state()), Ordering::Relaxed);
        result
    }

    /// A call that only looks: one at a time as well, but allowed inside this thread's own quiesce.
    pub(super) fn look<T>(&self, call: impl FnOnce(&Runtime) -> Result<T>) -> Result<T> {
        match self.quiet() {
            // SAFETY: the entry is this thread's and is taken away before the quiesce that lent the reference goes on,
            // further up this very stack.
            Some(runtime) => call(unsafe { &*runtime }),
            None => call(self.turn(Duration::ZERO)?.0.as_ref().ok_or_else(destroyed)?),
        }
    }

    /// Runs `call` inside a quiesce of this thread.
    pub(super) fn while_quiet<T>(&self, runtime: &Runtime, call: impl FnOnce() -> T) -> T {
        struct Leave<'a>(&'a Cell);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                QUIET.with_borrow_mut(Vec::pop);
                self.0.state.store(sys::WARPMAIL_STATE_RUNNING, Ordering::Relaxed);
            }
        }
        QUIET.with_borrow_mut(|quiet| quiet.push((self, runtime)));
        self.state.store(sys::WARPMAIL_STATE_QUIET, Ordering::Relaxed);
        let _leave = Leave(self);
        call()
    }

    /// Takes the runtime out for its end, after `agree` has let go of the handle.
    pub(super) fn take(&self, agree: impl FnOnce() -> Result<()>) -> Result<Runtime> {
        let (mut turn, _) = self.turn(Duration::ZERO)?;
        if turn.is_none() {
            return Err(destroyed());
        }
        agree()?;
        turn.take().ok_or_else(destroyed)
    }

    fn quiet(&self) -> Option<*const Runtime> {
        let this: *const Cell = self;
        QUIET.with_borrow(|quiet| quiet.iter().find(|(cell, _)| *cell == this).map(|(_, runtime)| *runtime))
    }

    /// The runtime, and what is left of the bound: all of it if nobody was inside.
    fn turn(&self, bound: Duration) -> Result<(MutexGuard<'_, Option<Runtime>>, Duration)> {
        if self.quiet().is_some() {
            let text = "inside a quiesce of this runtime: only states, statistics and handles can be asked for";
            return Err(Fault::new(sys::WARPMAIL_BAD_STATE, text));
        }
        let begin = Instant::now();
        let (mut pause, mut left) = (Pause::new(), bound);
        loop {
            match self.runtime.try_lock() {
                Ok(turn) => return Ok((turn, left)),
                // A call that panicked was reported; what it left is what the next call finds.
                Err(TryLockError::Poisoned(poisoned)) => return Ok((poisoned.into_inner(), left)),
                Err(TryLockError::WouldBlock) => pause.wait(),
            }
            left = bound.saturating_sub(begin.elapsed());
            if left.is_zero() {
                let text = format!("another thread is inside a call with this runtime (waited {bound:?})");
                return Err(Fault::new(sys::WARPMAIL_BUSY, text));
            }
        }
    }
}

fn destroyed() -> Fault {
    Fault::new(sys::WARPMAIL_STALE_HANDLE, "this warpmail_runtime was destroyed while the call waited for its turn")
}

fn state_of(state: State) -> u32 {
    match state {
        State::Ready => sys::WARPMAIL_STATE_READY,
        State::Running => sys::WARPMAIL_STATE_RUNNING,
        State::Waiting => sys::WARPMAIL_STATE_WAITING,
        State::Quiet => sys::WARPMAIL_STATE_QUIET,
        State::Stopped => sys::WARPMAIL_STATE_STOPPED,
        State::Failed => sys::WARPMAIL_STATE_FAILED,
    }
}
