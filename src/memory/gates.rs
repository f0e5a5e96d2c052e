//! What the host shares with the steps of stream modules: a control word, a report and doors for each module.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Memory;
use crate::abi;
use crate::backend::{Door, Live, Mark};

/// A stream module whose steps the arbiter grants. Offsets are those in pinned memory.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Row of the module table.
    pub(crate) module: usize,
    pub(crate) args: abi::wm_gate_args,
    pub(crate) ahead: u64,
    /// The caller's stream, if it runs on one.
    pub(crate) stream: Option<u64>,
    pub(super) control: usize,
    pub(super) report: usize,
    pub(super) doors: usize,
    /// The word of steps granted, where the arbiter is on the CPU.
    pub(super) word: Option<usize>,
    pub(crate) behind: Option<Behind>,
    /// Launches whose doors the pacer has opened.
    pub(super) paced: AtomicU64,
}

/// Who gives the records of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The steps of a stream module, by gate.
    Steps(usize),
    /// A resident module, through one of its outputs.
    Resident { module: u32, output: usize },
    /// Kernels of the caller's.
    Elsewhere,
}

/// The ends of a stream module whose inputs all come from the device, in CPU-arbitrated mode: what its steps may be enqueued
/// behind. Words are offsets in pinned memory.
#[derive(Debug)]
pub(crate) struct Behind {
    /// The word of `written`, and who moves it.
    pub(crate) inputs: Vec<(usize, Source)>,
    /// The words of `written` and `consumed`, and the slots.
    pub(crate) outputs: Vec<(usize, usize, u32)>,
}

/// A grant under way, as its server's mark has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    /// Which grant of which server: no two in a row are alike.
    pub(crate) number: u64,
    pub(crate) module: u32,
}

impl Memory {
    /// What the server has under way, if anything. ACQUIRE of `tell_of` in hand.hpp: it has been launched.
    pub(crate) fn held_by(&self, server: usize) -> Option<Held> {
        let word = self.read_pinned::<u64>(self.marks[server] + offset_of!(abi::wm_server_mark, holds));
        (word as u32 != 0).then(|| Held { number: word, module: word as u32 - 1 })
    }

    /// What that grant may bring `written` of an output to, unless it has ended meanwhile.
    pub(crate) fn held_until(&self, server: usize, held: Held, output: usize) -> Option<u32> {
        let until = self.read_pinned::<u64>(self.marks[server] + offset_of!(abi::wm_server_mark, until) + 8 * output);
        self.held_by(server).filter(|now| now.number == held.number).map(|_| until as u32)
    }

    /// Servers of an arbiter on the CPU.
    pub(crate) fn servers(&self) -> usize {
        self.marks.len()
    }

    /// The gates whose steps may come behind those of `gate`.
    pub(crate) fn followers_of(&self, gate: usize) -> Vec<usize> {
        let follows = |(_, g): &(usize, &Gate)| {
            g.behind.as_ref().is_some_and(|b| b.inputs.iter().any(|&(_, source)| source == Source::Steps(gate)))
        };
        self.gates.iter().enumerate().filter(follows).map(|(follower, _)| follower).collect()
    }

    /// Of a gate's launches, those that may still push: neither has their end been reported, nor has it given back the slots of
    /// its step, which it does when it has pushed. Indices that are loaded after this are those of the others at least.
    pub(crate) fn steps_under_way(&self, gate: usize, launched: u64) -> u32 {
        let (report, args) = (self.gate_report(gate), &self.gates[gate].args);
        let consumed = |end: &abi::wm_mailbox| self.index_at((end.consumed - self.pinned.device) as usize);
        let mut inputs = args.ends[..args.n_inputs as usize].iter().map(consumed);
        let ended = match args.rule {
            abi::WM_RULE_ANY => inputs.fold(0, u32::wrapping_add),
            _ => inputs.next().unwrap_or(0),
        };
        let pushed = ended.wrapping_sub(report.steps as u32).cast_signed().max(0).cast_unsigned();
        (launched.saturating_sub(report.ended) as u32).saturating_sub(pushed)
    }

    /// On the twin, where a server's grants are counted when they have ended, and how many it has been given.
    pub(crate) fn twin_mark(&self, server: usize) -> Mark {
        let at = self.marks[server];
        let count = self.read_pinned(at + offset_of!(abi::wm_server_mark, given));
        Mark::Count { word: Live(self.pinned_word(at + offset_of!(abi::wm_server_mark, done))), count }
    }

    /// An index word of the arbiter's, modulo 2^32.
    pub(crate) fn index_at(&self, word: usize) -> u32 {
        self.read_pinned::<u64>(word) as u32
    }

    fn pinned_word(&self, offset: usize) -> *const u64 {
        // SAFETY: inside the allocation.
        unsafe { self.pinned.host.add(offset) as *const u64 }
    }

    /// Whether the arbiter lets a module's gates step ahead, where it is on the CPU.
    pub(crate) fn may_step_ahead(&self, gate: usize) -> bool {
        self.gates[gate].word.is_some_and(|word| self.read_pinned::<u64>(word) >> abi::WM_GRANT_AHEAD_BIT & 1 != 0)
    }

    /// What a module's steps say of themselves.
    pub(crate) fn gate_report(&self, gate: usize) -> abi::wm_gate_report {
        self.read_pinned(self.gates[gate].report)
    }

    /// Where host functions of a body find whether the running launch has records.
    pub(crate) fn gate_live(&self, gate: usize) -> *const u64 {
        self.pinned_word(self.gates[gate].report + offset_of!(abi::wm_gate_report, live_ns))
    }

    fn gate_door_at(&self, gate: usize, credit: u64) -> usize {
        let door = (credit % u64::from(abi::WM_DOORS)) as usize;
        self.gates[gate].doors + door * size_of::<abi::wm_doorbell>()
    }

    pub(crate) fn gate_door(&self, gate: usize, credit: u64) -> Door {
        let at = self.gate_door_at(gate, credit) as u64;
        Door { device: self.pinned.device + at, host: self.pinned.host as u64 + at, soon: false }
    }

    pub(crate) fn gate_door_is_open(&self, gate: usize, credit: u64) -> bool {
        self.read_pinned::<u64>(self.gate_door_at(gate, credit)) != 0
    }

    fn store(&self, offset: usize, value: u64) {
        // SAFETY: an aligned word inside the allocation; who writes which is said in csrc/protocol/gate.hpp.
        unsafe { abi::wm_host_store_release(self.pinned.host.add(offset).cast(), value) };
    }

    /// As [`Memory::set_door`], of a stream module's launches.
    pub(crate) fn set_gate_door(&self, gate: usize, credit: u64, open: bool) {
        self.store(self.gate_door_at(gate, credit), u64::from(open));
    }

    /// C2 and C3 of the parking protocol, of a stream module's launches.
    pub(crate) fn publish_gate_credits(&self, gate: usize, credits: u64) {
        self.publish_gate(gate, offset_of!(abi::wm_control, credits), credits);
    }

    /// Q1, of a stream module's launches.
    pub(crate) fn publish_gate_enqueued(&self, gate: usize, credits: u64) {
        self.publish_gate(gate, offset_of!(abi::wm_control, enqueued), credits);
    }

    fn publish_gate(&self, gate: usize, offset: usize, credits: u64) {
        self.store(self.gates[gate].control + offset, credits);
        // SAFETY: a fence.
        unsafe { abi::wm_host_fence() };
    }

    /// Launches that the driver has been asked to enqueue.
    pub(crate) fn gate_enqueued(&self, gate: usize) -> u64 {
        self.read_pinned::<abi::wm_control>(self.gates[gate].control).enqueued
    }

    /// Asks a module's gates to wait for no more grants.
    pub(crate) fn stop_gate(&self, gate: usize, stop: bool) {
        self.store(self.gates[gate].control + offset_of!(abi::wm_control, stop.rung), u64::from(stop));
    }

    /// Steps granted, modulo 2^32, where the arbiter is on the CPU.
    pub(crate) fn gate_granted(&self, gate: usize) -> Option<u32> {
        self.gates[gate].word.map(|word| self.read_pinned::<u64>(word) as u32)
    }

    /// The pacer's part: opens the doors of all launches that the driver has, or is about to have.
    pub(crate) fn pace_gates(&self) {
        for (gate, g) in self.gates.iter().enumerate().filter(|(_, g)| g.word.is_none()) {
            let enqueued = self.gate_enqueued(gate);
            g.paced.store(enqueued, Ordering::Release);
            for n in self.gate_report(gate).begun..enqueued {
                self.set_gate_door(gate, n, true);
            }
        }
    }

    /// Launches below this one have begun or are about to.
    pub(crate) fn gate_paced(&self, gate: usize) -> u64 {
        self.gates[gate].paced.load(Ordering::Acquire)
    }

    /// Stream modules whose step is under way, in words.
    pub(crate) fn live_steps(&self) -> Vec<String> {
        let is_live = |(gate, _): &(usize, &Gate)| {
            let report = self.gate_report(*gate);
            report.begun != report.ended // gates poll for microseconds
        };
        let names = self.gates.iter().enumerate().filter(is_live);
        names.map(|(_, g)| format!("the body of stream module {}", self.module_names[g.module])).collect()
    }

    /// Whether the arbiter grants steps to a module at an end.
    fn is_granted(&self, side: u16, module: u32) -> bool {
        u32::from(side) == abi::WM_SIDE_RESIDENT || self.gates.iter().any(|g| g.module == module as usize)
    }

    /// Whether the arbiter grants steps to the consumer of a mailbox.
    pub(crate) fn is_served(&self, mailbox: usize) -> bool {
        let handle = &self.handles[mailbox];
        self.is_granted(handle.consumer_side, handle.consumer_id)
    }

    /// Whether it grants them to both ends.
    pub(crate) fn is_inside(&self, mailbox: usize) -> bool {
        let handle = &self.handles[mailbox];
        self.is_served(mailbox) && self.is_granted(handle.producer_side, handle.producer_id)
    }
}
