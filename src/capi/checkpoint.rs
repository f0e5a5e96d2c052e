//! Checkpoints: what belongs to a state, writing and reading them.

use std::ffi::{c_char, c_void};
use std::time::Duration;

use super::args::{self, Out, bound};
use super::border::enter;
use super::fault::{Fault, OK};
use super::sys::{warpmail_builder, warpmail_runtime};
use super::table;
use crate::abi;
use crate::checkpoint::{Checkpoint, CheckpointOptions};
use crate::error::Error;
use crate::graph::{ModuleId, StateBuffer};

fn size_of_c(bytes: u64, name: &str) -> Result<usize, Fault> {
    usize::try_from(bytes).map_err(|_| Fault::argument(format!("{name}: {bytes} bytes cannot be")))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_state_memory(
    builder: *mut warpmail_builder,
    module: u32,
    name: *const c_char,
    address: u64,
    bytes: u64,
    memory: *mut u32,
) -> i32 {
    enter(|| {
        let mut builder = table::hold(builder)?;
        // SAFETY: as the header asks of the caller.
        let (name, memory) = unsafe { (args::string(name, "the memory's name")?, Out::new(memory, "memory")?) };
        let bytes = size_of_c(bytes, "the memory")?;
        // SAFETY: as the header asks of the caller.
        memory.set(unsafe { builder.state_memory(ModuleId(module), name, address, bytes) }?.0);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_pointer(
    builder: *mut warpmail_builder,
    module: u32,
    offset: u64,
    memory: u32,
) -> i32 {
    enter(|| {
        let offset = size_of_c(offset, "the offset")?;
        table::hold(builder)?.pointer(ModuleId(module), offset, StateBuffer(memory))?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_checkpoint(
    runtime: *mut warpmail_runtime,
    directory: *const c_char,
    note: *const c_void,
    note_bytes: usize,
    bound_ns: u64,
) -> i32 {
    enter(|| {
        let runtime = table::share(runtime)?;
        // SAFETY: as the header asks of the caller.
        let (directory, note) =
            unsafe { (args::string(directory, "directory")?, args::bytes(note, note_bytes, "note")?) };
        let options = CheckpointOptions { note, journal: None };
        runtime.change(bound(bound_ns)?, |r, left| Ok(r.checkpoint_with(directory, options, left)?))?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_restore(
    runtime: *mut warpmail_runtime,
    directory: *const c_char,
    next_sequence: *mut u64,
) -> i32 {
    enter(|| {
        let runtime = table::share(runtime)?;
        // SAFETY: as the header asks of the caller.
        let directory = unsafe { args::string(directory, "directory") }?;
        // SAFETY: as the header asks of the caller.
        let out =
            (!next_sequence.is_null()).then(|| unsafe { Out::new(next_sequence, "next_sequence") }).transpose()?;
        let restored = runtime.change(Duration::ZERO, |r, _| Ok(r.restore(directory)?))?;
        if let Some(out) = out {
            out.set(restored.journal.map_or(0, |j| j.next));
        }
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_checkpoint_json(
    directory: *const c_char,
    text: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let directory = unsafe { args::string(directory, "directory") }?;
        let json = serde_json::to_string(&Checkpoint::look(directory)?)
            .map_err(|e| Fault::from(Error::Failed(e.to_string())))?;
        // SAFETY: as the header asks of the caller.
        unsafe { args::give_text(&json, text, size, needed) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_checkpoint_note(
    directory: *const c_char,
    into: *mut c_void,
    size: usize,
    needed: *mut usize,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let (directory, into) =
            unsafe { (args::string(directory, "directory")?, args::bytes_mut(into, size, "into")?) };
        let none = || Error::refused(directory, "holds no checkpoint");
        let note = Checkpoint::look(directory)?.ok_or_else(none)?.note;
        if !needed.is_null() {
            // SAFETY: as the header asks of the caller.
            unsafe { Out::new(needed, "needed") }?.set(note.len());
        }
        let Some(into) = into.get_mut(..note.len()) else {
            let text = format!("the note has {} bytes and the buffer {size}", note.len());
            return Err(Fault::new(abi::WM_TOO_SMALL, text));
        };
        into.copy_from_slice(&note);
        Ok(OK)
    })
}
