//! The few driver calls that benches of kernels need. Benches only: the product's own calls are in the library.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};
use warpmail::abi;
use warpmail::{Device, DeviceBuffer};

mod image {
    include!(concat!(env!("OUT_DIR"), "/bench_kernels.rs"));
}

fn failed(call: &'static str) -> impl Fn(DriverError) -> String {
    move |e| format!("{call} failed: {e}")
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}
// SAFETY: as above.
unsafe impl Send for Kernel {}

/// The bench kernels, loaded on one device.
pub(crate) struct Kernels {
    context: Arc<CudaContext>,
    library: sys::CUlibrary,
    pub(crate) multiprocessors: u32,
}

/// One kernel.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(sys::CUfunction);

/// A stream that does not synchronise with others.
#[derive(Clone, Copy)]
pub(crate) struct Stream(sys::CUstream);

impl Stream {
    /// The driver's handle.
    pub(crate) fn raw(self) -> sys::CUstream {
        self.0
    }
}

impl Kernels {
    /// Loads them, or says why that cannot be.
    pub(crate) fn load(device: &Device) -> Result<Self, String> {
        let ordinal = device.info().ordinal.ok_or("this bench measures a GPU; there is none to use here")?;
        let code = image::FATBIN.ok_or_else(|| format!("the bench kernels are not built: {}", image::MISSING))?;
        let context = CudaContext::new(ordinal as usize).map_err(failed("the primary context"))?;
        context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let mut library = std::ptr::null_mut();
        let null = std::ptr::null_mut::<c_void>();
        // SAFETY: a whole fatbin in static memory; no options are given.
        unsafe {
            let code = code.as_ptr().cast::<c_void>();
            sys::cuLibraryLoadData(&mut library, code, null.cast(), null.cast(), 0, null.cast(), null.cast(), 0)
        }
        .result()
        .map_err(failed("cuLibraryLoadData"))?;
        Ok(Kernels { context, library, multiprocessors: device.info().multiprocessors })
    }

    /// Finds a kernel, loads its code now, and lets it use `shared` bytes of dynamic shared memory. All of them ask for
    /// the largest share of L1 as shared memory: an SM changes the share only when it is empty, so a kernel that asks for
    /// another one waits until the first has left.
    pub(crate) fn get(&self, name: &str, shared: usize) -> Result<Kernel, String> {
        let name = CString::new(name).map_err(|e| e.to_string())?;
        let (mut kernel, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let share = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the library is loaded; each handle comes from the call before.
        unsafe {
            sys::cuLibraryGetKernel(&mut kernel, self.library, name.as_ptr())
                .result()
                .map_err(failed("cuLibraryGetKernel"))?;
            sys::cuKernelGetFunction(&mut function, kernel).result().map_err(failed("cuKernelGetFunction"))?;
            sys::cuFuncLoad(function).result().map_err(failed("cuFuncLoad"))?;
            for (attribute, value) in [(limit, shared as i32), (share, 100)] {
                sys::cuFuncSetAttribute(function, attribute, value).result().map_err(failed("cuFuncSetAttribute"))?;
            }
        }
        Ok(Kernel(function))
    }

    pub(crate) fn stream(&self) -> Result<Stream, String> {
        result::stream::create(result::stream::StreamKind::NonBlocking).map(Stream).map_err(failed("cuStreamCreate"))
    }

    /// The same with a priority of the device's: the most urgent one, or the least.
    pub(crate) fn stream_of(&self, urgent: bool) -> Result<Stream, String> {
        let (mut least, mut most, mut stream) = (0, 0, std::ptr::null_mut());
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes two integers and one handle.
        unsafe {
            sys::cuCtxGetStreamPriorityRange(&mut least, &mut most)
                .result()
                .map_err(failed("cuCtxGetStreamPriorityRange"))?;
            sys::cuStreamCreateWithPriority(&mut stream, flags, if urgent { most } else { least })
                .result()
                .map_err(failed("cuStreamCreateWithPriority"))?;
        }
        Ok(Stream(stream))
    }

    /// Copies the first `bytes` of pinned memory to the device, or back, and waits.
    pub(crate) fn copy_in(&self, to: u64, from: &Mapped, bytes: usize, stream: Stream) -> Result<(), String> {
        assert!(bytes <= from.words * 8);
        // SAFETY: both have so many bytes, and the copy is waited for.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.host.cast(), bytes, stream.0) }
            .result()
            .map_err(failed("cuMemcpyHtoDAsync"))?;
        self.wait(stream)
    }
    pub(crate) fn copy_out(&self, to: &Mapped, from: u64, bytes: usize, stream: Stream) -> Result<(), String> {
        assert!(bytes <= to.words * 8);
        // SAFETY: as above.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.host.cast(), from, bytes, stream.0) }
            .result()
            .map_err(failed("cuMemcpyDtoHAsync"))?;
        self.wait(stream)
    }

    /// What `enqueue` puts into a stream, as a graph.
    pub(crate) fn capture(
        &self,
        stream: Stream,
        enqueue: impl FnOnce() -> Result<(), String>,
    ) -> Result<Graph, String> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream belongs to this context, and the capture ends whatever `enqueue` says.
        unsafe {
            sys::cuStreamBeginCapture_v2(stream.0, mode).result().map_err(failed("cuStreamBeginCapture"))?;
            let enqueued = enqueue();
            let ended = sys::cuStreamEndCapture(stream.0, &mut graph).result().map_err(failed("cuStreamEndCapture"));
            enqueued.and(ended)?;
            let made = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result();
            sys::cuGraphDestroy(graph).result().map_err(failed("cuGraphDestroy"))?;
            made.map_err(failed("cuGraphInstantiate"))?;
        }
        Ok(Graph(exec))
    }

    /// Launches `blocks` of `threads`. `params` point at values of the kernel's parameter types, in order.
    pub(crate) fn launch(
        &self,
        kernel: Kernel,
        blocks: u32,
        threads: u32,
        shared: u32,
        stream: Stream,
        params: &mut [*mut c_void],
    ) -> Result<(), String> {
        // SAFETY: the callers in this folder pass what the kernels in bench_kernels/ declare.
        unsafe { result::launch_kernel(kernel.0, (blocks, 1, 1), (threads, 1, 1), shared, stream.0, params) }
            .map_err(failed("cuLaunchKernel"))
    }

    /// The same on a stream of somebody else's, `(blocks, threads)`. `early`: the kernel may begin before the one in front of
    /// it has ended, for which it waits itself.
    pub(crate) fn launch_on(
        &self,
        kernel: Kernel,
        (blocks, threads): (u32, u32),
        early: bool,
        stream: u64,
        params: &mut [*mut c_void],
    ) -> Result<(), String> {
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream as sys::CUstream,
            attrs: &raw mut attribute,
            numAttrs: u32::from(early),
        };
        // SAFETY: as above; the attribute is read by the call.
        unsafe { sys::cuLaunchKernelEx(&config, kernel.0, params.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(failed("cuLaunchKernelEx"))
    }

    /// Makes the stream wait until the mapped word at `address` is not 0. Whoever calls this opens it in any case.
    pub(crate) fn wait_for_value(&self, stream: Stream, address: u64) -> Result<(), String> {
        let flags = sys::CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
        // SAFETY: an aligned word of mapped memory that outlives the wait.
        unsafe { sys::cuStreamWaitValue32_v2(stream.0, address, 1, flags) }
            .result()
            .map_err(failed("cuStreamWaitValue32"))
    }

    /// Puts what is enqueued on `behind` from now on behind what is on `front`.
    pub(crate) fn put_behind(&self, front: Stream, behind: Stream) -> Result<(), String> {
        let event =
            result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed("cuEventCreate"))?;
        // SAFETY: both streams belong to this context and are never destroyed; the driver keeps an event that is waited for.
        unsafe {
            let recorded = sys::cuEventRecord(event, front.0).result().map_err(failed("cuEventRecord"));
            let held = recorded.and_then(|()| {
                sys::cuStreamWaitEvent(behind.0, event, 0).result().map_err(failed("cuStreamWaitEvent"))
            });
            held.and(sys::cuEventDestroy_v2(event).result().map_err(failed("cuEventDestroy")))
        }
    }

    /// Has the copy engine bring bytes from the beginning of a buffer to pinned memory, in the stream's order.
    pub(crate) fn copy_to_pinned(
        &self,
        to: &Mapped,
        at: usize,
        from: &DeviceBuffer,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), String> {
        assert!(at + bytes <= to.words * 8 && bytes <= from.len());
        // SAFETY: both ranges were checked; the caller waits for the stream before either is freed.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.host.cast::<u8>().add(at).cast(), from.address(), bytes, stream.0) }
            .result()
            .map_err(failed("cuMemcpyDtoHAsync"))
    }

    /// Whether everything on a stream has ended.
    pub(crate) fn is_done(&self, stream: Stream) -> Result<bool, String> {
        // SAFETY: the stream belongs to this context and is never destroyed.
        match unsafe { sys::cuStreamQuery(stream.0) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => other.result().map(|()| true).map_err(failed("cuStreamQuery")),
        }
    }

    /// Waits for a stream. Every bench kernel ends by itself.
    pub(crate) fn wait(&self, stream: Stream) -> Result<(), String> {
        self.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        // SAFETY: the stream belongs to this context and is never destroyed.
        unsafe { result::stream::synchronize(stream.0) }.map_err(failed("cuStreamSynchronize"))
    }
}

/// A captured graph.
pub(crate) struct Graph(sys::CUgraphExec);

impl Graph {
    pub(crate) fn launch(&self, stream: Stream) -> Result<(), String> {
        // SAFETY: graph and stream belong to one context.
        unsafe { sys::cuGraphLaunch(self.0, stream.0) }.result().map_err(failed("cuGraphLaunch"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated in `capture`; the driver keeps it until its last launch has ended.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}

/// Two events around a piece of work.
pub(crate) struct Timer([sys::CUevent; 2]);

impl Timer {
    /// The context is current: [`Kernels::load`] made it so on this thread.
    pub(crate) fn new() -> Result<Self, String> {
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("cuEventCreate"));
        Ok(Timer([event()?, event()?]))
    }

    pub(crate) fn begin(&self, stream: Stream) -> Result<(), String> {
        // SAFETY: event and stream belong to this context.
        unsafe { result::event::record(self.0[0], stream.0) }.map_err(failed("cuEventRecord"))
    }

    /// Waits for the work since `begin`, and says how many milliseconds it took on the device.
    pub(crate) fn end(&self, stream: Stream) -> Result<f64, String> {
        // SAFETY: events and stream belong to this context; the work before the event ends by itself.
        unsafe {
            result::event::record(self.0[1], stream.0).map_err(failed("cuEventRecord"))?;
            result::stream::synchronize(stream.0).map_err(failed("cuStreamSynchronize"))?;
            result::event::elapsed(self.0[0], self.0[1]).map(f64::from).map_err(failed("cuEventElapsedTime"))
        }
    }
}

/// Zeroed words in pinned memory that the device reaches too.
pub(crate) struct Mapped {
    host: *mut u64,
    device: u64,
    words: usize,
}

impl Mapped {
    pub(crate) fn new(words: usize) -> Result<Self, String> {
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: a plain allocation, owned by the value.
        let host = unsafe { result::malloc_host(words * 8, flags) }.map_err(failed("cuMemHostAlloc"))?.cast::<u64>();
        // SAFETY: just allocated with that many words.
        unsafe { host.write_bytes(0, words) };
        let mut device = 0;
        // SAFETY: mapped memory of the current context.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, host.cast(), 0) }
            .result()
            .map_err(failed("cuMemHostGetDevicePointer"))?;
        Ok(Mapped { host, device, words })
    }

    pub(crate) fn device(&self) -> u64 {
        self.device
    }

    pub(crate) fn store(&self, word: usize, value: u64) {
        assert!(word < self.words);
        // SAFETY: an aligned word of the allocation; kernels reach it with atomic accesses too.
        unsafe { abi::wm_host_store_release(self.host.add(word), value) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`; whoever used it on the device was waited for.
        let _ = unsafe { result::free_host(self.host.cast()) };
    }
}

/// A pointer to a kernel parameter.
pub(crate) fn arg<T>(value: &mut T) -> *mut c_void {
    (&raw mut *value).cast()
}

/// Mailboxes in device memory with no arbiter behind them: one allocation, and a table of their handles.
pub(crate) struct DeviceMailboxes {
    /// `wm_mailbox[n]` on the device.
    pub(crate) table: DeviceBuffer,
    memory: DeviceBuffer,
    image: Vec<u8>,
}

impl DeviceMailboxes {
    pub(crate) fn new(device: &Device, n: u32, stride: u32, slots: u32) -> Result<Self, String> {
        let bytes = ((abi::WM_HEADER_BYTES + stride * slots) as usize).next_multiple_of(512);
        let alloc = |bytes| device.alloc(bytes).map_err(|e| e.to_string());
        let (memory, table) = (alloc(bytes * n as usize)?, alloc(size_of::<abi::wm_mailbox>() * n as usize)?);
        let header = header(stride, slots);
        let mut image = vec![0; memory.len()];
        let mut handles = Vec::new();
        for i in 0..n as usize {
            image[i * bytes..][..abi::WM_HEADER_BYTES as usize].copy_from_slice(bytemuck::bytes_of(&header));
            handles.push(handle(memory.address() + (i * bytes) as u64, stride, slots));
        }
        table.upload(0, bytemuck::cast_slice(&handles)).map_err(|e| e.to_string())?;
        Ok(DeviceMailboxes { table, memory, image })
    }

    /// Empties them. Nobody may be using them.
    pub(crate) fn reset(&self) -> Result<(), String> {
        self.memory.upload(0, &self.image).map_err(|e| e.to_string())
    }
}

fn header(stride: u32, slots: u32) -> abi::wm_mailbox_header {
    abi::wm_mailbox_header {
        magic: abi::WM_ABI_MAGIC,
        version: abi::WM_ABI_VERSION,
        capacity_bytes: u64::from(stride) * u64::from(slots),
        record_stride: stride,
        consumer_id: 1,
        slots_log2: slots.trailing_zeros(),
        scope: abi::WM_SCOPE_GPU,
        ..Default::default()
    }
}

fn handle(base: u64, stride: u32, slots: u32) -> abi::wm_mailbox {
    abi::wm_mailbox {
        header: base,
        record_stride: stride,
        slots_log2: slots.trailing_zeros(),
        scope: abi::WM_SCOPE_GPU,
        consumer_id: 1,
        producer_side: abi::WM_SIDE_DEVICE as u16,
        consumer_side: abi::WM_SIDE_DEVICE as u16,
        ..Default::default()
    }
}

/// A mailbox in device memory with no arbiter behind it.
pub(crate) struct DeviceMailbox {
    pub(crate) handle: abi::wm_mailbox,
    memory: DeviceBuffer,
}

impl DeviceMailbox {
    pub(crate) fn new(device: &Device, stride: u32, slots: u32) -> Result<Self, String> {
        let bytes = abi::WM_HEADER_BYTES + stride * slots;
        let memory = device.alloc(bytes as usize).map_err(|e| e.to_string())?;
        let handle = handle(memory.address(), stride, slots);
        let mailbox = DeviceMailbox { handle, memory };
        mailbox.reset()?;
        Ok(mailbox)
    }

    /// Empties it. Nobody may be using it.
    pub(crate) fn reset(&self) -> Result<(), String> {
        let (stride, slots) = (self.handle.record_stride, 1u32 << self.handle.slots_log2);
        let header = header(stride, slots);
        let mut bytes = vec![0; self.memory.len()];
        bytes[..abi::WM_HEADER_BYTES as usize].copy_from_slice(bytemuck::bytes_of(&header));
        self.memory.upload(0, &bytes).map_err(|e| e.to_string())
    }
}
