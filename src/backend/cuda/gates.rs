//! The steps of stream modules: gate, body and gate's end on a CUDA stream, each launch behind a wait of the front end's for
//! its door. A body that was captured is a conditional node of a graph that is launched again for each step.

mod graphs;
mod pass;

use std::collections::VecDeque;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::events::Event;
use super::libraries::Library;
use super::{Context, Stream, driver, relax_captures};
use crate::abi::{self, wm_delivery, wm_gate_args};
use crate::backend::thread_steps::{guarded, no_calls};
use crate::backend::{Door, Live, Mark, StepPlan, StepQueue};
use crate::error::{Error, Result};
use crate::image::HandlerImage;
use crate::stream::{Body, Enqueue, Kind, Sink, StepStream};
use graphs::Graphs;

pub(super) use pass::{Part, pass};

/// The call that launches a gate, as an error names it.
const LAUNCH: &str = "cuLaunchKernelEx";
/// Threads of a gate's one block, and of each block of a delivery.
const THREADS: u32 = 32;
const DELIVERY_THREADS: u32 = 256;
/// Bytes that a thread of a delivery has under way (deliver.hpp), and blocks for each multiprocessor: enough for its share of the
/// memory's rate, and as many as its registers hold.
const DELIVERY_BYTES: u64 = 64;
const DELIVERY_BLOCKS: u32 = 3;

/// The kernels, looked up once for a device, whose context outlives them.
#[derive(Debug)]
pub(super) struct Kernels {
    library: Library,
    /// In general, and where the inputs are plain (gate.hpp).
    begin: [sys::CUfunction; 2],
    decide: sys::CUfunction,
    /// Likewise, by the outputs.
    end: [sys::CUfunction; 2],
    deliver: sys::CUfunction,
    /// Kernels of the device may begin before the one in front of them has ended.
    early: bool,
    multiprocessors: u32,
}

/// A kernel as it is launched with the module's arguments.
struct Kernel<'a> {
    function: sys::CUfunction,
    blocks: u32,
    threads: u32,
    second: Second<'a>,
}

/// What some kernels take beside them.
enum Second<'a> {
    Nothing,
    Handle(sys::CUgraphConditionalHandle),
    Delivery(&'a wm_delivery),
}

impl Second<'_> {
    /// Where it is; as long as it is borrowed.
    fn address(&self) -> *mut c_void {
        match self {
            Second::Nothing => std::ptr::null_mut(),
            Second::Handle(handle) => std::ptr::from_ref(handle).cast_mut().cast(),
            Second::Delivery(delivery) => std::ptr::from_ref(*delivery).cast_mut().cast(),
        }
    }
}

/// A kernel of one warp.
fn warp(function: sys::CUfunction) -> Kernel<'static> {
    Kernel { function, blocks: 1, threads: THREADS, second: Second::Nothing }
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// The context has been entered.
    pub(super) fn load(early: bool, multiprocessors: u32) -> Result<Self> {
        let missing =
            |reason: &str| Error::Unavailable { what: "stream modules on this device", reason: reason.into() };
        let library = Library::of(HandlerImage::gates().map_err(missing)?.into())?;
        let none = std::ptr::null_mut();
        let (begin, end) = ([none; 2], [none; 2]);
        let mut kernels = Kernels { library, begin, decide: none, end, deliver: none, early, multiprocessors };
        let ([begin, begin_plain], [end, end_plain]) = (&mut kernels.begin, &mut kernels.end);
        let wanted = [
            ("begin", begin),
            ("begin_plain", begin_plain),
            ("decide", &mut kernels.decide),
            ("end", end),
            ("end_plain", end_plain),
            ("deliver", &mut kernels.deliver),
        ];
        for (name, function) in wanted {
            let name = CString::new(format!("warpmail_gate_{name}")).unwrap_or_default();
            *function = kernels.library.kernel(&name)?.ok_or_else(|| missing("its gates were not compiled in"))?;
        }
        Ok(kernels)
    }

    fn delivery<'a>(&self, delivery: &'a wm_delivery) -> Kernel<'a> {
        let worth = delivery.bytes.div_ceil(u64::from(DELIVERY_THREADS) * DELIVERY_BYTES);
        let most = (DELIVERY_BLOCKS * self.multiprocessors).max(1);
        let blocks = u32::try_from(worth).unwrap_or(most).clamp(1, most);
        Kernel { function: self.deliver, blocks, threads: DELIVERY_THREADS, second: Second::Delivery(delivery) }
    }
}

/// Functions of one launch. Boxed, since the driver has their addresses.
#[allow(clippy::vec_box)]
type Calls = Vec<Box<Call>>;

/// A function of a body's, and where it sees whether there is something to do.
struct Call {
    function: Box<dyn FnMut() + Send>,
    live: Live,
    failed: Arc<std::sync::atomic::AtomicBool>,
}

/// # Safety
/// `call` is a `Call` that lives until the step has ended; the stream's order keeps its calls apart.
unsafe extern "C" fn run_call(call: *mut c_void) {
    // SAFETY: the caller's word.
    let call = unsafe { &mut *call.cast::<Call>() };
    if call.live.get() && guarded(&mut *call.function).is_err() {
        call.failed.store(true, std::sync::atomic::Ordering::Release);
    }
}

/// A stream that a body enqueues into.
struct Onto<'a> {
    stream: sys::CUstream,
    /// None while capturing.
    calls: Option<&'a mut Calls>,
    live: Live,
    failed: &'a Arc<std::sync::atomic::AtomicBool>,
}

impl Sink for Onto<'_> {
    fn raw(&self) -> Option<u64> {
        Some(self.stream as u64)
    }

    unsafe fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) }.result().map_err(driver("cuMemcpyDtoDAsync"))
    }

    fn call(&mut self, function: Box<dyn FnMut() + Send>) -> Result<()> {
        let Some(calls) = &mut self.calls else { return Err(no_calls()) };
        let mut call = Box::new(Call { function, live: self.live, failed: self.failed.clone() });
        let user = (&raw mut *call).cast::<c_void>();
        calls.push(call);
        // SAFETY: the call is kept until its step has ended.
        unsafe { sys::cuLaunchHostFunc(self.stream, Some(run_call), user) }.result().map_err(driver("cuLaunchHostFunc"))
    }
}

enum Steps {
    /// Several alike: a launch of a graph whose last one has not ended makes the host wait.
    Graphs(Graphs),
    Each(Enqueue),
}

pub(super) struct Gates {
    context: Arc<Context>,
    kernels: Arc<Kernels>,
    stream: sys::CUstream,
    is_own: bool,
    args: wm_gate_args,
    deliveries: Vec<wm_delivery>,
    begin: sys::CUfunction,
    end: sys::CUfunction,
    live: Live,
    steps: Option<Steps>,
    /// Recorded where another module's steps come behind this one's.
    mark: Arc<Event>,
    /// Functions of launches that may not have ended, by launch, oldest first.
    calls: VecDeque<Calls>,
    /// Number of the launch that the first of them belongs to.
    first: u64,
    /// Launches so far.
    launched: u64,
    failed: Arc<std::sync::atomic::AtomicBool>,
    /// Enqueued since the stream was last seen empty.
    busy: bool,
}

// SAFETY: the driver's handles may be used from any thread; `&mut self` keeps the calls apart.
unsafe impl Send for Gates {}

impl Gates {
    /// The context has been entered.
    pub(super) fn new(context: Arc<Context>, kernels: Arc<Kernels>, plan: StepPlan, body: Body) -> Result<Self> {
        if let Some(stream) = plan.stream {
            check_stream(&context, stream, &plan.name)?;
        }
        let stream = match plan.stream {
            Some(raw) => raw as sys::CUstream,
            None => Stream::new()?.0,
        };
        let mut gates = Gates::bare(context, kernels, &plan.args, plan.live, stream)?;
        gates.deliveries = plan.deliveries;
        gates.is_own = plan.stream.is_none();
        gates.args.calls = u32::from(matches!(body.kind, Kind::EachStep(_)));
        gates.steps = Some(match body.kind {
            Kind::EachStep(enqueue) => Steps::Each(enqueue),
            Kind::Captured(mut enqueue) => {
                let (skips, n) = (body.skips, plan.under_way);
                let mut graphs = gates.captured(&mut enqueue, skips, n, gates.kernels.early);
                if gates.kernels.early && matches!(graphs, Err(Error::Driver { .. })) {
                    tracing::debug!("a body was captured once more, with an end that does not begin early");
                    graphs = gates.captured(&mut enqueue, skips, n, false);
                }
                Steps::Graphs(graphs?)
            }
            Kind::Graph(graph) => Steps::Graphs(gates.around(graph as sys::CUgraph, body.skips, plan.under_way)?),
        });
        Ok(gates)
    }

    /// Without steps, on a stream that is somebody else's.
    fn bare(
        context: Arc<Context>,
        kernels: Arc<Kernels>,
        args: &wm_gate_args,
        live: Live,
        stream: sys::CUstream,
    ) -> Result<Self> {
        let (first, of_outputs) = (&args.ends[0], &args.ends[abi::WM_MAX_INPUTS as usize]);
        let plain = |n, end: &abi::wm_mailbox| {
            let journals = args.journal.header != 0;
            n == 1 && !journals && end.record_stride == abi::WM_STRIDE_DEFAULT && end.scope == abi::WM_SCOPE_GPU
        };
        let begin = kernels.begin[usize::from(plain(args.n_inputs, first))];
        // Arbitrated by the CPU, an end is told of in pinned memory, as those of the host are.
        let told_here = u32::from(of_outputs.producer_side) == abi::WM_SIDE_DEVICE;
        let end = kernels.end[usize::from(plain(args.n_outputs, of_outputs) && told_here)];
        Ok(Gates {
            mark: Arc::new(Event::new(context.clone())?),
            context,
            kernels,
            begin,
            end,
            stream,
            is_own: false,
            args: *args,
            deliveries: Vec::new(),
            live,
            steps: None,
            calls: VecDeque::new(),
            first: 0,
            launched: 0,
            failed: Arc::default(),
            busy: false,
        })
    }

    /// `early`: the kernel may begin before the one in front of it has ended, for which it waits itself.
    fn launch(&self, kernel: &Kernel<'_>, stream: sys::CUstream, early: bool) -> Result<()> {
        let mut args = self.args;
        let mut params = [(&raw mut args).cast::<c_void>(), kernel.second.address()];
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: kernel.blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream,
            attrs: &raw mut attribute,
            numAttrs: u32::from(early),
        };
        // SAFETY: the kernels take their parameters by value, the last is left alone by those that have one; the runtime keeps
        // what they name alive until the launch has ended.
        unsafe { sys::cuLaunchKernelEx(&config, kernel.function, params.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(driver(LAUNCH))
    }

    /// The gate, and what is to be there before the body begins.
    fn launch_begin(&self, stream: sys::CUstream) -> Result<()> {
        self.launch(&warp(self.begin), stream, false)?;
        self.deliveries.iter().try_for_each(|d| self.launch(&self.kernels.delivery(d), stream, false))
    }

    fn launch_each(&mut self) -> Result<()> {
        self.launch_begin(self.stream)?;
        let mut calls = Vec::new();
        let mut outcome = Ok(());
        if let Some(Steps::Each(enqueue)) = &mut self.steps {
            let (live, failed) = (self.live, &self.failed);
            let mut sink = Onto { stream: self.stream, calls: Some(&mut calls), live, failed };
            outcome = enqueue(&mut StepStream::new(&mut sink, &self.args));
        }
        self.calls.push_back(calls);
        self.launch(&warp(self.end), self.stream, false)?;
        outcome
    }
}

/// A stream of another context, or one that is being captured, cannot carry steps.
fn check_stream(context: &Context, stream: u64, module: &str) -> Result<()> {
    let refused = |rule: &str| Err(Error::refused(format!("the stream of module {module}"), rule));
    if stream <= 2 {
        return refused("the default streams wait for other streams, and others for them: pass one of its own");
    }
    let (mut of, mut status) = (std::ptr::null_mut(), sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
    // SAFETY: the caller of StreamOptions::stream says that it is a stream; it is asked for its context.
    unsafe { sys::cuStreamGetCtx(stream as sys::CUstream, &mut of) }.result().map_err(driver("cuStreamGetCtx"))?;
    if of != context.raw {
        return refused("it belongs to another context or device than the runtime");
    }
    // SAFETY: as above.
    unsafe { sys::cuStreamIsCapturing(stream as sys::CUstream, &mut status) }
        .result()
        .map_err(driver("cuStreamIsCapturing"))?;
    if status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return refused("it is being captured: end the capture first");
    }
    Ok(())
}

impl StepQueue for Gates {
    fn adopt_thread(&mut self) -> Result<()> {
        relax_captures()
    }

    fn enqueue(&mut self, door: Option<Door>) -> Result<()> {
        let context = self.context.clone();
        let _entered = context.enter()?;
        self.busy = true;
        if let Some(door) = door {
            let flags = sys::CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
            // SAFETY: an aligned word of mapped pinned memory, which lives until this launch has ended. The pacer opens
            // every door within max_wait. Memory is little endian: the low half of the door's word is 0 or 1.
            unsafe { sys::cuStreamWaitValue32_v2(self.stream, door.device, 1, flags) }
                .result()
                .map_err(driver("cuStreamWaitValue32"))?;
        }
        let n = self.launched as usize;
        self.launched += 1;
        if let Some(Steps::Graphs(Graphs { execs, whole, .. })) = &self.steps {
            if !whole {
                self.launch_begin(self.stream)?;
            }
            // SAFETY: instantiated for this context; everything its nodes use outlives the steps.
            return unsafe { sys::cuGraphLaunch(execs[n % execs.len()], self.stream) }
                .result()
                .map_err(driver("cuGraphLaunch"));
        }
        // The functions of launches that have ended are let go; the report says how many have.
        let report = self.live.0 as usize - std::mem::offset_of!(abi::wm_gate_report, live_ns);
        let ended = (report + std::mem::offset_of!(abi::wm_gate_report, ended)) as *const u64;
        // SAFETY: an aligned word of the report, which outlives the steps.
        let ended = unsafe { abi::wm_host_load_acquire(ended) };
        while self.first < ended && self.calls.pop_front().is_some() {
            self.first += 1;
        }
        self.launch_each()
    }

    fn follow(&mut self, mark: &Mark) -> Result<()> {
        match mark {
            Mark::Event(event) => {
                let _entered = self.context.enter()?;
                self.busy = true;
                event.hold(self.stream)
            }
            Mark::Count { .. } => Err(Error::Failed("a stream cannot follow a thread of the twin's".into())),
        }
    }

    fn mark(&mut self) -> Result<Mark> {
        let _entered = self.context.enter()?;
        self.mark.record(self.stream)?;
        Ok(Mark::Event(self.mark.clone()))
    }

    fn entries(&self) -> Option<usize> {
        match &self.steps {
            Some(Steps::Graphs(graphs)) => Some(graphs.entries),
            _ => None,
        }
    }

    fn is_empty(&mut self) -> Result<bool> {
        if self.failed.swap(false, std::sync::atomic::Ordering::AcqRel) {
            return Err(Error::Failed("a function of its body panicked".into()));
        }
        if !self.busy {
            return Ok(true);
        }
        let context = self.context.clone();
        let _entered = context.enter()?;
        // SAFETY: the stream belongs to this context.
        match unsafe { sys::cuStreamQuery(self.stream) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => return Ok(false),
            other => other.result().map_err(driver("cuStreamQuery"))?,
        }
        self.busy = false;
        Ok(true)
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        // Steps that do not end keep what they use: freeing it would wait for them without a bound.
        if !matches!(self.is_empty(), Ok(true)) {
            tracing::warn!("the steps of a stream module have not ended; what they use is kept");
            self.kernels.library.leak();
            std::mem::forget(std::mem::take(&mut self.calls));
            std::mem::forget(self.steps.take());
            return;
        }
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: nothing is enqueued any more, and both were made for this object.
        unsafe {
            if let Some(Steps::Graphs(graphs)) = self.steps.take() {
                graphs.destroy();
            }
            if self.is_own {
                let _ = result::stream::destroy(self.stream);
            }
        }
    }
}
