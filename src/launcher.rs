//! The thread that keeps the arbiter running: it opens doors in time (pacer.rs) and enqueues launches ahead of need.
//!
//! With parking, a launch is a *credit*: it waits for its door. Doors are cleared far ahead, so that a launch can leave
//! although the next one is not enqueued yet. The steps C1-C4, Q1-Q2 and S1-S4 are those of the model
//! tests/model/park.pml; the other halves are csrc/protocol/park.hpp and bell.hpp. D2 is the launcher's too: it opens the door
//! of a launch behind one that had overdrawn its share, when the share allows it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError};

use crate::abi::{self, wm_arbiter_args};
use crate::backend::{Door, Launches};
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::pacer::Pace;
use crate::wait::deadline;

/// Launches kept in the queue that have not begun, while nothing happens: the next one begins when one ends, or when its
/// door opens, without the host.
const AHEAD: u64 = 2;
/// The same for an arbiter that never parks: who waits for everything waits for the running launch and these.
const AHEAD_HOT: u64 = 1;
/// The most while records are served: twice as many more as were used from one turn to the next.
const AHEAD_BUSY: u64 = 12;
/// sm_share_ppm of all of an SM's time.
const WHOLE_SHARE: u32 = 1_000_000;
/// The same until the first launch has begun.
const TICK_FIRST: Duration = Duration::from_micros(100);
/// How long none of the launches may begin before that is a state with a name.
const NO_ROOM: Duration = Duration::from_secs(1);
/// The longest tick while nothing happens.
const QUIET: Duration = Duration::from_millis(10);
/// How often it looks while there is no room for a launch.
const TICK_NO_ROOM: Duration = Duration::from_millis(10);
/// What is left from one turn to the next of how many launches were used up: nothing, after some 45 without any.
const FADING: f64 = 0.95;
/// The part of its period that this thread may be late with pacing before the pacer's does it, and the part that it may come
/// early, so that it is not about to be late when it enters the driver.
const LATE: u32 = 4;
const EARLY: u32 = 16;
/// How often the driver is asked whether the launches are well; more often costs processor time.
const ASK: Duration = Duration::from_millis(50);
/// Longer than any max_wait: there is no pacer.
const UNPACED: Duration = Duration::from_secs(2);
/// How many launches whose doors are open, but that have not begun, are taken as good as begun.
const SLACK: u64 = 2;
const _: () = assert!(AHEAD_BUSY + SLACK < abi::WM_DOORS as u64, "a credit's door is clear before it is enqueued");
/// How soon launches are replaced while records are served and the arbiter parks in between.
const TICK_BUSY: Duration = Duration::from_millis(1);
/// The same where launches are let in as sm_share allows: news waits up to this much longer.
const TICK_SHARED: Duration = Duration::from_micros(250);
/// What a launch without work holds an SM for, about: so many of them fit into a share.
const LAUNCH_COST: Duration = Duration::from_micros(5);
/// How long after the last record that was served more are expected soon.
const BUSY: Duration = Duration::from_millis(100);
/// How often a queue of launches may fail to say how it is doing, on the way to a stop, until it is given up: a thread fails
/// once for each launch, a device that is gone always.
const FAULTS: u32 = 100;

pub(crate) enum Command {
    /// Let the arbiter leave and answer when it has.
    Pause(Duration, Sender<Result<()>>),
    /// Go on.
    Resume,
    /// As `Pause`, and end the thread.
    Stop(Duration, Sender<Result<()>>),
}

pub(crate) struct Launcher {
    memory: Arc<Memory>,
    args: wm_arbiter_args,
    launches: Box<dyn Launches>,
    launched: u64,
    /// Credits whose doors are clear.
    cleared: u64,
    /// The next launch is the first, or the first after a pause: it waits for nobody and takes nothing up.
    at_once: bool,
    /// What the telemetry said of grants at the last turn, and when that was news.
    grants: u64,
    /// The same of senders that found it parked.
    woken: u64,
    granted: Instant,
    /// Launches that had begun at the last turn.
    seen: u64,
    /// Launches that news used up from one turn to the next, the most of late.
    used: f64,
    /// A launch has begun: the arguments are good.
    proven: bool,
    /// How often it looks while nothing happens.
    quiet: Duration,
    /// Launches wait here, not on the device: how soon to look at their doors.
    watch: Option<Duration>,
    /// When it last asked the driver whether the launches are well.
    asked: Instant,
    /// How many launches had begun when that last was news, and when.
    begun: (u64, Instant),
    /// The launch that was last let in because its time had come, or will be, and when.
    due: (u64, Instant),
    /// No launch waits longer for its time: the pacer would let it in.
    max_wait: Duration,
    pace: Arc<Pace>,
    /// When the last turn to open doors was taken here.
    paced: Instant,
}

impl Launcher {
    pub(crate) fn new(
        memory: Arc<Memory>,
        args: wm_arbiter_args,
        launches: Box<dyn Launches>,
        max_wait: Option<Duration>,
        pace: Arc<Pace>,
    ) -> Self {
        let residency = Duration::from_nanos(args.residency_ns);
        let quiet = max_wait.filter(|_| args.idle_spin_ns != 0).unwrap_or(residency / 4);
        let quiet = quiet.clamp(Duration::from_micros(50), QUIET);
        let (at_once, asked) = (true, Instant::now());
        let (grants, woken, used, granted, seen, proven) = (0, 0, 0.0, asked, 0, false);
        let (due, max_wait) = ((0, asked), max_wait.unwrap_or(UNPACED));
        Launcher {
            memory,
            args,
            launches,
            launched: 0,
            cleared: 0,
            at_once,
            grants,
            woken,
            used,
            granted,
            seen,
            proven,
            quiet,
            watch: None,
            asked,
            begun: (0, asked),
            due,
            max_wait,
            pace,
            paced: asked,
        }
    }

    /// Runs until told to stop. Gives the launches back when none is outstanding.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        let mut running = true;
        let mut outcome = self.launches.adopt_thread();
        loop {
            if let Err(e) = outcome {
                tracing::error!(error = %e, "the arbiter's launches failed");
                self.memory.fail(e.to_string());
                running = false;
            }
            let period = self.pace.period();
            if self.until_pace() <= period / EARLY {
                self.pace.take_turn();
                self.paced = Instant::now();
            }
            self.pace.expect_within(self.until_pace()); // exactly, while the driver may keep this thread
            outcome = if running { self.top_up() } else { Ok(()) };
            self.pace.expect_within(self.until_pace() + period / LATE);
            match commands.try_recv() {
                // Whoever sends a command unparks this thread; a channel would spin first.
                Err(TryRecvError::Empty) => {
                    std::thread::park_timeout(self.tick());
                }
                Ok(Command::Resume) => {
                    (running, self.at_once) = (true, true);
                    self.begun.1 = Instant::now();
                }
                Ok(Command::Pause(bound, answer)) => {
                    running = false;
                    let _ = answer.send(self.leave(bound));
                }
                Ok(Command::Stop(bound, answer)) => {
                    let left = self.leave(bound);
                    drop(self); // frees what the launches hold before the caller goes on
                    let _ = answer.send(left);
                    return;
                }
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Until this thread's turn to open doors.
    fn until_pace(&self) -> Duration {
        self.pace.period().saturating_sub(self.paced.elapsed())
    }

    fn tick(&self) -> Duration {
        if self.memory.is_waiting() {
            return TICK_NO_ROOM.min(self.until_pace());
        }
        let own = match (self.proven, self.is_busy()) {
            (false, _) => TICK_FIRST,
            (true, true) if self.is_shared() => TICK_SHARED.min(self.quiet),
            (true, true) => TICK_BUSY.min(self.quiet),
            (true, false) => self.quiet,
        };
        let due = self.due.1.checked_duration_since(Instant::now()).unwrap_or(own);
        self.watch.map_or(own, |watch| watch.min(own)).min(due).min(self.until_pace())
    }

    /// Whether launches that park are used up by wake-ups.
    fn is_busy(&self) -> bool {
        self.parks() && self.grants + self.woken > 0 && self.granted.elapsed() < BUSY
    }

    fn parks(&self) -> bool {
        self.args.idle_spin_ns != 0
    }

    /// Whether launches are let in as sm_share allows.
    fn is_shared(&self) -> bool {
        self.parks() && self.args.sm_share_ppm < WHOLE_SHARE
    }

    /// Launches to keep ahead while records are served. Each pacing lets all of them go: that holds the SM, who has news just
    /// then waits for the next one, and sm_share must allow it.
    fn ahead_busy(&self) -> u64 {
        let share = f64::from(self.args.sm_share_ppm) / f64::from(WHOLE_SHARE);
        let fit = (share * TICK_SHARED.as_secs_f64() / LAUNCH_COST.as_secs_f64()).ceil() as u64;
        let wanted = (AHEAD + 2 * (self.used - 0.1).ceil() as u64).min(AHEAD_BUSY);
        if self.is_shared() { (AHEAD + fit).min(wanted) } else { wanted }
    }

    /// What happened since the last turn.
    fn look_for_news(&mut self, telemetry: &abi::wm_telemetry) {
        let woken = self.memory.woken();
        let grants = telemetry.grants.saturating_sub(std::mem::replace(&mut self.grants, telemetry.grants));
        let senders = woken.saturating_sub(std::mem::replace(&mut self.woken, woken));
        if grants + senders > 0 {
            self.granted = Instant::now();
        }
        // Those that the pacer let go give no grants.
        let begun = telemetry.launches.saturating_sub(std::mem::replace(&mut self.seen, telemetry.launches));
        self.used = (begun.min(grants.max(senders)) as f64).max(self.used * FADING);
    }

    /// D2: opens the door of the launch that is due, if its time has come and the door has been cleared. The arbiter told its
    /// number and how long to wait, and no news will ring for it.
    fn open_due(&mut self, telemetry: &abi::wm_telemetry) {
        let Some(credit) = telemetry.due.checked_sub(1).filter(|c| *c >= telemetry.launches) else { return };
        if self.due.0 != credit {
            let wait = Duration::from_nanos(telemetry.closed_ns).min(self.max_wait);
            self.due = (credit, Instant::now() + wait);
        }
        if credit < self.cleared && Instant::now() >= self.due.1 {
            self.memory.set_door(credit, true);
        }
    }

    /// Says whether the device has begun nothing for so long that there seems to be no room. What waits for its door, or for
    /// its share, begins within max_wait, unless there is no pacer.
    fn look_for_room(&mut self, telemetry: &abi::wm_telemetry) {
        let is_idle = telemetry.launches == telemetry.launches_ended && self.launched > telemetry.launches;
        let may_wait = self.proven && self.parks() && self.max_wait >= UNPACED;
        if !is_idle || may_wait || self.begun.0 != telemetry.launches {
            self.begun = (telemetry.launches, Instant::now());
        }
        let paced = if self.proven && self.parks() { self.max_wait } else { Duration::ZERO };
        self.memory.set_waiting(self.begun.1.elapsed() >= NO_ROOM + paced);
    }

    fn top_up(&mut self) -> Result<()> {
        let telemetry = self.memory.telemetry();
        self.proven = telemetry.launches > 0;
        self.look_for_room(&telemetry);
        if !self.proven || self.asked.elapsed() >= ASK {
            self.asked = Instant::now();
            let outstanding = self.launches.outstanding()? as u64;
            if self.memory.telemetry().launches_ended + outstanding < self.launched {
                let why = "a launch of the arbiter left without running: it refused its arguments";
                return Err(Error::Failed(why.into()));
            }
        }
        self.look_for_news(&telemetry);
        if self.parks() {
            self.clear_doors(telemetry.launches);
            self.open_due(&telemetry);
        }
        let ahead = match (self.proven, self.is_busy()) {
            (false, _) => 1, // alone, so that one that refuses its arguments leaves the queue empty, and is noticed
            (true, true) => self.ahead_busy(),
            (true, false) if self.parks() => AHEAD,
            (true, false) => AHEAD_HOT,
        };
        // Those that the pacer is letting go count as begun, but never so many that doors or the driver's queue run out.
        let begun = self.memory.paced().clamp(telemetry.launches, telemetry.launches + SLACK);
        while self.launched < begun + ahead {
            let n = self.launched;
            self.args.resume = u32::from(!std::mem::take(&mut self.at_once));
            if self.args.resume == 0 {
                self.memory.refresh_headers()?;
            }
            let soon = self.is_busy();
            let door = self.parks().then(|| Door { soon, ..self.memory.door_of(n) });
            if door.is_some() {
                if self.args.resume == 0 {
                    self.memory.set_door(n, true);
                }
                self.memory.publish_enqueued(n + 1); // Q1: before the driver call, which may wait for somebody's lock
            }
            self.launches.launch(&self.args, door)?; // Q2
            self.launched += 1;
        }
        self.watch = self.launches.watch()?;
        Ok(())
    }

    /// Makes credits ready to be rung for, as far ahead as there are doors: a door is used again when its last credit has
    /// begun.
    fn clear_doors(&mut self, begun: u64) {
        let cleared = self.cleared;
        self.cleared = begun + u64::from(abi::WM_DOORS);
        if cleared == self.cleared {
            return;
        }
        for n in cleared..self.cleared {
            self.memory.set_door(n, false); // C1
        }
        self.memory.publish_credits(self.cleared); // C2, C3
        let wanted = self.memory.telemetry().wanted;
        for n in cleared..self.cleared.min(wanted) {
            self.memory.set_door(n, true); // C4
        }
    }

    /// Opens the doors of all credits that have not begun.
    fn open_doors(&self) {
        // One more than were launched, if the driver took a wait and refused the launch behind it.
        for n in self.memory.telemetry().launches..self.memory.enqueued().max(self.launched) {
            self.memory.set_door(n, true);
        }
    }

    /// Rings the stop doorbell and waits until nothing is outstanding.
    fn leave(&mut self, bound: Duration) -> Result<()> {
        // A quarter: of what is left, whoever asked wants something too.
        self.memory.ring_stop(u64::try_from(bound.as_nanos() / 4).unwrap_or(u64::MAX).max(1)); // S1; S2 is the release of the doors
        self.open_doors(); // S3
        let until = deadline(bound);
        let (mut failed, mut faults) = (None, 0);
        // S4
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.launches.wait(left.min(Duration::from_millis(10))) {
                Ok(0) => break,
                Ok(_) if left.is_zero() => {
                    self.memory.abandon();
                    return Err(Error::Stuck { waited: bound, stuck: self.memory.stuck() });
                }
                Ok(_) => {}
                Err(e) => {
                    // Others may be running still, with memory that the caller is about to free.
                    self.memory.fail(e.to_string());
                    failed.get_or_insert(e);
                    faults += 1;
                    if left.is_zero() || faults > FAULTS {
                        self.memory.abandon();
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        self.memory.ring_stop(0);
        failed.map_or(Ok(()), Err)
    }
}
