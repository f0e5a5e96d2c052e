//! Reading a log in order, while it is written or not.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, Folder};
use super::format::{RecordHeader, SEGMENT_HEADER, SegmentHeader, TENSOR};
use super::recover::{Torn, ends_at, follows, segments};
use super::scan::{Scan, Step, Walked};
use super::segment::{Head, Segment};
use crate::abi;
use crate::error::{Error, Result};
use crate::tensor::TensorDescriptor;

/// A record as it was appended, with all checksums verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number in the log, from 1.
    pub sequence: u64,
    /// Row of the mailbox table.
    pub mailbox: u32,
    /// Message type.
    pub msg_type: u16,
    /// The caller's flags, and [`TENSOR`](super::format::TENSOR).
    pub flags: u16,
    /// The producer's clock, nanoseconds.
    pub producer_ns: u64,
    /// Wall clock when the log took it, nanoseconds since 1970.
    pub wall_ns: u64,
    /// The highest sequence known to be durable when it was written, 0 if none.
    pub synced: u64,
    /// The payload.
    pub payload: Vec<u8>,
    /// The bytes of the tensor that goes with it; empty if there is none.
    pub tensor: Vec<u8>,
}

impl Record {
    /// What `tensor` is, where the journal took it off the device: type, shape and strides as they were; the address is of
    /// no use any more. None for other records. An error if payload and bytes do not fit together.
    pub fn descriptor(&self) -> Result<Option<TensorDescriptor>> {
        if self.flags & TENSOR == 0 {
            return Ok(None);
        }
        let bad = |why: String| Error::refused(format!("record {}", self.sequence), why);
        let Some(bytes) = self.payload.get(..size_of::<abi::wm_tensor>()) else {
            return Err(bad(format!("it is marked as a tensor and has {} bytes of payload", self.payload.len())));
        };
        let descriptor = TensorDescriptor(bytemuck::pod_read_unaligned(bytes));
        let (_, end) = descriptor.spec().check()?;
        if end - descriptor.byte_offset() != self.tensor.len() as u64 {
            let span = end - descriptor.byte_offset();
            return Err(bad(format!("its tensor spans {span} bytes, and {} are there", self.tensor.len())));
        }
        Ok(Some(descriptor))
    }
}

/// Where a reader stands.
#[derive(Debug)]
struct Place {
    scan: Scan,
    header: SegmentHeader,
    offset: u64,
    next: u64,
}

/// Reads records in the order of their sequences, each checked.
///
/// It needs no lock and changes nothing. At the end of the log it gives `None`; called again later it gives what was written
/// since. While a writer is at work, the last records may not be durable yet. After an error it gives nothing more.
#[derive(Debug)]
pub struct Reader {
    disk: Arc<dyn Disk>,
    from: u64,
    place: Option<Place>,
    torn: Option<Torn>,
    failed: bool,
    passed: u64,
}

impl Reader {
    /// A reader whose first record is `from_sequence`, or the oldest that is kept if that is 0. A sequence that was not
    /// written yet is waited for in the same way as the end.
    ///
    /// # Errors
    /// [`Error::Refused`] if the directory holds no log, or if retention has removed the record; [`Error::Io`],
    /// [`Error::Foreign`] and [`Error::Damaged`] as the iterator gives them.
    pub fn open(dir: impl AsRef<Path>, from_sequence: u64) -> Result<Self> {
        Self::open_on(Arc::new(Folder::new(dir.as_ref())), from_sequence)
    }

    /// The same on any [`Disk`].
    pub fn open_on(disk: Arc<dyn Disk>, from_sequence: u64) -> Result<Self> {
        let firsts = segments(disk.as_ref())?;
        let Some(&oldest) = firsts.first() else {
            return Err(Error::refused(
                format!("{}", disk.path().display()),
                "holds no log: there is no segment in it",
            ));
        };
        if from_sequence != 0 && from_sequence < oldest {
            return Err(Error::refused(
                format!("record {from_sequence} of {}", disk.path().display()),
                format!("is gone: the oldest kept is {oldest}"),
            ));
        }
        let from = from_sequence.max(oldest);
        let begin = firsts.partition_point(|first| *first <= from) - 1;
        let mut reader = Reader { disk, from, place: None, torn: None, failed: false, passed: 0 };
        reader.place = reader.enter(firsts[begin], None, begin + 1 == firsts.len())?;
        if reader.place.is_none() && begin > 0 {
            reader.place = reader.enter(firsts[begin - 1], None, false)?;
        }
        Ok(reader)
    }

    /// The sequence of the next record that it will give.
    pub fn next_sequence(&self) -> u64 {
        self.place.as_ref().map_or(self.from, |p| p.next.max(self.from))
    }

    /// Bytes of segments that it has gone through, for a progress bar.
    pub fn bytes(&self) -> u64 {
        self.passed + self.place.as_ref().map_or(0, |p| p.offset)
    }

    /// The log's id; none as long as the log's only segment has no header yet.
    pub fn id(&self) -> Option<[u8; 16]> {
        self.place.as_ref().map(|p| p.header.log_id)
    }

    /// What stands behind the last record, after the iterator gave `None`: a record that is being written right now, or one
    /// that a crash has torn and that the next [`Log::open`](super::Log::open) will cut. None: zeros, or nothing.
    pub fn torn(&self) -> Option<&Torn> {
        self.torn.as_ref()
    }

    /// Opens the segment that begins with a sequence; none while it has no header, as the last one may.
    fn enter(&self, first: u64, before: Option<&SegmentHeader>, last: bool) -> Result<Option<Place>> {
        let segment = Segment::open(self.disk.as_ref(), first, false)?;
        if last && matches!(segment.head()?, Head::Unwritten) {
            return Ok(None);
        }
        let header = segment.header(before.map(|h| &h.log_id))?;
        follows(&segment, &header, before)?;
        let scan = Scan::new(segment, header.log_id)?;
        Ok(Some(Place { scan, header, offset: SEGMENT_HEADER, next: first }))
    }

    fn advance(&mut self) -> Result<Option<Record>> {
        loop {
            let from = self.from;
            let Some(place) = &mut self.place else {
                // The log's only segment had no header when the reader came.
                let firsts = segments(self.disk.as_ref())?;
                let oldest = firsts.first().copied().unwrap_or(1);
                self.place = self.enter(oldest, None, firsts.len() <= 1)?;
                if self.place.is_none() {
                    return Ok(None);
                }
                continue;
            };
            match place.scan.step(place.offset, place.next)? {
                Step::Mark(header) => place.offset += header.stride(),
                Step::Record(header) => {
                    let wanted = header.sequence >= from;
                    let contents = if wanted { place.scan.contents(place.offset, &header)? } else { None };
                    if wanted && contents.is_none() {
                        // Cut while it was read: look again.
                        place.scan.refresh()?;
                        continue;
                    }
                    place.offset += header.stride();
                    place.next = place.next.saturating_add(1);
                    self.torn = None;
                    if let Some(contents) = contents {
                        return Ok(Some(record(&header, contents)));
                    }
                }
                Step::Stop(_) => {
                    if !self.beyond()? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Where no record is: goes on to the next segment, or finds that there is one after all. False: the end of the log.
    fn beyond(&mut self) -> Result<bool> {
        let firsts = segments(self.disk.as_ref())?;
        let Some(place) = &mut self.place else { return Ok(false) };
        let current = place.header.first_sequence;
        // A writer may have been at work: what was not there before the listing may be there now.
        place.scan.refresh()?;
        let Step::Stop(stop) = place.scan.step(place.offset, place.next)? else { return Ok(true) };
        if let Some(&after) = firsts.iter().find(|first| **first > current) {
            if firsts[0] > place.next {
                return Err(Error::refused(
                    format!("record {} of {}", place.next, self.disk.path().display()),
                    format!("is gone: retention was faster than the reader; the oldest kept is {}", firsts[0]),
                ));
            }
            ends_at(&place.scan, &walked(place, stop), after)?;
            let (header, passed) = (place.header, place.offset);
            let next = match self.enter(after, Some(&header), firsts.last() == Some(&after)) {
                // A writer that found no room took the file back.
                Err(Error::Io { kind: ErrorKind::NotFound, .. }) if !segments(self.disk.as_ref())?.contains(&after) => {
                    return Ok(true);
                }
                outcome => outcome?,
            };
            let Some(next) = next else { return Ok(false) };
            self.passed += passed;
            self.place = Some(next);
            return Ok(true);
        }
        self.end_of_log(stop)
    }

    /// The last segment has no record here: the end, unless a later record says that one was durable.
    fn end_of_log(&mut self, stop: &'static str) -> Result<bool> {
        let Some(place) = &mut self.place else { return Ok(false) };
        if let Some((at, by)) = place.scan.claim(place.offset, place.next)? {
            place.scan.refresh()?;
            if !matches!(place.scan.step(place.offset, place.next)?, Step::Stop(_)) {
                return Ok(true);
            }
            return Err(Error::Damaged {
                file: place.scan.segment.path.clone(),
                offset: place.offset,
                sequence: place.next,
                reason: format!("{stop}, and record {by} at offset {at} says that this was durable"),
            });
        }
        let file: PathBuf = place.scan.segment.path.clone();
        let data = place.scan.segment.next_nonzero(place.offset, place.scan.size)?;
        self.torn = data.map(|_| Torn { file, offset: place.offset, sequence: place.next, reason: stop.into() });
        Ok(false)
    }
}

impl Iterator for Reader {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let outcome = self.advance().transpose();
        self.failed = matches!(outcome, Some(Err(_)));
        outcome
    }
}

fn walked(place: &Place, stop: &'static str) -> Walked {
    Walked { end: place.offset, next: place.next, synced: 0, unproven: 0, marked: false, stop }
}

fn record(header: &RecordHeader, (payload, tensor): (Vec<u8>, Vec<u8>)) -> Record {
    Record {
        sequence: header.sequence,
        mailbox: header.mailbox,
        msg_type: header.msg_type,
        flags: header.flags,
        producer_ns: header.producer_ns,
        wall_ns: header.wall_ns,
        synced: header.synced,
        payload,
        tensor,
    }
}
