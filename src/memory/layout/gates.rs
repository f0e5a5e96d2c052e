//! Where the steps of stream modules have their words, and what they are given.

use bytemuck::Zeroable;

use super::{Memory, Plan};
use crate::abi;
use crate::error::Result;
use crate::graph::{Builder, ModulePlan};
use crate::memory::gates::{Behind, Gate, Source};
use crate::options::Rule;
use crate::stream::StreamOptions;

/// The longest that a gate waits for the bytes of a record whose index it was told.
const ARRIVAL_NS: u64 = 10_000_000;

fn of_steps(graph: &Builder) -> impl Iterator<Item = (usize, &ModulePlan, &StreamOptions)> {
    graph.modules.iter().enumerate().filter_map(|(id, m)| m.steps.as_ref().map(|steps| (id, m, steps)))
}

/// One module's offsets in device memory.
pub(super) struct OnDevice {
    state: u64,
    word: u64,
    pub(super) bell: u64,
    buffers: [u64; abi::WM_MAX_ENDS as usize],
}

pub(super) fn on_device(graph: &Builder, plan: &mut Plan) -> Vec<OnDevice> {
    let one = |(_, module, _): (usize, &ModulePlan, &StreamOptions)| {
        let mut buffers = [0; abi::WM_MAX_ENDS as usize];
        for (row, mailbox) in rows(module) {
            let payload = graph.mailboxes[mailbox as usize].options.payload_bytes().unwrap_or(0) as u64;
            buffers[row] = plan.take(u64::from(abi::WM_STEP_HEAD_BYTES) + payload, 256);
        }
        OnDevice {
            state: plan.array::<abi::wm_gate_state>(1),
            word: plan.array::<u64>(1),
            bell: plan.array::<abi::wm_bell>(1),
            buffers,
        }
    };
    of_steps(graph).map(one).collect()
}

/// One module's offsets in pinned memory.
pub(super) struct InPinned {
    control: u64,
    report: u64,
    pub(super) doors: u64,
    word: u64,
    /// Its ring to the journal, if it taps anything.
    ring: Option<u64>,
}

pub(super) fn in_pinned(graph: &Builder, plan: &mut Plan) -> Vec<InPinned> {
    let one = |(id, ..): (usize, _, _)| InPinned {
        control: plan.array::<abi::wm_control>(1),
        report: plan.array::<abi::wm_gate_report>(1),
        doors: plan.array::<abi::wm_doorbell>(abi::WM_DOORS as usize),
        word: plan.array::<u64>(1),
        ring: graph.has_steps_taps(id).then(|| plan.take(super::ring_bytes(graph), 512)),
    };
    of_steps(graph).map(one).collect()
}

/// Where what steps count goes, for the host.
pub(super) struct Counts {
    pub(super) module_stats: u64,
    pub(super) module_stats_out: u64,
    pub(super) taps: u64,
}

/// The rows of a module's ends, and their mailboxes.
fn rows(module: &ModulePlan) -> impl Iterator<Item = (usize, u32)> {
    let outputs = module.outputs.iter().enumerate().map(|(o, &m)| (abi::WM_MAX_INPUTS as usize + o, m));
    module.inputs.iter().copied().enumerate().chain(outputs)
}

/// Whether a mailbox lies in pinned memory, where an end of the host can reach it.
fn is_pinned(graph: &Builder, mailbox: u32) -> bool {
    super::is_pinned(graph, &graph.mailboxes[mailbox as usize])
}

/// The bell of the stream module that a record of a mailbox wakes, if it may park and one record is enough to fire it; else 0.
fn wakes(graph: &Builder, bells: &[(usize, u64)], mailbox: u32) -> u64 {
    let consumer = graph.mailboxes[mailbox as usize].consumer as usize;
    let module = &graph.modules[consumer];
    let parks = module.steps.as_ref().is_some_and(|steps| steps.spin.is_some());
    let one_is_enough = module.inputs.len() == 1 || module.options.rule == Rule::Any;
    let bell = bells.iter().find(|(id, _)| *id == consumer).map_or(0, |&(_, bell)| bell);
    if parks && one_is_enough { bell } else { 0 }
}

impl Memory {
    /// What the arbiter needs to know of each stream module: where its word and its bell are. By module.
    pub(super) fn gate_words(
        &self,
        graph: &Builder,
        device: &[OnDevice],
        pinned: &[InPinned],
    ) -> Vec<(usize, (u64, u64))> {
        let one = |((id, ..), (d, p)): ((usize, _, _), (&OnDevice, &InPinned))| {
            let of_cpu = (self.pinned.host as u64 + p.word, 0);
            (id, if graph.is_cpu_arbitrated() { of_cpu } else { (self.arena.0 + d.word, self.arena.0 + d.bell) })
        };
        of_steps(graph).zip(device.iter().zip(pinned)).map(one).collect()
    }

    /// The static order of a graph, by gate.
    pub(super) fn order_of(&self, graph: &Builder) -> Result<Vec<(usize, Vec<usize>)>> {
        let gate = |id: usize| self.gates.iter().position(|g| g.module == id);
        let one = |id| Some((gate(id)?, graph.steps_before(id).into_iter().filter_map(gate).collect()));
        Ok(graph.order()?.into_iter().filter_map(one).collect())
    }

    /// What a stream module waits for, if its steps may be enqueued behind that.
    fn behind(&self, graph: &Builder, module: &ModulePlan) -> Behind {
        let word = |address: u64| (address - self.pinned.device) as usize;
        let input = |&mailbox: &u32| {
            let producer = graph.mailboxes[mailbox as usize].producer;
            let plan = &graph.modules[producer as usize];
            let source = match plan.kind {
                abi::WM_KIND_RESIDENT => plan.outputs.iter().position(|&m| m == mailbox).map_or(
                    Source::Elsewhere, // there is always one
                    |output| Source::Resident { module: producer, output },
                ),
                _ => of_steps(graph)
                    .position(|(id, ..)| id == producer as usize)
                    .map_or(Source::Elsewhere, Source::Steps),
            };
            (word(self.handles[mailbox as usize].written), source)
        };
        let output = |&mailbox: &u32| {
            let handle = &self.handles[mailbox as usize];
            (word(handle.written), word(handle.consumed), 1 << handle.slots_log2)
        };
        Behind {
            inputs: module.inputs.iter().map(input).collect(),
            outputs: module.outputs.iter().map(output).collect(),
        }
    }

    /// After the mailboxes and all addresses are known.
    pub(super) fn fill_gates(&mut self, graph: &Builder, device: &[OnDevice], pinned: &[InPinned], counts: &Counts) {
        let (arena, base) = (self.arena.0, self.pinned.device);
        let is_cpu = graph.is_cpu_arbitrated();
        let residency = graph.budget.residency.as_nanos() as u64;
        let bells: Vec<(usize, u64)> =
            of_steps(graph).zip(device).map(|((id, ..), d)| (id, if is_cpu { 0 } else { arena + d.bell })).collect();
        for ((id, module, steps), (d, p)) in of_steps(graph).zip(device.iter().zip(pinned)) {
            let mut args = abi::wm_gate_args::zeroed();
            (args.magic, args.version) = (abi::WM_ABI_MAGIC, abi::WM_ABI_VERSION);
            (args.n_inputs, args.n_outputs) = (module.inputs.len() as u32, module.outputs.len() as u32);
            args.rule = module.rule();
            args.scope = if is_cpu { abi::WM_SCOPE_SYS } else { abi::WM_SCOPE_GPU };
            args.parks = u32::from(steps.spin.is_some() && !is_cpu);
            let may_step_ahead = graph.ahead || !is_cpu;
            args.ahead = u32::from(may_step_ahead && !module.inputs.iter().any(|&m| is_pinned(graph, m)));
            let pinned_output = module.outputs.iter().any(|&m| is_pinned(graph, m));
            args.out_scope = if pinned_output || is_cpu { abi::WM_SCOPE_SYS } else { abi::WM_SCOPE_GPU };
            args.word = if is_cpu { base + p.word } else { arena + d.word };
            args.bell = arena + d.bell;
            args.control = base + p.control;
            args.report = base + p.report;
            args.doors = if is_cpu { 0 } else { base + p.doors };
            args.state = arena + d.state;
            let row = (id * size_of::<abi::wm_module_stats>()) as u64;
            args.stats = counts.module_stats + row;
            args.stats_out = if is_cpu { counts.module_stats_out + row } else { 0 };
            args.tap_counts = counts.taps;
            args.journal_need = graph.steps_journal_need(id);
            if let Some(offset) = p.ring {
                let host;
                (args.journal, host) = self.ring_at(graph, offset);
                self.journal_rings.push(host);
            }
            // Arbitrated by the CPU, a launch is enqueued behind what it would wait for.
            args.spin_ns = if is_cpu { 0 } else { steps.spin.map_or(residency, |s| s.as_nanos() as u64) };
            args.arrival_ns = ARRIVAL_NS;
            for (row, mailbox) in rows(module) {
                let handle = self.handles[mailbox as usize];
                args.ends[row] = if is_cpu { super::as_far_end(handle) } else { handle };
                // What a module gives to itself is journalled once: where it gives it.
                let gives = graph.mailboxes[mailbox as usize].producer as usize == id;
                if !graph.taps(id, mailbox) || gives != (row >= abi::WM_MAX_INPUTS as usize) {
                    args.ends[row].tap = abi::WM_TAP_NONE;
                }
                args.buffers[row] = arena + d.buffers[row];
            }
            for (output, &mailbox) in module.outputs.iter().enumerate() {
                (args.lens[output], args.types[output]) = steps.preset(output);
                args.wakes[output] = wakes(graph, &bells, mailbox);
            }
            self.gates.push(Gate {
                module: id,
                args,
                ahead: steps.ahead.into(),
                stream: steps.stream,
                control: p.control as usize,
                report: p.report as usize,
                doors: p.doors as usize,
                word: is_cpu.then_some(p.word as usize),
                behind: (is_cpu && args.ahead != 0).then(|| self.behind(graph, module)),
                paced: Default::default(),
            });
        }
    }
}
