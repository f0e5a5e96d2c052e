//! A pass: one graph of a step of each of several modules, in an order that was fixed before.

use std::sync::Arc;

use cudarc::driver::sys;

use super::super::{Context, Stream, driver};
use super::graphs::{CONDITIONAL_ENTRIES, Graphs, entries_of};
use super::{Gates, Kernels, Steps};
use crate::backend::StepPlan;
use crate::error::{Error, Result};
use crate::stream::{Body, Kind};

/// A module of a pass: its gates, and its body as a graph.
pub(in crate::backend::cuda) struct Part {
    gates: Gates,
    body: sys::CUgraph,
    skips: bool,
}

// SAFETY: the driver's handles may be used from any thread; `&mut self` keeps the calls apart.
unsafe impl Send for Part {}

impl Part {
    /// The context has been entered.
    pub(in crate::backend::cuda) fn new(
        context: Arc<Context>,
        kernels: Arc<Kernels>,
        plan: &StepPlan,
        body: Body,
    ) -> Result<Self> {
        // Its steps run on the stream of the pass; what is captured here has one of its own.
        let mut gates = Gates::bare(context, kernels, &plan.args, plan.live, std::ptr::null_mut())?;
        gates.deliveries.clone_from(&plan.deliveries);
        let graph = match body.kind {
            Kind::Captured(mut enqueue) => gates.capture(&mut enqueue, None)?,
            Kind::Graph(theirs) => {
                let mut copy = std::ptr::null_mut();
                // SAFETY: the caller of Body::graph says that it is a graph; it may go when this has returned.
                unsafe { sys::cuGraphClone(&mut copy, theirs as sys::CUgraph) }
                    .result()
                    .map_err(driver("cuGraphClone"))?;
                copy
            }
            Kind::EachStep(_) => {
                let rule = "a pass is captured once: use Body::captured or Body::graph";
                return Err(Error::refused(format!("a body of module {} that is enqueued each step", plan.name), rule));
            }
        };
        Ok(Part { gates, body: graph, skips: body.skips })
    }

    /// Adds a step behind other nodes of a graph; its last node.
    fn add(&self, graph: sys::CUgraph, after: &[sys::CUgraphNode]) -> Result<sys::CUgraphNode> {
        if !self.skips {
            return self.gates.plain(graph, after, self.body);
        }
        let begin = self.gates.begin_nodes(graph, after)?;
        self.gates.conditional(graph, &[begin], self.body)
    }

    /// What a step of it puts into the stream's queue.
    fn entries(&self) -> Result<usize> {
        // Nothing waits for a door in front of it.
        let of_body = if self.skips { CONDITIONAL_ENTRIES - 1 } else { entries_of(self.body)? + 2 };
        Ok(of_body + self.gates.deliveries.len())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Ok(_entered) = self.gates.context.enter() {
            // SAFETY: made in `new`; what was instantiated of it stands alone.
            let _ = unsafe { sys::cuGraphDestroy(self.body) };
        }
    }
}

/// A queue of passes, `n` of them at a time: each of `parts` behind those before it that it names. The context has been entered.
pub(in crate::backend::cuda) fn pass(parts: &[(Box<Part>, Vec<usize>)], n: usize) -> Result<Gates> {
    let (first, _) = parts.first().ok_or_else(|| Error::Failed("a pass of nothing".into()))?;
    let of = &first.gates;
    let mut queue = Gates::bare(of.context.clone(), of.kernels.clone(), &of.args, of.live, std::ptr::null_mut())?;
    // From here on it has the stream, also where an instance cannot be made.
    (queue.stream, queue.is_own) = (Stream::new()?.0, true);
    let entries = parts.iter().map(|(part, _)| part.entries()).sum::<Result<usize>>()?;
    let graphs = Graphs::several(n, true, entries, || queue.instance(|graph| fill(graph, parts)))?;
    queue.steps = Some(Steps::Graphs(graphs));
    Ok(queue)
}

/// A graph of its own for each: one with conditional nodes is instantiated once.
fn fill(graph: sys::CUgraph, parts: &[(Box<Part>, Vec<usize>)]) -> Result<()> {
    let mut ends: Vec<sys::CUgraphNode> = Vec::new();
    for (part, behind) in parts {
        let after: Vec<_> = behind.iter().map(|&before| ends[before]).collect();
        ends.push(part.add(graph, &after)?);
    }
    Ok(())
}
