//! Structs that say their size, versions, names, texts.

use std::ptr::{null, null_mut};

use warpmail::Device;
use warpmail::abi::{WM_ABI_VERSION, WM_BAD_ARGUMENT, WM_BAD_VERSION, WM_TOO_SMALL, wm_arbiter_args};

use crate::sys::*;
use crate::{Outcome, device, expect, handle, is, made, name, ok};

pub(crate) fn statuses_have_names(_: &Device) -> Outcome {
    // Every status of both headers by its own name: read from the headers, so that none is forgotten.
    let (abi, api) = (include_str!("../../src/bindings.rs"), include_str!("../../src/capi/bindings.rs"));
    let mut named = 0;
    for line in abi.lines().chain(api.lines()) {
        let Some((constant, rest)) = line.strip_prefix("pub const ").and_then(|l| l.split_once(": ")) else { continue };
        let Some(value) = rest.split(" = ").nth(1).and_then(|v| v.trim_end_matches(';').parse::<i64>().ok()) else {
            continue;
        };
        let positive = ["WM_OK", "WM_EMPTY", "WM_FULL", "WM_TIMEOUT", "WM_STOPPING"].contains(&constant);
        if value < 0 || positive {
            expect(name(value as i32) == constant, || format!("{value} is {}, not {constant}", name(value as i32)))?;
            named += 1;
        }
    }
    expect(named == 31, || format!("{named} statuses"))?;
    for unknown in [5, -13, -31, -46, i32::MIN, i32::MAX] {
        expect(name(unknown) == "unknown status", || name(unknown))?;
    }
    Ok(())
}

pub(crate) fn versions_are_checked(_: &Device) -> Outcome {
    expect(unsafe { warpmail_abi_version() } == WM_ABI_VERSION, || "abi".into())?;
    let version = unsafe { std::ffi::CStr::from_ptr(warpmail_version()) };
    expect(version.to_str() == Ok(env!("CARGO_PKG_VERSION")), || format!("{version:?}"))?;
    ok(unsafe { warpmail_check_abi(WM_ABI_VERSION, WARPMAIL_API_VERSION) })?;
    ok(unsafe { warpmail_check_abi(WM_ABI_VERSION, 0) })?;
    is(unsafe { warpmail_check_abi(WM_ABI_VERSION + 1, 1) }, WM_BAD_VERSION, &["abi.h", "compile against"])?;
    is(unsafe { warpmail_check_abi(WM_ABI_VERSION, 99) }, WM_BAD_VERSION, &["99", "newer library"])
}

/// A struct with room behind it, as a program of a later version would have.
#[repr(C)]
struct Later<T> {
    now: T,
    tail: [u8; 64],
}

pub(crate) fn structs_say_their_size(on: &Device) -> Outcome {
    let d = device(on)?;
    let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
    let a = made(0, |id| unsafe { warpmail_builder_host(b, c"a".as_ptr(), id) })?;
    let size = size_of::<warpmail_mailbox_options>() as u32;
    let options = warpmail_mailbox_options { struct_size: size, stride: 256, slots: 4, reserved: 0 };
    let mailbox = |o: *const warpmail_mailbox_options| unsafe { warpmail_builder_mailbox(b, a, a, o, &mut 0) };
    ok(mailbox(&options))?;
    ok(mailbox(null()))?;
    for wrong in [0, 1, 8, size - 1, 4097, u32::MAX] {
        let options = warpmail_mailbox_options { struct_size: wrong, ..options };
        is(mailbox(&options), WARPMAIL_BAD_STRUCT, &["struct_size", "WARPMAIL_MAILBOX_OPTIONS_INIT"])?;
    }
    let reserved = warpmail_mailbox_options { reserved: 1, ..options };
    is(mailbox(&reserved), WARPMAIL_BAD_STRUCT, &["reserved"])?;
    let mut later = Later { now: warpmail_mailbox_options { struct_size: size + 64, ..options }, tail: [0; 64] };
    ok(mailbox((&raw const later).cast()))?;
    later.tail[63] = 1;
    is(mailbox((&raw const later).cast()), WARPMAIL_BAD_STRUCT, &["byte 79", "newer library"])?;
    is(mailbox((&raw const later).cast::<u8>().wrapping_add(1).cast()), WM_BAD_ARGUMENT, &["aligned"])?;

    let budget = warpmail_budget {
        struct_size: size_of::<warpmail_budget>() as u32,
        servers: WARPMAIL_SERVERS_DEFAULT,
        residency_ns: 2_000_000,
        idle_spin_ns: 0,
        max_wait_ns: 2_000_000,
        sm_share: 1.0,
        adaptive: 1,
        sms: 1,
    };
    is(unsafe { warpmail_builder_budget(b, null()) }, WM_BAD_ARGUMENT, &["null"])?;
    let long = warpmail_budget { residency_ns: 2_000_000_000, ..budget };
    is(unsafe { warpmail_builder_budget(b, &long) }, WARPMAIL_REFUSED, &["residency"])?;
    let never = warpmail_budget { sm_share: f64::NAN, ..budget };
    is(unsafe { warpmail_builder_budget(b, &never) }, WARPMAIL_REFUSED, &["sm_share"])?;
    let adaptive = "adaptive without idle_spin";
    is(unsafe { warpmail_builder_budget(b, &budget) }, WARPMAIL_REFUSED, &[adaptive])?;
    let budget = warpmail_budget { adaptive: 0, ..budget };
    ok(unsafe { warpmail_builder_budget(b, &budget) })?;
    let wide = warpmail_budget { sms: 7, ..budget };
    is(unsafe { warpmail_builder_budget(b, &wide) }, WARPMAIL_REFUSED, &["sms 7", "must be 1", "one block"])?;
    let usual = warpmail_budget { sms: 0, ..budget };
    ok(unsafe { warpmail_builder_budget(b, &usual) })?;
    // As it was before it had the last two members.
    let older = warpmail_budget { struct_size: 40, adaptive: 1, ..budget };
    ok(unsafe { warpmail_builder_budget(b, &older) })?;
    let idle = warpmail_budget { idle_spin_ns: 1, ..budget };
    is(unsafe { warpmail_builder_budget(b, &idle) }, WARPMAIL_REFUSED, &["idle_spin"])?;
    let short = warpmail_budget { struct_size: 12, ..budget };
    is(unsafe { warpmail_builder_budget(b, &short) }, WARPMAIL_BAD_STRUCT, &["struct_size 12"])?;

    // Statistics: as much as the caller knows, and never a byte more.
    let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
    let runtime = handle(|out| unsafe { warpmail_builder_build(b, image, out) })?;
    let mut stats =
        Later { now: warpmail_stats { struct_size: 12, mailboxes: 77, ..Default::default() }, tail: [9; 64] };
    ok(unsafe { warpmail_runtime_stats(runtime, &mut stats.now) })?;
    expect(stats.now.struct_size == 12 && stats.now.modules == 1 && stats.now.mailboxes == 3, || {
        format!("{:?}", stats.now)
    })?;
    stats.now = warpmail_stats { struct_size: size_of_val(&stats) as u32, serving: 99, ..Default::default() };
    ok(unsafe { warpmail_runtime_stats(runtime, &mut stats.now) })?;
    expect(stats.now.struct_size as usize == size_of::<warpmail_stats>(), || format!("{:?}", stats.now))?;
    expect(stats.now.serving == 0 && stats.tail == [9; 64], || format!("{:?}", stats.tail))?;
    stats.now.struct_size = 0;
    is(unsafe { warpmail_runtime_stats(runtime, &mut stats.now) }, WARPMAIL_BAD_STRUCT, &["struct_size 0"])?;
    ok(unsafe { warpmail_runtime_destroy(runtime) })
}

extern "C" fn never_run(_: *const wm_arbiter_args) -> i32 {
    1
}

pub(crate) fn images_are_checked(_: &Device) -> Outcome {
    let good = warpmail_image_options {
        struct_size: size_of::<warpmail_image_options>() as u32,
        abi_version: WM_ABI_VERSION,
        name: c"mine".as_ptr(),
        twin: Some(never_run),
        ..Default::default()
    };
    let refused = |options: warpmail_image_options, status, words: &[&str]| {
        let mut out = null_mut();
        is(unsafe { warpmail_image_new(&options, &mut out) }, status, words)?;
        expect(out.is_null(), || "a refused call gave a handle".into())
    };
    let image = handle(|out| unsafe { warpmail_image_new(&good, out) })?;
    ok(unsafe { warpmail_image_destroy(image) })?;
    refused(warpmail_image_options { abi_version: 1, ..good }, WM_BAD_VERSION, &["version 1"])?;
    refused(warpmail_image_options { name: null(), ..good }, WM_BAD_ARGUMENT, &["name"])?;
    refused(warpmail_image_options { twin: None, ..good }, WARPMAIL_REFUSED, &["mine", "twin entry"])?;
    refused(warpmail_image_options { fatbin_bytes: 9, ..good }, WARPMAIL_REFUSED, &["no fatbin"])?;
    let with = warpmail_image_options { fatbin: c"x".as_ptr().cast(), ..good };
    refused(with, WARPMAIL_REFUSED, &["0 bytes"])?;
    refused(warpmail_image_options { fatbin_bytes: 1, ..with }, WM_BAD_ARGUMENT, &["kernel's name"])?;
    is(unsafe { warpmail_image_new(null(), &mut null_mut()) }, WM_BAD_ARGUMENT, &["warpmail_image_options is null"])
}

pub(crate) fn texts_say_what_they_need(on: &Device) -> Outcome {
    let d = device(on)?;
    let json = |text, size, needed| unsafe { warpmail_device_json(d, text, size, needed) };
    let mut needed = 0;
    is(json(null_mut(), 0, &mut needed), WM_TOO_SMALL, &["bytes with its zero"])?;
    let mut text = vec![b'#'; needed + 1];
    is(json(text.as_mut_ptr().cast(), needed - 1, &mut needed), WM_TOO_SMALL, &[])?;
    expect(text.iter().all(|b| *b == b'#'), || "a text that does not fit was begun".into())?;
    ok(json(text.as_mut_ptr().cast(), needed, null_mut()))?;
    expect(text[needed - 1..] == [0, b'#'], || format!("{text:?}"))?;
    is(json(null_mut(), 9999, null_mut()), WM_BAD_ARGUMENT, &["null"])?;
    let value: serde_json::Value = serde_json::from_slice(&text[..needed - 1]).map_err(|e| e.to_string())?;
    expect(value["backend"] == on.info().backend.to_string(), || value.to_string())?;
    let mut probe = vec![0u8; 65536];
    ok(unsafe { warpmail_probe_json(probe.as_mut_ptr().cast(), probe.len(), &mut needed) })?;
    let value: serde_json::Value = serde_json::from_slice(&probe[..needed - 1]).map_err(|e| e.to_string())?;
    expect(value["abi_version"] == WM_ABI_VERSION, || value.to_string())
}
