//! The benches of a GPU where there is none: the same rows between threads of the host. They say "twin" in every row: they
//! measure this machine's cores and the protocol's source, never a GPU.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use indicatif::ProgressBar;
use warpmail::{
    Builder, Device, Error, HandlerImage, MailboxOptions, Mode, Receiver, Sender, SpinBudget, builtin, direct_mailbox,
};

use super::{clock_ns, median, percentiles, text};
use crate::figures::Figures;

const BOUND: Duration = Duration::from_secs(30);
const WORDS: usize = 31;
const BYTES: usize = WORDS * 8;
type Record = [u64; WORDS];

fn record(n: u64) -> Record {
    std::array::from_fn(|i| (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ ((i as u64) << 57))
}

/// Spins until `attempt` gives something, or says that it did not within the bound.
fn spin<T>(what: &str, mut attempt: impl FnMut() -> Result<Option<T>, String>) -> Result<T, String> {
    let begin = Instant::now();
    loop {
        for _ in 0..1 << 12 {
            if let Some(value) = attempt()? {
                return Ok(value);
            }
            std::hint::spin_loop();
        }
        if begin.elapsed() > BOUND {
            return Err(format!("{what} did not happen within {BOUND:?}"));
        }
        std::thread::yield_now(); // fewer cores than threads
    }
}

fn push(sender: &mut Sender, payload: &Record) -> Result<(), String> {
    spin("a free slot", || match sender.try_push(1, bytemuck::cast_slice(payload)) {
        Ok(()) => Ok(Some(())),
        Err(Error::Full { .. }) => Ok(None),
        Err(e) => Err(text(e)),
    })
}

fn pop(receiver: &mut Receiver, into: &mut Record) -> Result<(), String> {
    spin("a record", || Ok(receiver.try_pop(bytemuck::cast_slice_mut(into)).map_err(text)?.map(|_| ())))
}

/// Times `rounds` of `ping` against a thread that runs `pong` as often; nanoseconds, the first tenth left out.
fn round_trips(
    rounds: u64,
    mut ping: impl FnMut(u64) -> Result<(), String>,
    mut pong: impl FnMut(u64) -> Result<(), String> + Send,
) -> Result<Vec<f64>, String> {
    std::thread::scope(|scope| {
        let other = scope.spawn(move || (0..rounds).try_for_each(&mut pong));
        let mut times = Vec::with_capacity(rounds as usize);
        for n in 0..rounds {
            let begin = Instant::now();
            ping(n)?;
            times.push(begin.elapsed().as_nanos() as f64);
        }
        other.join().map_err(|_| "the other thread panicked".to_string())??;
        Ok(times.split_off(rounds as usize / 10))
    })
}

fn raw_flag(rounds: u64) -> Result<Vec<f64>, String> {
    let flags = [CachePadded::new(AtomicU64::new(0)), CachePadded::new(AtomicU64::new(0))];
    let wait = |flag: &AtomicU64, n| spin("the flag", || Ok((flag.load(Ordering::Relaxed) == n + 1).then_some(())));
    let ping = |n| {
        flags[0].store(n + 1, Ordering::Relaxed);
        wait(&flags[1], n)
    };
    let pong = |n| {
        wait(&flags[0], n)?;
        flags[1].store(n + 1, Ordering::Relaxed);
        Ok(())
    };
    round_trips(rounds, ping, pong)
}

fn direct(device: &Device, rounds: u64) -> Result<Vec<f64>, String> {
    let (mut to_pong, mut from_ping) = direct_mailbox(device, MailboxOptions::default()).map_err(text)?;
    let (mut to_ping, mut from_pong) = direct_mailbox(device, MailboxOptions::default()).map_err(text)?;
    let (mut mine, mut theirs) = ([0; WORDS], [0; WORDS]);
    let ping = |n| {
        push(&mut to_pong, &record(n))?;
        pop(&mut from_pong, &mut mine)?;
        if mine == record(n) { Ok(()) } else { Err(format!("record {n} came back changed")) }
    };
    let pong = |_| {
        pop(&mut from_ping, &mut theirs)?;
        push(&mut to_ping, &theirs)
    };
    round_trips(rounds, ping, pong)
}

/// Through the arbiter, whose table has `requests` mailboxes from the host; only the last is used.
fn grants(device: &Device, requests: u32, servers: Option<u32>, rounds: u64) -> Result<Vec<f64>, String> {
    let mut graph = Builder::new(device.clone());
    graph.mode(Mode::Device);
    let usual = graph.current_budget().clone();
    let servers = servers.unwrap_or(usual.servers);
    graph.budget(SpinBudget { servers, idle_spin: None, ..usual }).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let per_relay = requests.min(8);
    let mut last = None;
    for r in 0..requests / per_relay {
        let relay = graph.resident(&format!("relay{r}"), builtin::RELAY).map_err(text)?;
        for _ in 0..per_relay {
            last = Some((graph.mailbox(host, relay, MailboxOptions::slots(8)).map_err(text)?, relay));
        }
    }
    let (there, relay) = last.ok_or("no mailbox")?;
    let back = graph.mailbox(relay, host, MailboxOptions::slots(8)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    runtime.start().map_err(text)?;
    let mut mine = [0; WORDS];
    let ping = |n| {
        push(&mut sender, &record(n))?;
        pop(&mut receiver, &mut mine)
    };
    let times = round_trips(rounds, ping, |_| Ok(()));
    runtime.stop(BOUND).map_err(text)?;
    times
}

/// `hop.*` and `grant.*` between threads.
pub(crate) fn hop(rounds: u32, servers: Option<u32>, with_grants: bool) -> Result<Figures, String> {
    let device = Device::twin();
    let rounds = u64::from(rounds.max(100));
    let mut figures = Figures::new(device.info());
    println!("The twin: threads of this machine, not a GPU. Reading the clock adds {:.0} ns.", clock_ns());
    let bar = ProgressBar::new(if with_grants { 6 } else { 2 });
    let mut raw = f64::NAN;
    for (id, run) in
        [("hop.raw_flag", None), ("hop.ordered", Some(direct as fn(&Device, u64) -> Result<Vec<f64>, String>))]
    {
        let samples = match run {
            None => raw_flag(rounds)?,
            Some(run) => run(&device, rounds)?,
        };
        let one_way: Vec<f64> = samples.iter().map(|s| s / 2.0).collect();
        let value = median(&mut one_way.clone());
        raw = if run.is_none() { value } else { raw };
        let percentiles = percentiles(&one_way)?;
        figures.add(id, value, "ns", Some(raw)).spread(percentiles);
        bar.inc(1);
    }
    for requests in [1, 64, 512, 4088].into_iter().filter(|_| with_grants) {
        let samples = grants(&device, requests, servers, rounds)?;
        let spread = percentiles(&samples)?;
        let id = if requests > 512 { 4096 } else { requests };
        figures.add(&format!("grant.{id}"), spread[0], "ns", Some(2.0 * raw)).spread(spread);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(figures)
}

/// Records per nanosecond from one thread to another, `batch` a call; every word of every record is checked.
fn pair(device: &Device, records: u64, batch: usize) -> Result<f64, String> {
    let (mut sender, mut receiver) = direct_mailbox(device, MailboxOptions::slots(1024)).map_err(text)?;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let producer = scope.spawn(move || {
            let mut buffer = vec![[0u64; WORDS]; batch];
            let mut sent = 0;
            while sent < records {
                let n = batch.min((records - sent) as usize);
                (0..n).for_each(|i| buffer[i] = record(sent + i as u64));
                let mut from = 0;
                while from < n {
                    from += spin("a free slot", || {
                        let n =
                            sender.try_push_batch(1, bytemuck::cast_slice(&buffer[from..n]), BYTES).map_err(text)?;
                        Ok((n > 0).then_some(n))
                    })?;
                }
                sent += n as u64;
            }
            Ok::<(), String>(())
        });
        let mut buffer = vec![[0u64; WORDS]; batch];
        let mut seen = 0;
        while seen < records {
            let n = spin("a record", || {
                let n =
                    receiver.try_pop_batch(bytemuck::cast_slice_mut(&mut buffer), BYTES, |_, _| ()).map_err(text)?;
                Ok((n > 0).then_some(n))
            })?;
            if let Some(i) = (0..n).find(|&i| buffer[i] != record(seen + i as u64)) {
                return Err(format!("record {} was wrong", seen + i as u64));
            }
            seen += n as u64;
        }
        producer.join().map_err(|_| "the producer panicked".to_string())??;
        Ok(records as f64 / begin.elapsed().as_nanos() as f64)
    })
}

/// The floor: one thread makes records, copies each, and checks the copy.
fn copy(records: u64) -> Result<f64, String> {
    let (mut ring, begin) = (vec![[0u64; WORDS]; 1024], Instant::now());
    for n in 0..records {
        let slot = &mut ring[n as usize % 1024];
        slot.copy_from_slice(std::hint::black_box(&record(n)));
        if *std::hint::black_box(slot) != record(n) {
            return Err(format!("record {n} was wrong"));
        }
    }
    Ok(records as f64 / begin.elapsed().as_nanos() as f64)
}

/// `throughput.pair*` between two threads.
pub(crate) fn throughput(rounds: u32) -> Result<Figures, String> {
    const RECORDS: u64 = 1_000_000;
    let device = Device::twin();
    let mut figures = Figures::new(device.info());
    println!(
        "The twin: threads of this machine, not a GPU. Floor: one thread that makes, copies and checks the records."
    );
    let repeat = |run: &dyn Fn() -> Result<f64, String>| {
        let rates: Result<Vec<f64>, String> = (0..rounds).map(|_| run()).collect();
        rates.map(|mut r| median(&mut r) * 1e3)
    };
    let floor = repeat(&|| copy(RECORDS))?;
    for (id, batch) in [("throughput.pair", 32), ("throughput.pair.unbatched", 1)] {
        let rate = repeat(&|| pair(&device, RECORDS, batch))?;
        figures.add(id, rate, "M records/s", Some(floor));
    }
    figures.add("throughput.baseline.copy", floor, "M records/s", None);
    Ok(figures)
}
