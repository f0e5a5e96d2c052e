//! Senders and receivers: batches, bounds, and one thread at a time.

use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use warpmail::Device;
use warpmail::abi::{WM_BAD_ARGUMENT, WM_BAD_LENGTH, WM_EMPTY, WM_FULL, WM_TIMEOUT, WM_TOO_SMALL};

use crate::graph::Loop;
use crate::sys::*;
use crate::{BOUND, MS, Outcome, Shared, device, expect, is, made, name, ok};

const EMPTY: i32 = WM_EMPTY as i32;
const FULL: i32 = WM_FULL as i32;
const TIMEOUT: i32 = WM_TIMEOUT as i32;

type Ends = (*mut warpmail_sender, *mut warpmail_receiver);

fn direct(on: &Device, slots: u32) -> Result<Ends, String> {
    let d = device(on)?;
    let shape = warpmail_mailbox_options { struct_size: 16, stride: 256, slots, reserved: 0 };
    let (mut sender, mut receiver) = (null_mut(), null_mut());
    ok(unsafe { warpmail_direct_mailbox(d, &shape, &mut sender, &mut receiver) })?;
    ok(unsafe { warpmail_device_destroy(d) })?;
    Ok((sender, receiver))
}

fn destroy((sender, receiver): Ends) -> Outcome {
    ok(unsafe { warpmail_sender_destroy(sender) })?;
    ok(unsafe { warpmail_receiver_destroy(receiver) })
}

fn pop(receiver: *mut warpmail_receiver, buffer: &mut [u8]) -> (i32, warpmail_record) {
    let mut record = warpmail_record::default();
    let status = unsafe { warpmail_receiver_try_pop(receiver, buffer.as_mut_ptr().cast(), buffer.len(), &mut record) };
    (status, record)
}

pub(crate) fn batches_and_small_buffers(on: &Device) -> Outcome {
    let (sender, receiver) = direct(on, 128)?;
    let payload = made(0, |n| unsafe { warpmail_sender_payload_bytes(sender, n) })?;
    expect(payload == 248, || format!("{payload} payload bytes"))?;
    let bytes: Vec<u8> = (0..200 * 5).map(|i| (i % 251) as u8).collect();
    let mut n = 77;
    let batch = |len, count, n: &mut usize| unsafe {
        warpmail_sender_try_push_batch(sender, 3, bytes.as_ptr().cast(), len, count, n)
    };
    ok(batch(5, 200, &mut n))?;
    expect(n == 128, || format!("{n} of 200 went into 128 slots"))?;
    expect(batch(5, 1, &mut n) == FULL && n == 0, || format!("{n} more"))?;
    is(batch(249, 1, &mut n), WM_BAD_LENGTH, &["249 bytes", "248"])?;
    is(batch(0, 3, &mut n), WARPMAIL_REFUSED, &["at least one byte"])?;
    is(batch(usize::MAX, 2, &mut n), WM_BAD_ARGUMENT, &["too many"])?;

    let ready = made(9, |r| unsafe { warpmail_receiver_is_ready(receiver, r) })?;
    expect(ready == 1, || "is_ready says no".into())?;
    let (status, record) = pop(receiver, &mut [0; 4]);
    is(status, WM_TOO_SMALL, &["5 bytes", "buffer 4"])?;
    expect(record.len == 5, || format!("{record:?}"))?;
    let mut records = [warpmail_record::default(); 100];
    let mut buffer = [0u8; 800];
    let mut take = |step, count| {
        let mut n = 77;
        let (into, records) = (buffer.as_mut_ptr().cast(), records.as_mut_ptr());
        (unsafe { warpmail_receiver_try_pop_batch(receiver, into, step, count, records, &mut n) }, n)
    };
    let (status, n) = take(4, 8);
    is(status, WM_TOO_SMALL, &["5 bytes"])?;
    expect(n == 0, || format!("{n} popped"))?;
    is(take(0, 8).0, WM_BAD_ARGUMENT, &["at least one"])?;
    expect(take(8, 100) == (0, 64) && take(8, 100) == (0, 64), || "not 64 at once".into())?;
    expect(take(8, 100) == (EMPTY, 0), || "more than was pushed".into())?;
    expect(records[0].len == 5 && records[63].msg_type == 3, || format!("{:?}", records[0]))?;
    let last: Vec<u8> = buffer[63 * 8..63 * 8 + 5].to_vec();
    expect(last == bytes[127 * 5..128 * 5], || format!("{last:?}"))?;
    expect(pop(receiver, &mut [0; 8]).0 == EMPTY, || "not empty".into())?;
    is(unsafe { warpmail_sender_try_push(sender, 0, null(), 1) }, WM_BAD_ARGUMENT, &["payload"])?;
    ok(unsafe { warpmail_sender_try_push(sender, 9, null(), 0) })?;
    let (status, record) = pop(receiver, &mut []);
    ok(status)?;
    expect((record.len, record.msg_type) == (0, 9), || format!("{record:?}"))?;
    destroy((sender, receiver))
}

pub(crate) fn one_thread_at_a_time(on: &Device) -> Outcome {
    let (sender, receiver) = direct(on, 1)?;
    ok(unsafe { warpmail_sender_try_push(sender, 0, null(), 0) })?;
    let there = Shared(sender);
    // One thread waits in a push for a slot that does not come free.
    let waiting = std::thread::spawn(move || {
        let there = there;
        loop {
            // The other thread may be in a call of its own just now.
            match unsafe { warpmail_sender_push(there.0, 0, null(), 0, 3000 * MS) } {
                WARPMAIL_BUSY => std::thread::yield_now(),
                status => return status,
            }
        }
    });
    let begin = Instant::now();
    while unsafe { warpmail_sender_pushed(sender, &mut 0) } != WARPMAIL_BUSY {
        expect(begin.elapsed() < Duration::from_secs(20), || "never busy".into())?;
    }
    let words = ["another thread", "warpmail_sender"];
    is(unsafe { warpmail_sender_try_push(sender, 0, null(), 0) }, WARPMAIL_BUSY, &words)?;
    is(unsafe { warpmail_sender_push(sender, 0, null(), 0, BOUND) }, WARPMAIL_BUSY, &words)?;
    is(unsafe { warpmail_sender_destroy(sender) }, WARPMAIL_BUSY, &words)?;
    let waited = waiting.join().map_err(|_| "panicked".to_string())?;
    expect(waited == TIMEOUT, || name(waited))?;
    ok(unsafe { warpmail_sender_pushed(sender, &mut 0) })?;
    destroy((sender, receiver))
}

pub(crate) fn many_threads_take_turns(on: &Device) -> Outcome {
    // Four threads misuse one sender, and try again when told: every record arrives, once.
    const EACH: u64 = 5_000;
    let (sender, receiver) = direct(on, 32)?;
    let there = Shared(sender);
    let threads: Vec<_> = (0..4u64)
        .map(|t| {
            std::thread::spawn(move || {
                let there = there;
                let mut busy = 0u64;
                for n in 0..EACH {
                    let record = t << 32 | n;
                    loop {
                        match unsafe { warpmail_sender_try_push(there.0, 1, (&raw const record).cast(), 8) } {
                            0 => break,
                            WARPMAIL_BUSY => busy += 1,
                            FULL => std::thread::yield_now(),
                            status => return Err(name(status)),
                        }
                    }
                }
                Ok(busy)
            })
        })
        .collect();
    let mut next = [0; 4];
    let mut record = warpmail_record::default();
    for _ in 0..4 * EACH {
        let mut value = 0u64;
        ok(unsafe { warpmail_receiver_pop(receiver, (&raw mut value).cast(), 8, &mut record, BOUND) })?;
        let thread = (value >> 32) as usize;
        expect(value & 0xFFFF_FFFF == next[thread], || format!("{value:#x}, not {}", next[thread]))?;
        next[thread] += 1;
    }
    for thread in threads {
        thread.join().map_err(|_| "panicked".to_string())??;
    }
    destroy((sender, receiver))
}

pub(crate) fn waits_are_bounded(on: &Device) -> Outcome {
    let (sender, receiver) = direct(on, 2)?;
    let (mut buffer, mut record) = ([0u8; 248], warpmail_record::default());
    let begin = Instant::now();
    let into = buffer.as_mut_ptr().cast();
    is(unsafe { warpmail_receiver_pop(receiver, into, 248, &mut record, 50 * MS) }, TIMEOUT, &["a record", "50ms"])?;
    expect(begin.elapsed() >= Duration::from_millis(50), || format!("{:?}", begin.elapsed()))?;
    expect(begin.elapsed() < Duration::from_secs(20), || format!("{:?}", begin.elapsed()))?;
    let long = WARPMAIL_BOUND_MAX_NS + 1;
    is(unsafe { warpmail_receiver_pop(receiver, into, 248, &mut record, long) }, WM_BAD_ARGUMENT, &["a day"])?;
    is(unsafe { warpmail_sender_push(sender, 0, null(), 0, u64::MAX) }, WM_BAD_ARGUMENT, &["BOUND_MAX"])?;
    ok(unsafe { warpmail_sender_push(sender, 0, null(), 0, 0) })?;
    ok(unsafe { warpmail_receiver_pop(receiver, into, 248, &mut record, WARPMAIL_BOUND_MAX_NS) })?;
    destroy((sender, receiver))
}

pub(crate) fn one_end_each(on: &Device) -> Outcome {
    let l = Loop::relay(on, 4)?;
    let again = unsafe { warpmail_runtime_sender(l.runtime, 0, &mut null_mut()) };
    is(again, WARPMAIL_REFUSED, &["host->module", "has been taken"])?;
    ok(unsafe { warpmail_sender_destroy(l.sender) })?;
    let after = unsafe { warpmail_runtime_sender(l.runtime, 0, &mut null_mut()) };
    is(after, WARPMAIL_REFUSED, &["has been taken"])?;
    let other = unsafe { warpmail_runtime_receiver(l.runtime, 0, &mut null_mut()) };
    is(other, WARPMAIL_REFUSED, &["consumer is not a host module"])?;
    ok(unsafe { warpmail_receiver_destroy(l.receiver) })?;
    ok(unsafe { warpmail_runtime_destroy(l.runtime) })
}
