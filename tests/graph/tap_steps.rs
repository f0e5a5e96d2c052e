//! Taps of mailboxes between stream modules, and between one and the host: their steps journal what they take and give.

use std::collections::HashMap;
use std::time::Duration;

use warpmail::journal::{JournalStats, Log, NullSink, Reader};
use warpmail::{
    Body, Builder, DType, Delivery, Device, Error, HandlerImage, MailboxOptions, Mode, Pool, PoolOptions, Receiver,
    Rule, Runtime, Sender, StreamOptions, Tap, TensorSpec, builtin,
};
use warpmail_testkit::ring_record;

use crate::flow::echo;
use crate::tap::{Folder, Trial, sender_is_told};
use crate::{BOUND, Outcome, expect, text};

fn forward() -> Body {
    Body::captured(|step| step.forward(0, 0))
}

/// host -> first -> second -> host, with taps on all three mailboxes: the first is journalled where it is taken, the others where
/// they are given.
fn chain(
    device: &Device,
    options: &StreamOptions,
    slot: MailboxOptions,
    tap: Tap,
    (msg_type, journal_slots): (Option<u16>, u32),
    passes: bool,
) -> Result<(Runtime, Sender, Receiver), Error> {
    let mut graph = Builder::new(device.clone());
    graph.static_order(passes);
    let host = graph.host("host")?;
    let (first, second) = (graph.steps("first", options.clone())?, graph.steps("second", options.clone())?);
    let there = graph.mailbox(host, first, slot.clone())?;
    graph.mailbox(first, second, slot.clone())?;
    let back = graph.mailbox(second, host, slot)?;
    graph.tap_all(tap)?.journal_slots(journal_slots)?;
    if let Some(msg_type) = msg_type {
        graph.tap_type(there, tap, msg_type)?.tap_type(back, tap, msg_type)?;
    }
    let mut runtime = graph.build(HandlerImage::builtin())?;
    runtime.body(first, forward())?;
    let each = Body::each_step(|step| step.forward(0, 0));
    runtime.body(second, if passes { forward().always() } else { each })?;
    let ends = (runtime.sender(there)?, runtime.receiver(back)?);
    Ok((runtime, ends.0, ends.1))
}

fn adds_up(stats: &JournalStats, each: &[u64]) -> Outcome {
    let of = |(t, &n): (&warpmail::journal::TapStats, &u64)| {
        t.accepted == n && t.durable == n && t.in_flight + t.dropped + t.lost == 0
    };
    let fine = stats.taps.len() == each.len() && stats.taps.iter().zip(each).all(of) && stats.failed.is_none();
    expect(fine, || format!("{each:?} were expected: {stats:?}"))
}

pub(crate) fn are_whole_and_in_order(device: &Device) -> Outcome {
    const RECORDS: u64 = 1200;
    let patient = StreamOptions::default();
    let hasty = StreamOptions { spin: Some(Duration::from_micros(2)), ahead: 2, ..StreamOptions::default() };
    let (usual, long) = (MailboxOptions::slots(16), MailboxOptions { stride: 4096, slots: 4 });
    // Rings that are hardly longer than a step needs, and ones that are never full.
    let cpu = matches!(Builder::new(device.clone()).current_mode(), Ok(Mode::Cpu));
    let trials = [
        (&patient, usual.clone(), 2, false),
        (&hasty, usual.clone(), 256, false),
        (&patient, long, 4, false),
        (&patient, usual, 4, true),
    ];
    for (options, slot, journal_slots, passes) in trials.into_iter().filter(|t| cpu || !t.3) {
        let folder = Folder::new("steps");
        let (mut runtime, mut sender, mut receiver) =
            chain(device, options, slot.clone(), Tap::Block, (None, journal_slots), passes).map_err(text)?;
        runtime.journal(folder.log().map_err(text)?).map_err(text)?;
        runtime.start().map_err(text)?;
        echo(&mut sender, &mut receiver, 0, RECORDS)?;
        runtime.drain(BOUND).map_err(text)?;
        runtime.stop(BOUND).map_err(text)?;
        adds_up(&runtime.journal_stats().ok_or("no journal")?, &[RECORDS; 3])?;
        let (mut next, mut last_ns) = (HashMap::new(), HashMap::new());
        let len = sender.payload_bytes();
        for record in Reader::open(&folder.0, 1).map_err(text)? {
            let record = record.map_err(text)?;
            let n = next.entry(record.mailbox).or_insert(0u64);
            let whole = record.payload == ring_record(*n, *n, len) && record.msg_type == *n as u16;
            expect(whole, || format!("record {n} of mailbox {} is another in the log", record.mailbox))?;
            let last = last_ns.insert(record.mailbox, record.producer_ns).unwrap_or(0);
            expect(record.producer_ns >= last, || format!("record {n} went back in time"))?;
            *n += 1;
        }
        expect((0..3).all(|m| next.get(&m) == Some(&RECORDS)), || format!("{next:?}"))?;
    }
    Ok(())
}

/// A sink that is slower than the modules holds them back, or what finds no room is counted; a tap of one type sees no other.
pub(crate) fn hold_back_drop_and_choose(device: &Device) -> Outcome {
    const RECORDS: u64 = 600;
    for tap in [Tap::Block, Tap::Drop] {
        let what = (None, 4);
        let (mut runtime, mut sender, mut receiver) =
            chain(device, &StreamOptions::default(), MailboxOptions::slots(16), tap, what, false).map_err(text)?;
        let slow = Trial::new(Duration::from_millis(if tap == Tap::Block { 2 } else { 40 }), u32::MAX);
        let seen = slow.seen.clone();
        runtime.journal(slow).map_err(text)?;
        runtime.start().map_err(text)?;
        echo(&mut sender, &mut receiver, 0, RECORDS)?;
        runtime.stop(BOUND).map_err(text)?;
        let stats = runtime.journal_stats().ok_or("no journal")?;
        let sum = stats.accepted == 3 * RECORDS && stats.accepted == stats.durable + stats.dropped;
        expect(sum && (stats.dropped == 0) == (tap == Tap::Block), || format!("{tap:?}: {stats:?}"))?;
        let seen = seen.lock().map_err(|e| e.to_string())?;
        expect(seen.len() as u64 == stats.durable, || format!("{} records, {stats:?}", seen.len()))?;
        let mut last = [-1i64; 3];
        for &(mailbox, n) in seen.iter() {
            let place = &mut last[mailbox as usize];
            expect(i64::from(n) > *place, || format!("{tap:?}: mailbox {mailbox}: {n} after {place}"))?;
            *place = i64::from(n);
        }
    }
    let folder = Folder::new("steps-types");
    let (mut runtime, mut sender, mut receiver) =
        chain(device, &StreamOptions::default(), MailboxOptions::slots(8), Tap::Block, (Some(9), 8), false)
            .map_err(text)?;
    runtime.journal(folder.log().map_err(text)?).map_err(text)?;
    runtime.start().map_err(text)?;
    let mut buffer = [0; 248];
    for n in 0..RECORDS {
        let msg_type = if n % 5 == 0 { 9 } else { 10 };
        sender.push(msg_type, &n.to_le_bytes(), BOUND).map_err(text)?;
        let record = receiver.pop(&mut buffer, BOUND).map_err(text)?;
        expect(record.msg_type == msg_type && buffer[..8] == n.to_le_bytes(), || {
            format!("record {n} came back wrong")
        })?;
    }
    runtime.stop(BOUND).map_err(text)?;
    adds_up(&runtime.journal_stats().ok_or("no journal")?, &[RECORDS / 5, RECORDS, RECORDS / 5])?;
    for record in Reader::open(&folder.0, 1).map_err(text)? {
        let record = record.map_err(text)?;
        expect(record.msg_type == 9 || record.mailbox == 1, || format!("type {} was not chosen", record.msg_type))?;
    }
    Ok(())
}

/// Several inputs under either rule, several outputs, a resident module beside: each mailbox is journalled once, by whoever is to.
pub(crate) fn of_several_ends(device: &Device) -> Outcome {
    const RECORDS: u64 = 400;
    for rule in [Rule::All, Rule::Any] {
        let folder = Folder::new("steps-ends");
        let mut graph = Builder::new(device.clone());
        let host = graph.host("host").map_err(text)?;
        let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
        let join = graph.steps("join", StreamOptions::default().with_rule(rule)).map_err(text)?;
        let mut mailbox = |from, to| graph.mailbox(from, to, MailboxOptions::slots(8)).map_err(text);
        let (a, b) = (mailbox(host, join)?, mailbox(host, relay)?);
        let (_, back) = (mailbox(relay, join)?, [mailbox(join, host)?, mailbox(join, host)?]);
        graph.tap_all(Tap::Block).and_then(|graph| graph.journal_slots(16)).map_err(text)?;
        let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
        // What came from the first input goes to the first output, and so on; where there is none, nothing.
        let body = Body::captured(|step| {
            step.forward(0, 0)?;
            step.forward(1, 1)
        });
        runtime.body(join, body).map_err(text)?;
        let mut senders = [runtime.sender(a).map_err(text)?, runtime.sender(b).map_err(text)?];
        let mut receivers = [runtime.receiver(back[0]).map_err(text)?, runtime.receiver(back[1]).map_err(text)?];
        runtime.journal(folder.log().map_err(text)?).map_err(text)?;
        runtime.start().map_err(text)?;
        let mut buffer = [0; 248];
        for n in 0..RECORDS {
            for sender in &mut senders {
                sender.push(n as u16, &ring_record(n, n, 100), BOUND).map_err(text)?;
            }
            for receiver in &mut receivers {
                let record = receiver.pop(&mut buffer, BOUND).map_err(text)?;
                expect(buffer[..record.len] == ring_record(n, n, 100), || format!("{rule:?}: record {n}"))?;
            }
        }
        runtime.wait_durable(back[0], RECORDS, BOUND).map_err(text)?;
        runtime.stop(BOUND).map_err(text)?;
        adds_up(&runtime.journal_stats().ok_or("no journal")?, &[RECORDS; 5])?;
        let mut next = [0u64; 5];
        for record in Reader::open(&folder.0, 1).map_err(text)? {
            let record = record.map_err(text)?;
            let n = next.get_mut(record.mailbox as usize).ok_or("a mailbox that is none")?;
            expect(record.payload == ring_record(*n, *n, 100), || format!("{rule:?}: mailbox {}", record.mailbox))?;
            *n += 1;
        }
        expect(next == [RECORDS; 5], || format!("{rule:?}: {next:?}"))?;
    }
    Ok(())
}

/// Tensors are in the log as they were, although a delivery has released them before the body ran, and though the record
/// that was journalled is then written over.
pub(crate) fn take_tensors_along(device: &Device) -> Outcome {
    const TENSORS: u64 = 120;
    let pool = Pool::new(device, PoolOptions { poison: true, ..PoolOptions::limit(8 << 20) }).map_err(text)?;
    let bytes = |n: u64| -> Vec<u8> { (0..4096u64).flat_map(|i| (n * 4096 + i).to_le_bytes()).collect() };
    let spec = TensorSpec::new(DType::I64, &[64, 64]);
    for delivers in [false, true] {
        let folder = Folder::new("steps-tensors");
        let mut graph = Builder::new(device.clone());
        graph.pool(&pool).map_err(text)?;
        let host = graph.host("host").map_err(text)?;
        let model = graph.steps("model", StreamOptions::default().pushes(8, 9)).map_err(text)?;
        let there = graph.mailbox(host, model, MailboxOptions::slots(8)).map_err(text)?;
        let back = graph.mailbox(model, host, MailboxOptions::slots(8)).map_err(text)?;
        graph.tap_all(Tap::Block).map_err(text)?;
        graph.tap_tensors(there).map_err(text)?;
        graph.tap_tensors(back).map_err(text)?;
        let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
        if delivers {
            let target = device.alloc(32768).map_err(text)?;
            let delivery = Delivery::exactly(target.address(), &spec);
            // SAFETY: the runtime keeps the memory; only the copies use it.
            unsafe { runtime.deliver(model, 0, &delivery) }.map_err(text)?;
            runtime.keep(target);
            let body = Body::captured(|step| {
                let (from, to) = (step.output(0)?.payload(), step.input(0)?.payload());
                // SAFETY: the module's own buffers, of 248 bytes of payload.
                unsafe { step.copy(to, from, 128) }
            });
            runtime.body(model, body).map_err(text)?;
        } else {
            runtime.body(model, forward()).map_err(text)?; // the descriptor goes on
        }
        let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
        runtime.journal(Log::open(&folder.0, Default::default()).map_err(text)?.0).map_err(text)?;
        runtime.start().map_err(text)?;
        for n in 0..TENSORS {
            let tensor = pool.alloc_within("test", &spec, BOUND).map_err(text)?;
            tensor.upload(&bytes(n)).map_err(text)?;
            let lease = tensor.lease(1).map_err(text)?;
            drop(tensor);
            sender.post(lease, b"", BOUND).map_err(|e| e.to_string())?;
            if delivers {
                receiver.pop(&mut [0; 248], BOUND).map_err(text)?;
            } else {
                let (lease, _) = receiver.take(BOUND).map_err(text)?;
                lease.release().map_err(text)?;
            }
        }
        runtime.stop(BOUND).map_err(text)?;
        let stats = runtime.journal_stats().ok_or("no journal")?;
        adds_up(&stats, &[TENSORS; 2])?;
        // A reader that has released one cannot have been told of it before the journal.
        let all = if delivers { TENSORS } else { 2 * TENSORS };
        expect(stats.tensors == all && stats.tensors_missed == 0, || format!("{delivers}: {stats:?}"))?;
        let (mut next, mut with_bytes) = ([0u64; 2], 0);
        for record in Reader::open(&folder.0, 1).map_err(text)? {
            let record = record.map_err(text)?;
            let n = next.get_mut(record.mailbox as usize).ok_or("a mailbox that is none")?;
            if record.descriptor().map_err(text)?.is_some() {
                expect(record.tensor == bytes(*n), || format!("tensor {n} of mailbox {}", record.mailbox))?;
                with_bytes += 1;
            }
            *n += 1;
        }
        expect(next == [TENSORS; 2] && with_bytes == all, || format!("{next:?}, {with_bytes}, {stats:?}"))?;
        pool.collect();
        expect(pool.stats().open == 0, || format!("{:?}", pool.stats()))?;
    }
    Ok(())
}

/// A sink that fails is told of, and the steps end in time; and what nobody would journal is refused.
pub(crate) fn end_with_their_sink(device: &Device) -> Outcome {
    let what = (None, 8);
    let (mut runtime, mut sender, _receiver) =
        chain(device, &StreamOptions::default(), MailboxOptions::slots(8), Tap::Block, what, false).map_err(text)?;
    runtime.journal(Trial::new(Duration::ZERO, 2)).map_err(text)?;
    runtime.start().map_err(text)?;
    sender_is_told(&mut sender)?;
    expect(runtime.stop(BOUND).is_err(), || "stop says nothing of it".into())?;

    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let (ours, theirs) = (graph.steps("ours", StreamOptions::default()), graph.stream("theirs"));
    let (ours, theirs) = (ours.map_err(text)?, theirs.map_err(text)?);
    graph.mailbox(host, ours, MailboxOptions::default()).map_err(text)?;
    let unseen = graph.mailbox(host, theirs, MailboxOptions::default()).map_err(text)?;
    let refused = graph.tap(unseen, Tap::Drop).err().map_or(String::new(), |e| e.to_string());
    expect(refused.contains("Builder::steps"), || format!("{refused:?}"))?;
    graph.tap_all(Tap::Drop).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    runtime.body(ours, Body::captured(|_| Ok(()))).map_err(text)?;
    let outcome = runtime.start();
    expect(matches!(&outcome, Err(Error::State(why)) if why.contains("journal")), || format!("{outcome:?}"))?;
    runtime.journal(NullSink::default()).map_err(text)?;
    expect(runtime.journal_stats().ok_or("no journal")?.taps.len() == 1, || "another tap".into())
}

/// A full ring keeps nobody from pausing the steps, nor from stopping them; and all that passed is in the log, once.
pub(crate) fn let_a_quiesce_in(device: &Device) -> Outcome {
    const RECORDS: u64 = 60;
    let what = (None, 2);
    let (mut runtime, mut sender, mut receiver) =
        chain(device, &StreamOptions::default(), MailboxOptions::slots(16), Tap::Block, what, false).map_err(text)?;
    let slow = Trial::new(Duration::from_millis(30), u32::MAX);
    let seen = slow.seen.clone();
    runtime.journal(slow).map_err(text)?;
    runtime.start().map_err(text)?;
    for round in 0..3 {
        for n in 0..12 {
            sender.push(n, &[n as u8; 8], BOUND).map_err(text)?;
        }
        runtime.quiesce(BOUND, |_| ()).map_err(|e| format!("quiesce {round}: {e}"))?;
        let mut buffer = [0; 248];
        for n in 0..12 {
            let record = receiver.pop(&mut buffer, BOUND).map_err(text)?;
            expect(buffer[..record.len] == [n as u8; 8], || format!("round {round}, record {n}"))?;
        }
    }
    echo(&mut sender, &mut receiver, 0, RECORDS - 36)?;
    // What is on its way when it is stopped stays in the mailboxes.
    for n in 0..12 {
        sender.push(n, &[n as u8; 8], BOUND).map_err(text)?;
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.journal_stats().ok_or("no journal")?;
    let fine = stats.accepted == stats.durable && stats.accepted >= 3 * RECORDS && stats.dropped + stats.lost == 0;
    expect(fine, || format!("{stats:?}"))?;
    let seen = seen.lock().map_err(|e| e.to_string())?.len() as u64;
    expect(seen == stats.durable, || format!("{seen} came to the sink: {stats:?}"))
}

/// What a module gives to itself is journalled once; a ring that no step of a module's could fit into is refused.
pub(crate) fn of_a_module_with_itself(device: &Device) -> Outcome {
    const RECORDS: u64 = 300;
    let folder = Folder::new("steps-itself");
    let graph = |journal_slots| -> Result<_, Error> {
        let mut graph = Builder::new(device.clone());
        let host = graph.host("host")?;
        let twice = graph.steps("twice", StreamOptions::default().with_rule(Rule::Any))?;
        let there = graph.mailbox(host, twice, MailboxOptions::slots(4))?;
        graph.mailbox(twice, twice, MailboxOptions::slots(4))?;
        let back = graph.mailbox(twice, host, MailboxOptions::slots(4))?;
        graph.tap_all(Tap::Block)?.journal_slots(journal_slots)?;
        Ok((graph.build(HandlerImage::builtin())?, twice, there, back))
    };
    let refused = graph(2).err().map_or(String::new(), |e| e.to_string());
    expect(refused.contains("one step of twice may journal 3 records"), || format!("{refused:?}"))?;
    let (mut runtime, twice, there, back) = graph(4).map_err(text)?;
    // Once round: what came from the host goes to itself, and what came from itself to the host.
    let body = Body::captured(|step| {
        step.forward(0, 0)?;
        step.forward(1, 1)
    });
    runtime.body(twice, body).map_err(text)?;
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    runtime.journal(folder.log().map_err(text)?).map_err(text)?;
    runtime.start().map_err(text)?;
    let mut buffer = [0; 248];
    for n in 0..RECORDS {
        sender.push(n as u16, &ring_record(n, n, 64), BOUND).map_err(text)?;
        let record = receiver.pop(&mut buffer, BOUND).map_err(text)?;
        expect(buffer[..record.len] == ring_record(n, n, 64), || format!("record {n} came back changed"))?;
    }
    runtime.stop(BOUND).map_err(text)?;
    adds_up(&runtime.journal_stats().ok_or("no journal")?, &[RECORDS; 3])
}
