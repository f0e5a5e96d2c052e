//! Stream modules through the C API.

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use warpmail::Device;
use warpmail::abi::{WM_BAD_ARGUMENT, WM_RULE_ALL, WM_STEP_HEAD_BYTES, WM_STEP_NOTHING, WM_TIMEOUT, wm_step_head};
use warpmail_testkit::ring_record;

use crate::sys::*;
use crate::{BOUND, MS, Outcome, device, expect, handle, is, made, ok};

const OPTIONS: warpmail_step_options = warpmail_step_options {
    struct_size: size_of::<warpmail_step_options>() as u32,
    rule: WM_RULE_ALL,
    priority: 0,
    ahead: 4,
    spin_ns: 20_000,
    stream: 0,
    outputs: null(),
    n_outputs: 0,
};

/// host -> steps -> host; nothing is started, and there is no body yet.
struct Graph {
    runtime: *mut warpmail_runtime,
    sender: *mut warpmail_sender,
    receiver: *mut warpmail_receiver,
    module: u32,
}

impl Graph {
    fn new(on: &Device, options: *const warpmail_step_options) -> Result<Self, String> {
        let d = device(on)?;
        let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
        let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
        let host = made(0, |id| unsafe { warpmail_builder_host(b, c"host".as_ptr(), id) })?;
        let module = made(0, |id| unsafe { warpmail_builder_steps(b, c"steps".as_ptr(), options, id) })?;
        let there = made(0, |id| unsafe { warpmail_builder_mailbox(b, host, module, null(), id) })?;
        let back = made(0, |id| unsafe { warpmail_builder_mailbox(b, module, host, null(), id) })?;
        let runtime = handle(|out| unsafe { warpmail_builder_build(b, image, out) })?;
        let sender = handle(|out| unsafe { warpmail_runtime_sender(runtime, there, out) })?;
        let receiver = handle(|out| unsafe { warpmail_runtime_receiver(runtime, back, out) })?;
        ok(unsafe { warpmail_builder_destroy(b) })?;
        ok(unsafe { warpmail_image_destroy(image) })?;
        ok(unsafe { warpmail_device_destroy(d) })?;
        Ok(Graph { runtime, sender, receiver, module })
    }

    fn body(&self, kind: u32, body: warpmail_body_fn, user: *mut c_void) -> i32 {
        unsafe { warpmail_runtime_body(self.runtime, self.module, kind, body, user) }
    }

    fn echo(&self, n: u64) -> Outcome {
        let record = ring_record(n, 0, 248);
        ok(unsafe { warpmail_sender_push(self.sender, n as u16, record.as_ptr().cast(), record.len(), BOUND) })?;
        let (mut buffer, mut got) = ([0u8; 248], warpmail_record::default());
        ok(unsafe { warpmail_receiver_pop(self.receiver, buffer.as_mut_ptr().cast(), 248, &mut got, BOUND) })?;
        let same = buffer[..got.len as usize] == record && got.msg_type == n as u16;
        expect(same, || format!("record {n}: {got:?}"))
    }

    fn destroy(self) -> Outcome {
        ok(unsafe { warpmail_runtime_destroy(self.runtime) })?;
        ok(unsafe { warpmail_sender_destroy(self.sender) })?;
        ok(unsafe { warpmail_receiver_destroy(self.receiver) })
    }
}

unsafe extern "C" fn forward(step: *mut warpmail_step, _: *mut c_void) -> i32 {
    unsafe { warpmail_step_forward(step, 0, 0) }
}

unsafe extern "C" fn count(user: *mut c_void) {
    unsafe { &*user.cast::<AtomicU64>() }.fetch_add(1, Ordering::Relaxed);
}

/// Copies by hand what `forward` copies, and calls the host.
unsafe extern "C" fn by_hand(step: *mut warpmail_step, user: *mut c_void) -> i32 {
    let (mut from, mut to, mut bytes) = (0, 0, 0);
    unsafe {
        let got =
            warpmail_step_input(step, 0, &mut from, &mut bytes) | warpmail_step_output(step, 0, &mut to, null_mut());
        let copied = warpmail_step_copy(step, to, from, u64::from(WM_STEP_HEAD_BYTES) + bytes);
        got | copied | warpmail_step_call(step, Some(count), user)
    }
}

pub(crate) fn carry_records(on: &Device) -> Outcome {
    const RECORDS: u64 = 200;
    let calls = AtomicU64::new(0);
    let user = (&raw const calls).cast_mut().cast::<c_void>();
    let ways: [(u32, warpmail_body_fn); 3] = [
        (WARPMAIL_BODY_CAPTURED, Some(forward)),
        (WARPMAIL_BODY_ALWAYS, Some(forward)),
        (WARPMAIL_BODY_EACH_STEP, Some(by_hand)),
    ];
    for (kind, body) in ways {
        for given in [false, true] {
            let options = OPTIONS;
            let graph = Graph::new(on, if given { &raw const options } else { null() })?;
            calls.store(0, Ordering::Relaxed);
            ok(graph.body(kind, body, user))?;
            ok(unsafe { warpmail_runtime_start(graph.runtime) })?;
            for n in 0..RECORDS {
                graph.echo(n)?;
            }
            ok(unsafe { warpmail_runtime_stop(graph.runtime, BOUND) })?;
            let mut stats =
                warpmail_module_stats { struct_size: size_of::<warpmail_module_stats>() as u32, ..Default::default() };
            ok(unsafe { warpmail_runtime_module_stats(graph.runtime, graph.module, &mut stats) })?;
            expect(stats.steps == RECORDS && stats.records_out == RECORDS, || format!("{kind}: {stats:?}"))?;
            let called = calls.load(Ordering::Relaxed);
            expect(called == if kind == WARPMAIL_BODY_EACH_STEP { RECORDS } else { 0 }, || format!("{called} calls"))?;
            graph.destroy()?;
        }
    }
    Ok(())
}

/// What a step pushes is agreed on beforehand; then the module is closed, and records wait.
pub(crate) fn push_what_was_agreed_on(on: &Device) -> Outcome {
    unsafe extern "C" fn nothing(_: *mut warpmail_step, _: *mut c_void) -> i32 {
        0
    }
    let outputs = [wm_step_head { len: 16, type_: 77, step: 0 }];
    let options = warpmail_step_options { outputs: outputs.as_ptr(), n_outputs: 1, ..OPTIONS };
    let graph = Graph::new(on, &options)?;
    ok(graph.body(WARPMAIL_BODY_ALWAYS, Some(nothing), null_mut()))?;
    ok(unsafe { warpmail_runtime_start(graph.runtime) })?;
    let (mut buffer, mut got) = ([0u8; 248], warpmail_record::default());
    let into = buffer.as_mut_ptr().cast::<c_void>();
    for _ in 0..50 {
        ok(unsafe { warpmail_sender_push(graph.sender, 1, null(), 0, BOUND) })?;
        ok(unsafe { warpmail_receiver_pop(graph.receiver, into, 248, &mut got, BOUND) })?;
        expect(got.len == 16 && got.msg_type == 77, || format!("{got:?}"))?;
    }
    ok(unsafe { warpmail_runtime_close(graph.runtime, graph.module, BOUND) })?;
    ok(unsafe { warpmail_sender_push(graph.sender, 1, null(), 0, BOUND) })?;
    let late = unsafe { warpmail_receiver_pop(graph.receiver, into, 248, &mut got, 20 * MS) };
    expect(late == WM_TIMEOUT as i32, || format!("a closed module answered: {late}"))?;
    ok(unsafe { warpmail_runtime_stop(graph.runtime, BOUND) })?;
    graph.destroy()
}

/// Where a body leaves its step, to be misused later.
static KEPT: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn mistakes_are_told(on: &Device) -> Outcome {
    unsafe extern "C" fn keeps(step: *mut warpmail_step, user: *mut c_void) -> i32 {
        KEPT.store(step as usize, Ordering::Relaxed);
        let id = step as usize;
        let elsewhere = std::thread::spawn(move || unsafe { warpmail_step_forward(id as *mut _, 0, 0) }).join();
        assert_eq!(elsewhere.ok(), Some(WARPMAIL_STALE_HANDLE), "a step belongs to its thread");
        let refused = unsafe { warpmail_step_forward(step, 1, 0) };
        assert_eq!(refused, WARPMAIL_REFUSED, "there is no input 1");
        unsafe { *user.cast::<i32>() = warpmail_step_call(step, Some(count), null_mut()) };
        unsafe { warpmail_step_forward(step, 0, 0) }
    }
    unsafe extern "C" fn fails(_: *mut warpmail_step, _: *mut c_void) -> i32 {
        -99
    }
    let d = device(on)?;
    let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
    let add =
        |options: warpmail_step_options| unsafe { warpmail_builder_steps(b, c"steps".as_ptr(), &options, &mut 0) };
    is(add(warpmail_step_options { rule: 7, ..OPTIONS }), WM_BAD_ARGUMENT, &["rule 7"])?;
    is(add(warpmail_step_options { ahead: 13, ..OPTIONS }), WARPMAIL_REFUSED, &["steps", "1 to 12"])?;
    is(add(warpmail_step_options { spin_ns: 1, ..OPTIONS }), WARPMAIL_REFUSED, &["at least 1"])?;
    is(add(warpmail_step_options { priority: 300, ..OPTIONS }), WARPMAIL_REFUSED, &["priority"])?;
    is(add(warpmail_step_options { n_outputs: 9, ..OPTIONS }), WM_BAD_ARGUMENT, &["9 outputs"])?;
    is(add(warpmail_step_options { n_outputs: 1, ..OPTIONS }), WM_BAD_ARGUMENT, &["outputs"])?;
    let wide = [wm_step_head { len: WM_STEP_NOTHING, type_: 70_000, step: 0 }];
    let typed = warpmail_step_options { n_outputs: 1, outputs: wide.as_ptr(), ..OPTIONS };
    is(add(typed), WM_BAD_ARGUMENT, &["70000", "16 bits"])?;
    is(add(warpmail_step_options { struct_size: 8, ..OPTIONS }), WARPMAIL_BAD_STRUCT, &["STEP_OPTIONS_INIT"])?;
    ok(unsafe { warpmail_builder_destroy(b) })?;
    ok(unsafe { warpmail_device_destroy(d) })?;

    let graph = Graph::new(on, &OPTIONS)?;
    is(unsafe { warpmail_runtime_start(graph.runtime) }, WARPMAIL_BAD_STATE, &["steps has no body"])?;
    is(graph.body(9, Some(forward), null_mut()), WM_BAD_ARGUMENT, &["body kind 9"])?;
    is(graph.body(0, None, null_mut()), WM_BAD_ARGUMENT, &["body is null"])?;
    is(graph.body(0, Some(fails), null_mut()), WARPMAIL_FAILED, &["returned -99"])?;
    let by_graph = |kind, raw| unsafe { warpmail_runtime_body_graph(graph.runtime, graph.module, kind, raw) };
    is(by_graph(0, 0), WM_BAD_ARGUMENT, &["graph is null"])?;
    is(by_graph(2, 8), WM_BAD_ARGUMENT, &["body kind 2"])?;
    let elsewhere = unsafe { warpmail_runtime_body(graph.runtime, 0, 0, Some(forward), null_mut()) };
    is(elsewhere, WARPMAIL_REFUSED, &["only modules of"])?;
    let mut head = [0u64; 2];
    let input =
        |n, head: *mut u64| unsafe { warpmail_runtime_step_input(graph.runtime, graph.module, n, head, null_mut()) };
    ok(input(0, &mut head[0]))?;
    is(input(1, &mut head[1]), WARPMAIL_REFUSED, &["it has 1"])?;
    is(input(0, null_mut()), WM_BAD_ARGUMENT, &["head is null"])?;
    ok(unsafe { warpmail_runtime_step_output(graph.runtime, graph.module, 0, &mut head[1], null_mut()) })?;
    expect(head[0] != 0 && head[1] != 0 && head[0] != head[1], || format!("{head:x?}"))?;

    let mut called = 0;
    ok(graph.body(WARPMAIL_BODY_ALWAYS, Some(keeps), (&raw mut called).cast()))?;
    expect(called == WARPMAIL_REFUSED, || format!("a call of the host in a captured body: {called}"))?;
    let kept = KEPT.load(Ordering::Relaxed) as *mut warpmail_step;
    is(unsafe { warpmail_step_forward(kept, 0, 0) }, WARPMAIL_STALE_HANDLE, &["until that returns"])?;
    is(graph.body(0, Some(forward), null_mut()), WARPMAIL_REFUSED, &["has one body"])?;
    ok(unsafe { warpmail_runtime_start(graph.runtime) })?;
    graph.echo(1)?;
    is(graph.body(0, Some(forward), null_mut()), WARPMAIL_BAD_STATE, &["before the start"])?;
    ok(unsafe { warpmail_runtime_stop(graph.runtime, BOUND) })?;
    graph.destroy()
}
