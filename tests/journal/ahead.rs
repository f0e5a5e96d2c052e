//! Batches that were prepared while others were written.

use std::sync::Arc;

use warpmail::Error;
use warpmail::journal::disk::Disk;
use warpmail::journal::{Batch, Log, LogOptions, SyncPolicy};

use crate::model::{content, entries, read};
use crate::sim::{Content, Faults, Image, Lies, SimDisk};

/// A batch with records of its own.
fn batch(tag: u64, n: u64) -> (Vec<Content>, Batch<'static>) {
    let mut rng = fastrand::Rng::with_seed(tag);
    let contents: Vec<_> = (tag..tag + n).map(|tag| content(&mut rng, tag, 300)).collect();
    let mut batch = Batch::new();
    entries(&contents).iter().for_each(|entry| batch.push_copy(entry).unwrap());
    (contents, batch)
}

fn log(disk: &SimDisk, sync: SyncPolicy) -> (Arc<dyn Disk>, Log) {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let options = LogOptions { segment_bytes: 4096, sync, ..LogOptions::default() };
    let (log, _) = Log::open_on(shared.clone(), options).unwrap();
    (shared, log)
}

/// Sequences are given when a batch is written: those of a batch that was refused go to the next.
pub(crate) fn refused_batches_come_again_anywhere() {
    let disk = SimDisk::new(Image::new(), Lies::default());
    let (shared, mut log) = log(&disk, SyncPolicy::EveryBatch);
    let (first, mut a) = batch(10, 3);
    let (second, mut b) = batch(20, 2);
    let (third, mut c) = batch(30, 4);
    assert_eq!(log.append_batch(&mut a).unwrap(), 1..=3);
    disk.set_faults(Faults { write: 1000, ..Faults::default() }, 1);
    for _ in 0..3 {
        assert!(matches!(log.append_batch(&mut b), Err(Error::Io { .. })));
    }
    disk.set_faults(Faults::default(), 1);
    assert_eq!(log.append_batch(&mut c).unwrap(), 4..=7);
    assert_eq!(log.append_batch(&mut b).unwrap(), 8..=9);
    // The same once more is other records with the same contents.
    assert_eq!(log.append_batch(&mut a).unwrap(), 10..=12);
    assert_eq!((log.durable(), log.stats().failed_batches), (12, 3));
    assert!(log.append_batch(&mut Batch::new()).unwrap().is_empty());
    let wanted = [first.clone(), third, second, first].concat();
    assert_eq!(read(&shared, 1, 12).unwrap(), wanted);
    log.close().unwrap();
    assert_eq!(read(&shared, 1, 12).unwrap(), wanted);
}

/// A failed sync ends the log: what was prepared meanwhile is not taken, now or later.
pub(crate) fn nothing_is_acknowledged_after_a_failed_sync() {
    for sync in [SyncPolicy::EveryBatch, SyncPolicy::Never] {
        let disk = SimDisk::new(Image::new(), Lies::default());
        let (shared, mut log) = log(&disk, sync);
        let (first, mut a) = batch(10, 3);
        let (_, mut b) = batch(20, 2);
        let (_, mut c) = batch(30, 2);
        log.append_batch(&mut a).and_then(|_| log.commit()).unwrap();
        disk.set_faults(Faults { sync: 1000, ..Faults::default() }, 1);
        let outcome = log.append_batch(&mut b).and_then(|_| log.commit());
        assert!(matches!(outcome, Err(Error::NotDurable { .. })), "{outcome:?}");
        disk.set_faults(Faults::default(), 1);
        for _ in 0..2 {
            assert!(matches!(log.append_batch(&mut c), Err(Error::NotDurable { .. })));
            assert!(matches!(log.commit(), Err(Error::NotDurable { .. })));
            assert_eq!(log.durable(), 3);
        }
        drop(log);
        let records = read(&shared, 1, 5).unwrap();
        assert!(records.starts_with(&first), "what was durable is there, and of the third batch nothing");
    }
}
