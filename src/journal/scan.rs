//! Walking the records of one segment, and looking for proof that damaged bytes were durable once.

use std::collections::VecDeque;

use super::disk::DIRECT_BLOCK;
use super::format::{self, ALIGN, MAX_PAYLOAD, MAX_TENSOR, RECORD_HEADER, RECORD_MAGIC, RecordHeader};
use super::segment::Segment;
use crate::error::Result;

/// Bytes read at once.
const WINDOW: usize = 1 << 18;

/// What stands at an offset.
pub(super) enum Step {
    /// A record that all checks accept.
    Record(RecordHeader),
    /// The log's own: a mark, made when it was closed, or a filler, up to where a batch begins.
    Mark(RecordHeader),
    /// No record: the end of what was written, a torn record, or damage. Which, the offset alone cannot tell.
    Stop(&'static str),
}

/// Reads a segment through a window.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) segment: Segment,
    log_id: [u8; 16],
    /// Bytes in the file when it was last asked.
    pub(super) size: u64,
    begin: u64,
    window: Vec<u8>,
}

impl Scan {
    pub(super) fn new(segment: Segment, log_id: [u8; 16]) -> Result<Self> {
        let size = segment.size()?;
        Ok(Scan { segment, log_id, size, begin: 0, window: Vec::new() })
    }

    /// Forgets what was read: a writer may have changed it.
    pub(super) fn refresh(&mut self) -> Result<()> {
        self.window.clear();
        self.size = self.segment.size()?;
        Ok(())
    }

    /// Looks at the record that should have this sequence. Its payload and tensor are read and checked too.
    pub(super) fn step(&mut self, offset: u64, sequence: u64) -> Result<Step> {
        let Some(header) = self.header(offset)? else {
            let left = self.size.saturating_sub(offset);
            return Ok(Step::Stop(if left == 0 { "the file ends" } else { "the file ends inside a record" }));
        };
        if let Some(why_not) = self.why_not(&header) {
            return Ok(Step::Stop(why_not));
        }
        if header.is_mark() {
            let fill = u64::from(header.payload_len);
            let belongs = header.sequence.checked_add(1) == Some(sequence) && header.tensor_len == 0;
            if !belongs || !fill.is_multiple_of(ALIGN) || fill >= 2 * DIRECT_BLOCK as u64 {
                return Ok(Step::Stop("a mark that does not belong here"));
            }
            return Ok(match self.bytes(offset + RECORD_HEADER, fill as usize)? {
                Some(zeros) if zeros.iter().all(|b| *b == 0) => Step::Mark(header),
                Some(_) => Step::Stop("a filler that is not zero"),
                None => Step::Stop("the file ends inside a filler"),
            });
        }
        if header.sequence != sequence {
            return Ok(Step::Stop("a record with another sequence"));
        }
        let end = offset.saturating_add(header.stride());
        if end > self.size {
            return Ok(Step::Stop("the file ends inside a record"));
        }
        let payload = offset + RECORD_HEADER;
        let tensor = payload + u64::from(header.payload_len);
        if self.crc(payload, u64::from(header.payload_len))? != Some(header.payload_crc) {
            return Ok(Step::Stop("a payload that does not match its checksum"));
        }
        if self.crc(tensor, header.tensor_len)? != Some(header.tensor_crc) {
            return Ok(Step::Stop("a tensor that does not match its checksum"));
        }
        let padding = tensor + header.tensor_len;
        match self.bytes(padding, (end - padding) as usize)? {
            Some(zeros) if zeros.iter().all(|b| *b == 0) => Ok(Step::Record(header)),
            _ => Ok(Step::Stop("padding that is not zero")),
        }
    }

    /// Payload and tensor of a record that [`step`](Self::step) accepted; none if they are not there any more.
    pub(super) fn contents(&mut self, offset: u64, header: &RecordHeader) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let begin = offset + RECORD_HEADER;
        let Some(payload) = self.bytes(begin, header.payload_len as usize)?.map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        let tensor = self.bytes(begin + u64::from(header.payload_len), header.tensor_len as usize)?.map(<[u8]>::to_vec);
        Ok(tensor.map(|tensor| (payload, tensor)))
    }

    /// Looks behind `offset`, where no valid record with this sequence is, for a record that says it had been durable.
    /// Gives that record's offset and sequence. A torn tail has none: what was never durable, no record calls so.
    pub(super) fn claim(&mut self, offset: u64, sequence: u64) -> Result<Option<(u64, u64)>> {
        let mut at = offset;
        while let Some(data) = self.segment.next_data(at)?.filter(|data| *data < self.size) {
            at = data.max(at) & !(ALIGN - 1);
            let want = (self.size - at).min(WINDOW as u64) as usize;
            let Some(bytes) = self.bytes(at, want)? else { break };
            let words = bytes.chunks_exact(ALIGN as usize);
            let begins = words.enumerate().filter(|(_, w)| w[..4] == RECORD_MAGIC.to_le_bytes());
            let candidates: Vec<u64> = begins.map(|(i, _)| at + i as u64 * ALIGN).collect();
            for candidate in candidates {
                if let Some(header) = self.header(candidate)?
                    && self.why_not(&header).is_none()
                    && header.synced >= sequence
                {
                    return Ok(Some((candidate, header.sequence)));
                }
            }
            at += (want as u64).max(ALIGN);
        }
        Ok(None)
    }

    fn header(&mut self, offset: u64) -> Result<Option<RecordHeader>> {
        Ok(self.bytes(offset, RECORD_HEADER as usize)?.map(bytemuck::pod_read_unaligned))
    }

    /// Which check of the header alone fails.
    fn why_not(&self, header: &RecordHeader) -> Option<&'static str> {
        if bytemuck::bytes_of(header).iter().all(|b| *b == 0) {
            Some("nothing but zeros")
        } else if header.magic != RECORD_MAGIC {
            Some("bytes that do not begin as a record does")
        } else if header.header_crc != header.own_crc(&self.log_id) {
            Some("a record header that does not match its checksum")
        } else if u64::from(header.payload_len) > MAX_PAYLOAD || header.tensor_len > MAX_TENSOR {
            Some("a record longer than a record can be")
        } else {
            None
        }
    }

    fn crc(&mut self, mut offset: u64, mut len: u64) -> Result<Option<u32>> {
        let mut crc = 0;
        while len > 0 {
            let part = len.min(WINDOW as u64);
            let Some(bytes) = self.bytes(offset, part as usize)? else { return Ok(None) };
            crc = crc32c::crc32c_append(crc, bytes);
            offset += part;
            len -= part;
        }
        Ok(Some(crc))
    }

    /// The bytes at an offset, if the file has them all.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<Option<&[u8]>> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.size) {
            return Ok(None);
        }
        let inside = offset >= self.begin && offset + len as u64 <= self.begin + self.window.len() as u64;
        if !inside {
            let want = (self.size - offset).min(len.max(WINDOW) as u64) as usize;
            self.window.resize(want, 0);
            let have = self.segment.read(offset, &mut self.window)?;
            self.window.truncate(have);
            self.begin = offset;
        }
        let from = (offset - self.begin) as usize;
        Ok(self.window.get(from..from + len))
    }
}

/// What a walk over a segment found.
#[derive(Debug)]
pub(super) struct Walked {
    /// Where the next record would stand.
    pub(super) end: u64,
    /// The sequence that it would have.
    pub(super) next: u64,
    /// The highest `synced` of all records.
    pub(super) synced: u64,
    /// From here on nothing proves that the bytes are durable: the first record after `synced`, or the header.
    pub(super) unproven: u64,
    /// Whether the mark of a close is the last thing.
    pub(super) marked: bool,
    /// Why the walk ended.
    pub(super) stop: &'static str,
}

/// Walks from the first record to the first place that holds none.
pub(super) fn walk(scan: &mut Scan) -> Result<Walked> {
    let first = scan.segment.first;
    let mut places: VecDeque<(u64, u64)> = VecDeque::new();
    let mut w = Walked { end: format::SEGMENT_HEADER, next: first, synced: 0, unproven: 0, marked: false, stop: "" };
    loop {
        let header = match scan.step(w.end, w.next)? {
            Step::Record(header) => {
                places.push_back((w.next, w.end));
                w.next = w.next.saturating_add(1);
                w.marked = false;
                header
            }
            Step::Mark(header) => {
                // What it says holds for the records before it, not for itself.
                places.push_back((w.next, w.end));
                w.marked = header.payload_len == 0;
                header
            }
            Step::Stop(why) => {
                w.stop = why;
                let unproven = places.front().map_or(w.end, |(_, offset)| *offset);
                w.unproven = if unproven == format::SEGMENT_HEADER { 0 } else { unproven };
                return Ok(w);
            }
        };
        w.synced = w.synced.max(header.synced);
        while places.front().is_some_and(|(sequence, _)| *sequence <= w.synced) {
            places.pop_front();
        }
        w.end += header.stride();
    }
}
