//! Events without timing: points in the order of a stream that others are put behind. Made when a runtime is built, one for each
//! server and each stream module, and recorded again and again: none is made for a step.

use std::sync::Arc;

use cudarc::driver::sys;

use super::{Context, driver};
use crate::error::Result;

/// An event of one context.
pub(crate) struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above, and by several at once.
unsafe impl Sync for Event {}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Event").field(&self.raw).finish()
    }
}

impl Event {
    /// The context has been entered.
    pub(super) fn new(context: Arc<Context>) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes one handle; the caller has entered the context.
        unsafe { sys::cuEventCreate(&mut raw, flags) }.result().map_err(driver("cuEventCreate"))?;
        Ok(Event { context, raw })
    }

    /// Stands for what is on the stream now. The context has been entered, and the stream is of it.
    pub(super) fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: both are of the context that the caller has entered.
        unsafe { sys::cuEventRecord(self.raw, stream) }.result().map_err(driver("cuEventRecord"))
    }

    /// What is enqueued on the stream from now on comes behind what the event stands for. As for `record`.
    pub(super) fn hold(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: as above; the driver keeps what the event stands for, also when it is recorded again.
        unsafe { sys::cuStreamWaitEvent(stream, self.raw, 0) }.result().map_err(driver("cuStreamWaitEvent"))
    }

    /// Whether what it stands for has ended.
    pub(super) fn is_past(&self) -> Result<bool> {
        // SAFETY: made in `new`.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => other.result().map(|()| true).map_err(driver("cuEventQuery")),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: made in `new`, and nobody uses it any more; the driver keeps it while something waits for it.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
