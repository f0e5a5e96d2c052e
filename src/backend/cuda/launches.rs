//! The persistent kernel's launches: on a stream of their own, each behind a wait of the front end's for its door (doors.rs).

use std::ffi::c_void;
use std::time::{Duration, Instant};

use cudarc::driver::{result, sys};

use super::doors::Doors;
use super::libraries::Library;
use super::{Context, Stream, driver, relax_captures};
use crate::abi::wm_arbiter_args;
use crate::backend::{Door, Launches};
use crate::error::Result;
use crate::stats::Footprint;
use crate::wait::deadline;

/// Threads of each of the arbiter's blocks, as many as its first one needs: keeper, inbox, servers, scanners, the journal's role.
pub(super) fn threads_of(args: &wm_arbiter_args) -> u32 {
    (2 + args.servers + args.scanners + u32::from(args.journal_roles)) * 32
}

pub(super) struct CudaLaunches {
    pub(super) context: std::sync::Arc<Context>,
    pub(super) library: Library,
    pub(super) function: sys::CUfunction,
    pub(super) stream: Stream,
    pub(super) doors: Doors,
    pub(super) shared: usize,
    pub(super) footprint: Option<Footprint>,
    /// Enqueued since the stream was last seen empty.
    pub(super) running: usize,
}

// SAFETY: the driver's handles may be used from any thread; `&mut self` keeps the calls apart.
unsafe impl Send for CudaLaunches {}

impl Launches for CudaLaunches {
    fn footprint(&self) -> Option<Footprint> {
        self.footprint
    }

    fn adopt_thread(&mut self) -> Result<()> {
        std::mem::forget(self.context.enter()?); // for `launch`: it stays entered as long as the thread lives
        relax_captures()
    }

    fn launch(&mut self, args: &wm_arbiter_args, door: Option<Door>) -> Result<()> {
        self.running += 1; // the wait, if not the launch
        if let Some(door) = door {
            self.doors.hold(self.stream.0, door)?;
        }
        let mut args = *args;
        let mut params = [(&raw mut args).cast::<c_void>()];
        let threads = threads_of(&args);
        // SAFETY: the kernel takes one wm_arbiter_args by value; the runtime keeps its tables alive until this launch has
        // been collected.
        let launched = unsafe {
            result::launch_kernel(
                self.function,
                (1 + args.carriers, 1, 1),
                (threads, 1, 1),
                self.shared as u32,
                self.stream.0,
                &mut params,
            )
        };
        launched.map_err(driver("cuLaunchKernel"))
    }

    fn outstanding(&mut self) -> Result<usize> {
        let _entered = self.context.enter()?;
        if self.stream.is_empty()? && self.doors.is_past()? {
            self.running = 0;
        }
        Ok(self.running)
    }

    fn wait(&mut self, bound: Duration) -> Result<usize> {
        let until = deadline(bound);
        let mut now = self.outstanding()?;
        while now > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(100).min(bound));
            now = self.outstanding()?;
        }
        Ok(now)
    }
}

impl Drop for CudaLaunches {
    fn drop(&mut self) {
        // A launch that does not end keeps what it uses: freeing it would wait for the launch without a bound.
        if !matches!(self.outstanding(), Ok(0)) {
            tracing::warn!("a launch of the arbiter has not ended; its stream and code are kept");
            self.library.leak();
            return;
        }
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: nothing is enqueued any more, and it was made in `load`.
        let _ = unsafe { result::stream::destroy(self.stream.0) };
    }
}
