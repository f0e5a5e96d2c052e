//! Servers that keep the module they have run and wait at its mailboxes' slots: nobody waits for their sake, the arbiter
//! parks as before, and what cannot be trusted is left alone. The outer ends stand for kernels, so they are the twin's
//! threads; on a GPU the same code waits for kernels (`warpmail bench hop`).

use std::time::{Duration, Instant};

use warpmail::{BackendKind, Builder, Device, MailboxOptions, ModuleOptions, Runtime, SpinBudget, abi};
use warpmail_testkit as kit;

use crate::{BOUND, Outcome, expect, text};

/// A relay's two outer ends.
struct Ends {
    handle: abi::wm_mailbox,
    producer: abi::wm_producer,
    consumer: abi::wm_consumer,
    sent: u64,
    got: u64,
}

impl Ends {
    fn push(&mut self) -> bool {
        let record = [self.sent, !self.sent];
        // SAFETY: the runtime, which has the mailbox, outlives the ends; this is its one producer; 16 bytes are there.
        let status = unsafe { abi::wm_host_try_push(&mut self.producer, record.as_ptr().cast(), 16, 3) };
        self.sent += u64::from(status == 0);
        status == 0
    }

    fn pop(&mut self) -> Result<bool, String> {
        let (mut record, mut len, mut kind) = ([0u64; 31], 0, 0);
        // SAFETY: as above, its one consumer; the buffer has its size.
        let status =
            unsafe { abi::wm_host_try_pop(&mut self.consumer, record.as_mut_ptr().cast(), 248, &mut len, &mut kind) };
        if status != 0 {
            return Ok(false);
        }
        let right = (len, kind, record[0], record[1]) == (16, 3, self.got, !self.got);
        expect(right, || format!("record {}: {len} bytes of type {kind}, {:?}", self.got, &record[..2]))?;
        self.got += 1;
        Ok(true)
    }

    fn echo(&mut self, runtime: &Runtime) -> Outcome {
        expect(self.push(), || "full".into())?;
        let begin = Instant::now();
        while !self.pop()? {
            expect(begin.elapsed() < BOUND, || format!("record {} is lost: {:?}", self.got, runtime.stats()))?;
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// A relay of each class between ends that are kernels to the arbiter.
fn relays(device: &Device, classes: &[u8], budget: SpinBudget) -> Result<(Runtime, Vec<Ends>), String> {
    let mut graph = Builder::new(device.clone());
    graph.without_pacer().lingering(true);
    graph.budget(budget).map_err(text)?;
    let kernel = graph.stream("kernel").map_err(text)?;
    let mut pairs = Vec::new();
    for (i, &class) in classes.iter().enumerate() {
        let options = ModuleOptions { batch: 2, ..ModuleOptions::handler(kit::RELAY) }.with_priority(class);
        let relay = graph.resident(&format!("relay{i}"), options).map_err(text)?;
        let there = graph.mailbox(kernel, relay, MailboxOptions::slots(8)).map_err(text)?;
        pairs.push((there, graph.mailbox(relay, kernel, MailboxOptions::slots(8)).map_err(text)?));
    }
    let mut runtime = graph.build(kit::image()).map_err(text)?;
    let mut ends = Vec::new();
    for (there, back) in pairs {
        let (there, back) = (runtime.handle(there).map_err(text)?, runtime.handle(back).map_err(text)?);
        // SAFETY: on the twin a thread is a kernel, and each end is taken up once.
        let (producer, consumer) =
            unsafe { (abi::wm_host_attach_producer(&there), abi::wm_host_attach_consumer(&back)) };
        ends.push(Ends { handle: there, producer, consumer, sent: 0, got: 0 });
    }
    runtime.start().map_err(text)?;
    Ok((runtime, ends))
}

/// A number of rounds, or a fiftieth where a thread of the host runs the block's lanes one after the other.
fn rounds(n: u64) -> u64 {
    if crate::is_lane_by_lane() { n / 50 } else { n }
}

fn is_twin(device: &Device) -> bool {
    device.info().backend != BackendKind::Cuda
}

/// More modules with records than servers, some of them less urgent: all are served. How often is a matter of class: each 16th
/// grant of a server begins at another, so the least urgent must have one for a bounded number of the others'.
pub(crate) fn servers_starve_nobody(device: &Device) -> Outcome {
    if !is_twin(device) {
        return Ok(());
    }
    let each = rounds(1000);
    let classes = [0, 0, 1, 3, 0];
    let (mut runtime, mut ends) =
        relays(device, &classes, SpinBudget { servers: 2, idle_spin: None, ..SpinBudget::default() })?;
    // The last has a record every now and then, the others as many as they can take, without end.
    let (last, busy) = ends.split_last_mut().ok_or("no relay")?;
    let begin = Instant::now();
    while last.got < each / 10 || busy.iter().any(|e| e.got < each) {
        for e in busy.iter_mut() {
            while e.push() {}
            while e.pop()? {}
        }
        if last.sent == last.got {
            last.push();
        }
        last.pop()?;
        expect(begin.elapsed() < BOUND, || format!("{:?}", runtime.stats().modules))?;
        std::thread::yield_now();
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    let steps: u64 = stats.modules.iter().map(|m| m.steps).sum();
    let taken: u64 = stats.modules.iter().map(|m| m.records_in).sum();
    expect(taken == steps && taken >= ends.iter().map(|e| e.got).sum(), || format!("{stats:?}"))?;
    // Four classes, and a grant of the others is at most two steps or, where a server lingers, eight records in a row.
    let least = stats.modules[1..].iter().map(|m| m.steps).min().unwrap_or(0);
    let bound = 2 * 4 * u64::from(abi::WM_FAIR_TURNS) * 8;
    expect(steps <= bound * (least + 1), || format!("{least} of {steps} steps: {stats:?}"))
}

/// A server that waits at a slot does not keep the arbiter, and no record finds it gone without waking it.
pub(crate) fn servers_let_it_park(device: &Device) -> Outcome {
    if !is_twin(device) {
        return Ok(());
    }
    let budget = SpinBudget {
        servers: 2,
        idle_spin: Some(Duration::from_micros(50)),
        residency: Duration::from_millis(100),
        ..SpinBudget::default()
    };
    let (mut runtime, mut ends) = relays(device, &[0, 0, 0], budget)?;
    for n in 0..rounds(300) as usize {
        // Records while it is there, about to leave, or away.
        for k in 0..n % 4 {
            ends[(n + k) % 3].echo(&runtime)?;
        }
        let begin = Instant::now();
        while n % 3 == 0 && !runtime.stats().parked {
            expect(begin.elapsed() < BOUND, || format!("never parked: {:?}", runtime.stats()))?;
            std::thread::yield_now();
        }
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    let none = stats.modules.iter().all(|m| m.rejects.no_progress == 0);
    expect(stats.parks >= rounds(300) / 6 && none, || format!("{stats:?}"))
}

/// Its mailbox's index becomes one that cannot be while a server waits there: the mailbox is left alone, the others go on.
pub(crate) fn servers_leave_what_is_quarantined(device: &Device) -> Outcome {
    if !is_twin(device) {
        return Ok(());
    }
    let (mut runtime, mut ends) =
        relays(device, &[0, 0], SpinBudget { servers: 2, idle_spin: None, ..SpinBudget::default() })?;
    let echoes = rounds(200);
    for _ in 0..echoes {
        ends[0].echo(&runtime)?;
        ends[1].echo(&runtime)?;
    }
    // SAFETY: an aligned word of the runtime's memory, which lives; its one writer is this end.
    unsafe { (ends[0].handle.written as *mut u64).write_volatile(1 << 41) };
    let begin = Instant::now();
    while runtime.stats().mailboxes[0].quarantined.is_none() {
        expect(begin.elapsed() < BOUND, || format!("{:?}", runtime.stats().mailboxes))?;
        ends[1].echo(&runtime)?;
    }
    for _ in 0..4 {
        ends[0].push();
    }
    for _ in 0..echoes {
        ends[1].echo(&runtime)?;
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    // One that the server had already found may still have passed.
    expect(stats.modules[1].records_in <= echoes + 1, || format!("{stats:?}"))
}
