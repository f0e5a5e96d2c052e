//! Module graphs through the C API: the rules, and records that go round.

use std::ptr::null_mut;

use warpmail::Device;
use warpmail::abi::{WM_BAD_ARGUMENT, WM_RULE_ANY};
use warpmail_testkit::ring_record;

use crate::sys::*;
use crate::{BOUND, Outcome, device, expect, handle, is, made, ok};

pub(crate) fn module_options(handler: u32) -> warpmail_module_options {
    let struct_size = size_of::<warpmail_module_options>() as u32;
    warpmail_module_options { struct_size, handler, rule: WM_RULE_ANY, batch: 32, ..Default::default() }
}

/// host -> module -> host, built with an image of the caller's choice.
pub(crate) struct Loop {
    pub(crate) runtime: *mut warpmail_runtime,
    pub(crate) sender: *mut warpmail_sender,
    pub(crate) receiver: *mut warpmail_receiver,
}

impl Loop {
    pub(crate) fn new(
        on: &Device,
        slots: u32,
        options: &warpmail_module_options,
        image: *mut warpmail_image,
        budget: Option<&warpmail_budget>,
    ) -> Result<Self, String> {
        let d = device(on)?;
        let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
        budget.map_or(Ok(()), |budget| ok(unsafe { warpmail_builder_budget(b, budget) }))?;
        let shape = warpmail_mailbox_options { struct_size: 16, stride: 256, slots, reserved: 0 };
        let host = made(0, |id| unsafe { warpmail_builder_host(b, c"host".as_ptr(), id) })?;
        let module = made(0, |id| unsafe { warpmail_builder_resident(b, c"module".as_ptr(), options, id) })?;
        let there = made(0, |id| unsafe { warpmail_builder_mailbox(b, host, module, &shape, id) })?;
        let back = made(0, |id| unsafe { warpmail_builder_mailbox(b, module, host, &shape, id) })?;
        let runtime = handle(|out| unsafe { warpmail_builder_build(b, image, out) })?;
        // What it was made from may go.
        ok(unsafe { warpmail_builder_destroy(b) })?;
        ok(unsafe { warpmail_image_destroy(image) })?;
        ok(unsafe { warpmail_device_destroy(d) })?;
        let sender = handle(|out| unsafe { warpmail_runtime_sender(runtime, there, out) })?;
        let receiver = handle(|out| unsafe { warpmail_runtime_receiver(runtime, back, out) })?;
        Ok(Loop { runtime, sender, receiver })
    }

    pub(crate) fn relay(on: &Device, slots: u32) -> Result<Self, String> {
        Self::with_budget(on, slots, None)
    }

    pub(crate) fn with_budget(on: &Device, slots: u32, budget: Option<&warpmail_budget>) -> Result<Self, String> {
        let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
        Self::new(on, slots, &module_options(WARPMAIL_HANDLER_RELAY), image, budget)
    }

    pub(crate) fn echo(&self, n: u64) -> Outcome {
        let record = ring_record(n, 0, 248);
        ok(unsafe { warpmail_sender_push(self.sender, n as u16, record.as_ptr().cast(), record.len(), BOUND) })?;
        let (mut buffer, mut got) = ([0u8; 248], warpmail_record::default());
        ok(unsafe { warpmail_receiver_pop(self.receiver, buffer.as_mut_ptr().cast(), 248, &mut got, BOUND) })?;
        let same = buffer[..got.len as usize] == record && got.msg_type == n as u16;
        expect(same, || format!("record {n}: {got:?}"))
    }

    pub(crate) fn destroy(self) -> Outcome {
        ok(unsafe { warpmail_runtime_destroy(self.runtime) })?;
        ok(unsafe { warpmail_sender_destroy(self.sender) })?;
        ok(unsafe { warpmail_receiver_destroy(self.receiver) })
    }
}

pub(crate) fn rules_are_told(on: &Device) -> Outcome {
    let d = device(on)?;
    let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
    let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
    is(unsafe { warpmail_builder_build(b, image, &mut null_mut()) }, WARPMAIL_REFUSED, &["at least one mailbox"])?;
    let host = made(9, |id| unsafe { warpmail_builder_host(b, c"host".as_ptr(), id) })?;
    is(unsafe { warpmail_builder_host(b, c"host".as_ptr(), &mut 0) }, WARPMAIL_REFUSED, &["host", "taken"])?;
    is(unsafe { warpmail_builder_host(b, c"".as_ptr(), &mut 0) }, WARPMAIL_REFUSED, &["without a name"])?;
    let resident = |options: &warpmail_module_options, id: &mut u32| unsafe {
        warpmail_builder_resident(b, c"relay".as_ptr(), options, id)
    };
    let good = module_options(0);
    let mut id = 9;
    is(resident(&warpmail_module_options { batch: 0, ..good }, &mut id), WARPMAIL_REFUSED, &["batch"])?;
    is(resident(&warpmail_module_options { priority: 4, ..good }, &mut id), WARPMAIL_REFUSED, &["priority"])?;
    is(resident(&warpmail_module_options { priority: 256, ..good }, &mut id), WARPMAIL_REFUSED, &["priority"])?;
    is(resident(&warpmail_module_options { rule: 2, ..good }, &mut id), WM_BAD_ARGUMENT, &["rule 2"])?;
    let huge = warpmail_module_options { state_bytes: u64::MAX, ..good };
    is(resident(&huge, &mut id), WARPMAIL_UNAVAILABLE, &["no memory", "state"])?;
    ok(resident(&good, &mut id))?;
    expect((host, id) == (0, 1), || format!("ids {host} and {id}"))?;
    let mailbox = |from, to, slots| {
        let shape = warpmail_mailbox_options { struct_size: 16, stride: 256, slots, reserved: 0 };
        unsafe { warpmail_builder_mailbox(b, from, to, &shape, &mut 0) }
    };
    is(mailbox(0, 2, 4), WARPMAIL_REFUSED, &["module id 2"])?;
    is(mailbox(0, 1, 5), WARPMAIL_REFUSED, &["5 slots", "power of two"])?;
    ok(mailbox(0, 1, 4))?;
    is(unsafe { warpmail_builder_mode(b, 2) }, WM_BAD_ARGUMENT, &["mode 2"])?;
    ok(unsafe { warpmail_builder_mode(b, WARPMAIL_MODE_CPU) })?;
    is(unsafe { warpmail_builder_static_order(b, 2) }, WM_BAD_ARGUMENT, &["static order 2"])?;
    ok(unsafe { warpmail_builder_static_order(b, 1) })?;
    is(unsafe { warpmail_builder_build(b, image, &mut null_mut()) }, WARPMAIL_REFUSED, &["static order", "resident"])?;
    ok(unsafe { warpmail_builder_static_order(b, 0) })?;
    ok(unsafe { warpmail_builder_beside(b, 0) })?;
    // One builder, two runtimes; and it goes on.
    let first = handle(|out| unsafe { warpmail_builder_build(b, image, out) })?;
    let mode = made(9, |m| unsafe { warpmail_runtime_mode(first, m) })?;
    expect(mode == WARPMAIL_MODE_CPU, || format!("mode {mode}"))?;
    ok(unsafe { warpmail_builder_mode(b, WARPMAIL_MODE_DEVICE) })?;
    ok(mailbox(1, 0, 4))?;
    let second = handle(|out| unsafe { warpmail_builder_build(b, image, out) })?;
    is(unsafe { warpmail_runtime_sender(first, 1, &mut null_mut()) }, WARPMAIL_REFUSED, &["mailbox id 1"])?;
    is(unsafe { warpmail_runtime_sender(second, 1, &mut null_mut()) }, WARPMAIL_REFUSED, &["relay->host", "producer"])?;
    let mut row = warpmail::abi::wm_mailbox::default();
    ok(unsafe { warpmail_handle(second, 1, &mut row) })?;
    expect((row.mailbox_id, row.record_stride, row.slots_log2) == (1, 256, 2), || format!("{row:?}"))?;
    is(unsafe { warpmail_handle(second, 2, &mut row) }, WARPMAIL_REFUSED, &["mailbox id 2"])?;
    let mut stats = warpmail_module_stats { struct_size: 72, ..Default::default() };
    is(
        unsafe { warpmail_runtime_module_stats(second, 2, &mut stats) },
        WARPMAIL_REFUSED,
        &["module id 2", "2 of them"],
    )?;
    ok(unsafe { warpmail_runtime_destroy(first) })?;
    ok(unsafe { warpmail_runtime_destroy(second) })
}

pub(crate) fn records_come_back_whole(on: &Device) -> Outcome {
    const RECORDS: u64 = 20_000;
    let l = Loop::relay(on, 16)?;
    ok(unsafe { warpmail_runtime_start(l.runtime) })?;
    is(unsafe { warpmail_runtime_start(l.runtime) }, WARPMAIL_BAD_STATE, &["started before"])?;
    (0..RECORDS).try_for_each(|n| l.echo(n))?;
    ok(unsafe { warpmail_runtime_drain(l.runtime, BOUND) })?;
    ok(unsafe { warpmail_runtime_stop(l.runtime, BOUND) })?;
    ok(unsafe { warpmail_runtime_stop(l.runtime, BOUND) })?;
    let state = made(9, |s| unsafe { warpmail_runtime_state(l.runtime, s) })?;
    expect(state == WARPMAIL_STATE_STOPPED, || format!("state {state}"))?;

    let mut all = warpmail_stats { struct_size: size_of::<warpmail_stats>() as u32, ..Default::default() };
    ok(unsafe { warpmail_runtime_stats(l.runtime, &mut all) })?;
    expect(all.launches > 0 && all.launches == all.launches_ended && all.grants > 0, || format!("{all:?}"))?;
    let mut module =
        warpmail_module_stats { struct_size: size_of::<warpmail_module_stats>() as u32, ..Default::default() };
    ok(unsafe { warpmail_runtime_module_stats(l.runtime, 1, &mut module) })?;
    let moved = (module.records_in, module.records_out, module.rejected_length);
    expect(moved == (RECORDS, RECORDS, 0), || format!("{module:?}"))?;
    for id in 0..all.mailboxes {
        let mut m = warpmail_mailbox_stats { struct_size: 32, ..Default::default() };
        ok(unsafe { warpmail_runtime_mailbox_stats(l.runtime, id, &mut m) })?;
        expect((m.written, m.consumed, m.quarantined) == (RECORDS, RECORDS, 0), || format!("{m:?}"))?;
    }
    let mut text = vec![0u8; 65536];
    let mut needed = 0;
    ok(unsafe { warpmail_runtime_stats_json(l.runtime, text.as_mut_ptr().cast(), text.len(), &mut needed) })?;
    let json: serde_json::Value = serde_json::from_slice(&text[..needed - 1]).map_err(|e| e.to_string())?;
    expect(json["modules"][1]["name"] == "module" && json["modules"][1]["records_in"] == RECORDS, || json.to_string())?;
    let pushed = made(0, |n| unsafe { warpmail_sender_pushed(l.sender, n) })?;
    let popped = made(0, |n| unsafe { warpmail_receiver_popped(l.receiver, n) })?;
    expect((pushed, popped) == (RECORDS, RECORDS), || format!("{pushed} {popped}"))?;
    is(unsafe { warpmail_runtime_failure(l.runtime, null_mut(), 0, null_mut()) }, warpmail::abi::WM_TOO_SMALL, &[])?;
    l.destroy()
}
