//! Bad input: each is refused by name, or is a torn end behind the last acknowledged record. Never a wrong record.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fastrand::Rng;
use tempfile::TempDir;
use warpmail::Error;
use warpmail::journal::disk::Disk;
use warpmail::journal::format::SegmentHeader;
use warpmail::journal::{Cut, Log, LogOptions, Reader, SyncPolicy, stat};

use crate::model::{content, entries, read};
use crate::roundtrip::{folder, small};
use crate::sim::{Content, Image, Lies, SimDisk};

/// A log of some records of some hundred bytes each, every one its own batch.
fn log(records: u64, options: LogOptions, close: bool) -> (TempDir, Vec<Content>) {
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

fn segments(dir: &TempDir) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "wmlog"));
    files.sort();
    files
}

fn refused(dir: impl AsRef<Path>, words: &[&str]) -> Error {
    let error = Log::open(dir, small(SyncPolicy::EveryBatch)).expect_err("must be refused");
    let text = error.to_string();
    words.iter().for_each(|word| assert!(text.contains(word), "{text:?} does not say {word:?}"));
    error
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

pub(crate) fn segments_in_disorder() {
    let options = LogOptions { segment_bytes: 4096, ..small(SyncPolicy::EveryBatch) };
    let fresh = || log(60, options.clone(), false).0;
    // Two change places.
    let dir = fresh();
    let files = segments(&dir);
    assert!(files.len() > 4);
    let aside = dir.path().join("aside");
    std::fs::rename(&files[1], &aside).unwrap();
    std::fs::rename(&files[2], &files[1]).unwrap();
    std::fs::rename(&aside, &files[2]).unwrap();
    refused(dir.path(), &[&files[1].display().to_string(), "a segment that begins with"]);
    // One is missing.
    let dir = fresh();
    let files = segments(&dir);
    std::fs::remove_file(&files[2]).unwrap();
    refused(dir.path(), &["the segment before it should be", &files[2].file_name().unwrap().to_string_lossy()]);
    assert!(Reader::open(dir.path(), 0).unwrap().any(|r| matches!(r, Err(Error::Damaged { .. }))));
    // One comes from another log.
    let (dir, other) = (fresh(), fresh());
    std::fs::copy(&segments(&other)[2], &segments(&dir)[2]).unwrap();
    refused(dir.path(), &["belongs to another log"]);
    // An empty file far ahead.
    let dir = fresh();
    File::create(dir.path().join("00000000000000009999.wmlog")).unwrap();
    let error = refused(dir.path(), &["a later segment says that this was durable"]);
    assert!(matches!(error, Error::Damaged { .. }));
}

pub(crate) fn files_that_are_something_else() {
    let put = |bytes: &[u8], first: u64| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{first:020}.wmlog")), bytes).unwrap();
        dir
    };
    assert!(matches!(refused(put(b"hello", 1).path(), &["does not begin as a segment"]), Error::Foreign { .. }));
    assert!(matches!(refused(put(&[7; 5000], 1).path(), &["does not begin as a segment"]), Error::Foreign { .. }));
    assert!(matches!(refused(put(b"", 0).path(), &["no record has the sequence"]), Error::Foreign { .. }));
    assert!(matches!(refused(put(b"", u64::MAX).path(), &["no record has the sequence"]), Error::Foreign { .. }));
    refused(put(b"", 5).path(), &["its header is missing"]);
    refused(put(b"wmjournl\x01\0", 1).path(), &["cut off after 10 bytes"]);

    let (dir, _) = log(3, small(SyncPolicy::EveryBatch), false);
    let file = OpenOptions::new().read(true).write(true).open(&segments(&dir)[0]).unwrap();
    let mut bytes = [0; 64];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let mut header: SegmentHeader = bytemuck::pod_read_unaligned(&bytes);
    header.version = 2;
    header.crc = header.own_crc();
    file.write_all_at(bytemuck::bytes_of(&header), 0).unwrap();
    let error = refused(dir.path(), &["has version 2"]);
    assert!(matches!(error, Error::Foreign { .. }));
    assert!(Reader::open(dir.path(), 0).unwrap_err().to_string().contains("version 2"));

    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("00000000000000000001.wmlog")).unwrap();
    refused(dir.path(), &["00000000000000000001.wmlog"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    refused(file.path(), &[&file.path().display().to_string()]);
}

/// What a crash leaves at the beginning of a segment is finished, and files of other names are left alone.
pub(crate) fn empty_and_sparse_files() {
    for bytes in [vec![], vec![0; 30], vec![0; 8192]] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("00000000000000000001.wmlog"), &bytes).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "left alone").unwrap();
        assert_eq!(Reader::open(dir.path(), 0).unwrap().count(), 0);
        let (mut log, recovered) = Log::open(dir.path(), small(SyncPolicy::EveryBatch)).unwrap();
        assert_eq!((recovered.last, recovered.created), (0, false));
        assert_eq!(log.append(&entries(&[content(&mut Rng::with_seed(1), 1, 100)])).unwrap(), 1..=1);
        assert!(dir.path().join("notes.txt").exists());
    }
    // A file far longer than its records is no reason to read it all.
    let (dir, all) = log(5, small(SyncPolicy::EveryBatch), false);
    OpenOptions::new().write(true).open(&segments(&dir)[0]).unwrap().set_len(1 << 40).unwrap();
    let begin = Instant::now();
    assert_eq!(read(&folder(&dir), 1, 5).unwrap(), all);
    let (_, recovered) = Log::open(dir.path(), small(SyncPolicy::EveryBatch)).unwrap();
    assert_eq!((recovered.last, recovered.torn), (5, None));
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());

    let empty = tempfile::tempdir().unwrap();
    for error in [Reader::open(empty.path(), 0).err(), stat(empty.path()).err(), Cut::plan(empty.path(), |_| {}).err()]
    {
        assert!(error.unwrap().to_string().contains("holds no log"));
    }
    let missing = empty.path().join("missing");
    assert!(Reader::open(&missing, 0).unwrap_err().to_string().contains("missing"));
    assert!(!missing.exists());
}

pub(crate) fn one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), small(SyncPolicy::EveryBatch)).unwrap();
    let error = refused(dir.path(), &["open for writing already", &dir.path().display().to_string()]);
    assert!(matches!(error, Error::Locked { .. }));
    assert!(matches!(Cut::plan(dir.path(), |_| {}).unwrap_err(), Error::Locked { .. }));
    assert_eq!(Reader::open(dir.path(), 0).unwrap().count(), 0);
    drop(log);
    Log::open(dir.path(), small(SyncPolicy::EveryBatch)).unwrap();
}

pub(crate) fn a_directory_that_vanishes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(dir.path(), small(SyncPolicy::EveryBatch)).unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    let payload = content(&mut Rng::with_seed(2), 1, 3000);
    let error = (0..20).find_map(|_| log.append(&entries(std::slice::from_ref(&payload))).err()).unwrap();
    assert!(error.to_string().contains("was it moved or removed"), "{error}");
    assert!(log.failed().is_none());
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
