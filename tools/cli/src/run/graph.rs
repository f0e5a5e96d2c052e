//! The module graph: reader (host) -> encoder -> sidecar -> planner -> sink (host), and its memory.

use std::mem::offset_of;
use std::path::Path;

use bytemuck::Zeroable;
use warpmail::journal::Log;
use warpmail::{Builder, Device, Error, MailboxOptions, Mode, ModuleId, ModuleOptions, Receiver, Runtime, Sender, Tap};

use crate::budget::BudgetArgs;

use super::records::{
    BANDS, BUCKET, DIMS, ENCODER, EncoderState, Entry, PLANNER, PlannerState, SIDECAR, SidecarState, TENSORS,
};

include!(concat!(env!("OUT_DIR"), "/neardup.rs"));

/// Slots of `encoder->sidecar`. The encoder cannot run out of tensors as long as TENSORS is larger by at least two.
const FEATURE_SLOTS: u32 = 64;
const _: () = assert!(FEATURE_SLOTS as usize + 2 <= TENSORS);

/// What to look for, how much to remember, what to keep.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// In 1/10000.
    pub(crate) threshold: u32,
    pub(crate) emit_all: bool,
    /// Lines that the sidecar remembers.
    pub(crate) capacity: u32,
    /// What the arbiter may cost. Results do not depend on it.
    pub(crate) budget: BudgetArgs,
    /// Who arbitrates. Results do not depend on it.
    pub(crate) mode: Mode,
}

impl Options {
    /// Buckets of one band: the places of all are at least twice the lines.
    pub(crate) fn bucket_count(&self) -> u32 {
        (self.capacity / 2).next_power_of_two().max(64)
    }

    fn entry_bytes(&self) -> usize {
        self.capacity as usize * size_of::<Entry>()
    }

    fn bucket_bytes(&self) -> usize {
        self.bucket_count() as usize * BANDS * BUCKET * size_of::<u64>()
    }

    /// Device memory that the sidecar takes: remembered lines and index.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.entry_bytes() + self.bucket_bytes()
    }
}

/// The graph, ready to start, and the host's two ends.
pub(crate) struct Graph {
    pub(crate) runtime: Runtime,
    pub(crate) lines: Sender,
    pub(crate) results: Receiver,
    planner: ModuleId,
    fresh_planner: PlannerState,
}

/// Row of the mailbox that the reader gives lines to.
pub(crate) const LINES: u32 = 0;
/// Module and buffer of a checkpoint whose size tells how much is remembered.
pub(crate) const MEMORY: (&str, &str) = ("sidecar", "entries");

impl Graph {
    /// Before the start: brings back what the checkpoint in a directory knows. What a run was asked for, and what it counts,
    /// are its own.
    pub(crate) fn restore(&mut self, dir: &Path) -> Result<(), Error> {
        self.runtime.restore(dir)?;
        self.runtime.write_state(self.planner, bytemuck::bytes_of(&self.fresh_planner))
    }
}

/// Builds the graph. With a log its lines and results are kept there.
pub(crate) fn build(device: &Device, options: &Options, log: Option<Log>) -> Result<Graph, Error> {
    let mut graph = Builder::new(device.clone());
    graph.mode(options.mode);
    let usual = graph.current_budget().clone();
    graph.budget(options.budget.over(usual, device)?)?;
    let tensors = device.alloc(TENSORS * DIMS)?;
    let entries = device.alloc(options.entry_bytes())?;
    let buckets = device.alloc(options.bucket_bytes())?;

    let mut encoder = EncoderState::zeroed();
    encoder.tensors = tensors.address();
    encoder.free_count = TENSORS as u32;
    (0..).zip(&mut encoder.free_list).for_each(|(i, place)| *place = i);
    let sidecar = SidecarState {
        entries: entries.address(),
        buckets: buckets.address(),
        inserted: 0,
        capacity: options.capacity,
        bucket_count: options.bucket_count(),
    };
    let fresh_planner =
        PlannerState { threshold: options.threshold, emit_all: u32::from(options.emit_all), novel: 0, duplicates: 0 };

    let one = |handler| ModuleOptions { out_records: 1, ..ModuleOptions::handler(handler) };
    let reader = graph.host("reader")?;
    let encoder = graph.resident("encoder", one(ENCODER).with_state(&encoder))?;
    let sidecar = graph.resident("sidecar", one(SIDECAR).with_state(&sidecar))?;
    let planner = graph.resident("planner", one(PLANNER).with_state(&fresh_planner))?;
    // All that they know, with the words that say where it lies.
    for (module, name, buffer, word) in [
        (encoder, "tensors", tensors, offset_of!(EncoderState, tensors)),
        (sidecar, MEMORY.1, entries, offset_of!(SidecarState, entries)),
        (sidecar, "buckets", buckets, offset_of!(SidecarState, buckets)),
    ] {
        let buffer = graph.state_buffer(module, name, buffer)?;
        graph.pointer(module, word, buffer)?;
    }
    let sink = graph.host("sink")?;
    // Handlers know their ends by this order. A push writes a whole slot: strides are as small as the records allow.
    let lines = graph.mailbox(reader, encoder, MailboxOptions { stride: 256, slots: 1024 })?;
    graph.mailbox(encoder, sidecar, MailboxOptions { stride: 320, slots: FEATURE_SLOTS })?;
    graph.mailbox(sidecar, planner, MailboxOptions { stride: 64, slots: 64 })?;
    graph.mailbox(sidecar, encoder, MailboxOptions { stride: 64, slots: TENSORS as u32 })?;
    let results = graph.mailbox(planner, sink, MailboxOptions { stride: 64, slots: 1024 })?;
    if log.is_some() {
        graph.tap(lines, Tap::Block)?.tap(results, Tap::Block)?;
    }
    let mut runtime = graph.build(neardup::image())?;
    if let Some(log) = log {
        runtime.journal(log)?;
    }
    let (lines, results) = (runtime.sender(lines)?, runtime.receiver(results)?);
    Ok(Graph { runtime, lines, results, planner, fresh_planner })
}
