//! Stream modules arbitrated by the CPU, whose steps are enqueued behind what gives them their records.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use warpmail::{
    Body, Builder, Device, Error, HandlerImage, MailboxOptions, Mode, ModuleStats, Receiver, Rule, Runtime, Sender,
    SpinBudget, Stats, StreamOptions, builtin,
};
use warpmail_testkit::ring_record;

use crate::{BOUND, Outcome, expect, text};

fn forward() -> Body {
    Body::captured(|step| step.forward(0, 0))
}

fn moved(m: &ModuleStats) -> (u64, u64, u64) {
    (m.steps, m.records_in, m.records_out)
}

/// A record at a time down a resident module and a chain of stream modules: each is enqueued behind the one before it. Beside
/// them a stream module that never pushes, and one that is enqueued behind it in vain.
pub(crate) fn steps_are_enqueued_behind_their_producers(device: &Device) -> Outcome {
    const RECORDS: u64 = 400;
    const LENGTH: usize = 4;
    let mut graph = Builder::new(device.clone());
    graph.mode(Mode::Cpu).budget(SpinBudget { servers: 3, ..SpinBudget::default() }).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let resident = graph.resident("resident", builtin::RELAY).map_err(text)?;
    let there = graph.mailbox(host, resident, MailboxOptions::slots(4)).map_err(text)?;
    let (mut from, mut chain) = (resident, Vec::new());
    for i in 0..LENGTH {
        let steps = graph.steps(&format!("steps{i}"), StreamOptions::default()).map_err(text)?;
        graph.mailbox(from, steps, MailboxOptions::slots(4)).map_err(text)?;
        chain.push(steps);
        from = steps;
    }
    let back = graph.mailbox(from, host, MailboxOptions::slots(4)).map_err(text)?;
    let silent = graph.steps("silent", StreamOptions::default()).map_err(text)?;
    let in_vain = graph.steps("in vain", StreamOptions::default()).map_err(text)?;
    let aside = graph.mailbox(host, silent, MailboxOptions::slots(4)).map_err(text)?;
    let nothing = graph.mailbox(silent, in_vain, MailboxOptions::slots(4)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    for (n, &steps) in chain.iter().enumerate() {
        let body = if n % 2 == 0 { forward() } else { Body::each_step(|step| step.forward(0, 0)) };
        runtime.body(steps, body).map_err(text)?;
    }
    runtime.body(silent, Body::each_step(|_| Ok(()))).map_err(text)?;
    let ran = Arc::new(AtomicBool::new(false));
    let seen = ran.clone();
    let tell = Body::each_step(move |step| {
        let ran = seen.clone();
        step.call(move || ran.store(true, Ordering::Release))
    });
    runtime.body(in_vain, tell).map_err(text)?;
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    let mut aside = runtime.sender(aside).map_err(text)?;
    runtime.start().map_err(text)?;
    let mut buffer = [0; 248];
    for n in 0..RECORDS {
        sender.push(n as u16, &ring_record(n, n, 248), BOUND).map_err(text)?;
        let record = receiver.pop(&mut buffer, BOUND).map_err(|e| format!("record {n}: {e}; {:?}", runtime.stats()))?;
        let whole = record.msg_type == n as u16 && buffer[..record.len] == ring_record(n, n, 248);
        expect(whole, || format!("record {n} came back changed"))?;
        aside.push(1, b"taken", BOUND).map_err(text)?;
        runtime.drain(BOUND).map_err(text)?;
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    // Behind each step of the chain but the last the next one, whatever the arbiter's pace; but now and then a look at counters falls
    // between two of them.
    expect(stats.steps_ahead >= (LENGTH as u64 - 1) * RECORDS * 99 / 100, || format!("{stats:?}"))?;
    let of = |name: &str| stats.modules.iter().find(|m| m.name == name).map(moved);
    for i in 0..LENGTH {
        expect(of(&format!("steps{i}")) == Some((RECORDS, RECORDS, RECORDS)), || format!("{stats:?}"))?;
    }
    expect(of("silent") == Some((RECORDS, RECORDS, 0)) && of("in vain") == Some((0, 0, 0)), || format!("{stats:?}"))?;
    expect(!ran.load(Ordering::Acquire), || "a void launch called the host".into())?;
    expect(stats.mailboxes[nothing.index()].written == 0, || format!("{stats:?}"))?;
    expect(stats.modules.iter().all(|m| m.rejects == Default::default()), || format!("{stats:?}"))
}

/// What came out of both outputs, and what each module counted.
type Gone = (Vec<(u16, Vec<u8>)>, Vec<(String, (u64, u64, u64))>);

/// host -> a stream module that forwards to two -> one resident, one on a stream -> a stream module that joins them -> host.
fn split_and_join(device: &Device, mode: Mode, ahead: bool, slots: u32, records: u64) -> Result<(Gone, u64), Error> {
    let mut graph = Builder::new(device.clone());
    graph.mode(mode).ahead(ahead);
    let host = graph.host("host")?;
    let split = graph.steps("split", StreamOptions::default())?;
    let left = graph.resident("left", builtin::RELAY)?;
    let right = graph.steps("right", StreamOptions { priority: 2, ..StreamOptions::default() })?;
    let join = graph.steps("join", StreamOptions::default().with_rule(Rule::All))?;
    let there = graph.mailbox(host, split, MailboxOptions::slots(16))?;
    for (from, to) in [(split, left), (split, right), (left, join), (right, join)] {
        graph.mailbox(from, to, MailboxOptions::slots(slots))?;
    }
    let backs = [(); 2].map(|()| graph.mailbox(join, host, MailboxOptions::slots(16)));
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let twice = Body::captured(|step| {
        step.forward(0, 0)?;
        step.forward(0, 1)
    });
    runtime.body(split, twice)?;
    runtime.body(right, forward().always())?;
    let across = Body::captured(|step| {
        step.forward(0, 1)?;
        step.forward(1, 0)
    });
    runtime.body(join, across)?;
    let mut sender = runtime.sender(there)?;
    let mut receivers = Vec::new();
    for back in backs {
        receivers.push(runtime.receiver(back?)?);
    }
    runtime.start()?;
    let sending = std::thread::spawn(move || {
        (0..records).try_for_each(|n| sender.push(n as u16, &ring_record(n, n, 248), BOUND))
    });
    let (mut came, mut buffer) = (Vec::new(), [0; 248]);
    for _ in 0..records {
        for receiver in &mut receivers {
            let record = receiver.pop(&mut buffer, BOUND)?;
            came.push((record.msg_type, buffer[..record.len].to_vec()));
        }
    }
    sending.join().map_err(|_| Error::Failed("the sender panicked".into()))??;
    runtime.drain(BOUND)?;
    runtime.stop(BOUND)?;
    let stats = runtime.stats();
    // How many steps a handler takes for how many records is its own affair.
    let steps = |m: &ModuleStats| if m.name == "left" { (0, m.records_in, m.records_out) } else { moved(m) };
    let counters = stats.modules.iter().map(|m| (m.name.clone(), steps(m))).collect();
    Ok(((came, counters), stats.steps_ahead))
}

/// Records, their order and the counters are those of device-arbitrated mode, with short mailboxes too, and without steps ahead.
pub(crate) fn steps_ahead_change_no_result(device: &Device) -> Outcome {
    let records = if device.info().ordinal.is_some() { 20_000 } else { 2000 };
    for (slots, on) in [(1, true), (8, true), (2, false)] {
        let (ours, ahead) =
            split_and_join(device, Mode::Cpu, on, slots, records).map_err(|e| format!("{slots} slots: {e}"))?;
        let (twins, none) = split_and_join(&Device::twin(), Mode::Device, on, slots, records).map_err(text)?;
        let fine = (ahead > 0) == on && none == 0;
        expect(fine, || format!("{slots} slots: {ahead} ahead ({on}), and {none} where there are none"))?;
        expect(ours.1 == twins.1, || format!("{slots} slots: {:?}, not {:?}", ours.1, twins.1))?;
        for (n, record) in ours.0.iter().enumerate() {
            let from = n as u64 / 2; // each record came by both ways, in turn
            let whole = *record == (from as u16, ring_record(from, from, 248));
            expect(whole, || format!("{slots} slots: record {n} is not record {from} as it was sent"))?;
        }
    }
    Ok(())
}

/// A resident module that lets records into a ring of stream modules: `hops` of them with it.
fn ring(device: &Device, hops: usize) -> Result<(Runtime, Sender, Receiver), Error> {
    let mut graph = Builder::new(device.clone());
    graph.mode(Mode::Cpu);
    let host = graph.host("host")?;
    let entry = graph.resident("entry", builtin::RELAY)?;
    let there = graph.mailbox(host, entry, MailboxOptions::slots(8))?;
    let mut members = Vec::new();
    for i in 0..hops {
        // Each pushes what its buffer has, whichever input its record came by.
        members.push(graph.steps(&format!("member{i}"), StreamOptions::default().pushes(16, 1))?);
    }
    graph.mailbox(entry, members[0], MailboxOptions::slots(8))?;
    for i in 0..hops {
        graph.mailbox(members[i], members[(i + 1) % hops], MailboxOptions::slots(8))?;
    }
    // Beside the ring, to see that nobody else is starved by it.
    let beside = graph.steps("beside", StreamOptions::default())?;
    let aside = graph.mailbox(host, beside, MailboxOptions::slots(8))?;
    let back = graph.mailbox(beside, host, MailboxOptions::slots(8))?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    for &member in &members {
        runtime.body(member, Body::each_step(|_| Ok(())))?;
    }
    runtime.body(beside, forward())?;
    let (mut sender, aside, receiver) = (runtime.sender(there)?, runtime.sender(aside)?, runtime.receiver(back)?);
    runtime.start()?;
    for n in 0..2 {
        sender.push(1, &ring_record(n, n, 248), BOUND)?;
    }
    Ok((runtime, aside, receiver))
}

/// In a ring there is always a next step to enqueue: others get their turn all the same, a quiesce finds it at rest, and a stop
/// ends it.
pub(crate) fn rings_of_steps_run_ahead_and_stop(device: &Device) -> Outcome {
    let (mut runtime, mut sender, mut receiver) = ring(device, 3).map_err(text)?;
    let begin = Instant::now();
    let mut buffer = [0; 248];
    for n in 0..100u64 {
        sender.push(2, &ring_record(n, n, 248), BOUND).map_err(text)?;
        let record = receiver.pop(&mut buffer, BOUND).map_err(|e| format!("beside the ring: {e}"))?;
        expect(buffer[..record.len] == ring_record(n, n, 248), || format!("record {n} beside the ring came changed"))?;
        if n % 25 == 0 {
            let counts = |r: &Runtime| -> Vec<u64> { r.stats().modules[2..5].iter().map(|m| m.steps).collect() };
            let quiet = runtime.quiesce(BOUND, |r| {
                let first = counts(r);
                std::thread::sleep(Duration::from_millis(5));
                (first, counts(r))
            });
            let (first, then) = quiet.map_err(text)?;
            expect(first == then, || format!("steps ran in a quiesce: {first:?}, then {then:?}"))?;
        }
    }
    let ring_began = |stats: &Stats| stats.modules[2].steps > 50 && stats.steps_ahead > 50;
    while !ring_began(&runtime.stats()) && begin.elapsed() < BOUND {
        std::thread::sleep(Duration::from_millis(1));
    }
    runtime.stop(BOUND).map_err(text)?;
    expect(begin.elapsed() < BOUND, || "the ring held the others up".into())?;
    let stats = runtime.stats();
    let members = &stats.modules[2..5];
    // Two records go round: no member is more than two steps ahead of the next.
    let steps: Vec<u64> = members.iter().map(|m| m.steps).collect();
    let sound = steps[0] > 50 && (0..3).all(|i| steps[i].abs_diff(steps[(i + 1) % 3]) <= 2);
    expect(sound && members.iter().all(|m| m.records_in == m.steps && m.records_out == m.steps), || {
        format!("{stats:?}")
    })?;
    expect(stats.steps_ahead > 50, || format!("{stats:?}"))
}

/// Steps that stand behind a body which does not end: a close and a stop return within their bounds, and it is that body's module
/// that is named.
pub(crate) fn a_stuck_body_is_named_before_those_behind_it(device: &Device) -> Outcome {
    let mut graph = Builder::new(device.clone());
    graph.mode(Mode::Cpu);
    let host = graph.host("host").map_err(text)?;
    // The one that waits stands first in every table.
    let waits = graph.steps("waits", StreamOptions::default()).map_err(text)?;
    let stuck = graph.steps("stuck", StreamOptions::default()).map_err(text)?;
    let there = graph.mailbox(host, stuck, MailboxOptions::slots(4)).map_err(text)?;
    graph.mailbox(stuck, waits, MailboxOptions::slots(4)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    runtime.body(waits, Body::each_step(|_| Ok(()))).map_err(text)?;
    let release = Arc::new(AtomicBool::new(false));
    let released = release.clone();
    let hang = Body::each_step(move |step| {
        let released = released.clone();
        step.call(move || {
            let begin = Instant::now();
            while !released.load(Ordering::Acquire) && begin.elapsed() < BOUND {
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    });
    runtime.body(stuck, hang).map_err(text)?;
    let mut sender = runtime.sender(there).map_err(text)?;
    runtime.start().map_err(text)?;
    sender.push(1, b"for ever", BOUND).map_err(text)?;
    let late = Instant::now() + BOUND;
    while runtime.stats().steps_ahead == 0 {
        expect(Instant::now() < late, || format!("nothing was enqueued ahead: {:?}", runtime.stats()))?;
        std::thread::sleep(Duration::from_millis(1));
    }
    let begin = Instant::now();
    let stopped = runtime.stop(Duration::from_millis(300));
    let took = begin.elapsed();
    release.store(true, Ordering::Release);
    let named = matches!(&stopped, Err(e) if e.to_string().contains("stream module stuck"));
    expect(named && took < BOUND / 2, || format!("after {took:?}: {stopped:?}"))
}
