//! A kernel that takes every SM of a GPU whole, and ends by itself: a neighbour that leaves no room.

use std::ffi::c_void;
use std::time::Duration;

use cudarc::driver::{CudaContext, DriverError, sys};
use warpmail::Device;

/// The longest that it stays.
pub const LONGEST: Duration = Duration::from_secs(2);

/// Polls the clock for so many nanoseconds, and no longer than two seconds, whatever it is given. The driver compiles it, so
/// that this needs no compiler.
const SOURCE: &std::ffi::CStr = c"
.version 7.0
.target sm_70
.address_size 64
.visible .entry fill(.param .u64 wanted)
{
    .reg .pred %over;
    .reg .u64 %begin, %now, %ns;
    ld.param.u64 %ns, [wanted];
    min.u64 %ns, %ns, 2000000000;
    mov.u64 %begin, %globaltimer;
again:
    mov.u64 %now, %globaltimer;
    sub.u64 %now, %now, %begin;
    setp.ge.u64 %over, %now, %ns;
    @!%over bra again;
    ret;
}
";

/// The kernel, loaded, and how much fills an SM.
pub struct Filler {
    context: std::sync::Arc<CudaContext>,
    function: sys::CUfunction,
    stream: sys::CUstream,
    blocks: u32,
    shared: u32,
}

fn failed(call: &'static str) -> impl Fn(DriverError) -> String {
    move |e| format!("{call} failed: {e}")
}

impl Filler {
    /// Loads it, before anything runs: loading code waits for what does.
    pub fn new(device: &Device) -> Result<Self, String> {
        let ordinal = device.info().ordinal.ok_or("there is no GPU to fill")?;
        let context = CudaContext::new(ordinal as usize).map_err(failed("the primary context"))?;
        context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let most = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared = context.attribute(most).map_err(failed("cuDeviceGetAttribute"))?;
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let (mut library, mut kernel, mut function) =
            (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        let (mut stream, null) = (std::ptr::null_mut(), std::ptr::null_mut::<c_void>());
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: PTX that ends in a zero byte; no options are given; each handle comes from the call before, and all of them
        // live as long as the process.
        unsafe {
            let code = SOURCE.as_ptr().cast::<c_void>();
            sys::cuLibraryLoadData(&mut library, code, null.cast(), null.cast(), 0, null.cast(), null.cast(), 0)
                .result()
                .map_err(failed("cuLibraryLoadData"))?;
            let found = sys::cuLibraryGetKernel(&mut kernel, library, c"fill".as_ptr());
            found.result().map_err(failed("cuLibraryGetKernel"))?;
            sys::cuKernelGetFunction(&mut function, kernel).result().map_err(failed("cuKernelGetFunction"))?;
            sys::cuFuncLoad(function).result().map_err(failed("cuFuncLoad"))?;
            sys::cuFuncSetAttribute(function, limit, shared).result().map_err(failed("cuFuncSetAttribute"))?;
            sys::cuStreamCreate(&mut stream, flags).result().map_err(failed("cuStreamCreate"))?;
        }
        let blocks = device.info().multiprocessors;
        Ok(Filler { context, function, stream, blocks, shared: shared as u32 })
    }

    /// Takes every SM for a time, at most [`LONGEST`], as soon as each is free. Returns at once.
    pub fn fill(&self, time: Duration) -> Result<(), String> {
        self.enter()?;
        let mut ns = time.min(LONGEST).as_nanos() as u64;
        let mut params = [(&raw mut ns).cast::<c_void>()];
        let extra = std::ptr::null_mut();
        // SAFETY: the kernel takes one u64, which is copied before the call returns; a block for each SM, with all of its
        // shared memory.
        unsafe {
            sys::cuLaunchKernel(
                self.function,
                self.blocks,
                1,
                1,
                1024,
                1,
                1,
                self.shared,
                self.stream,
                params.as_mut_ptr(),
                extra,
            )
        }
        .result()
        .map_err(failed("cuLaunchKernel"))
    }

    /// The stream that it runs on, as the driver names it.
    pub fn raw_stream(&self) -> u64 {
        self.stream as u64
    }

    /// Captures the stream while something else is done; how many nodes that has made.
    pub fn capture(&self, meanwhile: impl FnOnce() -> Result<(), String>) -> Result<usize, String> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream belongs to this context.
        unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) }.result().map_err(failed("cuStreamBeginCapture"))?;
        let done = meanwhile();
        self.enter()?;
        let (mut graph, mut nodes) = (std::ptr::null_mut(), 0);
        // SAFETY: ends what was begun; the graph is this function's, and asked before it is destroyed.
        unsafe {
            let ended = sys::cuStreamEndCapture(self.stream, &mut graph).result().map_err(failed("cuStreamEndCapture"));
            done.and(ended)?; // a failed test's graph ends with its process
            let counted = sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut nodes).result();
            sys::cuGraphDestroy(graph).result().map_err(failed("cuGraphDestroy"))?;
            counted.map_err(failed("cuGraphGetNodes"))?;
        }
        Ok(nodes)
    }

    /// Whether it has left.
    pub fn is_over(&self) -> Result<bool, String> {
        self.enter()?;
        // SAFETY: the stream belongs to this context.
        match unsafe { sys::cuStreamQuery(self.stream) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => other.result().map(|()| true).map_err(failed("cuStreamQuery")),
        }
    }

    fn enter(&self) -> Result<(), String> {
        self.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))
    }
}
