//! The bytes of a checkpoint, declared once. What each field means and why is told in `docs/checkpoint-format.md`.

use bytemuck::{Pod, Zeroable};

use super::{Checkpoint, Counts, Part};
use crate::journal::Position;

const _: () = assert!(cfg!(target_endian = "little"), "a checkpoint is little endian and is read where it lies");

/// What the file begins with.
pub const MAGIC: [u8; 8] = *b"wmchkpnt";
/// The version of these bytes. A checkpoint of another version is refused.
pub const VERSION: u32 = 1;
/// The tables end, and every part begins and ends, at multiples of this.
pub const BLOCK: u64 = 4096;
/// The longest tables, bytes.
pub const MAX_TABLE: u64 = 64 << 20;
/// The file's name in its directory.
pub const NAME: &str = "checkpoint.wmstate";

pub(super) const NEW_NAME: &str = "checkpoint.wmstate.new";
pub(super) const LOCK: &str = "checkpoint.LOCK";
pub(super) const HEADER: u64 = size_of::<Header>() as u64;

pub(super) const STATE: u32 = 0;
pub(super) const BUFFER: u32 = 1;
pub(super) const NOTE: u32 = 2;

/// The first 80 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of this header; the tables follow.
    pub header_bytes: u32,
    /// Of the log that [`next_sequence`](Self::next_sequence) counts in; zeros if there is none.
    pub log_id: [u8; 16],
    /// The first sequence whose record is not in the state, 0 if there is no journal.
    pub next_sequence: u64,
    /// Wall clock, nanoseconds since 1970.
    pub created_ns: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes of the tables, zeros up to the first part included.
    pub table_bytes: u64,
    /// Rows of the table of parts.
    pub parts: u32,
    /// Rows of the table of mailboxes, behind it.
    pub mailboxes: u32,
    /// CRC32C of the tables.
    pub table_crc: u32,
    /// CRC32C of the bytes before.
    pub crc: u32,
}

/// A row of the table of parts; the two names, zeros up to a multiple of 8, and the pointers follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PartRow {
    /// Where in the file it begins.
    pub offset: u64,
    /// Its bytes, without the zeros up to the next block.
    pub bytes: u64,
    /// 0 a module's state, 1 a buffer of a module's state, 2 the caller's note.
    pub kind: u32,
    /// CRC32C of the part and the zeros up to the next block.
    pub crc: u32,
    /// Bytes of the module's name.
    pub module_len: u32,
    /// Bytes of the buffer's name.
    pub name_len: u32,
    /// Pointers in this part.
    pub pointers: u32,
    /// Zero.
    pub reserved: u32,
}

/// A pointer: the word holds 0, or 1 and its distance from the beginning of the part that it points into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PointerRow {
    /// Offset of the 8 bytes in the part.
    pub at: u64,
    /// Row of the part that it points into.
    pub part: u32,
    /// Zero.
    pub reserved: u32,
}

/// A row of the table of mailboxes; the name and zeros up to a multiple of 8 follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct MailboxRow {
    /// Records ever pushed, over all restores.
    pub given: u64,
    /// Records ever popped, over all restores.
    pub taken: u64,
    /// Bytes of the name.
    pub name_len: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Header>() == 80, "checkpoints of version 1 have 80 bytes before the tables");
const _: () = assert!(size_of::<PartRow>() == 40 && size_of::<PointerRow>() == 16, "rows of version 1");
const _: () = assert!(size_of::<MailboxRow>() == 24, "rows of version 1");

impl Header {
    /// The CRC that the header should carry.
    pub fn own_crc(&self) -> u32 {
        crc32c::crc32c(&bytemuck::bytes_of(self)[..76])
    }
}

/// Everything about a part but its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) part: Part,
    pub(super) kind: u32,
    pub(super) offset: u64,
    pub(super) crc: u32,
    pub(super) pointers: Vec<PointerRow>,
}

/// Header and tables as they stand in the file.
pub(super) fn encode(info: &Checkpoint, rows: &mut [Row], place: impl Fn(usize) -> (u64, u32)) -> Vec<u8> {
    let mut tables = Vec::new();
    let names = rows.iter().map(|r| r.part.module.len() + r.part.buffer.len() + 16 * r.pointers.len() + 64);
    let mailboxes = info.mailboxes.iter().map(|m| m.name.len() + 40);
    // The size does not depend on what is not known yet: offsets and checksums.
    tables.reserve(names.sum::<usize>() + mailboxes.sum::<usize>());
    for (i, row) in rows.iter_mut().enumerate() {
        (row.offset, row.crc) = place(i);
        let Row { part, kind, offset, crc, pointers } = row;
        put(
            &mut tables,
            &PartRow {
                offset: *offset,
                bytes: part.bytes,
                kind: *kind,
                crc: *crc,
                module_len: part.module.len() as u32,
                name_len: part.buffer.len() as u32,
                pointers: pointers.len() as u32,
                reserved: 0,
            },
        );
        tables.extend_from_slice(part.module.as_bytes());
        tables.extend_from_slice(part.buffer.as_bytes());
        align(&mut tables, 8);
        pointers.iter().for_each(|p| put(&mut tables, p));
    }
    for m in &info.mailboxes {
        put(&mut tables, &MailboxRow { given: m.given, taken: m.taken, name_len: m.name.len() as u32, reserved: 0 });
        tables.extend_from_slice(m.name.as_bytes());
        align(&mut tables, 8);
    }
    tables.resize((HEADER as usize + tables.len()).next_multiple_of(BLOCK as usize) - HEADER as usize, 0);
    let journal = info.journal.unwrap_or_default();
    let mut header = Header {
        magic: MAGIC,
        version: VERSION,
        header_bytes: HEADER as u32,
        log_id: journal.log_id,
        next_sequence: journal.next,
        created_ns: info.created_ns,
        file_bytes: info.file_bytes,
        table_bytes: tables.len() as u64,
        parts: rows.len() as u32,
        mailboxes: info.mailboxes.len() as u32,
        table_crc: crc32c::crc32c(&tables),
        crc: 0,
    };
    header.crc = header.own_crc();
    [bytemuck::bytes_of(&header), &tables].concat()
}

fn put<T: Pod>(to: &mut Vec<u8>, value: &T) {
    to.extend_from_slice(bytemuck::bytes_of(value));
}

fn align(to: &mut Vec<u8>, multiple: usize) {
    to.resize(to.len().next_multiple_of(multiple), 0);
}

/// Reads tables whose checksum was right; none if they contradict themselves all the same.
pub(super) fn decode(header: &Header, tables: &[u8]) -> Option<(Checkpoint, Vec<Row>)> {
    let mut from = Cursor(tables);
    let mut rows = Vec::new();
    let mut end = HEADER + header.table_bytes;
    for _ in 0..header.parts {
        let row: PartRow = from.take()?;
        let (module, buffer) = (from.text(row.module_len)?, from.text(row.name_len)?);
        from.pad(row.module_len.checked_add(row.name_len)?)?;
        let pointers = (0..row.pointers).map(|_| from.take()).collect::<Option<Vec<PointerRow>>>()?;
        let inside = |p: &PointerRow| p.at.checked_add(8).is_some_and(|e| e <= row.bytes) && p.part < header.parts;
        if row.offset != end || row.kind > NOTE || !pointers.iter().all(inside) {
            return None;
        }
        end = end.checked_add(row.bytes.checked_next_multiple_of(BLOCK)?)?;
        let part = Part { module, buffer, bytes: row.bytes };
        rows.push(Row { part, kind: row.kind, offset: row.offset, crc: row.crc, pointers });
    }
    let mut mailboxes = Vec::new();
    for _ in 0..header.mailboxes {
        let row: MailboxRow = from.take()?;
        mailboxes.push(Counts { name: from.text(row.name_len)?, given: row.given, taken: row.taken });
        from.pad(row.name_len)?;
    }
    if end != header.file_bytes || from.0.iter().any(|b| *b != 0) {
        return None;
    }
    let journal = (header.next_sequence != 0).then_some(Position { log_id: header.log_id, next: header.next_sequence });
    let parts = rows.iter().filter(|r| r.kind != NOTE).map(|r| r.part.clone()).collect();
    let (created_ns, file_bytes) = (header.created_ns, header.file_bytes);
    Some((Checkpoint { journal, created_ns, file_bytes, parts, mailboxes, note: Vec::new() }, rows))
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn bytes(&mut self, n: usize) -> Option<&[u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn take<T: Pod>(&mut self) -> Option<T> {
        self.bytes(size_of::<T>()).map(bytemuck::pod_read_unaligned)
    }

    fn text(&mut self, n: u32) -> Option<String> {
        String::from_utf8(self.bytes(n as usize)?.to_vec()).ok()
    }

    fn pad(&mut self, written: u32) -> Option<()> {
        let n = (written as usize).next_multiple_of(8) - written as usize;
        self.bytes(n).map(drop)
    }
}
