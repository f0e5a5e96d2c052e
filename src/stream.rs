//! Stream modules: work on a CUDA stream that the arbiter wakes. The host enqueues steps ahead, each waits for its grant, and
//! the arbiter says when. The other half is csrc/protocol/gate.hpp; docs/stream-modules.md is the page for users.

mod body;
mod delivery;
mod runner;

use std::time::Duration;

use crate::abi;
use crate::error::{Error, Result};
use crate::options::Rule;

pub use body::{Body, StepBuffer, StepStream};
pub(crate) use body::{Enqueue, Kind, Sink, input_of, output_of};
pub use delivery::Delivery;
pub(crate) use runner::{Command, PASSES, QUEUE, Runner};

/// What a step pushes to one output unless its body says otherwise, in the head of the output's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Push {
    /// Nothing.
    #[default]
    Nothing,
    /// A record of this length and type, whatever the body left in the payload.
    Record {
        /// Payload, in bytes.
        len: u32,
        /// The message type.
        msg_type: u16,
    },
}

/// How a stream module's steps run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// The firing rule. A step takes one record from every input, or with [`Rule::Any`] one from one of them, in turns.
    pub rule: Rule,
    /// As [`ModuleOptions::priority`](crate::ModuleOptions).
    pub priority: u8,
    /// How long the gate in front of the body polls for a grant; it holds one warp meanwhile. Then the module parks, and the
    /// GPU's front end waits in its place. None: it never parks, and its launches follow one another.
    pub spin: Option<Duration>,
    /// Steps that stand in the stream ahead of need, 1 to 12. Each tick of [`max_wait`](crate::SpinBudget) lets them through,
    /// void, so that nobody who waits for the stream waits longer. Fewer stand there if the body is long: a stream's queue has an end.
    pub ahead: u32,
    /// What a step pushes, by output; [`Push::Nothing`] for outputs that are not named.
    pub outputs: Vec<Push>,
    /// A CUDA stream (`CUstream`) of the caller's to run on; it outlives the runtime. None: one of the module's own.
    pub stream: Option<u64>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        let spin = Some(Duration::from_micros(20));
        StreamOptions { rule: Rule::Any, priority: 0, spin, ahead: 4, outputs: Vec::new(), stream: None }
    }
}

/// The most steps that stand ahead: doors are cleared before they are used again.
const AHEAD_MAX: u32 = 12;
const _: () = assert!(AHEAD_MAX + 2 <= abi::WM_DOORS);

impl StreamOptions {
    /// Sets the firing rule.
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }

    /// Has each step push a record of this length and type to the next output.
    pub fn pushes(mut self, len: u32, msg_type: u16) -> Self {
        self.outputs.push(Push::Record { len, msg_type });
        self
    }

    /// What can be checked without the graph. `longest`: what a launch may poll at most.
    pub(crate) fn check(&self, module: &str, longest: Duration) -> Result<()> {
        let refused = |rule: String| Err(Error::refused(format!("stream module {module}"), rule));
        if u32::from(self.priority) >= abi::WM_PRIORITIES {
            return refused(format!("a priority is 0 (most urgent) to {}", abi::WM_PRIORITIES - 1));
        }
        if !(1..=AHEAD_MAX).contains(&self.ahead) {
            return refused(format!("{} steps ahead: there are 1 to {AHEAD_MAX}", self.ahead));
        }
        if let Some(spin) = self.spin
            && (spin < Duration::from_micros(1) || spin >= longest)
        {
            return refused(format!(
                "a gate that polls for {spin:?}: it polls for at least 1 µs and for less than the budget's residency, \
                 {longest:?}"
            ));
        }
        Ok(())
    }

    /// The preset of an output, as the gate writes it.
    pub(crate) fn preset(&self, output: usize) -> (u32, u32) {
        match self.outputs.get(output) {
            Some(Push::Record { len, msg_type }) => (*len, u32::from(*msg_type)),
            _ => (abi::WM_STEP_NOTHING, 0),
        }
    }
}
