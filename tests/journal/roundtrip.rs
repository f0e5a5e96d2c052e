//! What is appended is read back, whatever the lengths, batches, segments and times the log is opened again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;
use warpmail::Error;
use warpmail::journal::disk::{Disk, Folder};
use warpmail::journal::format::MARK;
use warpmail::journal::{Cut, Entry, Log, LogOptions, Reader, Retention, SyncPolicy, stat};

use crate::model::{content, entries, read};
use crate::sim::Content;

pub(crate) fn small(sync: SyncPolicy) -> LogOptions {
    LogOptions { segment_bytes: 8192, sync, ..LogOptions::default() }
}

pub(crate) fn folder(dir: &TempDir) -> Arc<dyn Disk> {
    Arc::new(Folder::new(dir.path()))
}

pub(crate) fn records_come_back() {
    let batch = prop::collection::vec((0..4096usize, prop::option::of(0..4096usize)), 0..6);
    let steps = prop::collection::vec((batch, 0..8u8), 1..30);
    let sync = prop_oneof![
        Just(SyncPolicy::EveryBatch),
        Just(SyncPolicy::Never),
        Just(SyncPolicy::Every(Duration::from_micros(100)))
    ];
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    runner
        .run(&(steps, sync, any::<u64>()), |(steps, sync, seed)| {
            let dir = tempfile::tempdir().unwrap();
            let mut rng = Rng::with_seed(seed);
            let mut all: Vec<Content> = Vec::new();
            let direct_from = [None, Some(0), Some(3000), Some(64 << 10)][rng.usize(..4)];
            let small = |sync| LogOptions { direct_from, ..small(sync) };
            let (mut log, _) = Log::open(dir.path(), small(sync)).unwrap();
            for (lens, then) in steps {
                let bytes = |len, rng: &mut Rng| std::iter::repeat_with(|| rng.u8(..)).take(len).collect::<Vec<u8>>();
                let batch: Vec<Content> = lens
                    .into_iter()
                    .map(|(p, t)| (rng.u32(..), rng.u16(..), bytes(p, &mut rng), bytes(t.unwrap_or(0), &mut rng)))
                    .collect();
                let first = all.len() as u64 + 1;
                all.extend(batch.iter().cloned());
                prop_assert_eq!(log.append(&entries(&batch)).unwrap(), first..=all.len() as u64);
                prop_assert_eq!(log.written(), all.len() as u64);
                match then {
                    0 => prop_assert_eq!(log.close().unwrap(), all.len() as u64),
                    1 => drop(log),
                    2 => {
                        prop_assert_eq!(log.commit().unwrap(), all.len() as u64);
                        continue;
                    }
                    _ => continue,
                }
                let (again, recovered) = Log::open(dir.path(), small(sync)).unwrap();
                prop_assert_eq!((recovered.last, recovered.torn, recovered.created), (all.len() as u64, None, false));
                log = again;
            }
            prop_assert_eq!(&read(&folder(&dir), 1, all.len() as u64).unwrap(), &all);
            let from = rng.u64(1..=all.len() as u64 + 1);
            let later: Vec<u64> = Reader::open(dir.path(), from).unwrap().map(|r| r.unwrap().sequence).collect();
            prop_assert_eq!(later, (from..=all.len() as u64).collect::<Vec<_>>());
            let seen = stat(dir.path()).unwrap();
            prop_assert_eq!((seen.first, seen.last), (1, all.len() as u64));
            prop_assert_eq!(seen.segments.iter().map(|s| s.records).sum::<u64>(), all.len() as u64);
            drop(log);
            let nothing_to_cut = Cut::plan(dir.path(), drop).unwrap().is_none();
            prop_assert!(nothing_to_cut);
            Ok(())
        })
        .unwrap();
}

/// Both ends can be moved to a thread of their own.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<(Log, Reader)>();
};

/// Long payloads and tensors are written from where they lie; a batch longer than a segment gets a segment of its own.
pub(crate) fn long_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::with_seed(3);
    let batch: Vec<Content> = [0, 1 << 20, (1 << 20) + 1, 5_000_003]
        .map(|n| (1, 2, vec![rng.u8(..); n / 2], std::iter::repeat_with(|| rng.u8(..)).take(n).collect()))
        .into();
    let (mut log, _) = Log::open(dir.path(), small(SyncPolicy::EveryBatch)).unwrap();
    log.append(&entries(&batch)).unwrap();
    log.append(&entries(&batch[..1])).unwrap();
    assert_eq!(log.stats().segments, 2);
    log.close().unwrap();
    assert_eq!(read(&folder(&dir), 1, 5).unwrap(), [&batch[..], &batch[..1]].concat());
}

/// A reader beside a writer sees every record once, and none that is half written.
pub(crate) fn reader_beside_writer() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(dir.path(), small(SyncPolicy::Never)).unwrap();
    let path = dir.path().to_path_buf();
    let reading = std::thread::spawn(move || {
        let mut reader = Reader::open(path, 0).unwrap();
        let until = SystemTime::now() + Duration::from_secs(30);
        let mut next = 1;
        while next <= 3000 && SystemTime::now() < until {
            let Some(record) = reader.next() else { continue };
            let record = record.unwrap();
            assert_eq!((record.sequence, record.payload), (next, vec![next as u8; next as usize % 700]));
            next += 1;
        }
        next - 1
    });
    for n in 1..=3000u64 {
        log.append(&[Entry { payload: &vec![n as u8; n as usize % 700], ..Entry::default() }]).unwrap();
        if n % 64 == 0 {
            log.commit().unwrap();
        }
    }
    assert_eq!(reading.join().unwrap(), 3000);
}

pub(crate) fn retention_keeps_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { max_bytes: Some(40_000), max_age: None };
    let options = LogOptions { retention, ..small(SyncPolicy::EveryBatch) };
    let (mut log, _) = Log::open(dir.path(), options.clone()).unwrap();
    let mut rng = Rng::with_seed(5);
    let all: Vec<Content> = (0..300).map(|i| content(&mut rng, i, 1000)).collect();
    for one in &all {
        log.append(&entries(std::slice::from_ref(one))).unwrap();
        assert!(log.stats().bytes <= 40_000 + 8192);
    }
    let (stats, first) = (log.stats(), log.first());
    assert!(stats.removed_segments > 5 && stats.removed_bytes > 40_000 && first > 100 && first < 290, "{stats:?}");
    assert!(stats.bytes > 40_000 - 8192, "too much was removed: {stats:?}");
    assert_eq!(stat(dir.path()).unwrap().first, first);
    assert_eq!(read(&folder(&dir), first, 300).unwrap(), all[first as usize - 1..]);
    let gone = Reader::open(dir.path(), first - 1).unwrap_err().to_string();
    assert!(gone.contains(&format!("oldest kept is {first}")), "{gone}");
    drop(log);

    let retention = Retention { max_bytes: None, max_age: Some(Duration::from_secs(60)) };
    let (mut log, recovered) = Log::open(dir.path(), LogOptions { retention, ..options }).unwrap();
    assert_eq!((recovered.first, recovered.last), (first, 300));
    assert_eq!(log.retain(SystemTime::now()).unwrap(), 0);
    assert!(log.retain(SystemTime::now() + Duration::from_secs(61)).unwrap() > 0);
    assert_eq!(log.stats().segments, 1);
    log.append(&entries(&all[..1])).unwrap();
    assert_eq!(log.durable(), 301);
}

pub(crate) fn policies_sync_when_they_say() {
    let one = [Entry { payload: b"x", ..Entry::default() }];
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(dir.path(), small(SyncPolicy::Never)).unwrap();
    log.append(&one).unwrap();
    assert_eq!((log.durable(), log.tick().unwrap(), log.due_in()), (0, 0, None));
    assert_eq!(log.commit().unwrap(), 1);
    drop(log);
    let (mut log, recovered) = Log::open(dir.path(), small(SyncPolicy::Every(Duration::from_millis(50)))).unwrap();
    assert_eq!(recovered.last, 1);
    log.append(&one).unwrap();
    if log.durable() == 1 {
        assert!(log.due_in().unwrap() <= Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!((log.tick().unwrap(), log.due_in()), (2, None));
    assert!(log.append(&[]).unwrap().is_empty());
    let error = log.append(&[Entry { flags: MARK, ..one[0] }]).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let error = Log::open(dir.path(), LogOptions { segment_bytes: 1, ..LogOptions::default() }).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}
