//! The steps of a stream module on the twin: a thread that stands for the stream and goes through what a body enqueued.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use crossbeam::utils::Backoff;

use super::thread::wait_for_door;
use super::{Door, Live, Mark, StepPlan, StepQueue};
use crate::abi;
use crate::error::{Error, Result};
use crate::stream::{Body, Enqueue, Kind, Sink, StepStream};

type Function = Box<dyn FnMut() + Send>;

enum Op {
    Copy { to: u64, from: u64, bytes: usize },
    Call(Function),
}

/// What a body enqueued, in order.
#[derive(Default)]
struct Ops(Vec<Op>);

impl Sink for Ops {
    fn raw(&self) -> Option<u64> {
        None
    }

    unsafe fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.0.push(Op::Copy { to, from, bytes });
        Ok(())
    }

    fn call(&mut self, function: Function) -> Result<()> {
        self.0.push(Op::Call(function));
        Ok(())
    }
}

/// The same for a body that is captured: as on a GPU, it cannot call the host.
struct Captured(Ops);

impl Sink for Captured {
    fn raw(&self) -> Option<u64> {
        None
    }

    unsafe fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.0.copy(to, from, bytes) }
    }

    fn call(&mut self, _function: Function) -> Result<()> {
        Err(no_calls())
    }
}

pub(super) fn no_calls() -> Error {
    let rule = "a graph that launches without records skip cannot call functions of the host: use Body::each_step";
    Error::refused("a function of the host in a captured body", rule)
}

/// A launch: its door, what it comes behind, and what is particular to it.
struct Launch {
    door: Option<Door>,
    behind: Vec<Mark>,
    ops: Option<Ops>,
}

/// A step: gate, body, gate's end. `same` is what a body that was captured enqueued.
pub(super) struct Stage {
    name: String,
    args: abi::wm_gate_args,
    deliveries: Vec<abi::wm_delivery>,
    skips: bool,
    same: Ops,
    each: Option<Enqueue>,
    /// Launches that fit into its queue.
    queue: Option<usize>,
}

impl Stage {
    pub(super) fn new(plan: StepPlan, body: Body) -> Result<Self> {
        if plan.stream.is_some() {
            let rule = "the twin has none: leave StreamOptions::stream out";
            return Err(Error::refused(format!("a CUDA stream for module {}", plan.name), rule));
        }
        let mut captured = Captured(Ops::default());
        let each = match body.kind {
            Kind::Captured(mut enqueue) => {
                enqueue(&mut StepStream::new(&mut captured, &plan.args))?;
                None
            }
            Kind::EachStep(enqueue) => Some(enqueue),
            Kind::Graph(_) => {
                let what = format!("a CUDA graph for module {}", plan.name);
                return Err(Error::refused(what, "the twin launches none: use Body::captured or Body::each_step"));
            }
        };
        let StepPlan { name, args, deliveries, queue, .. } = plan;
        Ok(Stage { name, args, deliveries, skips: body.skips, same: captured.0, each, queue })
    }

    /// `ops`: what the body enqueued for this step, unless it was captured.
    fn run(&mut self, ops: Option<&mut Ops>) -> Result<()> {
        // SAFETY: the runtime keeps everything that `args` names alive until this launch has ended; this thread is the only
        // one that runs the module's gates.
        let mut live = unsafe { abi::wm_host_gate_begin(&self.args) } != 0;
        for delivery in &self.deliveries {
            // SAFETY: as above; the caller of Runtime::deliver says the same of what a delivery names.
            live &= unsafe { abi::wm_host_gate_deliver(&self.args, delivery) } != 0;
        }
        let ops = ops.unwrap_or(&mut self.same);
        let outcome = if live || !self.skips { go_through(ops, live) } else { Ok(()) };
        // SAFETY: as above.
        unsafe { abi::wm_host_gate_end(&self.args) };
        outcome
    }
}

pub(super) struct ThreadSteps {
    args: abi::wm_gate_args,
    each: Option<Enqueue>,
    queue: Option<Sender<Launch>>,
    ended: Receiver<Result<()>>,
    outstanding: usize,
    launched: u64,
    /// What the next launch comes behind.
    behind: Vec<Mark>,
    thread: Option<JoinHandle<()>>,
}

impl ThreadSteps {
    pub(super) fn start(plan: StepPlan, body: Body) -> Result<Self> {
        Self::pass(vec![Stage::new(plan, body)?])
    }

    /// A launch is one of each stage, in their order. Only the first may have a body that is enqueued for each.
    pub(super) fn pass(mut stages: Vec<Stage>) -> Result<Self> {
        let first = stages.first_mut().ok_or_else(|| Error::Failed("a pass of nothing".into()))?;
        let (args, each, name) = (first.args, first.each.take(), first.name.clone());
        let (queue, work) = first.queue.map_or_else(channel::unbounded, |launches| channel::bounded(launches.max(1)));
        let (done, ended) = channel::unbounded();
        let thread = std::thread::Builder::new()
            .name(format!("warpmail-{name}"))
            .spawn(move || run(&mut stages, &work, &done))
            .map_err(|e| Error::Unavailable { what: "a thread for a stream module", reason: e.to_string() })?;
        let (behind, thread) = (Vec::new(), Some(thread));
        Ok(ThreadSteps { args, each, queue: Some(queue), ended, outstanding: 0, launched: 0, behind, thread })
    }
}

fn run(stages: &mut [Stage], work: &Receiver<Launch>, done: &Sender<Result<()>>) {
    for mut launch in work {
        if let Some(door) = launch.door {
            wait_for_door(door);
        }
        launch.behind.iter().for_each(wait_for_mark);
        let mut outcome = Ok(());
        for stage in stages.iter_mut() {
            outcome = outcome.and(stage.run(launch.ops.as_mut()));
        }
        if done.send(outcome).is_err() {
            return;
        }
    }
}

/// What a stream does for an event: waits until the thread that stands for another stream has come that far. As bounded as
/// the body or the handler that it waits for.
fn wait_for_mark(mark: &Mark) {
    let backoff = Backoff::new();
    while let Mark::Count { word, count } = mark
        && word.value() < *count
    {
        if backoff.is_completed() {
            std::thread::sleep(Duration::from_micros(20));
        } else {
            backoff.snooze();
        }
    }
}

fn go_through(ops: &mut Ops, live: bool) -> Result<()> {
    for op in &mut ops.0 {
        match op {
            // SAFETY: whoever enqueued the copy promised that both are memory of that size.
            Op::Copy { to, from, bytes } => unsafe {
                std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes);
            },
            Op::Call(function) if live => guarded(function)?,
            Op::Call(_) => {}
        }
    }
    Ok(())
}

/// Calls a function of the caller's; a panic is an error.
pub(super) fn guarded(function: &mut (dyn FnMut() + Send)) -> Result<()> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(function))
        .map_err(|_| Error::Failed("a function of its body panicked".into()))
}

impl StepQueue for ThreadSteps {
    fn adopt_thread(&mut self) -> Result<()> {
        Ok(())
    }

    fn enqueue(&mut self, door: Option<Door>) -> Result<()> {
        let mut ops = None;
        if let Some(each) = &mut self.each {
            let mut sink = Ops::default();
            each(&mut StepStream::new(&mut sink, &self.args))?;
            ops = Some(sink);
        }
        let gone = || Error::Failed("its thread has ended".into());
        self.queue
            .as_ref()
            .ok_or_else(gone)?
            .send(Launch { door, behind: std::mem::take(&mut self.behind), ops })
            .map_err(|_| gone())?;
        self.outstanding += 1;
        self.launched += 1;
        Ok(())
    }

    fn follow(&mut self, mark: &Mark) -> Result<()> {
        self.behind.push(mark.clone());
        Ok(())
    }

    fn mark(&mut self) -> Result<Mark> {
        let ended = self.args.report as usize + std::mem::offset_of!(abi::wm_gate_report, ended);
        Ok(Mark::Count { word: Live(ended as *const u64), count: self.launched })
    }

    fn entries(&self) -> Option<usize> {
        None
    }

    fn is_empty(&mut self) -> Result<bool> {
        let mut outcome = Ok(());
        while let Ok(ended) = self.ended.try_recv() {
            self.outstanding -= 1;
            outcome = outcome.and(ended);
        }
        outcome.map(|()| self.outstanding == 0)
    }
}

impl Drop for ThreadSteps {
    fn drop(&mut self) {
        self.queue = None;
        // A body that does not end keeps its thread: joining it would be a wait without a bound.
        let _ = self.is_empty();
        if self.outstanding == 0
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
