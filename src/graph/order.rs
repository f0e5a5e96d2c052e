//! A static order: graphs of stream modules of which it is known before they run which step follows which.

use super::{Builder, ModulePlan};
use crate::abi;
use crate::error::{Error, Result};
use crate::options::{Mode, Rule};

impl Builder {
    /// Has the steps of all stream modules run in *passes*, in CPU-arbitrated mode: each pass is a step of every module, in an
    /// order that is fixed when the graph is built, producers first. On a GPU a pass is one CUDA graph, captured once and launched
    /// again for each record that waits at an entry, with the order as its edges; on the twin it is a list that one thread goes
    /// through. A step that finds no records, or no room, is void, as everywhere; results are the same with it and without.
    ///
    /// One launch of the host's stands for all steps of a record, which so goes through the graph without another decision; in
    /// return one pass follows the other, and modules do not work on several records at the same time. Off unless it is called.
    ///
    /// Refused when the graph is built, with the name of the module and the rule, where the order is not fixed: in device-arbitrated
    /// mode; with resident modules, or kernels of the caller's ([`Self::stream`]); where a step takes a record from any of several
    /// inputs; with priorities that differ; with a stream of the caller's; with a cycle. [`Body::each_step`](crate::Body) is refused
    /// by [`Runtime::body`](crate::Runtime::body), and [`Runtime::close`](crate::Runtime::close) of one module likewise.
    pub fn static_order(&mut self, on: bool) -> &mut Self {
        self.static_order = on;
        self
    }

    /// Stream modules, by row, producers first; none unless a static order is asked for.
    pub(crate) fn order(&self) -> Result<Vec<usize>> {
        if !self.static_order {
            return Ok(Vec::new());
        }
        if self.mode != Some(Mode::Cpu) {
            let rule = "it is a way of CPU-arbitrated mode: in the other each gate waits on a stream of its own";
            return Err(Error::refused("a static order in device-arbitrated mode", rule));
        }
        let mut first: Option<&ModulePlan> = None;
        for module in self.modules.iter().filter(|m| m.kind != abi::WM_KIND_HOST) {
            if let Some(rule) = self.why_not_fixed(module, first) {
                return Err(Error::refused(format!("a static order with module {}", module.name), rule));
            }
            first = first.or(Some(module));
        }
        let mut rest: Vec<usize> = (0..self.modules.len()).filter(|&id| self.modules[id].steps.is_some()).collect();
        if rest.is_empty() {
            return Err(Error::refused(
                "a static order",
                "the graph has no stream modules, whose steps it would be of",
            ));
        }
        let mut order = Vec::new();
        while !rest.is_empty() {
            let waits = |&id: &usize| self.steps_before(id).iter().any(|before| rest.contains(before));
            let Some(next) = rest.iter().position(|id| !waits(id)) else {
                // `check_steps` comes first: a cycle of such modules has no first record.
                let what = format!("a static order with module {}", self.modules[rest[0]].name);
                return Err(Error::refused(what, "it waits for itself, in a cycle"));
            };
            order.push(rest.remove(next));
        }
        Ok(order)
    }

    /// The stream modules that give a module its records, by row.
    pub(crate) fn steps_before(&self, id: usize) -> Vec<usize> {
        let producers = self.modules[id].inputs.iter().map(|&m| self.mailboxes[m as usize].producer as usize);
        producers.filter(|&p| self.modules[p].steps.is_some()).collect()
    }

    /// Why the place of a module's steps among others is not known in advance. `first`: another of the graph.
    fn why_not_fixed(&self, module: &ModulePlan, first: Option<&ModulePlan>) -> Option<String> {
        let Some(steps) = &module.steps else {
            return Some(
                match module.kind {
                    abi::WM_KIND_RESIDENT => {
                        "it is resident: how many records a handler takes and gives is known when it runs"
                    }
                    _ => "its kernels are the caller's, and come when they come",
                }
                .into(),
            );
        };
        if steps.rule == Rule::Any && module.inputs.len() > 1 {
            return Some(format!(
                "its rule is any of {} inputs: which is next is known when it fires",
                module.inputs.len()
            ));
        }
        if let Some(first) = first.filter(|first| first.options.priority != module.options.priority) {
            let (ours, theirs) = (module.options.priority, first.options.priority);
            return Some(format!(
                "its priority is {ours} and that of {} is {theirs}: nothing is chosen in a pass",
                first.name
            ));
        }
        steps.stream.map(|_| "it has a stream of the caller's: a pass has one stream for all".into())
    }
}
