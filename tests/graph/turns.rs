//! Whose turn it is: urgent classes first, nobody for ever last, over launches of any length.

use std::time::Duration;

use warpmail::{Builder, Device, Error, MailboxOptions, ModuleOptions, SpinBudget};
use warpmail_testkit as kit;

use crate::{BOUND, Outcome, expect, is_lane_by_lane, text, words};

/// As in abi.h: every so many grants of a server its search begins at another class, each in its turn.
const FAIR_TURNS: usize = warpmail::abi::WM_FAIR_TURNS as usize;

/// Runs witnesses of these classes on one server, `records` waiting at each from the start and one a grant; returns the
/// order in which they were granted.
fn order_of_grants(
    device: &Device,
    classes: &[u8],
    records: usize,
    spend: Duration,
    residency: Duration,
) -> Result<Vec<usize>, Error> {
    let servers = u32::from(device.info().ordinal.is_some()); // the twin's own thread serves
    let log = device.alloc(8 * (classes.len() * records + 1))?;
    let mut graph = Builder::new(device.clone());
    graph.budget(SpinBudget { servers, residency, ..SpinBudget::default() })?;
    let host = graph.host("host")?;
    let slots = records.next_power_of_two() as u32;
    let mut doors = Vec::new();
    for (i, &class) in classes.iter().enumerate() {
        let state: [u64; 8] = [log.address(), i as u64, spend.as_nanos() as u64, 0, 0, 0, 0, 0];
        let options = ModuleOptions { batch: 1, ..ModuleOptions::handler(kit::WITNESS) };
        let module = graph.resident(&format!("m{i}"), options.with_state(&state).with_priority(class))?;
        doors.push(graph.mailbox(host, module, MailboxOptions::slots(slots))?);
    }
    let mut runtime = graph.build(kit::image())?;
    for door in doors {
        let mut sender = runtime.sender(door)?;
        for n in 0..records as u64 {
            sender.try_push(1, &n.to_le_bytes())?;
        }
    }
    runtime.start()?;
    runtime.drain(BOUND)?;
    runtime.stop(BOUND)?;
    let mut words = vec![0u8; 8 * (classes.len() * records + 1)];
    log.download(0, &mut words)?;
    let word = |i: usize| u64::from_ne_bytes(std::array::from_fn(|b| words[8 * i + b])) as usize;
    Ok((1..=word(0)).map(word).collect())
}

/// The class that the rules of claim.hpp choose in turn `turn`, of those that have something left.
fn chosen(turn: usize, left: &[usize]) -> Option<usize> {
    let first = if turn % FAIR_TURNS == FAIR_TURNS - 1 { turn / FAIR_TURNS % left.len() } else { 0 };
    (0..left.len()).map(|k| (first + k) % left.len()).find(|&c| left[c] > 0)
}

pub(crate) fn urgent_classes_come_first(device: &Device) -> Outcome {
    const RECORDS: usize = 40;
    let classes = [0, 3, 1, 0, 1];
    let order =
        order_of_grants(device, &classes, RECORDS, Duration::ZERO, SpinBudget::default().residency).map_err(text)?;
    expect(order.len() == classes.len() * RECORDS, || format!("{} grants", order.len()))?;
    let mut left = [0; 4];
    classes.iter().for_each(|&c| left[usize::from(c)] += RECORDS);
    let mut last_of_class = [None; 4];
    for (turn, &module) in order.iter().enumerate() {
        let class = usize::from(classes[module]);
        let wanted = chosen(turn, &left);
        expect(wanted == Some(class), || format!("turn {turn} was of class {class}, not {wanted:?}: {order:?}"))?;
        left[class] -= 1;
        // Round robin: with two modules, never the same one twice while both have something left.
        let members = classes.iter().filter(|&&c| usize::from(c) == class).count();
        let again = last_of_class[class] == Some(module) && members > 1;
        expect(!again, || format!("turn {turn}: module {module} twice in its class: {order:?}"))?;
        last_of_class[class] = Some(module);
    }
    Ok(())
}

pub(crate) fn short_launches_starve_nobody(device: &Device) -> Outcome {
    // A launch has time for a few grants only; there are many more modules than that, and two of the least urgent class.
    const RECORDS: usize = 12;
    let classes: Vec<u8> = (0..26).map(|i| if i % 13 == 12 { 3 } else { 0 }).collect();
    let (spend, residency) = (Duration::from_micros(40), Duration::from_micros(150));
    let order = order_of_grants(device, &classes, RECORDS, spend, residency).map_err(text)?;
    expect(order.len() == classes.len() * RECORDS, || format!("{} grants", order.len()))?;
    let members = |class: u8| classes.iter().filter(|&&c| c == class).count();
    for (module, &class) in classes.iter().enumerate() {
        // Four classes are in use or between; a module waits for its own class's turn and for its own in the class.
        let bound = if class == 0 { 2 * members(0) } else { 4 * FAIR_TURNS * members(3) };
        let mut last = 0;
        for (turn, _) in order.iter().enumerate().filter(|(_, m)| **m == module) {
            expect(turn - last <= bound, || format!("module {module} waited from grant {last} to {turn}: {order:?}"))?;
            last = turn;
        }
    }
    Ok(())
}

/// Urgent rings without end, as many as servers, each of which can go on from module to module; a module of the least urgent
/// class is served all the same, through pauses, and the rings' records stay whole.
pub(crate) fn a_ring_gives_way(device: &Device) -> Outcome {
    const RECORDS: u64 = 3;
    const RINGS: usize = 2;
    let answers: u64 = if is_lane_by_lane() { 20 } else { 400 };
    let mut graph = Builder::new(device.clone());
    graph.budget(SpinBudget { servers: RINGS as u32, ..SpinBudget::default() }).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let (mut rings, mut doors) = (Vec::new(), Vec::new());
    for ring in 0..RINGS {
        let mut modules = Vec::new();
        for i in 0..4u64 {
            let state: [u64; 8] = [0, RECORDS, 0, 0, u64::from(i == 3), 248, 0, 0];
            let options = ModuleOptions { batch: 1, ..ModuleOptions::handler(kit::RING) };
            modules.push(graph.resident(&format!("ring{ring}_{i}"), options.with_state(&state)).map_err(text)?);
        }
        for i in 0..4 {
            graph.mailbox(modules[i], modules[(i + 1) % 4], MailboxOptions::slots(8)).map_err(text)?;
        }
        doors.push(graph.mailbox(host, modules[0], MailboxOptions::slots(8)).map_err(text)?);
        rings.push(modules);
    }
    let relay = graph.resident("relay", ModuleOptions::handler(kit::RELAY).with_priority(3)).map_err(text)?;
    let there = graph.mailbox(host, relay, MailboxOptions::slots(8)).map_err(text)?;
    let back = graph.mailbox(relay, host, MailboxOptions::slots(8)).map_err(text)?;
    let mut runtime = graph.build(kit::image()).map_err(text)?;
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    for door in doors {
        let mut first = runtime.sender(door).map_err(text)?;
        for n in 0..RECORDS {
            first.try_push(n as u16, &kit::ring_record(n, u64::MAX, 248)).map_err(text)?;
        }
    }
    runtime.start().map_err(text)?;
    for n in 0..answers {
        sender.push(1, &n.to_le_bytes(), BOUND).map_err(text)?;
        let mut answer = [0; 8];
        receiver.pop(&mut answer, BOUND).map_err(text)?;
        expect(u64::from_le_bytes(answer) == n, || format!("{answer:?} for {n}"))?;
        if n % 100 == 50 {
            runtime.quiesce(BOUND, |_| ()).map_err(text)?;
        }
    }
    runtime.stop(BOUND).map_err(text)?;
    for modules in rings {
        let mut seen = Vec::new();
        for module in modules {
            let s = words(&runtime, module)?;
            expect(s[2] == 0 && s[6] == 0, || format!("{module:?}: {s:?}"))?;
            seen.push(s[3]);
        }
        // Each record has been passed on by every module as often as by any other, but for the round that it is in.
        let (least, most) = (seen.iter().min().copied().unwrap_or(0), seen.iter().max().copied().unwrap_or(0));
        expect(least > 0 && most - least <= RECORDS, || format!("{seen:?}"))?;
    }
    Ok(())
}

/// A step that works on after it has given something, and says so, does not hold back the module that it gave to.
pub(crate) fn what_is_told_of_need_not_wait(device: &Device) -> Outcome {
    const ENTRIES: u64 = 8;
    let records: u64 = if is_lane_by_lane() { 10 } else { 100 };
    let log = device.alloc(8 * ENTRIES as usize).map_err(text)?;
    let patience = 2_000_000_000;
    let mut graph = Builder::new(device.clone());
    // A launch that closes meanwhile, to park or at the end of its residency, leaves nobody to run the ledger: few do.
    let residency = Duration::from_secs(1);
    graph.budget(SpinBudget { servers: 2, residency, idle_spin: None, ..SpinBudget::default() }).map_err(text)?;
    graph.ahead(false); // a grant ahead waits for the step before it
    let host = graph.host("host").map_err(text)?;
    let state = |last: u64| ModuleOptions::handler(0).with_state(&[log.address(), ENTRIES, 0, 0, last, 0, 0, 0u64]);
    let early = ModuleOptions { handler: kit::EARLY, out_records: 1, ..state(patience) };
    let ledger = ModuleOptions { handler: kit::LEDGER, out_records: 1, ..state(0) };
    let early = graph.resident("early", early).map_err(text)?;
    let ledger = graph.resident("ledger", ledger).map_err(text)?;
    let there = graph.mailbox(host, early, MailboxOptions::slots(4)).map_err(text)?;
    graph.mailbox(early, ledger, MailboxOptions::slots(4)).map_err(text)?;
    let back = graph.mailbox(ledger, host, MailboxOptions::slots(4)).map_err(text)?;
    let mut runtime = graph.build(kit::image()).map_err(text)?;
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    runtime.start().map_err(text)?;
    for n in 1..=records {
        sender.push(1, &n.to_le_bytes(), BOUND).map_err(text)?;
        let mut answer = [0; 8];
        receiver.pop(&mut answer, BOUND).map_err(text)?;
    }
    runtime.drain(BOUND).map_err(text)?;
    runtime.stop(BOUND).map_err(text)?;
    let s = words(&runtime, early)?;
    expect(s[2] == records && s[3] + 2 >= records, || format!("{} of {} seen in time", s[3], s[2]))
}
