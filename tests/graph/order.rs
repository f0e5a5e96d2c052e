//! A static order: steps of stream modules in passes, captured once, arbitrated by the CPU.

use warpmail::{
    Body, Builder, Device, Error, HandlerImage, MailboxOptions, Mode, ModuleId, Rule, Runtime, StreamOptions, builtin,
};
use warpmail_testkit::ring_record;

use std::time::Duration;

use crate::flow::echo;
use crate::{BOUND, Outcome, expect, text};

fn forward() -> Body {
    Body::captured(|step| step.forward(0, 0))
}

/// What came back, and what each module counted.
type Gone = (Vec<(u16, Vec<u8>)>, Vec<(String, u64, u64, u64)>);

/// host -> split -> left and right -> join, which takes a record of each -> last -> host. The modules are added last first, so
/// that their order is not that of their rows.
fn through(device: &Device, passes: bool, slots: u32, records: u64) -> Result<Gone, Error> {
    let mut graph = Builder::new(device.clone());
    graph.mode(Mode::Cpu).static_order(passes);
    let host = graph.host("host")?;
    let options = StreamOptions::default;
    let last = graph.steps("last", options())?;
    let join = graph.steps("join", options().with_rule(Rule::All))?;
    let right = graph.steps("right", options())?;
    let left = graph.steps("left", options())?;
    let split = graph.steps("split", options())?;
    let mailbox = || MailboxOptions::slots(slots);
    let there = graph.mailbox(host, split, MailboxOptions::slots(16))?;
    for (from, to) in [(split, left), (split, right), (left, join), (right, join), (join, last)] {
        graph.mailbox(from, to, mailbox())?;
    }
    let back = graph.mailbox(last, host, mailbox())?;
    let beside = graph.mailbox(join, host, mailbox())?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let both = || {
        Body::captured(|step| {
            step.forward(0, 0)?;
            step.forward(0, 1)
        })
    };
    runtime.body(split, both())?;
    runtime.body(left, forward())?;
    runtime.body(right, forward().always())?;
    let across = Body::captured(|step| {
        step.forward(0, 1)?;
        step.forward(1, 0)
    });
    runtime.body(join, across)?;
    runtime.body(last, forward().always())?;
    let mut sender = runtime.sender(there)?;
    let mut receivers = [runtime.receiver(back)?, runtime.receiver(beside)?];
    runtime.start()?;
    let sending = std::thread::spawn(move || {
        (0..records).try_for_each(|n| sender.push(n as u16, &ring_record(n, n, 248), BOUND))
    });
    let (mut came, mut buffer) = (Vec::new(), [0; 248]);
    for n in 0..records {
        if n % 100 == 50 {
            std::thread::sleep(Duration::from_millis(2)); // mailboxes fill up meanwhile
        }
        for receiver in &mut receivers {
            let record = receiver.pop(&mut buffer, BOUND)?;
            came.push((record.msg_type, buffer[..record.len].to_vec()));
        }
    }
    sending.join().map_err(|_| Error::Failed("the sender panicked".into()))??;
    runtime.drain(BOUND)?;
    runtime.stop(BOUND)?;
    let stats = runtime.stats().modules;
    Ok((came, stats.into_iter().map(|m| (m.name, m.steps, m.records_in, m.records_out)).collect()))
}

/// Records, their order and the counters are the same with a static order and without, with mailboxes of one slot too.
pub(crate) fn passes_give_the_same(device: &Device) -> Outcome {
    let records = if device.info().ordinal.is_some() { 10_000 } else { 1000 };
    for slots in [1, 8] {
        let ours = through(device, true, slots, records).map_err(|e| format!("{slots} slots, in passes: {e}"))?;
        let others = through(device, false, slots, records).map_err(|e| format!("{slots} slots: {e}"))?;
        expect(ours.1 == others.1, || format!("{slots} slots: {:?}, not {:?}", ours.1, others.1))?;
        let steps = ours.1.iter().filter(|m| m.0 != "host").all(|m| m.1 == records && m.2 >= records);
        expect(steps, || format!("{slots} slots: {:?}", ours.1))?;
        for (n, record) in ours.0.iter().enumerate() {
            let from = n as u64 / 2; // each record came by both ways, in turn
            let whole = *record == (from as u16, ring_record(from, from, 248));
            expect(whole, || format!("{slots} slots: record {n} is not record {from} as it was sent"))?;
        }
        expect(ours.0 == others.0, || format!("{slots} slots: the records are not the same"))?;
    }
    Ok(())
}

/// A chain of three in passes, and the module in the middle.
fn chain(device: &Device) -> Result<(Runtime, warpmail::Sender, warpmail::Receiver, ModuleId), Error> {
    let mut graph = Builder::new(device.clone());
    graph.mode(Mode::Cpu).static_order(true);
    let host = graph.host("host")?;
    let mut steps = Vec::new();
    for name in ["a", "b", "c"] {
        steps.push(graph.steps(name, StreamOptions::default())?);
    }
    let ends = [host, steps[0], steps[1], steps[2], host];
    let mut boxes = Vec::new();
    for pair in ends.windows(2) {
        boxes.push(graph.mailbox(pair[0], pair[1], MailboxOptions::slots(16))?);
    }
    let mut runtime = graph.build(HandlerImage::builtin())?;
    for &module in &steps {
        runtime.body(module, forward().always())?;
    }
    let (sender, receiver) = (runtime.sender(boxes[0])?, runtime.receiver(boxes[3])?);
    Ok((runtime, sender, receiver, steps[1]))
}

/// Quiesces and a stop in the middle of passes: nothing is lost, and what was not taken waits.
pub(crate) fn passes_pause_and_stop(device: &Device) -> Outcome {
    let (mut runtime, mut sender, mut receiver, middle) = chain(device).map_err(text)?;
    runtime.start().map_err(text)?;
    let echoing = std::thread::spawn(move || {
        echo(&mut sender, &mut receiver, 0, 3000)?;
        Ok::<_, String>((sender, receiver))
    });
    while !echoing.is_finished() {
        let before = runtime.quiesce(BOUND, |r| r.stats()).map_err(text)?;
        expect(before.serving.is_empty(), || format!("{:?} runs in a quiesce", before.serving))?;
        std::thread::sleep(Duration::from_millis(1));
    }
    let (mut sender, _receiver) = echoing.join().map_err(|_| "the echo panicked")??;
    let closed = runtime.close(middle, BOUND);
    let refused =
        matches!(&closed, Err(e) if e.to_string().contains("module b") && e.to_string().contains("static order"));
    expect(refused, || format!("{closed:?}"))?;
    for n in 0..8 {
        sender.push(0, &ring_record(n, n, 248), BOUND).map_err(text)?;
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    // Of the chain, each has taken what the one before it has given, or it waits between them.
    let waiting: u64 = stats.mailboxes.iter().map(|m| m.written.saturating_sub(m.consumed)).sum();
    let left: Vec<u64> = stats.mailboxes.iter().map(|m| m.written).collect();
    let ordered = left.windows(2).all(|pair| pair[0] >= pair[1] && pair[0] - pair[1] <= 16);
    expect(ordered && left[0] == 3008 && waiting == 3008 - 3000, || format!("{stats:?}"))
}

/// A graph whose order is not fixed is refused, with the name of the module and the rule.
pub(crate) fn orders_that_are_not_fixed_are_refused(device: &Device) -> Outcome {
    type Make = fn(&mut Builder, ModuleId) -> Result<(), Error>;
    let pair = |graph: &mut Builder, host, a: StreamOptions, b: StreamOptions| {
        let (a, b) = (graph.steps("a", a)?, graph.steps("b", b)?);
        graph.mailbox(host, a, MailboxOptions::slots(8))?;
        graph.mailbox(a, b, MailboxOptions::slots(8)).map(|_| (a, b))
    };
    let cases: [(&str, Make, [&str; 2]); 6] = [
        (
            "the other mode",
            |graph, _| graph.mode(Mode::Device).steps("a", StreamOptions::default()).map(drop),
            ["static order", "CPU-arbitrated"],
        ),
        (
            "a handler",
            |graph, host| {
                let relay = graph.resident("relay", builtin::RELAY)?;
                graph.mailbox(host, relay, MailboxOptions::slots(8)).map(drop)
            },
            ["module relay", "resident"],
        ),
        (
            "kernels of one's own",
            |graph, host| {
                let kernels = graph.stream("kernels")?;
                graph.mailbox(host, kernels, MailboxOptions::slots(8)).map(drop)
            },
            ["module kernels", "come when they come"],
        ),
        (
            "any of two",
            |graph, host| {
                let (any, other) = (graph.steps("any", StreamOptions::default())?, graph.host("other")?);
                graph.mailbox(host, any, MailboxOptions::slots(8))?;
                graph.mailbox(other, any, MailboxOptions::slots(8)).map(drop)
            },
            ["module any", "any of 2 inputs"],
        ),
        (
            "nothing to order",
            |graph, host| {
                let other = graph.host("other")?;
                graph.mailbox(host, other, MailboxOptions::slots(8)).map(drop)
            },
            ["static order", "no stream modules"],
        ),
        (
            "a cycle",
            |graph, host| {
                let all = || StreamOptions::default().with_rule(Rule::All);
                let (a, b) = (graph.steps("a", StreamOptions::default())?, graph.steps("b", all())?);
                let c = graph.steps("c", all())?;
                graph.mailbox(host, a, MailboxOptions::slots(8))?;
                graph.mailbox(a, b, MailboxOptions::slots(8))?;
                graph.mailbox(b, c, MailboxOptions::slots(8))?;
                graph.mailbox(c, b, MailboxOptions::slots(8)).map(drop)
            },
            ["module", "cycle"],
        ),
    ];
    let refused = |what: &str, outcome: Result<Runtime, Error>, with: [&str; 2]| match outcome {
        Err(e) if with.iter().all(|part| e.to_string().contains(part)) => Ok(()),
        other => Err(format!("{what}: {:?}, not a refusal with {with:?}", other.map(drop))),
    };
    let new = || -> Result<(Builder, ModuleId), Error> {
        let mut graph = Builder::new(device.clone());
        graph.mode(Mode::Cpu).static_order(true);
        let host = graph.host("host")?;
        Ok((graph, host))
    };
    for (what, make, with) in cases {
        let (mut graph, host) = new().map_err(text)?;
        make(&mut graph, host).map_err(text)?;
        let sink = graph.host("sink").map_err(text)?;
        graph.mailbox(host, sink, MailboxOptions::slots(8)).map_err(text)?;
        refused(what, graph.build(HandlerImage::builtin()), with)?;
    }
    let (mut graph, host) = new().map_err(text)?;
    let urgent = StreamOptions { priority: 1, ..StreamOptions::default() };
    pair(&mut graph, host, StreamOptions::default(), urgent).map_err(text)?;
    refused("priorities", graph.build(HandlerImage::builtin()), ["module b", "priority is 1 and that of a is 0"])?;
    let (mut graph, host) = new().map_err(text)?;
    let theirs = StreamOptions { stream: Some(64), ..StreamOptions::default() };
    pair(&mut graph, host, StreamOptions::default(), theirs).map_err(text)?;
    refused("a stream", graph.build(HandlerImage::builtin()), ["module b", "stream of the caller's"])?;

    let (mut graph, host) = new().map_err(text)?;
    let (a, b) = pair(&mut graph, host, StreamOptions::default(), StreamOptions::default()).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let each = runtime.body(a, Body::each_step(|_| Ok(())));
    let named =
        matches!(&each, Err(e) if e.to_string().contains("stream module a") && e.to_string().contains("static order"));
    expect(named, || format!("{each:?}"))?;
    runtime.body(a, forward()).map_err(text)?;
    let twice = runtime.body(a, forward());
    expect(matches!(&twice, Err(e) if e.to_string().contains("a module has one")), || format!("{twice:?}"))?;
    let early = runtime.start();
    expect(matches!(&early, Err(e) if e.to_string().contains("b has no body")), || format!("{early:?}"))?;
    runtime.body(b, Body::captured(|_| Ok(()))).map_err(text)?;
    runtime.start().map_err(text)?;
    runtime.stop(BOUND).map_err(text)
}
