//! Pools, tensors and leases through the C API.

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

use warpmail::Device;
use warpmail::abi::{
    WM_BAD_ARGUMENT, WM_BAD_LENGTH, WM_BAD_TYPE, WM_DEVICE_CPU, WM_DEVICE_CUDA, WM_EMPTY, WM_FULL, WM_STALE_LEASE,
    WM_STEP_HEAD_BYTES, WM_TAP_BLOCK, WM_TENSOR_READ_ONLY, WM_TIMEOUT, WM_TOO_SMALL, WM_TYPE_TENSOR, wm_leases,
    wm_step_head, wm_tensor,
};

use crate::sys::*;
use crate::{BOUND, MS, Outcome, device, expect, handle, is, made, ok};

fn pool(on: &Device, limit_bytes: u64) -> Result<*mut warpmail_pool, String> {
    let d = device(on)?;
    let struct_size = size_of::<warpmail_pool_options>() as u32;
    let options = warpmail_pool_options { struct_size, leases: 64, limit_bytes, ..Default::default() };
    let pool = handle(|out| unsafe { warpmail_pool_new(d, &options, out) })?;
    ok(unsafe { warpmail_device_destroy(d) })?;
    Ok(pool)
}

/// 64-bit numbers in a row.
fn numbers(shape: &[i64]) -> warpmail_tensor_options {
    warpmail_tensor_options {
        struct_size: size_of::<warpmail_tensor_options>() as u32,
        ndim: shape.len() as u32,
        shape: shape.as_ptr(),
        strides: null(),
        dtype_code: 1,
        dtype_bits: 64,
        dtype_lanes: 1,
        ..Default::default()
    }
}

fn tensor(pool: *mut warpmail_pool, shape: &[i64]) -> Result<*mut warpmail_tensor, String> {
    handle(|out| unsafe { warpmail_pool_alloc(pool, c"capi".as_ptr(), &numbers(shape), 0, out) })
}

fn lease(tensor: *mut warpmail_tensor, readers: u32) -> Result<*mut warpmail_lease, String> {
    handle(|out| unsafe { warpmail_tensor_lease(tensor, readers, out) })
}

fn stats(pool: *mut warpmail_pool) -> Result<warpmail_pool_stats, String> {
    let mut s = warpmail_pool_stats { struct_size: size_of::<warpmail_pool_stats>() as u32, ..Default::default() };
    ok(unsafe { warpmail_pool_collect(pool, null_mut()) })?;
    ok(unsafe { warpmail_pool_stats_get(pool, &mut s) })?;
    Ok(s)
}

fn take(receiver: *mut warpmail_receiver, note: &mut [u8], bound: u64) -> (i32, usize, *mut warpmail_lease) {
    let (mut len, mut lease) = (77, null_mut());
    let into = note.as_mut_ptr().cast();
    let status = unsafe { warpmail_receiver_take(receiver, into, note.len(), &mut len, bound, &mut lease) };
    (status, len, lease)
}

/// A body that copies what was delivered to `user` to its output.
unsafe extern "C" fn show(step: *mut warpmail_step, user: *mut c_void) -> i32 {
    let mut head = 0;
    let outcome = unsafe { warpmail_step_output(step, 0, &mut head, null_mut()) };
    outcome | unsafe { warpmail_step_copy(step, head + u64::from(WM_STEP_HEAD_BYTES), user as u64, 64) }
}

pub(crate) fn are_delivered(on: &Device) -> Outcome {
    let (d, p) = (device(on)?, pool(on, 1 << 20)?);
    let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
    ok(unsafe { warpmail_builder_pool(b, p) })?;
    let outputs = [wm_step_head { len: 64, type_: 5, step: 0 }];
    let options = warpmail_step_options {
        outputs: outputs.as_ptr(),
        n_outputs: 1,
        ahead: 4,
        spin_ns: 20_000,
        ..Default::default()
    };
    let options = warpmail_step_options { struct_size: size_of::<warpmail_step_options>() as u32, ..options };
    let host = made(0, |id| unsafe { warpmail_builder_host(b, c"host".as_ptr(), id) })?;
    let model = made(0, |id| unsafe { warpmail_builder_steps(b, c"model".as_ptr(), &options, id) })?;
    let there = made(0, |id| unsafe { warpmail_builder_mailbox(b, host, model, null(), id) })?;
    let back = made(0, |id| unsafe { warpmail_builder_mailbox(b, model, host, null(), id) })?;
    let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
    let runtime = handle(|out| unsafe { warpmail_builder_build(b, image, out) })?;
    let sender = handle(|out| unsafe { warpmail_runtime_sender(runtime, there, out) })?;
    let receiver = handle(|out| unsafe { warpmail_runtime_receiver(runtime, back, out) })?;

    let target = tensor(p, &[2, 4])?;
    let to = made(wm_tensor::default(), |out| unsafe { warpmail_tensor_descriptor(target, out) })?.data;
    let wanted = numbers(&[2, 4]);
    let deliver = |input, to, bytes, options: *const warpmail_tensor_options| unsafe {
        warpmail_runtime_deliver(runtime, model, input, to, bytes, options)
    };
    is(deliver(1, to, 64, &wanted), WARPMAIL_REFUSED, &["input 1"])?;
    is(deliver(0, 0, 64, &wanted), WARPMAIL_REFUSED, &["at least one byte"])?;
    is(deliver(0, to, 63, &wanted), WARPMAIL_REFUSED, &["smaller"])?;
    is(deliver(0, to, 0, null()), WARPMAIL_REFUSED, &["at least one byte"])?;
    let unsized_options = warpmail_tensor_options { struct_size: 1, ..wanted };
    is(deliver(0, to, 64, &unsized_options), WARPMAIL_BAD_STRUCT, &["warpmail_tensor_options"])?;
    let gaps = warpmail_tensor_options { strides: [5i64, 1].as_ptr(), ..wanted };
    is(deliver(0, to, 640, &gaps), WARPMAIL_REFUSED, &["without gaps"])?;
    ok(deliver(0, to, 64, &wanted))?;
    is(deliver(0, to, 64, &wanted), WARPMAIL_REFUSED, &["second delivery"])?;
    ok(unsafe { warpmail_runtime_body(runtime, model, WARPMAIL_BODY_CAPTURED, Some(show), to as *mut c_void) })?;
    ok(unsafe { warpmail_runtime_start(runtime) })?;

    let shapes: [&[i64]; 2] = [&[2, 4], &[4, 2]];
    let mut refused = 0;
    for n in 0..60u64 {
        let fits = n % 3 != 1;
        let t = tensor(p, shapes[usize::from(!fits)])?;
        let content: [u64; 8] = std::array::from_fn(|i| n << 32 | i as u64);
        ok(unsafe { warpmail_tensor_upload(t, content.as_ptr().cast(), 64) })?;
        ok(unsafe { warpmail_sender_post(sender, lease(t, 1)?, null(), 0, BOUND) })?;
        ok(unsafe { warpmail_tensor_destroy(t) })?;
        refused += u64::from(!fits);
        if fits {
            let (mut shown, mut got) = ([0u64; 8], warpmail_record::default());
            ok(unsafe { warpmail_receiver_pop(receiver, shown.as_mut_ptr().cast(), 64, &mut got, BOUND) })?;
            expect(shown == content && (got.len, got.msg_type) == (64, 5), || format!("{n}: {shown:x?} {got:?}"))?;
        }
    }
    ok(unsafe { warpmail_runtime_stop(runtime, BOUND) })?;
    let mut counted =
        warpmail_module_stats { struct_size: size_of::<warpmail_module_stats>() as u32, ..Default::default() };
    ok(unsafe { warpmail_runtime_module_stats(runtime, model, &mut counted) })?;
    expect(counted.steps == 60 && counted.rejected_content == refused, || format!("{counted:?}"))?;
    let s = stats(p)?;
    expect(s.open == 0 && s.opened == 60 && s.released_twice == 0, || format!("{s:?}"))
}

pub(crate) fn travel_through_a_graph(on: &Device) -> Outcome {
    let (d, p) = (device(on)?, pool(on, 1 << 20)?);
    let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
    ok(unsafe { warpmail_builder_pool(b, p) })?;
    let options = crate::graph::module_options(WARPMAIL_HANDLER_RELAY);
    let host = made(0, |id| unsafe { warpmail_builder_host(b, c"host".as_ptr(), id) })?;
    let relay = made(0, |id| unsafe { warpmail_builder_resident(b, c"relay".as_ptr(), &options, id) })?;
    let there = made(0, |id| unsafe { warpmail_builder_mailbox(b, host, relay, null(), id) })?;
    let back = made(0, |id| unsafe { warpmail_builder_mailbox(b, relay, host, null(), id) })?;
    let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
    let runtime = handle(|out| unsafe { warpmail_builder_build(b, image, out) })?;
    let sender = handle(|out| unsafe { warpmail_runtime_sender(runtime, there, out) })?;
    let receiver = handle(|out| unsafe { warpmail_runtime_receiver(runtime, back, out) })?;
    ok(unsafe { warpmail_runtime_start(runtime) })?;
    let t = tensor(p, &[2, 4])?;
    let content: [u64; 8] = std::array::from_fn(|i| i as u64 * 7);
    ok(unsafe { warpmail_tensor_upload(t, content.as_ptr().cast(), 64) })?;
    for n in 0..100u64 {
        let l = lease(t, 1)?;
        ok(unsafe { warpmail_sender_post(sender, l, (&raw const n).cast(), 8, BOUND) })?;
        is(unsafe { warpmail_lease_destroy(l) }, WARPMAIL_STALE_HANDLE, &["destroyed"])?;
        let mut note = [0; 72];
        let (status, len, l) = take(receiver, &mut note, BOUND);
        ok(status)?;
        expect(len == 8 && note[..8] == n.to_ne_bytes(), || format!("note {n}: {len} {note:?}"))?;
        let raw = made(wm_tensor::default(), |out| unsafe { warpmail_lease_descriptor(l, out) })?;
        let (kind, id) = on.info().ordinal.map_or((WM_DEVICE_CPU, 0), |d| (WM_DEVICE_CUDA, d));
        let expected = raw.ndim == 2 && raw.shape[..2] == [2, 4] && raw.strides[..2] == [4, 1] && raw.shares == 1;
        expect(expected && (raw.device_type, raw.device_id) == (kind, id), || format!("{raw:?}"))?;
        let mut bytes = [0u64; 8];
        ok(unsafe { warpmail_lease_download(l, bytes.as_mut_ptr().cast(), 64) })?;
        expect(bytes == content, || format!("{bytes:?}"))?;
        // All the ways in which a lease ends.
        ok(match n % 3 {
            0 => unsafe { warpmail_lease_destroy(l) },
            1 => unsafe { warpmail_lease_release(l) },
            _ => unsafe { warpmail_lease_release_on(l, 0) },
        })?;
    }
    // One on its way when the runtime ends.
    let l = lease(t, 1)?;
    ok(unsafe { warpmail_sender_post(sender, l, null(), 0, BOUND) })?;
    let early = unsafe { warpmail_runtime_recall_tensors(runtime, null_mut()) };
    is(early, WARPMAIL_BAD_STATE, &["stop the runtime"])?;
    ok(unsafe { warpmail_runtime_stop(runtime, BOUND) })?;
    let recalled = made(0, |n| unsafe { warpmail_runtime_recall_tensors(runtime, n) })?;
    expect(recalled == 1, || format!("{recalled} recalled"))?;
    ok(unsafe { warpmail_tensor_destroy(t) })?;
    let until = std::time::Instant::now() + std::time::Duration::from_nanos(BOUND);
    while stats(p)?.open > 0 && std::time::Instant::now() < until {}
    let s = stats(p)?;
    expect(s.open == 0 && s.used == 0 && s.opened == 101 && s.released_twice == 0, || format!("{s:?}"))
}

/// The journal takes what tapped records point to, when it is told to.
pub(crate) fn tensors_reach_a_journal(on: &Device) -> Outcome {
    let folder = std::env::temp_dir().join(format!("warpmail-capi-tensors-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let path = std::ffi::CString::new(folder.display().to_string()).map_err(|e| e.to_string())?;
    let (d, p) = (device(on)?, pool(on, 1 << 20)?);
    let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
    ok(unsafe { warpmail_builder_pool(b, p) })?;
    let options = crate::graph::module_options(WARPMAIL_HANDLER_RELAY);
    let host = made(0, |id| unsafe { warpmail_builder_host(b, c"host".as_ptr(), id) })?;
    let relay = made(0, |id| unsafe { warpmail_builder_resident(b, c"relay".as_ptr(), &options, id) })?;
    let there = made(0, |id| unsafe { warpmail_builder_mailbox(b, host, relay, null(), id) })?;
    let back = made(0, |id| unsafe { warpmail_builder_mailbox(b, relay, host, null(), id) })?;
    is(unsafe { warpmail_builder_tap_tensors(b, 9) }, WARPMAIL_REFUSED, &["no such mailbox"])?;
    is(unsafe { warpmail_builder_tap_tensors(b, there) }, WARPMAIL_REFUSED, &["not tapped"])?;
    is(unsafe { warpmail_builder_tap_tensors(null_mut(), there) }, WARPMAIL_BAD_HANDLE, &["builder"])?;
    ok(unsafe { warpmail_builder_tap(b, there, WM_TAP_BLOCK) })?;
    ok(unsafe { warpmail_builder_tap_tensors(b, there) })?;
    let image = handle(|out| unsafe { warpmail_image_builtin(out) })?;
    let runtime = handle(|out| unsafe { warpmail_builder_build(b, image, out) })?;
    ok(unsafe { warpmail_runtime_journal(runtime, path.as_ptr(), 0) })?;
    let sender = handle(|out| unsafe { warpmail_runtime_sender(runtime, there, out) })?;
    let receiver = handle(|out| unsafe { warpmail_runtime_receiver(runtime, back, out) })?;
    ok(unsafe { warpmail_runtime_start(runtime) })?;
    let t = tensor(p, &[2, 4])?;
    let content: [u64; 8] = std::array::from_fn(|i| i as u64 * 7 + 1);
    ok(unsafe { warpmail_tensor_upload(t, content.as_ptr().cast(), 64) })?;
    for _ in 0..10 {
        ok(unsafe { warpmail_sender_post(sender, lease(t, 1)?, null(), 0, BOUND) })?;
        let (status, _, l) = take(receiver, &mut [0; 72], BOUND);
        ok(status)?;
        ok(unsafe { warpmail_lease_destroy(l) })?;
    }
    ok(unsafe { warpmail_runtime_stop(runtime, BOUND) })?;
    let mut json = [0u8; 4096];
    ok(unsafe { warpmail_runtime_journal_json(runtime, json.as_mut_ptr().cast(), json.len(), null_mut()) })?;
    let json = String::from_utf8_lossy(&json);
    let kept = json.contains("\"tensors\":10,") && json.contains("\"tensors_missed\":0");
    expect(kept, || format!("{json}"))?;
    let mut seen = 0;
    for record in warpmail::journal::Reader::open(&folder, 1).map_err(|e| e.to_string())? {
        let record = record.map_err(|e| e.to_string())?;
        expect(record.tensor == bytemuck::cast_slice::<u64, u8>(&content), || format!("{:?}", record.tensor))?;
        seen += 1;
    }
    let _ = std::fs::remove_dir_all(&folder);
    expect(seen == 10, || format!("{seen} records in the log"))
}

pub(crate) fn ends_say_what_is_wrong(on: &Device) -> Outcome {
    let (d, p, other) = (device(on)?, pool(on, 1 << 20)?, pool(on, 1 << 20)?);
    let shape = warpmail_mailbox_options { struct_size: 16, stride: 256, slots: 2, reserved: 0 };
    let (mut sender, mut receiver) = (null_mut(), null_mut());
    ok(unsafe { warpmail_direct_mailbox(d, &shape, &mut sender, &mut receiver) })?;
    let mut note = [0; 72];
    is(take(receiver, &mut note, 0).0, WARPMAIL_BAD_STATE, &["no pool"])?;
    ok(unsafe { warpmail_sender_attach_pool(sender, p) })?;
    ok(unsafe { warpmail_receiver_attach_pool(receiver, p) })?;
    expect(take(receiver, &mut note, 0).0 == WM_EMPTY as i32, || "empty".into())?;
    is(take(receiver, &mut note, MS).0, WM_TIMEOUT as i32, &["a record"])?;
    let (t, stranger) = (tensor(p, &[4])?, tensor(other, &[4])?);
    let post = |l, len| unsafe { warpmail_sender_post(sender, l, [9u8; 128].as_ptr().cast(), len, 0) };
    // A lease that was not posted is as it was.
    let l = lease(stranger, 1)?;
    is(post(l, 0), WARPMAIL_REFUSED, &["another pool"])?;
    ok(unsafe { warpmail_lease_destroy(l) })?;
    let l = lease(t, 1)?;
    is(post(l, 73), WM_BAD_LENGTH, &["249 bytes"])?;
    ok(post(l, 72))?;
    is(post(l, 0), WARPMAIL_STALE_HANDLE, &["destroyed"])?;
    ok(unsafe { warpmail_sender_try_push(sender, 5, null(), 0) })?;
    let l = lease(t, 1)?;
    expect(post(l, 0) == WM_FULL as i32, || "full".into())?;
    ok(unsafe { warpmail_lease_release(l) })?;
    // Notes that do not fit leave the record.
    let (status, len, _) = take(receiver, &mut note[..71], 0);
    is(status, WM_TOO_SMALL, &["72 bytes", "still there"])?;
    expect(len == 72, || format!("{len}"))?;
    let (status, len, l) = take(receiver, &mut note, 0);
    ok(status)?;
    expect(len == 72 && note == [9; 72], || format!("{len} {note:?}"))?;
    is(take(receiver, &mut note, 0).0, WM_BAD_TYPE, &["no tensor"])?;
    ok(unsafe { warpmail_receiver_try_pop(receiver, null_mut(), 0, &mut warpmail_record::default()) })?;
    // The same record twice, and once more when its lease has ended.
    let raw = made(wm_tensor::default(), |out| unsafe { warpmail_lease_descriptor(l, out) })?;
    let again =
        |bytes| unsafe { warpmail_sender_try_push(sender, WM_TYPE_TENSOR as u16, (&raw const raw).cast(), bytes) };
    ok(again(176))?;
    is(take(receiver, &mut note, 0).0, WM_STALE_LEASE, &["taken twice"])?;
    ok(again(100))?;
    is(take(receiver, &mut note, 0).0, WM_BAD_LENGTH, &["impossible length 100"])?;
    ok(unsafe { warpmail_lease_destroy(l) })?;
    stats(p)?;
    ok(again(176))?;
    is(take(receiver, &mut note, 0).0, WM_STALE_LEASE, &["has ended"])?;
    is(unsafe { warpmail_pool_claim(p, &raw, &mut null_mut()) }, WM_STALE_LEASE, &["has ended"])?;
    is(unsafe { warpmail_pool_claim(p, null(), &mut null_mut()) }, WM_BAD_ARGUMENT, &["null"])?;
    let wild = wm_tensor { lease: 99_999, ..raw };
    is(unsafe { warpmail_pool_claim(p, &wild, &mut null_mut()) }, WARPMAIL_REFUSED, &["no pool has given"])?;
    ok(unsafe { warpmail_sender_destroy(sender) })?;
    ok(unsafe { warpmail_receiver_destroy(receiver) })
}

pub(crate) fn pools_say_what_is_wrong(on: &Device) -> Outcome {
    let (d, p) = (device(on)?, pool(on, 4096)?);
    let struct_size = size_of::<warpmail_pool_options>() as u32;
    let fine = warpmail_pool_options { struct_size, leases: 8, limit_bytes: 4096, ..Default::default() };
    let new = |o: warpmail_pool_options| unsafe { warpmail_pool_new(d, &o, &mut null_mut()) };
    is(new(warpmail_pool_options { struct_size: 3, ..fine }), WARPMAIL_BAD_STRUCT, &["struct_size 3"])?;
    is(new(warpmail_pool_options { limit_bytes: 0, ..fine }), WARPMAIL_REFUSED, &["0 bytes"])?;
    is(new(warpmail_pool_options { leases: 0, ..fine }), WARPMAIL_REFUSED, &["0 leases"])?;
    is(new(warpmail_pool_options { poison: 2, ..fine }), WM_BAD_ARGUMENT, &["poison 2"])?;
    is(new(warpmail_pool_options { reserved: 1, ..fine }), WM_BAD_ARGUMENT, &["reserved 1"])?;
    let alloc = |o: &warpmail_tensor_options, bound| unsafe {
        warpmail_pool_alloc(p, c"x".as_ptr(), o, bound, &mut null_mut())
    };
    let s = [4i64, 4];
    is(alloc(&warpmail_tensor_options { ndim: 9, ..numbers(&s) }, 0), WARPMAIL_REFUSED, &["9 dimensions"])?;
    is(alloc(&warpmail_tensor_options { shape: null(), ..numbers(&s) }, 0), WM_BAD_ARGUMENT, &["shape"])?;
    is(alloc(&warpmail_tensor_options { flags: 2, ..numbers(&s) }, 0), WM_BAD_ARGUMENT, &["flags"])?;
    is(alloc(&warpmail_tensor_options { dtype_bits: 4, ..numbers(&s) }, 0), WARPMAIL_REFUSED, &["packed"])?;
    is(alloc(&numbers(&[4, 0]), 0), WARPMAIL_REFUSED, &["without elements"])?;
    is(alloc(&numbers(&[4, -4]), 0), WARPMAIL_REFUSED, &["negative"])?;
    let back = [-4i64, 1];
    is(alloc(&warpmail_tensor_options { strides: back.as_ptr(), ..numbers(&s) }, 0), WARPMAIL_REFUSED, &["forward"])?;
    is(alloc(&numbers(&s), u64::MAX), WM_BAD_ARGUMENT, &["a day"])?;
    is(unsafe { warpmail_pool_alloc(p, null(), &numbers(&s), 0, &mut null_mut()) }, WM_BAD_ARGUMENT, &["label"])?;
    // Full, and who has it.
    let t = tensor(p, &[512])?;
    is(alloc(&numbers(&s), 0), WARPMAIL_POOL_FULL, &["capi (4096 bytes", "256 bytes wanted"])?;
    is(alloc(&numbers(&s), MS), WARPMAIL_POOL_FULL, &["4096 of 4096"])?;
    let mut text = [0; 4096];
    ok(unsafe { warpmail_pool_holders_json(p, text.as_mut_ptr(), text.len(), null_mut()) })?;
    let json = unsafe { std::ffi::CStr::from_ptr(text.as_ptr()) }.to_string_lossy();
    expect(json.contains(r#""label":"capi","bytes":4096"#), || json.to_string())?;
    // Tensors: sizes and readers.
    is(unsafe { warpmail_tensor_upload(t, [0u8; 8].as_ptr().cast(), 8) }, WARPMAIL_REFUSED, &["8 bytes", "4096"])?;
    is(unsafe { warpmail_tensor_download(t, null_mut(), 4096) }, WM_BAD_ARGUMENT, &["into"])?;
    for readers in [0, 9, 256, 257, u32::MAX] {
        is(unsafe { warpmail_tensor_lease(t, readers, &mut null_mut()) }, WARPMAIL_REFUSED, &["from 1 to 8"])?;
    }
    let l = lease(t, 3)?;
    is(unsafe { warpmail_lease_part(l, 3, &mut null_mut()) }, WARPMAIL_REFUSED, &["3 of 3"])?;
    let one = handle(|out| unsafe { warpmail_lease_part(l, 1, out) })?;
    // What holds the memory is gone one by one; a tensor made of a lease comes last.
    ok(unsafe { warpmail_tensor_destroy(t) })?;
    let again = handle(|out| unsafe { warpmail_lease_tensor(one, out) })?;
    let raw = made(wm_tensor::default(), |out| unsafe { warpmail_lease_into_raw(one, out) })?;
    ok(unsafe { warpmail_lease_release(l) })?;
    expect(stats(p)?.open == 1, || "a share is out".into())?;
    let l = handle(|out| unsafe { warpmail_pool_claim(p, &raw, out) })?;
    ok(unsafe { warpmail_lease_destroy(l) })?;
    let s = stats(p)?;
    expect(s.open == 0 && s.used == 4096, || format!("{s:?}"))?;
    let leases = made(wm_leases::default(), |out| unsafe { warpmail_pool_leases(p, out) })?;
    expect(leases.n_rows == 64 && leases.rows != 0 && leases.marks != 0, || format!("{leases:?}"))?;
    ok(unsafe { warpmail_pool_destroy(p) })?;
    ok(unsafe { warpmail_tensor_download(again, [0u64; 512].as_mut_ptr().cast(), 4096) })?; // outlives its pool's handle
    ok(unsafe { warpmail_tensor_destroy(again) })
}

static TOLD: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn told(user: *mut std::ffi::c_void) {
    TOLD.fetch_add(user as u64, Ordering::Relaxed);
}

pub(crate) fn adopted_memory_is_told_when_free(on: &Device) -> Outcome {
    let p = pool(on, 4096)?;
    let theirs = on.alloc(4096).map_err(crate::text)?;
    let options = warpmail_tensor_options { flags: WM_TENSOR_READ_ONLY, ..numbers(&[8]) };
    let adopt = |address, out| unsafe {
        warpmail_pool_adopt(p, c"theirs".as_ptr(), address, &options, Some(told), 5 as *mut _, out)
    };
    is(adopt(0, &mut null_mut()), WARPMAIL_REFUSED, &["a tensor at"])?;
    let t = handle(|out| adopt(theirs.address(), out))?;
    let l = lease(t, 1)?;
    is(unsafe { warpmail_lease_upload(l, [0u64; 8].as_ptr().cast(), 64) }, WARPMAIL_REFUSED, &["read-only"])?;
    ok(unsafe { warpmail_tensor_destroy(t) })?;
    expect(stats(p)?.adopted == 64, || "it is held".into())?;
    ok(unsafe { warpmail_lease_destroy(l) })?;
    expect(TOLD.load(Ordering::Relaxed) == 0, || "told by a destroy".into())?;
    let freed = made(9, |n| unsafe { warpmail_pool_collect(p, n) })?;
    expect((freed, TOLD.load(Ordering::Relaxed)) == (1, 5), || format!("{freed} freed, {TOLD:?} told"))?;
    ok(unsafe { warpmail_pool_trim(p) })?;
    ok(unsafe { warpmail_pool_destroy(p) })
}
