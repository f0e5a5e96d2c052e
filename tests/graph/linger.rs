//! Servers that keep the module they have run and wait at its mailboxes' slots: nobody waits for their sake, the arbiter
//! parks as before, and what cannot be trusted is left alone. The outer ends are a kernel's warps, on the twin threads.

use std::time::{Duration, Instant};

use warpmail::{Builder, Device, MailboxOptions, ModuleOptions, Runtime, SpinBudget, abi};
use warpmail_testkit as kit;
use warpmail_testkit::echo::{Echo, EchoReport, Echoes, RECORDS_BEHIND, SPOIL_EVERY, Spoil};

use crate::{BOUND, Outcome, expect, is_fast, is_lane_by_lane, text};

/// Relays between ends that are kernels to the arbiter, which runs.
struct Relays {
    runtime: Runtime,
    mailboxes: Vec<[abi::wm_mailbox; 2]>,
    ends: Echoes,
}

impl Relays {
    /// A relay of each class, for so many runs of the ends.
    fn new(device: &Device, classes: &[u8], budget: SpinBudget, runs: usize) -> Result<Self, String> {
        let mut graph = Builder::new(device.clone());
        graph.without_pacer().lingering(true);
        graph.budget(budget).map_err(text)?;
        let kernel = graph.stream("kernel").map_err(text)?;
        let mut pairs = Vec::new();
        for (i, &class) in classes.iter().enumerate() {
            let options = ModuleOptions { batch: 2, ..ModuleOptions::handler(kit::RELAY) }.with_priority(class);
            let relay = graph.resident(&format!("relay{i}"), options).map_err(text)?;
            let there = graph.mailbox(kernel, relay, MailboxOptions::slots(8)).map_err(text)?;
            pairs.push([there, graph.mailbox(relay, kernel, MailboxOptions::slots(8)).map_err(text)?]);
        }
        let mut runtime = graph.build(kit::image()).map_err(text)?;
        let mut mailboxes = Vec::new();
        for [there, back] in pairs {
            mailboxes.push([runtime.handle(there).map_err(text)?, runtime.handle(back).map_err(text)?]);
        }
        let ends = Echoes::new(device, runs)?;
        runtime.start().map_err(text)?;
        Ok(Relays { runtime, mailboxes, ends })
    }

    /// The ends of a relay for so many records.
    fn echo(&self, relay: usize, records: u64) -> Echo {
        let [there, back] = self.mailboxes[relay];
        Echo::new(there, back, records)
    }

    fn run(&mut self, echoes: &[Echo]) -> Result<Vec<EchoReport>, String> {
        // SAFETY: the runtime, which has the mailboxes, lives; each relay's two ends are in one echo, and runs follow each
        // other.
        unsafe { self.ends.run(echoes) }.map_err(|e| format!("{e}; {:?}", self.runtime.stats()))
    }

    fn wait_for(&self, what: impl Fn(&warpmail::Stats) -> bool) -> Outcome {
        let begin = Instant::now();
        while !what(&self.runtime.stats()) {
            expect(begin.elapsed() < BOUND, || format!("{:?}", self.runtime.stats()))?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// A number of records: that for a kernel, a tenth of it for threads, a five-hundredth where one runs the block's lanes in
/// turns.
fn records(device: &Device, n: u64) -> u64 {
    if is_fast(device) {
        n
    } else if is_lane_by_lane() {
        n / 500
    } else {
        n / 10
    }
}

fn never_parks() -> SpinBudget {
    SpinBudget { servers: 2, idle_spin: None, ..SpinBudget::default() }
}

/// More modules with records than servers, some of them less urgent: all are served. How often is a matter of class: each 16th
/// grant of a server begins at another, so the least urgent must have one for a bounded number of the others'.
pub(crate) fn servers_starve_nobody(device: &Device) -> Outcome {
    crate::park::one_of_several(device, nobody_is_starved)
}

fn nobody_is_starved(device: &Device) -> Outcome {
    let each = records(device, 10_000);
    let mut relays = Relays::new(device, &[0, 0, 1, 3, 0], never_parks(), 1)?;
    // The last has a record every now and then, the others as many as they can take, until it has had enough.
    let mut echoes: Vec<Echo> = (0..5).map(|i| relays.echo(i, each)).collect();
    for busy in &mut echoes[..4] {
        (busy.ahead, busy.until) = (8, Some((4, each / 10)));
    }
    echoes[4].records = each / 10;
    let told = relays.run(&echoes)?;
    relays.runtime.stop(BOUND).map_err(text)?;
    let stats = relays.runtime.stats();
    let steps: u64 = stats.modules.iter().map(|m| m.steps).sum();
    let taken: u64 = stats.modules.iter().map(|m| m.records_in).sum();
    let sent: u64 = told.iter().map(|r| r.sent).sum();
    expect(taken == steps && taken == sent, || format!("{told:?}, {stats:?}"))?;
    // Four classes, and a grant of the others is at most two steps or, where a server lingers, eight records in a row.
    let least = stats.modules[1..].iter().map(|m| m.steps).min().unwrap_or(0);
    let bound = 2 * 4 * u64::from(abi::WM_FAIR_TURNS) * 8;
    expect(steps <= bound * (least + 1), || format!("{least} of {steps} steps: {stats:?}"))
}

/// A server that waits at a slot does not keep the arbiter, and no record finds it gone without waking it: records come while
/// it is there, about to leave, or away.
pub(crate) fn servers_let_it_park(device: &Device) -> Outcome {
    let each = records(device, 3000);
    let idle_spin = Duration::from_micros(50);
    let budget = SpinBudget {
        servers: 2,
        idle_spin: Some(idle_spin),
        residency: Duration::from_millis(100),
        ..SpinBudget::default()
    };
    let mut relays = Relays::new(device, &[0, 2, 0], budget, 4)?;
    // Each by itself, then all together: while another has records the arbiter does not park.
    let rested = |relays: &Relays, i: usize| Echo { rest: Some(4 * idle_spin), ..relays.echo(i, each) };
    let mut told = Vec::new();
    for i in 0..3 {
        let echo = rested(&relays, i);
        told.extend(relays.run(&[echo])?);
    }
    let all: Vec<Echo> = (0..3).map(|i| rested(&relays, i)).collect();
    told.extend(relays.run(&all)?);
    relays.runtime.stop(BOUND).map_err(text)?;
    let stats = relays.runtime.stats();
    let none = stats.modules.iter().all(|m| m.rejects.no_progress == 0);
    // An arbiter that was seen parked has left, or has found the record at the last moment; a slow one always does.
    let seen: u64 = told[..3].iter().map(|r| r.parked).sum();
    let left = stats.launches - stats.budget.residency_ends;
    let parked = seen >= 3 * (each / 3) && left >= seen / 4;
    expect(parked && none, || format!("{told:?}, {stats:?}"))
}

/// Its mailbox's index becomes one that cannot be while a server waits there: the mailbox is left alone, the others go on.
pub(crate) fn servers_leave_what_is_quarantined(device: &Device) -> Outcome {
    let each = records(device, 5000);
    let mut relays = Relays::new(device, &[0, 1, 0], never_parks(), 2)?;
    let mut echoes: Vec<Echo> = (0..3).map(|i| relays.echo(i, each)).collect();
    echoes[0].spoil = Spoil::Index;
    echoes[1].ahead = 8;
    let first = relays.run(&echoes)?;
    relays.wait_for(|s| s.mailboxes[0].quarantined.is_some())?;
    (echoes[0].records, echoes[0].spoil) = (0, Spoil::NoneTake);
    let second = relays.run(&echoes)?;
    relays.runtime.stop(BOUND).map_err(text)?;
    let stats = relays.runtime.stats();
    let spoilt = first[0].spoilt == 1 && second[0].spoilt == RECORDS_BEHIND;
    let others = stats.mailboxes[1..].iter().all(|m| m.quarantined.is_none());
    // None of what came behind was taken.
    let taken: Vec<u64> = stats.modules[1..].iter().map(|m| m.records_in).collect();
    expect(spoilt && others && taken == [each, 2 * each, 2 * each], || format!("{first:?}, {second:?}, {stats:?}"))
}

/// Slots whose length cannot be come to where a server waits: they are counted and dropped, what is between them is not.
pub(crate) fn servers_drop_what_cannot_be(device: &Device) -> Outcome {
    let each = records(device, 50_000).max(2 * SPOIL_EVERY);
    let mut relays = Relays::new(device, &[0, 0, 1], never_parks(), 1)?;
    let mut echoes: Vec<Echo> = (0..3).map(|i| relays.echo(i, each)).collect();
    echoes[0].spoil = Spoil::Lengths;
    (echoes[2].spoil, echoes[2].ahead) = (Spoil::Lengths, 4);
    let told = relays.run(&echoes)?;
    relays.runtime.drain(BOUND).map_err(text)?;
    relays.runtime.stop(BOUND).map_err(text)?;
    let stats = relays.runtime.stats();
    let dropped: Vec<u64> = stats.modules[1..].iter().map(|m| m.rejects.length).collect();
    let spoilt: Vec<u64> = told.iter().map(|r| r.spoilt).collect();
    let refused: Vec<u64> = stats.mailboxes.iter().step_by(2).map(|m| m.refused.length).collect();
    let right = dropped == spoilt && refused == spoilt && spoilt[0] > 0 && spoilt[1] == 0 && spoilt[2] > 0;
    let whole = stats.mailboxes.iter().all(|m| m.quarantined.is_none());
    expect(right && whole, || format!("{told:?}, {stats:?}"))
}
