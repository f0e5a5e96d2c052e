//! Stream modules: steps on a stream that the arbiter grants.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use warpmail::{
    Body, Builder, Device, Error, HandlerImage, HostEnds, HostStep, MailboxId, MailboxOptions, ModuleId, Receiver,
    Rule, Runtime, Sender, SpinBudget, State, StreamOptions, builtin,
};
use warpmail_testkit::harness::progress;
use warpmail_testkit::ring_record;

use crate::flow::echo;
use crate::{BOUND, Outcome, expect, text};

fn forward() -> Body {
    Body::captured(|step| step.forward(0, 0))
}

fn forward_each() -> Body {
    Body::each_step(|step| step.forward(0, 0))
}

fn count(device: &Device, twin: u64, cuda: u64) -> u64 {
    let asked = std::env::var("WARPMAIL_STEPS").ok().and_then(|v| v.parse().ok());
    asked.unwrap_or(if device.info().ordinal.is_some() { cuda } else { twin })
}

/// host -> steps -> host.
fn relay(
    device: &Device,
    options: StreamOptions,
    slots: u32,
    budget: Option<SpinBudget>,
    pacer: bool,
    body: Body,
) -> Result<(Runtime, Sender, Receiver, ModuleId), Error> {
    let mut graph = Builder::new(device.clone());
    if let Some(budget) = budget {
        graph.budget(budget)?;
    }
    if !pacer {
        graph.without_pacer();
    }
    let host = graph.host("host")?;
    let steps = graph.steps("steps", options)?;
    let there = graph.mailbox(host, steps, MailboxOptions::slots(slots))?;
    let back = graph.mailbox(steps, host, MailboxOptions::slots(slots))?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    runtime.body(steps, body)?;
    let (sender, receiver) = (runtime.sender(there)?, runtime.receiver(back)?);
    Ok((runtime, sender, receiver, steps))
}

fn finish(runtime: &mut Runtime, module: &str, records: u64) -> Outcome {
    if matches!(runtime.state(), State::Running | State::Waiting) {
        runtime.drain(BOUND).map_err(text)?;
        runtime.stop(BOUND).map_err(text)?;
    }
    let stats = runtime.stats();
    let m = stats.modules.iter().find(|m| m.name == module).ok_or("no such module")?;
    expect(m.records_in == records && m.records_out == records, || {
        format!("{module}: {} in and {} out of {records}", m.records_in, m.records_out)
    })?;
    expect(m.rejects == Default::default(), || format!("{module}: {:?}", m.rejects))
}

pub(crate) fn carry_every_record(device: &Device) -> Outcome {
    let n = count(device, 3000, 50_000);
    let hot = StreamOptions { spin: None, ..StreamOptions::default() };
    let short = StreamOptions { spin: Some(Duration::from_micros(2)), ahead: 1, ..StreamOptions::default() };
    for (what, options, body) in [
        ("captured", StreamOptions::default(), forward()),
        ("always", StreamOptions::default(), forward().always()),
        ("each step", StreamOptions::default(), forward_each()),
        ("hot", hot, forward()),
        ("one ahead", short, forward_each()),
    ] {
        let (mut runtime, mut sender, mut receiver, _) =
            relay(device, options, 64, None, true, body).map_err(|e| format!("{what}: {e}"))?;
        runtime.start().map_err(text)?;
        echo(&mut sender, &mut receiver, 0, n).map_err(|e| format!("{what}: {e}; {:?}", runtime.failure()))?;
        finish(&mut runtime, "steps", n).map_err(|e| format!("{what}: {e}"))?;
    }
    Ok(())
}

/// host -> resident -> steps -> resident -> steps -> host.
pub(crate) fn mix_with_resident_modules(device: &Device) -> Outcome {
    let n = count(device, 3000, 100_000);
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let first = graph.resident("first", builtin::RELAY).map_err(text)?;
    let a = graph.steps("a", StreamOptions::default()).map_err(text)?;
    let second = graph.resident("second", builtin::RELAY).map_err(text)?;
    let b = graph.steps("b", StreamOptions::default()).map_err(text)?;
    let ends = [host, first, a, second, b, host];
    let boxes: Result<Vec<MailboxId>, Error> =
        ends.windows(2).map(|w| graph.mailbox(w[0], w[1], MailboxOptions::slots(16))).collect();
    let boxes = boxes.map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    runtime.body(a, forward()).map_err(text)?;
    runtime.body(b, forward_each()).map_err(text)?;
    let (mut sender, mut receiver) =
        (runtime.sender(boxes[0]).map_err(text)?, runtime.receiver(boxes[4]).map_err(text)?);
    runtime.start().map_err(text)?;
    echo(&mut sender, &mut receiver, 0, n).map_err(|e| format!("{e}; {:?}", runtime.failure()))?;
    finish(&mut runtime, "a", n)?;
    finish(&mut runtime, "b", n)
}

/// A thread of the host that passes records on, in between the others.
fn pass_on(ends: &mut HostEnds) -> Result<HostStep, Error> {
    let mut buffer = [0; 248];
    while let Some(r) = ends.inputs[0].try_pop(&mut buffer)? {
        ends.outputs[0].push(r.msg_type, &buffer[..r.len], BOUND)?;
    }
    Ok(HostStep::Continue)
}

/// host -> a resident module -> two stream modules, which wake one another -> a host module -> a stream module -> host.
/// `WARPMAIL_STEPS` says how many steps of the four together, in either mode, on a GPU and on the twin; it says how far it is.
pub(crate) fn pass_many_through_a_mixed_pipeline(device: &Device) -> Outcome {
    let n = count(device, 6000, 80_000) / 4;
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let resident = graph.resident("resident", builtin::RELAY).map_err(text)?;
    let one = graph.steps("one", StreamOptions::default()).map_err(text)?;
    let two = graph.steps("two", StreamOptions::default()).map_err(text)?;
    let between = graph.host("between").map_err(text)?;
    let three = graph.steps("three", StreamOptions::default()).map_err(text)?;
    let ends = [host, resident, one, two, between, three, host];
    let boxes: Result<Vec<MailboxId>, Error> =
        ends.windows(2).map(|w| graph.mailbox(w[0], w[1], MailboxOptions::slots(16))).collect();
    let boxes = boxes.map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    for module in [one, two, three] {
        runtime.body(module, forward().always()).map_err(text)?;
    }
    runtime.spawn(between, Rule::Any, pass_on).map_err(text)?;
    let (mut sender, mut receiver) =
        (runtime.sender(boxes[0]).map_err(text)?, runtime.receiver(boxes[5]).map_err(text)?);
    runtime.start().map_err(text)?;
    let (begin, part, mut said) = (Instant::now(), (n / 20).clamp(1, 10_000), 0);
    for first in (0..n).step_by(part as usize) {
        let some = part.min(n - first);
        echo(&mut sender, &mut receiver, first, some)
            .map_err(|e| format!("{e}; {:?}; {:?}", runtime.failure(), runtime.stats()))?;
        let (steps, mode, seconds) = (4 * (first + some), runtime.mode(), begin.elapsed().as_secs());
        if std::mem::replace(&mut said, seconds) != seconds {
            progress(&format!("{steps} of {} steps in mode {mode}, {seconds} s", 4 * n));
        }
    }
    for module in ["resident", "one", "two", "three"] {
        finish(&mut runtime, module, n)?;
    }
    // Of the stream modules exactly; a handler may take several records in a step.
    let steps = |name: &str| runtime.stats().modules.iter().find(|m| m.name == name).map_or(0, |m| m.steps);
    expect([steps("one"), steps("two"), steps("three")] == [n; 3], || format!("{:?}", runtime.stats()))
}

/// Two senders, two receivers, a module between them that forwards each input to its own output.
fn cross(device: &Device, rule: Rule) -> Result<(Runtime, Vec<Sender>, Vec<Receiver>), Error> {
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host")?;
    let cross = graph.steps("cross", StreamOptions::default().with_rule(rule))?;
    let mut boxes = Vec::new();
    for _ in 0..2 {
        let there = graph.mailbox(host, cross, MailboxOptions::slots(8))?;
        boxes.push((there, graph.mailbox(cross, host, MailboxOptions::slots(8))?));
    }
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let body = Body::captured(|step| {
        step.forward(0, 0)?;
        step.forward(1, 1)
    });
    runtime.body(cross, body)?;
    let senders = boxes.iter().map(|b| runtime.sender(b.0)).collect::<Result<_, _>>()?;
    let receivers = boxes.iter().map(|b| runtime.receiver(b.1)).collect::<Result<_, _>>()?;
    Ok((runtime, senders, receivers))
}

pub(crate) fn join_what_the_rule_says(device: &Device) -> Outcome {
    let n = count(device, 1000, 10_000);
    for rule in [Rule::All, Rule::Any] {
        let (mut runtime, senders, mut receivers) = cross(device, rule).map_err(text)?;
        runtime.start().map_err(text)?;
        let sending: Vec<_> = senders
            .into_iter()
            .enumerate()
            .map(|(i, mut sender)| {
                let record = move |k: u64| ring_record(k, i as u64, 248);
                std::thread::spawn(move || (0..n).try_for_each(|k| sender.push(i as u16, &record(k), BOUND)))
            })
            .collect();
        let (mut got, mut buffer, begin) = ([0; 2], [0; 248], Instant::now());
        while got != [n; 2] {
            for (i, receiver) in receivers.iter_mut().enumerate() {
                let Some(r) = receiver.try_pop(&mut buffer).map_err(text)? else { continue };
                let whole = r.msg_type == i as u16 && buffer[..r.len] == ring_record(got[i], i as u64, 248);
                expect(whole, || format!("{rule:?}: record {} of input {i} came changed", got[i]))?;
                got[i] += 1;
            }
            expect(begin.elapsed() < BOUND, || format!("{rule:?}: {got:?} of {n}; {:?}", runtime.failure()))?;
        }
        for thread in sending {
            thread.join().map_err(|_| "a sender panicked")?.map_err(text)?;
        }
        let steps = if rule == Rule::All { n } else { 2 * n };
        runtime.drain(BOUND).map_err(text)?;
        runtime.stop(BOUND).map_err(text)?;
        let m = runtime.stats().modules[1].clone();
        expect(m.steps == steps && m.records_in == 2 * n && m.records_out == 2 * n, || format!("{rule:?}: {m:?}"))?;
    }
    Ok(())
}

/// Tiny rings and a consumer that takes its time: the credit is exact, and no step meets a full mailbox.
pub(crate) fn never_meet_a_full_mailbox(device: &Device) -> Outcome {
    let n = count(device, 400, 4000);
    for slots in [1, 2, 4] {
        let (mut runtime, mut sender, mut receiver, _) =
            relay(device, StreamOptions::default(), slots, None, true, forward()).map_err(text)?;
        runtime.start().map_err(text)?;
        let sending =
            std::thread::spawn(move || (0..n).try_for_each(|k| sender.push(k as u16, &ring_record(k, k, 248), BOUND)));
        let mut buffer = [0; 248];
        for k in 0..n {
            if k % 64 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            let r = receiver.pop(&mut buffer, BOUND).map_err(|e| format!("{slots} slots, record {k}: {e}"))?;
            expect(r.msg_type == k as u16 && buffer[..r.len] == ring_record(k, k, 248), || {
                format!("{slots} slots: record {k} came changed")
            })?;
        }
        sending.join().map_err(|_| "the sender panicked")?.map_err(text)?;
        finish(&mut runtime, "steps", n).map_err(|e| format!("{slots} slots: {e}"))?;
    }
    Ok(())
}

/// Nobody but the protocol wakes them: the pacer is off, so a lost wake-up would be waited for in vain.
pub(crate) fn are_woken_from_parking(device: &Device) -> Outcome {
    let n = count(device, 1500, 20_000);
    let parks = SpinBudget {
        idle_spin: Some(Duration::from_micros(30)),
        ..Builder::new(device.clone()).current_budget().clone()
    };
    for budget in [None, Some(parks)] {
        let options = StreamOptions { spin: Some(Duration::from_micros(5)), ..StreamOptions::default() };
        let (mut runtime, mut sender, mut receiver, _) =
            relay(device, options, 8, budget.clone(), false, forward()).map_err(text)?;
        runtime.start().map_err(text)?;
        let (mut buffer, mut random) = ([0; 248], 1u64);
        for k in 0..n {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let until = Instant::now() + Duration::from_nanos((random >> 33) % 120_000);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            sender.push(1, &ring_record(k, k, 248), BOUND).map_err(text)?;
            let r = receiver
                .pop(&mut buffer, BOUND)
                .map_err(|e| format!("record {k}: {e}; {:?} {:?}", runtime.failure(), runtime.stats().parks))?;
            expect(buffer[..r.len] == ring_record(k, k, 248), || format!("record {k} came changed"))?;
        }
        finish(&mut runtime, "steps", n)?;
    }
    Ok(())
}

/// The same of modules that wake one another, past the arbiter where they can: host -> two stream modules -> a third that joins
/// what the second gives it twice -> host.
pub(crate) fn wake_one_another_from_parking(device: &Device) -> Outcome {
    let n = count(device, 1000, 20_000);
    let parks = SpinBudget {
        idle_spin: Some(Duration::from_micros(30)),
        ..Builder::new(device.clone()).current_budget().clone()
    };
    for (budget, slots) in [(None, 8), (Some(parks), 1)] {
        let mut graph = Builder::new(device.clone());
        if let Some(budget) = budget {
            graph.budget(budget).map_err(text)?;
        }
        graph.without_pacer();
        let options = StreamOptions { spin: Some(Duration::from_micros(5)), ..StreamOptions::default() };
        let mailbox = MailboxOptions::slots(slots);
        let host = graph.host("host").map_err(text)?;
        let first = graph.steps("first", options.clone()).map_err(text)?;
        let second = graph.steps("second", options.clone()).map_err(text)?;
        let join = graph.steps("join", options.with_rule(Rule::All)).map_err(text)?;
        let there = graph.mailbox(host, first, mailbox.clone()).map_err(text)?;
        graph.mailbox(first, second, mailbox.clone()).map_err(text)?;
        graph.mailbox(second, join, mailbox.clone()).map_err(text)?;
        graph.mailbox(second, join, mailbox.clone()).map_err(text)?;
        let back = graph.mailbox(join, host, mailbox).map_err(text)?;
        let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
        runtime.body(first, forward().always()).map_err(text)?;
        let twice = Body::captured(|step| {
            step.forward(0, 0)?;
            step.forward(0, 1)
        });
        runtime.body(second, twice.always()).map_err(text)?;
        runtime.body(join, Body::captured(|step| step.forward(1, 0)).always()).map_err(text)?;
        let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
        runtime.start().map_err(text)?;
        let (mut buffer, mut random, mut sent) = ([0; 248], 1u64, 0);
        for k in 0..n {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let until = Instant::now() + Duration::from_nanos((random >> 33) % 120_000);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            while sent < n && sent < k + 1 + (random >> 20) % 3 {
                sender.push(1, &ring_record(sent, sent, 248), BOUND).map_err(text)?;
                sent += 1;
            }
            let r = receiver
                .pop(&mut buffer, BOUND)
                .map_err(|e| format!("{slots} slots, record {k}: {e}; {:?}", runtime.failure()))?;
            expect(buffer[..r.len] == ring_record(k, k, 248), || format!("{slots} slots: record {k} came changed"))?;
        }
        finish(&mut runtime, "first", n)?;
        let stats = runtime.stats();
        let steps: Vec<u64> = stats.modules.iter().filter(|m| m.name != "host").map(|m| m.steps).collect();
        expect(steps == [n; 3], || format!("{slots} slots: {steps:?} steps of {n}"))?;
    }
    Ok(())
}

/// Functions of the host run once for each step with records, in order, and launches without records leave them out.
pub(crate) fn call_the_host_once_a_step(device: &Device) -> Outcome {
    let n = count(device, 500, 5000);
    let calls = Arc::new(AtomicU64::new(0));
    let of_body = calls.clone();
    let body = Body::each_step(move |step| {
        let calls = of_body.clone();
        step.forward(0, 0)?;
        step.call(move || {
            calls.fetch_add(1, Ordering::Relaxed);
        })
    });
    let budget =
        SpinBudget { max_wait: Duration::from_millis(1), ..Builder::new(device.clone()).current_budget().clone() };
    let (mut runtime, mut sender, mut receiver, _) =
        relay(device, StreamOptions::default(), 8, Some(budget), true, body).map_err(text)?;
    runtime.start().map_err(text)?;
    std::thread::sleep(Duration::from_millis(50)); // ticks let launches through meanwhile
    echo(&mut sender, &mut receiver, 0, n)?;
    std::thread::sleep(Duration::from_millis(20));
    finish(&mut runtime, "steps", n)?;
    let calls = calls.load(Ordering::Relaxed);
    expect(calls == n, || format!("{calls} calls for {n} records"))
}

/// Quiesces while records flow, then a module is closed, and the rest stopped, in the middle of it.
pub(crate) fn pause_close_and_stop(device: &Device) -> Outcome {
    let n = count(device, 2000, 20_000);
    let (mut runtime, mut sender, mut receiver, steps) =
        relay(device, StreamOptions::default(), 16, None, true, forward()).map_err(text)?;
    runtime.start().map_err(text)?;
    let done = Arc::new(AtomicU64::new(0));
    let progress = done.clone();
    let echoing = std::thread::spawn(move || {
        for first in (0..n).step_by(100) {
            echo(&mut sender, &mut receiver, first, 100)?;
            progress.store(first + 100, Ordering::Release);
        }
        Ok::<_, String>((sender, receiver))
    });
    while done.load(Ordering::Acquire) < n {
        let before = runtime.quiesce(BOUND, |r| r.stats()).map_err(text)?;
        expect(before.serving.is_empty(), || format!("{:?} runs in a quiesce", before.serving))?;
        std::thread::sleep(Duration::from_millis(1));
        if echoing.is_finished() {
            break;
        }
    }
    let (mut sender, mut receiver) = echoing.join().map_err(|_| "the echo panicked")??;
    for k in 0..8 {
        sender.push(0, &ring_record(k, k, 248), BOUND).map_err(text)?;
    }
    runtime.close(steps, BOUND).map_err(text)?;
    let mut buffer = [0; 248];
    let (mut before, mut late) = (0, Instant::now() + Duration::from_millis(50));
    loop {
        // All have been pushed: what is there is found by the look after it.
        let is_late = Instant::now() >= late;
        if receiver.try_pop(&mut buffer).map_err(text)?.is_some() {
            before += 1;
            late = Instant::now() + Duration::from_millis(50);
        } else if is_late {
            break;
        }
    }
    sender.push(0, &[1], BOUND).map_err(text)?;
    let none = receiver.pop(&mut buffer, Duration::from_millis(30));
    expect(matches!(none, Err(Error::Timeout { .. })), || format!("a closed module answered: {none:?}"))?;
    runtime.stop(BOUND).map_err(text)?;
    let m = runtime.stats().modules[1].clone();
    expect(m.records_in == n + before, || format!("{} taken, {n} and {before} came", m.records_in))
}

pub(crate) fn mistakes_are_refused(device: &Device) -> Outcome {
    let refused = |what: &str, outcome: Result<(), Error>, with: &str| match outcome {
        Err(e) if e.to_string().contains(with) => Ok(()),
        other => Err(format!("{what}: {other:?}, not a refusal with {with:?}")),
    };
    let new = || relay(device, StreamOptions::default(), 8, None, true, forward());
    let (mut runtime, .., steps) = new().map_err(text)?;
    refused("a second body", runtime.body(steps, forward()), "has one")?;
    runtime.start().map_err(text)?;
    refused("a late body", runtime.body(steps, forward()), "before the start")?;
    runtime.stop(BOUND).map_err(text)?;

    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let spin = |spin| StreamOptions { spin: Some(spin), ..StreamOptions::default() };
    let ahead = |ahead| StreamOptions { ahead, ..StreamOptions::default() };
    let add = |graph: &mut Builder, options| graph.steps("steps", options).map(|_| ());
    refused("no time to poll", add(&mut graph, spin(Duration::ZERO)), "at least 1 µs")?;
    refused("polling without end", add(&mut graph, spin(Duration::from_secs(9))), "residency")?;
    refused("none ahead", add(&mut graph, ahead(0)), "1 to 12")?;
    refused("too many ahead", add(&mut graph, ahead(13)), "1 to 12")?;
    refused(
        "a priority",
        add(&mut graph, StreamOptions { priority: 4, ..StreamOptions::default() }),
        "0 (most urgent)",
    )?;
    let steps = graph.steps("steps", StreamOptions::default().pushes(249, 1)).map_err(text)?;
    let resident = graph.resident("resident", builtin::RELAY).map_err(text)?;
    graph.mailbox(host, steps, MailboxOptions::slots(8)).map_err(text)?;
    graph.mailbox(host, resident, MailboxOptions::slots(8)).map_err(text)?;
    let mut longer = Builder::new(device.clone());
    let far = longer.host("host").map_err(text)?;
    let s = longer.steps("steps", StreamOptions::default().pushes(249, 1)).map_err(text)?;
    longer.mailbox(far, s, MailboxOptions::slots(8)).map_err(text)?;
    longer.mailbox(s, far, MailboxOptions::slots(8)).map_err(text)?;
    refused("a long record", longer.build(HandlerImage::builtin()).map(|_| ()), "carry 248")?;
    refused("too many outputs", graph.build(HandlerImage::builtin()).map(|_| ()), "1 outputs and has 0")?;

    let mut cycle = Builder::new(device.clone());
    let a = cycle.steps("a", StreamOptions::default()).map_err(text)?;
    let b = cycle.steps("b", StreamOptions::default()).map_err(text)?;
    cycle.mailbox(a, b, MailboxOptions::slots(8)).map_err(text)?;
    cycle.mailbox(b, a, MailboxOptions::slots(8)).map_err(text)?;
    refused("a cycle", cycle.build(HandlerImage::builtin()).map(|_| ()), "cycle needs a producer outside")?;

    let mut bare = Builder::new(device.clone());
    let host = bare.host("host").map_err(text)?;
    let s = bare.steps("bare", StreamOptions::default()).map_err(text)?;
    let r = bare.resident("resident", builtin::RELAY).map_err(text)?;
    bare.mailbox(host, s, MailboxOptions::slots(8)).map_err(text)?;
    bare.mailbox(host, r, MailboxOptions::slots(8)).map_err(text)?;
    let mut runtime = bare.build(HandlerImage::builtin()).map_err(text)?;
    refused("a body for a handler", runtime.body(r, forward()), "only modules of")?;
    refused("no body", runtime.start(), "bare has no body")?;
    refused("no such output", runtime.body(s, forward()), "output 0 of a stream module: it has 0")?;
    refused("the host in a graph", runtime.body(s, Body::captured(|s| s.call(|| ()))), "captured body")?;
    runtime.body(s, Body::each_step(|_| Ok(()))).map_err(text)?;
    runtime.start().map_err(text)?;
    runtime.stop(BOUND).map_err(text)
}

/// A body that fails leaves a named state, and a stop that returns.
pub(crate) fn failing_bodies_are_named(device: &Device) -> Outcome {
    let failing = Body::each_step(|_| Err(Error::Failed("no more of this".into())));
    let panicking = Body::each_step(|step| step.call(|| panic!("a body's own panic")));
    for (body, says) in [(failing, "no more of this"), (panicking, "panicked")] {
        let (mut runtime, mut sender, ..) =
            relay(device, StreamOptions::default(), 8, None, true, body).map_err(text)?;
        runtime.start().map_err(text)?;
        let _ = sender.push(0, &[1], BOUND);
        let late = Instant::now() + BOUND;
        while runtime.state() != State::Failed && Instant::now() < late {
            std::thread::sleep(Duration::from_millis(1));
        }
        let why = runtime.failure().unwrap_or_default().to_string();
        expect(why.contains("stream module steps") && why.contains(says), || format!("{why:?} does not say {says}"))?;
        let begin = Instant::now();
        let _ = runtime.stop(BOUND);
        expect(begin.elapsed() < BOUND, || "the stop took too long".into())?;
    }
    Ok(())
}
