//! CUDA through the driver API. The only module that calls cudarc, besides the probe.
//!
//! Every call runs with the device's primary context pushed on the calling thread and popped after, so that a caller's own
//! current context stays what it was. The launcher's thread, which is the runtime's own, keeps it.

mod copies;
mod doors;
mod events;
mod gates;
mod launches;
mod libraries;
mod notes;
mod sides;
mod steps;
mod tensors;

pub(crate) use events::Event;
use std::borrow::Cow;
use std::ffi::{CStr, CString};

use cudarc::driver::{DriverError, result, sys};

use super::thread::ThreadLaunches;
use super::{Backend, Blocks, Copies, Launches, Part, Pinned, StepPlan, StepQueue, StreamNote, part_of};
use crate::abi::{self, wm_arbiter_args};
use crate::device::DeviceInfo;
use crate::error::{Error, Result};
use crate::image::HandlerImage;
use crate::probe::{BackendKind, probe};
use crate::stats::Footprint;
use crate::stream::Body;

use doors::Doors;
use launches::{CudaLaunches, threads_of};
use libraries::{Library, allow_shared};
use sides::Chosen;
use steps::Steps;

fn driver(call: &'static str) -> impl Fn(DriverError) -> Error {
    move |e| Error::Driver { call, reason: crate::probe::driver_reason(e) }
}

/// The device's primary context, retained once.
#[derive(Debug)]
struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

// SAFETY: the driver's contexts may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn enter(&self) -> Result<Entered> {
        // SAFETY: `raw` is retained as long as `self` lives.
        unsafe { sys::cuCtxPushCurrent_v2(self.raw) }.result().map_err(driver("cuCtxPushCurrent"))?;
        Ok(Entered)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `Cuda::open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: pops what `enter` pushed on this thread.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
    }
}

#[derive(Debug)]
pub(crate) struct Cuda {
    info: DeviceInfo,
    context: std::sync::Arc<Context>,
    shared_limit: usize,
    copies: std::sync::Mutex<Stream>,
    notes: notes::Notes,
    /// Made when somebody first asks for it.
    intake: std::sync::OnceLock<Stream>,
    /// Loaded when the first stream module needs them.
    gates: std::sync::OnceLock<std::sync::Arc<gates::Kernels>>,
    /// Made for the first arbiter of the device's own; one looks at a time.
    sides: std::sync::Mutex<Option<sides::Sides>>,
}

/// A stream that does not synchronise with the legacy stream.
#[derive(Debug)]
struct Stream(sys::CUstream);

// SAFETY: the driver's streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    fn new() -> Result<Self> {
        result::stream::create(result::stream::StreamKind::NonBlocking).map(Stream).map_err(driver("cuStreamCreate"))
    }

    /// The same with the device's most urgent priority.
    fn urgent() -> Result<Self> {
        let (mut least, mut most, mut stream) = (0, 0, std::ptr::null_mut());
        // SAFETY: writes two integers.
        unsafe { sys::cuCtxGetStreamPriorityRange(&mut least, &mut most) }
            .result()
            .map_err(driver("cuCtxGetStreamPriorityRange"))?;
        // SAFETY: writes one handle, in the context that is current.
        unsafe {
            sys::cuStreamCreateWithPriority(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32, most)
        }
        .result()
        .map_err(driver("cuStreamCreateWithPriority"))?;
        Ok(Stream(stream))
    }

    /// Whether everything on it has ended. The context has been entered.
    fn is_empty(&self) -> Result<bool> {
        // SAFETY: a stream of the context that the caller has entered.
        match unsafe { sys::cuStreamQuery(self.0) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => other.result().map(|()| true).map_err(driver("cuStreamQuery")),
        }
    }
}

impl Cuda {
    pub(crate) fn open(ordinal: u32) -> Result<Self> {
        result::init().map_err(driver("cuInit"))?;
        let device = result::device::get(ordinal as i32).map_err(driver("cuDeviceGet"))?;
        // SAFETY: `device` was just obtained.
        let raw = unsafe { result::primary_ctx::retain(device) }.map_err(driver("cuDevicePrimaryCtxRetain"))?;
        let context = Context { device, raw };
        let probe = probe();
        let found = probe
            .devices
            .iter()
            .find(|d| d.ordinal == ordinal)
            .ok_or(Error::Unavailable { what: "the CUDA device", reason: format!("there is no device {ordinal}") })?;
        let copies = {
            let _entered = context.enter()?;
            Stream::new()?
        };
        Ok(Cuda {
            info: DeviceInfo {
                backend: BackendKind::Cuda,
                ordinal: Some(ordinal),
                name: found.name.clone(),
                pci_bus_id: pci_bus_id(device),
                driver: probe.driver.as_ref().ok().cloned(),
                compute_capability: Some(found.compute_capability),
                multiprocessors: found.multiprocessors,
                stream_memory_operations: found.stream_memory_operations,
                memory_bytes: Some(found.memory_bytes),
            },
            shared_limit: found.shared_bytes as usize,
            context: std::sync::Arc::new(context),
            copies: std::sync::Mutex::new(copies),
            notes: notes::Notes::default(),
            intake: std::sync::OnceLock::new(),
            gates: std::sync::OnceLock::new(),
            sides: std::sync::Mutex::default(),
        })
    }

    fn ordinal(&self) -> u32 {
        self.info.ordinal.unwrap_or(0)
    }

    /// The streams of an arbiter. The context has been entered.
    fn streams(&self, beside: Option<u64>) -> Result<Chosen> {
        let any = || Ok(Chosen { launches: Stream::urgent()?, doors: Stream::urgent()? });
        if !self.info.stream_memory_operations {
            return any();
        }
        let mut sides = self.sides.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = match &mut *sides {
            Some(sides) => sides.choose(beside),
            none => sides::Sides::new(self.context.clone()).and_then(|sides| none.insert(sides).choose(beside)),
        };
        found.or_else(|error| {
            tracing::debug!(%error, "the sides of the front end could not be told");
            any()
        })
    }

    /// Runs `copy` on the copying stream and waits for it.
    fn copy(&self, call: &'static str, copy: impl FnOnce(sys::CUstream) -> Result<(), DriverError>) -> Result<()> {
        let _entered = self.context.enter()?;
        let stream = self.copies.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        copy(stream.0).map_err(driver(call))?;
        // SAFETY: the stream lives as long as `self`; only bounded copies are ever enqueued on it.
        unsafe { result::stream::synchronize(stream.0) }.map_err(driver("cuStreamSynchronize"))
    }
}

/// Where a device is plugged in.
fn pci_bus_id(device: sys::CUdevice) -> Option<String> {
    let mut name = [0u8; 32];
    // SAFETY: writes a C string of at most so many bytes.
    unsafe { sys::cuDeviceGetPCIBusId(name.as_mut_ptr().cast(), name.len() as i32, device) }.result().ok()?;
    CStr::from_bytes_until_nul(&name).ok().map(|name| name.to_string_lossy().into_owned())
}

impl Backend for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        let _entered = self.context.enter()?;
        let (free, _) = result::mem_get_info().map_err(driver("cuMemGetInfo"))?;
        Ok(Some(free as u64))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let address = {
            let _entered = self.context.enter()?;
            // SAFETY: a plain allocation, owned by the caller.
            unsafe { result::malloc_sync(bytes.max(1)) }.map_err(driver("cuMemAlloc"))?
        };
        // SAFETY: the allocation has that many bytes and nobody else knows it.
        self.copy("cuMemsetD8Async", |s| unsafe { result::memset_d8_async(address, 0, bytes.max(1), s) })
            .inspect_err(|_| self.free(address, bytes))?;
        Ok(address)
    }

    fn free(&self, address: u64, _bytes: usize) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: the owner frees what `alloc` returned, once. The call waits for running kernels: bounded by the
            // residency.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<Pinned> {
        let _entered = self.context.enter()?;
        // Not write-combined: the host reads it.
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: a plain allocation, owned by the caller.
        let host = unsafe { result::malloc_host(bytes.max(1), flags) }.map_err(driver("cuMemHostAlloc"))?.cast::<u8>();
        // SAFETY: just allocated with that size.
        unsafe { host.write_bytes(0, bytes.max(1)) };
        let mut device = 0;
        // SAFETY: `host` is mapped memory of this context.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, host.cast(), 0) }
            .result()
            .map_err(driver("cuMemHostGetDevicePointer"))?;
        Ok(Pinned { host, device, bytes })
    }

    fn free_pinned(&self, pinned: Pinned) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: the owner frees what `alloc_pinned` returned, once.
            let _ = unsafe { result::free_host(pinned.host.cast()) };
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller owns `to` for that many bytes; `copy` waits, so `from` outlives the copy.
        self.copy("cuMemcpyHtoDAsync", |s| unsafe { result::memcpy_htod_async(to, from, s) })
    }

    fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        // SAFETY: the caller owns `from` for that many bytes; `copy` waits, so `to` outlives the copy.
        self.copy("cuMemcpyDtoHAsync", |s| unsafe { result::memcpy_dtoh_async(to, from, s) })
    }

    fn fill(&self, to: u64, bytes: usize, byte: u8) -> Result<()> {
        let _relaxed = tensors::Relaxed::new()?;
        // SAFETY: the caller owns `to` for that many bytes.
        self.copy("cuMemsetD8Async", |s| unsafe { result::memset_d8_async(to, byte, bytes, s) })
    }

    fn read_words(&self, to: &mut [u64], from: u64) -> Result<()> {
        let _relaxed = tensors::Relaxed::new()?;
        self.download(bytemuck::cast_slice_mut(to), from)
    }

    fn blocks(&self) -> Result<Box<dyn Blocks>> {
        Ok(Box::new(tensors::PoolBlocks::new(self.context.clone(), self.ordinal() as i32)?))
    }

    fn owns(&self, address: u64) -> Result<()> {
        tensors::owns(&self.context, self.ordinal(), address)
    }

    fn note(&self, stream: u64) -> Result<StreamNote> {
        let _entered = self.context.enter()?;
        self.notes.note(stream)
    }

    fn is_past(&self, note: StreamNote) -> Result<bool> {
        let _entered = self.context.enter()?;
        self.notes.is_past(note)
    }

    fn follow(&self, stream: u64, note: StreamNote) -> Result<()> {
        let _entered = self.context.enter()?;
        self.notes.follow(stream, note)
    }

    fn intake(&self) -> Result<u64> {
        if self.intake.get().is_none() {
            let _entered = self.context.enter()?;
            let mine = Stream::new()?;
            if let Err(second) = self.intake.set(mine) {
                // SAFETY: just made, and nothing was enqueued on it.
                let _ = unsafe { result::stream::destroy(second.0) };
            }
        }
        let known = self.intake.get().map(|stream| stream.0 as u64);
        known.ok_or_else(|| Error::State("the device has no stream of its own".into()))
    }

    fn copies(&self) -> Result<Box<dyn Copies>> {
        Ok(Box::new(copies::CudaCopies::new(self.context.clone())?))
    }

    fn load(&self, image: &HandlerImage, args: &wm_arbiter_args, beside: Option<u64>) -> Result<Box<dyn Launches>> {
        let fatbin = image.fatbin.clone().ok_or_else(|| Error::Unavailable {
            what: "a CUDA kernel for this handler set",
            reason: image.missing.to_string(),
        })?;
        if args.plan != 0 {
            return self.load_steps(image, fatbin, args);
        }
        // SAFETY: a pure function of the arguments' counts.
        let shared = unsafe { abi::wm_host_shared_bytes(args) } as usize;
        if shared + 1024 > self.shared_limit {
            return Err(Error::refused(
                format!("a graph with {} mailboxes and {} servers", args.n_mailboxes, args.servers),
                format!("needs {shared} bytes of shared memory, more than the device's {}", self.shared_limit),
            ));
        }
        let _entered = self.context.enter()?;
        let library = Library::of(fatbin)?;
        let function = library
            .kernel(&image.kernel)?
            .ok_or_else(|| Error::refused(format!("handler set {}", image.name), no_kernel(&image.kernel)))?;
        allow_shared(function, shared)?;
        use sys::CUfunction_attribute as of;
        let most = attribute(function, of::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        let threads = threads_of(args);
        if threads > most {
            return Err(Error::refused(
                format!("an arbiter of {threads} threads with the handler set {}", image.name),
                format!(
                    "its kernel has registers for {most} on this device: use fewer servers, or declare the kernel with \
                     __launch_bounds__(warpmail::arbiter_max_threads, 1)"
                ),
            ));
        }
        // SAFETY: the function belongs to a loaded library.
        let blocks =
            unsafe { result::occupancy::max_active_block_per_multiprocessor(function, threads as i32, shared) }
                .map_err(driver("cuOccupancyMaxActiveBlocksPerMultiprocessor"))?;
        let footprint = Some(Footprint {
            threads,
            registers: attribute(function, of::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            shared_bytes: shared as u32 + attribute(function, of::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            local_bytes: attribute(function, of::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            blocks_per_sm: blocks as u32,
            multiprocessors: self.info.multiprocessors,
        });
        let (context, Chosen { launches: stream, doors }) = (self.context.clone(), self.streams(beside)?);
        let doors = Doors::new(context.clone(), doors)?;
        Ok(Box::new(CudaLaunches { context, library, function, stream, doors, shared, footprint, running: 0 }))
    }

    fn steps(&self, plan: StepPlan, body: Body) -> Result<Box<dyn StepQueue>> {
        let _entered = self.context.enter()?;
        Ok(Box::new(gates::Gates::new(self.context.clone(), self.gates()?, plan, body)?))
    }

    fn part(&self, plan: StepPlan, body: Body) -> Result<Part> {
        let _entered = self.context.enter()?;
        Ok(Box::new(gates::Part::new(self.context.clone(), self.gates()?, &plan, body)?))
    }

    fn pass(&self, parts: Vec<(Part, Vec<usize>)>, under_way: usize) -> Result<Box<dyn StepQueue>> {
        let _entered = self.context.enter()?;
        let parts: Result<Vec<_>> = parts.into_iter().map(|(part, behind)| Ok((part_of(part)?, behind))).collect();
        Ok(Box::new(gates::pass(&parts?, under_way)?))
    }
}

/// What the driver knows of a loaded kernel.
fn attribute(function: sys::CUfunction, which: sys::CUfunction_attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the function belongs to a loaded library; writes one integer.
    unsafe { sys::cuFuncGetAttribute(&mut value, which, function) }.result().map_err(driver("cuFuncGetAttribute"))?;
    Ok(value as u32)
}

impl Cuda {
    /// The kernels of stream modules. The context has been entered.
    fn gates(&self) -> Result<std::sync::Arc<gates::Kernels>> {
        if let Some(kernels) = self.gates.get() {
            return Ok(kernels.clone());
        }
        let early = self.info.compute_capability >= Some((9, 0));
        let loaded = std::sync::Arc::new(gates::Kernels::load(early, self.info.multiprocessors)?);
        Ok(self.gates.get_or_init(|| loaded).clone())
    }

    /// For an arbiter on the CPU: the kernel that runs one grant.
    fn load_steps(
        &self,
        image: &HandlerImage,
        fatbin: Cow<'static, [u8]>,
        args: &wm_arbiter_args,
    ) -> Result<Box<dyn Launches>> {
        let mut name = image.kernel.as_bytes().to_vec();
        name.extend_from_slice(b"_step");
        let name = CString::new(name).unwrap_or_default();
        let _entered = self.context.enter()?;
        let library = Library::of(fatbin)?;
        let missing = || Error::Unavailable {
            what: "CPU-arbitrated mode for this handler set",
            reason: format!("{}: declare it as warpmail/handler.hpp shows", no_kernel(&name)),
        };
        let kernel = library.kernel(&name)?.ok_or_else(missing)?;
        let mut steps = Steps::new(self.context.clone(), library, kernel, args)?;
        let events = steps.events();
        let mut launches =
            ThreadLaunches::start("warpmail-arbiter", relax_captures, move |args| steps.arbitrate(args))?;
        launches.server_events = events;
        Ok(Box::new(launches))
    }
}

fn no_kernel(name: &CStr) -> String {
    format!("its fatbin has no kernel {}", name.to_string_lossy())
}

/// Otherwise this thread's calls would invalidate a graph capture that the application has in progress.
fn relax_captures() -> Result<()> {
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: exchanges this thread's mode only.
    unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }
        .result()
        .map_err(driver("cuThreadExchangeStreamCaptureMode"))
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if let (Ok(_entered), Ok(stream)) = (self.context.enter(), self.copies.lock()) {
            // SAFETY: nothing is enqueued: every copy was waited for.
            let _ = unsafe { result::stream::destroy(stream.0) };
            if let Some(intake) = self.intake.get() {
                // SAFETY: made in `intake`; the driver keeps a stream until what is on it has ended.
                let _ = unsafe { result::stream::destroy(intake.0) };
            }
            self.notes.end();
        }
    }
}
