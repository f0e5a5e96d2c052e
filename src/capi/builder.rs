//! Making a module graph.

use std::ffi::c_char;
use std::time::Duration;

use super::args::{self, Options, Out};
use super::border::enter;
use super::cell::Cell;
use super::device::destroy;
use super::fault::{Fault, OK, Result};
use super::handle::Object;
use super::sys::{
    self, warpmail_budget, warpmail_builder, warpmail_device, warpmail_image, warpmail_mailbox_options,
    warpmail_module_options, warpmail_runtime,
};
use super::table;
use crate::abi;
use crate::budget::SpinBudget;
use crate::graph::{Builder, MailboxId, ModuleId};
use crate::options::{MailboxOptions, Mode, ModuleOptions, Rule, Tap};

// SAFETY: `repr(C)`: the size, integers and a pointer.
unsafe impl Options for warpmail_module_options {
    const NAME: &'static str = "warpmail_module_options";
    fn defaults() -> Self {
        Self::default()
    }
}

// SAFETY: `repr(C)`: the size and integers.
unsafe impl Options for warpmail_mailbox_options {
    const NAME: &'static str = "warpmail_mailbox_options";
    fn defaults() -> Self {
        Self::default()
    }
}

// SAFETY: `repr(C)`: the size, integers and a floating-point number.
unsafe impl Options for warpmail_budget {
    const NAME: &'static str = "warpmail_budget";
    const OLDER: &'static [usize] = &[40];
    fn defaults() -> Self {
        Self::default()
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_new(
    device: *mut warpmail_device,
    out: *mut *mut warpmail_builder,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        let builder = Builder::new(table::share(device)?);
        out.set(table::insert(Object::Builder(Box::new(builder)))?);
        Ok(OK)
    })
}

/// Adds a module.
///
/// # Safety
/// `name` and `id` are as the header asks.
pub(super) unsafe fn add(
    builder: *mut warpmail_builder,
    name: *const c_char,
    id: *mut u32,
    add: impl FnOnce(&mut Builder, &str) -> Result<ModuleId>,
) -> i32 {
    enter(|| {
        let mut builder = table::hold(builder)?;
        // SAFETY: the caller's word.
        let (name, id) = unsafe { (args::string(name, "the module's name")?, Out::new(id, "module")?) };
        id.set(add(&mut builder, name)?.0);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_resident(
    builder: *mut warpmail_builder,
    name: *const c_char,
    options: *const warpmail_module_options,
    module: *mut u32,
) -> i32 {
    let resident = |builder: &mut Builder, name: &str| {
        // SAFETY: as the header asks of the caller.
        let options = unsafe { module_options(&args::options(options)?)? };
        Ok(builder.resident(name, options)?)
    };
    // SAFETY: as the header asks of the caller.
    unsafe { add(builder, name, module, resident) }
}

pub(super) fn rule(rule: u32) -> Result<Rule> {
    match rule {
        abi::WM_RULE_ANY => Ok(Rule::Any),
        abi::WM_RULE_ALL => Ok(Rule::All),
        other => Err(Fault::argument(format!("rule {other}: WM_RULE_ANY or WM_RULE_ALL"))),
    }
}

/// # Safety
/// The state is as the header asks.
unsafe fn module_options(from: &warpmail_module_options) -> Result<ModuleOptions> {
    let bytes = usize::try_from(from.state_bytes).unwrap_or(usize::MAX);
    let state = if from.state.is_null() {
        args::zeroes(bytes, "the module's state")?
    } else {
        // SAFETY: the caller's word.
        args::copy(unsafe { args::bytes(from.state, bytes, "the module's state") }?, "the module's state")?
    };
    Ok(ModuleOptions {
        handler: from.handler,
        rule: rule(from.rule)?,
        batch: from.batch,
        out_records: from.out_records,
        priority: from.priority.try_into().unwrap_or(u8::MAX), // the graph refuses it by its own rule
        state,
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_host(
    builder: *mut warpmail_builder,
    name: *const c_char,
    module: *mut u32,
) -> i32 {
    // SAFETY: as the header asks of the caller.
    unsafe { add(builder, name, module, |builder, name| Ok(builder.host(name)?)) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_stream(
    builder: *mut warpmail_builder,
    name: *const c_char,
    module: *mut u32,
) -> i32 {
    // SAFETY: as the header asks of the caller.
    unsafe { add(builder, name, module, |builder, name| Ok(builder.stream(name)?)) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_mailbox(
    builder: *mut warpmail_builder,
    from: u32,
    to: u32,
    options: *const warpmail_mailbox_options,
    mailbox: *mut u32,
) -> i32 {
    enter(|| {
        let mut builder = table::hold(builder)?;
        // SAFETY: as the header asks of the caller.
        let (id, options) = unsafe { (Out::new(mailbox, "mailbox")?, mailbox_options(options)?) };
        id.set(builder.mailbox(ModuleId(from), ModuleId(to), options)?.0);
        Ok(OK)
    })
}

fn policy(tap: u32) -> Result<Tap> {
    match tap {
        abi::WM_TAP_NONE => Ok(Tap::Off),
        abi::WM_TAP_DROP => Ok(Tap::Drop),
        abi::WM_TAP_BLOCK => Ok(Tap::Block),
        other => Err(Fault::argument(format!("tap {other} is none of WM_TAP_NONE, _DROP and _BLOCK"))),
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_tap(builder: *mut warpmail_builder, mailbox: u32, tap: u32) -> i32 {
    enter(|| {
        table::hold(builder)?.tap(MailboxId(mailbox), policy(tap)?)?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_tap_type(
    builder: *mut warpmail_builder,
    mailbox: u32,
    tap: u32,
    type_: u16,
) -> i32 {
    enter(|| {
        table::hold(builder)?.tap_type(MailboxId(mailbox), policy(tap)?, type_)?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_tap_all(builder: *mut warpmail_builder, tap: u32) -> i32 {
    enter(|| {
        table::hold(builder)?.tap_all(policy(tap)?)?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_journal_blocks(builder: *mut warpmail_builder, blocks: u32) -> i32 {
    enter(|| {
        table::hold(builder)?.journal_blocks(blocks)?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_tap_tensors(builder: *mut warpmail_builder, mailbox: u32) -> i32 {
    enter(|| {
        table::hold(builder)?.tap_tensors(MailboxId(mailbox))?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_mode(builder: *mut warpmail_builder, mode: u32) -> i32 {
    enter(|| {
        let mode = match mode {
            sys::WARPMAIL_MODE_DEVICE => Mode::Device,
            sys::WARPMAIL_MODE_CPU => Mode::Cpu,
            other => return Err(Fault::argument(format!("mode {other} is none of WARPMAIL_MODE_DEVICE and _CPU"))),
        };
        table::hold(builder)?.mode(mode);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_beside(builder: *mut warpmail_builder, stream: u64) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        unsafe { table::hold(builder)?.beside(stream) };
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_static_order(builder: *mut warpmail_builder, on: u32) -> i32 {
    enter(|| {
        if on > 1 {
            return Err(Fault::argument(format!("static order {on} is neither 0 nor 1")));
        }
        table::hold(builder)?.static_order(on == 1);
        Ok(OK)
    })
}

/// # Safety
/// `from` is as the header asks.
pub(super) unsafe fn mailbox_options(from: *const warpmail_mailbox_options) -> Result<MailboxOptions> {
    if from.is_null() {
        return Ok(MailboxOptions::default());
    }
    // SAFETY: the caller's word.
    let from = unsafe { args::options(from) }?;
    if from.reserved != 0 {
        let text = "warpmail_mailbox_options: reserved is not zero: start from WARPMAIL_MAILBOX_OPTIONS_INIT";
        return Err(Fault::new(sys::WARPMAIL_BAD_STRUCT, text));
    }
    Ok(MailboxOptions { stride: from.stride, slots: from.slots })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_budget(
    builder: *mut warpmail_builder,
    budget: *const warpmail_budget,
) -> i32 {
    enter(|| {
        let mut builder = table::hold(builder)?;
        // SAFETY: as the header asks of the caller.
        let from = unsafe { args::options(budget) }?;
        let servers = match from.servers {
            // What a new builder for the same device begins with.
            sys::WARPMAIL_SERVERS_DEFAULT => Builder::new(builder.device.clone()).budget.servers,
            n => n,
        };
        builder.budget(SpinBudget {
            idle_spin: match from.idle_spin_ns {
                0 => None,
                u64::MAX => Some(SpinBudget::BREAK_EVEN), // WARPMAIL_IDLE_SPIN_BREAK_EVEN
                ns => Some(Duration::from_nanos(ns)),
            },
            sm_share: from.sm_share,
            max_wait: Duration::from_nanos(from.max_wait_ns),
            residency: Duration::from_nanos(from.residency_ns),
            adaptive: from.adaptive != 0,
            sms: if from.sms == 0 { SpinBudget::default().sms } else { from.sms }, // 0: an older struct
            servers,
        })?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_build(
    builder: *mut warpmail_builder,
    image: *mut warpmail_image,
    out: *mut *mut warpmail_runtime,
) -> i32 {
    enter(|| {
        let builder = table::hold(builder)?;
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        let image = table::share(image)?;
        // A build takes the builder it is called on, and C keeps its own. (No buffers to keep: C has no way to give any.)
        let copy = Builder {
            device: builder.device.clone(),
            budget: builder.budget.clone(),
            mode: builder.mode,
            modules: builder.modules.clone(),
            mailboxes: builder.mailboxes.clone(),
            keep: Vec::new(),
            has_pacer: builder.has_pacer,
            short_queues: builder.short_queues,
            host_doors: builder.host_doors,
            lingers: builder.lingers,
            ahead: builder.ahead,
            beside: builder.beside,
            static_order: builder.static_order,
            held: builder.held.clone(),
            journal_slots: builder.journal_slots,
            journal_threads: builder.journal_threads,
            journal_blocks: builder.journal_blocks,
            state: builder.state.clone(),
            pool: builder.pool.clone(),
        };
        let runtime = copy.build((*image).clone())?;
        out.set(table::insert(Object::Runtime(Cell::new(runtime)))?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_destroy(builder: *mut warpmail_builder) -> i32 {
    enter(|| destroy(builder))
}
