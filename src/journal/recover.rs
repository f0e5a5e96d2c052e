//! What a crash left, made into a log that goes on. It may crash itself at any point and be run again.

use std::any::Any;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::PathBuf;

use serde::Serialize;

use super::active::{Active, Sealed, Tail, now_ns};
use super::disk::{DIRECT_BLOCK, Disk};
use super::format::{self, SEGMENT_HEADER, SegmentHeader, VERSION};
use super::options::LogOptions;
use super::scan::{Scan, Walked, walk};
use super::segment::{Head, Segment, sync_names};
use crate::error::{Error, Result};

/// What [`Log::open`](super::Log::open) found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Recovered {
    /// Whether there was no log and one was made.
    pub created: bool,
    /// The oldest sequence kept, or the next one if none is.
    pub first: u64,
    /// The highest sequence, durable now; 0 if there is none.
    pub last: u64,
    /// Segment files.
    pub segments: u64,
    /// What was cut off; none after an orderly close.
    pub torn: Option<Torn>,
}

/// The end of a log that was written but never known to be durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Torn {
    /// The segment.
    pub file: PathBuf,
    /// Where the first record stands that is not whole, bytes.
    pub offset: u64,
    /// The sequence it would have had.
    pub sequence: u64,
    /// What is wrong with it.
    pub reason: String,
}

pub(super) struct State {
    pub(super) id: [u8; 16],
    pub(super) sealed: VecDeque<Sealed>,
    pub(super) active: Active,
    pub(super) recovered: Recovered,
    /// Why nothing is written past the page cache, if that was asked for.
    pub(super) not_direct: Option<String>,
}

/// Takes the writer's lock.
pub(super) fn lock(disk: &dyn Disk) -> Result<Box<dyn Any + Send>> {
    disk.lock(format::LOCK).map_err(|e| match e.kind() {
        ErrorKind::WouldBlock => Error::Locked { path: disk.path().into() },
        _ => Error::io("lock", &disk.path().join(format::LOCK), &e),
    })
}

/// First sequences of the segments, in order.
pub(super) fn segments(disk: &dyn Disk) -> Result<Vec<u64>> {
    let names = disk.list().map_err(|e| Error::io("list", disk.path(), &e))?;
    let mut firsts: Vec<u64> = names.iter().filter_map(|name| format::parse_name(name)).collect();
    firsts.sort_unstable();
    Ok(firsts)
}

pub(super) fn recover(disk: &dyn Disk, options: &LogOptions) -> Result<State> {
    let firsts = segments(disk)?;
    let Some((&last, before)) = firsts.split_last() else { return make(disk, options) };
    // Before anything is changed, what is seen must be what a crash would leave: the last segment must not be written again
    // while a removed one that says it is sealed could come back, and a name that is used must be durable.
    sync_names(disk)?;
    let mut sealed = VecDeque::new();
    let mut headers: Vec<SegmentHeader> = Vec::new();
    for &first in before {
        let segment = Segment::open(disk, first, false)?;
        let header = segment.header(headers.last().map(|h| &h.log_id))?;
        follows(&segment, &header, headers.last())?;
        sealed.push_back(Sealed { first, bytes: segment.size()?, closed_ns: 0 });
        headers.push(header);
    }
    let segment = Segment::open(disk, last, true)?;
    let header = match segment.head()? {
        Head::Valid(_) => {
            let header = segment.header(headers.last().map(|h| &h.log_id))?;
            follows(&segment, &header, headers.last())?;
            header
        }
        Head::Unwritten => finish_creation(disk, options, &segment, headers.last())?,
    };
    let closed = headers.iter().skip(1).chain([&header]);
    sealed.iter_mut().zip(closed).for_each(|(s, next)| s.closed_ns = next.created_ns);

    let (active, not_direct, walked, torn) = mend(disk, segment, &header, options)?;
    let recovered =
        Recovered { created: false, first: firsts[0], last: walked.next - 1, segments: firsts.len() as u64, torn };
    Ok(State { id: header.log_id, sealed, active, recovered, not_direct })
}

/// The segments of a log name each other: a file that is missing between two is seen.
pub(super) fn follows(segment: &Segment, header: &SegmentHeader, before: Option<&SegmentHeader>) -> Result<()> {
    match before {
        Some(before) if header.previous_first != before.first_sequence => Err(segment.damaged(
            0,
            format!(
                "the segment before it should be {}, and is {}",
                format::segment_name(header.previous_first),
                format::segment_name(before.first_sequence)
            ),
        )),
        _ => Ok(()),
    }
}

fn make(disk: &dyn Disk, options: &LogOptions) -> Result<State> {
    let header = SegmentHeader::new(new_id()?, 1, 0, now_ns());
    let segment = Segment::create(disk, 1)?;
    segment.begin(disk, &header, options.segment_bytes).inspect_err(|_| {
        // If it stays: without a header it is finished next time, with one it is an empty log.
        let _ = disk.remove(&format::segment_name(1));
    })?;
    let begun = bytemuck::bytes_of(&header).to_vec();
    let (active, not_direct) = Active::new(segment, disk, options, SEGMENT_HEADER, begun);
    let recovered = Recovered { created: true, first: 1, last: 0, segments: 1, torn: None };
    Ok(State { id: header.log_id, sealed: VecDeque::new(), active, recovered, not_direct })
}

/// Gives its header to a segment that a crash left without one. It was made only after everything before it was durable.
fn finish_creation(
    disk: &dyn Disk,
    options: &LogOptions,
    segment: &Segment,
    before: Option<&SegmentHeader>,
) -> Result<SegmentHeader> {
    let header = match before {
        None if segment.first == 1 => SegmentHeader::new(new_id()?, 1, 0, now_ns()),
        None => return Err(segment.damaged(0, "its header is missing, and so are the segments before it")),
        Some(before) => {
            let mut scan = Scan::new(Segment::open(disk, before.first_sequence, false)?, before.log_id)?;
            let walked = walk(&mut scan)?;
            ends_at(&scan, &walked, segment.first)?;
            SegmentHeader::new(before.log_id, segment.first, before.first_sequence, now_ns())
        }
    };
    segment.begin(disk, &header, options.segment_bytes)?;
    Ok(header)
}

/// A sealed segment is full of records up to its end, and the next one begins where it ends.
pub(super) fn ends_at(scan: &Scan, walked: &Walked, next_first: u64) -> Result<()> {
    if walked.end == scan.size && walked.next == next_first {
        return Ok(());
    }
    let reason = if walked.end == scan.size {
        format!("the next segment begins with {next_first}")
    } else {
        format!("{}, and a later segment says that this was durable", walked.stop)
    };
    Err(Error::Damaged { file: scan.segment.path.clone(), offset: walked.end, sequence: walked.next, reason })
}

/// Finds the end of the last segment, cuts what is torn, and makes the rest durable.
fn mend(disk: &dyn Disk, segment: Segment, header: &SegmentHeader, options: &LogOptions) -> Result<Mended> {
    let mut scan = Scan::new(segment, header.log_id)?;
    let walked = walk(&mut scan)?;
    if let Some((at, by)) = scan.claim(walked.end, walked.next)? {
        let reason = format!("{}, and record {by} at offset {at} says that this was durable", walked.stop);
        return Err(Error::Damaged {
            file: scan.segment.path.clone(),
            offset: walked.end,
            sequence: walked.next,
            reason,
        });
    }
    let torn = scan.segment.next_nonzero(walked.end, scan.size)?.map(|_| Torn {
        file: scan.segment.path.clone(),
        offset: walked.end,
        sequence: walked.next,
        reason: walked.stop.into(),
    });
    let segment = scan.segment;
    write_again(&segment, walked.unproven, walked.end)?;
    // Also where nothing but zeros is seen: the disk may still have what a writer cut off and then failed to sync.
    segment.truncate(walked.end)?;
    segment.sync()?;
    let old = header.version < VERSION;
    let empty = walked.end == SEGMENT_HEADER;
    if old && empty {
        let mut header = SegmentHeader { version: VERSION, ..*header };
        header.crc = header.own_crc();
        segment.begin(disk, &header, options.segment_bytes)?;
    }
    let mut begun = vec![0; (walked.end % DIRECT_BLOCK as u64) as usize];
    let have = segment.read(walked.end - begun.len() as u64, &mut begun)?;
    if have < begun.len() {
        return Err(segment.damaged(walked.end, "the file became shorter while it was read"));
    }
    // Older bytes are left as they are: what is new goes to the next segment.
    let sealed = old && !empty;
    if !sealed {
        // Space set aside is a convenience: without it the file grows as it is written.
        let _ = segment.allocate(options.segment_bytes.max(walked.end));
    }
    let (mut active, not_direct) = Active::new(segment, disk, options, walked.end, begun);
    active.marked = walked.marked;
    if sealed {
        active.tail = Tail::Sealed;
    }
    Ok((active, not_direct, walked, torn))
}

type Mended = (Active, Option<String>, Walked, Option<Torn>);

/// Writes bytes again that are there already. A sync that failed may have left them in memory only, in pages that look clean
/// and that no further sync would write; this makes them dirty.
fn write_again(segment: &Segment, from: u64, to: u64) -> Result<()> {
    let mut chunk = vec![0; 1 << 16];
    let mut at = from;
    while at < to {
        let want = (to - at).min(chunk.len() as u64) as usize;
        let have = segment.read(at, &mut chunk[..want])?;
        if have == 0 {
            break;
        }
        segment.write(at, &chunk[..have])?;
        at += have as u64;
    }
    Ok(())
}

fn new_id() -> Result<[u8; 16]> {
    let mut id = [0; 16];
    let mut have = 0;
    while have < id.len() {
        match rustix::rand::getrandom(&mut id[have..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => have += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::Unavailable { what: "a random log id", reason: e.to_string() }),
        }
    }
    Ok(id)
}
