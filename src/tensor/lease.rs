//! Leases: shares that this process holds.

use std::sync::Arc;

use super::books::Core;
use super::collect::{Returned, Shares, give_back};
use super::descriptor::TensorDescriptor;
use super::hold::{Tensor, core, download, whole};
use super::order::FOR_A_COPY;
use super::rows::mask;
use crate::abi;
use crate::error::{Error, Result};

/// The driver's names of the default streams.
const LEGACY: u64 = 1;
const PER_THREAD: u64 = 2;

/// The right to use a tensor's memory, for one or more readers: shares of a lease that this process holds. Posting it hands
/// them on; dropping it gives them back, by a push to a queue and nothing else.
#[derive(Debug)]
pub struct Lease {
    /// None: nothing to give back any more.
    core: Option<Arc<Core>>,
    descriptor: TensorDescriptor,
}

impl Lease {
    pub(super) fn new(core: Arc<Core>, descriptor: TensorDescriptor) -> Self {
        Lease { core: Some(core), descriptor }
    }

    pub(super) fn claim(core: &Arc<Core>, raw: abi::wm_tensor) -> Result<Self> {
        let descriptor = TensorDescriptor(raw);
        let (again, bytes) = descriptor.spec().check()?;
        if raw.ndim != again.ndim {
            return Err(Error::refused(format!("a tensor of {} dimensions", raw.ndim), "a descriptor has room for 8"));
        }
        if raw.data.checked_add(raw.byte_offset).is_none() {
            return Err(Error::refused(
                format!("a tensor {} bytes behind {:#x}", raw.byte_offset, raw.data),
                "there is no such address",
            ));
        }
        if raw.lease == 0 {
            let plain = abi::wm_tensor { share: 0, shares: 0, ..raw };
            return Ok(Lease { core: None, descriptor: TensorDescriptor(plain) });
        }
        let mut state = core.lock();
        let verdict = state.claim(core, &raw, bytes);
        if verdict.is_err() {
            state.counts.stale += 1;
        }
        verdict.map(|()| Lease { core: Some(core.clone()), descriptor })
    }

    /// What is left in the place of a lease that went elsewhere.
    pub(crate) fn nothing() -> Self {
        Lease { core: None, descriptor: TensorDescriptor(abi::wm_tensor::default()) }
    }

    /// What it is and where, with the lease's row, epoch and shares.
    pub fn descriptor(&self) -> &TensorDescriptor {
        &self.descriptor
    }

    /// Address of the first element on the device.
    pub fn address(&self) -> u64 {
        self.descriptor.data() + self.descriptor.byte_offset()
    }

    /// How many readers it stands for; 0 for a tensor without a lease, which the module graph itself owns.
    pub fn readers(&self) -> u8 {
        self.descriptor.0.shares
    }

    /// A tensor over the same memory: keeps it beyond this lease, and can be leased again.
    pub fn tensor(&self) -> Result<Tensor> {
        let core = core(&self.core)?;
        let mut state = core.lock();
        let block = state.row_of(&self.descriptor.0).map(|lease| lease.block);
        let memory = block.and_then(|at| state.blocks.get_mut(at as usize)?.as_mut());
        let (Some(memory), Some(block)) = (memory, block) else {
            return Err(Error::State("the lease has been given back".into()));
        };
        memory.tensors += 1;
        let mut raw = self.descriptor.0;
        (raw.lease, raw.share, raw.shares, raw.epoch) = (0, 0, 0, 0);
        Ok(Tensor::new(core.clone(), TensorDescriptor(raw), block))
    }

    /// Takes `readers` of its readers off, to post or drop them by themselves; this one keeps the others, at least one.
    pub fn part(&mut self, readers: u8) -> Result<Lease> {
        let raw = &mut self.descriptor.0;
        if readers == 0 || readers >= raw.shares {
            let what = format!("{readers} of {} readers", raw.shares);
            return Err(Error::refused(what, "at least one is taken off, and one is left"));
        }
        let core = self.core.clone();
        raw.shares -= readers;
        let mut part = *raw;
        (part.share, part.shares) = (raw.share + raw.shares, readers);
        Ok(Lease { core, descriptor: TensorDescriptor(part) })
    }

    /// Gives the shares back now, and says if that was refused because a reader on the device had released them: two have
    /// used what was one's to use.
    pub fn release(mut self) -> Result<()> {
        let Some(core) = self.core.take() else { return Ok(()) };
        let mut ended = Vec::new();
        let mut state = core.lock();
        let outcome = core.take_back(&mut state, shares_of(&self.descriptor), &mut ended);
        drop(state);
        super::collect::call(ended);
        outcome.map(|_| ())
    }

    /// Gives the shares back when `stream` (a `CUstream`; 0 on the twin) has done the work that is on it when the pool
    /// next collects: for readers that have only enqueued their reading. Only pushes to a queue.
    ///
    /// # Safety
    /// `stream` is a stream of the pool's device, and stays one until the pool has collected.
    pub unsafe fn release_on(mut self, stream: u64) {
        // It is noted later, by any thread, for which a thread's own default stream is another; the legacy stream waits for
        // all of those.
        let stream = if stream == PER_THREAD { LEGACY } else { stream };
        if let Some(core) = self.core.take() {
            give_back(core, Returned::After(shares_of(&self.descriptor), stream));
        }
    }

    /// As [`Tensor::upload`]; a read-only tensor is refused.
    pub fn upload(&self, bytes: &[u8]) -> Result<()> {
        if self.descriptor.is_read_only() {
            return Err(Error::refused("a write to a read-only tensor", "its producer lets readers only read"));
        }
        whole(&self.descriptor, bytes.len())?;
        self.wait_ready(FOR_A_COPY)?;
        core(&self.core)?.device.backend.upload(self.address(), bytes)
    }

    /// As [`Tensor::download`]; what a stream has still to write is waited for, up to ten seconds.
    pub fn download(&self, bytes: &mut [u8]) -> Result<()> {
        self.wait_ready(FOR_A_COPY)?;
        download(core(&self.core)?, &self.descriptor, bytes)
    }

    /// Its pool; none for a tensor without a lease.
    pub(super) fn core(&self) -> Option<&Arc<Core>> {
        self.core.as_ref()
    }

    /// The shares leave this process in a record of the runtime `via`. Before the record is pushed, because a reader may
    /// be done with it before the push returns.
    pub(super) fn hand_over(&self, via: u64) {
        let Some(core) = &self.core else { return };
        let shares = shares_of(&self.descriptor);
        if let Some(lease) = core.lock().row_of(&self.descriptor.0) {
            lease.held &= !shares.shares;
            let (first, n) = (usize::from(self.descriptor.0.share), usize::from(self.descriptor.0.shares));
            lease.via.iter_mut().skip(first).take(n).for_each(|share| *share = via);
        }
    }

    /// The record was not pushed after all.
    pub(super) fn take_over(&self) {
        let Some(core) = &self.core else { return };
        let shares = shares_of(&self.descriptor);
        if let Some(lease) = core.lock().row_of(&self.descriptor.0) {
            lease.held |= shares.shares;
        }
    }

    /// The record was pushed: its reader gives the shares back.
    pub(super) fn forget(mut self) {
        self.core = None;
    }

    /// For kernels of the caller's own: the descriptor, whose shares are now theirs to release (`lease_release`).
    pub fn into_raw(self) -> abi::wm_tensor {
        self.hand_over(0);
        let raw = self.descriptor.0;
        self.forget();
        raw
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(core) = self.core.take() {
            give_back(core, Returned::Shares(shares_of(&self.descriptor)));
        }
    }
}

fn shares_of(descriptor: &TensorDescriptor) -> Shares {
    let raw = &descriptor.0;
    Shares { row: raw.lease - 1, epoch: raw.epoch, shares: mask(raw) }
}
