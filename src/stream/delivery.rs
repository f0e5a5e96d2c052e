//! Where the tensors of a stream module's inputs are copied to, so that its body need not follow pointers.

use crate::abi;
use crate::error::{Error, Result};
use crate::tensor::{TensorDescriptor, TensorSpec};

/// Memory at an address that never changes, into which the tensor that each record of an input points to is copied before the
/// body runs: row-major without gaps, whatever its own strides are. See [`Runtime::deliver`](crate::Runtime::deliver).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    address: u64,
    /// Bytes that are there, if that was said.
    room: Option<u64>,
    spec: Option<TensorSpec>,
}

impl Delivery {
    /// Any tensor of at most `bytes` bytes; of a smaller one the rest of the memory stays as it was. Type and shape are in the
    /// descriptor, which the body may read at the input's [`payload`](crate::StepBuffer::payload).
    pub fn up_to(address: u64, bytes: u64) -> Self {
        Delivery { address, room: Some(bytes), spec: None }
    }

    /// Tensors of this type and shape and no others, as a body that was captured expects them.
    pub fn exactly(address: u64, spec: &TensorSpec) -> Self {
        Delivery { address, room: None, spec: Some(spec.clone()) }
    }

    /// Says how many bytes are there: less than the tensor has is refused.
    pub(crate) fn within(mut self, bytes: u64) -> Self {
        self.room = Some(bytes);
        self
    }

    /// As the kernels are given it, less the table of leases; or the rule that is broken.
    pub(crate) fn check(&self, input: usize) -> Result<abi::wm_delivery> {
        let refused = |rule: &str| Err(Error::refused(format!("a delivery to {:#x}", self.address), rule));
        let (bytes, input) = (self.room.unwrap_or(0), input as u32);
        let mut to = abi::wm_delivery { to: self.address, bytes, input, ..Default::default() };
        if let Some(spec) = &self.spec {
            let (t, reach) = spec.check()?;
            to.bytes = spec.shape.iter().map(|d| *d as u64).product::<u64>() * spec.dtype.bytes();
            if reach != to.bytes || spec.byte_offset != 0 || !TensorDescriptor(t).is_contiguous() {
                return refused(
                    "what arrives is row-major without gaps from the address on: so must be what is wanted",
                );
            }
            if self.room.is_some_and(|room| room < to.bytes) {
                return refused("the memory there is smaller than the tensor");
            }
            (to.shape, to.ndim, to.exact) = (t.shape, t.ndim, 1);
            (to.dtype_code, to.dtype_bits, to.dtype_lanes) = (t.dtype_code, t.dtype_bits, t.dtype_lanes);
        }
        if self.address == 0 || to.bytes == 0 || self.address.checked_add(to.bytes).is_none() {
            return refused("it needs memory of at least one byte");
        }
        Ok(to)
    }
}
