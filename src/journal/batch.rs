//! Entries as bytes.

use super::format::{ALIGN, MARK, RECORD_HEADER, RECORD_MAGIC, RecordHeader};
use super::options::Entry;
use super::segment::Segment;
use crate::error::Result;

/// Up to this many bytes are gathered for one write; a longer payload or tensor is written from where it lies.
const GATHER: usize = 1 << 20;

/// What the records of a batch have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) log_id: [u8; 16],
    /// Sequence of the first.
    pub(super) first: u64,
    pub(super) synced: u64,
    pub(super) wall_ns: u64,
}

/// The mark that a log leaves when it is closed: it says that everything before it is durable.
pub(super) fn mark(log_id: &[u8; 16], last: u64, synced: u64, wall_ns: u64) -> RecordHeader {
    let entry = Entry { flags: MARK, ..Entry::default() };
    header(&entry, last, Place { log_id: *log_id, first: last, synced, wall_ns })
}

fn header(entry: &Entry<'_>, sequence: u64, place: Place) -> RecordHeader {
    let mut header = RecordHeader {
        magic: RECORD_MAGIC,
        payload_len: entry.payload.len() as u32,
        msg_type: entry.msg_type,
        flags: entry.flags,
        mailbox: entry.mailbox,
        sequence,
        producer_ns: entry.producer_ns,
        wall_ns: place.wall_ns,
        tensor_len: entry.tensor.len() as u64,
        synced: place.synced,
        payload_crc: crc32c::crc32c(entry.payload),
        tensor_crc: crc32c::crc32c(entry.tensor),
        reserved: 0,
        header_crc: 0,
    };
    header.header_crc = header.own_crc(&place.log_id);
    header
}

/// Writes the records one behind the other from an offset on.
pub(super) fn write(
    segment: &Segment,
    offset: u64,
    entries: &[Entry<'_>],
    place: Place,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    let mut writer = Writer { segment, offset, buffer };
    writer.buffer.clear();
    for (entry, sequence) in entries.iter().zip(place.first..) {
        writer.put(bytemuck::bytes_of(&header(entry, sequence, place)))?;
        writer.put(entry.payload)?;
        writer.put(entry.tensor)?;
        let padding = entry.bytes() - RECORD_HEADER - (entry.payload.len() + entry.tensor.len()) as u64;
        writer.put(&[0; ALIGN as usize][..padding as usize])?;
    }
    writer.flush()
}

struct Writer<'a> {
    segment: &'a Segment,
    offset: u64,
    buffer: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > GATHER {
            self.flush()?;
        }
        if bytes.len() > GATHER {
            self.segment.write(self.offset, bytes)?;
            self.offset += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.segment.write(self.offset, self.buffer)?;
            self.offset += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}
