//! Bad input: each is refused by name, or is a torn end behind the last acknowledged record. Never a wrong record.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use fastrand::Rng;
use tempfile::TempDir;
use warpmail::Error;
use warpmail::journal::disk::Disk;
use warpmail::journal::{Cut, Log, LogOptions, Reader, SyncPolicy, stat};

use crate::model::{content, entries, read};
use crate::roundtrip::{folder, small};
use crate::sim::{Content, Image, Lies, SimDisk};

/// A log of some records of some hundred bytes each, every one its own batch.
pub(crate) fn log(records: u64, options: LogOptions, close: bool) -> (TempDir, Vec<Content>) {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::with_seed(11);
    let all: Vec<Content> = (0..records).map(|i| content(&mut rng, i, 300)).collect();
    let (mut log, _) = Log::open(dir.path(), options).unwrap();
    for one in &all {
        log.append(&entries(std::slice::from_ref(one))).unwrap();
    }
    if close {
        log.close().unwrap();
    }
    (dir, all)
}

pub(crate) fn segments(dir: &TempDir) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "wmlog"));
    files.sort();
    files
}

fn image(dir: &TempDir) -> Image {
    let name = |f: &PathBuf| f.file_name().unwrap().to_string_lossy().into_owned();
    segments(dir).iter().map(|f| (name(f), std::fs::read(f).unwrap())).collect()
}

/// Opens a damaged log. Whatever it does, no wrong record may come out, and at least `acknowledged` unless it says so.
fn examine(image: Image, all: &[Content], acknowledged: usize, what: &str) -> bool {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(image, Lies::default()));
    let mut good = 0;
    let mut told = false;
    match Reader::open_on(disk.clone(), 0) {
        Err(_) => told = true,
        Ok(reader) => {
            for record in reader {
                match record {
                    Ok(r) => {
                        assert_eq!(r.sequence, good as u64 + 1, "{what}");
                        assert_eq!((r.mailbox, r.msg_type, r.payload, r.tensor), all[good], "{what}");
                        good += 1;
                    }
                    Err(_) => told = true,
                }
            }
        }
    }
    assert!(told || good >= acknowledged, "{what}: {good} records and no error");
    match Log::open_on(disk.clone(), small(SyncPolicy::EveryBatch)) {
        Err(e) => assert!(told && matches!(e, Error::Damaged { .. } | Error::Foreign { .. }), "{what}: {e}"),
        Ok((_, recovered)) => {
            assert!(!told, "{what}: the reader tells damage and the writer goes on over it");
            assert!(recovered.last as usize >= acknowledged, "{what}: {recovered:?}");
            assert_eq!(read(&disk, 1, recovered.last).unwrap(), all[..recovered.last as usize], "{what}");
        }
    }
    told
}

/// A flipped bit anywhere: in a log that was closed it is told; in one that was not, the last record may go.
pub(crate) fn every_flipped_bit() {
    for close in [true, false] {
        let (dir, all) = log(6, small(SyncPolicy::EveryBatch), close);
        let clean = image(&dir);
        let (name, bytes) = clean.iter().next().unwrap();
        let end = stat(dir.path()).unwrap().segments[0].bytes as usize;
        let acknowledged = if close { all.len() } else { all.len() - 1 };
        let mut told = 0;
        for at in 0..bytes.len().min(end + 200) {
            let mut bad = clean.clone();
            bad.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
            told +=
                u64::from(examine(bad, &all, acknowledged, &format!("bit {} of byte {at}, closed: {close}", at % 8)));
        }
        println!("flipped bits: {told} told, {} bytes of records; closed: {close}", end);
    }
}

/// A file cut at any length. Behind it nothing can say what is missing, so at least a prefix must come out; a sealed
/// segment that is cut is told.
pub(crate) fn every_truncation() {
    let (dir, all) = log(6, small(SyncPolicy::EveryBatch), true);
    let clean = image(&dir);
    let (name, bytes) = clean.iter().next().unwrap();
    for len in 0..bytes.len() {
        let mut bad = clean.clone();
        bad.get_mut(name).unwrap().truncate(len);
        let told = examine(bad, &all, 0, &format!("cut at {len}"));
        assert!(told || len == 0 || len >= 64, "a header cut at {len} went unnoticed");
    }
    let options = LogOptions { segment_bytes: 4096, ..small(SyncPolicy::EveryBatch) };
    let (dir, all) = log(40, options, true);
    let clean = image(&dir);
    let (name, bytes) = clean.iter().nth(1).unwrap();
    for len in 0..bytes.len() {
        let mut bad = clean.clone();
        bad.get_mut(name).unwrap().truncate(len);
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(bad, Lies::default()));
        let error = read(&disk, 1, all.len() as u64).expect_err("a sealed segment that is cut");
        assert!(error.contains("damaged"), "{error}");
    }
}

/// Records of another log, or copies of this one's, are payload like any other, also where a torn record shows them.
pub(crate) fn records_inside_payloads() {
    let (other, _) = log(40, LogOptions::default(), true);
    let (dir, all) = log(5, small(SyncPolicy::EveryBatch), false);
    for source in [&other, &dir] {
        let end = stat(source.path()).unwrap().segments[0].bytes as usize;
        let payload = std::fs::read(&segments(source)[0]).unwrap()[..end].to_vec();
        let (mut log, recovered) = Log::open(dir.path(), LogOptions::default()).unwrap();
        assert_eq!(recovered.last, 5);
        log.append(&entries(&[(0, 0, payload, vec![])])).unwrap();
        drop(log);
        let seen = stat(dir.path()).unwrap().segments[0].clone();
        // Its header goes: the payload behind it is looked through for records.
        let at = seen.bytes - end as u64 - 72;
        let file = OpenOptions::new().write(true).open(&segments(&dir)[0]).unwrap();
        (at..at + 16).for_each(|at| file.write_all_at(&[0xEE], at).unwrap());
        let (_, recovered) = Log::open(dir.path(), LogOptions::default()).unwrap();
        assert_eq!((recovered.last, recovered.torn.map(|t| t.sequence)), (5, Some(6)));
        assert_eq!(read(&folder(&dir), 1, 5).unwrap(), all);
    }
}

/// Damage ends what is read at that place, and not what is read behind it: a reader may begin with any later segment.
pub(crate) fn what_is_behind_damage_can_be_read() {
    let options = LogOptions { segment_bytes: 4096, ..small(SyncPolicy::EveryBatch) };
    let (dir, all) = log(80, options, true);
    let seen = stat(dir.path()).unwrap().segments;
    assert!(seen.len() > 4);
    let file = OpenOptions::new().write(true).open(&segments(&dir)[1]).unwrap();
    file.write_all_at(&[0xEE; 40], 700).unwrap();
    let mut from_the_beginning = Reader::open(dir.path(), 0).unwrap();
    let good = from_the_beginning.by_ref().take_while(Result::is_ok).count() as u64;
    assert!(good >= seen[1].first - 1 && good < seen[2].first - 1, "{good}");
    for later in &seen[2..] {
        let records = Reader::open(dir.path(), later.first).unwrap().map(Result::unwrap);
        let records: Vec<Content> = records.map(|r| (r.mailbox, r.msg_type, r.payload, r.tensor)).collect();
        assert_eq!(records, all[later.first as usize - 1..]);
    }
    // What they are called can be asked of the damaged log.
    assert_eq!(stat(dir.path()).unwrap().segments, seen);
}

/// The damaged end is given up on a person's word, and the log goes on from there.
pub(crate) fn a_cut_makes_it_whole() {
    let options = LogOptions { segment_bytes: 4096, ..small(SyncPolicy::EveryBatch) };
    for (nth, at) in [(0, 700), (1, 1500), (2, 40)] {
        let (dir, all) = log(80, options.clone(), false);
        let files = segments(&dir);
        assert!(files.len() > 3);
        let file = OpenOptions::new().read(true).write(true).open(&files[nth]).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
        let good = Reader::open(dir.path(), 0).unwrap().take_while(Result::is_ok).count();
        let cut = Cut::plan(dir.path(), |_| {}).unwrap().unwrap();
        assert_eq!((cut.last as usize, cut.cut.is_some()), (good, nth != 2));
        assert_eq!(cut.removed.len(), files.len() - nth - usize::from(nth != 2));
        cut.apply().unwrap();
        assert!(Cut::plan(dir.path(), |_| {}).unwrap().is_none());
        assert_eq!(read(&folder(&dir), 1, good as u64).unwrap(), all[..good]);
        let (mut log, recovered) = Log::open(dir.path(), options.clone()).unwrap();
        assert_eq!((recovered.last as usize, recovered.torn), (good, None));
        assert_eq!(*log.append(&entries(&all[..1])).unwrap().start() as usize, good + 1);
    }
    let (dir, _) = log(3, options, false);
    OpenOptions::new().write(true).open(&segments(&dir)[0]).unwrap().write_all_at(&[1], 40).unwrap();
    let error = Cut::plan(dir.path(), |_| {}).unwrap_err();
    assert!(error.to_string().contains("nothing of it would be left"), "{error}");
}
