//! Power loss, simulated: whatever a crash leaves of what was not synced, every acknowledged record is there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use warpmail::journal::disk::Disk;
use warpmail::journal::{Batch, Log, LogOptions, Retention, SyncPolicy};

use crate::model::{Model, content, entries, read};
use crate::sim::{Content, Direct, Faults, Image, Lies, Note, Op, SimDisk};

/// When the test's own bookkeeping calls a record acknowledged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Acks {
    Honest,
    /// What was written is called durable before it is.
    BeforeSync,
}

#[derive(Debug, Default)]
struct Tally {
    images: u64,
    second: u64,
    torn: u64,
    no_log: u64,
    failed_batches: u64,
    direct: u64,
    finished: u64,
    violations: Vec<String>,
}

fn options(rng: &mut Rng) -> LogOptions {
    // Intervals that the speed of this machine does not decide on: a seed gives the same run everywhere.
    let sync = match rng.u8(..4) {
        0 => SyncPolicy::EveryBatch,
        1 => SyncPolicy::Never,
        2 => SyncPolicy::Every(Duration::ZERO),
        _ => SyncPolicy::Every(Duration::from_secs(3600)),
    };
    let max_bytes = rng.bool().then_some(20_000);
    // None written past the page cache, some, all; with few or many of them in a segment.
    let direct_from = [None, Some(0), Some(900)][rng.usize(..3)];
    let segment_bytes = [4096, 24 << 10][rng.usize(..2)];
    LogOptions { segment_bytes, sync, retention: Retention { max_bytes, max_age: None }, direct_from }
}

/// Appends, commits, closes and opens again, with failing operations if the disk has them.
fn work(disk: &SimDisk, options: &LogOptions, rng: &mut Rng, acks: Acks, tally: &mut Tally) {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    // Records of one length put what a failed write left exactly where the next record would begin.
    let (mut tag, longest) = (0, if rng.bool() { 600 } else { 0 });
    for _ in 0..rng.usize(1..5) {
        let (model, first) = (model_at(Model::default(), &disk.ops()), first_at(disk, &disk.ops()));
        let Ok((mut log, recovered)) = Log::open_on(shared.clone(), options.clone()) else { continue };
        match model.opened(&shared, &log, &recovered, first) {
            Ok(note) => disk.note(note),
            Err(violation) => return tally.violations.push(format!("without a crash: {violation}")),
        }
        let mut prepare = |rng: &mut Rng| {
            let contents: Vec<_> = (0..rng.usize(1..5)).map(|i| content(rng, tag + i as u64, longest)).collect();
            tag += contents.len() as u64;
            prepared(contents)
        };
        // What was made ready while the one before was written; what was refused comes again, behind others or not at all.
        let mut ready = VecDeque::new();
        for _ in 0..rng.usize(..12) {
            (0..rng.usize(..3)).for_each(|_| ready.push_back(prepare(rng)));
            let mut batch = ready.pop_front().unwrap_or_else(|| prepare(rng));
            let taken = append(disk, &mut log, &mut batch);
            if !taken && rng.bool() {
                ready.insert(rng.usize(..=ready.len()), batch);
            }
            tally.failed_batches += u64::from(!taken);
            if rng.u8(..4) == 0 {
                let _ = if rng.bool() { log.commit() } else { log.tick() };
            }
            let durable = if acks == Acks::BeforeSync { log.written() } else { log.durable() };
            disk.note(Note::Durable(durable));
        }
        tally.finished += u64::from(log.failed().is_some());
        if rng.bool()
            && let Ok(durable) = log.close()
        {
            disk.note(Note::Durable(durable));
        }
    }
}

type Prepared = (Vec<Content>, Batch<'static>);

fn prepared(contents: Vec<Content>) -> Prepared {
    let mut batch = Batch::new();
    entries(&contents).iter().for_each(|entry| batch.push_copy(entry).expect("within the limits"));
    (contents, batch)
}

fn append(disk: &SimDisk, log: &mut Log, (contents, batch): &mut Prepared) -> bool {
    disk.note(Note::Begin(contents.clone()));
    let taken = log.append_batch(batch).is_ok();
    if taken {
        disk.note(Note::Taken);
    }
    taken
}

fn model_at(mut model: Model, ops: &[Op]) -> Model {
    for op in ops {
        if let Op::Note(note) = op {
            model.note(note);
        }
    }
    model
}

fn first_at(disk: &SimDisk, ops: &[Op]) -> u64 {
    let firsts = disk.names(ops).into_iter().filter_map(|name| name.strip_suffix(".wmlog")?.parse().ok());
    firsts.min().unwrap_or(1)
}

/// Opens one image, checks it, appends to it; in a share of them crashes again on the way, up to `depth` times.
fn examine(image: Image, model: Model, first: u64, options: &LogOptions, rng: &mut Rng, depth: u32, tally: &mut Tally) {
    tally.images += 1;
    tally.no_log += u64::from(!image.keys().any(|name| name.ends_with(".wmlog")));
    let disk = SimDisk::new(image, Lies::default());
    match reopen(&disk, &model, first, options, rng) {
        Err(violation) => return tally.violations.push(violation),
        Ok(torn) => tally.torn += u64::from(torn),
    }
    if depth > 0 && rng.u8(..3) == 0 {
        tally.second += 1;
        crash(&disk, model, options, rng, depth - 1, tally);
    }
}

/// Opens the log, compares, goes on appending, reads again. Says whether a torn tail was cut.
fn reopen(disk: &SimDisk, model: &Model, first: u64, options: &LogOptions, rng: &mut Rng) -> Result<bool, String> {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let opened = Log::open_on(shared.clone(), options.clone());
    let (mut log, recovered) = opened.map_err(|e| format!("refused although a crash left it: {e}"))?;
    disk.note(model.opened(&shared, &log, &recovered, first)?);
    let mut batch = prepared((0..3).map(|i| content(rng, 1_000_000 + i, 900)).collect());
    if !append(disk, &mut log, &mut batch) {
        return Err("a record was not taken".into());
    }
    let durable = log.commit().map_err(|e| e.to_string())?;
    disk.note(Note::Durable(durable));
    let records = read(&shared, log.first(), recovered.last + 3)?;
    if records.ends_with(&batch.0) { Ok(recovered.torn.is_some()) } else { Err("appended records differ".into()) }
}

/// One power loss at a random moment of what was done to the disk.
fn crash(disk: &SimDisk, model: Model, options: &LogOptions, rng: &mut Rng, depth: u32, tally: &mut Tally) {
    let ops = disk.ops();
    let ops = &ops[..rng.usize(..=ops.len())];
    let keep = [0.0, 0.1, 0.5, 0.9, 1.0][rng.usize(..5)];
    let image = disk.image(ops, rng, keep);
    examine(image, model_at(model, ops), first_at(disk, ops), options, rng, depth, tally);
}

fn campaign(seed: u64, workloads: u64, images: u64, lies: Lies, acks: Acks) -> Tally {
    let mut tally = Tally::default();
    for w in 0..workloads {
        let mut rng = Rng::with_seed(seed + w);
        let options = options(&mut rng);
        let disk = SimDisk::new(Image::new(), lies);
        disk.set_direct(
            [Direct::Written, Direct::Written, Direct::NotOpened, Direct::NotWritten][(w / 2 % 4) as usize],
        );
        if w % 2 == 1 {
            disk.set_faults(Faults { write: 60, sync: 25, other: 40 }, seed + w);
        }
        work(&disk, &options, &mut rng, acks, &mut tally);
        tally.direct += disk.direct_writes();
        for _ in 0..images {
            crash(&disk, Model::default(), &options, &mut rng, 2, &mut tally);
        }
    }
    tally
}

pub(crate) fn every_acknowledged_record_survives() {
    let begin = Instant::now();
    const RUNS: u64 = 500;
    let tally = campaign(1, RUNS, 80, Lies::default(), Acks::Honest);
    println!(
        "power loss: {} images ({} of a crash after a crash, {} with a torn tail, {} without any segment) of {RUNS} runs with \
         {} failed batches, {} failed syncs and {} writes past the page cache; {:.1} s",
        tally.images,
        tally.second,
        tally.torn,
        tally.no_log,
        tally.failed_batches,
        tally.finished,
        tally.direct,
        begin.elapsed().as_secs_f64()
    );
    assert!(tally.violations.is_empty(), "{} violations, the first: {}", tally.violations.len(), tally.violations[0]);
    assert!(tally.images >= 10_000, "only {} images", tally.images);
    assert!(
        tally.second > 1000
            && tally.torn > 1000
            && tally.no_log > 10
            && tally.failed_batches > 50
            && tally.finished > 5
            && tally.direct > 1000
    );
}

pub(crate) fn planted_mistakes_are_found() {
    let plants: [(&str, Lies, Acks); 5] = [
        ("a sync that does nothing", Lies { sync_does_nothing: true, ..Lies::default() }, Acks::Honest),
        ("names never synced", Lies { name_sync_does_nothing: true, ..Lies::default() }, Acks::Honest),
        ("a truncate that is forgotten", Lies { truncate_is_forgotten: true, ..Lies::default() }, Acks::Honest),
        ("a bit flipped on its way", Lies { write_flips_a_bit: true, ..Lies::default() }, Acks::Honest),
        ("acknowledged before the sync", Lies::default(), Acks::BeforeSync),
    ];
    for (what, lies, acks) in plants {
        let tally = campaign(7, 30, 20, lies, acks);
        let first = tally.violations.first().cloned().unwrap_or_default();
        println!("planted: {what}: {} violations in {} images, such as: {first}", tally.violations.len(), tally.images);
        assert!(!tally.violations.is_empty(), "{what} went unnoticed");
    }
}
