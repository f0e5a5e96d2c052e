//! The bytes of a log, declared once. What each field means and why is told in `docs/journal-format.md`.

use bytemuck::{Pod, Zeroable};

const _: () = assert!(cfg!(target_endian = "little"), "a log is little endian and its headers are read where they lie");

/// What a segment file begins with.
pub const SEGMENT_MAGIC: [u8; 8] = *b"wmjournl";
/// What a record begins with: `WMRC` as a file shows it.
pub const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"WMRC");
/// The version of these bytes. Segments of version 1, which has no fillers, are read and never written to.
pub const VERSION: u32 = 2;
/// The oldest version that is read.
pub const OLDEST: u32 = 1;
/// Set in [`RecordHeader::flags`] where the payload begins with a `wm_tensor`, and the tensor is what it described: the bytes
/// from its first element to the end of its last, gaps included. Without it a tensor is the caller's own.
pub const TENSOR: u16 = 0x4000;
/// Records begin at multiples of this.
pub const ALIGN: u64 = 8;
/// Set in [`RecordHeader::flags`] by the log for its own marks and fillers; the bits below [`TENSOR`] are the caller's.
pub const MARK: u16 = 0x8000;
/// The longest payload of one record, bytes.
pub const MAX_PAYLOAD: u64 = 1 << 30;
/// The longest tensor of one record, bytes.
pub const MAX_TENSOR: u64 = 1 << 40;
/// The highest sequence that a segment may begin with: nothing that is added to it overflows.
pub const MAX_SEQUENCE: u64 = 1 << 63;

pub(super) const SUFFIX: &str = ".wmlog";
pub(super) const LOCK: &str = "LOCK";
pub(super) const SEGMENT_HEADER: u64 = size_of::<SegmentHeader>() as u64;
pub(super) const RECORD_HEADER: u64 = size_of::<RecordHeader>() as u64;

/// The first 64 bytes of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SegmentHeader {
    /// [`SEGMENT_MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of this header; the first record follows.
    pub header_bytes: u32,
    /// Random; the same in all segments of a log.
    pub log_id: [u8; 16],
    /// Sequence of the first record.
    pub first_sequence: u64,
    /// `first_sequence` of the segment before, 0 in the first segment of a log: a missing file is seen.
    pub previous_first: u64,
    /// Wall clock at creation, nanoseconds since 1970.
    pub created_ns: u64,
    /// Zero.
    pub reserved: u32,
    /// CRC32C of the bytes before.
    pub crc: u32,
}

/// The first 72 bytes of a record; payload, tensor and zeros up to a multiple of 8 follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RecordHeader {
    /// [`RECORD_MAGIC`].
    pub magic: u32,
    /// Bytes of the payload, up to [`MAX_PAYLOAD`].
    pub payload_len: u32,
    /// Message type, the caller's.
    pub msg_type: u16,
    /// The caller's flags, or [`MARK`].
    pub flags: u16,
    /// Row of the mailbox table.
    pub mailbox: u32,
    /// Consecutive, from 1. A mark repeats that of the record before it.
    pub sequence: u64,
    /// The producer's clock, nanoseconds.
    pub producer_ns: u64,
    /// Wall clock when the log took the record, nanoseconds since 1970.
    pub wall_ns: u64,
    /// Bytes of the tensor, up to [`MAX_TENSOR`]; 0 if there is none.
    pub tensor_len: u64,
    /// The highest sequence known to be durable when this record was written, 0 if none.
    pub synced: u64,
    /// CRC32C of the payload.
    pub payload_crc: u32,
    /// CRC32C of the tensor.
    pub tensor_crc: u32,
    /// Zero.
    pub reserved: u32,
    /// CRC32C of the log id and of the bytes before.
    pub header_crc: u32,
}

const _: () = assert!(size_of::<SegmentHeader>() == 64, "segments have 64 bytes before the first record");
const _: () = assert!(size_of::<RecordHeader>() == 72, "records have 72 bytes before the payload");
const _: () = assert!(
    SEGMENT_HEADER.is_multiple_of(ALIGN) && RECORD_HEADER.is_multiple_of(ALIGN),
    "records begin at multiples of 8"
);

impl SegmentHeader {
    pub(super) fn new(log_id: [u8; 16], first_sequence: u64, previous_first: u64, created_ns: u64) -> Self {
        let mut header = SegmentHeader {
            magic: SEGMENT_MAGIC,
            version: VERSION,
            header_bytes: SEGMENT_HEADER as u32,
            log_id,
            first_sequence,
            previous_first,
            created_ns,
            reserved: 0,
            crc: 0,
        };
        header.crc = header.own_crc();
        header
    }

    /// The CRC that the header should carry.
    pub fn own_crc(&self) -> u32 {
        crc32c::crc32c(&bytemuck::bytes_of(self)[..60])
    }
}

impl RecordHeader {
    /// The CRC that the header should carry in the log with this id. The id keeps records of another log, carried as a
    /// payload, from being taken for records of this one.
    pub fn own_crc(&self, log_id: &[u8; 16]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(log_id), &bytemuck::bytes_of(self)[..68])
    }

    /// Bytes from this header to the next.
    pub fn stride(&self) -> u64 {
        record_bytes(u64::from(self.payload_len), self.tensor_len)
    }

    pub(super) fn is_mark(&self) -> bool {
        self.flags & MARK != 0
    }
}

/// Bytes that a record takes in a segment. Lengths above their limits give nonsense, never a panic.
pub(super) fn record_bytes(payload: u64, tensor: u64) -> u64 {
    RECORD_HEADER.saturating_add(payload).saturating_add(tensor).saturating_add(ALIGN - 1) & !(ALIGN - 1)
}

/// A log's id as text: 32 hexadecimal digits.
pub(super) fn id_text(id: &[u8; 16]) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

/// The name of the segment that begins with a sequence. Names sort as sequences do.
pub(super) fn segment_name(first_sequence: u64) -> String {
    format!("{first_sequence:020}{SUFFIX}")
}

/// The first sequence that a file name tells; none if it is no segment's name.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}
