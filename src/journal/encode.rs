//! The bytes of one record, and of what stands between records.

use super::format::{MARK, RECORD_HEADER, RECORD_MAGIC, RecordHeader};
use super::options::Entry;

/// What the records of a batch have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Checksum of the log's id, with which that of each header begins.
    pub(super) id_crc: u32,
    /// Sequence of the first.
    pub(super) first: u64,
    pub(super) synced: u64,
    pub(super) wall_ns: u64,
}

/// The mark that a log leaves when it is closed: it says that everything before it is durable.
pub(super) fn mark(log_id: &[u8; 16], last: u64, synced: u64, wall_ns: u64) -> RecordHeader {
    let mut header = header(&Entry { flags: MARK, ..Entry::default() }, true);
    header.place(last, &Place { id_crc: crc32c::crc32c(log_id), first: last, synced, wall_ns });
    header
}

/// What stands between the end of the log and the place where a batch is to begin: a mark with so many zeros behind it that
/// both have `bytes` bytes, at least [`RECORD_HEADER`]. It says no more than `synced`.
pub(super) fn filler(bytes: u64, last: u64, place: &Place) -> Vec<u8> {
    let zeros = vec![0; (bytes - RECORD_HEADER) as usize];
    let mut header = header(&Entry { flags: MARK, payload: &zeros, ..Entry::default() }, true);
    header.place(last, place);
    [bytemuck::bytes_of(&header), &zeros].concat()
}

/// The header of a record but for what the moment of writing decides; `summed`: with checksums of payload and tensor.
pub(super) fn header(entry: &Entry<'_>, summed: bool) -> RecordHeader {
    let crc = |bytes| if summed { crc32c::crc32c(bytes) } else { 0 };
    RecordHeader {
        magic: RECORD_MAGIC,
        payload_len: entry.payload.len() as u32,
        msg_type: entry.msg_type,
        flags: entry.flags,
        mailbox: entry.mailbox,
        sequence: 0,
        producer_ns: entry.producer_ns,
        wall_ns: 0,
        tensor_len: entry.tensor.len() as u64,
        synced: 0,
        payload_crc: crc(entry.payload),
        tensor_crc: crc(entry.tensor),
        reserved: 0,
        header_crc: 0,
    }
}

/// Completes a record that was laid out: `record` are its bytes.
pub(super) fn fill(record: &mut [u8], entry: &Entry<'_>, summed: bool) {
    let (head, rest) = record.split_at_mut(RECORD_HEADER as usize);
    let (payload, padding) = rest.split_at_mut(entry.payload.len());
    payload.copy_from_slice(entry.payload);
    head.copy_from_slice(bytemuck::bytes_of(&header(entry, summed)));
    padding.fill(0);
}

/// The same for one whose payload is lent, and checksums are left for later: `record` is what is around it.
pub(super) fn fill_lent(record: &mut [u8], entry: &Entry<'_>) {
    let (head, padding) = record.split_at_mut(RECORD_HEADER as usize);
    head.copy_from_slice(bytemuck::bytes_of(&header(entry, false)));
    padding.fill(0);
}

impl RecordHeader {
    /// Fills in what that moment decides.
    pub(super) fn place(&mut self, sequence: u64, place: &Place) {
        (self.sequence, self.synced, self.wall_ns) = (sequence, place.synced, place.wall_ns);
        self.header_crc = crc32c::crc32c_append(place.id_crc, &bytemuck::bytes_of(self)[..68]);
    }
}
