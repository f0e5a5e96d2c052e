//! Checkpoints hold what exactly the records before a place in the journal have done, and bring it back at other addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use warpmail::checkpoint::Checkpoint;
use warpmail::journal::{Batch, NullSink, Position, Reader, Sink};
use warpmail::{
    Builder, Device, Error, MailboxOptions, ModuleId, ModuleOptions, Receiver, Runtime, Sender, SpinBudget, Tap,
};
use warpmail_testkit as kit;

use crate::tap::{Folder, least_servers};
use crate::{BOUND, Outcome, expect, text, words};

const ENTRIES: usize = 4096;

/// host -> first -> second -> host; both keep a ledger, and the first mailbox is tapped if asked for.
struct Ledgers {
    runtime: Runtime,
    sender: Sender,
    receiver: Receiver,
    modules: [ModuleId; 2],
}

/// What can be wrong with another graph.
#[derive(Clone, Copy, Default)]
struct Shape {
    tap: bool,
    second_takes_nothing: bool,
    other_name: bool,
    other_size: bool,
    no_pointer: bool,
    no_buffer: bool,
    one_more_mailbox: bool,
}

fn ledgers(device: &Device, shape: Shape) -> Result<Ledgers, Error> {
    let mut graph = Builder::new(device.clone());
    graph.budget(SpinBudget { servers: least_servers(device).max(1), ..SpinBudget::default() })?;
    let host = graph.host("host")?;
    let mut modules = Vec::new();
    for (name, nth) in [("first", 0), (if shape.other_name { "third" } else { "second" }, 1)] {
        // Something before it, so that addresses differ from run to run even on a quiet machine.
        graph.keep(device.alloc(4096 * (1 + std::process::id() as usize % 7))?);
        let entries = if shape.other_size { ENTRIES / 2 } else { ENTRIES };
        let buffer = device.alloc(8 * entries)?;
        let state = [buffer.address(), entries as u64, 0, 0, 0, 0, 0, 0];
        let handler = if nth == 1 && shape.second_takes_nothing { kit::IDLE } else { kit::LEDGER };
        let module = graph.resident(name, ModuleOptions::handler(handler).with_state(&state))?;
        if nth == 1 && shape.no_buffer {
            graph.keep(buffer);
        } else {
            let buffer = graph.state_buffer(module, "ledger", buffer)?;
            if nth == 0 || !shape.no_pointer {
                graph.pointer(module, 0, buffer)?;
            }
        }
        modules.push(module);
    }
    let [first, second] = [modules[0], modules[1]];
    let there = graph.mailbox(host, first, MailboxOptions::slots(64))?;
    graph.mailbox(first, second, MailboxOptions::slots(64))?;
    let back = graph.mailbox(second, host, MailboxOptions::slots(64))?;
    if shape.one_more_mailbox {
        graph.mailbox(second, host, MailboxOptions::slots(64))?;
    }
    if shape.tap {
        graph.tap(there, Tap::Block)?;
    }
    let mut runtime = graph.build(kit::image())?;
    let (sender, receiver) = (runtime.sender(there)?, runtime.receiver(back)?);
    Ok(Ledgers { runtime, sender, receiver, modules: [first, second] })
}

impl Ledgers {
    /// Records first to last - 1, there and back.
    fn pass(&mut self, first: u64, last: u64) -> Outcome {
        pass(&mut self.sender, &mut self.receiver, first, last)
    }

    /// What a runtime that has not begun, or is at rest, knows: records taken by each module.
    fn known(&self) -> Result<[u64; 2], String> {
        let [a, b] = self.modules.map(|m| words(&self.runtime, m));
        Ok([a?[2], b?[2]])
    }
}

fn pass(sender: &mut Sender, receiver: &mut Receiver, first: u64, last: u64) -> Outcome {
    let mut buffer = [0; 248];
    let (mut sent, mut got) = (first, first);
    let begin = Instant::now();
    while got < last {
        while sent < last && sender.try_push(1, &sent.to_le_bytes()).is_ok() {
            sent += 1;
        }
        while receiver.try_pop(&mut buffer).map_err(text)?.is_some() {
            expect(buffer[..8] == got.to_le_bytes(), || format!("record {got} came back changed"))?;
            got += 1;
        }
        expect(begin.elapsed() < BOUND, || format!("only {got} of {last} came back"))?;
        std::thread::yield_now();
    }
    Ok(())
}

pub(crate) fn are_of_one_moment(device: &Device) -> Outcome {
    let folder = Folder::new("moment");
    let shape = Shape { tap: true, ..Shape::default() };
    let Ledgers { mut runtime, mut sender, mut receiver, .. } = ledgers(device, shape).map_err(text)?;
    let early = runtime.checkpoint(&folder.0, BOUND);
    expect(matches!(early, Err(Error::State(_))), || format!("{early:?}"))?;
    let log = folder.log().map_err(text)?;
    let log_id = log.id();
    runtime.journal(log).map_err(text)?;
    runtime.start().map_err(text)?;
    // Bursts with pauses between them: the checkpoints come at any moment of both. They go on until some were of different ones.
    let enough = Arc::new(AtomicBool::new(false));
    let may_end = enough.clone();
    let sending = std::thread::spawn(move || {
        let (mut records, begin) = (0, Instant::now());
        while records < 3000 || (!may_end.load(Ordering::Relaxed) && begin.elapsed() < BOUND) {
            pass(&mut sender, &mut receiver, records, records + 30)?;
            records += 30;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok::<_, String>((sender, receiver, records))
    });
    let (mut seen, mut distinct) = (0, 0);
    while !sending.is_finished() {
        let made = runtime.checkpoint_with(&folder.0, Default::default(), BOUND).map_err(text)?;
        let on_disk = Checkpoint::look(&folder.0).map_err(text)?;
        expect(on_disk.as_ref() == Some(&made), || format!("{made:?}, {on_disk:?} on disk"))?;
        let mut other = ledgers(device, shape).map_err(text)?;
        let restored = other.runtime.restore(&folder.0).map_err(text)?;
        let [n, same] = other.known()?;
        expect(n == same, || format!("the modules know {n} and {same} records"))?;
        expect(restored.journal == Some(Position { log_id, next: n + 1 }), || format!("{n} records, {restored:?}"))?;
        let counts: Vec<(u64, u64)> = restored.mailboxes.iter().map(|m| (m.given, m.taken)).collect();
        let right = counts[0].1 == n && counts[1] == (n, n) && counts[2].0 == n;
        expect(right, || format!("{n} records, counted {counts:?}"))?;
        let durable = Reader::open(&folder.0, 1).map_err(text)?.take_while(Result::is_ok).count() as u64;
        expect(durable >= n, || format!("{n} records in the states, {durable} in the log"))?;
        distinct += u32::from(n > seen);
        enough.store(distinct > 3, Ordering::Relaxed);
        seen = n;
    }
    let (sender, receiver, records) = sending.join().map_err(|_| "the sender panicked".to_string())??;
    expect(distinct > 3, || format!("only {distinct} checkpoints were of different moments"))?;
    // After the stop, too, with all that passed.
    runtime.stop(BOUND).map_err(text)?;
    let last = runtime.checkpoint(&folder.0, BOUND).map_err(text)?;
    expect(last.journal == Some(Position { log_id, next: records + 1 }), || format!("{last:?}"))?;
    drop((sender, receiver));
    Ok(())
}

pub(crate) fn a_restored_graph_goes_on(device: &Device) -> Outcome {
    let folder = Folder::new("on");
    let mut known = 0;
    for run in 0..4u64 {
        let mut l = ledgers(device, Shape::default()).map_err(text)?;
        if run == 0 {
            let none = l.runtime.restore(&folder.0);
            expect(matches!(&none, Err(e) if e.to_string().contains("holds no checkpoint")), || format!("{none:?}"))?;
        } else {
            let before = l.runtime.restore(&folder.0).map_err(text)?;
            expect(before.note == run.to_le_bytes() && before.journal.is_none(), || format!("{before:?}"))?;
        }
        expect(l.known()? == [known; 2], || format!("run {run}: {:?}, not {known}", l.known()))?;
        l.runtime.start().map_err(text)?;
        let late = l.runtime.restore(&folder.0);
        expect(matches!(late, Err(Error::State(_))), || format!("{late:?}"))?;
        l.pass(known, known + 700)?;
        known += 700;
        let note = (run + 1).to_le_bytes();
        let options = warpmail::checkpoint::CheckpointOptions { note: &note, ..Default::default() };
        let made = l.runtime.checkpoint_with(&folder.0, options, BOUND).map_err(text)?;
        // Counts go on over restores.
        expect(made.mailboxes.iter().all(|m| (m.given, m.taken) == (known, known)), || format!("{made:?}"))?;
        // What comes after the checkpoint is not in it.
        l.pass(0, 5)?;
        l.runtime.stop(BOUND).map_err(text)?;
    }
    // The ledgers themselves, where they lie now.
    let mut l = ledgers(device, Shape::default()).map_err(text)?;
    l.runtime.restore(&folder.0).map_err(text)?;
    l.runtime.start().map_err(text)?;
    l.pass(known, ENTRIES as u64 + 50)?; // over the end: the first entries are written again
    l.runtime.checkpoint(&folder.0, BOUND).map_err(text)?;
    l.runtime.stop(BOUND).map_err(text)?;
    let bytes = std::fs::read(folder.0.join("checkpoint.wmstate")).map_err(|e| e.to_string())?;
    let ledger = |first: u64| {
        (0..ENTRIES as u64).map(|i| if i < 50 { i + ENTRIES as u64 } else { i }).all(|n| {
            let at = first as usize + 8 * (n as usize % ENTRIES);
            bytes[at..at + 8] == n.to_le_bytes()
        })
    };
    // Header and tables, two states of a block each, then the ledgers: docs/checkpoint-format.md.
    let begin = 3 * 4096;
    expect(ledger(begin) && ledger(begin + 8 * ENTRIES as u64), || "the ledgers in the file differ".into())
}

pub(crate) fn needs_a_moment_of_rest(device: &Device) -> Outcome {
    let folder = Folder::new("rest");
    let shape = Shape { second_takes_nothing: true, ..Shape::default() };
    let mut l = ledgers(device, shape).map_err(text)?;
    l.runtime.start().map_err(text)?;
    for n in 0..3u64 {
        l.sender.push(1, &n.to_le_bytes(), BOUND).map_err(text)?;
    }
    let begin = Instant::now();
    while l.runtime.stats().mailboxes[1].written < 3 {
        expect(begin.elapsed() < BOUND, || format!("{:?}", l.runtime.stats()))?;
        std::thread::sleep(Duration::from_millis(1));
    }
    let refused = l.runtime.checkpoint(&folder.0, Duration::from_millis(400));
    let named = |e: &Error| e.to_string().contains("first->second has 3 that wait");
    expect(matches!(&refused, Err(e @ Error::Timeout { .. }) if named(e)), || format!("{refused:?}"))?;
    l.runtime.stop(BOUND).map_err(text)?;
    let refused = l.runtime.checkpoint(&folder.0, BOUND);
    let named = |e: &Error| e.to_string().contains("first->second with 3 records");
    expect(matches!(&refused, Err(e @ Error::Refused { .. }) if named(e)), || format!("{refused:?}"))?;
    expect(matches!(Checkpoint::look(&folder.0), Ok(None)), || "something was written".into())
}

pub(crate) fn of_other_graphs_are_refused(device: &Device) -> Outcome {
    let folder = Folder::new("other");
    let mut l = ledgers(device, Shape::default()).map_err(text)?;
    l.runtime.start().map_err(text)?;
    l.pass(0, 10)?;
    l.runtime.stop(BOUND).map_err(text)?;
    l.runtime.checkpoint(&folder.0, BOUND).map_err(text)?;
    let usual = Shape::default();
    let others = [
        (Shape { other_name: true, ..usual }, "host->first, first->third"),
        (Shape { other_size: true, ..usual }, "32768 bytes of buffer ledger of module first, this one has 16384"),
        (Shape { no_pointer: true, ..usual }, "64 bytes of state of module second, has its pointers elsewhere"),
        (Shape { no_buffer: true, ..usual }, "pointers elsewhere"),
        (Shape { one_more_mailbox: true, ..usual }, "second->host, second->host"),
    ];
    for (shape, words) in others {
        let mut other = ledgers(device, shape).map_err(text)?;
        let refused = other.runtime.restore(&folder.0);
        let told = |e: &Error| e.to_string().contains(words) && e.to_string().contains("another graph");
        expect(matches!(&refused, Err(e @ Error::Refused { .. }) if told(e)), || format!("{words}: {refused:?}"))?;
        expect(other.known()? == [0; 2], || format!("{:?}: something was restored", other.known()))?;
        other.runtime.start().map_err(text)?;
        other.runtime.stop(BOUND).map_err(text)?;
    }
    let mut same = ledgers(device, Shape { second_takes_nothing: true, ..usual }).map_err(text)?;
    same.runtime.restore(&folder.0).map_err(text)?;
    expect(same.known()? == [10; 2], || format!("{:?}", same.known()))?;

    // What a builder refuses.
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let module = graph.resident("m", ModuleOptions::handler(0).with_state(&[0u64; 2])).map_err(text)?;
    let buffer = |bytes| device.alloc(bytes).map_err(text);
    let kept = graph.state_buffer(module, "one", buffer(16)?).map_err(text)?;
    let refusals: [(Result<(), Error>, &str); 5] = [
        (graph.state_buffer(module, "one", buffer(16)?).map(drop), "a buffer of this name"),
        (graph.state_buffer(module, "", buffer(16)?).map(drop), "has a name"),
        (graph.pointer(module, 9, kept).map(drop), "outside its 16 bytes"),
        (graph.pointer(host, 0, kept).map(drop), "outside its 0 bytes"),
        (graph.pointer(module, 0, kept).and_then(|g| g.pointer(module, 4, kept)).map(drop), "overlaps"),
    ];
    for (refusal, words) in refusals {
        let told = matches!(&refusal, Err(e @ Error::Refused { .. }) if e.to_string().contains(words));
        expect(told, || format!("{words}: {refusal:?}"))?;
    }
    Ok(())
}

pub(crate) fn pointers_that_point_elsewhere_are_refused(device: &Device) -> Outcome {
    let folder = Folder::new("pointers");
    let mut l = ledgers(device, Shape::default()).map_err(text)?;
    l.runtime.start().map_err(text)?;
    l.pass(0, 10)?;
    l.runtime.stop(BOUND).map_err(text)?;
    let made = l.runtime.checkpoint(&folder.0, BOUND).map_err(text)?;
    let address = words(&l.runtime, l.modules[0])?[0];
    for (word, good) in [
        (address - 1, false),
        (address + 8 * ENTRIES as u64 + 1, false),
        (address + 8 * ENTRIES as u64, true),
        (u64::MAX, false),
        (0, true),
        (address, true),
    ] {
        l.runtime.write_state(l.modules[0], &word.to_le_bytes()).map_err(text)?;
        let outcome = l.runtime.checkpoint(&folder.0, BOUND);
        if good {
            outcome.map_err(text)?;
            let mut other = ledgers(device, Shape::default()).map_err(text)?;
            let own = words(&other.runtime, other.modules[0])?[0];
            other.runtime.restore(&folder.0).map_err(text)?;
            let restored = words(&other.runtime, other.modules[0])?[0];
            let wanted = if word == 0 { 0 } else { word - address + own };
            expect(restored == wanted, || format!("{restored:#x}, not {wanted:#x}"))?;
        } else {
            let told = matches!(&outcome, Err(e) if e.to_string().contains("pointer at offset 0 of the state of module first"));
            expect(told, || format!("{word:#x}: {outcome:?}"))?;
            let there = Checkpoint::look(&folder.0).map_err(text)?.ok_or("the older checkpoint is gone")?;
            expect(there.parts == made.parts, || format!("{there:?}"))?;
        }
    }
    Ok(())
}

/// Makes nothing durable as long as it is told not to.
struct Slow {
    null: NullSink,
    held: Arc<AtomicBool>,
}

impl Sink for Slow {
    fn append(&mut self, batch: &mut Batch<'_>) -> Result<std::ops::RangeInclusive<u64>, Error> {
        let begin = Instant::now();
        while self.held.load(Ordering::Acquire) && begin.elapsed() < BOUND {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.null.append(batch)
    }
    fn tick(&mut self) -> Result<u64, Error> {
        self.null.tick()
    }
    fn commit(&mut self) -> Result<Position, Error> {
        if self.null.durable() > 20 { Err(Error::State("the disk is gone".into())) } else { self.null.commit() }
    }
    fn durable(&self) -> u64 {
        self.null.durable()
    }
    fn due_in(&self) -> Option<Duration> {
        None
    }
    fn finish(self: Box<Self>) -> Result<u64, Error> {
        Ok(self.null.durable())
    }
}

pub(crate) fn waits_for_the_journal(device: &Device) -> Outcome {
    let folder = Folder::new("waits");
    let shape = Shape { tap: true, ..Shape::default() };
    let mut l = ledgers(device, shape).map_err(text)?;
    let held = Arc::new(AtomicBool::new(true));
    l.runtime.journal(Slow { null: NullSink::default(), held: held.clone() }).map_err(text)?;
    l.runtime.start().map_err(text)?;
    l.pass(0, 20)?;
    let early = l.runtime.checkpoint(&folder.0, Duration::from_secs(3));
    let told = matches!(&early, Err(e @ Error::Timeout { .. }) if e.to_string().contains("a durable journal"));
    expect(told, || format!("{early:?}"))?;
    held.store(false, Ordering::Release);
    expect(matches!(Checkpoint::look(&folder.0), Ok(None)), || "something was written".into())?;
    let made = l.runtime.checkpoint(&folder.0, BOUND).map_err(text)?;
    expect(made.journal.is_some_and(|j| j.next == 21), || format!("{made:?}"))?;
    // A sink that fails is told, and the older checkpoint stays.
    l.pass(20, 30)?;
    let failed = l.runtime.checkpoint(&folder.0, BOUND);
    expect(matches!(&failed, Err(e) if e.to_string().contains("the disk is gone")), || format!("{failed:?}"))?;
    let again = l.runtime.checkpoint(&folder.0, BOUND);
    expect(again.is_err(), || format!("{again:?}"))?;
    expect(matches!(Checkpoint::look(&folder.0), Ok(Some(c)) if c == made), || "the older one is gone".into())?;
    let _ = l.runtime.stop(BOUND);
    Ok(())
}
