//! Records go where they should: all of them, once, in order, whole.

use std::time::{Duration, Instant};

use warpmail::{
    Builder, Device, Error, HandlerImage, MailboxId, MailboxOptions, ModuleOptions, Receiver, Rule, Runtime, Sender,
    SpinBudget, builtin,
};
use warpmail_testkit::{self as kit, ring_record};

use crate::{BOUND, Outcome, expect, text, words};

/// host -> relay -> host.
pub(crate) fn relay(
    device: &Device,
    options: MailboxOptions,
    budget: Option<SpinBudget>,
) -> Result<(Runtime, Sender, Receiver), Error> {
    let mut graph = Builder::new(device.clone());
    if let Some(budget) = budget {
        graph.budget(budget)?;
    }
    let host = graph.host("host")?;
    let relay = graph.resident("relay", builtin::RELAY)?;
    let there = graph.mailbox(host, relay, options.clone())?;
    let back = graph.mailbox(relay, host, options)?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let (sender, receiver) = (runtime.sender(there)?, runtime.receiver(back)?);
    Ok((runtime, sender, receiver))
}

/// Sends `count` records of every length through and checks each that comes back.
pub(crate) fn echo(sender: &mut Sender, receiver: &mut Receiver, first: u64, count: u64) -> Outcome {
    let payload = sender.payload_bytes();
    let record = |n: u64| if payload >= 16 { ring_record(n, n, payload) } else { n.to_le_bytes().to_vec() };
    let mut buffer = vec![0; payload];
    let (mut sent, mut got) = (first, first);
    let begin = Instant::now();
    while got < first + count {
        while sent < first + count && sender.try_push(sent as u16, &record(sent)).is_ok() {
            sent += 1;
        }
        while let Some(r) = receiver.try_pop(&mut buffer).map_err(text)? {
            expect(r.msg_type == got as u16 && buffer[..r.len] == record(got), || {
                let near = got.saturating_sub(256)..got + 256;
                let other = near.filter(|&n| n != got).find(|&n| buffer[..r.len] == record(n));
                match other {
                    Some(n) => format!("record {n} came back in place of {got}"),
                    None => format!("record {got} came back changed: {} bytes, type {}", r.len, r.msg_type),
                }
            })?;
            got += 1;
        }
        expect(begin.elapsed() < BOUND * 2, || format!("only {got} of {count} came back"))?;
        std::thread::yield_now();
    }
    Ok(())
}

pub(crate) fn relay_keeps_every_record(device: &Device) -> Outcome {
    let (mut runtime, mut sender, mut receiver) = relay(device, MailboxOptions::default(), None).map_err(text)?;
    runtime.start().map_err(text)?;
    echo(&mut sender, &mut receiver, 0, 100_000)?;
    runtime.drain(BOUND).map_err(text)?;
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    expect(stats.modules[1].records_in == 100_000 && stats.modules[1].records_out == 100_000, || format!("{stats:?}"))?;
    expect(stats.mailboxes.iter().all(|m| m.written == 100_000 && m.consumed >= 100_000 - 64), || format!("{stats:?}"))
}

pub(crate) fn every_stride_and_ring_size(device: &Device) -> Outcome {
    for stride in [64, 128, 192, 256, 320, 512, 1024, 2048, 4096] {
        for slots in [1, 2, 64] {
            let options = MailboxOptions { stride, slots };
            let (mut runtime, mut sender, mut receiver) = relay(device, options, None).map_err(text)?;
            runtime.start().map_err(text)?;
            echo(&mut sender, &mut receiver, 0, 500).map_err(|e| format!("stride {stride}, {slots} slots: {e}"))?;
            runtime.stop(BOUND).map_err(text)?;
        }
    }
    Ok(())
}

pub(crate) fn short_residency_loses_nothing(device: &Device) -> Outcome {
    let budget = SpinBudget { residency: Duration::from_micros(100), servers: 2, ..SpinBudget::default() };
    let (mut runtime, mut sender, mut receiver) =
        relay(device, MailboxOptions::slots(8), Some(budget)).map_err(text)?;
    runtime.start().map_err(text)?;
    echo(&mut sender, &mut receiver, 0, 50_000).map_err(|e| format!("{e}; {:?}", runtime.stats()))?;
    runtime.stop(BOUND).map_err(text)?;
    let launches = runtime.stats().launches;
    expect(launches > 20, || format!("only {launches} launches"))
}

/// Records, each going round and round; the number of hops of all together.
fn ring_hops(device: &Device) -> u64 {
    let default = match (crate::is_fast(device), crate::is_lane_by_lane()) {
        (true, _) => 10_000_000,
        (false, true) => 20_000,
        (false, false) => 400_000,
    };
    std::env::var("WARPMAIL_RING_HOPS").ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

pub(crate) fn ring_of_three_modules(device: &Device) -> Outcome {
    const RECORDS: u64 = 32;
    let rounds = ring_hops(device).div_ceil(RECORDS * 3);
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let mut modules = Vec::new();
    for i in 0..3u64 {
        let state: [u64; 8] = [0, RECORDS, 0, 0, u64::from(i == 2), 248, 0, 0];
        modules.push(
            graph.resident(&format!("m{i}"), ModuleOptions::handler(kit::RING).with_state(&state)).map_err(text)?,
        );
    }
    for i in 0..3 {
        graph.mailbox(modules[i], modules[(i + 1) % 3], MailboxOptions::slots(RECORDS as u32)).map_err(text)?;
    }
    let door = graph.mailbox(host, modules[0], MailboxOptions::slots(RECORDS as u32)).map_err(text)?;
    let mut runtime = graph.build(kit::image()).map_err(text)?;
    let mut sender = runtime.sender(door).map_err(text)?;
    for n in 0..RECORDS {
        sender.try_push((n & 0x7FFF) as u16, &ring_record(n, rounds, 248)).map_err(text)?;
    }
    let begin = Instant::now();
    runtime.start().map_err(text)?;
    runtime.drain(4 * BOUND).map_err(text)?;
    let seconds = begin.elapsed().as_secs_f64();
    runtime.stop(BOUND).map_err(text)?;
    for (i, module) in modules.iter().enumerate() {
        let s = words(&runtime, *module)?;
        expect(s[2] == 0 && s[3] == RECORDS * rounds, || format!("module {i}: {} faults, {} records", s[2], s[3]))?;
        expect(s[6] == if i == 2 { RECORDS } else { 0 }, || format!("module {i}: {} records left", s[6]))?;
    }
    eprintln!("{} hops in {seconds:.2} s", RECORDS * rounds * 3);
    Ok(())
}

pub(crate) fn all_rule_joins_two_inputs(device: &Device) -> Outcome {
    let mut graph = Builder::new(device.clone());
    let (fast, slow) = (graph.host("fast").map_err(text)?, graph.host("slow").map_err(text)?);
    let options = ModuleOptions::handler(kit::JOIN).with_rule(Rule::All).with_state(&[0u64; 8]);
    let join = graph.resident("join", options).map_err(text)?;
    let ids = [fast, slow].map(|from| graph.mailbox(from, join, MailboxOptions::slots(16)));
    let mut runtime = graph.build(kit::image()).map_err(text)?;
    let mut ends: Vec<Sender> = Vec::new();
    for id in ids {
        ends.push(runtime.sender(id.map_err(text)?).map_err(text)?);
    }
    runtime.start().map_err(text)?;
    // The fast one runs ahead as far as its ring lets it.
    let mut ahead = 0u64;
    for n in 0..2000u64 {
        while ahead < 2000 && ends[0].try_push(1, &ahead.to_le_bytes()).is_ok() {
            ahead += 1;
        }
        ends[1].push(1, &n.to_le_bytes(), BOUND).map_err(text)?;
    }
    while ahead < 2000 {
        ends[0].push(1, &ahead.to_le_bytes(), BOUND).map_err(text)?;
        ahead += 1;
    }
    runtime.drain(BOUND).map_err(text)?;
    runtime.stop(BOUND).map_err(text)?;
    let s = words(&runtime, join)?;
    expect(s[0] == 2000 && s[1] == 0, || format!("{} joined, {} faults", s[0], s[1]))
}

pub(crate) fn pointers_are_safe_to_follow(device: &Device) -> Outcome {
    const TENSORS: u64 = 3;
    const WORDS: i64 = 8192; // 64 KiB
    const TICKS: u64 = 2000;
    let buffer = device.alloc(TENSORS as usize * WORDS as usize * 8).map_err(text)?;
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let module = |handler, rule| {
        let options = ModuleOptions { out_records: 1, ..ModuleOptions::handler(handler) };
        options.with_rule(rule).with_state(&[0u64; 8])
    };
    // Each tick takes one empty tensor; the host sends the reader's tensors round again.
    let writer = graph.resident("writer", module(kit::TENSOR_WRITER, Rule::All)).map_err(text)?;
    let reader = graph.resident("reader", module(kit::TENSOR_READER, Rule::Any)).map_err(text)?;
    let small = MailboxOptions::slots(4);
    let ticks = graph.mailbox(host, writer, MailboxOptions::slots(64)).map_err(text)?;
    let empty = graph.mailbox(host, writer, small.clone()).map_err(text)?;
    graph.mailbox(writer, reader, small.clone()).map_err(text)?;
    let seen = graph.mailbox(reader, host, small).map_err(text)?;
    let base = buffer.address();
    graph.keep(buffer);
    let mut runtime = graph.build(kit::image()).map_err(text)?;
    let (mut ticks, mut empty) = (runtime.sender(ticks).map_err(text)?, runtime.sender(empty).map_err(text)?);
    let mut seen = runtime.receiver(seen).map_err(text)?;
    for t in 0..TENSORS {
        let mut tensor = warpmail::abi::wm_tensor { data: base + t * WORDS as u64 * 8, ndim: 1, ..Default::default() };
        tensor.shape[0] = WORDS;
        empty.push(2, warpmail_testkit::bytes_of(&tensor), BOUND).map_err(text)?;
    }
    runtime.start().map_err(text)?;
    let (mut sent, mut got) = (0, 0);
    let mut record = [0; 248];
    while got < TICKS {
        while sent < TICKS && ticks.try_push(1, &[0; 8]).is_ok() {
            sent += 1;
        }
        let r = seen.pop(&mut record, BOUND).map_err(text)?;
        got += 1;
        empty.push(2, &record[..r.len], BOUND).map_err(text)?;
    }
    runtime.stop(BOUND).map_err(text)?;
    let s = words(&runtime, reader)?;
    expect(s[0] == TICKS && s[1] == 0, || format!("{} tensors seen, {} faults", s[0], s[1]))
}

pub(crate) fn any_rule_is_fair(device: &Device) -> Outcome {
    const MODULES: usize = 8;
    const EACH: u64 = 8192;
    // One server (on the twin: the arbiter's own thread), so that no thread of the host's scheduler's choosing holds a module.
    let servers = u32::from(device.info().ordinal.is_some());
    let mut graph = Builder::new(device.clone());
    graph.budget(SpinBudget { servers, ..SpinBudget::default() }).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let mut boxes: Vec<MailboxId> = Vec::new();
    for i in 0..MODULES {
        let options = ModuleOptions { batch: 1, ..ModuleOptions::handler(builtin::DISCARD) };
        let module = graph.resident(&format!("m{i}"), options).map_err(text)?;
        boxes.push(graph.mailbox(host, module, MailboxOptions { stride: 64, slots: EACH as u32 }).map_err(text)?);
    }
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    for id in boxes {
        let mut sender = runtime.sender(id).map_err(text)?;
        for n in 0..EACH {
            sender.try_push(1, &n.to_le_bytes()).map_err(text)?;
        }
    }
    runtime.start().map_err(text)?;
    // At every heartbeat until the first has run dry, nobody is more than a few grants behind.
    let (mut looks, mut apart) = (0, 0);
    let begin = Instant::now();
    loop {
        let taken: Vec<u64> = runtime.stats().modules[1..].iter().map(|m| m.records_in).collect();
        let (least, most) = (taken.iter().min().copied().unwrap_or(0), taken.iter().max().copied().unwrap_or(0));
        if most >= EACH * 9 / 10 {
            break;
        }
        // Counters are copied one after the other while they move: allow what moves during a copy, and one that took long.
        apart = if most - least <= 64 + most / 4 { 0 } else { apart + 1 };
        expect(apart < 5, || format!("{taken:?}"))?;
        looks += u64::from(most > 0);
        expect(begin.elapsed() < BOUND, || format!("only {taken:?} records"))?;
        std::thread::sleep(Duration::from_micros(50));
    }
    runtime.stop(BOUND).map_err(text)?;
    eprintln!("{looks} looks");
    Ok(())
}

pub(crate) fn full_mailboxes_hold_back(device: &Device) -> Outcome {
    let (mut runtime, mut sender, mut receiver) = relay(device, MailboxOptions::slots(4), None).map_err(text)?;
    runtime.start().map_err(text)?;
    // Nobody takes: 4 records in the way back, 4 in the way there, then it is full.
    let mut sent = 0u64;
    let (begin, mut full) = (Instant::now(), None);
    while full.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(300)) && begin.elapsed() < BOUND {
        if sent >= 8 {
            full.get_or_insert_with(Instant::now);
        }
        match sender.try_push(sent as u16, &ring_record(sent, sent, 248)) {
            Ok(()) => sent += 1,
            Err(Error::Full { .. }) => std::thread::yield_now(),
            Err(e) => return Err(text(e)),
        }
    }
    expect(sent == 8, || format!("{sent} records went into 4 + 4 slots"))?;
    let timeout = sender.push(0, b"one more", Duration::from_millis(20));
    expect(matches!(timeout, Err(Error::Timeout { .. })), || format!("{timeout:?}"))?;
    let mut buffer = [0; 248];
    for n in 0..8u64 {
        let r = receiver.pop(&mut buffer, BOUND).map_err(text)?;
        expect(buffer[..r.len] == ring_record(n, n, 248), || format!("record {n}"))?;
    }
    echo(&mut sender, &mut receiver, 100, 1000)?;
    runtime.stop(BOUND).map_err(text)
}
