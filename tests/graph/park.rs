//! The arbiter leaves when there is nothing to do, and no news is ever lost: not on a push, not on a credit's return, not at
//! a stop. With the pacer switched off nothing would mend a lost wake-up: such a scenario would hang, and be killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use warpmail::{
    Builder, Device, Error, HandlerImage, MailboxOptions, ModuleOptions, Receiver, Runtime, Sender, SpinBudget, builtin,
};
use warpmail_testkit as kit;

use crate::flow::echo;
use crate::{BOUND, Outcome, expect, text};

fn parking(idle_spin: Duration, servers: u32) -> SpinBudget {
    SpinBudget { idle_spin: Some(idle_spin), residency: Duration::from_millis(100), servers, ..SpinBudget::default() }
}

fn servers(device: &Device) -> u32 {
    if device.info().ordinal.is_some() { 6 } else { 0 }
}

/// `lines` pairs of mailboxes between the host and one relay each, and an arbiter that parks, without a pacer.
fn relays(
    device: &Device,
    lines: usize,
    slots: u32,
    budget: SpinBudget,
) -> Result<(Runtime, Vec<(Sender, Receiver)>), Error> {
    relays_of(Builder::new(device.clone()), lines, slots, budget)
}

fn relays_of(
    mut graph: Builder,
    lines: usize,
    slots: u32,
    budget: SpinBudget,
) -> Result<(Runtime, Vec<(Sender, Receiver)>), Error> {
    graph.without_pacer();
    relays_with(graph, lines, slots, budget)
}

fn relays_with(
    mut graph: Builder,
    lines: usize,
    slots: u32,
    budget: SpinBudget,
) -> Result<(Runtime, Vec<(Sender, Receiver)>), Error> {
    graph.budget(budget)?;
    let host = graph.host("host")?;
    let mut ids = Vec::new();
    for i in 0..lines {
        let relay = graph.resident(&format!("relay{i}"), builtin::RELAY)?;
        let there = graph.mailbox(host, relay, MailboxOptions::slots(slots))?;
        ids.push((there, graph.mailbox(relay, host, MailboxOptions::slots(slots))?));
    }
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let mut ends = Vec::new();
    for (there, back) in ids {
        ends.push((runtime.sender(there)?, runtime.receiver(back)?));
    }
    runtime.start()?;
    Ok((runtime, ends))
}

fn until_parked(runtime: &Runtime) -> Outcome {
    let begin = Instant::now();
    while !runtime.stats().parked {
        expect(begin.elapsed() < BOUND, || format!("never parked: {:?}", runtime.stats()))?;
        std::thread::yield_now();
    }
    Ok(())
}

/// A cheap sequence of numbers that differ.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

fn pushes(device: &Device, default_twin: u64, default_cuda: u64) -> u64 {
    let default = if crate::is_fast(device) { default_cuda } else { default_twin };
    std::env::var("WARPMAIL_PARKED_PUSHES").ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

pub(crate) fn pushes_to_a_parked_arbiter_arrive(device: &Device) -> Outcome {
    pushes_arrive(device, false)
}

pub(crate) fn pushes_to_an_adaptive_arbiter_arrive(device: &Device) -> Outcome {
    pushes_arrive(device, true)
}

fn pushes_arrive(device: &Device, adaptive: bool) -> Outcome {
    let idle_spin = Duration::from_micros(20);
    let budget = SpinBudget { adaptive, ..parking(idle_spin, servers(device)) };
    let (mut runtime, mut ends) = relays(device, 1, 8, budget).map_err(text)?;
    let (sender, receiver) = &mut ends[0];
    let (count, mut buffer, mut seed) = (pushes(device, 4000, 100_000), [0; 248], 1);
    for n in 0..count {
        if n % 4 == 0 {
            until_parked(&runtime)?;
        } else {
            // Around the moment of parking.
            let wait = Duration::from_nanos(next(&mut seed) % (3 * idle_spin.as_nanos() as u64));
            let begin = Instant::now();
            while begin.elapsed() < wait {
                std::hint::spin_loop();
            }
        }
        sender.push(1, &n.to_le_bytes(), BOUND).map_err(text)?;
        let record = receiver.pop(&mut buffer, BOUND).map_err(|e| format!("push {n}: {e}; {:?}", runtime.stats()))?;
        expect(buffer[..record.len] == n.to_le_bytes(), || format!("record {n} came back changed"))?;
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    eprintln!("{count} pushes, {} parks, {} launches", stats.parks, stats.launches);
    expect(stats.parks > count / 8, || format!("{stats:?}"))
}

/// As where the device's streams cannot wait: the host lets the launches in. Parked, woken, paused, stopped.
pub(crate) fn the_host_may_watch_the_doors(device: &Device) -> Outcome {
    let mut graph = Builder::new(device.clone());
    graph.with_host_doors();
    let budget = parking(Duration::from_micros(20), servers(device));
    let (mut runtime, mut ends) = relays_of(graph, 1, 8, budget).map_err(text)?;
    let (sender, receiver) = &mut ends[0];
    for n in 0..300 {
        if n % 3 == 0 {
            until_parked(&runtime)?;
        }
        echo(sender, receiver, n, 1).map_err(|e| format!("record {n}: {e}; {:?}", runtime.stats()))?;
        if n % 100 == 50 {
            let parks = runtime.quiesce(BOUND, |r| r.stats().parks).map_err(text)?;
            expect(parks > n / 10, || format!("{parks} parks at record {n}"))?;
        }
    }
    until_parked(&runtime)?;
    runtime.stop(BOUND).map_err(text)
}

/// A record that its module does not take is no news for the launches that the pacer lets go.
pub(crate) fn what_is_left_is_not_granted_again(device: &Device) -> Outcome {
    let mut graph = Builder::new(device.clone());
    let max_wait = Duration::from_millis(2);
    graph.budget(SpinBudget { max_wait, ..parking(Duration::from_micros(20), servers(device)) }).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let idle = graph.resident("idle", ModuleOptions::handler(kit::IDLE)).map_err(text)?;
    let there = graph.mailbox(host, idle, MailboxOptions::slots(4)).map_err(text)?;
    let mut runtime = graph.build(kit::image()).map_err(text)?;
    let mut sender = runtime.sender(there).map_err(text)?;
    runtime.start().map_err(text)?;
    sender.push(1, b"never taken", BOUND).map_err(text)?;
    let vain = || runtime.stats().modules[1].rejects.no_progress;
    let launches_until = |what: &str, done: &dyn Fn(u64) -> bool| -> Outcome {
        let begin = Instant::now();
        while !done(runtime.stats().launches) {
            expect(begin.elapsed() < BOUND, || format!("{what}: {:?}", runtime.stats()))?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    launches_until("never granted", &|_| vain() > 0)?;
    let first = runtime.stats().launches;
    launches_until("no launches", &|now| now >= first + 8)?;
    let (before, since) = (vain(), runtime.stats().launches);
    launches_until("no more launches", &|now| now >= since + 20)?;
    let after = vain();
    runtime.stop(BOUND).map_err(text)?;
    expect(before == after, || format!("granted in vain {} times more in 20 launches", after - before))
}

/// Where news comes later than after idle_spin, polling is in vain, and an adaptive arbiter learns it.
pub(crate) fn adaptive_arbiters_poll_less(device: &Device) -> Outcome {
    one_of_several(device, less_is_polled)
}

fn less_is_polled(device: &Device) -> Outcome {
    let idle_spin = Duration::from_millis(1);
    let mut polled = [0; 2];
    for adaptive in [false, true] {
        let budget = SpinBudget { adaptive, ..parking(idle_spin, servers(device)) };
        let (mut runtime, mut ends) = relays(device, 1, 8, budget).map_err(text)?;
        let (sender, receiver) = &mut ends[0];
        for n in 0..60 {
            echo(sender, receiver, n, 1)?;
            until_parked(&runtime)?;
            std::thread::sleep(5 * idle_spin);
        }
        runtime.stop(BOUND).map_err(text)?;
        let stats = runtime.stats();
        expect(stats.parks >= 60, || format!("{stats:?}"))?;
        polled[usize::from(adaptive)] = stats.idle_poll_ns;
    }
    eprintln!("polled {} ns, adaptive {} ns", polled[0], polled[1]);
    expect(polled[1] < polled[0], || format!("polled {} ns, adaptive {} ns", polled[0], polled[1]))
}

/// Records come far faster than a small share of an SM allows wake-ups: all arrive, and polling, beginning and leaving of
/// launches together keep to the share. No pacer lets a launch in before its time.
pub(crate) fn sm_share_is_a_limit(device: &Device) -> Outcome {
    one_of_several(device, share_is_kept)
}

/// Of what is measured on threads that may be kept from their cores, one attempt of three counts. A kernel has one.
pub(crate) fn one_of_several(device: &Device, attempt: impl Fn(&Device) -> Outcome) -> Outcome {
    let mut outcome = Ok(());
    for _ in 0..if crate::is_fast(device) { 1 } else { 3 } {
        outcome = attempt(device);
        match &outcome {
            Ok(()) => break,
            Err(e) => eprintln!("{e}"),
        }
    }
    outcome
}

fn share_is_kept(device: &Device) -> Outcome {
    let (share, max_wait) = (0.02, Duration::from_secs(1));
    let budget = SpinBudget { sm_share: share, max_wait, ..parking(Duration::from_millis(1), servers(device)) };
    let (mut runtime, mut ends) = relays(device, 1, 1024, budget).map_err(text)?;
    let (sender, receiver) = &mut ends[0];
    let (mut sent, mut got, mut buffer) = (0u64, 0u64, [0; 248]);
    let begin = Instant::now();
    let span = Duration::from_millis(if crate::is_fast(device) { 3000 } else { 1500 });
    while begin.elapsed() < span || got < sent {
        if begin.elapsed() < span {
            sender.push(1, &sent.to_le_bytes(), BOUND).map_err(|e| format!("push {sent}: {e}"))?;
            sent += 1;
        }
        while receiver.try_pop(&mut buffer).map_err(text)?.is_some() {
            expect(buffer[..8] == got.to_le_bytes(), || format!("record {got} came back changed"))?;
            got += 1;
        }
        expect(begin.elapsed() < span + BOUND, || format!("{got} of {sent}: {:?}", runtime.stats()))?;
        if sent % 16 == 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    // On threads the flood may never have left it idle.
    while !crate::is_fast(device) && runtime.stats().budget.closings == 0 {
        echo(sender, receiver, sent, 1)?;
        sent += 1;
        expect(begin.elapsed() < span + BOUND, || format!("never closed: {:?}", runtime.stats()))?;
        std::thread::sleep(Duration::from_millis(1));
    }
    runtime.stop(BOUND).map_err(text)?;
    let (stats, elapsed) = (runtime.stats(), begin.elapsed().as_nanos() as f64);
    let idle = stats.idle_poll_ns as f64;
    let debt = (-stats.budget.allowance_ns).max(0) as f64;
    eprintln!("{sent} records, {:.4} of an SM idle, {:?}", idle / elapsed, stats.budget);
    expect(stats.budget.closings > if crate::is_fast(device) { 10 } else { 0 }, || format!("{:?}", stats.budget))?;
    // What was overdrawn last is paid back later; on the twin that may be much, where a thread was kept from its core.
    expect(idle <= 1.1 * share * elapsed + debt + 1e6, || format!("idle {idle} of {elapsed} ns, {stats:?}"))?;
    expect(!crate::is_fast(device) || stats.budget.over_share == 0, || format!("{:?}", stats.budget))
}

/// Pauses and stops meet an arbiter that is away until its share allows the next launch.
pub(crate) fn closed_arbiters_stop_and_pause(device: &Device) -> Outcome {
    let (mut closed, max_wait) = (0, Duration::from_secs(1)); // longer than any wait here: the pacer is switched off
    for i in 0..20 {
        let budget = SpinBudget { sm_share: 2e-4, max_wait, ..parking(Duration::from_micros(5), servers(device)) };
        let (mut runtime, mut ends) = relays(device, 1, 64, budget).map_err(text)?;
        let (sender, receiver) = &mut ends[0];
        for n in 0..5 {
            echo(sender, receiver, n, 1).map_err(|e| format!("start {i}, record {n}: {e}"))?;
        }
        closed += u64::from(runtime.stats().closed);
        let (begun, ended) =
            runtime.quiesce(BOUND, |r| (r.stats().launches, r.stats().launches_ended)).map_err(text)?;
        expect(begun == ended, || format!("{begun} launches begun, {ended} ended"))?;
        echo(sender, receiver, 5, 2).map_err(|e| format!("after pause {i}: {e}"))?;
        runtime.stop(BOUND).map_err(text)?;
    }
    eprintln!("{closed} of 20 pauses met a closed arbiter");
    Ok(())
}

pub(crate) fn several_producers_wake_it(device: &Device) -> Outcome {
    let (mut runtime, ends) = relays(device, 3, 4, parking(Duration::from_micros(5), servers(device))).map_err(text)?;
    let count = pushes(device, 2000, 50_000);
    let lines: Vec<_> = ends
        .into_iter()
        .enumerate()
        .map(|(line, (mut sender, mut receiver))| {
            std::thread::spawn(move || {
                let mut seed = line as u64;
                for n in 0..count {
                    echo(&mut sender, &mut receiver, n, 1).map_err(|e| format!("line {line}, record {n}: {e}"))?;
                    for _ in 0..next(&mut seed) % 2000 {
                        std::hint::spin_loop();
                    }
                }
                Ok::<(), String>(())
            })
        })
        .collect();
    for line in lines {
        line.join().map_err(|_| "a line panicked".to_string())??;
    }
    until_parked(&runtime)?; // with three of them there need not have been a moment for it before
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    expect(stats.parks > 0, || format!("{stats:?}"))
}

/// A push that took longer than this was mended by a pacer that comes once a second. (One in ten such would come sooner.)
const LATE: Duration = Duration::from_millis(100);

/// Several producers push at the same moment, to an arbiter that has parked or is about to, again and again; the pacer is there,
/// but only once a second. `WARPMAIL_PARKED_PUSHES` says how many, all together. On a GPU none may be late.
pub(crate) fn no_push_waits_for_the_pacer(device: &Device) -> Outcome {
    let lines = if crate::is_fast(device) { 6 } else { 2 };
    let idle_spin = Duration::from_micros(if crate::is_fast(device) { 2 } else { 50 });
    let budget = SpinBudget { max_wait: Duration::from_secs(1), ..parking(idle_spin, servers(device)) };
    let (mut runtime, ends) = relays_with(Builder::new(device.clone()), lines, 8, budget).map_err(text)?;
    let rounds = pushes(device, 1000, 200_000) / lines as u64;
    let (go, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let threads: Vec<_> = (0..lines as u64)
        .zip(ends)
        .map(|(line, (sender, receiver))| {
            let (go, done) = (go.clone(), done.clone());
            std::thread::spawn(move || {
                let pushed = push_in_rounds(line, rounds, sender, receiver, &go, &done);
                done.fetch_add(if pushed.is_err() { rounds } else { 0 }, Ordering::Release); // keeps nobody waiting
                pushed
            })
        })
        .collect();
    let (mut seed, mut parked) = (7, 0u64);
    for round in 0..rounds {
        if round % 2 == 0 {
            until_parked(&runtime)?;
            parked += 1;
        } else {
            let (begin, wait) = (Instant::now(), next(&mut seed) % (3 * idle_spin.as_nanos() as u64));
            while begin.elapsed().as_nanos() < u128::from(wait) {
                std::hint::spin_loop();
            }
        }
        go.store(round + 1, Ordering::Release);
        while done.load(Ordering::Acquire) < (round + 1) * lines as u64 {
            std::thread::yield_now();
        }
    }
    let (mut late, mut longest) = (0, Duration::ZERO);
    for thread in threads {
        let (l, worst) = thread.join().map_err(|_| "a line panicked".to_string())??;
        (late, longest) = (late + l, longest.max(worst));
    }
    runtime.stop(BOUND).map_err(text)?;
    let (stats, all) = (runtime.stats(), rounds * lines as u64);
    eprintln!(
        "{all} pushes, {} of them to a parked arbiter, {} parks, {late} late, the longest {longest:?}",
        parked * lines as u64,
        stats.parks
    );
    expect(stats.parks >= parked, || format!("{stats:?}"))?;
    expect(late == 0 || !crate::is_fast(device), || {
        format!("{late} of {all} pushes came late, the longest {longest:?}")
    })
}

/// One line of it: an echo each round. How many were late, and the longest.
fn push_in_rounds(
    line: u64,
    rounds: u64,
    mut sender: Sender,
    mut receiver: Receiver,
    go: &AtomicU64,
    done: &AtomicU64,
) -> Result<(u64, Duration), String> {
    let (mut late, mut longest, mut seed) = (0, Duration::ZERO, line + 1);
    for round in 0..rounds {
        while go.load(Ordering::Acquire) <= round {
            std::thread::yield_now();
        }
        for _ in 0..next(&mut seed) % 64 {
            std::hint::spin_loop();
        }
        let begin = Instant::now();
        echo(&mut sender, &mut receiver, round, 1).map_err(|e| format!("line {line}, round {round}: {e}"))?;
        let took = begin.elapsed();
        late += u64::from(took > LATE);
        longest = longest.max(took);
        done.fetch_add(1, Ordering::Release);
    }
    Ok((late, longest))
}

pub(crate) fn a_slot_given_back_wakes_it(device: &Device) -> Outcome {
    let (mut runtime, mut ends) =
        relays(device, 1, 2, parking(Duration::from_micros(20), servers(device))).map_err(text)?;
    let (sender, receiver) = &mut ends[0];
    let (mut sent, mut buffer) = (0u64, [0; 248]);
    for n in 0..pushes(device, 500, 20_000) {
        // Fill both rings: the relay is held back, and the arbiter has nothing to do.
        while sent < n + 4 {
            sender.push(1, &sent.to_le_bytes(), BOUND).map_err(|e| format!("push {sent}: {e}"))?;
            sent += 1;
        }
        until_parked(&runtime)?;
        // Two more wait behind; only the slot that this gives back lets the next one through.
        let record = receiver.pop(&mut buffer, BOUND).map_err(text)?;
        expect(buffer[..record.len] == n.to_le_bytes(), || format!("record {n} came back changed"))?;
        let begin = Instant::now();
        while !receiver.is_ready() || runtime.stats().mailboxes[1].written < n + 3 {
            expect(begin.elapsed() < BOUND, || format!("record {} was not let through: {:?}", n + 2, runtime.stats()))?;
            std::thread::yield_now();
        }
    }
    runtime.stop(BOUND).map_err(text)
}

pub(crate) fn parked_arbiters_stop_and_pause(device: &Device) -> Outcome {
    for i in 0..30 {
        let budget = parking(Duration::from_micros(50), servers(device));
        let (mut runtime, mut ends) = relays(device, 1, 8, budget).map_err(text)?;
        let (sender, receiver) = &mut ends[0];
        echo(sender, receiver, 0, 5).map_err(|e| format!("start {i}: {e}"))?;
        until_parked(&runtime)?;
        let (begun, ended) = runtime
            .quiesce(BOUND, |r| {
                std::thread::sleep(Duration::from_millis(1));
                (r.stats().launches, r.stats().launches_ended)
            })
            .map_err(text)?;
        expect(begun == ended, || format!("{begun} launches begun, {ended} ended"))?;
        echo(sender, receiver, 5, 5).map_err(|e| format!("after pause {i}: {e}"))?;
        if i % 2 == 0 {
            until_parked(&runtime)?;
        }
        runtime.stop(BOUND).map_err(text)?;
    }
    Ok(())
}

/// Every launch ends by its residency while others wait to be woken: what ends for that reason is continued at once.
pub(crate) fn short_launches_and_parking_lose_nothing(device: &Device) -> Outcome {
    let budget =
        SpinBudget { residency: Duration::from_micros(100), ..parking(Duration::from_micros(30), servers(device)) };
    let (mut runtime, mut ends) = relays(device, 2, 8, budget).map_err(text)?;
    for round in 0..60 {
        for (sender, receiver) in &mut ends {
            echo(sender, receiver, round * 300, 300).map_err(|e| format!("round {round}: {e}"))?;
        }
        if round % 3 == 0 {
            until_parked(&runtime)?;
        }
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    expect(stats.parks >= 20 && stats.launches > stats.parks, || format!("{stats:?}"))
}

/// With a pacer no door stays closed: launches go on although there is nothing to do.
pub(crate) fn the_pacer_bounds_every_wait(device: &Device) -> Outcome {
    let mut graph = Builder::new(device.clone());
    let budget =
        SpinBudget { max_wait: Duration::from_millis(1), ..parking(Duration::from_micros(50), servers(device)) };
    graph.budget(budget).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let relay = graph.resident("relay", ModuleOptions::handler(kit::STRICT)).map_err(text)?;
    graph.mailbox(host, relay, MailboxOptions::default()).map_err(text)?;
    let mut runtime = graph.build(kit::image()).map_err(text)?;
    runtime.start().map_err(text)?;
    until_parked(&runtime)?;
    let (before, begin) = (runtime.stats().launches, Instant::now());
    while runtime.stats().launches < before + 20 {
        expect(begin.elapsed() < BOUND, || format!("{:?}", runtime.stats()))?;
        std::thread::sleep(Duration::from_millis(1));
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    // It polls only a little of that time.
    let ended = stats.parks + stats.budget.residency_ends; // one that was kept from its core stays too long
    expect(stats.parked_ns > 0 && ended >= 19, || format!("{stats:?}"))
}
