//! Stream modules: their options, their bodies, and what a body may do with its step.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::args::{self, Options, Out, bound};
use super::border::enter;
use super::builder::{add, rule};
use super::fault::{Fault, OK, Result};
use super::pool::spec_of;
use super::sys::{
    self, warpmail_body_fn, warpmail_builder, warpmail_call_fn, warpmail_runtime, warpmail_step, warpmail_step_options,
    warpmail_tensor_options,
};
use super::table;
use crate::abi::{self, wm_step_head};
use crate::error::Error;
use crate::graph::{Builder, ModuleId};
use crate::runtime::Runtime;
use crate::stream::{Body, Delivery, Push, StepBuffer, StepStream, StreamOptions};

// SAFETY: `repr(C)`: the size, integers and a pointer.
unsafe impl Options for warpmail_step_options {
    const NAME: &'static str = "warpmail_step_options";
    fn defaults() -> Self {
        Self::default()
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_steps(
    builder: *mut warpmail_builder,
    name: *const c_char,
    options: *const warpmail_step_options,
    module: *mut u32,
) -> i32 {
    let steps = |builder: &mut Builder, name: &str| {
        let options = match options.is_null() {
            true => StreamOptions::default(),
            // SAFETY: as the header asks of the caller.
            false => unsafe { step_options(&args::options(options)?)? },
        };
        Ok(builder.steps(name, options)?)
    };
    // SAFETY: as the header asks of the caller.
    unsafe { add(builder, name, module, steps) }
}

/// # Safety
/// The outputs are as the header asks.
unsafe fn step_options(from: &warpmail_step_options) -> Result<StreamOptions> {
    let most = u64::from(abi::WM_MAX_OUTPUTS);
    if from.n_outputs > most {
        return Err(Fault::argument(format!("{} outputs: a module has at most {most}", from.n_outputs)));
    }
    let bytes = from.n_outputs as usize * size_of::<wm_step_head>();
    // SAFETY: the caller's word.
    let heads = unsafe { args::bytes(from.outputs.cast(), bytes, "the outputs") }?;
    let push = |head: &[u8]| {
        let head: wm_step_head = bytemuck::pod_read_unaligned(head);
        let msg_type = u16::try_from(head.type_)
            .map_err(|_| Fault::argument(format!("message type {} of an output: it has 16 bits", head.type_)))?;
        Ok(if head.len == abi::WM_STEP_NOTHING { Push::Nothing } else { Push::Record { len: head.len, msg_type } })
    };
    Ok(StreamOptions {
        rule: rule(from.rule)?,
        priority: from.priority.try_into().unwrap_or(u8::MAX), // the graph refuses it by its own rule
        spin: (from.spin_ns != 0).then(|| Duration::from_nanos(from.spin_ns)),
        ahead: from.ahead,
        outputs: heads.chunks_exact(size_of::<wm_step_head>()).map(push).collect::<Result<_>>()?,
        stream: (from.stream != 0).then_some(from.stream),
    })
}

/// What the caller wants back in its function: usable from any thread, says the header.
#[derive(Clone, Copy)]
struct User(*mut c_void);

// SAFETY: never followed here; the header asks that the function may be called with it from any thread.
unsafe impl Send for User {}

impl User {
    fn get(self) -> *mut c_void {
        self.0
    }
}

/// A step that a body on this thread is being given: its handle, and where it is.
type Lent = (NonZeroUsize, *mut c_void);

thread_local! {
    static STEPS: RefCell<Vec<Lent>> = const { RefCell::new(Vec::new()) };
}

/// Handles of steps are numbers, never used twice and never followed.
static NEXT: AtomicUsize = AtomicUsize::new(1);

/// Calls a body with a handle to its step, which is good until it returns.
fn lend(step: &mut StepStream<'_>, body: impl FnOnce(*mut warpmail_step) -> i32) -> i32 {
    struct TakeBack;
    impl Drop for TakeBack {
        fn drop(&mut self) {
            STEPS.with_borrow_mut(Vec::pop);
        }
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let handle = NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
    STEPS.with_borrow_mut(|steps| steps.push((handle, std::ptr::from_mut(step).cast())));
    let _take_back = TakeBack;
    body(std::ptr::without_provenance_mut(handle.get()))
}

/// Lets a function of the API at the step of a handle.
fn with_step<T>(handle: *mut warpmail_step, call: impl FnOnce(&mut StepStream<'_>) -> Result<T>) -> Result<T> {
    if handle.is_null() {
        return Err(Fault::new(sys::WARPMAIL_BAD_HANDLE, "step is null"));
    }
    let lent = STEPS.with_borrow(|steps| steps.iter().find(|lent| lent.0.get() == handle.addr()).map(|lent| lent.1));
    let step = lent.ok_or_else(|| {
        let text = "no step of a body that is running on this thread: a step is its body's, until that returns";
        let was_one = (1..NEXT.load(Ordering::Relaxed)).contains(&handle.addr());
        Fault::new(if was_one { sys::WARPMAIL_STALE_HANDLE } else { sys::WARPMAIL_BAD_HANDLE }, text)
    })?;
    // SAFETY: `lend` is further up this thread's stack and has lent it; bodies and functions of the host do not call back
    // into a function of a step's, so this is the only use.
    call(unsafe { &mut *step.cast::<StepStream<'_>>() })
}

fn outcome(status: i32) -> crate::error::Result<()> {
    match status {
        OK => Ok(()),
        status => Err(Error::Failed(format!("its body returned {status}"))),
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_body(
    runtime: *mut warpmail_runtime,
    module: u32,
    kind: u32,
    body: warpmail_body_fn,
    user: *mut c_void,
) -> i32 {
    enter(|| {
        let cell = table::share(runtime)?;
        let body = body.ok_or_else(|| Fault::argument("body is null: a step needs something to do"))?;
        let user = User(user);
        // SAFETY: the caller's function with the caller's argument; the header says from which threads.
        let enqueue =
            move |step: &mut StepStream<'_>| outcome(lend(step, |handle| unsafe { body(handle, user.get()) }));
        let body = match kind {
            sys::WARPMAIL_BODY_CAPTURED => Body::captured(enqueue),
            sys::WARPMAIL_BODY_ALWAYS => Body::captured(enqueue).always(),
            sys::WARPMAIL_BODY_EACH_STEP => Body::each_step(enqueue),
            other => return Err(Fault::argument(format!("body kind {other}: one of WARPMAIL_BODY_*"))),
        };
        cell.change(Duration::ZERO, |r, _| Ok(r.body(ModuleId(module), body)?)).map(|()| OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_body_graph(
    runtime: *mut warpmail_runtime,
    module: u32,
    kind: u32,
    graph: u64,
) -> i32 {
    enter(|| {
        let cell = table::share(runtime)?;
        if graph == 0 {
            return Err(Fault::argument("graph is null: a CUgraph is wanted"));
        }
        // SAFETY: as the header asks of the caller.
        let body = unsafe { Body::graph(graph) };
        let body = match kind {
            sys::WARPMAIL_BODY_CAPTURED => body,
            sys::WARPMAIL_BODY_ALWAYS => body.always(),
            other => {
                let text = format!("body kind {other}: a graph's is WARPMAIL_BODY_CAPTURED or WARPMAIL_BODY_ALWAYS");
                return Err(Fault::argument(text));
            }
        };
        cell.change(Duration::ZERO, |r, _| Ok(r.body(ModuleId(module), body)?)).map(|()| OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_deliver(
    runtime: *mut warpmail_runtime,
    module: u32,
    input: u32,
    to: u64,
    bytes: u64,
    options: *const warpmail_tensor_options,
) -> i32 {
    enter(|| {
        let cell = table::share(runtime)?;
        let delivery = match options.is_null() {
            true => Delivery::up_to(to, bytes),
            // SAFETY: as the header asks of the caller.
            false => Delivery::exactly(to, &unsafe { spec_of(options) }?).within(bytes),
        };
        // SAFETY: as the header asks of the caller.
        let deliver = |r: &mut Runtime| Ok(unsafe { r.deliver(ModuleId(module), input as usize, &delivery) }?);
        cell.change(Duration::ZERO, |r, _| deliver(r)).map(|()| OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_close(
    runtime: *mut warpmail_runtime,
    module: u32,
    bound_ns: u64,
) -> i32 {
    enter(|| {
        let close = |r: &mut Runtime, left| Ok(r.close(ModuleId(module), left)?);
        table::share(runtime)?.change(bound(bound_ns)?, close).map(|()| OK)
    })
}

/// # Safety
/// Both are as the header asks; `bytes` may be null.
unsafe fn give_buffer(buffer: StepBuffer, head: *mut u64, bytes: *mut u64) -> Result<i32> {
    // SAFETY: the caller's word.
    let head = unsafe { Out::new(head, "head") }?;
    if !bytes.is_null() {
        // SAFETY: the caller's word.
        unsafe { Out::new(bytes, "bytes") }?.set(buffer.bytes as u64);
    }
    head.set(buffer.head);
    Ok(OK)
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_step_input(
    runtime: *mut warpmail_runtime,
    module: u32,
    input: u32,
    head: *mut u64,
    bytes: *mut u64,
) -> i32 {
    enter(|| {
        let of = |r: &Runtime| Ok(r.step_input(ModuleId(module), input as usize)?);
        // SAFETY: as the header asks of the caller.
        unsafe { give_buffer(table::share(runtime)?.look(of)?, head, bytes) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_step_output(
    runtime: *mut warpmail_runtime,
    module: u32,
    output: u32,
    head: *mut u64,
    bytes: *mut u64,
) -> i32 {
    enter(|| {
        let of = |r: &Runtime| Ok(r.step_output(ModuleId(module), output as usize)?);
        // SAFETY: as the header asks of the caller.
        unsafe { give_buffer(table::share(runtime)?.look(of)?, head, bytes) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_step_stream(step: *mut warpmail_step, stream: *mut u64) -> i32 {
    enter(|| {
        let raw = with_step(step, |step| Ok(step.raw()))?;
        let none = || Fault::new(sys::WARPMAIL_UNAVAILABLE, "the twin has no streams: copy, forward and call do there");
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(stream, "stream") }?.set(raw.ok_or_else(none)?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_step_live(step: *mut warpmail_step, address: *mut u64) -> i32 {
    enter(|| {
        let live = with_step(step, |step| Ok(step.live()))?;
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(address, "address") }?.set(live);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_step_input(
    step: *mut warpmail_step,
    input: u32,
    head: *mut u64,
    bytes: *mut u64,
) -> i32 {
    enter(|| {
        let buffer = with_step(step, |step| Ok(step.input(input as usize)?))?;
        // SAFETY: as the header asks of the caller.
        unsafe { give_buffer(buffer, head, bytes) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_step_output(
    step: *mut warpmail_step,
    output: u32,
    head: *mut u64,
    bytes: *mut u64,
) -> i32 {
    enter(|| {
        let buffer = with_step(step, |step| Ok(step.output(output as usize)?))?;
        // SAFETY: as the header asks of the caller.
        unsafe { give_buffer(buffer, head, bytes) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_step_copy(step: *mut warpmail_step, to: u64, from: u64, bytes: u64) -> i32 {
    enter(|| {
        let bytes = usize::try_from(bytes).map_err(|_| Fault::argument(format!("a copy of {bytes} bytes")))?;
        // SAFETY: as the header asks of the caller.
        with_step(step, |step| Ok(unsafe { step.copy(to, from, bytes) }?)).map(|()| OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_step_forward(step: *mut warpmail_step, input: u32, output: u32) -> i32 {
    enter(|| with_step(step, |step| Ok(step.forward(input as usize, output as usize)?)).map(|()| OK))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_step_call(
    step: *mut warpmail_step,
    call: warpmail_call_fn,
    user: *mut c_void,
) -> i32 {
    enter(|| {
        let call = call.ok_or_else(|| Fault::argument("call is null"))?;
        let user = User(user);
        // SAFETY: the caller's function with the caller's argument; the header says from which threads.
        with_step(step, |step| Ok(step.call(move || unsafe { call(user.get()) })?)).map(|()| OK)
    })
}
