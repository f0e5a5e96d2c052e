//! Running a module graph.

use std::ffi::{c_char, c_void};
use std::time::Duration;

use super::args::{self, Out, bound};
use super::border::enter;
use super::fault::{Fault, OK};
use super::handle::Object;
use super::sys::{self, warpmail_quiet_fn, warpmail_receiver, warpmail_runtime, warpmail_sender};
use super::table;
use crate::abi::{wm_durable, wm_mailbox};
use crate::graph::{MailboxId, ModuleId};
use crate::journal::{Log, LogOptions, SyncPolicy};
use crate::options::Mode;
use crate::runtime::Runtime;

/// How long a destroy waits for the arbiter, as the header says.
const DESTROY_BOUND: Duration = Duration::from_secs(2);

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_journal(
    runtime: *mut warpmail_runtime,
    directory: *const c_char,
    sync_every_ns: u64,
) -> i32 {
    enter(|| {
        let runtime = table::share(runtime)?;
        // SAFETY: as the header asks of the caller.
        let directory = unsafe { args::string(directory, "directory") }?;
        let sync = match sync_every_ns {
            0 => SyncPolicy::EveryBatch,
            ns => SyncPolicy::Every(Duration::from_nanos(ns)),
        };
        let journal = |r: &mut Runtime, _| {
            let (log, _) = Log::open(directory, LogOptions { sync, ..LogOptions::default() })?;
            Ok(r.journal(log)?)
        };
        runtime.change(Duration::ZERO, journal).map(|()| OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_start(runtime: *mut warpmail_runtime) -> i32 {
    enter(|| table::share(runtime)?.change(Duration::ZERO, |r, _| Ok(r.start()?)).map(|()| OK))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_stop(runtime: *mut warpmail_runtime, bound_ns: u64) -> i32 {
    enter(|| table::share(runtime)?.change(bound(bound_ns)?, |r, left| Ok(r.stop(left)?)).map(|()| OK))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_drain(runtime: *mut warpmail_runtime, bound_ns: u64) -> i32 {
    enter(|| table::share(runtime)?.change(bound(bound_ns)?, |r, left| Ok(r.drain(left)?)).map(|()| OK))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_quiesce(
    runtime: *mut warpmail_runtime,
    bound_ns: u64,
    quiet: warpmail_quiet_fn,
    user: *mut c_void,
) -> i32 {
    enter(|| {
        let quiet = quiet.ok_or_else(|| Fault::argument("quiet is null: a quiesce needs what to do meanwhile"))?;
        let cell = table::share(runtime)?;
        cell.change(bound(bound_ns)?, |r, left| {
            // SAFETY: the caller's function with the caller's argument; the header says that it returns.
            let closure = |r: &_| cell.while_quiet(r, || unsafe { quiet(runtime, user) });
            Ok(r.quiesce(left, closure)?)
        })
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_mode(runtime: *mut warpmail_runtime, mode: *mut u32) -> i32 {
    enter(|| {
        let cell = table::share(runtime)?;
        let value = match cell.memory.mode() {
            Mode::Device => sys::WARPMAIL_MODE_DEVICE,
            Mode::Cpu => sys::WARPMAIL_MODE_CPU,
        };
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(mode, "mode") }?.set(value);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_state(runtime: *mut warpmail_runtime, state: *mut u32) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(state, "state") }?.set(table::share(runtime)?.state());
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_failure(
    runtime: *mut warpmail_runtime,
    text: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    enter(|| {
        let cell = table::share(runtime)?;
        // SAFETY: as the header asks of the caller.
        unsafe { args::give_text(cell.memory.failure().unwrap_or_default(), text, size, needed) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_handle(
    runtime: *mut warpmail_runtime,
    mailbox: u32,
    out: *mut wm_mailbox,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        out.set(table::share(runtime)?.memory.handle(MailboxId(mailbox))?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_durable(
    runtime: *mut warpmail_runtime,
    mailbox: u32,
    out: *mut wm_durable,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        out.set(table::share(runtime)?.memory.durable_handle(MailboxId(mailbox))?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_read_state(
    runtime: *mut warpmail_runtime,
    module: u32,
    into: *mut c_void,
    bytes: usize,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let into = unsafe { args::bytes_mut(into, bytes, "into") }?;
        table::share(runtime)?.look(|r| Ok(r.read_state(ModuleId(module), into)?)).map(|()| OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_write_state(
    runtime: *mut warpmail_runtime,
    module: u32,
    from: *const c_void,
    bytes: usize,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let from = unsafe { args::bytes(from, bytes, "from") }?;
        table::share(runtime)?.look(|r| Ok(r.write_state(ModuleId(module), from)?)).map(|()| OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_sender(
    runtime: *mut warpmail_runtime,
    mailbox: u32,
    out: *mut *mut warpmail_sender,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        let sender = table::share(runtime)?.change(Duration::ZERO, |r, _| Ok(r.sender(MailboxId(mailbox))?))?;
        out.set(table::insert(Object::Sender(Box::new(sender)))?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_receiver(
    runtime: *mut warpmail_runtime,
    mailbox: u32,
    out: *mut *mut warpmail_receiver,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        let receiver = table::share(runtime)?.change(Duration::ZERO, |r, _| Ok(r.receiver(MailboxId(mailbox))?))?;
        out.set(table::insert(Object::Receiver(Box::new(receiver)))?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_destroy(runtime: *mut warpmail_runtime) -> i32 {
    enter(|| {
        // With the runtime in hand nobody else is inside it, and nobody finds the handle any more.
        let mut ending = table::share(runtime)?.take(|| table::remove(runtime).map(drop))?;
        ending.stop(DESTROY_BOUND)?;
        Ok(OK)
    })
}
