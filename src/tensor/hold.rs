//! Tensors: holds of this process on memory.

use std::sync::Arc;

use super::books::Core;
use super::collect::{Returned, give_back};
use super::descriptor::TensorDescriptor;
use super::lease::Lease;
use super::pool::Pool;
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

/// A tensor and a lease always have a pool; only their drops take it away.
pub(super) fn core(core: &Option<Arc<Core>>) -> Result<&Arc<Core>> {
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
        Ok(Lease::new(core.clone(), TensorDescriptor(raw)))
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

pub(super) fn whole(descriptor: &TensorDescriptor, len: usize) -> Result<()> {
    if !descriptor.is_contiguous() {
        return Err(Error::refused("a copy of a tensor with gaps", "only tensors without gaps are copied here"));
    }
    if descriptor.bytes() != len as u64 {
        return Err(Error::refused(format!("{len} bytes"), format!("the tensor has {}", descriptor.bytes())));
    }
    Ok(())
}

pub(super) fn download(core: &Core, descriptor: &TensorDescriptor, bytes: &mut [u8]) -> Result<()> {
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
