//! Everything one module graph shares with its arbiter: tables, words, mailboxes, telemetry; laid out in one device
//! allocation and one pinned allocation, and alive as long as anybody can reach it.

pub(crate) mod gates;
mod layout;
mod settle;

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

use bytemuck::Zeroable;

use crate::abi;
use crate::backend::{Door, Pinned};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{MailboxId, StatePlan};
use crate::options::{MailboxOptions, Mode};
use crate::stats::{BudgetStats, MailboxStats, ModuleStats, Refusals, Rejects, Serving, Stats};
use crate::tensor::Pool;

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// Why a launch does not begin.
const NO_ROOM: &str = "the device has begun no launch of the arbiter for a second: no SM has room for it, or another \
                       process holds the device";

#[derive(Debug)]
pub(crate) struct Memory {
    device: Device,
    arena: (u64, usize),
    pinned: Pinned,
    control: usize,
    telemetry: usize,
    doors: usize,
    mailbox_stats: usize,
    module_stats: usize,
    tap_counts: usize,
    durable: usize,
    /// Handles with addresses as the host uses them.
    pub(crate) host_handles: Vec<abi::wm_mailbox>,
    /// Handles with addresses as the device uses them.
    pub(crate) handles: Vec<abi::wm_mailbox>,
    /// Of the journal, one for each server if they tap anything, and for each stream module that does; as the host uses them.
    pub(crate) journal_rings: Vec<abi::wm_ring>,
    pub(crate) module_names: Vec<String>,
    pub(crate) mailbox_names: Vec<String>,
    /// Address and size of each module's state.
    pub(crate) states: Vec<(u64, usize)>,
    pub(crate) state_plan: StatePlan,
    /// Buffers and whatever else callers want to be kept as long.
    kept: Mutex<Vec<Box<dyn Any + Send>>>,
    /// Where the graph's tensors come from; kept for readers on the device.
    pub(crate) pool: Option<Pool>,
    /// Of each mailbox: whether the journal takes the tensors of its records.
    pub(crate) tensor_taps: Vec<bool>,
    /// Number of this graph, among all of this process.
    pub(crate) serial: u64,
    failed: OnceLock<String>,
    abandoned: AtomicBool,
    paced: AtomicU64,
    /// The launcher's thread, and how often a sender found the arbiter parked.
    launcher: OnceLock<Thread>,
    /// The thread that enqueues steps.
    runner: OnceLock<Thread>,
    woken: AtomicU64,
    /// The device has begun none of the launches it was given for a while.
    waiting: AtomicBool,
    is_cpu_arbitrated: bool,
    /// For an arbiter on the CPU: where in pinned memory a copy of which header in device memory lies.
    headers: Vec<(usize, u64)>,
    /// Of stream modules whose steps the arbiter grants.
    pub(crate) gates: Vec<gates::Gate>,
    /// Of a static order: gates, producers first, each with those of them that it comes behind; else empty.
    pub(crate) order: Vec<(usize, Vec<usize>)>,
    /// Of an arbiter on the CPU: where in pinned memory each server's mark lies.
    marks: Vec<usize>,
    /// Launches of stream modules that were enqueued ahead of their grants.
    pub(crate) enqueued_ahead: AtomicU64,
}

impl Memory {
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
            doors: 0,
            mailbox_stats: 0,
            module_stats: 0,
            tap_counts: 0,
            durable: 0,
            journal_rings: Vec::new(),
            host_handles: Vec::new(),
            handles: Vec::new(),
            module_names: Vec::new(),
            mailbox_names: Vec::new(),
            states: Vec::new(),
            state_plan: StatePlan::default(),
            kept: Mutex::default(),
            pool: None,
            tensor_taps: Vec::new(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            failed: OnceLock::new(),
            abandoned: AtomicBool::new(false),
            paced: AtomicU64::new(0),
            launcher: OnceLock::new(),
            runner: OnceLock::new(),
            woken: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            is_cpu_arbitrated: false,
            headers: Vec::new(),
            gates: Vec::new(),
            order: Vec::new(),
            marks: Vec::new(),
            enqueued_ahead: AtomicU64::new(0),
        })
    }

    /// A handle whose pinned addresses are the host's.
    fn to_host(&self, mut handle: abi::wm_mailbox) -> abi::wm_mailbox {
        let range = self.pinned.device..self.pinned.device + self.pinned.bytes as u64;
        for address in [&mut handle.header, &mut handle.written, &mut handle.consumed] {
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

    /// Records of a tapped mailbox that the last launch, which has ended, has left in their slots, not journalled.
    pub(crate) fn tap_behind(&self, mailbox: usize) -> u64 {
        let at = self.mailbox_stats + mailbox * size_of::<abi::wm_mailbox_stats>();
        self.read_pinned::<abi::wm_mailbox_stats>(at).behind
    }

    /// Records of a mailbox that went to the journal or were dropped on the way.
    pub(crate) fn tap_counts(&self, mailbox: usize) -> abi::wm_tap_counts {
        self.read_pinned(self.tap_counts + mailbox * size_of::<abi::wm_tap_counts>())
    }

    /// Tells modules how many of a mailbox's journalled records are durable, with [`abi::WM_DURABLE_ENDED`] if there will be
    /// no more.
    pub(crate) fn publish_durable(&self, mailbox: usize, word: u64) {
        // SAFETY: an aligned word inside the allocation whose one writer is the journal's writer thread.
        unsafe { abi::wm_host_store_release(self.pinned.host.add(self.durable + 8 * mailbox).cast(), word) };
    }

    /// What was last told.
    pub(crate) fn durable(&self, mailbox: usize) -> u64 {
        self.read_pinned(self.durable + 8 * mailbox)
    }

    /// Where it stands, as the device sees it.
    pub(crate) fn durable_handle(&self, mailbox: MailboxId) -> Result<abi::wm_durable> {
        if self.handle(mailbox)?.tap != abi::WM_TAP_BLOCK {
            let rule = "its records do not all go to the journal: see Builder::tap and Tap::Block";
            return Err(Error::refused(format!("mailbox {}", self.mailbox_name(mailbox.0)), rule));
        }
        let word = self.pinned.device + (self.durable + 8 * mailbox.index()) as u64;
        Ok(abi::wm_durable { word, mailbox_id: mailbox.0, reserved: 0 })
    }

    /// Whether a tap holds anybody up while its ring is full.
    pub(crate) fn has_blocking_taps(&self) -> bool {
        self.handles.iter().any(|m| m.tap & abi::WM_TAP_POLICY == abi::WM_TAP_BLOCK)
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn telemetry(&self) -> abi::wm_telemetry {
        self.read_pinned(self.telemetry)
    }

    /// The handle of a mailbox as kernels use it.
    pub(crate) fn handle(&self, mailbox: MailboxId) -> Result<abi::wm_mailbox> {
        let handle = self.handles.get(mailbox.index()).copied().ok_or_else(|| unknown_mailbox(mailbox))?;
        Ok(if self.is_cpu_arbitrated { layout::as_far_end(handle) } else { handle })
    }

    /// Shows an arbiter on the CPU, and `stats`, the headers in device memory as they are now. No arbiter runs.
    pub(crate) fn refresh_headers(&self) -> Result<()> {
        let mut bytes = [0; abi::WM_HEADER_BYTES as usize];
        for &(copy, header) in &self.headers {
            self.device.backend.download(&mut bytes, header)?;
            // SAFETY: the copy's bytes lie inside the allocation, and the arbiter, their only reader, is away.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pinned.host.add(copy), bytes.len()) };
        }
        Ok(())
    }

    /// Who arbitrates.
    pub(crate) fn mode(&self) -> Mode {
        if self.is_cpu_arbitrated { Mode::Cpu } else { Mode::Device }
    }

    /// Names the launcher's thread; once.
    pub(crate) fn set_launcher(&self, thread: &Thread) {
        let _ = self.launcher.set(thread.clone());
    }

    /// Names the thread that enqueues steps; once.
    pub(crate) fn set_runner(&self, thread: &Thread) {
        let _ = self.runner.set(thread.clone());
    }

    /// Has the thread that enqueues steps, if there is one, see to it that more launches follow.
    pub(crate) fn stir_runner(&self) {
        if let Some(runner) = self.runner.get() {
            runner.unpark();
        }
    }

    /// How often a sender of the host found the arbiter parked.
    pub(crate) fn woken(&self) -> u64 {
        self.woken.load(Ordering::Acquire)
    }

    /// After a push of the host's: if the arbiter is parked, which the push has ended, has the launcher see to it that more
    /// launches follow. Nothing depends on it but how soon they do. `bell` is that of the mailbox, 0 if it never parks.
    #[inline]
    pub(crate) fn stir(&self, bell: u64) {
        if bell == 0 {
            return;
        }
        let parked = (bell as usize + std::mem::offset_of!(abi::wm_bell, parked)) as *const u64;
        // SAFETY: the bell lies in the runtime's pinned memory, which `self` keeps; an aligned word.
        if unsafe { abi::wm_host_load_acquire(parked) } != 0
            && let Some(launcher) = self.launcher.get()
        {
            self.woken.fetch_add(1, Ordering::Release);
            launcher.unpark();
        }
    }

    /// The stop doorbell: how long the journal's roles may wait for room in a ring that nobody empties, in nanoseconds, at least
    /// 1; 0: go on.
    pub(crate) fn ring_stop(&self, patience_ns: u64) {
        let word = self.control + std::mem::offset_of!(abi::wm_control, stop.rung);
        // SAFETY: an aligned word inside the allocation whose one writer is the host's launcher thread.
        unsafe { abi::wm_host_store_release(self.pinned.host.add(word).cast(), patience_ns) };
    }

    fn door(&self, credit: u64) -> usize {
        self.doors + (credit % u64::from(abi::WM_DOORS)) as usize * size_of::<abi::wm_doorbell>()
    }

    /// A credit's door, as the device's front end sees it, and a thread.
    pub(crate) fn door_of(&self, credit: u64) -> Door {
        let at = self.door(credit) as u64;
        Door { device: self.pinned.device + at, host: self.pinned.host as u64 + at, soon: false }
    }

    /// Opens (anybody may) or clears (only the launcher may, when the credit before on this door has begun) a door.
    pub(crate) fn set_door(&self, credit: u64, open: bool) {
        // SAFETY: an aligned word inside the allocation; its values and writers are those of csrc/protocol/park.hpp.
        unsafe { abi::wm_host_store_release(self.pinned.host.add(self.door(credit)).cast(), u64::from(open)) };
    }

    /// C2 and C3 of the parking protocol: publishes how many credits may be rung for, and fences.
    pub(crate) fn publish_credits(&self, credits: u64) {
        self.publish(std::mem::offset_of!(abi::wm_control, credits), credits);
    }

    /// Q1: publishes how many credits the driver has been asked to enqueue, and fences.
    pub(crate) fn publish_enqueued(&self, credits: u64) {
        self.publish(std::mem::offset_of!(abi::wm_control, enqueued), credits);
    }

    fn publish(&self, offset: usize, credits: u64) {
        // SAFETY: an aligned word inside the allocation whose one writer is the launcher thread; a fence.
        unsafe {
            abi::wm_host_store_release(self.pinned.host.add(self.control + offset).cast(), credits);
            abi::wm_host_fence();
        }
    }

    /// Credits that the driver has been asked to enqueue.
    pub(crate) fn enqueued(&self) -> u64 {
        self.read_pinned::<abi::wm_control>(self.control).enqueued
    }

    /// Credits below this one have begun or are about to: the pacer has opened, or is opening, their doors.
    pub(crate) fn paced(&self) -> u64 {
        self.paced.load(Ordering::Acquire)
    }

    pub(crate) fn set_paced(&self, credits: u64) {
        self.paced.store(credits, Ordering::Release);
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
                    lease: s.rejects[abi::WM_REJECT_LEASE as usize],
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
                let tap = self.tap_counts(i);
                MailboxStats {
                    name: name(&self.mailbox_names, i),
                    tapped: tap.taken,
                    tap_dropped: tap.dropped,
                    written: s.written,
                    consumed: s.consumed,
                    depth_max: s.depth_max,
                    quarantined: quarantine_reason(s.quarantine),
                    refused: self.refusals(i, &s.refused),
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
        let is_away = |reason| t.launches == t.launches_ended && t.exit_reason == u64::from(reason);
        Stats {
            heartbeat_ns: t.heartbeat_ns,
            launches: t.launches,
            launches_ended: t.launches_ended,
            rounds: t.rounds,
            grants: t.grants,
            ahead: t.ahead,
            steps_ahead: self.enqueued_ahead.load(Ordering::Relaxed),
            work_ns: t.work_ns,
            idle_poll_ns: t.idle_poll_ns,
            parks: t.parks,
            parked_ns: t.parked_ns,
            parked: is_away(abi::WM_EXIT_PARK),
            closed: is_away(abi::WM_EXIT_CLOSED),
            budget: BudgetStats {
                allowance_ns: (t.allowance as i64) / 1_000_000,
                residency_ends: t.budget.residency_ends,
                closings: t.budget.closings,
                over_residency: t.budget.over_residency,
                over_residency_ns: t.budget.over_residency_ns,
                over_spin: t.budget.over_spin,
                over_spin_ns: t.budget.over_spin_ns,
                over_share: t.budget.over_share,
                over_share_ns: t.budget.over_share_ns,
            },
            modules,
            mailboxes,
            serving,
        }
    }

    /// What the ends of a mailbox refused; `told` by the arbiter, which knows of headers in device memory.
    fn refusals(&self, mailbox: usize, told: &abi::wm_refusals) -> Refusals {
        let (handle, device) = (&self.host_handles[mailbox], self.handles[mailbox].header);
        let copy = || self.headers.iter().find(|(_, header)| *header == device).map(|(copy, _)| *copy);
        let header = match handle.scope {
            abi::WM_SCOPE_SYS => Some((handle.header - self.pinned.host as u64) as usize),
            _ => copy(),
        };
        let refused = std::mem::offset_of!(abi::wm_mailbox_header, refused);
        let ends: [abi::wm_refusals; 2] = match header {
            Some(header) => {
                std::array::from_fn(|end| self.read_pinned(header + refused + end * size_of::<abi::wm_refusals>()))
            }
            None => [*told, abi::wm_refusals::zeroed()],
        };
        let sum = |reason: fn(&abi::wm_refusals) -> u64| ends.iter().map(reason).sum();
        Refusals {
            length: sum(|r| r.length),
            argument: sum(|r| r.argument),
            header: sum(|r| r.header),
            index: sum(|r| r.index),
        }
    }

    /// Whether the device has begun none of the launches it was given for a while.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Says so, once each time.
    pub(crate) fn set_waiting(&self, waiting: bool) {
        if self.waiting.swap(waiting, Ordering::AcqRel) != waiting {
            match waiting {
                true => tracing::warn!("{NO_ROOM}"),
                false => tracing::info!("the device has begun the arbiter's launches again"),
            }
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
        let names: Vec<String> = names.into_iter().chain(self.live_steps()).collect();
        match names.is_empty() {
            true if self.is_waiting() => NO_ROOM.into(),
            true => "no handler: the device does not answer".into(),
            false => names.join(", "),
        }
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

    /// Whether a launch may still be running.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Keeps something until nothing uses this memory any more.
    pub(crate) fn keep(&self, owner: Box<dyn Any + Send>) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(owner);
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
            std::mem::forget(std::mem::take(self.kept.get_mut().unwrap_or_else(PoisonError::into_inner)));
            std::mem::forget(self.device.clone());
            std::mem::forget(self.pool.take());
            return;
        }
        self.device.backend.free(self.arena.0, self.arena.1);
        self.device.backend.free_pinned(self.pinned);
    }
}

pub(crate) fn unknown_mailbox(mailbox: MailboxId) -> Error {
    Error::refused(format!("mailbox id {}", mailbox.0), "this graph has no such mailbox")
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
