//! Collecting what was released: by readers on the device through the table, by this process through one queue.
//!
//! Dropping a lease or a tensor pushes one entry to a lock-free queue and touches nothing else, so it may happen anywhere:
//! in a deleter, without an interpreter's lock, on any thread. Whoever calls a pool next does the work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam::queue::SegQueue;

use super::books::{Block, Core, State};
use crate::abi;
use crate::backend::StreamNote;
use crate::error::{Error, Result};

/// What to call when adopted memory came free.
pub(super) struct Done(pub(super) Box<dyn FnOnce() + Send>);

/// Shares of a lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shares {
    pub(super) row: u32,
    pub(super) epoch: u64,
    pub(super) shares: u64,
}

/// Something that was dropped.
#[derive(Debug, Clone, Copy)]
pub(super) enum Returned {
    /// A tensor, with its block.
    Tensor(u32),
    Shares(Shares),
    /// Shares that are in use by work on a stream of the caller's.
    After(Shares, u64),
}

/// Shares that come back when a stream has got so far.
pub(super) struct Noted {
    pub(super) note: StreamNote,
    shares: Shares,
}

/// Of all pools of the process: the pool of an entry lives as long as the entry, and never ends inside a drop.
static RETURNED: SegQueue<(Arc<Core>, Returned)> = SegQueue::new();

/// Only pushes.
pub(super) fn give_back(core: Arc<Core>, returned: Returned) {
    RETURNED.push((core, returned));
}

/// Does what the drops of tensors and leases, of all pools of this process, have left to do; for programs that no longer
/// call any pool. Returns how many blocks came free.
pub fn collect_tensors() -> usize {
    let mut ended = Vec::new();
    let freed = drain(&mut ended) + ended.len();
    call(ended);
    freed
}

/// Calls closures, outside all locks. A panic in one is reported and goes no further.
pub(super) fn call(ended: Vec<Done>) {
    for done in ended {
        if catch_unwind(AssertUnwindSafe(done.0)).is_err() {
            tracing::error!("the closure of adopted memory panicked");
        }
    }
}

/// Empties the queue as it is now; how many of the pools' own blocks came free.
fn drain(ended: &mut Vec<Done>) -> usize {
    let mut freed = 0;
    for _ in 0..RETURNED.len() {
        let Some((core, returned)) = RETURNED.pop() else { break };
        let mut state = core.lock();
        freed += match returned {
            Returned::Tensor(block) => core.let_go(&mut state, block, ended),
            Returned::Shares(shares) => core.take_back(&mut state, shares, ended).unwrap_or(0),
            Returned::After(shares, stream) => core.take_back_after(&mut state, shares, stream),
        };
        drop(state);
    }
    freed
}

impl Core {
    /// Collects: all that was dropped, and up to `rows` open leases. `thorough`: also asks the device itself.
    pub(super) fn collect(&self, rows: usize, thorough: bool) -> usize {
        let mut ended = Vec::new();
        let mut freed = drain(&mut ended);
        let mut state = self.lock();
        freed += self.look_at_streams(&mut state, &mut ended);
        let marks = if thorough { self.marks(&state) } else { Vec::new() };
        for _ in 0..rows.min(state.open.len()) {
            if state.cursor >= state.open.len() {
                state.cursor = 0;
            }
            let Some(&row) = state.open.get(state.cursor) else { break };
            let marked = marks.get(row as usize).copied().unwrap_or(0);
            let before = state.open.len();
            freed += self.look_at(&mut state, row, marked, &mut ended);
            // A lease that ended left its place to another one.
            state.cursor += usize::from(state.open.len() == before);
        }
        drop(state);
        freed += ended.len();
        call(ended);
        freed
    }

    /// What readers on the device have marked: the truth, where their mail may be late. Empty if it cannot be read.
    fn marks(&self, state: &State) -> Vec<u64> {
        let mut marks = vec![0; if state.open.is_empty() { 0 } else { state.rows.len() }];
        match self.device.backend.read_words(&mut marks, self.on_device.marks) {
            Ok(()) => marks,
            Err(_) => Vec::new(),
        }
    }

    /// Closes a lease if all its shares are back. `marked`: the row's mark, or 0.
    pub(super) fn look_at(&self, state: &mut State, row: u32, marked: u64, ended: &mut Vec<Done>) -> usize {
        let Some(lease) = &mut state.rows[row as usize] else { return 0 };
        // SAFETY: the table is this core's, and the state's lock makes this thread its only owner.
        let mut back = unsafe { abi::wm_host_lease_released(&self.on_host, row) };
        if marked >> abi::WM_LEASE_EPOCH_SHIFT == lease.epoch {
            back |= marked & ((1 << abi::WM_LEASE_EPOCH_SHIFT) - 1);
        }
        // A share that this process holds is not back, whatever others say.
        if lease.held != 0 || back & lease.shares != lease.shares {
            return 0;
        }
        if !self.witnessed(&mut lease.moments) {
            return 0;
        }
        let (block, place) = (lease.block, lease.place);
        // SAFETY: as above.
        unsafe { abi::wm_host_lease_close(&self.on_host, row) };
        state.rows[row as usize] = None;
        state.open.swap_remove(place);
        if let Some(moved) = state.open.get(place).copied()
            && let Some(moved) = &mut state.rows[moved as usize]
        {
            moved.place = place;
        }
        state.free_rows.push(row);
        state.counts.closed += 1;
        if let Some(block) = &mut state.blocks[block as usize] {
            block.leases -= 1;
        }
        self.end_if_unused(state, block, ended)
    }

    /// Shares that a lease of this process gives back.
    pub(super) fn take_back(&self, state: &mut State, s: Shares, ended: &mut Vec<Done>) -> Result<usize> {
        let stale = |why: &str| Error::StaleLease { lease: s.row, epoch: s.epoch, why: why.into() };
        let held = state
            .rows
            .get_mut(s.row as usize)
            .and_then(Option::as_mut)
            .filter(|lease| lease.epoch == s.epoch && lease.held & s.shares == s.shares);
        let Some(lease) = held else {
            state.counts.released_twice += 1;
            return Err(stale("these shares were given back before"));
        };
        lease.held &= !s.shares;
        // SAFETY: the table is this core's, and the state's lock makes this thread its only owner.
        let given = unsafe { abi::wm_host_lease_give_back(&self.on_host, s.row, s.epoch, s.shares) };
        if given != 0 {
            state.counts.released_twice += 1;
        }
        let freed = self.look_at(state, s.row, 0, ended);
        if given == 0 { Ok(freed) } else { Err(stale("a reader on the device had released them already")) }
    }

    /// The same when a stream of the caller's has done what is on it now.
    fn take_back_after(self: &Arc<Self>, state: &mut State, shares: Shares, stream: u64) -> usize {
        match self.device.backend.note(stream) {
            Ok(note) => state.noted.push(Noted { note, shares }),
            // A stream that is being captured: later.
            Err(Error::State(_)) => give_back(self.clone(), Returned::After(shares, stream)),
            Err(e) => tracing::warn!(error = %e, lease = shares.row, "a lease stays open: its stream cannot be asked"),
        }
        0
    }

    fn look_at_streams(&self, state: &mut State, ended: &mut Vec<Done>) -> usize {
        let mut freed = 0;
        let mut i = 0;
        while i < state.noted.len() {
            match self.device.backend.is_past(state.noted[i].note) {
                Ok(false) => i += 1,
                Ok(true) => {
                    let shares = state.noted.swap_remove(i).shares;
                    freed += self.take_back(state, shares, ended).unwrap_or(0);
                }
                Err(e) => {
                    let shares = state.noted.swap_remove(i).shares;
                    tracing::warn!(error = %e, lease = shares.row, "a lease stays open: its stream has failed");
                }
            }
        }
        for at in std::mem::take(&mut state.ending) {
            freed += self.end_if_unused(state, at, ended);
        }
        freed
    }

    /// A tensor lets go of its block.
    fn let_go(&self, state: &mut State, block: u32, ended: &mut Vec<Done>) -> usize {
        if let Some(block) = &mut state.blocks[block as usize] {
            block.tensors -= 1;
        }
        self.end_if_unused(state, block, ended)
    }

    fn end_if_unused(&self, state: &mut State, at: u32, ended: &mut Vec<Done>) -> usize {
        let unused = |b: &&mut Block| b.tensors == 0 && b.leases == 0;
        let Some(block) = state.blocks[at as usize].as_mut().filter(unused) else { return 0 };
        if !self.is_written(block) {
            // Nobody holds it: only a later collect comes here again.
            state.ending.push(at);
            return 0;
        }
        let Some(block) = state.blocks[at as usize].take() else { return 0 };
        state.free_blocks.push(at);
        match block.adopted {
            Some(done) => {
                ended.push(done);
                0
            }
            None => {
                state.store.give(block.address, block.bytes);
                1
            }
        }
    }
}
