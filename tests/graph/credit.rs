//! A grant is room: what the arbiter has been told of, nobody asks for again.

use std::mem::offset_of;
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
        && module.rejects == warpmail::Rejects::default();
    expect(passed, || format!("{what}: {stats:?}"))
}

pub(crate) fn a_grant_is_room(device: &Device) -> Outcome {
    pushes_on_credit(device, "resident", |graph| graph.resident("relay", builtin::RELAY))?;
    pushes_on_credit(device, "steps", |graph| graph.steps("relay", StreamOptions::default()))
}
