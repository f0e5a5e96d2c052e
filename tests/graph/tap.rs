//! What passes the arbiter reaches the journal: all of it, in each mailbox's order, or counted as dropped.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use warpmail::journal::{Batch, Log, LogOptions, NullSink, Pace, Position, Reader, Sink, SyncPolicy, TapStats, replay};
use warpmail::{
    Builder, Device, Error, HandlerImage, MailboxId, MailboxOptions, ModuleOptions, Receiver, Runtime, Sender,
    SpinBudget, Tap, abi, builtin,
};
use warpmail_testkit::forms::Forms;
use warpmail_testkit::{self as kit, ring_record};

use crate::flow::echo;
use crate::{BOUND, Outcome, expect, text};

/// A directory of the scenario's own, removed in the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("warpmail-tap-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Folder(path)
    }

    pub(crate) fn log(&self) -> Result<Log, Error> {
        let options = LogOptions { segment_bytes: 1 << 20, sync: SyncPolicy::EveryBatch, ..LogOptions::default() };
        Ok(Log::open(&self.0, options)?.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// host -> first -> second -> host, with taps on all three mailboxes.
fn chain(device: &Device, tap: Tap, journal_slots: u32, servers: u32) -> Result<(Runtime, Sender, Receiver), Error> {
    let mut graph = Builder::new(device.clone());
    graph.budget(SpinBudget { servers, ..SpinBudget::default() })?;
    let host = graph.host("host")?;
    let first = graph.resident("first", builtin::RELAY)?;
    let second = graph.resident("second", builtin::RELAY)?;
    let ids =
        [(host, first), (first, second), (second, host)].map(|(a, b)| graph.mailbox(a, b, MailboxOptions::slots(16)));
    let mut boxes: Vec<MailboxId> = Vec::new();
    for id in ids {
        let id = id?;
        graph.tap(id, tap)?;
        boxes.push(id);
    }
    graph.journal_slots(journal_slots)?.journal_threads(servers.max(1))?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let ends = (runtime.sender(boxes[0])?, runtime.receiver(boxes[2])?);
    Ok((runtime, ends.0, ends.1))
}

pub(crate) fn least_servers(device: &Device) -> u32 {
    u32::from(device.info().ordinal.is_some())
}

pub(crate) fn taps_keep_every_record_in_order(device: &Device) -> Outcome {
    const RECORDS: u64 = 6000;
    for servers in [least_servers(device), 3] {
        let folder = Folder::new("order");
        let (mut runtime, mut sender, mut receiver) = chain(device, Tap::Block, 64, servers).map_err(text)?;
        runtime.journal(folder.log().map_err(text)?).map_err(text)?;
        runtime.start().map_err(text)?;
        echo(&mut sender, &mut receiver, 0, RECORDS)?;
        runtime.stop(BOUND).map_err(text)?;
        let stats = runtime.journal_stats().ok_or("no journal")?;
        let all = 3 * RECORDS;
        let adds_up =
            stats.accepted == all && stats.durable == all && stats.in_flight + stats.dropped + stats.lost == 0;
        expect(adds_up && stats.failed.is_none(), || format!("{stats:?}"))?;

        let mut next = HashMap::new();
        let mut last_ns = HashMap::new();
        for record in Reader::open(&folder.0, 1).map_err(text)? {
            let record = record.map_err(text)?;
            let n = next.entry(record.mailbox).or_insert(0u64);
            let whole = record.payload == ring_record(*n, *n, 248) && record.msg_type == *n as u16;
            expect(whole, || format!("record {n} of mailbox {} is another in the log", record.mailbox))?;
            let last = last_ns.insert(record.mailbox, record.producer_ns).unwrap_or(0);
            expect(record.producer_ns >= last, || {
                format!("record {n} of mailbox {} went back in time", record.mailbox)
            })?;
            *n += 1;
        }
        expect((0..3).all(|m| next.get(&m) == Some(&RECORDS)), || format!("{servers} servers: {next:?}"))?;
    }
    Ok(())
}

/// A tap of one type lets the others pass, unseen and uncounted, whether they are taken one by one or would be many at once; a tap of
/// all mailboxes leaves out those that pass no resident module.
pub(crate) fn taps_of_one_type_and_of_all(device: &Device) -> Outcome {
    const RECORDS: u64 = 3000;
    let is_chosen = |n: u64| n.is_multiple_of(5);
    for servers in [least_servers(device), 3] {
        let folder = Folder::new("types");
        let mut graph = Builder::new(device.clone());
        graph.budget(SpinBudget { servers, ..SpinBudget::default() }).map_err(text)?;
        let host = graph.host("host").map_err(text)?;
        let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
        let sink = graph.resident("sink", builtin::DISCARD).map_err(text)?;
        let ends = [(host, relay), (relay, host), (host, sink)];
        let boxes: Result<Vec<_>, _> =
            ends.map(|(from, to)| graph.mailbox(from, to, MailboxOptions::slots(16))).into_iter().collect();
        let boxes = boxes.map_err(text)?;
        for (id, tap) in boxes.iter().zip([Tap::Block, Tap::Block, Tap::Drop]) {
            graph.tap_type(*id, tap, 900).map_err(text)?;
        }
        // Every record finds room here, those of the mailbox that drops among them.
        graph.journal_slots(2048).map_err(text)?;
        let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
        expect(runtime.durable(boxes[0]).is_err(), || "one could wait for a record that no tap takes".into())?;
        let mut senders = [0, 2].map(|i| runtime.sender(boxes[i]));
        let mut receiver = runtime.receiver(boxes[1]).map_err(text)?;
        runtime.journal(folder.log().map_err(text)?).map_err(text)?;
        runtime.start().map_err(text)?;
        let mut buffer = [0; 248];
        for n in 0..RECORDS {
            let msg_type = if is_chosen(n) { 900 } else { n as u16 % 900 };
            for sender in &mut senders {
                let sender = sender.as_mut().map_err(|e| e.to_string())?;
                sender.push(msg_type, &ring_record(n, n, 248), BOUND).map_err(text)?;
            }
            let record = receiver.pop(&mut buffer, BOUND).map_err(text)?;
            let whole = record.msg_type == msg_type && buffer[..record.len] == ring_record(n, n, 248);
            expect(whole, || format!("record {n} came back wrong"))?;
        }
        runtime.drain(BOUND).map_err(text)?;
        runtime.stop(BOUND).map_err(text)?;
        let (stats, each) = (runtime.journal_stats().ok_or("no journal")?, RECORDS.div_ceil(5));
        let adds_up = |t: &TapStats| (t.accepted, t.durable, t.dropped + t.in_flight + t.lost) == (each, each, 0);
        let typed = stats.taps.iter().all(|t| t.msg_type == Some(900) && adds_up(t));
        expect(typed && stats.taps.len() == 3 && stats.accepted == 3 * each, || format!("{stats:?}"))?;
        let mut next = [0u64; 3];
        for record in Reader::open(&folder.0, 1).map_err(text)? {
            let record = record.map_err(text)?;
            let n = next.get_mut(record.mailbox as usize).ok_or("a mailbox that is none")?;
            let whole = record.msg_type == 900 && record.payload == ring_record(*n, *n, 248);
            expect(whole, || format!("record {n} of mailbox {} is another in the log", record.mailbox))?;
            *n += 5;
        }
        expect(next == [5 * each; 3], || format!("{servers} servers: {next:?}"))?;
    }
    let mut graph = Builder::new(device.clone());
    let (host, other) = (graph.host("host").map_err(text)?, graph.stream("other").map_err(text)?);
    graph.mailbox(host, other, MailboxOptions::default()).map_err(text)?; // passes no arbiter
    let refused = graph.tap_all(Tap::Block).err().map_or(String::new(), |e| e.to_string());
    expect(refused.contains("nothing to tap"), || format!("{refused:?}"))?;
    let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
    let there = graph.mailbox(host, relay, MailboxOptions::default()).map_err(text)?;
    graph.mailbox(relay, host, MailboxOptions::default()).map_err(text)?;
    graph.tap_type(there, Tap::Drop, 7).and_then(|graph| graph.tap_all(Tap::Block)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    runtime.journal(NullSink::default()).map_err(text)?;
    let taps = runtime.journal_stats().ok_or("no journal")?.taps;
    let seen: Vec<_> = taps.iter().map(|t| (t.mailbox.as_str(), t.policy, t.msg_type)).collect();
    let wanted = ["host->relay", "relay->host"].map(|name| (name, Tap::Block, None));
    expect(seen == wanted, || format!("{taps:?}"))
}

/// Bursts into mailboxes of several strides, taken many at a time: every byte of every record is in the log, in order,
/// whatever its length, also where the rings are hardly longer than a burst.
pub(crate) fn bursts_pass_a_tap_whole(device: &Device) -> Outcome {
    const RECORDS: u64 = 1500;
    const STRIDES: [u32; 5] = [64, 256, 640, 1088, 4096];
    for (servers, journal_slots) in [(least_servers(device), 16), (3, 16), (4, 256)] {
        let folder = Folder::new("bursts");
        let mut graph = Builder::new(device.clone());
        graph.budget(SpinBudget { servers, ..SpinBudget::default() }).map_err(text)?;
        let host = graph.host("host").map_err(text)?;
        // Two of them share a module, so that a step has to leave room for the second.
        let (both, one) = (graph.resident("both", builtin::DISCARD), graph.resident("one", builtin::DISCARD));
        let (both, one) = (both.map_err(text)?, one.map_err(text)?);
        let mut boxes = Vec::new();
        for (i, stride) in STRIDES.into_iter().enumerate() {
            let to = if i < 2 { both } else { one };
            let id = graph.mailbox(host, to, MailboxOptions { stride, slots: 64 }).map_err(text)?;
            graph.tap(id, Tap::Block).map_err(text)?;
            boxes.push(id);
        }
        graph.journal_slots(journal_slots).map_err(text)?.journal_threads(servers.max(1)).map_err(text)?;
        let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
        let senders: Result<Vec<_>, _> = boxes.iter().map(|id| runtime.sender(*id)).collect();
        let mut senders = senders.map_err(text)?;
        let lengths: Vec<u64> = senders.iter().map(|s| s.payload_bytes() as u64 + 1).collect();
        // Every third is as long as can be.
        let bytes = |at: usize, n: u64| {
            let any = 16 + n * 37 % (lengths[at] - 16);
            let mut bytes = ring_record(n, n, lengths[at] as usize - 1);
            bytes.resize(if n.is_multiple_of(3) { lengths[at] - 1 } else { any } as usize, 0xA5);
            bytes
        };
        runtime.journal(folder.log().map_err(text)?).map_err(text)?;
        runtime.start().map_err(text)?;
        for n in 0..RECORDS {
            for (at, sender) in senders.iter_mut().enumerate() {
                sender.push(n as u16, &bytes(at, n), BOUND).map_err(text)?;
            }
        }
        runtime.drain(BOUND).map_err(text)?;
        runtime.stop(BOUND).map_err(text)?;
        let stats = runtime.journal_stats().ok_or("no journal")?;
        let all = RECORDS * STRIDES.len() as u64;
        let adds_up = stats.accepted == all && stats.durable == all && stats.dropped + stats.lost == 0;
        expect(adds_up, || format!("{servers} servers: {stats:?}"))?;
        let mut next = [0u64; STRIDES.len()];
        for record in Reader::open(&folder.0, 1).map_err(text)? {
            let record = record.map_err(text)?;
            let at = record.mailbox as usize;
            let n = next.get(at).copied().ok_or("a mailbox that is none")?;
            let whole = record.payload == bytes(at, n) && record.msg_type == n as u16;
            expect(whole, || format!("record {n} of mailbox {at} is another in the log, {servers} servers"))?;
            next[at] += 1;
        }
        expect(next == [RECORDS; STRIDES.len()], || format!("{servers} servers: {next:?}"))?;
    }
    Ok(())
}

/// The same with further blocks of the arbiter's launch, which carry parts of batches of long records, over launches that end and
/// park, and pauses from which it begins anew; where taps drop, what is in the log is whole and in order, and the others are counted.
pub(crate) fn further_blocks_carry_long_records(device: &Device) -> Outcome {
    for (servers, blocks, tap, journal_slots) in [
        (least_servers(device), 2, Tap::Block, 32),
        (3, 2, Tap::Block, 256),
        (2, 1, Tap::Drop, 16),
        (4, 3, Tap::Block, 64),
        (3, 2, Tap::Drop, 64),
    ] {
        carried(device, servers, blocks, tap, journal_slots)
            .map_err(|e| format!("{servers} servers, {blocks} further blocks, {tap:?}: {e}"))?;
    }
    Ok(())
}

fn carried(device: &Device, servers: u32, blocks: u32, tap: Tap, journal_slots: u32) -> Outcome {
    const BURSTS: u64 = 120;
    const STRIDES: [u32; 4] = [512, 1024, 1600, 4096];
    let folder = Folder::new("carried");
    let mut graph = Builder::new(device.clone());
    let idle_spin = Some(Duration::from_micros(50));
    let residency = Duration::from_micros(500);
    graph.budget(SpinBudget { servers, idle_spin, residency, ..SpinBudget::default() }).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let mut boxes = Vec::new();
    for stride in STRIDES {
        let sink = graph.resident(&format!("sink of {stride}"), builtin::DISCARD).map_err(text)?;
        let id = graph.mailbox(host, sink, MailboxOptions { stride, slots: 64 }).map_err(text)?;
        graph.tap(id, tap).map_err(text)?;
        boxes.push(id);
    }
    graph.journal_slots(journal_slots).and_then(|graph| graph.journal_blocks(blocks)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let senders: Result<Vec<_>, _> = boxes.iter().map(|id| runtime.sender(*id)).collect();
    let mut senders = senders.map_err(text)?;
    let longest: Vec<u64> = senders.iter().map(|s| s.payload_bytes() as u64).collect();
    let bytes = |at: usize, n: u64| {
        let len = if n.is_multiple_of(3) { longest[at] } else { 16 + n * 37 % (longest[at] - 15) };
        let mut bytes = ring_record(n, n, longest[at] as usize);
        bytes.truncate(len as usize);
        bytes
    };
    runtime.journal(folder.log().map_err(text)?).map_err(text)?;
    runtime.start().map_err(text)?;
    let (mut sent, mut seed) = ([0u64; STRIDES.len()], u64::from(servers + 8 * blocks));
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for _ in 0..BURSTS {
        let at = random(STRIDES.len() as u64) as usize;
        for _ in 0..1 + random(60) {
            senders[at].push(sent[at] as u16, &bytes(at, sent[at]), BOUND).map_err(text)?;
            sent[at] += 1;
        }
        match random(8) {
            0 => std::thread::sleep(Duration::from_millis(1)), // it parks
            1 => runtime.quiesce(BOUND, |_| ()).map_err(text)?,
            _ => {}
        }
    }
    runtime.drain(BOUND).map_err(text)?;
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.journal_stats().ok_or("no journal")?;
    let adds_up = stats.accepted == sent.iter().sum::<u64>() && stats.accepted == stats.durable + stats.dropped;
    expect(adds_up && (tap == Tap::Drop || stats.dropped == 0), || format!("{sent:?}: {stats:?}"))?;
    let (mut next, mut last_ns, mut found) = ([0u64; STRIDES.len()], [0; STRIDES.len()], 0);
    for record in Reader::open(&folder.0, 1).map_err(text)? {
        let record = record.map_err(text)?;
        let (at, n) = (record.mailbox as usize, u64::from(record.msg_type));
        expect(n == next[at] || (tap == Tap::Drop && n > next[at]), || format!("{n} of {at} after {}", next[at]))?;
        expect(record.payload == bytes(at, n), || format!("record {n} of mailbox {at} is another in the log"))?;
        expect(record.producer_ns >= last_ns[at], || format!("record {n} of mailbox {at} went back in time"))?;
        (next[at], last_ns[at], found) = (n + 1, record.producer_ns, found + 1);
    }
    expect(found == stats.durable, || format!("{found} in the log: {stats:?}"))
}

/// Steps that journal more records than wait for the end of a step: a record taken and one given to each of three outputs,
/// of several lengths. All are in the log, each mailbox's in order, with one number each.
pub(crate) fn steps_journal_more_than_a_stage_holds(device: &Device) -> Outcome {
    const RECORDS: u64 = 500;
    for (servers, strides) in [(least_servers(device), [256; 4]), (3, [256; 4]), (2, [4096, 4096, 256, 64])] {
        let folder = Folder::new("stage");
        let mut graph = Builder::new(device.clone());
        graph.budget(SpinBudget { servers, ..SpinBudget::default() }).map_err(text)?;
        let host = graph.host("host").map_err(text)?;
        let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
        let mut boxes = Vec::new();
        for (i, stride) in strides.into_iter().enumerate() {
            let (from, to) = if i == 0 { (host, relay) } else { (relay, host) };
            let id = graph.mailbox(from, to, MailboxOptions { stride, slots: 16 }).map_err(text)?;
            graph.tap(id, Tap::Block).map_err(text)?;
            boxes.push(id);
        }
        graph.journal_slots(8).map_err(text)?;
        let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
        let mut sender = runtime.sender(boxes[0]).map_err(text)?;
        let receivers: Result<Vec<_>, _> = boxes[1..].iter().map(|id| runtime.receiver(*id)).collect();
        let mut receivers = receivers.map_err(text)?;
        runtime.journal(folder.log().map_err(text)?).map_err(text)?;
        runtime.start().map_err(text)?;
        let bytes = |n: u64| ring_record(n, n, 16 + n as usize * 7 % 40);
        let mut buffer = [0u8; 4096];
        for n in 0..RECORDS {
            sender.push(n as u16, &bytes(n), BOUND).map_err(text)?;
            for receiver in &mut receivers {
                let record = receiver.pop(&mut buffer, BOUND).map_err(text)?;
                expect(buffer[..record.len] == bytes(n), || format!("record {n} came out as another"))?;
            }
        }
        runtime.stop(BOUND).map_err(text)?;
        let stats = runtime.journal_stats().ok_or("no journal")?;
        let adds_up = stats.accepted == 4 * RECORDS && stats.durable == stats.accepted;
        expect(adds_up, || format!("{servers} servers: {stats:?}"))?;
        let mut next = [0u64; 4];
        for record in Reader::open(&folder.0, 1).map_err(text)? {
            let record = record.map_err(text)?;
            let n = next.get_mut(record.mailbox as usize).ok_or("a mailbox that is none")?;
            let whole = record.payload == bytes(*n) && record.msg_type == *n as u16;
            expect(whole, || format!("record {n} of mailbox {} is another in the log", record.mailbox))?;
            *n += 1;
        }
        expect(next == [RECORDS; 4], || format!("{servers} servers: {next:?}"))?;
    }
    Ok(())
}

/// Takes its time with each batch, remembers what it took, and after some batches takes no more.
pub(crate) struct Trial {
    null: NullSink,
    delay: Duration,
    batches: u32,
    /// At its end it panics instead.
    panics: bool,
    pub(crate) seen: Arc<Mutex<Vec<(u32, u16)>>>,
}

impl Trial {
    pub(crate) fn new(delay: Duration, batches: u32) -> Self {
        Trial { null: NullSink::default(), delay, batches, panics: false, seen: Arc::default() }
    }
}

impl Sink for Trial {
    fn append(&mut self, batch: &mut Batch<'_>) -> Result<RangeInclusive<u64>, Error> {
        std::thread::sleep(self.delay);
        if self.batches == 0 {
            assert!(!self.panics, "the disk is gone");
            return Err(Error::State("the disk is gone".into()));
        }
        self.batches -= 1;
        if let Ok(mut seen) = self.seen.lock() {
            seen.extend(batch.entries().map(|e| (e.mailbox, e.msg_type)));
        }
        self.null.append(batch)
    }
    fn tick(&mut self) -> Result<u64, Error> {
        self.null.tick()
    }
    fn commit(&mut self) -> Result<Position, Error> {
        self.null.commit()
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

/// Takes no batch while it is shut, and remembers what it took.
struct Shut {
    trial: Trial,
    shut: Arc<AtomicBool>,
}

impl Sink for Shut {
    fn append(&mut self, batch: &mut Batch<'_>) -> Result<RangeInclusive<u64>, Error> {
        let begin = Instant::now();
        while self.shut.load(Ordering::Acquire) && begin.elapsed() < BOUND {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.trial.append(batch)
    }
    fn tick(&mut self) -> Result<u64, Error> {
        self.trial.tick()
    }
    fn commit(&mut self) -> Result<Position, Error> {
        self.trial.commit()
    }
    fn durable(&self) -> u64 {
        self.trial.durable()
    }
    fn due_in(&self) -> Option<Duration> {
        None
    }
    fn finish(self: Box<Self>) -> Result<u64, Error> {
        Ok(self.trial.durable())
    }
}

/// A sink that takes nothing for a while holds everybody back, also over a quiesce: what modules had taken and nobody had journalled
/// yet stays in its slots, is not given to a module a second time, and is journalled once when the sink goes on.
pub(crate) fn a_shut_sink_lets_a_quiesce_in(device: &Device) -> Outcome {
    let (mut runtime, mut sender, mut receiver) = chain(device, Tap::Block, 16, least_servers(device)).map_err(text)?;
    let trial = Trial::new(Duration::ZERO, u32::MAX);
    let (seen, shut) = (trial.seen.clone(), Arc::new(AtomicBool::new(true)));
    runtime.journal(Shut { trial, shut: shut.clone() }).map_err(text)?;
    runtime.start().map_err(text)?;
    let (mut pushed, mut popped, mut buffer) = (0u64, 0u64, [0; 248]);
    let mut take = |receiver: &mut Receiver, popped: &mut u64, bound| -> Result<bool, String> {
        match receiver.pop(&mut buffer, bound) {
            Ok(record) => {
                let n = *popped;
                let same = record.msg_type == n as u16 && buffer[..record.len] == ring_record(n, n, 248);
                expect(same, || format!("record {n} came out as another"))?;
                *popped += 1;
                Ok(true)
            }
            Err(Error::Timeout { .. }) => Ok(false),
            Err(e) => Err(text(e)),
        }
    };
    // The drain takes some megabytes before it is held up, and then the rings fill, and the mailboxes.
    let (short, begin) = (Duration::from_millis(50), Instant::now());
    loop {
        match sender.push(pushed as u16, &ring_record(pushed, pushed, 248), short) {
            Ok(()) => pushed += 1,
            Err(Error::Timeout { .. }) => break,
            Err(e) => return Err(text(e)),
        }
        while pushed - popped > 8 && take(&mut receiver, &mut popped, short)? {}
        expect(begin.elapsed() < BOUND, || "nobody was held back".into())?;
    }
    while take(&mut receiver, &mut popped, short)? {}
    for round in 0..2 {
        runtime.quiesce(Duration::from_secs(4), |_| ()).map_err(|e| format!("quiesce {round}: {e}"))?;
        while take(&mut receiver, &mut popped, short)? {}
    }
    let in_log = seen.lock().map_err(|e| e.to_string())?.len();
    expect(in_log == 0, || format!("{in_log} records passed a sink that was shut"))?;
    shut.store(false, Ordering::Release);
    for _ in 0..100 {
        sender.push(pushed as u16, &ring_record(pushed, pushed, 248), BOUND).map_err(text)?;
        pushed += 1;
        while pushed - popped > 8 {
            expect(take(&mut receiver, &mut popped, BOUND)?, || "a record is late".into())?;
        }
    }
    while popped < pushed {
        expect(take(&mut receiver, &mut popped, BOUND)?, || "a record is missing".into())?;
    }
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.journal_stats().ok_or("no journal")?;
    let adds_up = stats.accepted == 3 * pushed && stats.durable == stats.accepted && stats.dropped + stats.lost == 0;
    expect(adds_up, || format!("{pushed} pushed: {stats:?}"))?;
    let (seen, mut next) = (seen.lock().map_err(|e| e.to_string())?, [0u64; 3]);
    for &(mailbox, n) in seen.iter() {
        let place = &mut next[mailbox as usize];
        expect(n == *place as u16, || format!("mailbox {mailbox}: {n} in the place of {place}"))?;
        *place += 1;
    }
    expect(next == [pushed; 3], || format!("{next:?} of {pushed}"))
}

pub(crate) fn a_slow_sink_holds_back_or_drops(device: &Device) -> Outcome {
    const RECORDS: u64 = 3000;
    for tap in [Tap::Block, Tap::Drop] {
        let (mut runtime, mut sender, mut receiver) = chain(device, tap, 4, least_servers(device)).map_err(text)?;
        let slow = Trial::new(Duration::from_millis(1), u32::MAX);
        let seen = slow.seen.clone();
        runtime.journal(slow).map_err(text)?;
        runtime.start().map_err(text)?;
        echo(&mut sender, &mut receiver, 0, RECORDS)?;
        runtime.stop(BOUND).map_err(text)?;
        let stats = runtime.journal_stats().ok_or("no journal")?;
        let adds_up = stats.accepted == 3 * RECORDS && stats.accepted == stats.durable + stats.dropped;
        expect(adds_up, || format!("{tap:?}: {stats:?}"))?;
        expect((stats.dropped == 0) == (tap == Tap::Block), || format!("{tap:?}: {stats:?}"))?;
        let each = |t: &warpmail::journal::TapStats| {
            t.accepted == RECORDS && t.accepted == t.durable + t.in_flight + t.dropped + t.lost && t.policy == tap
        };
        let named = stats.taps.iter().enumerate().all(|(i, t)| t.id as usize == i && !t.mailbox.is_empty());
        expect(stats.taps.len() == 3 && stats.taps.iter().all(each) && named, || format!("{:?}", stats.taps))?;
        let seen = seen.lock().map_err(|e| e.to_string())?;
        expect(seen.len() as u64 == stats.durable, || format!("{} records, {stats:?}", seen.len()))?;
        let mut last = [-1i64; 3];
        for &(mailbox, n) in seen.iter() {
            let place = &mut last[mailbox as usize];
            expect(i64::from(n) > *place, || format!("{tap:?}: mailbox {mailbox}: {n} after {place}"))?;
            *place = i64::from(n);
        }
    }
    Ok(())
}

pub(crate) fn a_failed_sink_is_told(device: &Device) -> Outcome {
    // Where records may be dropped the modules go on, and what was lost is counted.
    let (mut runtime, mut sender, mut receiver) = chain(device, Tap::Drop, 64, least_servers(device)).map_err(text)?;
    runtime.journal(Trial::new(Duration::ZERO, 3)).map_err(text)?;
    runtime.start().map_err(text)?;
    let (mut sent, begin) = (0, Instant::now());
    while sent < 2000 || (runtime.journal_stats().is_none_or(|s| s.failed.is_none()) && begin.elapsed() < BOUND) {
        echo(&mut sender, &mut receiver, sent, 500)?;
        sent += 500;
    }
    let stopped = runtime.stop(BOUND);
    expect(matches!(&stopped, Err(e) if e.to_string().contains("the disk is gone")), || format!("{stopped:?}"))?;
    let stats = runtime.journal_stats().ok_or("no journal")?;
    let adds_up = stats.accepted == stats.durable + stats.dropped + stats.lost && stats.accepted == 3 * sent;
    let lost: u64 = stats.taps.iter().map(|t| t.lost).sum();
    expect(lost == stats.lost, || format!("{stats:?}"))?;
    expect(adds_up && stats.lost > 0 && stats.failed.is_some(), || format!("{stats:?}"))?;

    // Where all must be kept the runtime fails, and whoever waits is told; also of a sink that panics.
    (0..2).try_for_each(|n| a_sink_fails_all(device, n == 1))
}

fn a_sink_fails_all(device: &Device, panics: bool) -> Outcome {
    let (mut runtime, mut sender, _receiver) = chain(device, Tap::Block, 64, least_servers(device)).map_err(text)?;
    runtime.journal(Trial { panics, ..Trial::new(Duration::ZERO, 0) }).map_err(text)?;
    runtime.start().map_err(text)?;
    sender_is_told(&mut sender)?;
    expect(runtime.stop(BOUND).is_err(), || "stop says nothing of it".into())
}

/// Pushes until the runtime says that its journal has failed.
pub(crate) fn sender_is_told(sender: &mut Sender) -> Outcome {
    let begin = Instant::now();
    loop {
        match sender.push(1, &[0; 8], Duration::from_millis(50)) {
            Err(Error::Failed(why)) => return expect(why.contains("the disk is gone"), || why.clone()),
            _ if begin.elapsed() > BOUND => return Err("nobody was told".into()),
            _ => {}
        }
    }
}

pub(crate) fn modules_see_what_is_durable(device: &Device) -> Outcome {
    let folder = Folder::new("durable");
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let keeper = graph.resident("keeper", ModuleOptions::handler(kit::DURABLE).with_state(&[0u64; 8])).map_err(text)?;
    let data = graph.mailbox(host, keeper, MailboxOptions::slots(64)).map_err(text)?;
    let ask = graph.mailbox(host, keeper, MailboxOptions::slots(4)).map_err(text)?;
    let answer = graph.mailbox(keeper, host, MailboxOptions::slots(4)).map_err(text)?;
    graph.tap(data, Tap::Block).map_err(text)?;
    let mut runtime = graph.build(kit::image()).map_err(text)?;
    let (mut data, mut ask) = (runtime.sender(data).map_err(text)?, runtime.sender(ask).map_err(text)?);
    let mut answer = runtime.receiver(answer).map_err(text)?;
    runtime.journal(folder.log().map_err(text)?).map_err(text)?;
    runtime.start().map_err(text)?;
    let (mut buffer, begin) = ([0u8; 248], Instant::now());
    for n in 0..500u64 {
        data.push(1, &n.to_le_bytes(), BOUND).map_err(text)?;
    }
    loop {
        ask.push(1, b"?", BOUND).map_err(text)?;
        answer.pop(&mut buffer, BOUND).map_err(text)?;
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| buffer[8 * i + b]));
        let (taken, durable) = (word(0), word(1));
        expect(durable <= taken && taken <= 500, || format!("{durable} of {taken} durable"))?;
        // What the module was told is durable can be read from the disk.
        let on_disk = match Reader::open(&folder.0, 1) {
            Ok(reader) => reader.take_while(Result::is_ok).count() as u64,
            Err(_) => 0,
        };
        expect(on_disk >= durable, || format!("{durable} durable, {on_disk} on disk"))?;
        if durable == 500 {
            break;
        }
        expect(begin.elapsed() < BOUND, || format!("{durable} of {taken} durable"))?;
    }
    runtime.stop(BOUND).map_err(text)
}

/// A module outside the arbiter (on a GPU, a kernel on a stream) waits until a record of its own is on disk, with a bound.
pub(crate) fn stream_modules_wait_for_their_records(device: &Device) -> Outcome {
    let forms = Forms::new(device, 4096)?;
    let build = |consumer: u32| -> Result<_, Error> {
        let mut graph = Builder::new(device.clone());
        let (producer, host) = (graph.stream("producer")?, graph.host("host")?);
        let sink = graph.resident("sink", consumer)?;
        let mailbox = graph.mailbox(producer, sink, MailboxOptions::slots(16))?;
        let dropping = graph.mailbox(host, sink, MailboxOptions::slots(16))?;
        graph.tap(mailbox, Tap::Block)?.tap(dropping, Tap::Drop)?.journal_slots(64)?;
        Ok((graph.build(kit::image())?, mailbox, dropping))
    };
    let (mut runtime, mailbox, dropping) = build(kit::STRICT).map_err(text)?;
    let folder = Folder::new("waits");
    runtime.journal(folder.log().map_err(text)?).map_err(text)?;
    runtime.start().map_err(text)?;
    let (handle, durable) = (runtime.handle(mailbox).map_err(text)?, runtime.durable(mailbox).map_err(text)?);
    let told = forms.push_durably(handle, durable, 40, BOUND)?;
    expect(told.done == 40 && told.fault == 0, || format!("{told:?}"))?;
    runtime.wait_durable(mailbox, 40, BOUND).map_err(text)?;
    // All of them are in the file now, before anything is closed.
    let on_disk = Reader::open(&folder.0, 1).map_err(text)?.take_while(Result::is_ok).count();
    expect(on_disk == 40, || format!("{on_disk} on disk"))?;
    // One that nobody pushed is waited for within the bound only, and a tap that drops promises nothing.
    let outcome = runtime.wait_durable(mailbox, 41, Duration::from_millis(20));
    expect(matches!(outcome, Err(Error::Timeout { .. })), || format!("{outcome:?}"))?;
    let outcome = runtime.durable(dropping);
    expect(matches!(&outcome, Err(Error::Refused { .. })), || format!("{outcome:?}"))?;
    runtime.stop(BOUND).map_err(text)?;

    // Nobody takes the record: the device's wait ends by its budget.
    let (mut runtime, mailbox, _) = build(kit::STUCK).map_err(text)?;
    runtime.journal(NullSink::default()).map_err(text)?;
    let (handle, durable) = (runtime.handle(mailbox).map_err(text)?, runtime.durable(mailbox).map_err(text)?);
    let told = forms.push_durably(handle, durable, 1, Duration::from_millis(20))?;
    expect(told.fault == 1 && told.done == 0, || format!("{told:?}"))?;

    // A journal that has failed is told, and no wait for it goes on.
    let (mut runtime, mailbox, _) = build(kit::STRICT).map_err(text)?;
    runtime.journal(Trial::new(Duration::ZERO, 3)).map_err(text)?;
    runtime.start().map_err(text)?;
    let (handle, durable) = (runtime.handle(mailbox).map_err(text)?, runtime.durable(mailbox).map_err(text)?);
    let told = forms.push_durably(handle, durable, 40, BOUND)?;
    let ended = told.fault == 1 && told.found == u64::from(abi::WM_NOT_DURABLE.unsigned_abs());
    expect(ended && told.done == 3, || format!("{told:?}"))?;
    let outcome = runtime.wait_durable(mailbox, 4, BOUND);
    expect(matches!(&outcome, Err(Error::Failed(why)) if why.contains("the disk is gone")), || format!("{outcome:?}"))?;
    expect(runtime.stop(BOUND).is_err(), || "stop says nothing of it".into())
}

pub(crate) fn replay_puts_records_back(device: &Device) -> Outcome {
    let folder = Folder::new("replay");
    let (mut runtime, mut sender, mut receiver) = chain(device, Tap::Block, 64, least_servers(device)).map_err(text)?;
    runtime.journal(folder.log().map_err(text)?).map_err(text)?;
    runtime.start().map_err(text)?;
    echo(&mut sender, &mut receiver, 0, 1000)?;
    runtime.stop(BOUND).map_err(text)?;

    let (mut runtime, sender, mut receiver) = chain(device, Tap::Drop, 64, least_servers(device)).map_err(text)?;
    runtime.journal(NullSink::default()).map_err(text)?;
    runtime.start().map_err(text)?;
    let mut senders = HashMap::from([(0, sender)]);
    let from = folder.0.clone();
    let replaying = std::thread::spawn(move || replay(Reader::open(&from, 1)?, Pace::Full, &mut senders, BOUND));
    let mut buffer = [0; 248];
    for n in 0..1000 {
        let record = receiver.pop(&mut buffer, BOUND).map_err(text)?;
        let same = record.msg_type == n as u16 && buffer[..record.len] == ring_record(n, n, 248);
        expect(same, || format!("record {n} came back changed"))?;
    }
    let done = replaying.join().map_err(|_| "the replay panicked".to_string())?.map_err(text)?;
    expect(done.pushed == 1000 && done.skipped == 2000 && done.last == 3000, || format!("{done:?}"))?;
    runtime.stop(BOUND).map_err(text)
}
