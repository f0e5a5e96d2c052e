//! `twin.pair`: verified 256-byte records from one host thread to another, over a mailbox and over two peers.
//!
//! The three take turns in short rounds, so that a disturbance of the machine meets all of them. The producer makes every
//! word of a record from its number, the consumer checks every word: that work is the same for all, and is reported as the
//! bench's own overhead.

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use indicatif::{ProgressBar, ProgressStyle};
use warpmail::{Device, Error, MailboxOptions, direct_mailbox};

use super::median;
use crate::figures::Figures;

/// Words of a record: a 256-byte slot less its own word. The peers carry 256 bytes whole.
const WORDS: usize = 31;
type Record = [u64; WORDS];
type PeerRecord = [u64; 32];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Records sent over each of the three, in all rounds together
    #[arg(long, default_value_t = 100_000_000)]
    records: u64,
    /// Rounds that the records are split into
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Slots of each ring
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    slots: u32,
}

fn fill(words: &mut [u64], number: u64) {
    let base = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for (i, w) in words.iter_mut().enumerate() {
        *w = base.wrapping_add((i as u64) << 57);
    }
}

/// Zero if every word is what `number` says.
fn differs(words: &[u64], number: u64) -> u64 {
    let base = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    words.iter().enumerate().fold(0, |bad, (i, &w)| bad | (w ^ base.wrapping_add((i as u64) << 57)))
}

/// Runs both ends on a thread each; nanoseconds until the consumer has all records.
fn round(
    first: u64,
    records: u64,
    mut produce: impl FnMut(u64) + Send,
    mut consume: impl FnMut(u64) -> u64 + Send,
) -> Result<f64, String> {
    let range = first..first + records;
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let producing = range.clone();
        scope.spawn(move || producing.for_each(&mut produce));
        let consumer = scope.spawn(move || range.fold(0, |bad, n| bad | consume(n)));
        match consumer.join() {
            Ok(0) => Ok(begin.elapsed().as_nanos() as f64),
            Ok(_) => Err("a record was lost, reordered or torn".into()),
            Err(_) => Err("the consumer's thread panicked".into()),
        }
    })
}

struct Ours {
    sender: warpmail::Sender,
    receiver: warpmail::Receiver,
}

impl Ours {
    fn round(&mut self, first: u64, records: u64) -> Result<f64, String> {
        let (sender, receiver) = (&mut self.sender, &mut self.receiver);
        let mut out: Record = [0; WORDS];
        let mut into: Record = [0; WORDS];
        // Each end owns its buffer: side by side in this frame they would share a cache line.
        let produce = move |n| {
            fill(&mut out, n);
            while let Err(Error::Full { .. }) = sender.try_push(1, bytemuck::cast_slice(&out)) {
                spin_loop();
            }
        };
        let consume = move |n| {
            loop {
                match receiver.try_pop(bytemuck::cast_slice_mut(&mut into)) {
                    Ok(Some(r)) => break differs(&into, n) | (r.len as u64 ^ (8 * WORDS as u64)),
                    Ok(None) => spin_loop(),
                    Err(_) => break 1,
                }
            }
        };
        round(first, records, produce, consume)
    }
}

fn rtrb_round(slots: u32, first: u64, records: u64) -> Result<f64, String> {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<PeerRecord>::new(slots as usize);
    let produce = move |n| {
        let mut record = [0; 32];
        fill(&mut record, n);
        while let Err(rtrb::PushError::Full(back)) = producer.push(record) {
            record = back;
            spin_loop();
        }
    };
    let consume = move |n| {
        loop {
            match consumer.pop() {
                Ok(record) => break differs(&record, n),
                Err(_) => spin_loop(),
            }
        }
    };
    round(first, records, produce, consume)
}

fn crossbeam_round(slots: u32, first: u64, records: u64) -> Result<f64, String> {
    let queue = Arc::new(ArrayQueue::<PeerRecord>::new(slots as usize));
    let producing = queue.clone();
    let produce = move |n| {
        let mut record = [0; 32];
        fill(&mut record, n);
        while let Err(back) = producing.push(record) {
            record = back;
            spin_loop();
        }
    };
    let consume = move |n| {
        loop {
            match queue.pop() {
                Some(record) => break differs(&record, n),
                None => spin_loop(),
            }
        }
    };
    round(first, records, produce, consume)
}

/// Nanoseconds that making and checking one record takes.
fn own_overhead() -> f64 {
    let mut record = [0; 32];
    let begin = Instant::now();
    for n in 0..1_000_000 {
        fill(black_box(&mut record), n);
        black_box(differs(black_box(&record), n));
    }
    begin.elapsed().as_nanos() as f64 / 1e6
}

pub(crate) fn execute(args: &Args) -> Result<Figures, String> {
    let device = Device::twin();
    let options = MailboxOptions::slots(args.slots.next_power_of_two());
    let (sender, receiver) = direct_mailbox(&device, options).map_err(|e| e.to_string())?;
    let mut ours = Ours { sender, receiver };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} rounds, {eta} left").map_err(|e| e.to_string())?;
    let bar = ProgressBar::new(args.rounds).with_style(style);
    let per_round = (args.records / args.rounds).max(1);
    let slots = args.slots.next_power_of_two();
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for r in 0..args.rounds {
        let first = r * per_round;
        times[0].push(ours.round(first, per_round)?);
        times[1].push(rtrb_round(slots, first, per_round)?);
        times[2].push(crossbeam_round(slots, first, per_round)?);
        bar.inc(1);
    }
    bar.finish_and_clear();

    let rate = |times: &mut Vec<f64>| per_round as f64 * 1e3 / median(times);
    let [ours, rtrb, crossbeam] = [0, 1, 2].map(|i| rate(&mut times[i]));
    println!(
        "{} records of 256 bytes over each, {} rounds, {slots} slots, every word verified; medians of the rounds.",
        per_round * args.rounds,
        args.rounds
    );
    println!("The bench's own work, making and checking a record: {:.1} ns.", own_overhead());
    let mut figures = Figures::new(device.info());
    figures.add("twin.pair", ours, "M records/s", Some(rtrb.max(crossbeam)));
    figures.add("twin.pair.rtrb", rtrb, "M records/s", None);
    figures.add("twin.pair.crossbeam", crossbeam, "M records/s", None);
    Ok(figures)
}
