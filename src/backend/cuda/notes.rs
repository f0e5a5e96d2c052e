//! Notes on the caller's streams: events, taken from a list of free ones and put back when they are past.
//!
//! No call here waits, and a context has been entered.

use std::sync::Mutex;

use cudarc::driver::{result, sys};

use super::driver;
use super::tensors::Relaxed;
use crate::backend::StreamNote;
use crate::error::{Error, Result};

/// Events that stand for nothing now. None is destroyed before the device ends, so a note that ended is never one of
/// nothing: it may have been recorded again, and waiting for it then waits for more than was asked.
#[derive(Debug, Default)]
pub(super) struct Notes {
    free: Mutex<Vec<Event>>,
}

#[derive(Debug)]
struct Event(sys::CUevent);

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for Event {}

impl Notes {
    fn take(&self) -> Result<sys::CUevent> {
        let free = self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
        match free {
            Some(event) => Ok(event.0),
            None => result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(driver("cuEventCreate")),
        }
    }

    fn give(&self, event: sys::CUevent) {
        self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(Event(event));
    }

    /// See [`Backend::note`](crate::backend::Backend::note).
    pub(super) fn note(&self, stream: u64) -> Result<StreamNote> {
        let _relaxed = Relaxed::new()?;
        refuse_captured(stream)?;
        let event = self.take()?;
        // SAFETY: an event of this list; the caller says that this is a stream.
        if let Err(e) = unsafe { result::event::record(event, stream as sys::CUstream) } {
            self.give(event);
            return Err(driver("cuEventRecord")(e));
        }
        Ok(StreamNote(event as usize))
    }

    /// See [`Backend::is_past`](crate::backend::Backend::is_past).
    pub(super) fn is_past(&self, note: StreamNote) -> Result<bool> {
        let _relaxed = Relaxed::new()?;
        let event = note.0 as sys::CUevent;
        // SAFETY: an event that `note` gave out and that has not ended.
        match unsafe { sys::cuEventQuery(event) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => {
                self.give(event);
                answer.result().map_err(driver("cuEventQuery")).map(|()| true)
            }
        }
    }

    /// See [`Backend::follow`](crate::backend::Backend::follow).
    pub(super) fn follow(&self, stream: u64, note: StreamNote) -> Result<()> {
        let _relaxed = Relaxed::new()?;
        refuse_captured(stream)?;
        // SAFETY: an event of this list; the caller says that this is a stream.
        unsafe { result::stream::wait_event(stream as _, note.0 as _, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
            .map_err(driver("cuStreamWaitEvent"))
    }

    /// Destroys the events.
    pub(super) fn end(&self) {
        for event in self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).drain(..) {
            // SAFETY: made in `take`; nobody has it.
            let _ = unsafe { result::event::destroy(event.0) };
        }
    }
}

/// Whether a stream is being captured, or tied to one that is.
pub(super) fn is_captured(stream: u64) -> Result<bool> {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the caller says that this is a stream. Asking invalidates no capture.
    let answer = unsafe { sys::cuStreamIsCapturing(stream as sys::CUstream, &mut status) };
    // The legacy stream while a stream is captured that it is tied to.
    let is_tied = answer == sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    if is_tied || (answer.result().is_ok() && status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE) {
        return Ok(true);
    }
    answer.result().map(|()| false).map_err(driver("cuStreamIsCapturing"))
}

/// An event of outside cannot be part of a capture, and one that is recorded in a capture stands for nothing outside.
fn refuse_captured(stream: u64) -> Result<()> {
    if is_captured(stream)? {
        let what = "a tensor's order cannot be taken from, or given to, a stream that is being captured";
        return Err(Error::State(format!("{what}: post, wait and release before the capture, or when it has ended")));
    }
    Ok(())
}
