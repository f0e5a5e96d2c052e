//! Batches past the page cache: in whole blocks, behind a filler; and segments of the version that had none.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;
use warpmail::journal::disk::{DIRECT_BLOCK, Disk};
use warpmail::journal::format::{RECORD_MAGIC, SegmentHeader};
use warpmail::journal::{Cut, Entry, Log, LogOptions, Reader, SyncPolicy, stat};

use crate::damage::segments;
use crate::model::{content, entries, read};
use crate::roundtrip::folder;
use crate::sim::{Content, Direct, Image, Lies, SimDisk};

fn options(direct_from: Option<u64>) -> LogOptions {
    LogOptions { segment_bytes: 1 << 20, sync: SyncPolicy::EveryBatch, direct_from, ..LogOptions::default() }
}

fn batches(seed: u64, n: u64, longest: usize) -> Vec<Vec<Content>> {
    let mut rng = Rng::with_seed(seed);
    (0..n).map(|b| (0..rng.u64(1..4)).map(|i| content(&mut rng, b * 10 + i, longest)).collect()).collect()
}

/// Large batches begin at multiples of the block, small ones where the one before ended, and all are read back.
pub(crate) fn batches_begin_at_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let all = batches(3, 60, 9000);
    let (mut log, _) = Log::open(dir.path(), options(Some(8000))).unwrap();
    let not_direct = log.stats().not_direct;
    for batch in &all {
        log.append(&entries(batch)).unwrap();
    }
    let large = |b: &&Vec<Content>| entries(b).iter().map(|e| e.bytes()).sum::<u64>() >= 8000;
    let n_large = all.iter().filter(large).count();
    assert!(n_large > 20 && n_large < 55);
    let flat: Vec<Content> = all.iter().flatten().cloned().collect();
    assert_eq!(read(&folder(&dir), 1, flat.len() as u64).unwrap(), flat);
    if not_direct.is_none() {
        assert_eq!(log.stats().direct_batches, n_large as u64);
        let first_of_large = all.iter().filter(large).map(|b| &b[0].2);
        let file = std::fs::read(&segments(&dir)[0]).unwrap();
        for payload in first_of_large.take(5) {
            let at = file.windows(payload.len()).position(|w| w == &payload[..]).unwrap() - 72;
            assert_eq!(at % DIRECT_BLOCK, 0, "a large batch begins at {at}");
            assert_eq!(file[at..at + 4], RECORD_MAGIC.to_le_bytes());
        }
    }
    log.close().unwrap();
    let (log, recovered) = Log::open(dir.path(), options(None)).unwrap();
    assert_eq!((recovered.last, recovered.torn.clone()), (flat.len() as u64, None));
    assert!(log.stats().not_direct.is_none(), "what is not wanted needs no reason");
    drop(log);
    assert!(Cut::plan(dir.path(), |_| {}).unwrap().is_none());
}

/// A tensor in page-aligned memory is written from where it lies, one that is not is copied; both come back.
pub(crate) fn tensors_in_any_memory() {
    let memory: Vec<u8> = (0..(5 << 20) + 123).map(|i: usize| (i / 7) as u8).collect();
    let at = memory.as_ptr().align_offset(DIRECT_BLOCK);
    // Payload bytes, where the tensor begins in its page, its bytes.
    let shapes = [(176, 0, 3 << 20), (176, 1, 3 << 20), (177, 0, (2 << 20) + 5), (0, 0, (1 << 20) + 1)];
    let wanted: Vec<Content> =
        shapes.map(|(payload, shift, len)| (1, 2, vec![9; payload], memory[at + shift..][..len].to_vec())).into();
    for direct in [Direct::Written, Direct::NotOpened, Direct::NotWritten] {
        let disk = SimDisk::new(Image::new(), Lies::default());
        disk.set_direct(direct);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let (mut log, _) = Log::open_on(shared.clone(), options(Some(64 << 10))).unwrap();
        for (payload, shift, len) in shapes {
            let (payload, tensor) = (&vec![9; payload], &memory[at + shift..][..len]);
            log.append(&[Entry { mailbox: 1, msg_type: 2, payload, tensor, ..Entry::default() }]).unwrap();
        }
        assert_eq!(read(&shared, 1, 4).unwrap(), wanted, "{direct:?}");
        assert_eq!(disk.direct_writes() > 0, direct == Direct::Written);
        // Where it cannot be, the log says so, and why.
        assert_eq!(log.stats().not_direct.is_some(), direct != Direct::Written, "{:?}", log.stats());
    }
}

/// A flipped bit in a filler, or in what it stands behind, is told.
pub(crate) fn a_damaged_filler_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let all = batches(5, 3, 300);
    let (mut log, _) = Log::open(dir.path(), options(Some(0))).unwrap();
    if let Some(why) = log.stats().not_direct {
        return println!("not looked at: no direct writes here: {why}");
    }
    for batch in &all {
        log.append(&entries(batch)).unwrap();
    }
    log.close().unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&segments(&dir)[0]).unwrap();
    // The first filler begins behind the segment's header.
    for at in (64..DIRECT_BLOCK as u64).step_by(61) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 16], at).unwrap();
        assert!(Reader::open(dir.path(), 0).unwrap().any(|r| r.is_err()), "byte {at}");
        Log::open(dir.path(), options(None)).expect_err("damage of what was durable");
        file.write_all_at(&byte, at).unwrap();
    }
    assert_eq!(Reader::open(dir.path(), 0).unwrap().map(Result::unwrap).count(), all.iter().flatten().count());
}

/// Readers beside a writer that goes past the page cache, under their feet.
pub(crate) fn readers_beside_direct_writes() {
    let dir = tempfile::tempdir().unwrap();
    let all = batches(8, 150, 6000);
    let total = all.iter().flatten().count();
    let (mut log, _) = Log::open(dir.path(), options(Some(0))).unwrap();
    let path = dir.path().to_owned();
    let flat: Vec<Content> = all.iter().flatten().cloned().collect();
    let expected = flat.clone();
    let reader = std::thread::spawn(move || {
        let mut reader = Reader::open(&path, 0).unwrap();
        let mut n = 0;
        while n < expected.len() {
            match reader.next() {
                Some(record) => {
                    let r = record.unwrap();
                    assert_eq!((r.sequence, &r.payload, &r.tensor), (n as u64 + 1, &expected[n].2, &expected[n].3));
                    n += 1;
                }
                None => std::thread::yield_now(),
            }
        }
    });
    for batch in &all {
        log.append(&entries(batch)).unwrap();
    }
    reader.join().unwrap();
    assert_eq!(log.durable(), total as u64);
}

/// Makes a segment's header say version 1.
fn make_old(file: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut bytes = [0; 64];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let mut header: SegmentHeader = bytemuck::pod_read_unaligned(&bytes);
    assert_eq!(header.version, 2);
    header.version = 1;
    header.crc = header.own_crc();
    file.write_all_at(bytemuck::bytes_of(&header), 0).unwrap();
}

/// A log that an earlier version wrote is read, and gone on with in a segment of this one; the old bytes stay.
pub(crate) fn an_old_log_goes_on() {
    for (records, close) in [(0u64, false), (5, false), (5, true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut all: Vec<Content> = batches(1, records, 300).concat();
        let (mut log, _) = Log::open(dir.path(), options(None)).unwrap();
        for one in &all {
            log.append(&entries(std::slice::from_ref(one))).unwrap();
        }
        if close {
            log.close().unwrap();
        } else {
            drop(log);
        }
        make_old(&segments(&dir)[0]);
        assert_eq!(read(&folder(&dir), 1, all.len() as u64).unwrap(), all);
        let used = stat(dir.path()).unwrap().segments[0].bytes as usize;
        let before = std::fs::read(&segments(&dir)[0]).unwrap()[..used].to_vec();
        for _ in 0..3 {
            let (mut log, recovered) = Log::open(dir.path(), options(Some(0))).unwrap();
            assert_eq!((recovered.last, recovered.torn), (all.len() as u64, None));
            let more = content(&mut Rng::with_seed(all.len() as u64), 1, 500);
            log.append(&entries(std::slice::from_ref(&more))).unwrap();
            all.push(more);
            assert_eq!(read(&folder(&dir), 1, all.len() as u64).unwrap(), all);
        }
        let files = segments(&dir);
        assert_eq!(files.len(), if records == 0 { 1 } else { 2 });
        if records > 0 {
            assert_eq!(std::fs::read(&files[0]).unwrap(), before);
        }
    }
}
