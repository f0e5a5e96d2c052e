//! `block.*`: which calls of the driver wait while an arbiter is resident, and for how long: without one, beside one that
//! never parks, beside one that is parked, and beside one that parks and is woken all the time.
//!
//! Safety of the driver calls in here: what a call is given was made by the calls before it in the same closure, on the
//! thread that made the context current, and is freed there, once; the stream and the kernel live as long as the process.

use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use indicatif::ProgressBar;
use warpmail::{Builder, Device, HandlerImage, MailboxOptions, Mode, Runtime, SpinBudget, builtin};

use super::gpu::Kernels;
use super::{Target, median, text};
use crate::figures::Figures;

const BOUND: Duration = Duration::from_secs(5);
const STATES: [&str; 4] = ["alone", "hot", "parked", "flapping"];
/// How often records come to a flapping arbiter.
const FLAP: Duration = Duration::from_micros(300);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each call is made in each state
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(3..=10_000))]
    rounds: u32,
    /// The parked arbiter's max_wait, in milliseconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    max_wait: u64,
    #[command(flatten)]
    target: Target,
}

/// One call: what it is named, and a function that makes it once and says how long it took.
struct Call {
    name: &'static str,
    run: Box<dyn FnMut() -> Result<Duration, String>>,
}

/// Makes a driver call and times it.
fn timed(call: &'static str, make: impl FnOnce() -> sys::CUresult) -> Result<Duration, String> {
    let begin = Instant::now();
    let outcome = make();
    let took = begin.elapsed();
    outcome.result().map(|()| took).map_err(|e| format!("{call} failed: {e}"))
}

fn call(name: &'static str, run: impl FnMut() -> Result<Duration, String> + 'static) -> Call {
    Call { name, run: Box::new(run) }
}

/// A kernel that does nothing, as PTX: the driver compiles it when it is loaded. Every number makes another one, so that no
/// cache knows it.
fn fresh_kernel(number: u32) -> Result<CString, String> {
    let text = format!(
        ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry nothing()\n{{\n.reg .u32 %r;\nmov.u32 %r, {number};\nret;\n}}\n"
    );
    CString::new(text).map_err(|e| e.to_string())
}

fn load(source: &CStr) -> Result<(sys::CUlibrary, sys::CUfunction), String> {
    let (mut library, mut kernel, mut function) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    let null = std::ptr::null_mut::<c_void>();
    let code = source.as_ptr().cast::<c_void>();
    // SAFETY: PTX that ends in a zero byte; no options are given; each handle comes from the call before.
    timed("loading a kernel", || unsafe {
        let loaded =
            sys::cuLibraryLoadData(&mut library, code, null.cast(), null.cast(), 0, null.cast(), null.cast(), 0);
        if loaded != sys::CUresult::CUDA_SUCCESS {
            return loaded;
        }
        let found = sys::cuLibraryGetKernel(&mut kernel, library, c"nothing".as_ptr());
        if found != sys::CUresult::CUDA_SUCCESS { found } else { sys::cuKernelGetFunction(&mut function, kernel) }
    })?;
    Ok((library, function))
}

fn launch(function: sys::CUfunction, stream: sys::CUstream) -> sys::CUresult {
    let null = std::ptr::null_mut();
    // SAFETY: a kernel without parameters, on a stream of this context.
    unsafe { sys::cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, null, null) }
}

const MEGABYTE: usize = 1 << 20;

/// Memory.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all: see the head of this file")]
fn memory_calls(stream: sys::CUstream) -> Vec<Call> {
    let alloc = || -> Result<u64, String> {
        let mut at = 0;
        // SAFETY: a plain allocation; whoever asked for it frees it.
        timed("cuMemAlloc", || unsafe { sys::cuMemAlloc_v2(&mut at, MEGABYTE) }).map(|_| at)
    };
    vec![
        call("cuMemAlloc", move || {
            let mut at = 0;
            let took = timed("cuMemAlloc", || unsafe { sys::cuMemAlloc_v2(&mut at, MEGABYTE) })?;
            timed("cuMemFree", || unsafe { sys::cuMemFree_v2(at) })?;
            Ok(took)
        }),
        call("cuMemFree", move || {
            let at = alloc()?;
            timed("cuMemFree", || unsafe { sys::cuMemFree_v2(at) })
        }),
        call("cuMemAllocAsync", move || {
            let mut at = 0;
            let took = timed("cuMemAllocAsync", || unsafe { sys::cuMemAllocAsync(&mut at, MEGABYTE, stream) })?;
            timed("cuMemFreeAsync", || unsafe { sys::cuMemFreeAsync(at, stream) })?;
            Ok(took)
        }),
        call("cuMemFreeAsync", move || {
            let mut at = 0;
            timed("cuMemAllocAsync", || unsafe { sys::cuMemAllocAsync(&mut at, MEGABYTE, stream) })?;
            timed("cuMemFreeAsync", || unsafe { sys::cuMemFreeAsync(at, stream) })
        }),
        call("cuMemHostAlloc", || {
            let mut at = std::ptr::null_mut();
            let took = timed("cuMemHostAlloc", || unsafe { sys::cuMemHostAlloc(&mut at, MEGABYTE, 0) })?;
            timed("cuMemFreeHost", || unsafe { sys::cuMemFreeHost(at) })?;
            Ok(took)
        }),
        call("cuMemFreeHost", || {
            let mut at = std::ptr::null_mut();
            timed("cuMemHostAlloc", || unsafe { sys::cuMemHostAlloc(&mut at, MEGABYTE, 0) })?;
            timed("cuMemFreeHost", || unsafe { sys::cuMemFreeHost(at) })
        }),
        call("cuMemcpyHtoD, pageable", move || {
            let (at, bytes) = (alloc()?, vec![1u8; MEGABYTE]);
            let took = timed("cuMemcpyHtoD", || unsafe { sys::cuMemcpyHtoD_v2(at, bytes.as_ptr().cast(), MEGABYTE) })?;
            timed("cuMemFree", || unsafe { sys::cuMemFree_v2(at) })?;
            Ok(took)
        }),
        call("cuMemcpyDtoH, pageable", move || {
            let (at, mut bytes) = (alloc()?, vec![1u8; MEGABYTE]);
            let to = bytes.as_mut_ptr().cast();
            let took = timed("cuMemcpyDtoH", || unsafe { sys::cuMemcpyDtoH_v2(to, at, MEGABYTE) })?;
            timed("cuMemFree", || unsafe { sys::cuMemFree_v2(at) })?;
            Ok(took)
        }),
        call("cuMemsetD8, legacy stream", move || {
            let at = alloc()?;
            let took = timed("cuMemsetD8", || unsafe { sys::cuMemsetD8_v2(at, 0, MEGABYTE) })?;
            timed("cuMemFree", || unsafe { sys::cuMemFree_v2(at) })?;
            Ok(took)
        }),
        call("cuMemPoolTrimTo", || {
            let mut pool = std::ptr::null_mut();
            timed("cuDeviceGetDefaultMemPool", || unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, 0) })?;
            timed("cuMemPoolTrimTo", || unsafe { sys::cuMemPoolTrimTo(pool, 0) })
        }),
    ]
}

/// Streams, events, synchronising.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all: see the head of this file")]
fn stream_calls(stream: sys::CUstream, function: sys::CUfunction) -> Vec<Call> {
    let none = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    vec![
        call("cuCtxSynchronize", || timed("cuCtxSynchronize", || unsafe { sys::cuCtxSynchronize() })),
        call("cuStreamSynchronize, another stream", move || {
            timed("cuLaunchKernel", || launch(function, stream))?;
            timed("cuStreamSynchronize", || unsafe { sys::cuStreamSynchronize(stream) })
        }),
        call("cuStreamSynchronize, legacy stream", move || {
            timed("cuLaunchKernel", || launch(function, std::ptr::null_mut()))?;
            timed("cuStreamSynchronize", || unsafe { sys::cuStreamSynchronize(std::ptr::null_mut()) })
        }),
        call("cuStreamCreate", move || {
            let mut made = std::ptr::null_mut();
            let took = timed("cuStreamCreate", || unsafe { sys::cuStreamCreate(&mut made, none) })?;
            timed("cuStreamDestroy", || unsafe { sys::cuStreamDestroy_v2(made) })?;
            Ok(took)
        }),
        call("cuStreamDestroy", move || {
            let mut made = std::ptr::null_mut();
            timed("cuStreamCreate", || unsafe { sys::cuStreamCreate(&mut made, none) })?;
            timed("cuStreamDestroy", || unsafe { sys::cuStreamDestroy_v2(made) })
        }),
        call("cuEventCreate, record, synchronise", move || {
            let mut event = std::ptr::null_mut();
            let begin = Instant::now();
            timed("cuEventCreate", || unsafe { sys::cuEventCreate(&mut event, 2) })?;
            timed("cuEventRecord", || unsafe { sys::cuEventRecord(event, stream) })?;
            timed("cuEventSynchronize", || unsafe { sys::cuEventSynchronize(event) })?;
            let took = begin.elapsed();
            timed("cuEventDestroy", || unsafe { sys::cuEventDestroy_v2(event) })?;
            Ok(took)
        }),
        call("cuLaunchKernel", move || {
            let took = timed("cuLaunchKernel", || launch(function, stream))?;
            timed("cuStreamSynchronize", || unsafe { sys::cuStreamSynchronize(stream) })?;
            Ok(took)
        }),
    ]
}

/// Code and graphs.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all: see the head of this file")]
fn code_calls(stream: sys::CUstream, function: sys::CUfunction) -> Vec<Call> {
    let mut number = std::process::id();
    let mut next = move || {
        number = number.wrapping_add(1);
        fresh_kernel(number)
    };
    let mut again = next;
    let graph = move || -> Result<sys::CUgraph, String> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
        let mut graph = std::ptr::null_mut();
        timed("cuStreamBeginCapture", || unsafe { sys::cuStreamBeginCapture_v2(stream, mode) })?;
        let launched = timed("cuLaunchKernel", || launch(function, stream));
        timed("cuStreamEndCapture", || unsafe { sys::cuStreamEndCapture(stream, &mut graph) })?;
        launched.map(|_| graph)
    };
    vec![
        call("compiling and loading a kernel", move || {
            let source = next()?;
            let begin = Instant::now();
            let (library, _) = load(&source)?;
            let took = begin.elapsed();
            timed("cuLibraryUnload", || unsafe { sys::cuLibraryUnload(library) })?;
            Ok(took)
        }),
        call("the first launch of a kernel", move || {
            let (library, function) = load(&again()?)?;
            let took = timed("cuLaunchKernel", || launch(function, stream))?;
            timed("cuStreamSynchronize", || unsafe { sys::cuStreamSynchronize(stream) })?;
            timed("cuLibraryUnload", || unsafe { sys::cuLibraryUnload(library) })?;
            Ok(took)
        }),
        call("graph: capture in global mode", move || {
            let begin = Instant::now();
            let graph = graph()?;
            let took = begin.elapsed();
            timed("cuGraphDestroy", || unsafe { sys::cuGraphDestroy(graph) })?;
            Ok(took)
        }),
        call("graph: instantiate, launch, destroy", move || {
            let (graph, mut made) = (graph()?, std::ptr::null_mut());
            let begin = Instant::now();
            timed("cuGraphInstantiate", || unsafe { sys::cuGraphInstantiateWithFlags(&mut made, graph, 0) })?;
            timed("cuGraphLaunch", || unsafe { sys::cuGraphLaunch(made, stream) })?;
            timed("cuStreamSynchronize", || unsafe { sys::cuStreamSynchronize(stream) })?;
            timed("cuGraphExecDestroy", || unsafe { sys::cuGraphExecDestroy(made) })?;
            let took = begin.elapsed();
            timed("cuGraphDestroy", || unsafe { sys::cuGraphDestroy(graph) })?;
            Ok(took)
        }),
    ]
}

/// Sends records until told to stop.
type Flapping = JoinHandle<Result<(), String>>;

/// An arbiter in one state, as long as the value lives.
struct Beside {
    runtime: Option<Runtime>,
    flapping: Option<(Arc<AtomicBool>, Flapping)>,
}

impl Beside {
    fn start(device: &Device, state: &str, max_wait: Duration) -> Result<Self, String> {
        let mut beside = Beside { runtime: None, flapping: None };
        if state == "alone" {
            return Ok(beside);
        }
        let mut graph = Builder::new(device.clone());
        graph.mode(Mode::Device);
        let idle_spin = (state != "hot").then_some(Duration::from_micros(5));
        graph.budget(SpinBudget { idle_spin, max_wait, ..SpinBudget::default() }).map_err(text)?;
        let host = graph.host("host").map_err(text)?;
        let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
        let there = graph.mailbox(host, relay, MailboxOptions::default()).map_err(text)?;
        let back = graph.mailbox(relay, host, MailboxOptions::default()).map_err(text)?;
        let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
        let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
        runtime.start().map_err(text)?;
        beside.runtime = Some(runtime);
        if state == "flapping" {
            let stop = Arc::new(AtomicBool::new(false));
            let told = stop.clone();
            let body = move || {
                let mut buffer = [0; 248];
                while !told.load(Ordering::Acquire) {
                    sender.push(1, &[7; 8], BOUND).map_err(text)?;
                    receiver.pop(&mut buffer, BOUND).map_err(text)?;
                    std::thread::sleep(FLAP);
                }
                Ok(())
            };
            let thread = std::thread::Builder::new().spawn(body).map_err(|e| e.to_string())?;
            beside.flapping = Some((stop, thread));
        }
        std::thread::sleep(Duration::from_millis(20));
        Ok(beside)
    }

    fn end(mut self) -> Result<(), String> {
        let flapped = self.flapping.take().map_or(Ok(()), |(stop, thread)| {
            stop.store(true, Ordering::Release);
            thread.join().unwrap_or_else(|_| Err("the thread that sends records panicked".into()))
        });
        self.runtime.take().map_or(Ok(()), |mut r| r.stop(BOUND).map_err(text))?;
        flapped
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some((stop, _)) = &self.flapping {
            stop.store(true, Ordering::Release);
        }
    }
}

pub(crate) fn execute(args: &Args) -> Result<Figures, String> {
    let device =
        args.target.gpu()?.ok_or("this bench measures the calls of a GPU's driver; there is no GPU to use here")?;
    let (kernels, max_wait) = (Kernels::load(&device)?, Duration::from_millis(args.max_wait)); // the context is current now
    let stream = kernels.stream()?.raw();
    let (_, function) = load(&fresh_kernel(0)?)?;
    timed("cuLaunchKernel", || launch(function, stream))?;
    let mut calls = memory_calls(stream);
    calls.extend(stream_calls(stream, function));
    calls.extend(code_calls(stream, function));
    let bar = ProgressBar::new((STATES.len() * calls.len()) as u64);
    // Of each call, in each state: median and longest, milliseconds.
    let mut took = vec![[[0.0; 2]; STATES.len()]; calls.len()];
    for (s, state) in STATES.into_iter().enumerate() {
        let beside = Beside::start(&device, state, max_wait)?;
        for (call, took) in calls.iter_mut().zip(&mut took) {
            (call.run)().map_err(|e| format!("{}: {e}", call.name))?; // what is made once is made now
            let mut times = Vec::new();
            for round in 0..args.rounds {
                // At any moment of the arbiter's turns, not always right after one of them.
                std::thread::sleep(Duration::from_micros(u64::from(round * 379 % 2000)));
                times.push((call.run)().map_err(|e| format!("{}: {e}", call.name))?.as_secs_f64() * 1e3);
            }
            took[s] = [median(&mut times), times.last().copied().unwrap_or(f64::NAN)]; // sorted by median
            bar.inc(1);
        }
        beside.end()?;
    }
    bar.finish_and_clear();
    Ok(figures(&device, &calls, &took, args.max_wait))
}

fn figures(device: &Device, calls: &[Call], took: &[[[f64; 2]; STATES.len()]], max_wait: u64) -> Figures {
    println!("medians and longest in ms; the arbiter's residency is 2 ms, a parked one's max_wait {max_wait} ms");
    println!("{:<38}{:>16}{:>16}{:>16}{:>16}", "", STATES[0], STATES[1], STATES[2], STATES[3]);
    let mut figures = Figures::new(device.info());
    let mut worst = [0.0f64; STATES.len()];
    for (call, took) in calls.iter().zip(took) {
        let cells: String = took.iter().map(|[mid, most]| format!("{mid:>8.3}{most:>8.3}")).collect();
        println!("{:<38}{cells}", call.name);
        for (s, state) in STATES.into_iter().enumerate() {
            worst[s] = worst[s].max(took[s][1] - took[0][1]);
            let floor = (s > 0).then_some(took[0][0]);
            figures.add(&format!("block.{state}.{}", call.name), took[s][0], "ms", floor).p99 = Some(took[s][1]);
        }
    }
    println!("the column p99 of the rows below holds the longest of each");
    figures.add("park.blocking", worst[2].max(worst[3]), "ms", Some(max_wait as f64));
    figures.add("park.blocking.hot", worst[1], "ms", Some(2.0 * SpinBudget::default().residency.as_secs_f64() * 1e3));
    figures
}
