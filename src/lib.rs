//! # warpmail
//!
//! Mailboxes in device memory for the modules that share one GPU, and a persistent CUDA kernel, the *arbiter*, that looks
//! at them and wakes whoever has mail. The host launches, watches and persists; it carries no data between modules and
//! decides nothing. Without a GPU the same protocol runs as CPU threads, the *twin*.
//!
//! ```
//! use std::time::Duration;
//! use warpmail::{Builder, Device, HandlerImage, MailboxOptions, builtin};
//!
//! # fn main() -> Result<(), warpmail::Error> {
//! let device = Device::twin();
//! let mut graph = Builder::new(device);
//! let host = graph.host("host")?;
//! let relay = graph.resident("relay", builtin::RELAY)?;
//! let there = graph.mailbox(host, relay, MailboxOptions::default())?;
//! let back = graph.mailbox(relay, host, MailboxOptions::default())?;
//! let mut runtime = graph.build(HandlerImage::builtin())?;
//! let mut sender = runtime.sender(there)?;
//! let mut receiver = runtime.receiver(back)?;
//! runtime.start()?;
//!
//! sender.push(7, b"hello", Duration::from_secs(5))?;
//! let mut payload = [0; 248];
//! let record = receiver.pop(&mut payload, Duration::from_secs(5))?;
//! assert_eq!((record.msg_type, &payload[..record.len]), (7, &b"hello"[..]));
//! runtime.stop(Duration::from_secs(5))?;
//! # Ok(()) }
//! ```
//!
//! Where to look: [`Builder`] makes a module graph, [`Runtime`] runs it, [`Sender`] and [`Receiver`] are the host's ends,
//! [`probe()`] says what this machine can do, [`HandlerImage`] is how your own resident handlers come in, [`journal`] keeps
//! records on disk, [`checkpoint`] what modules know, [`Pool`] lends tensors by pointer.

pub mod abi;
mod backend;
mod budget;
pub mod builtin;
mod capi;
pub mod checkpoint;
mod device;
mod error;
mod gauge;
mod graph;
mod image;
pub mod journal;
mod launcher;
mod memory;
mod options;
mod pacer;
mod port;
mod probe;
mod runtime;
mod stats;
mod stream;
mod tensor;
mod wait;

pub use budget::SpinBudget;
pub use device::{Device, DeviceBuffer, DeviceInfo};
pub use error::{Error, Result};
pub use gauge::{Gauge, Reading};
pub use graph::{Builder, MailboxId, ModuleId, StateBuffer};
pub use image::{HandlerImage, TwinEntry};
pub use options::{MailboxOptions, Mode, ModuleOptions, Rule, Tap};
pub use port::{Receiver, Record, Sender, direct_mailbox, direct_mailbox_at};
pub use probe::{BackendKind, CudaDevice, KernelStatus, Probe, probe};
pub use runtime::{HostEnds, HostStep, Runtime, State};
pub use stats::{BudgetStats, Footprint, MailboxStats, ModuleStats, Refusals, Rejects, Serving, Stats};
pub use stream::{Body, Delivery, Push, StepBuffer, StepStream, StreamOptions};
pub use tensor::{
    DType, Holder, Lease, Pool, PoolOptions, PoolStats, Tensor, TensorDescriptor, TensorSpec, Unposted, collect_tensors,
};

/// The commit this library was built from, or `unknown`.
pub const COMMIT: &str = env!("WARPMAIL_COMMIT");
