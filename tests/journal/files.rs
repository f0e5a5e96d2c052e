//! Files and directories that are not what they should be.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use fastrand::Rng;
use warpmail::Error;
use warpmail::journal::format::SegmentHeader;
use warpmail::journal::{Cut, Log, LogOptions, Reader, SyncPolicy, stat};

use crate::damage::{log, segments};
use crate::model::{content, entries, read};
use crate::roundtrip::{folder, small};

fn refused(dir: impl AsRef<Path>, words: &[&str]) -> Error {
    let error = Log::open(dir, small(SyncPolicy::EveryBatch)).expect_err("must be refused");
    let text = error.to_string();
    words.iter().for_each(|word| assert!(text.contains(word), "{text:?} does not say {word:?}"));
    error
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
    header.version = 9;
    header.crc = header.own_crc();
    file.write_all_at(bytemuck::bytes_of(&header), 0).unwrap();
    let error = refused(dir.path(), &["has version 9"]);
    assert!(matches!(error, Error::Foreign { .. }));
    assert!(Reader::open(dir.path(), 0).unwrap_err().to_string().contains("version 9"));

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
    // Processes that are started meanwhile do not keep the lock.
    let starting = std::thread::spawn(|| (0..150).for_each(|_| drop(std::process::Command::new("true").status())));
    while !starting.is_finished() {
        drop(Log::open(dir.path(), small(SyncPolicy::EveryBatch)).unwrap());
    }
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
