//! Waiting for doors. The front end looks at a word that a channel waits for every 7 to 8 µs once it has put the channel aside,
//! where the channel has a kernel behind the wait; what stands behind an event of another stream, in which nothing but waits is
//! enqueued, is let in sooner, at a price for kernels that others launch one by one (docs/parking.md has the figures). So a door of the arbiter's that is expected to be opened soon is waited
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

impl Doors {
    /// The context has been entered. Nothing is ever copied on the stream: one that had begun with a copy, and did nothing more, made
    /// kernels of others that are launched one by one 4 % slower, and opened doors later (docs/parking.md).
    pub(super) fn new(context: Arc<Context>, stream: Stream) -> Result<Self> {
        Ok(Doors { opened: Event::new(context.clone())?, context, stream })
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
