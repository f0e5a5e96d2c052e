//! Where everything of a module graph lies, and its first contents.

mod cpu;
mod gates;

use bytemuck::{Zeroable, bytes_of};

use super::{Memory, handle_of, header_of};
use crate::abi;
use crate::budget::SpinBudget;
use crate::error::{Error, Result};
use crate::graph::{Builder, MailboxPlan};
use crate::options::Tap;
use crate::tensor::Pool;

pub(super) use cpu::as_far_end;

/// Hands out offsets one after the other.
struct Plan(u64);

impl Plan {
    fn take(&mut self, bytes: u64, align: u64) -> u64 {
        let at = self.0.next_multiple_of(align);
        self.0 = at + bytes;
        at
    }

    fn array<T>(&mut self, n: usize) -> u64 {
        self.take((n * size_of::<T>()) as u64, u64::from(abi::WM_LINE_BYTES))
    }
}

fn side(graph: &Builder, module: u32) -> u32 {
    match graph.modules[module as usize].kind {
        abi::WM_KIND_RESIDENT => abi::WM_SIDE_RESIDENT,
        abi::WM_KIND_HOST => abi::WM_SIDE_HOST,
        _ => abi::WM_SIDE_DEVICE,
    }
}

/// A mailbox with an end on the host lies in pinned memory.
fn is_pinned(graph: &Builder, m: &MailboxPlan) -> bool {
    [m.producer, m.consumer].iter().any(|&end| side(graph, end) == abi::WM_SIDE_HOST)
}

/// Ends of mailboxes on a side: each has a readiness word.
fn ends_of(graph: &Builder, wanted: u32) -> usize {
    let ends = graph.mailboxes.iter().flat_map(|m| [m.producer, m.consumer]);
    ends.filter(|&end| side(graph, end) == wanted).count()
}

/// Readiness words in device memory, and in pinned memory. An arbiter on the CPU is told everything in pinned memory: every
/// end is outside it.
fn words_of(graph: &Builder) -> (usize, usize) {
    if graph.is_cpu_arbitrated() {
        return (0, 2 * graph.mailboxes.len());
    }
    (ends_of(graph, abi::WM_SIDE_DEVICE), ends_of(graph, abi::WM_SIDE_HOST))
}

/// Offsets in the device allocation.
struct OnDevice {
    table: u64,
    modules: u64,
    module_stats: u64,
    words: u64,
    bell: u64,
    journals: u64,
    carry_lines: u64,
    image: u64,
    gates: Vec<gates::OnDevice>,
    states: Vec<u64>,
    boxes: Vec<u64>,
    bytes: u64,
}

impl OnDevice {
    fn of(graph: &Builder, image_bytes: u32) -> Self {
        let mut plan = Plan(0);
        OnDevice {
            table: plan.array::<abi::wm_mailbox>(graph.mailboxes.len()),
            modules: plan.array::<abi::wm_module>(graph.modules.len()),
            module_stats: plan.array::<abi::wm_module_stats>(graph.modules.len()),
            words: plan.array::<u64>(words_of(graph).0),
            bell: plan.array::<abi::wm_bell>(1),
            journals: plan.array::<abi::wm_ring>(rings(graph)),
            carry_lines: plan.array::<abi::wm_carry_line>(rings(graph) * graph.carriers() as usize),
            image: plan.take(image_bytes.into(), 256),
            gates: gates::on_device(graph, &mut plan),
            states: graph.modules.iter().map(|m| plan.take(m.options.state.len() as u64, 256)).collect(),
            boxes: boxes(graph, &mut plan, false),
            bytes: plan.0,
        }
    }
}

/// Offsets in the pinned allocation.
struct InPinned {
    control: u64,
    telemetry: u64,
    doors: u64,
    bell: u64,
    mailbox_stats: u64,
    module_stats: u64,
    words: u64,
    tap_counts: u64,
    durable: u64,
    gates: Vec<gates::InPinned>,
    rings: Vec<u64>,
    boxes: Vec<u64>,
    cpu: Option<cpu::OfArbiter>,
    bytes: u64,
}

impl InPinned {
    fn of(graph: &Builder, image_bytes: u32) -> Self {
        let mut plan = Plan(0);
        InPinned {
            control: plan.array::<abi::wm_control>(1),
            telemetry: plan.array::<abi::wm_telemetry>(1),
            doors: plan.array::<abi::wm_doorbell>(abi::WM_DOORS as usize),
            bell: plan.array::<abi::wm_bell>(1),
            mailbox_stats: plan.array::<abi::wm_mailbox_stats>(graph.mailboxes.len()),
            module_stats: plan.array::<abi::wm_module_stats>(graph.modules.len()),
            words: plan.array::<u64>(words_of(graph).1),
            tap_counts: plan.array::<abi::wm_tap_counts>(graph.mailboxes.len()),
            durable: plan.array::<u64>(graph.mailboxes.len()),
            gates: gates::in_pinned(graph, &mut plan),
            rings: (0..rings(graph)).map(|_| plan.take(ring_bytes(graph), 512)).collect(),
            boxes: boxes(graph, &mut plan, true),
            cpu: graph.is_cpu_arbitrated().then(|| cpu::OfArbiter::of(graph, &mut plan, image_bytes)),
            bytes: plan.0,
        }
    }
}

/// Journal rings, if servers tap anything: one for each of them, and one for each of the journal's roles.
fn rings(graph: &Builder) -> usize {
    if graph.has_server_taps() { graph.budget.servers.max(1) as usize + journal_roles(graph) as usize } else { 0 }
}

/// Warps that scan: as many as the words ask for, and as the block has room for beside one of the journal's.
fn scanners(graph: &Builder) -> u32 {
    let most =
        abi::WM_MAX_WARPS - 2 - graph.budget.servers - u32::from(graph.has_server_taps() && !graph.is_cpu_arbitrated());
    (words_of(graph).0 as u32).div_ceil(WORDS_PER_SCANNER).clamp(1, abi::WM_MAX_SCANNERS.min(most))
}

/// Warps of the arbiter that journal what its servers are done with: one for each mailbox that they follow, as far as the block has
/// room. On the twin one; steps of an arbiter on the CPU journal by themselves.
fn journal_roles(graph: &Builder) -> u32 {
    if !graph.has_server_taps() || graph.is_cpu_arbitrated() {
        return 0;
    }
    let on_gpu = graph.device.info().ordinal.is_some();
    let room = if on_gpu { abi::WM_MAX_WARPS - 2 - graph.budget.servers - scanners(graph) } else { 1 };
    graph.followed_mailboxes().clamp(1, room)
}

/// A handle as the arbiter has it: it knows of no tap that is not its own.
fn without_steps_tap(graph: &Builder, id: usize, handle: abi::wm_mailbox) -> abi::wm_mailbox {
    let m = &graph.mailboxes[id];
    let is_steps = [m.producer, m.consumer].iter().any(|&module| graph.taps(module as usize, id as u32));
    let tensors = if m.tap_tensors && m.tap != Tap::Off { 1 << abi::WM_TAP_TENSORS_BIT } else { 0 };
    abi::wm_mailbox { tap: if is_steps { abi::WM_TAP_NONE } else { handle.tap | tensors }, ..handle }
}

fn ring_bytes(graph: &Builder) -> u64 {
    u64::from(abi::WM_RING_HEADER_BYTES) + u64::from(graph.journal_slot_bytes()) * u64::from(graph.journal_slots)
}

/// Offsets of the mailboxes of one kind of memory; 0 for the others.
fn boxes(graph: &Builder, plan: &mut Plan, pinned: bool) -> Vec<u64> {
    let place = |m: &MailboxPlan| if is_pinned(graph, m) == pinned { plan.take(m.options.bytes(), 512) } else { 0 };
    graph.mailboxes.iter().map(place).collect()
}

/// Readiness words of a side stand together, dense: a scan reads lines of them.
struct Words {
    next: u64,
}

impl Words {
    fn take(&mut self) -> u64 {
        self.next += 8;
        self.next - 8
    }
}

fn put(image: &mut [u8], offset: u64, bytes: &[u8]) {
    image[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
}

impl Memory {
    /// Lays out and fills the memory of a graph; returns it with the launch arguments.
    pub(crate) fn of_graph(graph: Builder) -> Result<(Self, abi::wm_arbiter_args)> {
        let counts = counts(&graph);
        let (device, pinned) = (OnDevice::of(&graph, counts.image_bytes), InPinned::of(&graph, counts.image_bytes));
        let mut memory = Memory::allocate(graph.device.clone(), device.bytes as usize, pinned.bytes as usize)?;
        memory.control = pinned.control as usize;
        memory.telemetry = pinned.telemetry as usize;
        memory.doors = pinned.doors as usize;
        memory.mailbox_stats = pinned.mailbox_stats as usize;
        memory.module_stats = pinned.module_stats as usize;
        // A graph too large for the host is refused like one too large for the device.
        let bytes = device.bytes as usize;
        let mut image: Vec<u8> = bytemuck::allocation::try_zeroed_vec(bytes).map_err(|()| Error::Unavailable {
            what: "host memory",
            reason: format!("{bytes} bytes to lay the graph out in"),
        })?;
        memory.tap_counts = pinned.tap_counts as usize;
        memory.durable = pinned.durable as usize;
        memory.fill_mailboxes(&graph, &device, &pinned, &mut image);
        memory.fill_modules(&graph, &device, &pinned, &mut image);
        memory.fill_journals(&graph, &device, &pinned, &mut image);
        memory.fill_words(&device, &pinned, &mut image);
        memory.device.backend.upload(memory.arena.0, &image)?;
        let mut args = memory.args(counts, &device, &pinned);
        let counts = gates::Counts {
            module_stats: args.module_stats,
            module_stats_out: args.module_stats_out,
            taps: args.tap_counts,
        };
        memory.fill_gates(&graph, &device.gates, &pinned.gates, &counts);
        if let Some(cpu) = &pinned.cpu {
            memory.fill_cpu(&graph, cpu, &args, &pinned);
            args = memory.cpu_args(args, cpu, &pinned);
        }
        memory.order = memory.order_of(&graph)?;
        graph.keep.into_iter().for_each(|buffer| memory.keep(Box::new(buffer)));
        memory.state_plan = graph.state;
        memory.tensor_taps = graph.mailboxes.iter().map(|m| m.tap_tensors).collect();
        memory.pool = graph.pool;
        Ok((memory, args))
    }

    fn fill_mailboxes(&mut self, graph: &Builder, device: &OnDevice, pinned: &InPinned, image: &mut [u8]) {
        let (arena, pinned_base) = (self.arena.0, self.pinned.device);
        let mut device_words = Words { next: arena + device.words };
        let mut host_words = Words { next: pinned_base + pinned.words };
        for (id, plan) in graph.mailboxes.iter().enumerate() {
            let in_pinned = is_pinned(graph, plan);
            let sides = [side(graph, plan.producer), side(graph, plan.consumer)];
            let header = header_of(id as u32, plan.producer, plan.consumer, &plan.options, in_pinned);
            let base = if in_pinned { pinned_base + pinned.boxes[id] } else { arena + device.boxes[id] };
            let mut handle = handle_of(&header, base);
            let [written, consumed] = sides.map(|side| match side {
                _ if pinned.cpu.is_some() => host_words.take(),
                abi::WM_SIDE_HOST => host_words.take(),
                abi::WM_SIDE_DEVICE => device_words.take(),
                _ => 0,
            });
            (handle.written, handle.consumed) = (written, consumed);
            (handle.producer_side, handle.consumer_side) = (sides[0] as u16, sides[1] as u16);
            let is_watched = [plan.producer, plan.consumer].iter().any(|&end| graph.modules[end as usize].is_granted());
            let has_bell = graph.budget.idle_spin.is_some() && is_watched;
            let bell = pinned.cpu.as_ref().map_or(arena + device.bell, |cpu| pinned_base + cpu.bell);
            handle.bell = if has_bell { bell } else { 0 };
            handle.tap = plan.tap.word(plan.tap_type);
            if in_pinned {
                self.write_pinned(pinned.boxes[id] as usize, bytes_of(&header));
            } else {
                put(image, device.boxes[id], bytes_of(&header));
            }
            let row = without_steps_tap(graph, id, handle);
            put(image, device.table + (id * size_of::<abi::wm_mailbox>()) as u64, bytes_of(&row));
            self.handles.push(handle);
            let mut host = self.to_host(handle);
            host.bell = if has_bell { self.pinned.host as u64 + pinned.bell } else { 0 };
            self.host_handles.push(host);
            self.mailbox_names.push(plan.name.clone());
        }
    }

    fn fill_modules(&mut self, graph: &Builder, device: &OnDevice, pinned: &InPinned, image: &mut [u8]) {
        let gates = self.gate_words(graph, &device.gates, &pinned.gates);
        for (id, plan) in graph.modules.iter().enumerate() {
            let mut row = abi::wm_module::zeroed();
            row.module_id = id as u32;
            row.kind = plan.kind;
            row.rule = plan.rule();
            row.handler = plan.options.handler;
            row.batch = plan.options.batch;
            row.out_records = plan.out_records();
            row.priority = plan.options.priority.into();
            if plan.is_granted() {
                row.n_inputs = plan.inputs.len() as u32;
                row.n_outputs = plan.outputs.len() as u32;
                row.inputs[..plan.inputs.len()].copy_from_slice(&plan.inputs);
                row.outputs[..plan.outputs.len()].copy_from_slice(&plan.outputs);
            }
            row.state_bytes = plan.options.state.len() as u64;
            row.state = if row.state_bytes == 0 { 0 } else { self.arena.0 + device.states[id] };
            self.states.push((row.state, plan.options.state.len()));
            if let Some((_, words)) = gates.iter().find(|(module, _)| *module == id) {
                (row.state, row.state_bytes) = *words;
            }
            let at = (id * size_of::<abi::wm_module>()) as u64;
            put(image, device.modules + at, bytes_of(&row));
            if let Some(cpu) = &pinned.cpu {
                self.write_pinned((cpu.modules + at) as usize, bytes_of(&row));
            }
            put(image, device.states[id], &plan.options.state);
            self.module_names.push(plan.name.clone());
        }
    }

    /// The handle of a ring, as the device and as the host uses it.
    fn ring_at(&self, graph: &Builder, offset: u64) -> (abi::wm_ring, abi::wm_ring) {
        let (slot_bytes, slots_log2) = (graph.journal_slot_bytes(), graph.journal_slots.trailing_zeros());
        let device = abi::wm_ring { header: self.pinned.device + offset, slot_bytes, slots_log2 };
        (device, abi::wm_ring { header: self.pinned.host as u64 + offset, ..device })
    }

    fn fill_journals(&mut self, graph: &Builder, device: &OnDevice, pinned: &InPinned, image: &mut [u8]) {
        for (server, &offset) in pinned.rings.iter().enumerate() {
            let (handle, host) = self.ring_at(graph, offset);
            let at = (server * size_of::<abi::wm_ring>()) as u64;
            put(image, device.journals + at, bytes_of(&handle));
            if let Some(cpu) = &pinned.cpu {
                self.write_pinned((cpu.rings + at) as usize, bytes_of(&host));
                self.write_pinned((cpu.step_rings + at) as usize, bytes_of(&handle));
            }
            self.journal_rings.push(host);
        }
    }

    fn fill_words(&mut self, device: &OnDevice, pinned: &InPinned, image: &mut [u8]) {
        let mut word = abi::wm_control::zeroed();
        (word.magic, word.version) = (abi::WM_ABI_MAGIC, abi::WM_ABI_VERSION);
        self.write_pinned(self.control, bytes_of(&word));
        let mut word = abi::wm_telemetry::zeroed();
        (word.magic, word.version) = (abi::WM_ABI_MAGIC, abi::WM_ABI_VERSION);
        self.write_pinned(self.telemetry, bytes_of(&word));
        let mut bell = abi::wm_bell::zeroed();
        for (gate, steps) in device.gates.iter().zip(&pinned.gates) {
            bell.doors = self.pinned.device + steps.doors;
            put(image, gate.bell, bytes_of(&bell));
        }
        bell.doors = self.pinned.device + pinned.doors;
        put(image, device.bell, bytes_of(&bell));
        if let Some(cpu) = &pinned.cpu {
            self.write_pinned(cpu.bell as usize, bytes_of(&bell));
        }
        bell.doors = self.pinned.host as u64 + pinned.doors;
        self.write_pinned(pinned.bell as usize, bytes_of(&bell));
    }

    fn args(&self, counts: abi::wm_arbiter_args, device: &OnDevice, pinned: &InPinned) -> abi::wm_arbiter_args {
        let (arena, base) = (self.arena.0, self.pinned.device);
        let has_journal = !pinned.rings.is_empty();
        abi::wm_arbiter_args {
            mailboxes: arena + device.table,
            modules: arena + device.modules,
            module_stats: arena + device.module_stats,
            control: base + pinned.control,
            telemetry: base + pinned.telemetry,
            mailbox_stats_out: base + pinned.mailbox_stats,
            module_stats_out: base + pinned.module_stats,
            device_words: arena + device.words,
            host_words: base + pinned.words,
            device_bell: arena + device.bell,
            host_bell: base + pinned.bell,
            doors: base + pinned.doors,
            journals: if has_journal { arena + device.journals } else { 0 },
            carry_lines: if counts.carriers == 0 { 0 } else { arena + device.carry_lines },
            tap_counts: base + pinned.tap_counts,
            durable: if has_journal { base + pinned.durable } else { 0 },
            image: arena + device.image,
            ..counts
        }
    }
}

/// Readiness words in device memory for one scanning warp: a look at them takes it one way to L2 and back.
const WORDS_PER_SCANNER: u32 = 160;

/// The launch arguments but for the addresses; what the arbiter's working memory needs follows from these.
fn counts(graph: &Builder) -> abi::wm_arbiter_args {
    let (device_words, host_words) = words_of(graph);
    let n_device_words = device_words as u32;
    let SpinBudget { idle_spin, adaptive, sm_share, residency, servers, .. } = graph.budget;
    let mut counts = abi::wm_arbiter_args {
        magic: abi::WM_ABI_MAGIC,
        version: abi::WM_ABI_VERSION,
        n_mailboxes: graph.mailboxes.len() as u32,
        n_modules: graph.modules.len() as u32,
        journals: rings(graph) as u64, // not 0 where its address will not be
        idle_spin_ns: idle_spin.map_or(0, |d| d.as_nanos() as u64),
        residency_ns: residency.as_nanos() as u64,
        servers,
        scanners: scanners(graph),
        scratch_bytes: graph.scratch_bytes(),
        n_device_words,
        n_host_words: host_words as u32,
        leases: graph.pool.as_ref().map_or_else(abi::wm_leases::zeroed, Pool::leases),
        sm_share_ppm: (sm_share * 1e6).round() as u32,
        journal_stage_bytes: graph.journal_stage_bytes(),
        journal_need: graph.journal_need(),
        adaptive: u32::from(adaptive),
        journal_roles: journal_roles(graph) as u16,
        journal_ahead: graph.mailboxes.iter().any(|m| m.tap_tensors && m.tap != Tap::Off).into(),
        linger: u32::from(graph.lingers),
        carriers: graph.carriers(),
        ..abi::wm_arbiter_args::zeroed()
    };
    // SAFETY: it reads the counts and writes what follows from them: where the parts of the working memory begin.
    unsafe { abi::wm_host_lay_out(&mut counts) };
    counts
}
