//! Checkpoints through the C API: memory of the caller's, notes, and what is refused.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::ptr::{null, null_mut};

use warpmail::abi::{WM_BAD_ARGUMENT, WM_TAP_BLOCK, WM_TIMEOUT, WM_TOO_SMALL};
use warpmail::{Device, DeviceBuffer};

use crate::graph::{Loop, module_options};
use crate::sys::*;
use crate::{BOUND, MS, Outcome, device, expect, handle, is, made, ok};

/// A directory of the scenario's own, removed in the end.
struct Folder(PathBuf, CString);

impl Folder {
    fn new(name: &str) -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("warpmail-capi-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let text = CString::new(path.display().to_string()).map_err(|e| e.to_string())?;
        Ok(Folder(path, text))
    }

    fn path(&self) -> *const c_char {
        self.1.as_ptr()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// host -> relay -> host, the first mailbox tapped, with a state that points into memory of the caller's. Not started.
fn graph(on: &Device, memory: &DeviceBuffer, name: &CStr) -> Result<Loop, String> {
    let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
    let d = device(on)?;
    let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
    let host = made(0, |id| unsafe { warpmail_builder_host(b, c"host".as_ptr(), id) })?;
    let state = [7u64, memory.address() + 16];
    let state = (state.as_ptr().cast(), 16);
    let options = warpmail_module_options { state: state.0, state_bytes: state.1, ..module_options(0) };
    let relay = made(0, |id| unsafe { warpmail_builder_resident(b, name.as_ptr(), &options, id) })?;
    let there = made(0, |id| unsafe { warpmail_builder_mailbox(b, host, relay, null(), id) })?;
    let back = made(0, |id| unsafe { warpmail_builder_mailbox(b, relay, host, null(), id) })?;
    ok(unsafe { warpmail_builder_tap(b, there, WM_TAP_BLOCK) })?;
    let add = |module, name: &CStr, address, bytes, id: &mut u32| unsafe {
        warpmail_builder_state_memory(b, module, name.as_ptr(), address, bytes, id)
    };
    let (mut id, bytes) = (99, memory.len() as u64);
    is(add(9, c"m", memory.address(), bytes, &mut id), WARPMAIL_REFUSED, &["module id 9"])?;
    is(add(relay, c"m", 0, bytes, &mut id), WARPMAIL_REFUSED, &["cannot be"])?;
    is(add(relay, c"m", u64::MAX, bytes, &mut id), WARPMAIL_REFUSED, &["cannot be"])?;
    ok(add(relay, c"m", memory.address(), bytes, &mut id))?;
    is(unsafe { warpmail_builder_pointer(b, relay, 9, id) }, WARPMAIL_REFUSED, &["outside its 16 bytes"])?;
    is(unsafe { warpmail_builder_pointer(b, relay, u64::MAX, id) }, WARPMAIL_REFUSED, &["outside"])?;
    is(unsafe { warpmail_builder_pointer(b, relay, 8, id + 1) }, WARPMAIL_REFUSED, &["no such buffer"])?;
    ok(unsafe { warpmail_builder_pointer(b, relay, 8, id) })?;
    let runtime = handle(|out| unsafe { warpmail_builder_build(b, image, out) })?;
    ok(unsafe { warpmail_builder_destroy(b) })?;
    ok(unsafe { warpmail_image_destroy(image) })?;
    ok(unsafe { warpmail_device_destroy(d) })?;
    let sender = handle(|out| unsafe { warpmail_runtime_sender(runtime, there, out) })?;
    let receiver = handle(|out| unsafe { warpmail_runtime_receiver(runtime, back, out) })?;
    Ok(Loop { runtime, sender, receiver })
}

fn state_of(l: &Loop) -> Result<[u64; 2], String> {
    let mut state = [0u64; 2];
    ok(unsafe { warpmail_runtime_read_state(l.runtime, 1, state.as_mut_ptr().cast(), 16) })?;
    Ok(state)
}

pub(crate) fn brings_states_back(on: &Device) -> Outcome {
    let folder = Folder::new("back")?;
    let text = |e: warpmail::Error| e.to_string();
    let memory = on.alloc(10_000).map_err(text)?;
    memory.upload(5000, b"what it knows").map_err(text)?;
    let l = graph(on, &memory, c"relay")?;
    ok(unsafe { warpmail_runtime_journal(l.runtime, folder.path(), MS) })?;
    let checkpoint = |l: &Loop| unsafe {
        warpmail_runtime_checkpoint(l.runtime, folder.path(), c"a note".as_ptr().cast(), 6, BOUND)
    };
    is(checkpoint(&l), WARPMAIL_BAD_STATE, &["neither running nor stopped"])?;
    let mut text_of = [0u8; 2048];
    let mut json = |needed: &mut usize| {
        let status =
            unsafe { warpmail_checkpoint_json(folder.path(), text_of.as_mut_ptr().cast(), text_of.len(), needed) };
        (status, String::from_utf8_lossy(&text_of[..needed.saturating_sub(1).min(2048)]).into_owned())
    };
    let mut needed = 0;
    expect(json(&mut needed) == (0, "null".into()), || "a checkpoint before the first".into())?;
    ok(unsafe { warpmail_runtime_start(l.runtime) })?;
    (0..30).try_for_each(|n| l.echo(n))?;
    ok(checkpoint(&l))?;
    (30..40).try_for_each(|n| l.echo(n))?;
    // What has changed since is not in it.
    ok(unsafe { warpmail_runtime_stop(l.runtime, BOUND) })?;
    memory.upload(5000, b"something else").map_err(text)?;
    let (status, told) = json(&mut needed);
    ok(status)?;
    let value: serde_json::Value = serde_json::from_str(&told).map_err(|e| e.to_string())?;
    expect(value["journal"]["next"] == 31 && value["parts"][1]["buffer"] == "m", || told.clone())?;

    let elsewhere = on.alloc(10_000).map_err(text)?;
    elsewhere.upload(0, &[9; 10_000]).map_err(text)?;
    let other = graph(on, &elsewhere, c"relay")?;
    let next = made(0, |next| unsafe { warpmail_runtime_restore(other.runtime, folder.path(), next) })?;
    expect(next == 31, || format!("{next} is the next record"))?;
    let state = state_of(&other)?;
    expect(state == [7, elsewhere.address() + 16], || format!("{state:x?}, {:#x}", elsewhere.address()))?;
    let mut bytes = [1; 10_000];
    elsewhere.download(0, &mut bytes).map_err(text)?;
    let zeros = bytes.iter().filter(|b| **b == 0).count();
    expect(&bytes[5000..5013] == b"what it knows" && zeros == 10_000 - 13, || format!("{zeros} zeros"))?;
    ok(unsafe { warpmail_runtime_restore(other.runtime, folder.path(), null_mut()) })?;

    let mut note = [0u8; 6];
    let read = |into: *mut u8, size, needed: *mut usize| unsafe {
        warpmail_checkpoint_note(folder.path(), into.cast(), size, needed)
    };
    is(read(note.as_mut_ptr(), 5, &mut needed), WM_TOO_SMALL, &["6 bytes", "buffer 5"])?;
    expect(needed == 6, || format!("{needed}"))?;
    ok(read(note.as_mut_ptr(), 6, null_mut()))?;
    expect(&note == b"a note", || format!("{note:?}"))?;
    other.destroy()?;
    // After the stop, with the journal's end.
    ok(checkpoint(&l))?;
    let (_, told) = json(&mut needed);
    expect(told.contains("\"next\":41"), || told.clone())?;
    l.destroy()
}

pub(crate) fn refuse_what_cannot_be(on: &Device) -> Outcome {
    let folder = Folder::new("refuse")?;
    let memory = on.alloc(4096).map_err(|e| e.to_string())?;
    let l = graph(on, &memory, c"relay")?;
    let restore = |l: &Loop, path| unsafe { warpmail_runtime_restore(l.runtime, path, null_mut()) };
    is(restore(&l, folder.path()), WARPMAIL_REFUSED, &["holds no checkpoint"])?;
    is(restore(&l, null()), WM_BAD_ARGUMENT, &["directory"])?;
    let save = |path, note, len, bound| unsafe { warpmail_runtime_checkpoint(l.runtime, path, note, len, bound) };
    is(save(null(), null(), 0, BOUND), WM_BAD_ARGUMENT, &["directory"])?;
    is(save(folder.path(), null(), 5, BOUND), WM_BAD_ARGUMENT, &["note"])?;
    is(save(folder.path(), null(), 0, u64::MAX), WM_BAD_ARGUMENT, &["bound"])?;
    is(unsafe { warpmail_checkpoint_json(null(), null_mut(), 0, null_mut()) }, WM_BAD_ARGUMENT, &["directory"])?;
    let mut needed = 77;
    let none = unsafe { warpmail_checkpoint_note(folder.path(), null_mut(), 0, &mut needed) };
    is(none, WARPMAIL_REFUSED, &["holds no checkpoint"])?;
    expect(needed == 77, || format!("{needed}"))?;

    ok(unsafe { warpmail_runtime_journal(l.runtime, folder.path(), 0) })?;
    ok(unsafe { warpmail_runtime_start(l.runtime) })?;
    // Nothing can be waited for in no time, as long as records stand where nobody takes them.
    let push = || unsafe { warpmail_sender_push(l.sender, 1, b"one".as_ptr().cast(), 3, 200 * MS) };
    let pushed = (0u32..).find_map(|n| Some((n, push())).filter(|(_, status)| *status != 0)).unwrap_or_default();
    is(pushed.1, WM_TIMEOUT as i32, &["a free slot"])?;
    is(save(folder.path(), null(), 0, 0), WM_TIMEOUT as i32, &["a moment without records"])?;
    let (mut buffer, mut record) = ([0u8; 8], warpmail_record::default());
    for _ in 0..pushed.0 {
        ok(unsafe { warpmail_receiver_pop(l.receiver, buffer.as_mut_ptr().cast(), 8, &mut record, BOUND) })?;
    }
    ok(save(folder.path(), null(), 0, BOUND))?;
    is(restore(&l, folder.path()), WARPMAIL_BAD_STATE, &["between the build and the start"])?;
    ok(unsafe { warpmail_checkpoint_note(folder.path(), null_mut(), 0, &mut needed) })?;
    expect(needed == 0, || format!("a note of {needed} bytes"))?;
    is(save(c"/proc/nowhere".as_ptr(), null(), 0, BOUND), WARPMAIL_JOURNAL, &["/proc/nowhere"])?;

    let other = graph(on, &memory, c"another")?;
    is(restore(&other, folder.path()), WARPMAIL_REFUSED, &["another graph", "host->another"])?;
    let file = folder.0.join("checkpoint.wmstate");
    let mut bytes = std::fs::read(&file).map_err(|e| e.to_string())?;
    bytes[4200] ^= 8;
    std::fs::write(&file, bytes).map_err(|e| e.to_string())?;
    let same = graph(on, &memory, c"relay")?;
    is(restore(&same, folder.path()), WARPMAIL_JOURNAL, &["checkpoint.wmstate", "does not match its checksum"])?;
    expect(state_of(&same)?[0] == 7, || "the state was changed".into())?;
    // The one that runs has gone on meanwhile.
    (0..3).try_for_each(|n| l.echo(n))?;
    other.destroy()?;
    same.destroy()?;
    l.destroy()
}
