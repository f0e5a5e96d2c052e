//! `drain.disk_*`: the log on a disk, over the disk's own rate with the same block.
//!
//! The disk's own rate is measured in the same directory with the same block and a sync behind each, into space that was set
//! aside and not written before, as a log finds it: buffered and, where the file system allows it, direct; the faster of the
//! two is the floor. What the disk does with space that was written before is told beside it. Direct writes from huge pages, as
//! the log's are, are a floor of their own, `.huge`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crossbeam::channel::bounded;
use indicatif::ProgressBar;
use memmap2::{Advice, MmapMut};
use warpmail::Error;
use warpmail::journal::{Batch, Entry, Log, LogOptions, SyncPolicy};

use super::super::{median, text};
use super::Args;
use crate::figures::Figures;

const DIRECT: i32 = 0o40000; // O_DIRECT

/// Kinds that each round measures once: the disk itself in five ways, the log in four.
pub(super) const KINDS: u64 = 9;

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(parent: &Path) -> Result<Self, String> {
        let path = parent.join(format!("warpmail-bench-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| format!("{} cannot be made: {e}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Aligned as direct writes want it.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Page([u64; 512]);

/// Pages whose bytes are not all alike.
fn block(bytes: usize) -> Vec<Page> {
    let mut pages = vec![Page([0; 512]); bytes.div_ceil(4096)];
    for (i, word) in pages.iter_mut().flat_map(|p| &mut p.0).enumerate() {
        *word = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    pages
}

/// A copy in huge pages, where the machine has them.
struct Huge(MmapMut, usize);

impl Huge {
    const PAGE: usize = 2 << 20;

    fn copy_of(bytes: &[u8]) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(bytes.len().next_multiple_of(Self::PAGE) + Self::PAGE)?;
        let _ = map.advise(Advice::HugePage);
        let at = map.as_ptr().addr().next_multiple_of(Self::PAGE) - map.as_ptr().addr();
        map[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(Huge(map, at))
    }
}

/// Bytes a nanosecond of blocks written one after the other, each with a sync behind it. The file has its length before:
/// otherwise every sync writes that too.
fn disk_rate(path: &Path, block: &[u8], blocks: u64, flags: i32, written_before: bool) -> io::Result<f64> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path)?;
    let zeros = vec![0u8; 1 << 20];
    let all = block.len() as u64 * blocks;
    if written_before {
        let plain = File::options().write(true).open(path)?;
        for at in (0..all).step_by(zeros.len()) {
            plain.write_all_at(&zeros[..zeros.len().min((all - at) as usize)], at)?;
        }
    } else {
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, all)?;
    }
    file.sync_all()?;
    let begin = Instant::now();
    for i in 0..blocks {
        file.write_all_at(block, i * block.len() as u64)?;
        file.sync_data()?;
    }
    let rate = all as f64 / begin.elapsed().as_nanos() as f64;
    std::fs::remove_file(path)?;
    Ok(rate)
}

/// The same bytes through the log, in records of `payload` bytes. As a journal does it: one thread encodes, one writes and
/// syncs. Or one after the other, which tells what that is worth.
fn log_rate(folder: &Path, payload: &[u8], per_batch: usize, batches: u64, ahead: bool) -> Result<f64, Error> {
    let path = folder.join("log");
    let options = LogOptions { sync: SyncPolicy::EveryBatch, ..LogOptions::default() };
    let (mut log, _) = Log::open(&path, options)?;
    let entry = Entry { payload, ..Entry::default() };
    let begin = Instant::now();
    if ahead {
        append_ahead(&mut log, &entry, per_batch, batches)?;
    } else {
        let entries = vec![entry; per_batch];
        for _ in 0..batches {
            log.append(&entries)?;
        }
    }
    let ns = begin.elapsed().as_nanos() as f64;
    log.close()?;
    let _ = std::fs::remove_dir_all(path);
    Ok((payload.len() * per_batch) as f64 * batches as f64 / ns)
}

/// Appends batches that another thread prepares, one ahead: two stay in the caches.
fn append_ahead(log: &mut Log, entry: &Entry<'_>, per_batch: usize, batches: u64) -> Result<(), Error> {
    let (ready, written) = (bounded::<Batch>(0), bounded::<Batch>(2));
    std::thread::scope(|scope| {
        let (prepared, used) = (ready.0, written.1);
        scope.spawn(move || {
            for _ in 0..batches {
                let mut batch = used.try_recv().unwrap_or_default();
                batch.clear();
                // An entry of this bench keeps to the limits; whoever stops listening has failed and says so.
                if (0..per_batch).any(|_| batch.push_copy(entry).is_err()) || prepared.send(batch).is_err() {
                    return;
                }
            }
        });
        for mut batch in ready.1 {
            log.append_batch(&mut batch)?;
            let _ = written.0.try_send(batch);
        }
        Ok(())
    })
}

/// Adds the rows of the disk.
pub(super) fn rows(args: &Args, bar: &ProgressBar, figures: &mut Figures) -> Result<(), String> {
    let folder = Folder::new(&args.directory)?;
    let (bytes, blocks) = ((args.batch_kib * 1024) as usize, (args.mib * 1024).div_ceil(args.batch_kib));
    let pages = block(bytes);
    let whole: &[u8] = &bytemuck::cast_slice(&pages)[..bytes];
    let file = folder.0.join("blocks");
    let failed = |e: io::Error| format!("{} cannot be written: {e}", file.display());
    let huge = Huge::copy_of(whole).map_err(|e| format!("no memory to write from: {e}"))?;
    let in_huge = &huge.0[huge.1..huge.1 + bytes];
    // Kinds take turns: many a disk is faster or slower from one minute to the next.
    let (mut disks, mut logs) = ([const { Vec::new() }; 5], [const { Vec::new() }; 4]);
    for _ in 0..args.rounds {
        let ways = [(true, 0, whole), (true, DIRECT, whole), (false, 0, whole), (false, DIRECT, whole)];
        for (i, (written_before, flags, block)) in ways.into_iter().chain([(false, DIRECT, in_huge)]).enumerate() {
            let rate = disk_rate(&file, block, blocks, flags, written_before);
            // Not every file system has direct writes.
            disks[i].push(if flags == DIRECT { rate.unwrap_or(0.0) } else { rate.map_err(failed)? } * 1e3);
            bar.inc(1);
            let Some(rates) = logs.get_mut(i) else { continue };
            let (payload, ahead) = ([4096, 248][i / 2], i % 2 == 0);
            let per_batch = (bytes / payload).max(1);
            rates.push(log_rate(&folder.0, &whole[..payload], per_batch, blocks, ahead).map_err(text)? * 1e3);
            bar.inc(1);
        }
    }
    let ([old_buffered, old_direct, buffered, direct, huge], logs) =
        (disks.map(|mut r| median(&mut r)), logs.map(|mut r| median(&mut r)));
    println!("The disk itself, {} KiB and a sync at a time:", args.batch_kib);
    for (space, buffered, direct) in
        [("written before", old_buffered, old_direct), ("set aside, the floor", buffered, direct)]
    {
        println!("  space {space:22} {buffered:6.0} MB/s buffered, {direct:6.0} MB/s direct");
    }
    println!("  the same from huge pages     {huge:6.0} MB/s direct; .huge is over the fastest of the three");
    for (id, rates) in [("drain.disk_4k", &logs[..2]), ("drain.disk_256", &logs[2..])] {
        figures.add(id, rates[0], "MB/s", Some(buffered.max(direct)));
        figures.add(&format!("{id}.huge"), rates[0], "MB/s", Some(buffered.max(direct).max(huge)));
        println!("  {id}: {:.0} MB/s with encoding and writing one after the other", rates[1]);
    }
    Ok(())
}
