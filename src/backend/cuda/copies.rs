//! The journal's copies off the device, on a stream of their own: the copy engine does them beside whatever runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{result, sys};

use super::tensors::Relaxed;
use super::{Context, Stream, driver};
use crate::backend::Copies;
use crate::error::Result;

/// Events, used in turn. An event that stands for a later copy by now is waited for a little longer, never too short.
const EVENTS: u64 = 64;

#[derive(Debug)]
pub(super) struct CudaCopies {
    context: Arc<Context>,
    stream: Stream,
    events: Vec<sys::CUevent>,
    /// Copies enqueued.
    next: AtomicU64,
}

// SAFETY: the driver's handles may be used from any thread; only one enqueues, by the trait's contract.
unsafe impl Send for CudaCopies {}
// SAFETY: as above.
unsafe impl Sync for CudaCopies {}

impl CudaCopies {
    pub(super) fn new(context: Arc<Context>) -> Result<Self> {
        let _entered = context.enter()?;
        let stream = Stream::new()?;
        let mut copies = CudaCopies { context: context.clone(), stream, events: Vec::new(), next: AtomicU64::new(0) };
        for _ in 0..EVENTS {
            // Who waits sleeps: the copies are long, and the core is the application's.
            let flags =
                sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
            let mut event = std::ptr::null_mut();
            // SAFETY: a plain creation in the current context.
            unsafe { sys::cuEventCreate(&mut event, flags) }.result().map_err(driver("cuEventCreate"))?;
            copies.events.push(event);
        }
        Ok(copies)
    }
}

impl Copies for CudaCopies {
    unsafe fn fetch(&self, to: *mut u8, from: u64, bytes: usize) -> Result<u64> {
        let _entered = self.context.enter()?;
        let _relaxed = Relaxed::new()?;
        let number = self.next.load(Ordering::Relaxed);
        // SAFETY: as the caller promises; stream and event live as long as `self`.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.stream.0)
                .result()
                .map_err(driver("cuMemcpyDtoHAsync"))?;
            sys::cuEventRecord(self.events[(number % EVENTS) as usize], self.stream.0)
                .result()
                .map_err(driver("cuEventRecord"))?;
        }
        self.next.store(number + 1, Ordering::Release);
        Ok(number)
    }

    fn wait(&self, number: u64) -> Result<()> {
        let _entered = self.context.enter()?;
        let _relaxed = Relaxed::new()?;
        // SAFETY: the event lives as long as `self`, and only copies are before it on its stream.
        unsafe { sys::cuEventSynchronize(self.events[(number % EVENTS) as usize]) }
            .result()
            .map_err(driver("cuEventSynchronize"))
    }
}

impl Drop for CudaCopies {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: all were made in `new`; nothing but bounded copies is on the stream.
        unsafe {
            let _ = result::stream::synchronize(self.stream.0);
            for event in self.events.drain(..) {
                let _ = sys::cuEventDestroy_v2(event);
            }
            let _ = result::stream::destroy(self.stream.0);
        }
    }
}
