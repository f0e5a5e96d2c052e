//! The steps of stream modules, as a runtime has them: their bodies, and the thread that enqueues them.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{self, Sender};

use super::{Runtime, State};
use crate::abi;
use crate::backend::{Live, StepPlan};
use crate::error::{Error, Result};
use crate::graph::ModuleId;
use crate::memory::Memory;
use crate::stream::{Body, Command, Delivery, Kind, PASSES, Runner, StepBuffer, input_of, output_of};
use crate::tensor::Pool;
use crate::wait::deadline;

/// The thread that enqueues steps.
pub(super) struct Steps {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

impl Steps {
    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::Failed("the thread of the stream modules has ended".into()))?;
        self.thread.thread().unpark();
        Ok(())
    }

    fn ask(
        &self,
        memory: &Memory,
        bound: Duration,
        command: impl FnOnce(Duration, Sender<Result<()>>) -> Command,
    ) -> Result<()> {
        let (answer, reply) = channel::bounded(1);
        self.send(command(bound, answer))?;
        // The thread keeps the bound itself; the margin covers a call that it may be in.
        reply.recv_deadline(deadline(bound.saturating_add(Duration::from_secs(2)))).unwrap_or_else(|_| {
            memory.abandon();
            let stuck = "the thread of the stream modules, in a driver call or in a body that does not return";
            Err(Error::Stuck { waited: bound, stuck: stuck.into() })
        })
    }

    pub(super) fn pause(&self, memory: &Memory, bound: Duration) -> Result<()> {
        self.ask(memory, bound, Command::Pause)
    }

    pub(super) fn resume(&self) {
        let _ = self.send(Command::Resume);
    }

    pub(super) fn stop(self, memory: &Memory, bound: Duration) -> Result<()> {
        let outcome = self.ask(memory, bound, Command::Stop);
        if !matches!(outcome, Err(Error::Stuck { .. })) {
            let _ = self.thread.join();
        }
        outcome
    }
}

impl Runtime {
    /// Says what the steps of a stream module ([`Builder::steps`](crate::Builder::steps)) do. Once for each, before the start;
    /// a body that is captured is captured here.
    pub fn body(&mut self, module: ModuleId, body: Body) -> Result<()> {
        let gate = self.gate_without_body(module, "body")?;
        let name = &self.memory.module_names[module.index()];
        let of = &self.memory.gates[gate];
        // In CPU-arbitrated mode as many steps as are granted, up to the number of doors.
        let under_way = if of.args.doors == 0 { abi::WM_DOORS as usize } else { of.ahead as usize } + 2;
        let live = Live(self.memory.gate_live(gate));
        let queue = self.short_queues;
        let deliveries = self.deliveries[gate].clone();
        let plan =
            StepPlan { name: name.clone(), args: of.args, deliveries, stream: of.stream, under_way, queue, live };
        if self.memory.order.is_empty() {
            self.queues[gate] = Some(self.device().backend.steps(plan, body)?);
            return Ok(());
        }
        if matches!(body.kind, Kind::EachStep(_)) {
            let rule =
                "the graph has a static order, whose passes are captured once: use Body::captured or Body::graph";
            return Err(Error::refused(format!("Body::each_step for stream module {name}"), rule));
        }
        self.parts[gate] = Some(self.device().backend.part(plan, body)?);
        Ok(())
    }

    /// Has the tensors that the records of an input point to copied to memory at a fixed address, where a body finds them that
    /// knows nothing of descriptors and leases, such as a captured graph of a framework's. Given before the body. Once the tensor
    /// is copied, the step's shares of its lease are released; nobody else does that then.
    ///
    /// A record that is no tensor, a tensor that does not fit or is not the one that was asked for, and a lease that has ended are
    /// counted ([`ModuleStats::rejects`](crate::ModuleStats)). Such a step has nothing to do: a body that can be skipped is, nothing
    /// is pushed, and its slots go back. Of several deliveries each one is made, and any that cannot be has this effect.
    ///
    /// # Safety
    /// The memory is the device's (on the twin: this process's), and stays so until the runtime has stopped
    /// ([`Self::keep`] sees to that). Nobody but the body uses it while steps run.
    pub unsafe fn deliver(&mut self, module: ModuleId, input: usize, delivery: &Delivery) -> Result<()> {
        let gate = self.gate_without_body(module, "deliver")?;
        input_of(&self.memory.gates[gate].args, input)?;
        let mut to = delivery.check(input)?;
        let backend = &self.device().backend;
        backend.owns(to.to)?;
        backend.owns(to.to + (to.bytes - 1))?;
        to.leases = self.memory.pool.as_ref().map(Pool::leases).unwrap_or_default();
        if self.deliveries[gate].iter().any(|d| d.input == to.input) {
            let name = &self.memory.module_names[module.index()];
            let rule = "its lease is released when the first is done: copy it on from there";
            return Err(Error::refused(format!("a second delivery for input {input} of module {name}"), rule));
        }
        self.deliveries[gate].push(to);
        Ok(())
    }

    /// Keeps `owner`, such as memory that steps use, until neither steps nor arbiter can use it any more: as long as the
    /// runtime's own memory. That is longer than the runtime where ends of mailboxes outlive it, and for good where a launch
    /// did not end in time.
    pub fn keep(&mut self, owner: impl Send + 'static) {
        self.memory.keep(Box::new(owner));
    }

    /// The gate of a stream module that is still to be given its body.
    fn gate_without_body(&self, module: ModuleId, call: &str) -> Result<usize> {
        let name = self
            .memory
            .module_names
            .get(module.index())
            .ok_or_else(|| Error::refused(format!("module id {}", module.0), "this graph has no such module"))?;
        let gate = self.memory.gates.iter().position(|g| g.module == module.index()).ok_or_else(|| {
            Error::refused(format!("{call} for module {name}"), "only modules of Builder::steps have bodies")
        })?;
        if self.state != State::Ready {
            return Err(Error::State(format!("{call}: before the start")));
        }
        if self.queues[gate].is_some() || self.parts[gate].is_some() {
            return Err(Error::refused(
                format!("{call} for module {name}"),
                "a module has one body, and it has been given",
            ));
        }
        Ok(gate)
    }

    fn gate_of(&self, module: ModuleId) -> Result<&crate::memory::gates::Gate> {
        let unknown = || Error::refused(format!("module id {}", module.0), "it is no module of Builder::steps");
        self.memory.gates.iter().find(|g| g.module == module.index()).ok_or_else(unknown)
    }

    /// The buffer that the records of a stream module's input are delivered to; for bodies that are captured elsewhere. It lives
    /// as long as the runtime.
    pub fn step_input(&self, module: ModuleId, input: usize) -> Result<StepBuffer> {
        input_of(&self.gate_of(module)?.args, input)
    }

    /// The buffer whose record is pushed to an output at the end of each step.
    pub fn step_output(&self, module: ModuleId, output: usize) -> Result<StepBuffer> {
        output_of(&self.gate_of(module)?.args, output)
    }

    /// Device address of a 64-bit word that is not 0 while the step has records, for bodies that are captured elsewhere and run
    /// always: what [`StepStream::live`](crate::StepStream::live) gives to others.
    pub fn step_live(&self, module: ModuleId) -> Result<u64> {
        Ok(self.gate_of(module)?.args.state + std::mem::offset_of!(abi::wm_gate_state, live) as u64)
    }

    /// Ends the steps of one stream module for good; those under way come to their end. Its records wait in its mailboxes, and
    /// what its body used may go when this has returned.
    pub fn close(&mut self, module: ModuleId, bound: Duration) -> Result<()> {
        let unknown = || Error::refused(format!("module id {}", module.0), "it is no module of Builder::steps");
        let gate = self.memory.gates.iter().position(|g| g.module == module.index()).ok_or_else(unknown)?;
        if !self.memory.order.is_empty() {
            let name = &self.memory.module_names[module.index()];
            let rule = "the graph has a static order: its modules run together, and end together with Runtime::stop";
            return Err(Error::refused(format!("closing stream module {name}"), rule));
        }
        match &self.steps {
            Some(steps) => steps.ask(&self.memory, bound, |bound, answer| Command::Close(gate, bound, answer)),
            None => Err(Error::State("close: no steps are running".into())),
        }
    }

    pub(super) fn check_bodies(&self) -> Result<()> {
        let given = self.queues.iter().zip(&self.parts).map(|(queue, part)| queue.is_some() || part.is_some());
        let missing = given.into_iter().position(|given| !given);
        missing.map_or(Ok(()), |gate| {
            let name = &self.memory.module_names[self.memory.gates[gate].module];
            Err(Error::State(format!("start: stream module {name} has no body: see Runtime::body")))
        })
    }

    /// With a static order, before the start: one queue for all.
    pub(super) fn make_passes(&mut self) -> Result<()> {
        if self.memory.order.is_empty() || self.state != State::Ready {
            return Ok(());
        }
        let place = |gate: usize| self.memory.order.iter().position(|&(g, _)| g == gate);
        let mut parts = Vec::new();
        for (gate, behind) in &self.memory.order {
            let part = self.parts[*gate].take().ok_or_else(|| Error::State("start: a body is missing".into()))?;
            parts.push((part, behind.iter().filter_map(|&before| place(before)).collect()));
        }
        // One more than stand in the stream: a launch of a graph whose last one has not ended makes the host wait.
        let queue = self.device().backend.pass(parts, PASSES as usize + 1)?;
        self.queues = vec![Some(queue)];
        Ok(())
    }

    pub(super) fn start_steps(&mut self) -> Result<()> {
        if self.queues.is_empty() {
            return Ok(());
        }
        let queues = std::mem::take(&mut self.queues).into_iter().flatten().collect();
        let runner = Runner::new(self.memory.clone(), queues, self.host_doors, self.server_events.clone());
        let (commands, inbox) = channel::unbounded();
        let thread = std::thread::Builder::new()
            .name("warpmail-steps".into())
            .spawn(move || runner.run(&inbox))
            .map_err(|e| Error::Unavailable { what: "a thread for stream modules", reason: e.to_string() })?;
        self.memory.set_runner(thread.thread());
        self.steps = Some(Steps { commands, thread });
        Ok(())
    }
}
