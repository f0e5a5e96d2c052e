//! The thread that enqueues the steps of stream modules ahead of need. Launches are credits with doors, as the arbiter's own
//! are (launcher.rs); where the arbiter is on the CPU, a step is enqueued when it has been granted, or behind the work that may
//! give it its records (ahead.rs), and waits for nobody.

mod ahead;
mod room;

pub(crate) use ahead::PASSES;
pub(crate) use room::QUEUE;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError};

use crate::abi;
use crate::backend::StepQueue;
use crate::backend::cuda::Event;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::memory::gates::Gate;
use crate::options::Mode;
use crate::wait::deadline;
use room::{FULL, Full, ahead_of, when_full};

/// How long after the last step more are expected at once, and how soon launches are then replaced.
const BUSY: Duration = Duration::from_millis(2);
const TICK_BUSY: Duration = Duration::from_micros(20);
/// How long after it they are expected soon.
const WARM: Duration = Duration::from_millis(200);
const TICK_WARM: Duration = Duration::from_micros(500);
/// How often it looks while nothing happens: where launches stand in the stream, and where they do not.
const TICK_QUIET: Duration = Duration::from_millis(10);
const TICK_QUIET_CPU: Duration = Duration::from_millis(1);
/// How often a stream is asked whether it is well.
const ASK: Duration = Duration::from_millis(50);
/// How often it may fail to say so, on the way to an end, until it is given up: what a body did is said once, a device that is
/// gone says it always.
const FAULTS: u32 = 100;

pub(crate) enum Command {
    /// Wait for no more grants, and answer when nothing is enqueued.
    Pause(Duration, Sender<Result<()>>),
    /// Go on.
    Resume,
    /// As `Pause` for one module, for good.
    Close(usize, Duration, Sender<Result<()>>),
    /// As `Pause`, and end the thread.
    Stop(Duration, Sender<Result<()>>),
}

/// One module's launches.
struct Lane {
    gate: usize,
    /// Of a pass: its other gates.
    others: Vec<usize>,
    queue: Option<Box<dyn StepQueue>>,
    launched: u64,
    /// Credits whose doors are clear.
    cleared: u64,
    /// The next launch waits for no ring: the first one, or the first after a pause.
    at_once: bool,
    begun: u64,
    /// Launches that wait for their doors here, because the device's streams cannot: the next one that is to be let in.
    let_in: Option<u64>,
    /// Of an arbiter on the CPU: the lanes whose steps may come behind this one's.
    followers: Vec<usize>,
    /// The grant of each server that launches of this lane were last enqueued behind.
    seen: Vec<u64>,
    /// Launches that stand in the stream ahead of need.
    ahead: u64,
    /// How often its queue seemed to be full.
    full: u32,
}

pub(crate) struct Runner {
    memory: Arc<Memory>,
    lanes: Vec<Lane>,
    /// Of the servers of an arbiter on the CPU, where there is a GPU.
    servers: Vec<Arc<Event>>,
    moved: Instant,
    asked: Instant,
}

impl Runner {
    /// A queue for each gate, in order; or, where there is a static order, one of passes.
    /// `host_doors`: streams cannot wait for doors, so this thread does. `servers`: as of [`Launches::server_events`].
    ///
    /// [`Launches::server_events`]: crate::backend::Launches::server_events
    pub(crate) fn new(
        memory: Arc<Memory>,
        queues: Vec<Box<dyn StepQueue>>,
        host_doors: bool,
        servers: Vec<Arc<Event>>,
    ) -> Self {
        let order: Vec<usize> = memory.order.iter().map(|&(gate, _)| gate).collect();
        let lane = |(gate, queue): (usize, Box<dyn StepQueue>)| {
            let Gate { args, ahead, .. } = &memory.gates[gate];
            let entries = queue.entries();
            // One that fills a queue by itself would keep this thread, and so the others, until its door opens.
            let waits_here = args.doors != 0 && (host_doors || entries.is_some_and(|n| n > QUEUE));
            Lane {
                gate: order.first().copied().unwrap_or(gate),
                others: order.get(1..).unwrap_or_default().to_vec(),
                queue: Some(queue),
                launched: 0,
                cleared: 0,
                at_once: true,
                begun: 0,
                let_in: waits_here.then_some(0),
                followers: memory.followers_of(gate),
                seen: vec![0; memory.servers()],
                ahead: ahead_of(*ahead, entries),
                full: 0,
            }
        };
        let lanes = queues.into_iter().enumerate().map(lane).collect();
        Runner { memory, lanes, servers, moved: Instant::now(), asked: Instant::now() }
    }

    /// What a lane is called; where its steps do not end, the one that is under way.
    fn name(&self, i: usize, stuck: bool) -> String {
        let lane = &self.lanes[i];
        let gates = self.gates_of(i);
        let name = |gate: usize| &self.memory.module_names[self.memory.gates[gate].module];
        let is_under_way = |&gate: &usize| {
            let report = self.memory.gate_report(gate);
            report.begun != report.ended
        };
        match gates.iter().copied().find(is_under_way).filter(|_| stuck || lane.others.is_empty()) {
            None if !lane.others.is_empty() => {
                let names: Vec<_> = gates.iter().map(|&gate| name(gate).as_str()).collect();
                format!("the pass of stream modules {}", names.join(", "))
            }
            gate => format!("stream module {}", name(gate.unwrap_or(lane.gate))),
        }
    }

    fn gates_of(&self, i: usize) -> Vec<usize> {
        let lane = &self.lanes[i];
        std::iter::once(lane.gate).chain(lane.others.iter().copied()).collect()
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        let mut running = true;
        for i in 0..self.lanes.len() {
            let outcome = self.lanes[i].queue.as_mut().map_or(Ok(()), |q| q.adopt_thread());
            self.note(i, outcome);
        }
        loop {
            if running {
                self.top_up();
            }
            match commands.try_recv() {
                Err(TryRecvError::Empty) => self.rest(),
                Ok(Command::Resume) => {
                    running = true;
                    self.lanes.iter_mut().for_each(|lane| lane.at_once = true);
                }
                Ok(Command::Pause(bound, answer)) => {
                    running = false;
                    let _ = answer.send(self.leave(None, bound));
                }
                Ok(Command::Close(gate, bound, answer)) => {
                    let left = self.leave(Some(gate), bound);
                    if left.is_ok() {
                        self.lanes.iter_mut().filter(|l| l.gate == gate).for_each(|l| l.queue = None);
                    }
                    let _ = answer.send(left);
                }
                Ok(Command::Stop(bound, answer)) => {
                    let left = self.leave(None, bound);
                    if left.is_err() {
                        // To free a stream may wait for what runs on it; the caller does not wait for that.
                        let _ = answer.send(left);
                        return;
                    }
                    drop(self); // frees what the queues hold before the caller goes on
                    let _ = answer.send(left);
                    return;
                }
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Until it is worth looking again. While steps run, or have just run, it comes back at once.
    fn rest(&self) {
        let since = self.moved.elapsed();
        let is_cpu = self.lanes.iter().any(|l| l.let_in.is_some() || self.memory.gates[l.gate].args.doors == 0);
        match (since < BUSY, since < WARM) {
            (true, _) if is_cpu => std::thread::yield_now(),
            (true, _) => std::thread::park_timeout(TICK_BUSY),
            (false, true) => std::thread::park_timeout(if is_cpu { TICK_BUSY } else { TICK_WARM }),
            _ => std::thread::park_timeout(if is_cpu { TICK_QUIET_CPU } else { TICK_QUIET }),
        }
    }

    /// What went wrong with a module ends the runtime, with its name.
    fn note(&mut self, lane: usize, outcome: Result<()>) {
        if let Err(e) = outcome {
            let name = self.name(lane, false);
            tracing::error!(module = %name, error = %e, "its steps failed");
            self.memory.fail(format!("{name}: {e}"));
        }
    }

    fn top_up(&mut self) {
        if self.memory.failure().is_some() {
            return;
        }
        let ask = self.asked.elapsed() >= ASK;
        if ask {
            self.asked = Instant::now();
        }
        for i in 0..self.lanes.len() {
            let outcome = self.top_up_lane(i, ask);
            self.note(i, outcome);
            if self.memory.failure().is_some() {
                return; // a body that has failed is not begun again
            }
        }
    }

    fn top_up_lane(&mut self, i: usize, ask: bool) -> Result<()> {
        let lane = &mut self.lanes[i];
        let Some(queue) = &mut lane.queue else { return Ok(()) };
        if ask {
            queue.is_empty()?;
        }
        let memory = &self.memory;
        if memory.mode() == Mode::Cpu {
            return if memory.order.is_empty() { self.top_up_granted(i) } else { self.top_up_passes(i) };
        }
        let report = memory.gate_report(lane.gate);
        if report.begun != std::mem::replace(&mut lane.begun, report.begun) && report.steps > 0 {
            self.moved = Instant::now();
        }
        clear_doors(memory, lane.gate, &mut lane.cleared, report.begun);
        let begun = memory.gate_paced(lane.gate).clamp(report.begun, report.begun + 1);
        while lane.launched < begun + lane.ahead {
            let n = lane.launched;
            if std::mem::take(&mut lane.at_once) {
                memory.set_gate_door(lane.gate, n, true);
            }
            memory.publish_gate_enqueued(lane.gate, n + 1); // Q1
            if lane.let_in.is_none() {
                let since = Instant::now();
                queue.enqueue(Some(memory.gate_door(lane.gate, n)))?; // Q2
                let has_moved = || memory.gate_report(lane.gate).begun > report.begun;
                if since.elapsed() >= FULL && has_moved() {
                    lane.full += 1;
                    match when_full(n.saturating_sub(report.begun), lane.ahead, queue.entries(), lane.full) {
                        Full::Wait => {}
                        Full::Ahead(fit) => (lane.ahead, lane.full) = (fit, 0),
                        Full::LetIn => lane.let_in = Some(n + 1),
                    }
                    let module = &memory.module_names[memory.gates[lane.gate].module];
                    tracing::warn!(%module, ahead = lane.ahead, by_the_host = lane.let_in.is_some(), "a launch waited for room in its stream's queue");
                }
            }
            lane.launched += 1;
        }
        while let Some(n) = lane.let_in.filter(|&n| n < lane.launched && memory.gate_door_is_open(lane.gate, n)) {
            queue.enqueue(None)?;
            lane.let_in = Some(n + 1);
            self.moved = Instant::now();
        }
        Ok(())
    }

    /// Has the gates wait no longer, of one module or of all, and waits until nothing of theirs is enqueued.
    fn leave(&mut self, only: Option<usize>, bound: Duration) -> Result<()> {
        let until = deadline(bound);
        let lanes: Vec<usize> =
            (0..self.lanes.len()).filter(|&i| only.is_none_or(|g| self.lanes[i].gate == g)).collect();
        for &i in &lanes {
            for gate in self.gates_of(i) {
                self.memory.stop_gate(gate, true); // S1
                let enqueued = self.memory.gate_enqueued(gate).max(self.lanes[i].launched);
                for n in self.memory.gate_report(gate).begun..enqueued {
                    self.memory.set_gate_door(gate, n, true); // S3
                }
            }
        }
        let (mut outcome, mut last_waits) = (Ok(()), false);
        for &i in &lanes {
            let left = self.wait_for(i, until);
            if let Err(e) = &left {
                let name = self.name(i, true);
                tracing::warn!(module = %name, error = %e, "its steps did not end in order");
            }
            let left = left.map_err(|e| match e {
                Error::Timeout { .. } => Error::Stuck { waited: bound, stuck: self.name(i, true) },
                e => e,
            });
            // One that has not begun waits for another, which is the one to be named.
            let is_at_rest = |gate: &usize| {
                let report = self.memory.gate_report(*gate);
                report.begun == report.ended
            };
            let waits = matches!(left, Err(Error::Stuck { .. })) && self.gates_of(i).iter().all(is_at_rest);
            outcome = match (outcome, left) {
                (Ok(()), left) => left,
                (Err(Error::Stuck { .. }), Err(e)) if last_waits && !waits => Err(e),
                (outcome, _) => outcome,
            };
            last_waits = waits;
        }
        if outcome.is_ok() {
            let gates = lanes.iter().flat_map(|&i| self.gates_of(i));
            gates.for_each(|gate| self.memory.stop_gate(gate, false));
        }
        outcome
    }

    /// Until nothing of a lane's is enqueued. Launches that wait for their doors here are not: they never will be.
    fn wait_for(&mut self, i: usize, until: Instant) -> Result<()> {
        let lane = &mut self.lanes[i];
        let Some(queue) = &mut lane.queue else { return Ok(()) };
        let (mut outcome, mut faults) = (Ok(()), 0);
        loop {
            match queue.is_empty() {
                Ok(true) => break,
                Ok(false) => {}
                Err(e) => {
                    faults += 1;
                    outcome = outcome.and(Err(e));
                }
            }
            let late = Instant::now() >= until;
            if late || faults > FAULTS {
                self.memory.abandon(); // they may be running still, with memory that the caller is about to free
                let late = Error::Timeout { what: "the end of its steps".into(), waited: Duration::ZERO };
                return outcome.and(Err(late));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        lane.launched = lane.let_in.unwrap_or(lane.launched);
        outcome
    }
}

/// As [`Launcher::clear_doors`](crate::launcher), of a stream module's launches.
fn clear_doors(memory: &Memory, gate: usize, cleared: &mut u64, begun: u64) {
    let before = std::mem::replace(cleared, begun + u64::from(abi::WM_DOORS));
    if before == *cleared {
        return;
    }
    for n in before..*cleared {
        memory.set_gate_door(gate, n, false); // C1
    }
    memory.publish_gate_credits(gate, *cleared); // C2, C3
    let wanted = memory.gate_report(gate).wanted;
    for n in before..(*cleared).min(wanted) {
        memory.set_gate_door(gate, n, true); // C4
    }
}
