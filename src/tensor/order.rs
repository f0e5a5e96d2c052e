//! The order of streams: memory that work on a stream of the caller's has still to write, and who comes after it.
//!
//! Notes stand with the memory, not with one lease on it: whoever takes any lease on it, forwards it or leases it again waits
//! for all of them. Memory whose writers are not done is not used for anything else, even if nobody holds it any more.

use std::time::{Duration, Instant};

use super::books::{Block, Core};
use super::lease::Lease;
use crate::abi;
use crate::backend::StreamNote;
use crate::error::{Error, Result};
use crate::port::Pause;
use crate::wait::deadline;

/// From so many notes on, those that are past are looked for before another is added.
const MANY: usize = 4;
/// How long a copy of the host's waits for a stream that has still to write.
pub(super) const FOR_A_COPY: Duration = Duration::from_secs(10);

impl Core {
    /// Whether all that was to write a block is done; a stream that has failed writes no more.
    pub(super) fn is_written(&self, block: &mut Block) -> bool {
        block.writers.retain(|note| match self.device.backend.is_past(*note) {
            Ok(past) => !past,
            Err(e) => {
                tracing::warn!(error = %e, label = %block.label, "a stream that was to write a tensor has failed");
                false
            }
        });
        block.writers.is_empty()
    }

    /// Looks at the memory of an open lease.
    fn with_block<T>(&self, raw: &abi::wm_tensor, look: impl FnOnce(&mut Block) -> T) -> Result<T> {
        let mut state = self.lock();
        let at = state.row_of(raw).map(|lease| lease.block);
        let block = at.and_then(|at| state.blocks.get_mut(at as usize)?.as_mut());
        block.map(look).ok_or_else(|| Error::State("the lease has been given back".into()))
    }

    /// What has still to write the memory of a lease, as far as is known without asking the device.
    pub(super) fn writers(&self, raw: &abi::wm_tensor) -> Result<Vec<StreamNote>> {
        self.with_block(raw, |block| block.writers.clone())
    }
}

/// # The order of streams
///
/// A producer that has only enqueued its writing says so with [`written_on`](Self::written_on), or posts with
/// [`Sender::post_on`](crate::Sender::post_on). A reader that takes the lease says with [`wait_on`](Self::wait_on) on which
/// stream it will read, and with [`release_on`](Self::release_on) that it has enqueued all its reading. Nobody waits on the
/// host. A stream is a `CUstream` (1: the legacy default stream, 2: the calling thread's own); on the twin, where all is done
/// when a call returns, it is 0.
impl Lease {
    /// The work that is on `stream` now has still to write the memory: whoever reads it comes after that.
    ///
    /// [`Error::State`] while the stream is being captured.
    ///
    /// # Safety
    /// `stream` is a stream of the pool's device.
    pub unsafe fn written_on(&self, stream: u64) -> Result<()> {
        let Some(core) = self.core() else { return Ok(()) };
        let note = core.device.backend.note(stream)?;
        core.with_block(&self.descriptor().0, |block| {
            if block.writers.len() >= MANY {
                core.is_written(block);
            }
            block.writers.push(note);
        })
    }

    /// What is enqueued on `stream` from now on comes after all that has still to write the memory. The host does not wait.
    ///
    /// [`Error::State`] while the stream is being captured.
    ///
    /// # Safety
    /// `stream` is a stream of the pool's device.
    pub unsafe fn wait_on(&self, stream: u64) -> Result<()> {
        let Some(core) = self.core() else { return Ok(()) };
        // Past the lock: a full queue of launches makes the driver wait.
        core.writers(&self.descriptor().0)?.into_iter().try_for_each(|note| core.device.backend.follow(stream, note))
    }

    /// Whether all that was to write the memory is done.
    pub fn is_ready(&self) -> Result<bool> {
        let Some(core) = self.core() else { return Ok(true) };
        core.with_block(&self.descriptor().0, |block| core.is_written(block))
    }

    /// Waits, on the host, until all that was to write the memory is done: for readers on the host.
    pub fn wait_ready(&self, bound: Duration) -> Result<()> {
        let until = deadline(bound);
        let mut pause = Pause::new();
        while !self.is_ready()? {
            if Instant::now() >= until {
                let what = format!("the work that writes the tensor at {:#x}", self.address());
                return Err(Error::Timeout { what, waited: bound });
            }
            pause.wait();
        }
        Ok(())
    }
}
