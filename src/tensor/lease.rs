//! The holds of this process: on memory (a tensor), and on shares of a lease.

use std::sync::Arc;
use std::time::Instant;

use super::collect::{Returned, Shares, give_back};
use super::descriptor::TensorDescriptor;
use super::pool::{Core, Pool, Row, State};
use crate::abi;
use crate::error::{Error, Result};

/// A hold of this process on memory of a pool. While it lives the memory is not used for anything else. Dropping it pushes
/// to a queue and does nothing else; the pool collects later.
#[derive(Debug)]
pub struct Tensor {
    core: Option<Arc<Core>>,
    descriptor: TensorDescriptor,
    block: u32,
}

/// The right to use a tensor's memory, for one or more readers: shares of a lease that this process holds. Posting it hands
/// them on; dropping it gives them back, by a push to a queue and nothing else.
#[derive(Debug)]
pub struct Lease {
    /// None: nothing to give back any more.
    core: Option<Arc<Core>>,
    descriptor: TensorDescriptor,
}

/// A tensor and a lease always have a pool; only their drops take it away.
fn core(core: &Option<Arc<Core>>) -> Result<&Arc<Core>> {
    core.as_ref().ok_or_else(|| Error::State("the tensor has been given back".into()))
}

impl Tensor {
    pub(super) fn new(core: Arc<Core>, descriptor: TensorDescriptor, block: u32) -> Self {
        Tensor { core: Some(core), descriptor, block }
    }

    /// What it is and where. Names no lease: [`lease`](Self::lease) gives one that does.
    pub fn descriptor(&self) -> &TensorDescriptor {
        &self.descriptor
    }

    /// Address of the first element on the device.
    pub fn address(&self) -> u64 {
        self.descriptor.data() + self.descriptor.byte_offset()
    }

    /// Its pool.
    pub fn pool(&self) -> Result<Pool> {
        Ok(Pool { core: core(&self.core)?.clone() })
    }

    /// Opens a lease for `readers` readers, 1 to 8. Each must release once, or the memory stays held for ever: a lease
    /// that is posted to one reader is opened for one.
    pub fn lease(&self, readers: u8) -> Result<Lease> {
        if readers == 0 || u32::from(readers) > abi::WM_MAX_SHARES {
            return Err(Error::refused(format!("a lease for {readers} readers"), "from 1 to 8; open several for more"));
        }
        let core = core(&self.core)?;
        core.collect(4, false);
        let mut state = core.lock();
        if state.free_rows.is_empty() {
            drop(state);
            core.collect(usize::MAX, true);
            state = core.lock();
        }
        let shares = (1u64 << readers) - 1;
        let Some((row, epoch)) = state.open_row(core, self.block, shares) else {
            let rule = format!("all {} rows of the table are open; {}", core.on_host.n_rows, state.who(4));
            return Err(Error::refused("one more lease", rule));
        };
        drop(state);
        let mut raw = self.descriptor.0;
        (raw.lease, raw.share, raw.shares, raw.epoch) = (row + 1, 0, readers, epoch);
        Ok(Lease { core: Some(core.clone()), descriptor: TensorDescriptor(raw) })
    }

    /// Copies `bytes`, as many as the tensor has, into it. For tensors without gaps. No reader may use it meanwhile.
    pub fn upload(&self, bytes: &[u8]) -> Result<()> {
        whole(&self.descriptor, bytes.len())?;
        core(&self.core)?.device.backend.upload(self.address(), bytes)
    }

    /// Copies the tensor into `bytes`, as many as it has. For tensors without gaps. Nobody may write it meanwhile.
    pub fn download(&self, bytes: &mut [u8]) -> Result<()> {
        download(core(&self.core)?, &self.descriptor, bytes)
    }
}

fn whole(descriptor: &TensorDescriptor, len: usize) -> Result<()> {
    if !descriptor.is_contiguous() {
        return Err(Error::refused("a copy of a tensor with gaps", "only tensors without gaps are copied here"));
    }
    if descriptor.bytes() != len as u64 {
        return Err(Error::refused(format!("{len} bytes"), format!("the tensor has {}", descriptor.bytes())));
    }
    Ok(())
}

fn download(core: &Core, descriptor: &TensorDescriptor, bytes: &mut [u8]) -> Result<()> {
    whole(descriptor, bytes.len())?;
    let address = descriptor.data() + descriptor.byte_offset();
    core.device.backend.download(bytes, address)?;
    let poisoned = |b: &u8| u32::from(*b) == abi::WM_POISON_BYTE;
    if core.poison && bytes.len() >= 8 && bytes[..8].iter().all(poisoned) {
        return Err(Error::PoisonRead { address });
    }
    Ok(())
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if let Some(core) = self.core.take() {
            give_back(core, Returned::Tensor(self.block));
        }
    }
}

impl State {
    fn open_row(&mut self, core: &Core, block: u32, shares: u64) -> Option<(u32, u64)> {
        let memory = self.blocks.get_mut(block as usize)?.as_mut()?;
        let row = self.free_rows.pop()?;
        memory.leases += 1;
        // SAFETY: the table is this core's, and the state's lock makes this thread its only owner.
        let epoch = unsafe { abi::wm_host_lease_open(&core.on_host, row, memory.address, memory.bytes) };
        let place = self.open.len();
        self.open.push(row);
        self.counts.opened += 1;
        let lease = Row { epoch, shares, held: shares, block, via: Default::default(), since: Instant::now(), place };
        self.rows[row as usize] = Some(lease);
        Some((row, epoch))
    }
}

impl Lease {
    pub(super) fn claim(core: &Arc<Core>, raw: abi::wm_tensor) -> Result<Self> {
        let descriptor = TensorDescriptor(raw);
        let (again, bytes) = descriptor.spec().check()?;
        if raw.ndim != again.ndim {
            return Err(Error::refused(format!("a tensor of {} dimensions", raw.ndim), "a descriptor has room for 8"));
        }
        if raw.lease == 0 {
            return Ok(Lease { core: None, descriptor });
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
    pub fn release_on(mut self, stream: u64) {
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
        core(&self.core)?.device.backend.upload(self.address(), bytes)
    }

    /// As [`Tensor::download`].
    pub fn download(&self, bytes: &mut [u8]) -> Result<()> {
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

fn mask(raw: &abi::wm_tensor) -> u64 {
    ((1u64 << raw.shares) - 1) << raw.share
}

impl State {
    /// The open lease that a descriptor names.
    fn row_of(&mut self, raw: &abi::wm_tensor) -> Option<&mut Row> {
        let row = (raw.lease as usize).checked_sub(1)?;
        self.rows.get_mut(row)?.as_mut().filter(|lease| lease.epoch == raw.epoch)
    }

    fn claim(&mut self, core: &Core, raw: &abi::wm_tensor, bytes: u64) -> Result<()> {
        let stale = |why: String| Err(Error::StaleLease { lease: raw.lease.wrapping_sub(1), epoch: raw.epoch, why });
        if raw.lease > core.on_host.n_rows
            || raw.shares == 0
            || raw.share as u32 + raw.shares as u32 > abi::WM_MAX_SHARES
        {
            return Err(Error::refused(
                format!("a descriptor of lease {}, shares {}+{}", raw.lease, raw.share, raw.shares),
                "no pool has given it out",
            ));
        }
        let shares = mask(raw);
        let Some(lease) = self.row_of(raw) else {
            return stale("it has ended: all its readers released it, and the memory may be another's".into());
        };
        let block = lease.block;
        if lease.shares & shares != shares {
            return stale(format!("it was opened for {} readers only", lease.shares.count_ones()));
        }
        if lease.held & shares != 0 {
            return stale("this process holds these shares already: the record was taken twice".into());
        }
        // SAFETY: the table is this core's, and the state's lock makes this thread its only owner.
        if unsafe { abi::wm_host_lease_released(&core.on_host, raw.lease - 1) } & shares != 0 {
            return stale("its reader has released it already".into());
        }
        let inside = |b: &super::pool::Block| {
            raw.data >= b.address && raw.data - b.address <= b.bytes && bytes <= b.bytes - (raw.data - b.address)
        };
        if !self.blocks[block as usize].as_ref().is_some_and(inside) {
            return Err(Error::refused(
                format!("a descriptor of {bytes} bytes at {:#x}", raw.data),
                "reaches outside the memory that was leased",
            ));
        }
        if let Some(lease) = self.row_of(raw) {
            lease.held |= shares;
        }
        Ok(())
    }
}
