//! Those who look at records as they pass, such as a journal: a lease ends only when they have seen its records.

use std::sync::{Arc, Weak};

use super::books::Core;
use super::descriptor::TensorDescriptor;
use super::hold::Tensor;
use super::rows::has_bytes;
use crate::abi;
use crate::error::{Error, Result};

/// Sees every record that passes an arbiter, a little later than its reader.
pub(crate) trait Witness: Send + Sync {
    /// A moment: now.
    fn now(&self) -> Box<[u64]>;
    /// Whether it has seen all records that had passed at a moment, and holds what it wants of them.
    fn has_seen(&self, moment: &[u64]) -> bool;
}

/// When all shares of a lease were back, for each witness.
pub(super) type Moments = Vec<(Weak<dyn Witness>, Box<[u64]>)>;

impl Core {
    /// Adds a witness. It is asked as long as it lives.
    pub(crate) fn add_witness(&self, witness: Weak<dyn Witness>) {
        let mut witnesses = self.witnesses.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        witnesses.retain(|w| w.strong_count() > 0);
        witnesses.push(witness);
    }

    /// Whether a lease whose shares are all back may end. `moments`: when they were first seen to be.
    pub(super) fn witnessed(&self, moments: &mut Option<Moments>) -> bool {
        let moments = moments.get_or_insert_with(|| {
            let witnesses = self.witnesses.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            witnesses.iter().filter_map(|w| Some((w.clone(), w.upgrade()?.now()))).collect()
        });
        moments.retain(|(witness, moment)| witness.upgrade().is_some_and(|w| !w.has_seen(moment)));
        moments.is_empty()
    }

    /// A hold on the memory of a tensor whose record passed, as its lease is still open, and the bytes from its first
    /// element to the end of its last.
    pub(crate) fn hold_passing(self: &Arc<Self>, raw: &abi::wm_tensor) -> Result<(Tensor, u64)> {
        let descriptor = TensorDescriptor(*raw);
        let (_, end) = descriptor.spec().check()?;
        let mut state = self.lock();
        let lease = state.row_of(raw).ok_or_else(|| Error::StaleLease {
            lease: raw.lease.wrapping_sub(1),
            epoch: raw.epoch,
            why: "it had ended before the journal came to the record".into(),
        })?;
        let at = lease.block;
        let memory = state.blocks.get_mut(at as usize).and_then(Option::as_mut);
        let Some(memory) = memory.filter(|b| has_bytes(b, raw.data, end)) else {
            let what = format!("a descriptor of {end} bytes at {:#x}", raw.data);
            return Err(Error::refused(what, "reaches outside the memory that was leased"));
        };
        memory.tensors += 1;
        drop(state);
        let mut raw = *raw;
        (raw.lease, raw.share, raw.shares, raw.epoch) = (0, 0, 0, 0);
        Ok((Tensor::new(self.clone(), TensorDescriptor(raw), at), end - raw.byte_offset))
    }
}
