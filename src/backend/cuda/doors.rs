//! Waiting for doors. The front end looks at a word that a compute channel waits for every 7 to 8 µs once it has put the channel
//! aside; a channel that waits for an event is let in sooner, at a price for kernels that others launch one by one (docs/parking.md
//! has the figures, and those of a copy engine's channel). So a door of the arbiter's that is expected to be opened soon is waited
//! for in a stream of its own, and what the door lets in stands behind an event of that stream. Where nothing is expected the wait
//! stands in the launches' own stream, which costs nobody anything. Stream modules wait there too (gates.rs).

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::events::Event;
use super::{Context, Stream, driver};
use crate::backend::Door;
use crate::error::Result;

/// The doors of one stream's launches.
pub(super) struct Doors {
    context: Arc<Context>,
    /// Where the waits stand, one behind the other.
    stream: Stream,
    /// Recorded behind each of them: a stream that waits for it keeps what it stood for.
    opened: Event,
}

/// Bytes of the copy that the stream begins with.
const COPIED: u64 = 16;

impl Doors {
    /// `end`: of a struct in device memory whose last bytes, twice `COPIED`, are padding. The context has been entered.
    ///
    /// It begins with a copy, which puts a stream's waits on a copy engine's channel; whether they are still there when the stream
    /// has run empty in between is not known (docs/parking.md).
    pub(super) fn new(context: Arc<Context>, end: u64) -> Result<Self> {
        let doors = Doors { opened: Event::new(context.clone())?, context, stream: Stream::urgent()? };
        // SAFETY: nobody looks at padding, and the caller's memory outlives what is behind these doors.
        unsafe { sys::cuMemcpyDtoDAsync_v2(end - COPIED, end - 2 * COPIED, COPIED as usize, doors.stream.0) }
            .result()
            .map_err(driver("cuMemcpyDtoDAsync"))?;
        Ok(doors)
    }

    /// What is enqueued on `stream` from now on waits for the door. The context has been entered, and the stream is of it.
    pub(super) fn hold(&self, stream: sys::CUstream, door: Door) -> Result<()> {
        let aside = if door.soon { self.stream.0 } else { stream };
        let flags = sys::CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
        // SAFETY: an aligned word of mapped pinned memory, which lives until what is behind it has ended and `is_past` has said
        // so. The pacer opens every door within max_wait. Memory is little endian: the low half of the door's word is 0 or 1.
        unsafe { sys::cuStreamWaitValue32_v2(aside, door.device, 1, flags) }
            .result()
            .map_err(driver("cuStreamWaitValue32"))?;
        if !door.soon {
            return Ok(());
        }
        self.opened.record(self.stream.0)?;
        self.opened.hold(stream)
    }

    /// Whether none of the waits is left, also where what was to stand behind one could not be enqueued.
    pub(super) fn is_past(&self) -> Result<bool> {
        self.stream.is_empty()
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: made in `new`; the driver keeps a stream until what is on it has ended.
            let _ = unsafe { result::stream::destroy(self.stream.0) };
        }
    }
}
