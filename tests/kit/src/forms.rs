//! Runs one form of the device API against another, on either backend: see `forms/forms.hpp`.

use std::ffi::{CString, c_void};

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use warpmail::{Device, DeviceBuffer, abi};

mod image {
    include!(concat!(env!("OUT_DIR"), "/forms_kernels.rs"));
}

/// How records are moved: `try_push` and `try_pop`.
pub const FORM_TRY: u64 = 0;
/// `push` and `pop`.
pub const FORM_WAIT: u64 = 1;
/// In place.
pub const FORM_PLACE: u64 = 2;
/// `try_push_batch` and `try_pop_batch`.
pub const FORM_BATCH: u64 = 3;
/// `warp_producer` and `warp_consumer`; only by a warp, with the default stride and scope.
pub const FORM_END: u64 = 4;
/// Their batches.
pub const FORM_END_ALL: u64 = 5;
/// `wide_producer` and `wide_consumer`; by whom and where as [`FORM_END`].
pub const FORM_END_WIDE: u64 = 6;
/// The same, the consumer asking ahead.
pub const FORM_END_AHEAD: u64 = 7;

/// Who makes a call: one thread.
pub const LANES_ONE: u64 = 0;
/// A warp.
pub const LANES_WARP: u64 = 1;
/// A block.
pub const LANES_BLOCK: u64 = 2;

/// With the ordering contract.
pub const ORDER_ORDERED: u64 = 0;
/// Without.
pub const ORDER_SELF_CONTAINED: u64 = 1;
/// With a fence of the caller's ahead of the push.
pub const ORDER_FENCED: u64 = 2;

/// Words that no record carries; more than there are records on their way.
const OUTSIDE_LOG2: u32 = 10;
const SCRATCH: usize = 8 * 4096 + 64 + 64;
/// Calls that [`Forms::misuse`] makes.
pub const ATTEMPTS: usize = 12;

/// One side of a trial.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct Side {
    /// Set by [`Forms`].
    pub scratch: u64,
    /// One of the forms.
    pub form: u64,
    /// One of the lanes.
    pub lanes: u64,
    /// One of the orders.
    pub order: u64,
}

/// A trial.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// The mailbox's.
    pub stride: u32,
    /// Slots, a power of two, fewer than the words outside.
    pub slots: u32,
    /// `abi::WM_SCOPE_GPU` or `abi::WM_SCOPE_SYS`.
    pub scope: u32,
    /// Index of the first record.
    pub start: u64,
    /// What the records are made from.
    pub seed: u64,
    /// Their number.
    pub records: u64,
    /// Threads of a block.
    pub threads: u32,
    /// The producer.
    pub push: Side,
    /// The consumer.
    pub pop: Side,
}

impl Trial {
    /// One record, whole, with the default stride and scope.
    pub fn plain(lanes: u64, slots: u32) -> Self {
        let side = Side { lanes, ..Side::default() };
        Trial {
            stride: abi::WM_STRIDE_DEFAULT,
            slots,
            scope: abi::WM_SCOPE_GPU,
            start: 0,
            seed: 1,
            records: 1,
            threads: 64,
            push: side,
            pop: side,
        }
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Task {
    mailbox: abi::wm_mailbox,
    seed: u64,
    records: u64,
    budget_ns: u64,
    outside: u64,
    outside_log2: u64,
    group: u64,
    push: Side,
    pop: Side,
    report: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct DurableTask {
    mailbox: abi::wm_mailbox,
    durable: abi::wm_durable,
    records: u64,
    budget_ns: u64,
    report: u64,
}

/// What a side says at its end.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct Report {
    /// Records that it moved.
    pub done: u64,
    /// 0 if nothing was wrong: else 1 status, 2 timeout, 3 length, 4 type, 5 bytes, 6 ordering, 7 written beyond the room.
    pub fault: u64,
    /// What was expected.
    pub expected: u64,
    /// What was found.
    pub found: u64,
}

unsafe extern "C" {
    fn forms_produce(task: *const Task);
    fn forms_consume(task: *const Task);
    fn forms_misuse(task: *const Task);
    fn forms_run_block(task: *const Task, block: u32, threads: u32);
    fn forms_misuse_block(task: *const Task, threads: u32);
    fn forms_mistake_is_found(which: u32) -> std::ffi::c_int;
    fn forms_push_durably(task: *const DurableTask);
    fn forms_clear(task: *const Task, start: u64);
}

/// Mistakes of lanes that [`mistake_is_found`] knows; the last is none.
pub const MISTAKES: u32 = 4;

/// Whether running lanes in turns on the CPU finds a mistake.
pub fn mistake_is_found(which: u32) -> bool {
    // SAFETY: it forks and runs in the child what touches only the stack; the child ends without returning.
    unsafe { forms_mistake_is_found(which) != 0 }
}

pub(crate) struct Kernels {
    _context: std::sync::Arc<CudaContext>,
    library: sys::CUlibrary,
    stream: sys::CUstream,
}

/// What trials need of a device, made once.
pub struct Forms {
    kernels: Option<Kernels>,
    outside: DeviceBuffer,
    scratch: [DeviceBuffer; 2],
    report: DeviceBuffer,
    memory: DeviceBuffer,
}

fn failed(call: &'static str) -> impl Fn(DriverError) -> String {
    move |e| format!("{call} failed: {e}")
}

impl Kernels {
    pub(crate) fn load(ordinal: u32) -> Result<Self, String> {
        let code = image::FATBIN.ok_or_else(|| format!("the kernels are not built: {}", image::MISSING))?;
        let context = CudaContext::new(ordinal as usize).map_err(failed("the primary context"))?;
        context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let (mut library, null) = (std::ptr::null_mut(), std::ptr::null_mut::<c_void>());
        // SAFETY: a whole fatbin in static memory; no options are given.
        unsafe {
            let code = code.as_ptr().cast::<c_void>();
            sys::cuLibraryLoadData(&mut library, code, null.cast(), null.cast(), 0, null.cast(), null.cast(), 0)
        }
        .result()
        .map_err(failed("cuLibraryLoadData"))?;
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("cuStreamCreate"))?;
        Ok(Kernels { _context: context, library, stream })
    }

    fn get(&self, name: &str) -> Result<sys::CUfunction, String> {
        let name = CString::new(name).map_err(|e| e.to_string())?;
        let (mut kernel, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the library is loaded; the second handle comes from the first.
        unsafe {
            sys::cuLibraryGetKernel(&mut kernel, self.library, name.as_ptr())
                .result()
                .map_err(failed("cuLibraryGetKernel"))?;
            sys::cuKernelGetFunction(&mut function, kernel).result().map_err(failed("cuKernelGetFunction"))?;
        }
        Ok(function)
    }

    /// Loads a kernel's code, which its first launch would.
    pub(crate) fn prepare(&self, name: &str) -> Result<(), String> {
        // SAFETY: a function of this library.
        unsafe { sys::cuFuncLoad(self.get(name)?) }.result().map_err(failed("cuFuncLoad"))
    }

    /// Launches a kernel and waits for it: every kernel here ends by itself.
    pub(crate) fn run(&self, name: &str, blocks: u32, threads: u32, params: &mut [*mut c_void]) -> Result<(), String> {
        let function = self.get(name)?;
        // SAFETY: a function of this library; the parameters are what the kernel declares.
        unsafe {
            result::launch_kernel(function, (blocks, 1, 1), (threads, 1, 1), 0, self.stream, params)
                .map_err(failed("cuLaunchKernel"))?;
            result::stream::synchronize(self.stream).map_err(failed("cuStreamSynchronize"))
        }
    }
}

/// A pointer to a kernel parameter.
pub(crate) fn param<T>(value: &mut T) -> *mut c_void {
    (&raw mut *value).cast()
}

pub(crate) fn text(e: warpmail::Error) -> String {
    e.to_string()
}

impl Forms {
    /// For the largest mailbox of the trials.
    pub fn new(device: &Device, largest: usize) -> Result<Self, String> {
        let alloc = |bytes| device.alloc(bytes).map_err(text);
        Ok(Forms {
            kernels: device.info().ordinal.map(Kernels::load).transpose()?,
            outside: alloc(8 << OUTSIDE_LOG2)?,
            scratch: [alloc(SCRATCH)?, alloc(SCRATCH)?],
            report: alloc(256)?,
            memory: alloc(abi::WM_HEADER_BYTES as usize + largest)?,
        })
    }

    fn task(&self, trial: &Trial) -> Result<Task, String> {
        let slots_log2 = trial.slots.trailing_zeros();
        let header = abi::wm_mailbox_header {
            magic: abi::WM_ABI_MAGIC,
            version: abi::WM_ABI_VERSION,
            capacity_bytes: u64::from(trial.stride) * u64::from(trial.slots),
            record_stride: trial.stride,
            consumer_id: 1,
            slots_log2,
            scope: trial.scope,
            ..Default::default()
        };
        let mailbox = abi::wm_mailbox {
            header: self.memory.address(),
            record_stride: trial.stride,
            slots_log2,
            scope: trial.scope,
            consumer_id: 1,
            producer_side: abi::WM_SIDE_DEVICE as u16,
            consumer_side: abi::WM_SIDE_DEVICE as u16,
            ..Default::default()
        };
        self.memory.upload(0, bytemuck::bytes_of(&header)).map_err(text)?;
        let mut task = Task {
            mailbox,
            seed: trial.seed,
            records: trial.records,
            budget_ns: if self.kernels.is_some() { 5_000_000_000 } else { 30_000_000_000 },
            outside: self.outside.address(),
            outside_log2: u64::from(OUTSIDE_LOG2),
            group: if trial.push.form == FORM_BATCH { 8 } else { 1 },
            push: Side { scratch: self.scratch[0].address(), ..trial.push },
            pop: Side { scratch: self.scratch[1].address(), ..trial.pop },
            report: self.report.address(),
        };
        let mut start = trial.start;
        match &self.kernels {
            // SAFETY: the mailbox's memory is this value's own and as large as its header says.
            None => unsafe { forms_clear(&task, start) },
            Some(kernels) => kernels.run("forms_clear", 1, 32, &mut [param(&mut task), param(&mut start)])?,
        }
        Ok(task)
    }

    /// As a module outside the arbiter: pushes records of 8 bytes into a tapped mailbox, each when the one before is durable,
    /// with `wait_durable` of the device API. A status that ended it is `found` in the report, negated.
    pub fn push_durably(
        &self,
        mailbox: abi::wm_mailbox,
        durable: abi::wm_durable,
        records: u64,
        budget: std::time::Duration,
    ) -> Result<Report, String> {
        let (budget_ns, report) = (budget.as_nanos() as u64, self.report.address());
        let mut task = DurableTask { mailbox, durable, records, budget_ns, report };
        match &self.kernels {
            // SAFETY: the handles are a runtime's, which the caller keeps, and the caller is the mailbox's one producer.
            None => unsafe { forms_push_durably(&task) },
            Some(kernels) => kernels.run("forms_push_durably", 1, 32, &mut [param(&mut task)])?,
        }
        let mut told = Report::default();
        self.report.download(0, bytemuck::bytes_of_mut(&mut told)).map_err(text)?;
        Ok(told)
    }

    /// Moves the records; the producer's report and the consumer's.
    pub fn run(&self, trial: &Trial) -> Result<[Report; 2], String> {
        let mut task = self.task(trial)?;
        match &self.kernels {
            None => std::thread::scope(|threads| {
                let (shared, block) = (&task, trial.threads);
                // A thread stands for one lane, or for all lanes of a block, which it runs in turns.
                threads.spawn(move || {
                    // SAFETY: all addresses are this value's own buffers; the two sides share the mailbox as its protocol
                    // asks for, and the words outside as the test is about.
                    unsafe {
                        if shared.push.lanes == LANES_ONE {
                            forms_produce(shared);
                        } else {
                            forms_run_block(shared, 0, block);
                        }
                    }
                });
                threads.spawn(move || {
                    // SAFETY: as above.
                    unsafe {
                        if shared.pop.lanes == LANES_ONE {
                            forms_consume(shared);
                        } else {
                            forms_run_block(shared, 1, block);
                        }
                    }
                });
            }),
            Some(kernels) => kernels.run("forms_run", 2, trial.threads, &mut [param(&mut task)])?,
        }
        let mut reports = [Report::default(); 2];
        self.report.download(0, bytemuck::cast_slice_mut(&mut reports)).map_err(text)?;
        Ok(reports)
    }

    /// Makes calls that must be refused, and some that must not: the status found and expected of each.
    pub fn misuse(&self, trial: &Trial) -> Result<[[i32; 2]; ATTEMPTS], String> {
        self.misuse_in(self.task(trial)?, trial)
    }

    fn misuse_in(&self, mut task: Task, trial: &Trial) -> Result<[[i32; 2]; ATTEMPTS], String> {
        match &self.kernels {
            // SAFETY: all addresses are this value's own buffers, used by this thread alone.
            None if trial.push.lanes == LANES_ONE => unsafe { forms_misuse(&task) },
            // SAFETY: as above.
            None => unsafe { forms_misuse_block(&task, trial.threads) },
            Some(kernels) => kernels.run("forms_misuse", 1, trial.threads, &mut [param(&mut task)])?,
        }
        let mut found = [[0; 2]; ATTEMPTS];
        self.report.download(0, bytemuck::cast_slice_mut(&mut found)).map_err(text)?;
        Ok(found)
    }

    /// The same calls at the two ends of a runtime's mailbox, which is empty and has one slot of the default stride.
    ///
    /// # Safety
    ///
    /// The runtime lives, and nobody else has these ends.
    pub unsafe fn misuse_of(&self, mailbox: abi::wm_mailbox, trial: &Trial) -> Result<[[i32; 2]; ATTEMPTS], String> {
        self.misuse_in(Task { mailbox, ..self.task(trial)? }, trial)
    }

    /// Loads the code of the calls above, which their first launch would.
    pub fn prepare_misuse(&self) -> Result<(), String> {
        self.kernels.iter().try_for_each(|k| k.prepare("forms_misuse").and_then(|()| k.prepare("forms_clear")))
    }

    /// What the two ends of the last trial's mailbox refused, the producer's and the consumer's.
    pub fn refused(&self) -> Result<[abi::wm_refusals; 2], String> {
        let mut header = abi::wm_mailbox_header::default();
        self.memory.download(0, bytemuck::bytes_of_mut(&mut header)).map_err(text)?;
        Ok(header.refused)
    }

    /// What [`Forms::misuse`] finds in the first place when `damage` was done to the header: that both ends are taken up, or
    /// why not.
    pub fn attach_damaged(
        &self,
        trial: &Trial,
        damage: impl FnOnce(&mut abi::wm_mailbox_header),
    ) -> Result<i32, String> {
        let mut task = self.task(trial)?;
        let mut header = abi::wm_mailbox_header::default();
        self.memory.download(0, bytemuck::bytes_of_mut(&mut header)).map_err(text)?;
        damage(&mut header);
        self.memory.upload(0, bytemuck::bytes_of(&header)).map_err(text)?;
        match &self.kernels {
            // SAFETY: as in `misuse`.
            None => unsafe { forms_misuse(&task) },
            Some(kernels) => kernels.run("forms_misuse", 1, trial.threads, &mut [param(&mut task)])?,
        }
        let mut found = [0i32; 1];
        self.report.download(0, bytemuck::cast_slice_mut(&mut found)).map_err(text)?;
        Ok(found[0])
    }
}
