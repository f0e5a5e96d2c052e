//! Handles: null, foreign, of another kind, destroyed; and threads that race for them.

use std::ptr::null_mut;

use warpmail::Device;
use warpmail::abi::{WM_BAD_ARGUMENT, wm_leases, wm_mailbox, wm_tensor};

use crate::sys::*;
use crate::{BOUND, Outcome, Shared, device, expect, handle, is, made, name, ok};

type Call<T> = (&'static str, fn(*mut T) -> i32);

/// Every function whose first parameter is a handle, with nothing else wrong.
macro_rules! calls {
    ($($function:ident($($arg:expr),*)),* $(,)?) => {
        [$((stringify!($function), |h| unsafe { $function(h $(, $arg)*) })),*]
    };
}

const NAME: *const std::ffi::c_char = c"x".as_ptr();

const DEVICE: [Call<warpmail_device>; 5] = calls![
    warpmail_device_json([0; 4096].as_mut_ptr(), 4096, null_mut()),
    warpmail_builder_new(&mut null_mut()),
    warpmail_direct_mailbox(std::ptr::null(), &mut null_mut(), &mut null_mut()),
    warpmail_pool_new(std::ptr::null(), &mut null_mut()),
    warpmail_device_destroy(),
];
const BUILDER: [Call<warpmail_builder>; 13] = calls![
    warpmail_builder_resident(NAME, std::ptr::null(), &mut 0),
    warpmail_builder_host(NAME, &mut 0),
    warpmail_builder_stream(NAME, &mut 0),
    warpmail_builder_steps(NAME, std::ptr::null(), &mut 0),
    warpmail_builder_mode(0),
    warpmail_builder_static_order(0),
    warpmail_builder_beside(0),
    warpmail_builder_mailbox(0, 0, std::ptr::null(), &mut 0),
    warpmail_builder_state_memory(0, NAME, 4096, 8, &mut 0),
    warpmail_builder_pointer(0, 0, 0),
    warpmail_builder_pool(null_mut()),
    warpmail_builder_build(null_mut(), &mut null_mut()),
    warpmail_builder_destroy(),
];
const RUNTIME: [Call<warpmail_runtime>; 25] = calls![
    warpmail_runtime_start(),
    warpmail_runtime_stop(BOUND),
    warpmail_runtime_drain(BOUND),
    warpmail_runtime_quiesce(BOUND, Some(quiet), null_mut()),
    warpmail_runtime_checkpoint(NAME, std::ptr::null(), 0, BOUND),
    warpmail_runtime_restore(NAME, null_mut()),
    warpmail_runtime_body(0, 0, Some(body), null_mut()),
    warpmail_runtime_body_graph(0, 0, 8),
    warpmail_runtime_step_input(0, 0, &mut 0, null_mut()),
    warpmail_runtime_step_output(0, 0, &mut 0, null_mut()),
    warpmail_runtime_close(0, BOUND),
    warpmail_runtime_mode(&mut 0),
    warpmail_runtime_state(&mut 0),
    warpmail_runtime_failure([0; 4096].as_mut_ptr(), 4096, null_mut()),
    warpmail_handle(0, &mut wm_mailbox::default()),
    warpmail_runtime_read_state(0, null_mut(), 0),
    warpmail_runtime_write_state(0, null_mut(), 0),
    warpmail_runtime_stats(&mut warpmail_stats::default()),
    warpmail_runtime_module_stats(0, &mut warpmail_module_stats::default()),
    warpmail_runtime_mailbox_stats(0, &mut warpmail_mailbox_stats::default()),
    warpmail_runtime_stats_json([0; 4096].as_mut_ptr(), 4096, null_mut()),
    warpmail_runtime_sender(0, &mut null_mut()),
    warpmail_runtime_receiver(0, &mut null_mut()),
    warpmail_runtime_recall_tensors(null_mut()),
    warpmail_runtime_destroy(),
];
const SENDER: [Call<warpmail_sender>; 8] = calls![
    warpmail_sender_try_push(0, null_mut(), 0),
    warpmail_sender_push(0, null_mut(), 0, BOUND),
    warpmail_sender_try_push_batch(0, null_mut(), 1, 0, &mut 0),
    warpmail_sender_payload_bytes(&mut 0),
    warpmail_sender_pushed(&mut 0),
    warpmail_sender_attach_pool(null_mut()),
    warpmail_sender_post(null_mut(), null_mut(), 0, 0),
    warpmail_sender_destroy(),
];
const RECEIVER: [Call<warpmail_receiver>; 8] = calls![
    warpmail_receiver_try_pop(null_mut(), 0, &mut warpmail_record::default()),
    warpmail_receiver_pop(null_mut(), 0, &mut warpmail_record::default(), BOUND),
    warpmail_receiver_try_pop_batch([0u8; 8].as_mut_ptr().cast(), 8, 1, &mut warpmail_record::default(), &mut 0),
    warpmail_receiver_is_ready(&mut 0),
    warpmail_receiver_popped(&mut 0),
    warpmail_receiver_attach_pool(null_mut()),
    warpmail_receiver_take(null_mut(), 0, &mut 0, 0, &mut null_mut()),
    warpmail_receiver_destroy(),
];
const POOL: [Call<warpmail_pool>; 9] = calls![
    warpmail_pool_alloc(NAME, std::ptr::null(), 0, &mut null_mut()),
    warpmail_pool_adopt(NAME, 64, std::ptr::null(), None, null_mut(), &mut null_mut()),
    warpmail_pool_collect(null_mut()),
    warpmail_pool_trim(),
    warpmail_pool_leases(&mut wm_leases::default()),
    warpmail_pool_claim(&wm_tensor::default(), &mut null_mut()),
    warpmail_pool_stats_get(&mut warpmail_pool_stats::default()),
    warpmail_pool_holders_json([0; 4096].as_mut_ptr(), 4096, null_mut()),
    warpmail_pool_destroy(),
];
const TENSOR: [Call<warpmail_tensor>; 5] = calls![
    warpmail_tensor_descriptor(&mut wm_tensor::default()),
    warpmail_tensor_upload(null_mut(), 0),
    warpmail_tensor_download(null_mut(), 0),
    warpmail_tensor_lease(1, &mut null_mut()),
    warpmail_tensor_destroy(),
];
const LEASE: [Call<warpmail_lease>; 9] = calls![
    warpmail_lease_descriptor(&mut wm_tensor::default()),
    warpmail_lease_upload(null_mut(), 0),
    warpmail_lease_download(null_mut(), 0),
    warpmail_lease_part(1, &mut null_mut()),
    warpmail_lease_tensor(&mut null_mut()),
    warpmail_lease_destroy(),
    warpmail_lease_release(),
    warpmail_lease_release_on(0),
    warpmail_lease_into_raw(&mut wm_tensor::default()),
];
const STEP: [Call<warpmail_step>; 7] = calls![
    warpmail_step_stream(&mut 0),
    warpmail_step_live(&mut 0),
    warpmail_step_input(0, &mut 0, null_mut()),
    warpmail_step_output(0, &mut 0, null_mut()),
    warpmail_step_copy(4096, 4096, 0),
    warpmail_step_forward(0, 0),
    warpmail_step_call(Some(call), null_mut()),
];
const IMAGE: [Call<warpmail_image>; 1] = calls![warpmail_image_destroy()];

unsafe extern "C" fn quiet(_: *mut warpmail_runtime, _: *mut std::ffi::c_void) -> i32 {
    0
}

unsafe extern "C" fn body(_: *mut warpmail_step, _: *mut std::ffi::c_void) -> i32 {
    0
}

unsafe extern "C" fn call(_: *mut std::ffi::c_void) {}

fn all<T>(calls: &[Call<T>], handle: *mut T, wanted: i32, words: &[&str]) -> Outcome {
    for (function, call) in calls {
        is(call(handle), wanted, words).map_err(|e| format!("{function}: {e}"))?;
    }
    Ok(())
}

/// The same wrong handle for every function there is.
fn everywhere(id: usize, wanted: i32, words: &[&str]) -> Outcome {
    all(&DEVICE, id as *mut _, wanted, words)?;
    all(&IMAGE, id as *mut _, wanted, words)?;
    all(&BUILDER, id as *mut _, wanted, words)?;
    all(&RUNTIME, id as *mut _, wanted, words)?;
    all(&SENDER, id as *mut _, wanted, words)?;
    all(&RECEIVER, id as *mut _, wanted, words)?;
    all(&POOL, id as *mut _, wanted, words)?;
    all(&TENSOR, id as *mut _, wanted, words)?;
    all(&STEP, id as *mut _, wanted, words)?;
    all(&LEASE, id as *mut _, wanted, words)
}

pub(crate) fn null_is_refused_everywhere(on: &Device) -> Outcome {
    everywhere(0, WARPMAIL_BAD_HANDLE, &["is null"])?;
    // And what is written to.
    let d = device(on)?;
    is(unsafe { warpmail_device_twin(null_mut()) }, WM_BAD_ARGUMENT, &["out is null"])?;
    is(unsafe { warpmail_builder_new(d, null_mut()) }, WM_BAD_ARGUMENT, &["out is null"])?;
    is(unsafe { warpmail_builder_new(d, 12 as *mut _) }, WM_BAD_ARGUMENT, &["not aligned"])?;
    let b = handle(|out| unsafe { warpmail_builder_new(d, out) })?;
    is(unsafe { warpmail_builder_host(b, std::ptr::null(), &mut 0) }, WM_BAD_ARGUMENT, &["name is null"])?;
    is(unsafe { warpmail_builder_host(b, c"\xFF".as_ptr(), &mut 0) }, WM_BAD_ARGUMENT, &["UTF-8"])?;
    is(unsafe { warpmail_builder_host(b, NAME, null_mut()) }, WM_BAD_ARGUMENT, &["module is null"])?;
    let first = made(7, |id| unsafe { warpmail_builder_host(b, NAME, id) })?;
    expect(first == 0, || format!("the refused calls added a module: the next is {first}"))
}

pub(crate) fn foreign_handles_are_refused(on: &Device) -> Outcome {
    let alive = device(on)?;
    let local = 5u64;
    let mut ids = vec![1, 8, usize::MAX, &raw const local as usize, quiet as *const () as usize];
    // Every single bit of a live id turned over, and noise under the mark.
    ids.extend((0..64).map(|bit| alive as usize ^ (1 << bit)));
    let noise = |n: u64| warpmail_testkit::word_of(n, 0) as usize;
    ids.extend((0..500).flat_map(|n| [noise(n), noise(n) >> 8 | 0x57 << 56]));
    for id in ids {
        everywhere(id, WARPMAIL_BAD_HANDLE, &[]).map_err(|e| format!("{id:#x}: {e}"))?;
    }
    ok(unsafe { warpmail_device_destroy(alive) })
}

pub(crate) fn destroyed_handles_stay_destroyed(on: &Device) -> Outcome {
    let d = device(on)?;
    ok(unsafe { warpmail_device_destroy(d) })?;
    all(&DEVICE, d, WARPMAIL_STALE_HANDLE, &["has been destroyed"])?;
    // Its row is used again, many times: the old id does not come to life, nor do those between.
    let mut old = vec![d];
    for _ in 0..100 {
        let again = device(on)?;
        expect(!old.contains(&again), || format!("{again:?} came back"))?;
        old.push(again);
        ok(unsafe { warpmail_device_destroy(again) })?;
    }
    for d in old {
        all(&DEVICE, d, WARPMAIL_STALE_HANDLE, &["has been destroyed"])?;
    }
    // Many alive at the same time.
    let many =
        (0..3000).map(|_| handle(|out| unsafe { warpmail_image_builtin(out) })).collect::<Result<Vec<_>, _>>()?;
    for &image in &many {
        ok(unsafe { warpmail_image_destroy(image) })?;
    }
    for &image in &many {
        all(&IMAGE, image, WARPMAIL_STALE_HANDLE, &["warpmail_image has been destroyed"])?;
    }
    Ok(())
}

pub(crate) fn kinds_are_not_mixed_up(on: &Device) -> Outcome {
    let d = device(on)?;
    let (mut sender, mut receiver) = (null_mut(), null_mut());
    ok(unsafe { warpmail_direct_mailbox(d, std::ptr::null(), &mut sender, &mut receiver) })?;
    all(&SENDER, receiver.cast(), WARPMAIL_BAD_HANDLE, &["is a warpmail_receiver", "warpmail_sender is needed"])?;
    all(&RECEIVER, sender.cast(), WARPMAIL_BAD_HANDLE, &["is a warpmail_sender", "warpmail_receiver is needed"])?;
    all(&RUNTIME, d.cast(), WARPMAIL_BAD_HANDLE, &["is a warpmail_device"])?;
    all(&IMAGE, d.cast(), WARPMAIL_BAD_HANDLE, &["is a warpmail_device"])?;
    all(&BUILDER, sender.cast(), WARPMAIL_BAD_HANDLE, &["is a warpmail_sender"])?;
    ok(unsafe { warpmail_sender_destroy(sender) })?;
    // Wrong and gone: gone is what helps more.
    all(&RUNTIME, sender.cast(), WARPMAIL_STALE_HANDLE, &["warpmail_sender has been destroyed"])?;
    ok(unsafe { warpmail_receiver_destroy(receiver) })?;
    ok(unsafe { warpmail_device_destroy(d) })
}

pub(crate) fn threads_race_for_handles(on: &Device) -> Outcome {
    // Threads use a handle while one of them destroys it: exactly one destroy wins, nobody sees anything but a status.
    for _ in 0..300 {
        let d = Shared(device(on)?);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(move || {
                    let d = d;
                    let mut text = [0; 1024];
                    let used = unsafe { warpmail_device_json(d.0, text.as_mut_ptr(), text.len(), null_mut()) };
                    (used, unsafe { warpmail_device_destroy(d.0) })
                })
            })
            .collect();
        let mut won = 0;
        for thread in threads {
            let (used, destroyed) = thread.join().map_err(|_| "a thread panicked".to_string())?;
            for status in [used, destroyed] {
                expect(status == 0 || status == WARPMAIL_STALE_HANDLE, || name(status))?;
            }
            won += i32::from(destroyed == 0);
        }
        expect(won == 1, || format!("{won} destroys succeeded"))?;
    }
    Ok(())
}
