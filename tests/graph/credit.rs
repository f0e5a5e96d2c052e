//! A grant is room: what the arbiter has been told of, nobody asks for again.

use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use warpmail::{
    Body, Builder, Device, HandlerImage, MailboxOptions, ModuleId, SpinBudget, StreamOptions, abi, builtin,
};
use warpmail_testkit::ring_record;

use crate::{BOUND, Outcome, expect, text};

const SLOTS: u64 = 2;

/// A consumer on the host that is kept from its core between the two stores with which it gives a slot back: the arbiter
/// has been told, the header still says that the mailbox is full. The step that is granted pushes all the same.
fn pushes_on_credit(
    device: &Device,
    what: &str,
    module: impl Fn(&mut Builder) -> warpmail::Result<ModuleId>,
) -> Outcome {
    let mut graph = Builder::new(device.clone());
    graph.budget(SpinBudget { idle_spin: None, ..graph.current_budget().clone() }).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let relay = module(&mut graph).map_err(text)?;
    let there = graph.mailbox(host, relay, MailboxOptions::slots(8)).map_err(text)?;
    let back = graph.mailbox(relay, host, MailboxOptions::slots(SLOTS as u32)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    if what == "steps" {
        runtime.body(relay, Body::captured(|step| step.forward(0, 0))).map_err(text)?;
    }
    let mut sender = runtime.sender(there).map_err(text)?;
    // Of an end on the host both lie in pinned memory, at the same address for the host and the device.
    let end = runtime.handle(back).map_err(text)?;
    let told = end.consumed as *mut u64;
    let header = |offset: usize| (end.header + offset as u64) as *mut u64;
    let written = header(offset_of!(abi::wm_mailbox_header, write_idx));
    let until = |n: u64| {
        let begin = Instant::now();
        // SAFETY: an aligned word of the runtime's pinned memory, which lives.
        while unsafe { written.read_volatile() } != n {
            expect(begin.elapsed() < BOUND, || format!("{what}: record {} did not come", n - 1))?;
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok::<(), String>(())
    };
    runtime.start().map_err(text)?;
    for n in 0..=SLOTS {
        sender.push(n as u16, &ring_record(n, n, 248), BOUND).map_err(text)?;
    }
    until(SLOTS)?;
    // SAFETY: as above; this is the mailbox's consumer.
    unsafe { told.write_volatile(1) };
    until(SLOTS + 1)?;
    // Nor is the mailbox damaged to an arbiter that begins anew: it believes what it was told.
    runtime.quiesce(BOUND, |_| ()).map_err(text)?;
    // SAFETY: as above.
    unsafe { header(offset_of!(abi::wm_mailbox_header, read_idx)).write_volatile(1) };
    let mut receiver = runtime.receiver(back).map_err(text)?;
    let mut buffer = [0; 248];
    for n in 1..=SLOTS {
        let record = receiver.pop(&mut buffer, BOUND).map_err(text)?;
        let same = record.msg_type == n as u16 && buffer[..record.len] == ring_record(n, n, 248);
        expect(same, || format!("{what}: record {n} came changed"))?;
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    let module = &stats.modules[relay.index()];
    let passed = module.records_in == SLOTS + 1
        && module.records_out == SLOTS + 1
        && module.rejects == warpmail::Rejects::default()
        && stats.mailboxes.iter().all(|m| m.quarantined.is_none());
    expect(passed, || format!("{what}: {stats:?}"))
}

pub(crate) fn a_grant_is_room(device: &Device) -> Outcome {
    pushes_on_credit(device, "resident", |graph| graph.resident("relay", builtin::RELAY))?;
    pushes_on_credit(device, "steps", |graph| graph.steps("relay", StreamOptions::default()))
}

/// Steps go on while the arbiter begins anew: none of their records is lost, taken twice or written over. The moment in which
/// credit was given twice is shorter than this finds it; `tests/model/credit.pml` does (PLANT_BEGIN_SETTLED).
pub(crate) fn a_quiesce_gives_no_credit_twice(device: &Device) -> Outcome {
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let steps = graph.steps("steps", StreamOptions::default()).map_err(text)?;
    let there = graph.mailbox(host, steps, MailboxOptions::slots(64)).map_err(text)?;
    let back = graph.mailbox(steps, host, MailboxOptions::slots(16)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    // Slow enough that steps which were granted are left when the arbiter goes.
    let body = Body::each_step(|step| {
        step.forward(0, 0)?;
        step.call(|| std::thread::sleep(Duration::from_micros(50)))
    });
    runtime.body(steps, body).map_err(text)?;
    let mut sender = runtime.sender(there).map_err(text)?;
    let mut receiver = runtime.receiver(back).map_err(text)?;
    runtime.start().map_err(text)?;
    let (over, lost, sent) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(u64::MAX));
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut n = 0;
            while !over.load(Ordering::Acquire) {
                n += u64::from(sender.try_push(n as u16, &ring_record(n, n, 248)).is_ok());
                std::thread::yield_now();
            }
            sent.store(n, Ordering::Release);
        });
        let receiving = scope.spawn(|| {
            let (mut n, mut buffer) = (0, [0; 248]);
            while n != sent.load(Ordering::Acquire) && !lost.load(Ordering::Acquire) {
                // Full for most of the time; then much of it is given back at once, and more is granted than stands enqueued.
                if n % 12 == 0 && !over.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let Some(record) = receiver.try_pop(&mut buffer).map_err(text)? else { continue };
                let same = record.msg_type == n as u16 && buffer[..record.len] == ring_record(n, n, 248);
                expect(same, || format!("record {n} came changed, or another in its place"))?;
                n += 1;
            }
            Ok::<(), String>(())
        });
        let quiesced = (0..count(device)).try_for_each(|_| {
            std::thread::sleep(Duration::from_millis(2));
            runtime.quiesce(BOUND, |_| ()).map_err(text)
        });
        over.store(true, Ordering::Release);
        sending.join().map_err(|_| "the sender panicked")?;
        // A record that was lost would be waited for.
        let begin = Instant::now();
        while !receiving.is_finished() && begin.elapsed() < BOUND {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !receiving.is_finished() {
            lost.store(true, Ordering::Release);
            return Err(format!("records are missing: {:?}", runtime.stats()));
        }
        receiving.join().map_err(|_| "the receiver panicked")??;
        quiesced
    })?;
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    let sound = stats.modules[steps.index()].rejects == warpmail::Rejects::default()
        && stats.mailboxes.iter().all(|m| m.quarantined.is_none());
    expect(sound, || format!("{stats:?}"))
}

/// Times to quiesce.
fn count(device: &Device) -> u32 {
    if device.info().ordinal.is_some() { 400 } else { 200 }
}
