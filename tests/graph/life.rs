//! Starting, pausing, stopping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use warpmail::{Builder, Device, Error, HandlerImage, HostStep, MailboxOptions, Rule, SpinBudget, State, builtin};

use crate::flow::{echo, relay};
use crate::{BOUND, Outcome, expect, text};

/// Threads of this process and its resident memory in KiB.
pub(crate) fn usage() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|v| v.parse().ok()).unwrap_or(0)
    };
    (field("Threads:"), field("VmRSS:"))
}

pub(crate) fn start_and_stop_a_hundred_times(device: &Device) -> Outcome {
    let starts = std::env::var("WARPMAIL_STARTS").ok().and_then(|v| v.parse().ok()).unwrap_or(100u32).max(20);
    let mut before = ((0, 0), None);
    for i in 0..starts {
        let (mut runtime, mut sender, mut receiver) = relay(device, MailboxOptions::slots(8), None).map_err(text)?;
        runtime.start().map_err(text)?;
        echo(&mut sender, &mut receiver, 0, 20).map_err(|e| format!("start {i}: {e}"))?;
        runtime.stop(BOUND).map_err(text)?;
        expect(runtime.state() == State::Stopped, || format!("{:?}", runtime.state()))?;
        drop((runtime, sender, receiver));
        if i == starts / 2 {
            before = (usage(), device.free_bytes().map_err(text)?); // what is made once has been made, and caches are full
        }
    }
    let (before, free_before) = before;
    let begin = Instant::now();
    while usage().0 > before.0 && begin.elapsed() < BOUND {
        std::thread::sleep(Duration::from_millis(1)); // a joined thread counts until the system has put it away
    }
    let after = usage();
    // The driver takes device memory in pieces of two megabytes.
    let free_after = device.free_bytes().map_err(text)?;
    let lost = free_before.unwrap_or(0).saturating_sub(free_after.unwrap_or(0));
    expect(lost < 4 << 20, || format!("{lost} bytes of device memory are gone"))?;
    expect(after.0 <= before.0, || format!("threads grew from {} to {}", before.0, after.0))?;
    expect(after.1 <= before.1 + 4096, || format!("memory grew from {} to {} KiB", before.1, after.1))
}

pub(crate) fn quiesce_while_records_flow(device: &Device) -> Outcome {
    let (mut runtime, mut sender, mut receiver) = relay(device, MailboxOptions::slots(16), None).map_err(text)?;
    let early = runtime.quiesce(BOUND, |_| ());
    expect(matches!(early, Err(Error::State(_))), || format!("{early:?}"))?;
    runtime.start().map_err(text)?;
    let sending = std::thread::spawn(move || echo(&mut sender, &mut receiver, 0, 30_000));
    for i in 0..50 {
        let (begun, ended) = runtime
            .quiesce(BOUND, |r| {
                let stats = r.stats();
                // Nothing runs in here: no launch begins or ends, and memory may be freed or loaded.
                std::thread::sleep(Duration::from_millis(1));
                (stats.launches, r.stats().launches_ended)
            })
            .map_err(text)?;
        expect(begun == ended, || format!("quiesce {i}: {begun} launches begun, {ended} ended"))?;
    }
    sending.join().map_err(|_| "the sender panicked".to_string())??;
    runtime.quiesce(Duration::MAX, |_| ()).map_err(text)?;
    let again = runtime.start();
    expect(matches!(again, Err(Error::State(_))), || format!("{again:?}"))?;
    runtime.stop(BOUND).map_err(text)?;
    // Bounds that no clock has room for are bounds all the same.
    runtime.stop(Duration::MAX).map_err(text)
}

pub(crate) fn host_modules_run_and_end(device: &Device) -> Outcome {
    let mut graph = Builder::new(device.clone());
    let source = graph.host("source").map_err(text)?;
    let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
    let sink = graph.host("sink").map_err(text)?;
    graph.mailbox(source, relay, MailboxOptions::slots(16)).map_err(text)?;
    graph.mailbox(relay, sink, MailboxOptions::slots(16)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    runtime.start().map_err(text)?;
    let mut next = 0u64;
    runtime
        .spawn(source, Rule::Any, move |ends| {
            ends.outputs[0].push(1, &next.to_le_bytes(), BOUND)?;
            next += 1;
            Ok(if next == 5000 { HostStep::Done } else { HostStep::Continue })
        })
        .map_err(text)?;
    let sum = Arc::new(AtomicU64::new(0));
    let total = sum.clone();
    runtime
        .spawn(sink, Rule::Any, move |ends| {
            let mut buffer = [0; 248];
            if let Some(r) = ends.inputs[0].try_pop(&mut buffer)? {
                assert_eq!(r.len, 8);
                total.fetch_add(1 + u64::from_le_bytes(std::array::from_fn(|i| buffer[i])), Ordering::Relaxed);
            }
            Ok(HostStep::Continue)
        })
        .map_err(text)?;
    let expected: u64 = (1..=5000).sum();
    let begin = std::time::Instant::now();
    while sum.load(Ordering::Relaxed) != expected && begin.elapsed() < BOUND {
        std::thread::sleep(Duration::from_millis(1));
    }
    runtime.stop(BOUND).map_err(text)?;
    let got = sum.load(Ordering::Relaxed);
    expect(got == expected, || format!("the sum is {got}, not {expected}"))
}

pub(crate) fn drop_without_stop(device: &Device) -> Outcome {
    for _ in 0..5 {
        let (mut runtime, mut sender, receiver) = relay(device, MailboxOptions::slots(64), None).map_err(text)?;
        for n in 0..64u64 {
            sender.try_push(1, &n.to_le_bytes()).map_err(text)?;
        }
        runtime.start().map_err(text)?;
        drop(runtime);
        // The ends outlive the runtime; their memory is still there.
        let full = sender.push(1, &[0; 8], Duration::from_millis(1));
        expect(full.is_ok() || matches!(full, Err(Error::Timeout { .. })), || format!("{full:?}"))?;
        drop((sender, receiver));
    }
    Ok(())
}

pub(crate) fn servers_of_any_number(device: &Device) -> Outcome {
    let least = u32::from(device.info().ordinal.is_some());
    for servers in [least, 1, 2, 4, 9] {
        let budget = SpinBudget { servers, ..SpinBudget::default() };
        let (mut runtime, mut sender, mut receiver) =
            relay(device, MailboxOptions::default(), Some(budget)).map_err(text)?;
        runtime.start().map_err(text)?;
        echo(&mut sender, &mut receiver, 0, 2000).map_err(|e| format!("{servers} servers: {e}"))?;
        runtime.stop(BOUND).map_err(text)?;
    }
    Ok(())
}

/// They share their kernels, but not what each needs of a launch.
pub(crate) fn runtimes_of_different_sizes_at_once(device: &Device) -> Outcome {
    let with =
        |servers| relay(device, MailboxOptions::slots(16), Some(SpinBudget { servers, ..SpinBudget::default() }));
    let (mut large, mut to_large, mut from_large) = with(9).map_err(text)?;
    large.start().map_err(text)?;
    echo(&mut to_large, &mut from_large, 0, 500)?;
    for round in 0..5 {
        let (mut small, mut to_small, mut from_small) = with(1).map_err(text)?;
        small.start().map_err(text)?;
        echo(&mut to_small, &mut from_small, 0, 500).map_err(|e| format!("small, round {round}: {e}"))?;
        // It is launched anew.
        large.quiesce(BOUND, |_| ()).map_err(text)?;
        echo(&mut to_large, &mut from_large, 500 * (round + 1), 500).map_err(|e| format!("large, {round}: {e}"))?;
        small.stop(BOUND).map_err(text)?;
        drop((small, to_small, from_small));
        large.quiesce(BOUND, |_| ()).map_err(text)?;
    }
    large.stop(BOUND).map_err(text)
}
