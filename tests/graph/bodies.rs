//! Bodies of stream modules that are long, that fail, and that are under way when their module, or all of it, ends. What came before
//! came whole, once and in order, and nothing is left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use warpmail::{
    Body, Builder, Device, Error, HandlerImage, MailboxOptions, ModuleId, Receiver, Runtime, Sender, SpinBudget, State,
    StreamOptions,
};
use warpmail_testkit::ring_record;

use crate::life::usage;
use crate::{BOUND, Outcome, expect, text};

/// host -> stream modules, one after the other -> host.
struct Chain {
    runtime: Runtime,
    modules: Vec<ModuleId>,
    sender: Sender,
    receiver: Receiver,
    sent: u64,
    came: u64,
    /// The record whose body fails: it need not come, and those behind it that were under way may pass it.
    fails: Option<u64>,
    missing: u64,
}

impl Chain {
    fn start(graph: Builder, bodies: Vec<Body>) -> Result<Self, Error> {
        Self::start_beside(graph, bodies, Vec::new())
    }

    /// With modules beside it, one for each of `idle`, that get no records.
    fn start_beside(mut graph: Builder, bodies: Vec<Body>, idle: Vec<Body>) -> Result<Self, Error> {
        let host = graph.host("host")?;
        let (mut modules, mut boxes, mut from) = (Vec::new(), Vec::new(), host);
        for n in 0..bodies.len() {
            let module = graph.steps(&format!("steps{n}"), StreamOptions::default())?;
            boxes.push(graph.mailbox(from, module, MailboxOptions::slots(8))?);
            modules.push(module);
            from = module;
        }
        boxes.push(graph.mailbox(from, host, MailboxOptions::slots(8))?);
        let mut beside = Vec::new();
        for n in 0..idle.len() {
            let module = graph.steps(&format!("idle{n}"), StreamOptions::default())?;
            graph.mailbox(host, module, MailboxOptions::slots(8))?;
            graph.mailbox(module, host, MailboxOptions::slots(8))?;
            beside.push(module);
        }
        let mut runtime = graph.build(HandlerImage::builtin())?;
        for (module, body) in modules.iter().chain(&beside).zip(bodies.into_iter().chain(idle)) {
            runtime.body(*module, body)?;
        }
        let (sender, receiver) = (runtime.sender(boxes[0])?, runtime.receiver(boxes[modules.len()])?);
        runtime.start()?;
        Ok(Chain { runtime, modules, sender, receiver, sent: 0, came: 0, fails: None, missing: 0 })
    }

    /// Sends as many as there is room for, and takes what has come, which is the next record each time.
    fn flow(&mut self) -> Outcome {
        while self.sender.try_push(self.sent as u16, &ring_record(self.sent, self.sent, 248)).is_ok() {
            self.sent += 1;
        }
        self.take()
    }

    fn take(&mut self) -> Outcome {
        let mut buffer = [0; 248];
        while let Some(r) = self.receiver.try_pop(&mut buffer).map_err(text)? {
            let is = |n: u64| r.msg_type == n as u16 && buffer[..r.len] == ring_record(n, n, 248);
            let mut n = self.came + self.missing;
            if self.fails == Some(n) && !is(n) {
                self.missing = 1;
                n += 1;
            }
            expect(is(n), || format!("record {n} of {} came changed, or twice, or not in turn", self.sent))?;
            self.came += 1;
        }
        Ok(())
    }

    fn flow_until(&mut self, done: impl Fn(&Runtime) -> bool) -> Outcome {
        let late = Instant::now() + BOUND;
        while !done(&self.runtime) {
            self.flow()?;
            let (sent, came) = (self.sent, self.came);
            expect(Instant::now() < late, || format!("{came} of {sent} came; {:?}", self.runtime.failure()))?;
            std::thread::yield_now();
        }
        Ok(())
    }

    /// After the end: every record that was sent waits in a mailbox, came, or is one of `lost`, which a body that failed took.
    fn account(&mut self, lost: u64) -> Outcome {
        self.take()?;
        let stats = self.runtime.stats();
        let gone = self.sent - self.came;
        let steps: Vec<_> = stats.modules.iter().filter(|m| m.name.starts_with("steps")).collect();
        let untaken = self.sent - steps[0].records_in;
        let between: u64 = steps.windows(2).map(|w| w[0].records_out - w[1].records_in).sum();
        let inside: u64 = steps.iter().map(|m| m.records_in - m.records_out).sum();
        expect(inside <= lost, || format!("{inside} records ended in a body: {steps:?}"))?;
        expect(steps[steps.len() - 1].records_out == self.came, || format!("{} came of {steps:?}", self.came))?;
        expect(untaken + between + inside == gone, || {
            format!("{gone} did not come: {untaken} not taken, {between} between, {inside} inside")
        })
    }
}

/// A body that calls `at` with the number of the record, then passes the record on.
fn calling(at: impl Fn(u64) + Send + Sync + 'static) -> Body {
    let (at, n) = (Arc::new(at), Arc::new(AtomicU64::new(0)));
    Body::each_step(move |step| {
        let (at, n) = (at.clone(), n.clone());
        step.call(move || at(n.fetch_add(1, Ordering::Relaxed)))?;
        step.forward(0, 0)
    })
}

fn forward() -> Body {
    Body::captured(|step| step.forward(0, 0))
}

/// A body that stays: its own side, and that of the test.
#[derive(Clone)]
struct Stay(Arc<[AtomicBool; 3]>);

impl Stay {
    fn new() -> (Self, Self) {
        let stay = Stay(Arc::default());
        (stay.clone(), stay)
    }

    fn word(&self, i: usize) -> bool {
        self.0[i].load(Ordering::Acquire)
    }

    fn wait_for(&self, i: usize) {
        let begin = Instant::now();
        while !self.word(i) && begin.elapsed() < BOUND {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// For 100 ms after it has been seen.
    fn a_while(&self) {
        self.0[0].store(true, Ordering::Release);
        self.wait_for(1);
        std::thread::sleep(Duration::from_millis(100));
        self.0[0].store(false, Ordering::Release);
    }

    fn until_let_go(&self) {
        self.0[0].store(true, Ordering::Release);
        self.wait_for(2);
    }

    fn is_in(&self) -> bool {
        self.word(0)
    }

    /// Whether it is in; it knows then that it was seen.
    fn is_seen(&self) -> bool {
        let seen = self.is_in();
        self.0[1].fetch_or(seen, Ordering::AcqRel);
        seen
    }

    fn let_go(&self) {
        self.0[2].store(true, Ordering::Release);
    }
}

/// Does something several times over, of which nothing may be left: threads, and device memory.
fn leaving_nothing(device: &Device, times: u32, scenario: impl Fn(u32) -> Outcome) -> Outcome {
    let mut before = None;
    for i in 0..times {
        scenario(i).map_err(|e| format!("time {i}: {e}"))?;
        // A thread that has been joined counts until the system has put it away.
        let begin = Instant::now();
        while before.is_some_and(|(threads, _)| usage().0 > threads) && begin.elapsed() < BOUND {
            std::thread::sleep(Duration::from_millis(1));
        }
        let now = (usage().0, device.free_bytes().map_err(text)?.unwrap_or(0));
        let first = *before.get_or_insert(now); // what is made once has been made
        expect(now.0 <= first.0, || format!("time {i}: threads grew from {} to {}", first.0, now.0))?;
        let lost = first.1.saturating_sub(now.1);
        expect(lost < 4 << 20, || format!("time {i}: {lost} bytes of device memory are gone"))?;
    }
    Ok(())
}

/// A body that fails when hundreds of records have passed: the module is named, the stop is bounded, what came is a beginning of what
/// was sent, and at most the record of that step is missing.
pub(crate) fn fail_mid_way(device: &Device) -> Outcome {
    const FAILS: u64 = 300;
    leaving_nothing(device, 4, |i| {
        let panics = i % 2 == 0;
        let bad = if panics {
            calling(|n| assert!(n != FAILS, "a body's own panic"))
        } else {
            let mut n = 0;
            Body::each_step(move |step| {
                n += 1;
                if n > FAILS {
                    return Err(Error::Failed("no more of this".into()));
                }
                step.forward(0, 0)
            })
        };
        let mut chain = Chain::start(Builder::new(device.clone()), vec![forward(), bad, forward()]).map_err(text)?;
        chain.fails = Some(FAILS);
        chain.flow_until(|r| r.state() == State::Failed)?;
        let why = chain.runtime.failure().unwrap_or_default().to_string();
        let says = if panics { "panicked" } else { "no more of this" };
        expect(why.contains("stream module steps1") && why.contains(says), || format!("{why:?}"))?;
        let begin = Instant::now();
        let _ = chain.runtime.stop(BOUND);
        expect(begin.elapsed() < BOUND, || "the stop took too long".into())?;
        chain.account(1)?;
        // Nothing is enqueued after it, so what lies in the mailboxes behind it stays there; launches without records count as well.
        let least = if panics { FAILS - 16 } else { 1 };
        expect(chain.came >= least, || format!("{} came of {least}", chain.came))
    })
}

/// One module is closed while its body is under way and records wait on both sides of it; then the runtime is dropped without a stop.
pub(crate) fn are_dropped_mid_way(device: &Device) -> Outcome {
    leaving_nothing(device, 4, |_| {
        let reached = Arc::new(AtomicU64::new(0));
        let (at, (under_way, stay)) = (reached.clone(), Stay::new());
        let slow = calling(move |n| {
            at.store(n, Ordering::Release);
            if n == 100 {
                stay.a_while();
            }
        });
        let mut chain = Chain::start(Builder::new(device.clone()), vec![forward(), slow, forward()]).map_err(text)?;
        chain.flow_until(|_| under_way.is_seen())?;
        let closed = chain.modules[1];
        chain.runtime.close(closed, BOUND).map_err(text)?;
        expect(!under_way.is_in(), || "its body runs after the close".into())?;
        let last = reached.load(Ordering::Acquire);
        let (early, late) = (Instant::now() + Duration::from_millis(50), Instant::now() + BOUND);
        // The others go on as far as they can.
        while Instant::now() < early || (chain.came <= last && Instant::now() < late) {
            chain.flow()?;
        }
        expect(reached.load(Ordering::Acquire) == last, || "a closed module took a step".into())?;
        expect(chain.came == last + 1, || format!("{} came of {} steps", chain.came, last + 1))?;
        let begin = Instant::now();
        drop(chain);
        expect(begin.elapsed() < BOUND, || "the drop took too long".into())
    })
}

/// The runtime is stopped while a body is under way: it comes to its end, and every record is accounted for. A body that does not end in
/// time is named.
pub(crate) fn are_stopped_mid_way(device: &Device) -> Outcome {
    leaving_nothing(device, 4, |_| {
        let (under_way, stay) = Stay::new();
        let slow = calling(move |n| {
            if n == 100 {
                stay.a_while();
            }
        });
        let mut chain = Chain::start(Builder::new(device.clone()), vec![forward(), slow, forward()]).map_err(text)?;
        chain.flow_until(|_| under_way.is_seen())?;
        chain.runtime.stop(BOUND).map_err(text)?;
        expect(!under_way.is_in(), || "a body runs after the stop".into())?;
        chain.account(0)
    })?;
    let (under_way, stay) = Stay::new();
    let stuck = calling(move |n| {
        if n == 100 {
            stay.until_let_go();
        }
    });
    let mut chain = Chain::start(Builder::new(device.clone()), vec![forward(), stuck]).map_err(text)?;
    chain.flow_until(|_| under_way.is_seen())?;
    let begin = Instant::now();
    let stopped = chain.runtime.stop(Duration::from_millis(300));
    let took = begin.elapsed();
    under_way.let_go(); // so that the device is free for the next test
    let named = matches!(&stopped, Err(Error::Stuck { stuck, .. }) if stuck.contains("steps1"));
    expect(named, || format!("{stopped:?}"))?;
    expect(took < BOUND / 2, || format!("the stop took {took:?}"))?;
    chain.take()
}

/// What is said in a quiesce and after a stop is what the steps did, also those that ended when the arbiter had left: a mailbox has as many
/// records as its ends have given and taken.
pub(crate) fn are_counted_to_the_last(device: &Device) -> Outcome {
    let slow = || calling(|_| std::thread::sleep(Duration::from_millis(3)));
    let mut chain = Chain::start(Builder::new(device.clone()), vec![slow(), slow(), slow()]).map_err(text)?;
    let agree = |stats: &warpmail::Stats, sent: u64, came: u64| {
        let (gave, took): (Vec<_>, Vec<_>) = stats.modules[1..].iter().map(|m| (m.records_out, m.records_in)).unzip();
        let written: Vec<_> = stats.mailboxes.iter().map(|m| m.written).collect();
        let consumed: Vec<_> = stats.mailboxes.iter().map(|m| m.consumed).collect();
        let (gave, took) = ([&[sent], &gave[..]].concat(), [&took[..], &[came]].concat());
        expect(gave == written && took == consumed, || format!("{sent} sent and {came} back, but {stats:?}"))
    };
    for pause in 1..=8 {
        let so_far = chain.came;
        let mut more = 3 * pause as u32;
        while chain.came < so_far + 3 || more > 0 {
            chain.flow()?;
            more = more.saturating_sub(1);
            std::thread::sleep(Duration::from_micros(300));
        }
        let (sent, came) = (chain.sent, chain.came);
        let said = chain.runtime.quiesce(BOUND, |r| r.stats()).map_err(text)?;
        agree(&said, sent, came).map_err(|e| format!("quiesce {pause}: {e}"))?;
    }
    chain.flow()?;
    chain.runtime.stop(BOUND).map_err(text)?;
    agree(&chain.runtime.stats(), chain.sent, chain.came)?;
    chain.account(0)
}

/// Three modules, one after the other, and three beside them that are idle. Their bodies are some hundred kernels that launches
/// without records run too, so that their launches fill the streams' queues, also those that nobody wakes. The others do not wait
/// for the pacer, which would make room there: it comes once a second, and a record's way takes less.
pub(crate) fn may_be_long(device: &Device) -> Outcome {
    let cuda = device.info().ordinal.is_some();
    let (max_wait, ops) = (Duration::from_millis(if cuda { 1000 } else { 600 }), 400);
    let records = std::env::var("WARPMAIL_STEPS").ok().and_then(|v| v.parse::<usize>().ok()).map_or(100, |n| n / 3);
    let mut graph = Builder::new(device.clone());
    let usual = graph.current_budget().clone();
    graph.budget(SpinBudget { max_wait, ..usual }).map_err(text)?;
    graph.with_short_queues(2);
    let long = || Body::captured(move |step| (0..ops).try_for_each(|_| step.forward(0, 0))).always();
    let three = || (0..3).map(|_| long()).collect();
    let mut chain = Chain::start_beside(graph, three(), three()).map_err(text)?;
    let mut trip = || {
        let begin = Instant::now();
        let n = chain.sent;
        chain.sender.push(n as u16, &ring_record(n, n, 248), BOUND).map_err(text)?;
        chain.sent += 1;
        while chain.came < chain.sent {
            chain.take()?;
            expect(begin.elapsed() < BOUND, || format!("record {n} does not come; {:?}", chain.runtime.failure()))?;
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(1));
        Ok::<_, String>(begin.elapsed())
    };
    // How many fit is known in advance on a GPU; elsewhere it is found out, a tick of the pacer each time.
    let (mut quick, begin) = (0, Instant::now());
    while quick < 10 {
        quick = if trip()? < max_wait / 2 { quick + 1 } else { 0 };
        expect(begin.elapsed() < BOUND, || format!("records go on waiting, {max_wait:?} each"))?;
    }
    let mut times = (0..records).map(|_| trip()).collect::<Result<Vec<_>, _>>()?;
    times.sort();
    let slow = times.iter().filter(|t| **t >= max_wait / 2).count();
    // Where they wait nearly all do; on threads one may have been kept from its core.
    let few = if cuda { 50 } else { 10 };
    expect(slow * few <= records, || format!("{slow} of {records} records waited for the pacer: {times:?}"))?;
    chain.runtime.stop(BOUND).map_err(text)?;
    chain.account(0)
}
