//! The books of a pool: blocks, open leases, and who holds them.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use super::blocks::Store;
use super::collect::{Done, Noted};
use super::descriptor::TensorDescriptor;
use super::hold::Tensor;
use super::report::Counts;
use super::witness::{Moments, Witness};
use crate::abi;
use crate::backend::{Backend, Pinned, StreamNote};
use crate::device::Device;
use crate::wait::deadline;

/// What leases and tensors keep alive.
pub(crate) struct Core {
    pub(super) device: Device,
    pub(super) limit: u64,
    pub(super) poison: bool,
    pub(super) pinned: Pinned,
    pub(super) marks: (u64, usize),
    /// The table with addresses as the device uses them.
    pub(super) on_device: abi::wm_leases,
    /// The same with the host's; its marks are the device's own.
    pub(super) on_host: abi::wm_leases,
    pub(super) state: Mutex<State>,
    pub(super) witnesses: Mutex<Vec<Weak<dyn Witness>>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("limit", &self.limit).field("leases", &self.on_host.n_rows).finish()
    }
}

pub(super) struct State {
    pub(super) store: Store,
    pub(super) rows: Vec<Option<Row>>,
    pub(super) free_rows: Vec<u32>,
    /// Rows with an open lease, in no order.
    pub(super) open: Vec<u32>,
    /// Where in `open` the next look begins.
    pub(super) cursor: usize,
    pub(super) blocks: Vec<Option<Block>>,
    pub(super) free_blocks: Vec<u32>,
    pub(super) noted: Vec<Noted>,
    /// Blocks that nothing holds any more but work on streams that still writes them.
    pub(super) ending: Vec<u32>,
    pub(super) counts: Counts,
}

/// An open lease.
pub(super) struct Row {
    pub(super) epoch: u64,
    /// All of its shares, a bit each.
    pub(super) shares: u64,
    /// Those that a [`Lease`] of this process stands for.
    pub(super) held: u64,
    pub(super) block: u32,
    /// For each share, the graph in whose mailboxes it travels; 0: a kernel of the caller's has it.
    pub(super) via: [u64; abi::WM_MAX_SHARES as usize],
    /// Set when all shares are back and somebody has still to see its records.
    pub(super) moments: Option<Moments>,
    pub(super) since: Instant,
    /// Its place in `State::open`.
    pub(super) place: usize,
}

/// Memory that something holds.
pub(super) struct Block {
    pub(super) address: u64,
    pub(super) bytes: u64,
    pub(super) label: Box<str>,
    /// None: the pool's own.
    pub(super) adopted: Option<Done>,
    /// What has to be done before the content is what was posted: see [`Lease::written_on`](super::Lease::written_on).
    pub(super) writers: Vec<StreamNote>,
    pub(super) tensors: u32,
    pub(super) leases: u32,
    pub(super) since: Instant,
}

impl Core {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Enters a block into the books, with one tensor that holds it.
    pub(super) fn hold(
        self: &Arc<Self>,
        mut descriptor: abi::wm_tensor,
        address: u64,
        bytes: u64,
        label: &str,
        adopted: Option<Done>,
    ) -> Tensor {
        descriptor.data = address;
        (descriptor.device_type, descriptor.device_id) = match self.device.info().ordinal {
            Some(ordinal) => (abi::WM_DEVICE_CUDA, ordinal),
            None => (abi::WM_DEVICE_CPU, 0),
        };
        let block = Block {
            address,
            bytes,
            label: label.into(),
            adopted,
            writers: Vec::new(),
            tensors: 1,
            leases: 0,
            since: Instant::now(),
        };
        let at = self.lock().enter(block);
        Tensor::new(self.clone(), TensorDescriptor(descriptor), at)
    }

    /// Marks all shares that travel in a runtime's mailboxes as released: nobody is left who would.
    pub(crate) fn recall(&self, via: u64) -> usize {
        let mut ended = Vec::new();
        let mut state = self.lock();
        let rows: Vec<u32> = state.open.clone();
        let mut recalled = 0;
        for row in rows {
            let Some(lease) = &mut state.rows[row as usize] else { continue };
            let there = (0..lease.via.len()).filter(|i| lease.via[*i] == via).fold(0, |all, i| all | 1u64 << i);
            // SAFETY: the table is this core's, and the lock makes this thread its only owner.
            let back = unsafe { abi::wm_host_lease_released(&self.on_host, row) };
            let gone = there & lease.shares & !lease.held & !back;
            if gone == 0 {
                continue;
            }
            recalled += 1;
            // SAFETY: as above.
            unsafe { abi::wm_host_lease_give_back(&self.on_host, row, lease.epoch, gone) };
            self.look_at(&mut state, row, 0, &mut ended);
        }
        drop(state);
        super::collect::call(ended);
        recalled
    }
}

impl State {
    fn enter(&mut self, block: Block) -> u32 {
        match self.free_blocks.pop() {
            Some(at) => {
                self.blocks[at as usize] = Some(block);
                at
            }
            None => {
                self.blocks.push(Some(block));
                self.blocks.len() as u32 - 1
            }
        }
    }
}

/// How long the end of a pool waits for streams that were told to give back.
const LAST_LOOK: Duration = Duration::from_millis(200);

impl Drop for Core {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Streams that were told to give back may be reading still, and others writing.
        let until = deadline(LAST_LOOK);
        let mut notes: Vec<StreamNote> = state.noted.drain(..).map(|noted| noted.note).collect();
        notes.extend(state.blocks.iter_mut().flatten().flat_map(|block| block.writers.drain(..)));
        let is_past = |backend: &dyn Backend, note: StreamNote| backend.is_past(note).unwrap_or(false);
        loop {
            notes.retain(|note| !is_past(self.device.backend.as_ref(), *note));
            if notes.is_empty() || Instant::now() >= until {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if !notes.is_empty() {
            tracing::warn!(notes = notes.len(), "a pool ends while streams still use its memory: it is kept");
            return;
        }
        if !state.open.is_empty() {
            tracing::warn!(leases = state.open.len(), holders = %state.who(8), "a pool ends with leases that nobody released");
        }
        for block in state.blocks.drain(..).flatten() {
            match block.adopted {
                Some(done) => super::collect::call(vec![done]),
                None => state.store.end(block.address, block.bytes),
            }
        }
        state.store.shrink(0);
        self.device.backend.free(self.marks.0, self.marks.1);
        self.device.backend.free_pinned(self.pinned);
    }
}
