//! Running a module graph: start, quiesce, drain, stop, and the host's ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Sender as ChannelSender};

use crate::abi;
use crate::backend::cuda::Event;
use crate::backend::host_doors::HostDoors;
use crate::backend::{Launches, Part, StepQueue};
use crate::budget::SpinBudget;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Builder, MailboxId, ModuleId};
use crate::image::HandlerImage;
use crate::journal::{Drain, JournalStats, Sink};
use crate::launcher::{Command, Launcher};
use crate::memory::Memory;
use crate::options::{Mode, Rule};
use crate::pacer::{Pace, Pacer};
use crate::port::{Pause, Receiver, Sender};
use crate::stats::{Footprint, Stats};
use crate::tensor::Pool;
use crate::wait::deadline;

mod checkpoint;
mod steps;

/// Where a runtime is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Built; the arbiter has not been started.
    Ready,
    /// The arbiter runs.
    Running,
    /// Started, but for a second or longer the device has begun none of the arbiter's launches: no SM has room for it, or another
    /// process holds the device ([`Gauge::read`](crate::Gauge::read) may name it). It goes on by itself when there is room;
    /// until then nothing polls, and a stop returns within its bound.
    Waiting,
    /// The arbiter is away and its memory at rest, inside [`Runtime::quiesce`].
    Quiet,
    /// Stopped for good.
    Stopped,
    /// A driver error or a stuck handler; [`Runtime::failure`] says which.
    Failed,
}

/// What a host module's closure says of its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostStep {
    /// Call again when the rule fires.
    Continue,
    /// Nothing more to do: the thread ends.
    Done,
}

/// The ends of a host module, in the order its mailboxes were added.
#[derive(Debug)]
pub struct HostEnds {
    /// Mailboxes to take from.
    pub inputs: Vec<Receiver>,
    /// Mailboxes to give to.
    pub outputs: Vec<Sender>,
    stopping: Arc<AtomicBool>,
}

impl HostEnds {
    /// Whether the runtime is being stopped: a long step should end soon.
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

struct HostModule {
    name: String,
    thread: JoinHandle<Result<()>>,
}

/// A module graph with its memory, its arbiter and its host threads.
///
/// Dropping it stops the arbiter, waiting at most two seconds.
pub struct Runtime {
    memory: Arc<Memory>,
    args: abi::wm_arbiter_args,
    launches: Option<Box<dyn Launches>>,
    footprint: Option<Footprint>,
    /// See [`Launches::server_events`].
    server_events: Vec<Arc<Event>>,
    commands: Option<ChannelSender<Command>>,
    thread: Option<JoinHandle<()>>,
    /// The steps of stream modules, by gate, until they begin to run.
    queues: Vec<Option<Box<dyn StepQueue>>>,
    /// Of a static order: the same, of which a queue of passes is made.
    parts: Vec<Option<Part>>,
    /// By gate, until it has its body.
    deliveries: Vec<Vec<abi::wm_delivery>>,
    steps: Option<steps::Steps>,
    host_doors: bool,
    short_queues: Option<usize>,
    budget: SpinBudget,
    /// With parking, how long a door may stay closed.
    max_wait: Option<Duration>,
    pacer: Option<Pacer>,
    journal: Option<Drain>,
    journal_threads: Option<u32>,
    state: State,
    taken: std::collections::HashSet<(bool, u32)>,
    kinds: Vec<(u32, Rule, Vec<u32>, Vec<u32>)>,
    hosts: Vec<HostModule>,
    stopping: Arc<AtomicBool>,
    /// Records given and taken, by mailbox, in the runs before that were restored.
    counted_before: Vec<(u64, u64)>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("state", &self.state).field("modules", &self.memory.module_names).finish()
    }
}

impl Runtime {
    pub(crate) fn new(graph: Builder, image: HandlerImage) -> Result<Self> {
        let span = tracing::info_span!(
            "build",
            modules = graph.modules.len(),
            mailboxes = graph.mailboxes.len(),
            set = %image.name
        );
        let _entered = span.enter();
        let kinds =
            graph.modules.iter().map(|m| (m.kind, m.options.rule, m.inputs.clone(), m.outputs.clone())).collect();
        let parks = graph.budget.idle_spin.is_some() || graph.modules.iter().any(|m| m.steps.is_some());
        let max_wait = (parks && graph.has_pacer).then_some(graph.budget.max_wait);
        let host_doors = graph.host_doors || !graph.device.info().stream_memory_operations;
        let (budget, short_queues) = (graph.budget.clone(), graph.short_queues);
        let (held, journal_threads, beside) = (graph.held.clone(), graph.journal_threads, graph.beside);
        let (memory, args) = Memory::of_graph(graph)?;
        let mut launches = memory.device().backend.load(&image, &args, beside)?;
        if host_doors && memory.mode() == Mode::Device {
            launches = Box::new(HostDoors::new(launches, held));
        }
        if memory.device().info().ordinal.is_some()
            && memory.mode() == Mode::Device
            && let Some(why) = crate::probe::too_few_connections(memory.gates.len())
        {
            tracing::warn!("{why}");
        }
        let (footprint, server_events) = (launches.footprint(), launches.server_events());
        let queues = memory.gates.iter().map(|_| None).collect();
        let parts = memory.gates.iter().map(|_| None).collect();
        let deliveries = memory.gates.iter().map(|_| Vec::new()).collect();
        tracing::debug!(?footprint, "allocated and loaded");
        Ok(Runtime {
            memory: Arc::new(memory),
            args,
            launches: Some(launches),
            footprint,
            server_events,
            commands: None,
            thread: None,
            queues,
            parts,
            deliveries,
            steps: None,
            host_doors,
            short_queues,
            budget,
            max_wait,
            pacer: None,
            journal: None,
            journal_threads,
            state: State::Ready,
            taken: Default::default(),
            kinds,
            hosts: Vec::new(),
            stopping: Arc::default(),
            counted_before: Vec::new(),
        })
    }

    /// What telemetry and handles are read from, whoever holds the runtime meanwhile.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        match self.state {
            _ if self.memory.failure().is_some() => State::Failed,
            State::Running if self.memory.is_waiting() => State::Waiting,
            state => state,
        }
    }

    /// Why it failed.
    pub fn failure(&self) -> Option<&str> {
        self.memory.failure()
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.memory.device()
    }

    /// The limits on the arbiter, with what [`SpinBudget::BREAK_EVEN`] stands for here.
    pub fn budget(&self) -> &SpinBudget {
        &self.budget
    }

    /// Who arbitrates.
    pub fn mode(&self) -> Mode {
        self.memory.mode()
    }

    /// The producer's end of a mailbox whose producer is a host module. There is one: a second call is refused.
    pub fn sender(&mut self, mailbox: MailboxId) -> Result<Sender> {
        let handle = self.take_end(mailbox, true)?;
        Sender::attach(&handle, self.memory.clone())
    }

    /// The consumer's end of a mailbox whose consumer is a host module. There is one: a second call is refused.
    pub fn receiver(&mut self, mailbox: MailboxId) -> Result<Receiver> {
        let handle = self.take_end(mailbox, false)?;
        Receiver::attach(&handle, self.memory.clone())
    }

    /// The handle of a mailbox as kernels use it, for the ends of [`Builder::stream`] modules.
    pub fn handle(&self, mailbox: MailboxId) -> Result<abi::wm_mailbox> {
        self.memory.handle(mailbox)
    }

    fn take_end(&mut self, mailbox: MailboxId, producer: bool) -> Result<abi::wm_mailbox> {
        let handle =
            *self.memory.host_handles.get(mailbox.index()).ok_or_else(|| crate::memory::unknown_mailbox(mailbox))?;
        let (side, who) =
            if producer { (handle.producer_side, "producer") } else { (handle.consumer_side, "consumer") };
        let name = || format!("mailbox {}", self.memory.mailbox_name(mailbox.0));
        if u32::from(side) != abi::WM_SIDE_HOST {
            return Err(Error::refused(name(), format!("its {who} is not a host module")));
        }
        if !self.taken.insert((producer, mailbox.0)) {
            return Err(Error::refused(name(), format!("its one {who} has been taken: a mailbox has exactly one")));
        }
        Ok(handle)
    }

    /// Runs a host module on a thread of its own: calls `step` whenever the rule fires over its inputs (any record, or one
    /// in each), and, if it has no inputs, again and again. An error ends the thread and is reported by [`Self::stop`].
    pub fn spawn<F>(&mut self, module: ModuleId, rule: Rule, mut step: F) -> Result<()>
    where
        F: FnMut(&mut HostEnds) -> Result<HostStep> + Send + 'static,
    {
        let (kind, _, inputs, outputs) = self
            .kinds
            .get(module.index())
            .cloned()
            .ok_or_else(|| Error::refused(format!("module id {}", module.0), "this graph has no such module"))?;
        let name = self.memory.module_names[module.index()].clone();
        if kind != abi::WM_KIND_HOST {
            return Err(Error::refused(format!("module {name}"), "only a host module runs on a thread of the host"));
        }
        let mut ends = HostEnds { inputs: Vec::new(), outputs: Vec::new(), stopping: self.stopping.clone() };
        for &m in &inputs {
            ends.inputs.push(self.receiver(MailboxId(m))?);
        }
        for &m in &outputs {
            ends.outputs.push(self.sender(MailboxId(m))?);
        }
        let memory = self.memory.clone();
        let body = move || {
            let mut pause = Pause::new();
            loop {
                let ready = ends.inputs.iter().filter(|i| i.is_ready()).count();
                let fires = match rule {
                    Rule::Any => ready > 0 || ends.inputs.is_empty(),
                    Rule::All => ready == ends.inputs.len(),
                };
                if fires {
                    pause = Pause::new();
                    if step(&mut ends)? == HostStep::Done {
                        return Ok(());
                    }
                } else {
                    if ends.stopping() {
                        return Ok(());
                    }
                    memory.check_alive()?;
                    pause.wait();
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("warpmail-{name}"))
            .spawn(body)
            .map_err(|e| Error::Unavailable { what: "a thread for a host module", reason: e.to_string() })?;
        self.hosts.push(HostModule { name, thread });
        Ok(())
    }

    /// Says where the records of tapped mailboxes ([`Builder::tap`]) go: to a [`Log`](crate::journal::Log), or another
    /// [`Sink`]. Two threads begin to drain; [`Self::stop`] drains the rest, makes it durable, and ends the sink.
    pub fn journal(&mut self, sink: impl Sink + 'static) -> Result<()> {
        if self.memory.journal_rings.is_empty() {
            return Err(Error::State("journal: no mailbox of this graph is tapped: see Builder::tap".into()));
        }
        if self.state != State::Ready || self.journal.is_some() {
            return Err(Error::State("journal: it is set once, before the start".into()));
        }
        let blocks = self.memory.has_blocking_taps();
        self.journal = Some(Drain::start(self.memory.clone(), Box::new(sink), blocks, self.journal_threads)?);
        Ok(())
    }

    /// Where kernels find how many records of a tapped mailbox are on disk, for `wait_durable` of `warpmail/durable.hpp`;
    /// valid while the runtime lives. A tap that may leave records out is refused: whoever waits could not know which.
    pub fn durable(&self, mailbox: MailboxId) -> Result<abi::wm_durable> {
        self.memory.durable_handle(mailbox)
    }

    /// Waits until the first `records` records of a mailbox are on disk, up to `bound`. The mailbox is as for
    /// [`Self::durable`]; its records get there when they have been taken.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::Failed`] if the journal has failed and they are not.
    pub fn wait_durable(&self, mailbox: MailboxId, records: u64, bound: Duration) -> Result<()> {
        self.durable(mailbox)?;
        let (begin, mut pause) = (Instant::now(), Pause::new());
        loop {
            let word = self.memory.durable(mailbox.index());
            if word & !abi::WM_DURABLE_ENDED >= records {
                return Ok(());
            }
            if word & abi::WM_DURABLE_ENDED != 0 {
                let why = self.journal_stats().and_then(|s| s.failed).unwrap_or_default();
                return Err(Error::Failed(format!("the journal: {why}")));
            }
            if begin.elapsed() >= bound {
                let name = self.memory.mailbox_name(mailbox.0);
                let what =
                    format!("{records} durable records of mailbox {name} (is its consumer at work, and the disk?)");
                return Err(Error::Timeout { what, waited: bound });
            }
            pause.wait();
        }
    }

    /// What became of the records that taps saw; none without a journal. No driver call.
    pub fn journal_stats(&self) -> Option<JournalStats> {
        self.journal.as_ref().map(Drain::stats)
    }

    /// Starts the arbiter. Returns when its first launch is enqueued.
    pub fn start(&mut self) -> Result<()> {
        self.memory.check_alive()?;
        if !self.memory.journal_rings.is_empty() && self.journal.is_none() {
            return Err(Error::State("start: mailboxes are tapped, so the journal must be set first".into()));
        }
        self.check_bodies()?;
        self.make_passes()?;
        let pace = Pace::new(self.memory.clone(), self.max_wait)?;
        let launches = match (self.state, self.launches.take()) {
            (State::Ready, Some(launches)) => launches,
            _ => return Err(Error::State("start: the runtime has been started before; build a new one".into())),
        };
        let span = tracing::info_span!("start", device = %self.device().info().name);
        let _entered = span.enter();
        let (commands, inbox) = channel::unbounded();
        let launcher = Launcher::new(self.memory.clone(), self.args, launches, self.max_wait, pace.clone());
        let thread = std::thread::Builder::new()
            .name("warpmail-launcher".into())
            .spawn(move || launcher.run(&inbox))
            .map_err(|e| Error::Unavailable { what: "a thread for the launcher", reason: e.to_string() })?;
        self.memory.set_launcher(thread.thread());
        let pacer = Pacer::start(pace);
        self.commands = Some(commands);
        self.thread = Some(thread);
        self.state = State::Running;
        self.pacer = Some(pacer?);
        self.start_steps()
    }

    /// Lets the arbiter leave the device, runs `closure`, and starts it again. Records wait where they are. For callers
    /// that are about to free memory, load modules or read state. `bound` limits the wait for the arbiter to leave.
    pub fn quiesce<T>(&mut self, bound: Duration, closure: impl FnOnce(&Runtime) -> T) -> Result<T> {
        let _span = tracing::info_span!("quiesce").entered();
        if self.state != State::Running {
            return Err(Error::State(format!("quiesce: the runtime is {:?}, not running", self.state)));
        }
        let until = deadline(bound);
        self.ask(bound, Command::Pause)?;
        self.state = State::Quiet;
        // Goes on even if the closure panics: the panic is the caller's, a silent arbiter would be ours.
        struct Resume<'a>(&'a mut Runtime);
        impl Drop for Resume<'_> {
            fn drop(&mut self) {
                self.0.state = State::Running;
                if let Some(steps) = &self.0.steps {
                    steps.resume();
                }
                let _ = self.0.command(Command::Resume);
            }
        }
        let resume = Resume(self);
        if let Some(steps) = &resume.0.steps {
            steps.pause(&resume.0.memory, until.saturating_duration_since(Instant::now()).max(LEAST))?;
        }
        resume.0.memory.settle()?;
        let value = closure(resume.0);
        drop(resume);
        Ok(value)
    }

    /// Waits until every record has been taken from every mailbox that a resident module consumes, and no handler runs.
    pub fn drain(&self, bound: Duration) -> Result<()> {
        let _span = tracing::info_span!("drain").entered();
        let until = deadline(bound);
        let (mut quiet, mut last) = (0, 0);
        loop {
            self.memory.check_alive()?;
            let stats = self.memory.stats();
            if stats.heartbeat_ns != last {
                last = stats.heartbeat_ns;
                let empty = |i: usize| {
                    let box_stats = &stats.mailboxes[i];
                    let written = self.memory.host_written(i).unwrap_or(box_stats.written).max(box_stats.written);
                    written == box_stats.consumed || box_stats.quarantined.is_some()
                };
                let consumed_here = |i: &usize| self.memory.is_served(*i);
                let all = (0..stats.mailboxes.len()).filter(consumed_here).all(empty);
                quiet = if all && stats.serving.is_empty() { quiet + 1 } else { 0 };
                // The words of one heartbeat are copied one after the other: only a repeated look is proof, or the last
                // words of a launch that has parked.
                if quiet >= 3 || (quiet > 0 && stats.parked) {
                    return Ok(());
                }
            }
            if Instant::now() >= until {
                return Err(Error::Timeout { what: "an empty module graph".into(), waited: bound });
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Ends the arbiter and the host modules' threads. Records still in mailboxes are left there. Returns within about
    /// `bound` whatever the handlers do; a handler that does not return is named in [`Error::Stuck`], and the memory it uses
    /// is kept. The first error of a host module is reported. A second stop does nothing.
    pub fn stop(&mut self, bound: Duration) -> Result<()> {
        if self.state == State::Stopped {
            return Ok(());
        }
        let _span = tracing::info_span!("stop").entered();
        let until = deadline(bound);
        self.stopping.store(true, Ordering::Relaxed);
        let mut outcome = Ok(());
        let left = || until.saturating_duration_since(Instant::now()).max(LEAST);
        let mut rest = bound;
        if let Some(steps) = self.steps.take() {
            // No more grants, then no more steps; only then is freed what the launches hold: that waits for both.
            outcome = self.ask(bound, Command::Pause).and(steps.stop(&self.memory, left()));
            rest = left();
        }
        if self.commands.is_some() {
            outcome = outcome.and(self.ask(rest, Command::Stop));
            self.commands = None;
        }
        self.pacer = None;
        if let Some(journal) = &mut self.journal {
            outcome = outcome.and(journal.finish(until.max(Instant::now() + Duration::from_millis(100))));
        }
        self.state = State::Stopped;
        for host in self.hosts.drain(..) {
            let joined = join_until(host.thread, until.max(Instant::now() + Duration::from_millis(100)));
            let result = joined.unwrap_or_else(|| {
                Err(Error::Timeout { what: format!("the end of host module {}", host.name), waited: bound })
            });
            outcome = outcome.and(result);
        }
        if !matches!(outcome, Err(Error::Stuck { .. }))
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
            outcome = outcome.and(self.memory.refresh_headers()); // what ends refused
            if !self.memory.is_abandoned()
                && let Err(e) = self.memory.settle()
            {
                tracing::warn!(error = %e, "the last steps' counters are missing"); // a device that is gone says so elsewhere
            }
        }
        if let Err(e) = &outcome {
            tracing::warn!(error = %e, "stopped with an error");
        }
        outcome
    }

    fn command(&self, command: Command) -> Result<()> {
        let gone = || Error::Failed("the launcher thread has ended".into());
        self.commands.as_ref().ok_or_else(gone)?.send(command).map_err(|_| gone())?;
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
        Ok(())
    }

    fn ask(&self, bound: Duration, command: impl FnOnce(Duration, ChannelSender<Result<()>>) -> Command) -> Result<()> {
        let (answer, reply) = channel::bounded(1);
        self.command(command(bound, answer))?;
        // The launcher keeps the bound itself; the margin covers a driver call it may be in.
        match reply.recv_deadline(deadline(bound.saturating_add(Duration::from_secs(2)))) {
            Ok(result) => result,
            Err(_) => {
                self.memory.abandon();
                Err(Error::Stuck { waited: bound, stuck: "the launcher thread, in a driver call".into() })
            }
        }
    }

    /// The pool of the graph's tensors, if its builder was given one.
    pub fn pool(&self) -> Option<&Pool> {
        self.memory.pool.as_ref()
    }

    /// After a stop: gives back the leases of records that nobody took, and those that handlers had taken and not released;
    /// returns how many. Receivers that still take such a record are told that its lease is stale. Kernels of the caller's
    /// that hold leases of this graph ([`Builder::stream`]) must have ended.
    pub fn recall_tensors(&mut self) -> Result<usize> {
        if self.state != State::Stopped || self.memory.is_abandoned() {
            return Err(Error::State(
                "recall_tensors: the arbiter may still follow them: stop the runtime first".into(),
            ));
        }
        Ok(self.memory.pool.as_ref().map_or(0, |pool| pool.core.recall(self.memory.serial)))
    }

    /// What the arbiter's kernel takes of an SM; none where no kernel stays: on the twin, and arbitrated by the CPU.
    pub fn footprint(&self) -> Option<Footprint> {
        self.footprint
    }

    /// Counters, from the mapped telemetry page: no driver call.
    pub fn stats(&self) -> Stats {
        self.memory.stats()
    }

    /// Reads a module's state. Only while nothing runs: before [`Self::start`], after [`Self::stop`], or in a quiesce.
    pub fn read_state(&self, module: ModuleId, into: &mut [u8]) -> Result<()> {
        let address = self.state_address(module, into.len())?;
        self.device().backend.download(into, address)
    }

    /// Writes a module's state, under the same condition.
    pub fn write_state(&self, module: ModuleId, bytes: &[u8]) -> Result<()> {
        let address = self.state_address(module, bytes.len())?;
        self.device().backend.upload(address, bytes)
    }

    fn state_address(&self, module: ModuleId, len: usize) -> Result<u64> {
        if self.state == State::Running {
            return Err(Error::State(
                "a module's state can be reached only while the arbiter is away: use quiesce".into(),
            ));
        }
        if self.memory.is_abandoned() {
            return Err(Error::State("a module's state: a handler that did not return may still be using it".into()));
        }
        let unknown = || Error::refused(format!("module id {}", module.0), "this graph has no such module");
        let (address, bytes) = *self.memory.states.get(module.index()).ok_or_else(unknown)?;
        if len > bytes {
            let rule = format!("its state has {bytes} bytes, not {len}");
            return Err(Error::refused(format!("module {}", self.memory.module_names[module.index()]), rule));
        }
        Ok(address)
    }
}

/// What an end is given that comes after another one used up the bound.
const LEAST: Duration = Duration::from_millis(100);

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = self.stop(Duration::from_secs(2));
    }
}

fn join_until(thread: JoinHandle<Result<()>>, until: Instant) -> Option<Result<()>> {
    while !thread.is_finished() {
        if Instant::now() >= until {
            return None;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Some(thread.join().unwrap_or_else(|_| Err(Error::Failed("a host module's closure panicked".into()))))
}
