//! The life of a runtime: quiesce, states, stops that are bounded, calls that wait for their turn.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use warpmail::Device;
use warpmail::abi::{
    WM_ABI_VERSION, WM_BAD_ARGUMENT, WM_TAP_BLOCK, WM_TAP_DROP, WM_TAP_NONE, WM_TIMEOUT, wm_arbiter_args, wm_durable,
};
use warpmail_testkit::{self as kit, ring_record};

use crate::graph::{Loop, module_options};
use crate::sys::*;
use crate::{BOUND, MS, Outcome, Shared, expect, handle, is, made, name, ok};

unsafe extern "C" {
    fn kit_twin(args: *const wm_arbiter_args) -> i32;
}

/// The test handlers, for the twin: their fatbin is Rust's own.
fn with_twin(entry: unsafe extern "C" fn(*const wm_arbiter_args) -> i32, handler: u32) -> Result<Loop, String> {
    let options = warpmail_image_options {
        struct_size: size_of::<warpmail_image_options>() as u32,
        abi_version: WM_ABI_VERSION,
        name: c"kit".as_ptr(),
        twin: Some(entry),
        ..Default::default()
    };
    let image = handle(|out| unsafe { warpmail_image_new(&options, out) })?;
    let state: [u64; 8] = [30_000_000_000, 0, 0, 0, 0, 0, 0, 0];
    let module = warpmail_module_options { state: state.as_ptr().cast(), state_bytes: 64, ..module_options(handler) };
    Loop::new(&Device::twin(), 8, &module, image, None)
}

/// What a quiesce's callback found.
struct Seen {
    calls: Vec<(&'static str, i32, i32)>,
    state: [u64; 8],
    answer: i32,
}

unsafe extern "C" fn quiet(runtime: *mut warpmail_runtime, user: *mut c_void) -> i32 {
    let seen = unsafe { &mut *user.cast::<Seen>() };
    let mut state = 9;
    let asked = unsafe { warpmail_runtime_state(runtime, &mut state) };
    seen.calls.push(("state", asked, 0));
    seen.calls.push(("is quiet", state as i32, WARPMAIL_STATE_QUIET as i32));
    let into = (&raw mut seen.state).cast();
    seen.calls.push(("read", unsafe { warpmail_runtime_read_state(runtime, 1, into, 64) }, 0));
    let word = 42u64;
    seen.calls.push(("write", unsafe { warpmail_runtime_write_state(runtime, 1, (&raw const word).cast(), 8) }, 0));
    let mut stats = warpmail_stats { struct_size: 8, ..Default::default() };
    seen.calls.push(("stats", unsafe { warpmail_runtime_stats(runtime, &mut stats) }, 0));
    let bad = WARPMAIL_BAD_STATE;
    seen.calls.push(("stop", unsafe { warpmail_runtime_stop(runtime, BOUND) }, bad));
    seen.calls.push(("drain", unsafe { warpmail_runtime_drain(runtime, BOUND) }, bad));
    seen.calls.push(("again", unsafe { warpmail_runtime_quiesce(runtime, BOUND, Some(quiet), user) }, bad));
    seen.calls.push(("sender", unsafe { warpmail_runtime_sender(runtime, 0, &mut null_mut()) }, bad));
    seen.calls.push(("destroy", unsafe { warpmail_runtime_destroy(runtime) }, bad));
    seen.answer
}

pub(crate) fn quiesce_lends_the_runtime(on: &Device) -> Outcome {
    let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
    let state: [u64; 8] = std::array::from_fn(|i| i as u64);
    let options = warpmail_module_options { state: state.as_ptr().cast(), state_bytes: 64, ..module_options(0) };
    let l = Loop::new(on, 8, &options, image, None)?;
    let mut seen = Seen { calls: Vec::new(), state: [0; 8], answer: 0 };
    let user: *mut c_void = (&raw mut seen).cast();
    let early = unsafe { warpmail_runtime_quiesce(l.runtime, BOUND, Some(quiet), user) };
    is(early, WARPMAIL_BAD_STATE, &["not running"])?;
    is(unsafe { warpmail_runtime_quiesce(l.runtime, BOUND, None, user) }, WM_BAD_ARGUMENT, &["quiet is null"])?;
    ok(unsafe { warpmail_runtime_start(l.runtime) })?;
    l.echo(0)?;
    ok(unsafe { warpmail_runtime_quiesce(l.runtime, BOUND, Some(quiet), user) })?;
    expect(seen.state == state, || format!("{:?}", seen.state))?;
    // The answer of the callback is the quiesce's; the arbiter runs again either way.
    seen.answer = -1234;
    let answer = unsafe { warpmail_runtime_quiesce(l.runtime, BOUND, Some(quiet), user) };
    expect(answer == -1234 && seen.state[0] == 42, || format!("{answer} {:?}", seen.state))?;
    for (call, status, wanted) in &seen.calls {
        expect(status == wanted, || format!("{call}: {} instead of {}", name(*status), name(*wanted)))?;
    }
    l.echo(1)?;
    let running = made(9, |s| unsafe { warpmail_runtime_state(l.runtime, s) })?;
    expect(running == WARPMAIL_STATE_RUNNING, || format!("state {running}"))?;
    l.destroy()
}

pub(crate) fn an_idle_arbiter_parks(on: &Device) -> Outcome {
    let budget = warpmail_budget {
        struct_size: size_of::<warpmail_budget>() as u32,
        servers: WARPMAIL_SERVERS_DEFAULT,
        residency_ns: 2 * MS,
        idle_spin_ns: 50_000,
        max_wait_ns: 20 * MS,
        sm_share: 0.5,
        adaptive: 1,
        sms: 0,
    };
    let l = Loop::with_budget(on, 8, Some(&budget))?;
    ok(unsafe { warpmail_runtime_start(l.runtime) })?;
    for n in 0..20 {
        l.echo(n)?;
        std::thread::sleep(Duration::from_millis(2));
    }
    ok(unsafe { warpmail_runtime_stop(l.runtime, BOUND) })?;
    let mut stats = warpmail_stats { struct_size: size_of::<warpmail_stats>() as u32, ..Default::default() };
    ok(unsafe { warpmail_runtime_stats(l.runtime, &mut stats) })?;
    // One that was kept from its core has spent its share, and leaves for that reason.
    expect(stats.parks + stats.closings > 0 && stats.parked_ns > 0, || format!("{stats:?}"))?;
    l.destroy()
}

pub(crate) fn states_only_at_rest(on: &Device) -> Outcome {
    let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
    let l = Loop::new(on, 8, &warpmail_module_options { state_bytes: 16, ..module_options(0) }, image, None)?;
    let mut state = [7u64; 2];
    let into = state.as_mut_ptr().cast();
    ok(unsafe { warpmail_runtime_read_state(l.runtime, 1, into, 16) })?;
    expect(state == [0; 2], || format!("{state:?}"))?;
    is(unsafe { warpmail_runtime_read_state(l.runtime, 1, into, 17) }, WARPMAIL_REFUSED, &["16 bytes"])?;
    is(unsafe { warpmail_runtime_read_state(l.runtime, 5, into, 1) }, WARPMAIL_REFUSED, &["module id 5"])?;
    is(unsafe { warpmail_runtime_write_state(l.runtime, 1, null_mut(), 16) }, WM_BAD_ARGUMENT, &["from"])?;
    ok(unsafe { warpmail_runtime_start(l.runtime) })?;
    let running = unsafe { warpmail_runtime_read_state(l.runtime, 1, into, 16) };
    is(running, WARPMAIL_BAD_STATE, &["use quiesce"])?;
    ok(unsafe { warpmail_runtime_stop(l.runtime, BOUND) })?;
    ok(unsafe { warpmail_runtime_write_state(l.runtime, 1, into, 16) })?;
    l.destroy()
}

pub(crate) fn stop_is_bounded_and_names_the_stuck(_: &Device) -> Outcome {
    let l = with_twin(kit_twin, kit::STUCK)?;
    ok(unsafe { warpmail_runtime_start(l.runtime) })?;
    ok(unsafe { warpmail_sender_push(l.sender, 1, b"go".as_ptr().cast(), 2, BOUND) })?;
    let begin = Instant::now();
    let mut stats = warpmail_stats { struct_size: size_of::<warpmail_stats>() as u32, ..Default::default() };
    while stats.serving == 0 {
        ok(unsafe { warpmail_runtime_stats(l.runtime, &mut stats) })?;
        expect(begin.elapsed() < Duration::from_secs(60), || format!("{stats:?}"))?;
    }
    let begin = Instant::now();
    is(unsafe { warpmail_runtime_stop(l.runtime, 200 * MS) }, WARPMAIL_STUCK, &["module module", "200ms"])?;
    expect(begin.elapsed() < Duration::from_secs(20), || format!("stop took {:?}", begin.elapsed()))?;
    // Whoever waits for it is not kept longer than the bound; the ends and the handle end in order.
    let (mut buffer, mut record) = ([0u8; 8], warpmail_record::default());
    let popped = unsafe { warpmail_receiver_pop(l.receiver, buffer.as_mut_ptr().cast(), 8, &mut record, 20 * MS) };
    expect(popped == WM_TIMEOUT as i32, || name(popped))?;
    l.destroy()
}

unsafe extern "C" fn refuses(_: *const wm_arbiter_args) -> i32 {
    -3
}

pub(crate) fn a_failed_launch_is_told(_: &Device) -> Outcome {
    let l = with_twin(refuses, 0)?;
    ok(unsafe { warpmail_runtime_start(l.runtime) })?;
    let (mut buffer, mut record) = ([0u8; 8], warpmail_record::default());
    let popped = unsafe { warpmail_receiver_pop(l.receiver, buffer.as_mut_ptr().cast(), 8, &mut record, BOUND) };
    is(popped, WARPMAIL_FAILED, &["failed", "-3"])?;
    let state = made(9, |s| unsafe { warpmail_runtime_state(l.runtime, s) })?;
    expect(state == WARPMAIL_STATE_FAILED, || format!("state {state}"))?;
    let mut text = [0u8; 1024];
    let mut needed = 0;
    ok(unsafe { warpmail_runtime_failure(l.runtime, text.as_mut_ptr().cast(), 1024, &mut needed) })?;
    expect(needed > 10, || format!("{needed} bytes"))?;
    is(unsafe { warpmail_runtime_drain(l.runtime, BOUND) }, WARPMAIL_FAILED, &["failed"])?;
    let _ = unsafe { warpmail_runtime_stop(l.runtime, BOUND) };
    ok(unsafe { warpmail_runtime_destroy(l.runtime) })
}

pub(crate) fn calls_wait_for_their_turn(on: &Device) -> Outcome {
    // Nobody serves before the start: a drain waits until its bound, and holds the turn.
    let l = Loop::relay(on, 8)?;
    ok(unsafe { warpmail_sender_push(l.sender, 1, b"stays".as_ptr().cast(), 5, BOUND) })?;
    let runtime = Shared(l.runtime);
    let draining = std::thread::spawn(move || {
        let runtime = runtime;
        unsafe { warpmail_runtime_drain(runtime.0, 3000 * MS) }
    });
    let begin = Instant::now();
    let mut word = 0u64;
    let mut busy = || unsafe { warpmail_runtime_read_state(runtime.0, 1, (&raw mut word).cast(), 0) } == WARPMAIL_BUSY;
    while !busy() {
        expect(begin.elapsed() < Duration::from_secs(2), || "never busy".into())?;
    }
    let inside = ["another thread is inside"];
    is(unsafe { warpmail_runtime_start(l.runtime) }, WARPMAIL_BUSY, &inside)?;
    is(unsafe { warpmail_runtime_destroy(l.runtime) }, WARPMAIL_BUSY, &inside)?;
    is(unsafe { warpmail_runtime_stop(l.runtime, 10 * MS) }, WARPMAIL_BUSY, &inside)?;
    let mut stats = warpmail_stats { struct_size: 8, ..Default::default() };
    ok(unsafe { warpmail_runtime_stats(l.runtime, &mut stats) })?;
    ok(unsafe { warpmail_runtime_stop(l.runtime, BOUND) })?;
    let drained = draining.join().map_err(|_| "panicked".to_string())?;
    expect(drained == WM_TIMEOUT as i32, || name(drained))?;
    l.destroy()
}

pub(crate) fn ends_outlive_the_runtime(on: &Device) -> Outcome {
    let l = Loop::relay(on, 4)?;
    ok(unsafe { warpmail_runtime_start(l.runtime) })?;
    l.echo(1)?;
    ok(unsafe { warpmail_runtime_destroy(l.runtime) })?;
    is(
        unsafe { warpmail_runtime_destroy(l.runtime) },
        WARPMAIL_STALE_HANDLE,
        &["warpmail_runtime has been destroyed"],
    )?;
    for _ in 0..4 {
        ok(unsafe { warpmail_sender_try_push(l.sender, 0, b"x".as_ptr().cast(), 1) })?;
    }
    let full = unsafe { warpmail_sender_push(l.sender, 0, b"x".as_ptr().cast(), 1, MS) };
    is(full, WM_TIMEOUT as i32, &["a free slot", "host->module"])?;
    ok(unsafe { warpmail_sender_destroy(l.sender) })?;
    ok(unsafe { warpmail_receiver_destroy(l.receiver) })
}

pub(crate) fn a_journal_keeps_what_passes(on: &Device) -> Outcome {
    const RECORDS: u64 = 300;
    let folder = std::env::temp_dir().join(format!("warpmail-capi-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let path = CString::new(folder.display().to_string()).map_err(|e| e.to_string())?;
    let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
    let d = crate::device(on)?;
    let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
    let host = made(0, |id| unsafe { warpmail_builder_host(b, c"host".as_ptr(), id) })?;
    let options = module_options(WARPMAIL_HANDLER_RELAY);
    let relay = made(0, |id| unsafe { warpmail_builder_resident(b, c"relay".as_ptr(), &options, id) })?;
    let there = made(0, |id| unsafe { warpmail_builder_mailbox(b, host, relay, std::ptr::null(), id) })?;
    let back = made(0, |id| unsafe { warpmail_builder_mailbox(b, relay, host, std::ptr::null(), id) })?;
    is(unsafe { warpmail_builder_tap(b, 9, WM_TAP_BLOCK) }, WARPMAIL_REFUSED, &["no such mailbox"])?;
    is(unsafe { warpmail_builder_tap(b, there, 7) }, WM_BAD_ARGUMENT, &["tap 7"])?;
    is(unsafe { warpmail_builder_tap_type(b, 9, WM_TAP_BLOCK, 5) }, WARPMAIL_REFUSED, &["no such mailbox"])?;
    is(unsafe { warpmail_builder_tap_type(b, there, 7, 5) }, WM_BAD_ARGUMENT, &["tap 7"])?;
    is(unsafe { warpmail_builder_tap_type(null_mut(), there, WM_TAP_DROP, 5) }, WARPMAIL_BAD_HANDLE, &["builder"])?;
    is(unsafe { warpmail_builder_tap_all(b, 7) }, WM_BAD_ARGUMENT, &["tap 7"])?;
    is(unsafe { warpmail_builder_tap_all(null_mut(), WM_TAP_DROP) }, WARPMAIL_BAD_HANDLE, &["builder"])?;
    ok(unsafe { warpmail_builder_tap_all(b, WM_TAP_DROP) })?;
    ok(unsafe { warpmail_builder_tap_type(b, there, WM_TAP_DROP, 5) })?;
    ok(unsafe { warpmail_builder_tap_all(b, WM_TAP_NONE) })?;
    ok(unsafe { warpmail_builder_tap(b, there, WM_TAP_BLOCK) })?;
    is(unsafe { warpmail_builder_journal_blocks(b, 4) }, WARPMAIL_REFUSED, &["4 blocks", "at most 3"])?;
    is(unsafe { warpmail_builder_journal_blocks(null_mut(), 1) }, WARPMAIL_BAD_HANDLE, &["builder"])?;
    ok(unsafe { warpmail_builder_journal_blocks(b, 2) })?;
    let runtime = handle(|out| unsafe { warpmail_builder_build(b, image, out) })?;
    is(unsafe { warpmail_runtime_start(runtime) }, WARPMAIL_BAD_STATE, &["journal must be set"])?;
    is(
        unsafe { warpmail_runtime_journal_json(runtime, null_mut(), 0, null_mut()) },
        WARPMAIL_BAD_STATE,
        &["no journal"],
    )?;
    is(unsafe { warpmail_runtime_journal(runtime, std::ptr::null(), 0) }, WM_BAD_ARGUMENT, &["directory"])?;
    is(
        unsafe { warpmail_runtime_journal(runtime, c"/proc/nowhere".as_ptr(), 0) },
        WARPMAIL_JOURNAL,
        &["/proc/nowhere"],
    )?;
    ok(unsafe { warpmail_runtime_journal(runtime, path.as_ptr(), MS) })?;
    let sender = handle(|out| unsafe { warpmail_runtime_sender(runtime, there, out) })?;
    let receiver = handle(|out| unsafe { warpmail_runtime_receiver(runtime, back, out) })?;
    ok(unsafe { warpmail_runtime_start(runtime) })?;
    let ends = Loop { runtime, sender, receiver };
    (0..RECORDS).try_for_each(|n| ends.echo(n))?;
    ok(unsafe { warpmail_runtime_stop(runtime, BOUND) })?;
    let mut word = wm_durable::default();
    ok(unsafe { warpmail_durable(runtime, there, &mut word) })?;
    expect(word.word != 0 && word.mailbox_id == there, || format!("{word:?}"))?;
    is(unsafe { warpmail_durable(runtime, back, &mut word) }, WARPMAIL_REFUSED, &["do not all go to the journal"])?;
    is(unsafe { warpmail_durable(runtime, there, null_mut()) }, WM_BAD_ARGUMENT, &["out"])?;
    let mut text = [0u8; 1024];
    ok(unsafe { warpmail_runtime_journal_json(runtime, text.as_mut_ptr().cast(), text.len(), null_mut()) })?;
    let text = String::from_utf8_lossy(&text).into_owned();
    expect(text.contains(&format!("\"durable\":{RECORDS}")), || text.clone())?;
    ends.destroy()?;
    ok(unsafe { warpmail_builder_destroy(b) })?;
    ok(unsafe { warpmail_image_destroy(image) })?;
    ok(unsafe { warpmail_device_destroy(d) })?;
    let kept = warpmail::journal::Reader::open(&folder, 1).map_err(|e| e.to_string())?;
    let mut n = 0;
    for record in kept {
        let record = record.map_err(|e| e.to_string())?;
        expect(record.payload == ring_record(n, 0, 248), || format!("record {n} is another in the log"))?;
        n += 1;
    }
    let _ = std::fs::remove_dir_all(&folder);
    expect(n == RECORDS, || format!("{n} records in the log"))
}
