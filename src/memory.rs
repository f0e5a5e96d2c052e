//! Everything one module graph shares with its arbiter: tables, words, mailboxes, telemetry; laid out in one device
//! allocation and one pinned allocation, and alive as long as anybody can reach it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::Zeroable;

use crate::abi;
use crate::backend::Pinned;
use crate::device::{Device, DeviceBuffer};
use crate::error::{Error, Result};
use crate::graph::{Builder, MailboxId};
use crate::options::MailboxOptions;
use crate::stats::{MailboxStats, ModuleStats, Rejects, Serving, Stats};

/// Hands out offsets one after the other.
struct Plan(u64);

impl Plan {
    fn take(&mut self, bytes: u64, align: u64) -> u64 {
        let at = self.0.next_multiple_of(align);
        self.0 = at + bytes;
        at
    }
}

#[derive(Debug)]
pub(crate) struct Memory {
    device: Device,
    arena: (u64, usize),
    pinned: Pinned,
    control: usize,
    telemetry: usize,
    mailbox_stats: usize,
    module_stats: usize,
    /// Handles with addresses as the host uses them.
    pub(crate) host_handles: Vec<abi::wm_mailbox>,
    /// Handles with addresses as the device uses them.
    pub(crate) handles: Vec<abi::wm_mailbox>,
    pub(crate) module_names: Vec<String>,
    pub(crate) mailbox_names: Vec<String>,
    /// Address and size of each module's state.
    pub(crate) states: Vec<(u64, usize)>,
    _keep: Vec<DeviceBuffer>,
    failed: OnceLock<String>,
    abandoned: AtomicBool,
}

impl Memory {
    /// Lays out and fills the memory of a graph; returns it with the launch arguments.
    pub(crate) fn of_graph(graph: Builder) -> Result<(Self, abi::wm_arbiter_args)> {
        let (n_mailboxes, n_modules) = (graph.mailboxes.len() as u64, graph.modules.len() as u64);
        let size = |n: u64, of: usize| n * of as u64;
        let side = |module: u32| match graph.modules[module as usize].kind {
            abi::WM_KIND_RESIDENT => abi::WM_SIDE_RESIDENT,
            abi::WM_KIND_HOST => abi::WM_SIDE_HOST,
            _ => abi::WM_SIDE_DEVICE,
        };
        let pinned_box = |m: &crate::graph::MailboxPlan| {
            side(m.producer) == abi::WM_SIDE_HOST || side(m.consumer) == abi::WM_SIDE_HOST
        };

        let ends_of = |of: u32| {
            let ends = |m: &crate::graph::MailboxPlan| [m.producer, m.consumer].map(|e| u64::from(side(e) == of));
            graph.mailboxes.iter().flat_map(ends).sum::<u64>()
        };

        // Device: tables, counters, index words of device ends, states, mailboxes.
        let mut plan = Plan(0);
        let table = plan.take(size(n_mailboxes, size_of::<abi::wm_mailbox>()), 128);
        let modules = plan.take(size(n_modules, size_of::<abi::wm_module>()), 128);
        let module_stats = plan.take(size(n_modules, size_of::<abi::wm_module_stats>()), 128);
        let n_device_words = ends_of(abi::WM_SIDE_DEVICE);
        let words = plan.take(size(n_device_words, 8), 128);
        let states: Vec<u64> = graph.modules.iter().map(|m| plan.take(m.options.state.len() as u64, 256)).collect();
        let boxes: Vec<u64> =
            graph.mailboxes.iter().map(|m| if pinned_box(m) { 0 } else { plan.take(m.options.bytes(), 512) }).collect();
        let device_bytes = plan.0 as usize;

        // Pinned: control, telemetry, statistics, index words of host ends, mailboxes with a host end.
        let mut plan = Plan(0);
        let control = plan.take(size_of::<abi::wm_control>() as u64, 128);
        let telemetry = plan.take(size_of::<abi::wm_telemetry>() as u64, 128);
        let mailbox_stats_out = plan.take(size(n_mailboxes, size_of::<abi::wm_mailbox_stats>()), 128);
        let module_stats_out = plan.take(size(n_modules, size_of::<abi::wm_module_stats>()), 128);
        let n_host_words = ends_of(abi::WM_SIDE_HOST);
        let host_words = plan.take(size(n_host_words, 8), 128);
        let host_boxes: Vec<u64> =
            graph.mailboxes.iter().map(|m| if pinned_box(m) { plan.take(m.options.bytes(), 512) } else { 0 }).collect();
        let pinned_bytes = plan.0 as usize;

        let mut memory = Memory::allocate(graph.device.clone(), device_bytes, pinned_bytes)?;
        memory.control = control as usize;
        memory.telemetry = telemetry as usize;
        memory.mailbox_stats = mailbox_stats_out as usize;
        memory.module_stats = module_stats_out as usize;
        let (arena, pinned) = (memory.arena.0, memory.pinned.device);

        // A graph too large for the host is refused like one too large for the device.
        let mut image: Vec<u8> = bytemuck::allocation::try_zeroed_vec(device_bytes).map_err(|()| {
            Error::Unavailable { what: "host memory", reason: format!("{device_bytes} bytes to lay the graph out in") }
        })?;
        let (mut next_device_word, mut next_host_word) = (0, 0);
        for (id, plan) in graph.mailboxes.iter().enumerate() {
            let in_pinned = pinned_box(plan);
            let (producer_side, consumer_side) = (side(plan.producer), side(plan.consumer));
            let header = header_of(id as u32, plan.producer, plan.consumer, &plan.options, in_pinned);
            // The readiness words of a side stand together, dense: a scan reads lines of them.
            let mut word = |end_side: u32| {
                let (first, next) = match end_side {
                    abi::WM_SIDE_HOST => (pinned + host_words, &mut next_host_word),
                    abi::WM_SIDE_DEVICE => (arena + words, &mut next_device_word),
                    _ => return 0,
                };
                *next += 1;
                first + 8 * (*next - 1)
            };
            let base = if in_pinned { pinned + host_boxes[id] } else { arena + boxes[id] };
            let mut handle = handle_of(&header, base);
            handle.written = word(producer_side);
            handle.consumed = word(consumer_side);
            handle.producer_side = producer_side as u16;
            handle.consumer_side = consumer_side as u16;
            if in_pinned {
                memory.write_pinned(host_boxes[id] as usize, bytemuck::bytes_of(&header));
            } else {
                put(&mut image, boxes[id], bytemuck::bytes_of(&header));
            }
            put(&mut image, table + size(id as u64, size_of::<abi::wm_mailbox>()), bytemuck::bytes_of(&handle));
            memory.handles.push(handle);
            memory.host_handles.push(memory.to_host(handle));
            memory.mailbox_names.push(plan.name.clone());
        }
        for (id, plan) in graph.modules.iter().enumerate() {
            let mut row = abi::wm_module::zeroed();
            row.module_id = id as u32;
            row.kind = plan.kind;
            row.rule = plan.rule();
            row.handler = plan.options.handler;
            row.batch = plan.options.batch;
            row.out_records = plan.out_records();
            row.priority = plan.options.priority.into();
            if plan.kind == abi::WM_KIND_RESIDENT {
                row.n_inputs = plan.inputs.len() as u32;
                row.n_outputs = plan.outputs.len() as u32;
                row.inputs[..plan.inputs.len()].copy_from_slice(&plan.inputs);
                row.outputs[..plan.outputs.len()].copy_from_slice(&plan.outputs);
            }
            row.state_bytes = plan.options.state.len() as u64;
            row.state = if row.state_bytes == 0 { 0 } else { arena + states[id] };
            put(&mut image, modules + size(id as u64, size_of::<abi::wm_module>()), bytemuck::bytes_of(&row));
            put(&mut image, states[id], &plan.options.state);
            memory.states.push((row.state, plan.options.state.len()));
            memory.module_names.push(plan.name.clone());
        }
        memory.device.backend.upload(arena, &image)?;

        let mut word = abi::wm_control::zeroed();
        (word.magic, word.version) = (abi::WM_ABI_MAGIC, abi::WM_ABI_VERSION);
        memory.write_pinned(memory.control, bytemuck::bytes_of(&word));
        let mut word = abi::wm_telemetry::zeroed();
        (word.magic, word.version) = (abi::WM_ABI_MAGIC, abi::WM_ABI_VERSION);
        memory.write_pinned(memory.telemetry, bytemuck::bytes_of(&word));

        let args = abi::wm_arbiter_args {
            magic: abi::WM_ABI_MAGIC,
            version: abi::WM_ABI_VERSION,
            n_mailboxes: n_mailboxes as u32,
            n_modules: n_modules as u32,
            mailboxes: arena + table,
            modules: arena + modules,
            module_stats: arena + module_stats,
            control: pinned + control,
            telemetry: pinned + telemetry,
            device_words: arena + words,
            host_words: pinned + host_words,
            mailbox_stats_out: pinned + mailbox_stats_out,
            module_stats_out: pinned + module_stats_out,
            residency_ns: graph.budget.residency.as_nanos() as u64,
            servers: graph.budget.servers,
            scanners: (n_device_words as u32).div_ceil(2048).clamp(1, abi::WM_MAX_SCANNERS),
            n_device_words: n_device_words as u32,
            n_host_words: n_host_words as u32,
            scratch_bytes: graph.scratch_bytes(),
            reserved: 0,
        };
        memory._keep = graph.keep;
        Ok((memory, args))
    }

    /// One mailbox in pinned memory, both ends on the host.
    pub(crate) fn direct(device: &Device, options: &MailboxOptions) -> Result<(std::sync::Arc<Self>, abi::wm_mailbox)> {
        options.check()?;
        let mut memory = Memory::allocate(device.clone(), 0, options.bytes() as usize)?;
        let header = header_of(0, 0, 1, options, true);
        memory.write_pinned(0, bytemuck::bytes_of(&header));
        let mut handle = handle_of(&header, memory.pinned.host as u64);
        (handle.producer_side, handle.consumer_side) = (abi::WM_SIDE_HOST as u16, abi::WM_SIDE_HOST as u16);
        memory.mailbox_names.push("direct".into());
        Ok((std::sync::Arc::new(memory), handle))
    }

    fn allocate(device: Device, device_bytes: usize, pinned_bytes: usize) -> Result<Self> {
        let arena = device.backend.alloc(device_bytes)?;
        let pinned = match device.backend.alloc_pinned(pinned_bytes) {
            Ok(pinned) => pinned,
            Err(e) => {
                device.backend.free(arena, device_bytes);
                return Err(e);
            }
        };
        Ok(Memory {
            device,
            arena: (arena, device_bytes),
            pinned,
            control: 0,
            telemetry: 0,
            mailbox_stats: 0,
            module_stats: 0,
            host_handles: Vec::new(),
            handles: Vec::new(),
            module_names: Vec::new(),
            mailbox_names: Vec::new(),
            states: Vec::new(),
            _keep: Vec::new(),
            failed: OnceLock::new(),
            abandoned: AtomicBool::new(false),
        })
    }

    /// A handle whose pinned addresses are the host's.
    fn to_host(&self, mut handle: abi::wm_mailbox) -> abi::wm_mailbox {
        let range = self.pinned.device..self.pinned.device + self.pinned.bytes as u64;
        for address in [&mut handle.header, &mut handle.slots, &mut handle.written, &mut handle.consumed] {
            if range.contains(address) {
                *address = *address - self.pinned.device + self.pinned.host as u64;
            }
        }
        handle
    }

    fn write_pinned(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.pinned.bytes);
        // SAFETY: inside the allocation; `&mut self`: nothing runs yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pinned.host.add(offset), bytes.len()) };
    }

    /// Reads a struct of 8-byte words from pinned memory while the arbiter may be writing it: each word is whole.
    fn read_pinned<T: bytemuck::Pod>(&self, offset: usize) -> T {
        assert!(offset + size_of::<T>() <= self.pinned.bytes && size_of::<T>().is_multiple_of(8));
        let mut value = T::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut value);
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            // SAFETY: an aligned word inside the allocation.
            let word = unsafe { abi::wm_host_load_acquire(self.pinned.host.add(offset + 8 * i).cast()) };
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        value
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn telemetry(&self) -> abi::wm_telemetry {
        self.read_pinned(self.telemetry)
    }

    /// The handle of a mailbox as kernels use it.
    pub(crate) fn handle(&self, mailbox: MailboxId) -> Result<abi::wm_mailbox> {
        self.handles.get(mailbox.index()).copied().ok_or_else(|| unknown_mailbox(mailbox))
    }

    /// The stop doorbell.
    pub(crate) fn ring_stop(&self, stop: bool) {
        let word = self.control + std::mem::offset_of!(abi::wm_control, stop.rung);
        // SAFETY: an aligned word inside the allocation whose one writer is the host's launcher thread.
        unsafe { abi::wm_host_store_release(self.pinned.host.add(word).cast(), u64::from(stop)) };
    }

    /// Records that a host producer has pushed, from the word it keeps for the arbiter; none for other producers.
    pub(crate) fn host_written(&self, mailbox: usize) -> Option<u64> {
        let handle = &self.host_handles[mailbox];
        // SAFETY: the word lies in this memory; host-side words are in pinned memory.
        (u32::from(handle.producer_side) == abi::WM_SIDE_HOST)
            .then(|| unsafe { abi::wm_host_load_acquire(handle.written as *const u64) })
    }

    pub(crate) fn stats(&self) -> Stats {
        let t = self.telemetry();
        let name = |names: &[String], i: usize| names.get(i).cloned().unwrap_or_else(|| format!("#{i}"));
        let modules = (0..self.module_names.len())
            .map(|i| {
                let s: abi::wm_module_stats =
                    self.read_pinned(self.module_stats + i * size_of::<abi::wm_module_stats>());
                let rejects = Rejects {
                    length: s.rejects[abi::WM_REJECT_LENGTH as usize],
                    msg_type: s.rejects[abi::WM_REJECT_TYPE as usize],
                    content: s.rejects[abi::WM_REJECT_CONTENT as usize],
                    no_progress: s.rejects[abi::WM_REJECT_NO_PROGRESS as usize],
                };
                ModuleStats {
                    name: name(&self.module_names, i),
                    steps: s.steps,
                    records_in: s.records_in,
                    records_out: s.records_out,
                    busy_ns: s.busy_ns,
                    rejects,
                }
            })
            .collect();
        let mailboxes = (0..self.handles.len())
            .map(|i| {
                let s: abi::wm_mailbox_stats =
                    self.read_pinned(self.mailbox_stats + i * size_of::<abi::wm_mailbox_stats>());
                MailboxStats {
                    name: name(&self.mailbox_names, i),
                    written: s.written,
                    consumed: s.consumed,
                    depth_max: s.depth_max,
                    quarantined: quarantine_reason(s.quarantine),
                }
            })
            .collect();
        // The twin's clock is the host's; a device's clock was read at the heartbeat.
        let is_twin = self.device.info().ordinal.is_none();
        // SAFETY: reads a clock.
        let now = if is_twin { unsafe { abi::wm_host_now_ns() } } else { t.heartbeat_ns };
        let held = |s: &&abi::wm_grant| (1..=self.module_names.len() as u64).contains(&s.module_plus_one);
        let serving = t.grants_held.iter().filter(held);
        let serving = serving
            .map(|s| Serving {
                module: name(&self.module_names, s.module_plus_one as usize - 1),
                for_ns: now.saturating_sub(s.since_ns),
            })
            .collect();
        Stats {
            heartbeat_ns: t.heartbeat_ns,
            launches: t.launches,
            launches_ended: t.launches_ended,
            rounds: t.rounds,
            grants: t.grants,
            work_ns: t.work_ns,
            idle_poll_ns: t.idle_poll_ns,
            modules,
            mailboxes,
            serving,
        }
    }

    /// Who has not returned, in words.
    pub(crate) fn stuck(&self) -> String {
        let names: Vec<String> = self
            .stats()
            .serving
            .iter()
            .map(|s| format!("module {} (for {} ms)", s.module, s.for_ns / 1_000_000))
            .collect();
        if names.is_empty() { "no handler: the device does not answer".into() } else { names.join(", ") }
    }

    pub(crate) fn mailbox_name(&self, mailbox: u32) -> &str {
        self.mailbox_names.get(mailbox as usize).map_or("?", String::as_str)
    }

    pub(crate) fn fail(&self, reason: String) {
        let _ = self.failed.set(reason);
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        match self.failed.get() {
            Some(reason) => Err(Error::Failed(reason.clone())),
            None => Ok(()),
        }
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    /// The arbiter did not leave: its memory must stay.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.abandoned.load(Ordering::Acquire) {
            tracing::warn!(bytes = self.arena.1, "memory of a stuck arbiter is kept");
            std::mem::take(&mut self._keep).into_iter().for_each(std::mem::forget);
            std::mem::forget(self.device.clone());
            return;
        }
        self.device.backend.free(self.arena.0, self.arena.1);
        self.device.backend.free_pinned(self.pinned);
    }
}

pub(crate) fn unknown_mailbox(mailbox: MailboxId) -> Error {
    Error::refused(format!("mailbox id {}", mailbox.0), "this graph has no such mailbox")
}

fn put(image: &mut [u8], offset: u64, bytes: &[u8]) {
    image[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
}

fn header_of(id: u32, producer: u32, consumer: u32, options: &MailboxOptions, sys: bool) -> abi::wm_mailbox_header {
    let mut header = abi::wm_mailbox_header::zeroed();
    header.magic = abi::WM_ABI_MAGIC;
    header.version = abi::WM_ABI_VERSION;
    header.capacity_bytes = u64::from(options.stride) * u64::from(options.slots);
    header.record_stride = options.stride;
    header.producer_id = producer;
    header.consumer_id = consumer;
    header.mailbox_id = id;
    header.slots_log2 = options.slots.trailing_zeros();
    header.scope = if sys { abi::WM_SCOPE_SYS } else { abi::WM_SCOPE_GPU };
    header
}

fn handle_of(header: &abi::wm_mailbox_header, base: u64) -> abi::wm_mailbox {
    let mut handle = abi::wm_mailbox::zeroed();
    handle.header = base;
    handle.slots = base + u64::from(abi::WM_HEADER_BYTES);
    handle.mailbox_id = header.mailbox_id;
    handle.record_stride = header.record_stride;
    handle.slots_log2 = header.slots_log2;
    handle.scope = header.scope;
    handle.producer_id = header.producer_id;
    handle.consumer_id = header.consumer_id;
    handle
}

fn quarantine_reason(word: u64) -> Option<&'static str> {
    match word.checked_sub(1)? as u32 {
        abi::WM_REJECT_INDEX => Some("an index moved further than the ring is long"),
        _ => Some("the header cannot be trusted"),
    }
}
