//! The same graph, arbitrated by the device and by the CPU.

use warpmail::{
    BackendKind, Builder, Device, Error, HandlerImage, MailboxOptions, Mode, ModuleOptions, Rule, SpinBudget, abi,
    builtin,
};
use warpmail_testkit::ring_record;

use crate::{BOUND, Outcome, expect, text};

/// What a record became, and the modules' counters.
type Gone = (Vec<(u16, Vec<u8>)>, Vec<(String, u64, u64)>);

/// host -> split -> left and right -> join (of both) -> host, in one mode.
fn through(device: &Device, mode: Mode, servers: u32, records: u64) -> Result<Gone, Error> {
    let mut graph = Builder::new(device.clone());
    graph.mode(mode).budget(SpinBudget { servers, ..SpinBudget::default() })?;
    let host = graph.host("host")?;
    let one = || ModuleOptions { out_records: 1, ..ModuleOptions::handler(builtin::RELAY) };
    let split = graph.resident("split", one())?;
    let (left, right) = (graph.resident("left", one())?, graph.resident("right", one().with_priority(2))?);
    let join = graph.resident("join", ModuleOptions::handler(builtin::RELAY).with_rule(Rule::All))?;
    let there = graph.mailbox(host, split, MailboxOptions::slots(16))?;
    for (from, to) in [(split, left), (split, right), (left, join), (right, join)] {
        graph.mailbox(from, to, MailboxOptions::slots(8))?;
    }
    let back = graph.mailbox(join, host, MailboxOptions::slots(16))?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let (mut sender, mut receiver) = (runtime.sender(there)?, runtime.receiver(back)?);
    runtime.start()?;
    let sending = std::thread::spawn(move || {
        (0..records).try_for_each(|n| sender.push(n as u16, &ring_record(n, n, 248), BOUND))
    });
    let (mut came, mut buffer) = (Vec::new(), [0; 248]);
    for _ in 0..2 * records {
        let record = receiver.pop(&mut buffer, BOUND)?;
        came.push((record.msg_type, buffer[..record.len].to_vec()));
    }
    sending.join().map_err(|_| Error::Failed("the sender panicked".into()))??;
    runtime.drain(BOUND)?;
    runtime.stop(BOUND)?;
    if runtime.mode() != mode {
        return Err(Error::Failed(format!("it ran in mode {}", runtime.mode())));
    }
    let counters = runtime.stats().modules.into_iter().map(|m| (m.name, m.records_in, m.records_out)).collect();
    Ok((came, counters))
}

pub(crate) fn both_modes_give_the_same(device: &Device) -> Outcome {
    let cuda = device.info().ordinal.is_some();
    let asked = std::env::var("WARPMAIL_MODE_RECORDS").ok().and_then(|v| v.parse().ok());
    let records = asked.unwrap_or(if cuda { 20_000 } else { 3000 });
    let least = u32::from(cuda);
    for servers in [least, 3] {
        let ours = through(device, Builder::new(device.clone()).current_mode().map_err(text)?, servers, records);
        let ours = ours.map_err(|e| format!("{servers} servers: {e}"))?;
        let twins = through(&Device::twin(), Mode::Device, servers, records).map_err(text)?;
        expect(ours.1 == twins.1, || format!("{servers} servers: {:?}, not {:?}", ours.1, twins.1))?;
        for (n, record) in ours.0.iter().enumerate() {
            let from = n as u64 / 2; // each record came by both ways, in turn
            let whole = *record == (from as u16, ring_record(from, from, 248));
            expect(whole, || format!("{servers} servers: record {n} is not record {from} as it was sent"))?;
        }
        expect(ours.0 == twins.0, || format!("{servers} servers: the records are not those of the other mode"))?;
    }
    Ok(())
}

/// With servers to spare, an arbiter on the CPU launches a whole chain for one record, unless told not to; and what it launches in
/// vain, because a module in between keeps its record, changes nothing.
pub(crate) fn chains_are_granted_ahead(device: &Device) -> Outcome {
    [true, false].into_iter().try_for_each(|on| granted_ahead(device, on).map_err(|e| format!("ahead {on}: {e}")))
}

fn granted_ahead(device: &Device, on: bool) -> Outcome {
    const RECORDS: u64 = 400;
    const LENGTH: usize = 5;
    let mut graph = Builder::new(device.clone());
    graph.mode(Mode::Cpu).budget(SpinBudget { servers: 6, ..SpinBudget::default() }).map_err(text)?.ahead(on);
    let host = graph.host("host").map_err(text)?;
    let (mut from, mut ids) = (host, Vec::new());
    for i in 0..LENGTH {
        let relay = graph.resident(&format!("relay{i}"), builtin::RELAY).map_err(text)?;
        ids.push(graph.mailbox(from, relay, MailboxOptions::slots(4)).map_err(text)?);
        from = relay;
    }
    ids.push(graph.mailbox(from, host, MailboxOptions::slots(4)).map_err(text)?);
    // Beside it one that gives nothing, and one that waits for it in vain.
    let swallow = graph.resident("swallow", builtin::DISCARD).map_err(text)?;
    let beside = graph.resident("beside", builtin::RELAY).map_err(text)?;
    let aside = graph.mailbox(host, swallow, MailboxOptions::slots(4)).map_err(text)?;
    let nothing = graph.mailbox(swallow, beside, MailboxOptions::slots(4)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let mut sender = runtime.sender(ids[0]).map_err(text)?;
    let mut receiver = runtime.receiver(ids[LENGTH]).map_err(text)?;
    let mut aside = runtime.sender(aside).map_err(text)?;
    runtime.start().map_err(text)?;
    let mut buffer = [0; 248];
    for n in 0..RECORDS {
        sender.push(n as u16, &ring_record(n, n, 248), BOUND).map_err(text)?;
        let record = receiver.pop(&mut buffer, BOUND).map_err(text)?;
        let whole = record.msg_type == n as u16 && buffer[..record.len] == ring_record(n, n, 248);
        expect(whole, || format!("record {n} came back changed"))?;
        aside.push(1, b"swallowed", BOUND).map_err(text)?;
        runtime.drain(BOUND).map_err(text)?;
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    let fine = if on { stats.ahead > RECORDS && stats.ahead < stats.grants } else { stats.ahead == 0 };
    expect(fine, || format!("{stats:?}"))?;
    let moved = |m: &warpmail::ModuleStats| (m.records_in, m.records_out);
    let chain = stats.modules[1..=LENGTH].iter().all(|m| moved(m) == (RECORDS, RECORDS));
    let rest = [moved(&stats.modules[LENGTH + 1]), moved(&stats.modules[LENGTH + 2])];
    expect(chain && rest == [(RECORDS, 0), (0, 0)], || format!("{stats:?}"))?;
    expect(stats.mailboxes[nothing.index()].written == 0, || format!("{stats:?}"))?;
    let blamed: u64 = stats.modules.iter().map(|m| m.rejects.no_progress).sum();
    expect(blamed == 0, || format!("steps in vain were counted as faults: {stats:?}"))
}

/// A kernel's end of a mailbox tells an arbiter on the CPU of its index in pinned memory.
pub(crate) fn device_ends_reach_the_cpu(device: &Device) -> Outcome {
    const RECORDS: u64 = 5000;
    let mut graph = Builder::new(device.clone());
    graph.mode(Mode::Cpu);
    let kernel = graph.stream("kernel").map_err(text)?;
    let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
    let there = graph.mailbox(kernel, relay, MailboxOptions::slots(8)).map_err(text)?;
    let back = graph.mailbox(relay, kernel, MailboxOptions::slots(8)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let refused = runtime.sender(there);
    expect(matches!(refused, Err(Error::Refused { .. })), || format!("{refused:?}"))?; // its producer is no host module
    let (there, back) = (runtime.handle(there).map_err(text)?, runtime.handle(back).map_err(text)?);
    let told = [there.written, there.consumed, back.written, back.consumed].iter().all(|word| *word != 0);
    expect(told && u32::from(there.producer_side) == abi::WM_SIDE_HOST, || format!("{there:?}, {back:?}"))?;
    if device.info().backend == BackendKind::Cuda {
        return Ok(()); // the device API's own test has kernels
    }
    runtime.start().map_err(text)?;
    // SAFETY: on the twin a thread is a kernel; the runtime, which has the mailboxes, outlives both ends, and each is one.
    let (mut producer, mut consumer) =
        unsafe { (abi::wm_host_attach_producer(&there), abi::wm_host_attach_consumer(&back)) };
    let (mut sent, mut got, mut buffer) = (0, 0, [0u8; 248]);
    let begin = std::time::Instant::now();
    while got < RECORDS && begin.elapsed() < BOUND {
        let record = ring_record(sent, sent, 248);
        // SAFETY: as above; the record's bytes are there.
        let pushed = sent < RECORDS
            && unsafe { abi::wm_host_try_push(&mut producer, record.as_ptr().cast(), record.len() as u32, 7) } == 0;
        sent += u64::from(pushed);
        let (mut len, mut kind) = (0, 0);
        // SAFETY: as above; the buffer has its size.
        if unsafe { abi::wm_host_try_pop(&mut consumer, buffer.as_mut_ptr().cast(), 248, &mut len, &mut kind) } == 0 {
            expect(buffer[..len as usize] == ring_record(got, got, 248), || format!("record {got} came back changed"))?;
            got += 1;
        }
    }
    expect(got == RECORDS, || format!("{sent} sent, {got} came back; {:?}", runtime.stats()))?;
    runtime.stop(BOUND).map_err(text)
}

/// Where a launch would not return, device-arbitrated mode is refused, and says what works; elsewhere it is not.
pub(crate) fn a_kernel_needs_a_place_to_stay(device: &Device) -> Outcome {
    let build = |mode| {
        let mut graph = Builder::new(device.clone());
        let host = graph.mode(mode).host("host")?;
        let relay = graph.resident("relay", builtin::RELAY)?;
        graph.mailbox(host, relay, MailboxOptions::default())?;
        graph.build(HandlerImage::builtin()).map(drop)
    };
    let set = |name| std::env::var(name).is_ok_and(|v| v == "1");
    let blocking = set("CUDA_LAUNCH_BLOCKING") || set("CUDA_DEVICE_MAX_CONNECTIONS");
    let on_device = build(Mode::Device);
    if blocking && device.info().backend == BackendKind::Cuda {
        let refused = matches!(&on_device, Err(Error::Unavailable { reason, .. }) if reason.contains("Mode::Cpu"));
        expect(refused, || format!("{on_device:?}"))?;
    } else {
        on_device.map_err(text)?;
    }
    build(Mode::Cpu).map_err(text)?;
    let wrong = "gpu".parse::<Mode>();
    expect(matches!(&wrong, Err(e) if e.to_string().contains("`device` and `cpu`")), || format!("{wrong:?}"))
}
