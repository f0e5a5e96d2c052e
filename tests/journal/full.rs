//! A full disk: nothing of a batch that does not fit is acknowledged or read, and when there is space the log goes on.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fastrand::Rng;
use warpmail::Error;
use warpmail::journal::disk::{Disk, Folder};
use warpmail::journal::{Entry, Log, LogOptions, SyncPolicy};

use crate::child;
use crate::crash::{reopen, run};
use crate::model::{content, entries, read};
use crate::sim::Content;

/// A file system in memory with little room.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|e| e.to_string())?;
        let outcome = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "none"]).arg(at).output();
        match outcome {
            Ok(output) if output.status.success() => Ok(Small(at.into())),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Why a small file system cannot be mounted; none if it can.
pub(crate) fn why_not() -> Option<String> {
    let dir = tempfile::tempdir().ok()?;
    Small::mount(&dir.path().join("small")).err().map(|e| format!("a small tmpfs cannot be mounted: {e}"))
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::Io { kind: ErrorKind::StorageFull, .. })
}

pub(crate) fn a_full_disk_is_back_pressure() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::mount(&dir.path().join("small")).unwrap();
    let ballast = small.0.join("ballast");
    std::fs::write(&ballast, vec![1; 100_000]).unwrap();
    let (disk, mut rng): (Arc<dyn Disk>, _) = (Arc::new(Folder::new(small.0.join("log"))), Rng::with_seed(1));
    let options = LogOptions { segment_bytes: 32 << 10, sync: SyncPolicy::EveryBatch, ..LogOptions::default() };
    let (mut log, _) = Log::open(small.0.join("log"), options.clone()).unwrap();
    let mut all: Vec<Content> = Vec::new();
    let mut refused = 0;
    for i in 0.. {
        // Every fifth batch is longer than a segment, and is cut short in the middle when the disk is full.
        let batch: Vec<Content> =
            (0..if i % 5 == 4 { 40 } else { 2 }).map(|n| content(&mut rng, i * 100 + n, 2000)).collect();
        match log.append(&entries(&batch)) {
            Ok(range) => {
                all.extend(batch);
                assert_eq!((*range.end(), log.durable()), (all.len() as u64, all.len() as u64));
            }
            Err(error) => {
                assert!(is_full(&error), "{error}");
                assert!(error.to_string().contains("free some space"), "{error}");
                refused += 1;
                assert_eq!(read(&disk, 1, all.len() as u64).unwrap(), all);
            }
        }
        if refused == 20 {
            break;
        }
    }
    assert!(log.failed().is_none() && log.stats().failed_batches == 20);
    std::fs::remove_file(&ballast).unwrap();
    let more = content(&mut rng, 1 << 30, 2000);
    log.append(&entries(std::slice::from_ref(&more))).unwrap();
    all.push(more);
    drop(log);
    let (_, recovered) = Log::open(small.0.join("log"), options).unwrap();
    assert_eq!((recovered.last, recovered.torn), (all.len() as u64, None));
    assert_eq!(read(&disk, 1, all.len() as u64).unwrap(), all);
    println!("full disk: {} records taken, {refused} batches refused, and it went on", all.len());
}

/// Writes that end in the middle of a batch: a limit on file sizes lets the first part of a long batch through.
pub(crate) fn writes_cut_short_by_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut command = Command::new("sh");
    // 16 blocks of 512 bytes; the signal that comes with the error is ignored, so that the write returns.
    command.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\""]).arg(std::env::current_exe().unwrap());
    command.env(child::LONG, "12000");
    let (status, told) = run(command, &log).unwrap();
    let refused = told.lines().filter(|line| line.starts_with("error")).count();
    assert!(status.success() && told.ends_with("end\n"), "{status}: {told}");
    assert!(refused == 8 && told.contains("raise the limit on file sizes"), "{told}");
    reopen(&log, &told).unwrap();
}

pub(crate) fn no_room_to_begin() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::mount(&dir.path().join("small")).unwrap();
    let log = small.0.join("log");
    let error = Log::open(&log, LogOptions::default()).unwrap_err();
    assert!(is_full(&error) && error.to_string().contains("fallocate"), "{error}");
    let (mut log, _) = Log::open(&log, LogOptions { segment_bytes: 4096, ..LogOptions::default() }).unwrap();
    log.append(&[Entry { payload: b"there is room for this", ..Entry::default() }]).unwrap();
}

pub(crate) fn a_read_only_disk_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::mount(&dir.path().join("small")).unwrap();
    let options = LogOptions { segment_bytes: 4096, ..LogOptions::default() };
    let (mut log, _) = Log::open(&small.0, options.clone()).unwrap();
    log.append(&[Entry { payload: b"kept", ..Entry::default() }]).unwrap();
    drop(log);
    let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(&small.0).status().unwrap();
    assert!(remount.success());
    let error = Log::open(&small.0, options).unwrap_err();
    assert!(matches!(error, Error::Io { kind: ErrorKind::ReadOnlyFilesystem, .. }), "{error:?}");
    assert!(error.to_string().contains("LOCK") && error.to_string().contains("can be read and written"), "{error}");
    let disk: Arc<dyn Disk> = Arc::new(Folder::new(&small.0));
    assert_eq!(read(&disk, 1, 1).unwrap(), [(0, 0, b"kept".to_vec(), vec![])]);
}
