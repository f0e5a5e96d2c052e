//! Tensors by pointer: a pool of device memory, leases on it, and descriptors that travel through mailboxes.
//!
//! A [`Tensor`] is a hold of this process on memory of a [`Pool`]. To let modules read it, it is leased to some readers and
//! posted: [`Sender::post_tensor`](crate::Sender::post_tensor). Each reader follows the pointer, then releases its share, on
//! the device (`context::lease_release`, `csrc/protocol/lease.hpp`) or here (a [`Lease`] that is dropped). The memory is used
//! again when no tensor and no lease holds it. docs/tensors.md has the rules.

mod blocks;
mod books;
mod collect;
mod descriptor;
mod hold;
mod lease;
mod order;
mod pool;
mod post;
mod report;
mod rows;
#[cfg(test)]
mod tests;
mod witness;

pub use collect::collect_tensors;
pub use descriptor::{DType, TensorDescriptor, TensorSpec};
pub use hold::Tensor;
pub use lease::Lease;
pub use pool::{Pool, PoolOptions};
pub use post::Unposted;
pub use report::{Holder, PoolStats};
pub(crate) use witness::Witness;
