//! `park.corun.*`: what an arbiter costs its neighbours. A matrix product of cuBLAS, a copy through device memory, a chain of
//! small kernels (launched one by one, and as a captured graph), and small copies to the device and from it that are waited for,
//! each beside an arbiter and, with the arbiter quiesced, alone: pairs in turns, so that clocks and heat are the same.

pub(super) mod cause;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cudarc::cublas::sys as cublas;
use warpmail::{Builder, Device, DeviceBuffer, HandlerImage, MailboxOptions, Mode, Runtime, SpinBudget, builtin};

use super::gpu::{Graph, Kernel, Kernels, Mapped, Stream, Timer, arg};
use super::{median, text};

const BOUND: Duration = Duration::from_secs(5);
/// Rows and columns of the matrix product.
const GEMM: usize = 8192;
/// Bytes that the copy reads.
const COPY: usize = 1 << 30;
/// Rows and columns of a layer of the chain, and its layers.
const LAYER: usize = 4096;
const LAYERS: usize = 256;
/// Small copies of one piece, and bytes of one to the device.
const COPIES: usize = 64;
const UPLOAD: usize = 4096;
/// How long one measurement takes, about.
const SPAN_MS: f64 = 15.0;

/// One neighbour beside an arbiter in one state.
pub(super) struct Corun {
    pub(super) neighbour: &'static str,
    pub(super) state: &'static str,
    /// Median of the pairs' ratios: beside over alone.
    pub(super) slowdown: f64,
    /// Medians, milliseconds.
    pub(super) beside_ms: f64,
    pub(super) alone_ms: f64,
    /// Of one SM's time, held by the arbiter while it was there.
    pub(super) share: f64,
    /// Watts while it was there, of the whole device; none where NVML does not say.
    pub(super) watts: Option<f64>,
}

/// An arbiter in a state: its budget, and records a second that a thread of the host pushes.
struct State {
    name: &'static str,
    budget: SpinBudget,
    rate: u64,
}

fn states() -> Vec<State> {
    let spin = |micros| SpinBudget { idle_spin: Some(Duration::from_micros(micros)), ..SpinBudget::default() };
    let hot = SpinBudget { idle_spin: None, ..SpinBudget::default() };
    vec![
        State { name: "parked", budget: spin(1), rate: 0 },
        State { name: "hot", budget: hot, rate: 0 },
        State { name: "parked_1000", budget: spin(1), rate: 1000 },
        State { name: "spin_200us_1000", budget: spin(200), rate: 1000 },
    ]
}

/// cuBLAS, loaded when it is there.
struct Blas(cublas::cublasHandle_t);

impl Blas {
    fn new(stream: Stream) -> Result<Self, String> {
        // SAFETY: looks for the library and loads it; nothing is called before it is known to be there.
        if !unsafe { cublas::is_culib_present() } {
            return Err("libcublas was not found; set LD_LIBRARY_PATH to where it lies".into());
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle; the context is current, and the stream belongs to it.
        let status = unsafe {
            match cublas::cublasCreate_v2(&mut handle) {
                cublas::cublasStatus_t::CUBLAS_STATUS_SUCCESS => {
                    cublas::cublasSetStream_v2(handle, stream.raw() as cublas::cudaStream_t)
                }
                failed => failed,
            }
        };
        if status != cublas::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            return Err(format!("libcublas: {status:?}"));
        }
        Ok(Blas(handle))
    }

    /// c = a * b, square matrices of bf16.
    fn multiply(&self, n: usize, a: u64, b: u64, c: u64) -> Result<(), String> {
        let (one, zero, n) = (1f32, 0f32, n as i32);
        let op = cublas::cublasOperation_t::CUBLAS_OP_N;
        let bf16 = cublas::cudaDataType_t::CUDA_R_16BF;
        // SAFETY: three matrices of that size; the scalars are read before the call returns.
        let status = unsafe {
            cublas::cublasGemmEx(
                self.0,
                op,
                op,
                n,
                n,
                n,
                (&raw const one).cast(),
                a as *const _,
                bf16,
                n,
                b as *const _,
                bf16,
                n,
                (&raw const zero).cast(),
                c as *mut _,
                bf16,
                n,
                cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        match status {
            cublas::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
            failed => Err(format!("cublasGemmEx: {failed:?}")),
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made in `new`; its work was waited for.
        unsafe { cublas::cublasDestroy_v2(self.0) };
    }
}

/// The neighbours' memory and kernels.
struct Neighbours<'a> {
    kernels: &'a Kernels,
    stream: Stream,
    timer: Timer,
    memory: [DeviceBuffer; 2],
    pinned: Mapped,
    blas: Result<Blas, String>,
    /// Found once: looking a kernel up takes the driver's lock.
    copy: Kernel,
    layer: Kernel,
    chain: Option<Graph>,
}

impl<'a> Neighbours<'a> {
    fn new(device: &Device, kernels: &'a Kernels) -> Result<Self, String> {
        let (stream, timer) = (kernels.stream()?, Timer::new()?);
        let memory = [device.alloc(COPY).map_err(text)?, device.alloc(COPY).map_err(text)?];
        let fill = kernels.get("corun_fill", 0)?;
        for buffer in &memory {
            let (mut to, mut n) = (buffer.address(), COPY as u64 / 8);
            kernels.launch(fill, 4 * kernels.multiprocessors, 512, 0, stream, &mut [arg(&mut to), arg(&mut n)])?;
        }
        kernels.wait(stream)?;
        let (copy, layer) = (kernels.get("corun_stream", 0)?, kernels.get("corun_decode", 0)?);
        let (blas, pinned) = (Blas::new(stream), Mapped::new(UPLOAD / 8)?);
        let mut neighbours = Neighbours { kernels, stream, timer, memory, pinned, blas, copy, layer, chain: None };
        neighbours.chain = Some(kernels.capture(stream, || neighbours.enqueue("decode"))?);
        Ok(neighbours)
    }

    /// Enqueues one piece of a neighbour's work.
    fn enqueue(&self, neighbour: &str) -> Result<(), String> {
        let [from, to] = [self.memory[0].address(), self.memory[1].address()];
        let bytes = (2 * GEMM * GEMM) as u64;
        match neighbour {
            "gemm" => self.blas.as_ref().map_err(String::clone)?.multiply(GEMM, from, from + bytes, to),
            "stream" => {
                let (mut from, mut to, mut n) = (from, to, COPY as u64 / 16);
                let params = &mut [arg(&mut from), arg(&mut to), arg(&mut n)];
                self.kernels.launch(self.copy, 8 * self.kernels.multiprocessors, 512, 0, self.stream, params)
            }
            // What a loop of inference does between two steps: each waits for its copy.
            "upload" => (0..COPIES).try_for_each(|_| self.kernels.copy_in(to, &self.pinned, UPLOAD, self.stream)),
            "readback" => (0..COPIES).try_for_each(|_| {
                self.enqueue_layer(0)?;
                self.kernels.copy_out(&self.pinned, to, 8, self.stream)
            }),
            "decode_graph" => self.chain.as_ref().map_or(Ok(()), |chain| chain.launch(self.stream)),
            _ => (0..LAYERS).try_for_each(|layer| self.enqueue_layer(layer)),
        }
    }

    /// Makes a copy the first thing that a stream does: waits for words are then a copy engine's.
    fn first_copy(&self, stream: Stream) -> Result<(), String> {
        self.kernels.copy_in(self.memory[1].address(), &self.pinned, 8, stream)
    }

    /// A layer of the chain: from one vector to the other and back, weights from all over the memory.
    fn enqueue_layer(&self, layer: usize) -> Result<(), String> {
        let [from, to] = [self.memory[0].address(), self.memory[1].address()];
        let layers = COPY / (4 * LAYER * LAYER);
        let (a, b) = (to, to + 4 * LAYER as u64);
        let (mut x, mut y) = if layer.is_multiple_of(2) { (a, b) } else { (b, a) };
        let (mut weights, mut columns) = (from + (layer % layers * 4 * LAYER * LAYER) as u64, LAYER as u32);
        let params = &mut [arg(&mut weights), arg(&mut x), arg(&mut y), arg(&mut columns)];
        self.kernels.launch(self.layer, LAYER as u32 / 8, 256, 0, self.stream, params)
    }

    /// Milliseconds that `times` pieces take, on the device's clock.
    fn timed(&self, neighbour: &str, times: u32) -> Result<f64, String> {
        self.timer.begin(self.stream)?;
        for _ in 0..times {
            self.enqueue(neighbour)?;
        }
        self.timer.end(self.stream)
    }

    /// How many pieces fill a measurement; by then clocks have settled.
    fn pieces(&self, neighbour: &str) -> Result<u32, String> {
        let (begin, mut last) = (Instant::now(), self.timed(neighbour, 1)?);
        while begin.elapsed() < Duration::from_millis(400) {
            last = self.timed(neighbour, 1)?;
        }
        Ok((SPAN_MS / last.max(1e-3)).ceil().clamp(1.0, 1000.0) as u32)
    }
}

/// A runtime whose one module takes every record, and a thread that pushes them.
struct Loaded {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    pushed: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<Result<(), String>>>,
}

impl Loaded {
    fn start(device: &Device, state: &State, beside: Stream) -> Result<Self, String> {
        let mut graph = Builder::new(device.clone());
        // SAFETY: a stream of the bench's own in that context, which is never destroyed.
        unsafe { graph.beside(beside.raw() as u64) };
        graph.mode(Mode::Device).budget(state.budget.clone()).map_err(text)?;
        let host = graph.host("host").map_err(text)?;
        let sink = graph.resident("sink", builtin::DISCARD).map_err(text)?;
        let mailbox = graph.mailbox(host, sink, MailboxOptions::slots(4096)).map_err(text)?;
        let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
        let mut sender = runtime.sender(mailbox).map_err(text)?;
        runtime.start().map_err(text)?;
        let (stop, pushed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, rate) = (stop.clone(), pushed.clone(), state.rate);
        let body = move || {
            let begin = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                if counted.load(Ordering::Relaxed) < begin.elapsed().as_micros() as u64 * rate / 1_000_000 {
                    sender.push(1, &[0; 8], BOUND).map_err(text)?;
                    counted.fetch_add(1, Ordering::Relaxed);
                } else {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
            Ok(())
        };
        let thread = (rate > 0).then(|| std::thread::spawn(body));
        std::thread::sleep(Duration::from_millis(20)); // started, and as idle as it gets
        Ok(Loaded { runtime, stop, pushed, thread })
    }

    fn stop(mut self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| "the pushing thread panicked".to_string())??;
        }
        self.runtime.stop(BOUND).map_err(text)?;
        Ok(self.pushed.load(Ordering::Relaxed))
    }
}

/// What was measured.
#[derive(Default)]
pub(super) struct Measured {
    /// All neighbours in all states.
    pub(super) coruns: Vec<Corun>,
    /// The rows of [`cause`].
    pub(super) chains: Vec<cause::Chain>,
    /// What could not be measured, with the reason.
    pub(super) missing: Vec<String>,
}

/// Everything, with so many matched pairs of each.
pub(super) fn measure(device: &Device, pairs: usize, watts: &dyn Fn() -> Option<f64>) -> Result<Measured, String> {
    let kernels = Kernels::load(device)?;
    let neighbours = Neighbours::new(device, &kernels)?;
    let (mut coruns, mut missing) = (Vec::new(), Vec::new());
    for neighbour in ["gemm", "stream", "decode", "decode_graph", "upload", "readback"] {
        if let ("gemm", Err(reason)) = (neighbour, &neighbours.blas) {
            missing.push(format!("park.corun.gemm: not available: {reason}"));
            continue;
        }
        let pieces = neighbours.pieces(neighbour)?;
        for state in states() {
            coruns.push(one(device, &neighbours, neighbour, &state, pieces, pairs, watts)?);
        }
    }
    let chains = cause::measure(device, &neighbours, pairs.div_ceil(2))?;
    Ok(Measured { coruns, chains, missing })
}

fn one(
    device: &Device,
    neighbours: &Neighbours<'_>,
    neighbour: &'static str,
    state: &State,
    pieces: u32,
    pairs: usize,
    watts: &dyn Fn() -> Option<f64>,
) -> Result<Corun, String> {
    let mut loaded = Loaded::start(device, state, neighbours.stream)?;
    let (mut ratios, mut beside, mut alone, mut power) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut held, mut there) = (0, Duration::ZERO);
    for pair in 0..pairs {
        // In turns, so that neither is always the first after a pause; each after a piece that is not measured.
        for is_beside in [pair % 2 == 0, pair % 2 != 0] {
            if is_beside {
                neighbours.timed(neighbour, 1)?;
                let (before, begin) = (loaded.runtime.stats(), Instant::now());
                beside.push(neighbours.timed(neighbour, pieces)?);
                there += begin.elapsed();
                let after = loaded.runtime.stats();
                held += after.work_ns + after.idle_poll_ns - before.work_ns - before.idle_poll_ns;
                power.extend(watts());
            } else {
                let quiet = loaded.runtime.quiesce(BOUND, |_| {
                    neighbours.timed(neighbour, 1)?;
                    neighbours.timed(neighbour, pieces)
                });
                alone.push(quiet.map_err(text)??);
            }
        }
        ratios.push(beside[pair] / alone[pair]);
    }
    loaded.stop()?;
    let watts = (!power.is_empty()).then(|| median(&mut power));
    let share = held as f64 / there.as_nanos().max(1) as f64;
    Ok(Corun {
        neighbour,
        state: state.name,
        slowdown: median(&mut ratios),
        beside_ms: median(&mut beside),
        alone_ms: median(&mut alone),
        share,
        watts,
    })
}
