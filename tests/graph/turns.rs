//! Whose turn it is: urgent classes first, nobody for ever last, over launches of any length.

use std::time::Duration;

use warpmail::{Builder, Device, Error, MailboxOptions, ModuleOptions, SpinBudget};
use warpmail_testkit as kit;

use crate::{BOUND, Outcome, expect, text};

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
