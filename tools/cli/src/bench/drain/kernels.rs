//! What the bench runs on a GPU itself: kernels that make records, the ceilings of the bus, a kernel beside it all.

use std::time::{Duration, Instant};

use warpmail::{Device, DeviceBuffer, abi};

use super::super::gpu::{Kernels, Mapped, Stream, arg};
use super::super::hop::Load;
use super::super::{median, text};
use super::rings::{Flow, Shape};
use super::tensors;

/// How long kernels make records.
const FLOOD: Duration = Duration::from_millis(400);
/// Bytes of pinned memory that the ceilings write, again and again.
const PINNED: usize = 64 << 20;
/// Bytes of device memory that are carried there, again and again: they stay in L2.
const SOURCE: usize = 2 << 20;
/// Warps of an arbiter that serve beside a journal.
const SERVERS: u32 = warpmail::abi::WM_MAX_WARPS - 4;

pub(super) struct Gpu {
    pub(super) device: Device,
    kernels: Kernels,
    stream: Stream,
    words: DeviceBuffer,
    times: DeviceBuffer,
    pinned: Mapped,
}

impl Gpu {
    pub(super) fn new(device: Device) -> Result<Self, String> {
        let kernels = Kernels::load(&device)?;
        let stream = kernels.stream()?;
        let alloc = |bytes| device.alloc(bytes).map_err(text);
        let (words, times, pinned) = (alloc(64)?, alloc(8 << 16)?, Mapped::new(PINNED / 8)?);
        // Loaded now: the first launch of a kernel may wait for an arbiter that runs.
        for name in [
            "flood_256",
            "flood_4096",
            "store_host",
            "carry_host",
            "grant_ping_self_contained",
            "clock_rate",
            "saturate",
        ] {
            kernels.get(name, 0)?;
        }
        let gpu = Gpu { device, kernels, stream, words, times, pinned };
        gpu.store_rate(8)?; // the first one finds nothing warm
        Ok(gpu)
    }

    /// What a launch and the wait for it cost, which is in the time of every ceiling: nanoseconds.
    pub(super) fn launch_ns(&self) -> Result<f64, String> {
        let kernel = self.kernels.get("store_host", 0)?;
        let mut samples = Vec::new();
        for _ in 0..100 {
            let (mut to, mut words, mut times) = (self.pinned.device(), 0u64, 0u32);
            let params = &mut [arg(&mut to), arg(&mut words), arg(&mut times)];
            let begin = Instant::now();
            self.kernels.launch(kernel, 1, 32, 0, self.stream, params)?;
            self.kernels.wait(self.stream)?;
            samples.push(begin.elapsed().as_nanos() as f64);
        }
        Ok(median(&mut samples))
    }

    /// Nanoseconds a cycle of the SM clock; and what reading that clock takes, which is in every round trip of a kernel.
    pub(super) fn clock(&self) -> Result<(f64, f64), String> {
        let rate = self.kernels.get("clock_rate", 0)?;
        let (mut ns, mut out) = (20_000_000u64, self.words.address());
        self.kernels.launch(rate, 1, 1, 0, self.stream, &mut [arg(&mut ns), arg(&mut out)])?;
        self.kernels.wait(self.stream)?;
        let ns_per_cycle = self.word(1)? as f64 / self.word(0)? as f64;
        Ok((ns_per_cycle, self.word(4)? as f64 / 64.0 * ns_per_cycle))
    }

    /// Handles where kernels find them.
    pub(super) fn table(&self, handles: &[abi::wm_mailbox]) -> Result<DeviceBuffer, String> {
        let table = self.device.alloc(size_of_val(handles)).map_err(text)?;
        table.upload(0, bytemuck::cast_slice(handles)).map_err(text)?;
        Ok(table)
    }

    /// A warp for each mailbox pushes into it for a while. Returns how many records they pushed.
    pub(super) fn flood(&self, table: &DeviceBuffer, boxes: u32, stride: u32) -> Result<u64, String> {
        let kernel = self.kernels.get(if stride == 256 { "flood_256" } else { "flood_4096" }, 0)?;
        self.words.upload(0, &[0; 64]).map_err(text)?;
        let (mut table, mut ns, mut pushed) = (table.address(), FLOOD.as_nanos() as u64, self.words.address());
        let params = &mut [arg(&mut table), arg(&mut ns), arg(&mut pushed)];
        self.kernels.launch(kernel, boxes, 32, 0, self.stream, params)?;
        self.kernels.wait(self.stream)?;
        self.word(0)
    }

    fn word(&self, i: usize) -> Result<u64, String> {
        let mut word = [0u64; 1];
        self.words.download(8 * i, bytemuck::bytes_of_mut(&mut word)).map_err(text)?;
        Ok(word[0])
    }

    /// Bytes a nanosecond that so many blocks of 1024 threads store into pinned memory, in whole lines.
    pub(super) fn store_rate(&self, blocks: u32) -> Result<f64, String> {
        const TIMES: u32 = 32;
        let kernel = self.kernels.get("store_host", 0)?;
        let (mut to, mut words, mut times) = (self.pinned.device(), (PINNED / 8) as u64, TIMES);
        let params = &mut [arg(&mut to), arg(&mut words), arg(&mut times)];
        let begin = Instant::now();
        self.kernels.launch(kernel, blocks, 1024, 0, self.stream, params)?;
        self.kernels.wait(self.stream)?;
        Ok(PINNED as f64 * f64::from(TIMES) / begin.elapsed().as_nanos() as f64)
    }

    /// Bytes a nanosecond that one block with as many warps as can serve loads from device memory and stores into pinned memory.
    pub(super) fn carry_rate(&self) -> Result<f64, String> {
        const TIMES: u32 = 32;
        let from = self.device.alloc(SOURCE).map_err(text)?;
        let kernel = self.kernels.get("carry_host", 0)?;
        let (mut to, mut source, mut source_words) = (self.pinned.device(), from.address(), (SOURCE / 8) as u64);
        let (mut words, mut times) = ((PINNED / 8) as u64, TIMES);
        let params = &mut [arg(&mut to), arg(&mut source), arg(&mut source_words), arg(&mut words), arg(&mut times)];
        let begin = Instant::now();
        self.kernels.launch(kernel, 1, SERVERS * 32, 0, self.stream, params)?;
        self.kernels.wait(self.stream)?;
        Ok(PINNED as f64 * f64::from(TIMES) / begin.elapsed().as_nanos() as f64)
    }

    /// Bytes a nanosecond of copies into pinned memory by the copy engine, a tensor each.
    pub(super) fn copy_rate(&self) -> Result<f64, String> {
        let from = self.device.alloc(tensors::BYTES).map_err(text)?;
        let begin = Instant::now();
        for i in 0..tensors::TENSORS {
            let at = i * tensors::BYTES % PINNED;
            self.kernels.copy_to_pinned(&self.pinned, at, &from, tensors::BYTES, self.stream)?;
        }
        self.kernels.wait(self.stream)?;
        Ok((tensors::TENSORS * tensors::BYTES) as f64 / begin.elapsed().as_nanos() as f64)
    }

    /// Round trips of a kernel through a relay, nanoseconds.
    pub(super) fn ping(&self, [mut there, mut back]: [abi::wm_mailbox; 2], rounds: u32) -> Result<Vec<f64>, String> {
        let (ns_per_cycle, _) = self.clock()?;
        self.words.upload(0, &[0; 64]).map_err(text)?;
        let kernel = self.kernels.get("grant_ping_self_contained", 0)?;
        let (mut n, mut times, mut faults) = (rounds, self.times.address(), self.words.address());
        let params = &mut [arg(&mut there), arg(&mut back), arg(&mut n), arg(&mut times), arg(&mut faults)];
        self.kernels.launch(kernel, 1, 32, 0, self.stream, params)?;
        self.kernels.wait(self.stream)?;
        if self.word(0)? != 0 {
            return Err("a record was wrong, or did not come back".into());
        }
        let mut cycles = vec![0u64; rounds as usize];
        self.times.download(0, bytemuck::cast_slice_mut(&mut cycles)).map_err(text)?;
        Ok(cycles.into_iter().map(|c| c as f64 * ns_per_cycle).collect())
    }

    /// Bytes a nanosecond that a kernel moves which saturates device memory on all SMs but one, where the arbiter has a place
    /// of its own: alone, and while records go to the journal.
    pub(super) fn co_runner(&self, shape: Shape) -> Result<(f64, f64), String> {
        let blocks = self.kernels.multiprocessors - 1;
        let load = Load::start(&self.device, &self.kernels, blocks)?;
        std::thread::sleep(FLOOD);
        let alone = load.end(&self.kernels)?;
        // All memory is allocated before and freed behind: to free it would wait for the co-runner.
        let mut flow = Flow::start(&self.device, Some(self), shape)?;
        let load = Load::start(&self.device, &self.kernels, blocks)?;
        let done = flow.rate();
        let beside = load.end(&self.kernels);
        flow.stop()?;
        done?;
        Ok((alone, beside?))
    }
}
