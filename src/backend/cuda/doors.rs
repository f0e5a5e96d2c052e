//! Waiting for doors. A launch behind a wait of its own stream begins when the front end has come round to it, 3 to 11 µs after
//! the store; one behind an event of a stream on the other side of the front end (sides.rs) begins after 3.5, and standing there
//! costs others something (docs/parking.md has the figures). So a door of the arbiter's that is expected to be opened soon is
//! waited for aside, in a stream of its own, and what the door lets in stands behind an event of that stream. Where nothing is
//! expected the wait stands in the launches' own stream, which is on the side where it costs the neighbour nothing. Stream
//! modules wait in their own streams, of whatever side (gates.rs).

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
    /// `stream`: for the waits that stand aside, on another side than the launches. The context has been entered.
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
