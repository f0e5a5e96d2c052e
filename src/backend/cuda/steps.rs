//! Grants of an arbiter on the CPU as short launches: a stream and an event of its own for each server, so that a grant that
//! has ended is seen by asking its event, without timing and without a wait.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::events::Event;
use super::libraries::Library;
use super::{Context, Stream, driver};
use crate::abi::{self, wm_arbiter_args, wm_step_args, wm_steps};
use crate::backend::thread::launched;
use crate::error::{Error, Result};

/// Threads of a step's one block: `warpmail::step_threads`.
const STEP_THREADS: u32 = 32;

/// A server: its grants run on a stream of their own, one at a time.
struct Lane {
    stream: Stream,
    /// Recorded behind each grant; also for the steps of stream modules that come behind it.
    ended: Arc<Event>,
    busy: bool,
}

/// Who runs the grants.
pub(super) struct Steps {
    context: Arc<Context>,
    library: Library,
    function: sys::CUfunction,
    lanes: Vec<Lane>,
    shared: u32,
    /// This thread's captures have been relaxed.
    adopted: bool,
    /// What went wrong in a call from C.
    failed: Option<Error>,
}

// SAFETY: the driver's handles may be used from any thread; `&mut self` keeps the calls apart.
unsafe impl Send for Steps {}

impl Steps {
    /// The context has been entered. `function` is of `library` and of that context.
    pub(super) fn new(
        context: Arc<Context>,
        library: Library,
        function: sys::CUfunction,
        args: &wm_arbiter_args,
    ) -> Result<Self> {
        // SAFETY: a pure function of the arguments' counts.
        let shared = unsafe { abi::wm_host_step_bytes(args) } as u32;
        let mut steps = Steps { context, library, function, lanes: Vec::new(), shared, adopted: false, failed: None };
        for _ in 0..args.servers.max(1) {
            let ended = Arc::new(Event::new(steps.context.clone())?);
            steps.lanes.push(Lane { stream: Stream::new()?, ended, busy: false });
        }
        Ok(steps)
    }

    pub(super) fn events(&self) -> Vec<Arc<Event>> {
        self.lanes.iter().map(|lane| lane.ended.clone()).collect()
    }

    /// One launch of the arbiter, on the calling thread.
    pub(super) fn arbitrate(&mut self, args: &wm_arbiter_args) -> Result<()> {
        let context = self.context.clone();
        let _entered = context.enter()?;
        if !self.adopted {
            super::relax_captures()?;
            self.adopted = true;
        }
        let calls =
            wm_steps { context: std::ptr::from_mut(self).cast::<c_void>(), launch: Some(launch), done: Some(done) };
        // SAFETY: the runtime keeps every table that `args` names alive until this launch has been collected; the calls
        // come back on this thread, with `self` as their context, and nobody else uses it meanwhile.
        let status = unsafe { abi::wm_host_cpu_arbiter(args, &calls) };
        self.failed.take().map_or_else(|| launched(status), Err)
    }

    fn launch(&mut self, server: usize, args: &wm_step_args, after: usize) -> Result<()> {
        let behind = self.lanes.get(after).map(|lane| lane.ended.clone());
        let lane = self.lanes.get_mut(server).ok_or_else(|| Error::Failed(format!("there is no server {server}")))?;
        let stream = lane.stream.0;
        if let Some(event) = behind {
            event.hold(stream)?; // recorded when that server's grant was launched
        }
        let mut args = *args;
        let mut params = [(&raw mut args).cast::<c_void>()];
        let (grid, block) = ((1, 1, 1), (STEP_THREADS, 1, 1));
        lane.busy = true;
        // SAFETY: the kernel takes one wm_step_args by value; the runtime keeps its mailboxes alive until the arbiter has
        // left, which it does when every grant has ended.
        unsafe { result::launch_kernel(self.function, grid, block, self.shared, stream, &mut params) }
            .map_err(driver("cuLaunchKernel"))?;
        lane.ended.record(stream)
    }

    fn is_done(&mut self, server: usize) -> Result<bool> {
        let Some(lane) = self.lanes.get_mut(server) else { return Ok(true) };
        if !lane.ended.is_past()? {
            return Ok(false);
        }
        lane.busy = false;
        Ok(true)
    }
}

/// # Safety
/// `context` is the `Steps` whose `arbitrate` is running on this thread; `args` can be read.
unsafe extern "C" fn launch(context: *mut c_void, server: u32, args: *const wm_step_args, after: u32) -> i32 {
    // SAFETY: the caller's word.
    let (steps, args) = unsafe { (&mut *context.cast::<Steps>(), &*args) };
    match steps.launch(server as usize, args, after as usize) {
        Ok(()) => 1,
        Err(e) => {
            steps.failed = Some(e);
            0
        }
    }
}

/// # Safety
/// As for `launch`.
unsafe extern "C" fn done(context: *mut c_void, server: u32) -> i32 {
    // SAFETY: the caller's word.
    let steps = unsafe { &mut *context.cast::<Steps>() };
    match steps.is_done(server as usize) {
        Ok(done) => i32::from(done),
        Err(e) => {
            steps.failed = Some(e);
            -1
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        let context = self.context.clone();
        let Ok(_entered) = context.enter() else { return };
        let servers = 0..self.lanes.len();
        // A grant that does not end keeps what it uses: freeing it would wait for the grant without a bound.
        if servers.into_iter().any(|s| self.lanes[s].busy && !matches!(self.is_done(s), Ok(true))) {
            tracing::warn!("a grant has not ended; its stream and code are kept");
            self.library.leak();
            return;
        }
        for lane in self.lanes.drain(..) {
            // SAFETY: nothing is enqueued any more, and it was made for this object.
            let _ = unsafe { result::stream::destroy(lane.stream.0) };
        }
    }
}
