//! Parking on devices whose streams cannot wait for a word in memory: the launcher's thread watches the doors, and begins a
//! launch when its door has opened. Who wakes the arbiter is then the host, a tick of that thread later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Door, Launches};
use crate::abi::{self, wm_arbiter_args};
use crate::error::Result;
use crate::stats::Footprint;
use crate::wait::deadline;

/// How often doors are looked at.
pub(crate) const TICK: Duration = Duration::from_micros(50);

/// Launches whose doors are watched here.
pub(crate) struct HostDoors {
    launches: Box<dyn Launches>,
    /// Those that have not begun, in order.
    waiting: VecDeque<(wm_arbiter_args, Option<Door>)>,
    /// For tests of a device that has no room: while it is set, no launch begins.
    held: Arc<AtomicBool>,
}

impl HostDoors {
    pub(crate) fn new(launches: Box<dyn Launches>, held: Arc<AtomicBool>) -> Self {
        HostDoors { launches, waiting: VecDeque::new(), held }
    }

    /// Begins those at the front whose doors are open.
    fn let_in(&mut self) -> Result<()> {
        while let Some((args, door)) = self.waiting.front() {
            // SAFETY: an aligned word of the runtime's pinned memory, which is kept until this launch has been collected.
            let is_open = door.is_none_or(|door| unsafe { abi::wm_host_load_acquire(door.host as *const u64) } != 0);
            if !is_open || self.held.load(Ordering::Acquire) {
                break;
            }
            self.launches.launch(args, None)?;
            self.waiting.pop_front();
        }
        Ok(())
    }
}

impl Launches for HostDoors {
    fn adopt_thread(&mut self) -> Result<()> {
        self.launches.adopt_thread()
    }

    fn launch(&mut self, args: &wm_arbiter_args, door: Option<Door>) -> Result<()> {
        self.waiting.push_back((*args, door));
        self.let_in()
    }

    fn outstanding(&mut self) -> Result<usize> {
        self.let_in()?;
        Ok(self.launches.outstanding()? + self.waiting.len())
    }

    fn wait(&mut self, bound: Duration) -> Result<usize> {
        let until = deadline(bound);
        let mut now = self.outstanding()?;
        while now > 0 && Instant::now() < until {
            std::thread::sleep(TICK.min(bound));
            now = self.outstanding()?;
        }
        Ok(now)
    }

    fn footprint(&self) -> Option<Footprint> {
        self.launches.footprint()
    }

    fn watch(&mut self) -> Result<Option<Duration>> {
        self.let_in()?;
        Ok((!self.waiting.is_empty()).then_some(TICK))
    }
}
