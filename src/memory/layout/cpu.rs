//! What an arbiter on the CPU has in host memory: its own tables, those of the steps, and copies of the headers that lie in
//! device memory, which it cannot read.

use bytemuck::bytes_of;

use super::{InPinned, Plan, is_pinned, rings};
use crate::abi;
use crate::graph::Builder;
use crate::memory::Memory;

/// Offsets in the pinned allocation.
pub(super) struct OfArbiter {
    table: u64,
    step_table: u64,
    pub(super) modules: u64,
    pub(super) rings: u64,
    pub(super) step_rings: u64,
    plan: u64,
    marks: u64,
    /// For ends on the device, in place of the one in device memory.
    pub(super) bell: u64,
    image: u64,
    /// Copies of headers; 0 for a mailbox that lies in pinned memory.
    headers: Vec<u64>,
}

impl OfArbiter {
    pub(super) fn of(graph: &Builder, plan: &mut Plan, image_bytes: u32) -> Self {
        OfArbiter {
            table: plan.array::<abi::wm_mailbox>(graph.mailboxes.len()),
            step_table: plan.array::<abi::wm_mailbox>(graph.mailboxes.len()),
            modules: plan.array::<abi::wm_module>(graph.modules.len()),
            rings: plan.array::<abi::wm_ring>(rings(graph)),
            step_rings: plan.array::<abi::wm_ring>(rings(graph)),
            plan: plan.array::<abi::wm_step_plan>(1),
            marks: plan.array::<abi::wm_server_mark>(graph.budget.servers.max(1) as usize),
            bell: plan.array::<abi::wm_bell>(1),
            image: plan.take(image_bytes.into(), 256),
            headers: (graph.mailboxes.iter())
                .map(|m| if is_pinned(graph, m) { 0 } else { plan.take(abi::WM_HEADER_BYTES.into(), 512) })
                .collect(),
        }
    }
}

impl Memory {
    /// The tables, but for modules and rings. `args` are those of an arbiter on the device: what steps see.
    pub(super) fn fill_cpu(
        &mut self,
        graph: &Builder,
        cpu: &OfArbiter,
        args: &abi::wm_arbiter_args,
        pinned: &InPinned,
    ) {
        let (base, host) = (self.pinned.device, self.pinned.host as u64);
        for id in 0..graph.mailboxes.len() {
            let at = (id * size_of::<abi::wm_mailbox>()) as u64;
            let handle = self.handles[id];
            let mut row = self.to_host(super::without_steps_tap(graph, id, handle));
            if cpu.headers[id] != 0 {
                row.header = host + cpu.headers[id];
                self.headers.push((cpu.headers[id] as usize, handle.header));
            }
            self.write_pinned((cpu.table + at) as usize, bytes_of(&row));
            // While a grant is out, the arbiter is awake.
            let step = abi::wm_mailbox { bell: 0, tap: row.tap, ..as_far_end(handle) };
            self.write_pinned((cpu.step_table + at) as usize, bytes_of(&step));
        }
        let has_journal = !pinned.rings.is_empty();
        let plan = abi::wm_step_plan {
            mailboxes: host + cpu.step_table,
            journals: if has_journal { host + cpu.step_rings } else { 0 },
            module_stats: args.module_stats,
            module_stats_out: args.module_stats_out,
            tap_counts: base + pinned.tap_counts,
            durable: args.durable,
            marks: host + cpu.marks,
            only_due: u64::from(!graph.ahead),
        };
        self.marks = (0..graph.budget.servers.max(1) as usize)
            .map(|server| cpu.marks as usize + server * size_of::<abi::wm_server_mark>())
            .collect();
        self.write_pinned(cpu.plan as usize, bytes_of(&plan));
        self.is_cpu_arbitrated = true;
    }

    /// The same graph's arguments for an arbiter on the CPU: addresses as the host sees them.
    pub(super) fn cpu_args(
        &self,
        args: abi::wm_arbiter_args,
        cpu: &OfArbiter,
        pinned: &InPinned,
    ) -> abi::wm_arbiter_args {
        let host = self.pinned.host as u64;
        abi::wm_arbiter_args {
            mailboxes: host + cpu.table,
            modules: host + cpu.modules,
            module_stats: 0, // the steps'
            control: host + pinned.control,
            telemetry: host + pinned.telemetry,
            mailbox_stats_out: host + pinned.mailbox_stats,
            module_stats_out: host + pinned.module_stats,
            device_words: 0,
            host_words: host + pinned.words,
            device_bell: host + cpu.bell,
            host_bell: host + pinned.bell,
            doors: host + pinned.doors,
            journals: if args.journals == 0 { 0 } else { host + cpu.rings },
            tap_counts: host + pinned.tap_counts,
            durable: if args.durable == 0 { 0 } else { host + pinned.durable },
            image: host + cpu.image,
            plan: host + cpu.plan,
            ..args
        }
    }
}

/// A handle for ends that tell an arbiter on the CPU of their indices, wherever they run: in pinned memory, as host ends do.
pub(in crate::memory) fn as_far_end(handle: abi::wm_mailbox) -> abi::wm_mailbox {
    let side = abi::WM_SIDE_HOST as u16;
    abi::wm_mailbox { producer_side: side, consumer_side: side, ..handle }
}
