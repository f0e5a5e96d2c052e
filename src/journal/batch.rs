//! Records as bytes, one behind the other, ready but for what the moment of writing decides.

use std::sync::Arc;

use super::blocks::{Blocks, GATHER};
use super::disk::DIRECT_BLOCK;
use super::encode::{Place, header};
use super::format::{ALIGN, RECORD_HEADER, RecordHeader, TENSOR, record_bytes};
use super::options::Entry;
use super::pages::{LEAD, Pages};
use super::segment::Segment;
use super::staging::Room;
use crate::error::Result;

const BLOCK: u64 = DIRECT_BLOCK as u64;

/// Records encoded for a log: copied and with their checksums, which is the work in them. Their sequences, and what is known
/// to be durable, are filled in when they are written, which is little. So one thread can prepare a batch while another
/// writes and syncs the one before; a batch that was not taken can be appended again, also behind others.
#[derive(Debug, Clone, Default)]
pub struct Batch<'a> {
    bytes: Pages,
    /// Where in `bytes` the headers stand.
    headers: Vec<usize>,
    /// What is not copied: the place in `bytes` that it stands before, whether it is a tensor, and it.
    long: Vec<(usize, bool, Piece<'a>)>,
    /// Bytes of the whole in a segment.
    total: u64,
    /// Whether checksums of payloads and tensors are left for the moment of writing.
    unsummed: bool,
}

/// Bytes that lie elsewhere.
#[derive(Debug, Clone)]
enum Piece<'a> {
    Lent(&'a [u8]),
    Staged(Arc<Room>),
}

impl Piece<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Lent(bytes) => bytes,
            Piece::Staged(room) => room.bytes(),
        }
    }
}

impl<'a> Batch<'a> {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves the checksums of an empty batch for the moment of writing: for those who write to no log, most likely.
    pub(super) fn leave_unsummed(&mut self, unsummed: bool) {
        debug_assert!(self.is_empty());
        self.unsummed = unsummed;
    }

    /// An empty batch that uses this memory.
    pub(super) fn with_memory(mut bytes: Pages) -> Self {
        bytes.clear();
        Batch { bytes, ..Self::default() }
    }

    pub(super) fn into_memory(self) -> Pages {
        self.bytes
    }

    /// Adds a record behind the others. A payload or tensor of more than 1 MiB is not copied.
    ///
    /// # Errors
    /// [`Refused`](crate::Error::Refused) for an entry that breaks a limit; nothing was added then.
    pub fn push(&mut self, entry: &Entry<'a>) -> Result<()> {
        entry.check()?;
        self.begin(entry);
        for (piece, is_tensor) in [(entry.payload, false), (entry.tensor, true)] {
            if piece.len() > GATHER {
                self.long.push((self.bytes.len(), is_tensor, Piece::Lent(piece)));
            } else {
                self.bytes.extend(piece);
            }
        }
        self.end(entry);
        Ok(())
    }

    /// The same for any entry: all of it is copied.
    pub fn push_copy(&mut self, entry: &Entry<'_>) -> Result<()> {
        entry.check()?;
        self.headers.push(self.bytes.len());
        let bytes = entry.bytes();
        let (head, rest) = self.bytes.more(bytes as usize).split_at_mut(RECORD_HEADER as usize);
        head.copy_from_slice(bytemuck::bytes_of(&header(entry, !self.unsummed)));
        let (payload, rest) = rest.split_at_mut(entry.payload.len());
        payload.copy_from_slice(entry.payload);
        let (tensor, padding) = rest.split_at_mut(entry.tensor.len());
        tensor.copy_from_slice(entry.tensor);
        padding.fill(0);
        self.total += bytes;
        Ok(())
    }

    /// Whether records of so many bytes, see [`record_bytes`], can be laid out without moving those there are.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.bytes.has_room(bytes)
    }

    /// Makes room for them; what was laid out may move.
    pub(super) fn make_room(&mut self, bytes: usize) {
        self.bytes.make_room(bytes);
    }

    /// Adds a record with a payload of `len` bytes and no tensor, for which there is room, and says where it stands:
    /// somebody will call [`fill`](super::encode::fill). Until then nobody looks at it.
    pub(super) fn lay(&mut self, len: usize) -> *mut u8 {
        let bytes = record_bytes(len as u64, 0);
        self.headers.push(self.bytes.len());
        self.total += bytes;
        self.bytes.lengthen(bytes as usize)
    }

    /// The same for a payload that is lent: there is room for what is around it. Somebody will call [`fill_lent`](super::encode::fill_lent).
    pub(super) fn lay_lent(&mut self, payload: &'a [u8]) -> *mut u8 {
        let bytes = record_bytes(payload.len() as u64, 0);
        let at = self.bytes.len();
        self.headers.push(at);
        self.total += bytes;
        self.long.push((at + RECORD_HEADER as usize, false, Piece::Lent(payload)));
        self.bytes.lengthen(bytes as usize - payload.len())
    }

    /// Adds a record whose tensor is, or will be, in pinned memory; `tensor_crc` is of it, if checksums are not left for
    /// later. What the tensor is, the payload says.
    pub(super) fn push_staged(&mut self, entry: &Entry<'_>, room: Room, tensor_crc: u32) -> Result<()> {
        entry.check()?;
        let mut header = header(entry, !self.unsummed);
        (header.tensor_len, header.tensor_crc) = (room.len() as u64, tensor_crc);
        header.flags |= TENSOR;
        self.headers.push(self.bytes.len());
        self.bytes.extend(bytemuck::bytes_of(&header));
        self.bytes.extend(entry.payload);
        self.long.push((self.bytes.len(), true, Piece::Staged(Arc::new(room))));
        let padding = header.stride() - RECORD_HEADER - entry.payload.len() as u64 - header.tensor_len;
        self.bytes.extend(&[0; ALIGN as usize][..padding as usize]);
        self.total += header.stride();
        Ok(())
    }

    /// The same for a tensor that is copied now.
    pub(super) fn push_tensor(&mut self, entry: &Entry<'_>) -> Result<()> {
        let at = self.bytes.len();
        self.push_copy(entry)?;
        let mut header = self.header(at);
        header.flags |= TENSOR;
        self.set_header(at, &header);
        Ok(())
    }

    /// Waits until all bytes are there.
    pub(super) fn wait(&self) -> Result<()> {
        self.long.iter().try_for_each(|(_, _, piece)| match piece {
            Piece::Lent(_) => Ok(()),
            Piece::Staged(room) => room.wait(),
        })
    }

    /// Whether it holds pinned memory.
    pub(super) fn has_staged(&self) -> bool {
        self.long.iter().any(|(_, _, piece)| matches!(piece, Piece::Staged(_)))
    }

    fn begin(&mut self, entry: &Entry<'_>) {
        self.headers.push(self.bytes.len());
        self.bytes.extend(bytemuck::bytes_of(&header(entry, !self.unsummed)));
    }

    fn end(&mut self, entry: &Entry<'_>) {
        let padding = entry.bytes() - RECORD_HEADER - (entry.payload.len() + entry.tensor.len()) as u64;
        self.bytes.extend(&[0; ALIGN as usize][..padding as usize]);
        self.total += entry.bytes();
    }

    /// Records in it.
    pub fn len(&self) -> usize {
        self.headers.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Bytes that it takes in a segment.
    pub fn bytes(&self) -> u64 {
        self.total
    }

    /// Takes all records out; their memory is used again.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.headers.clear();
        self.long.clear();
        self.total = 0;
    }

    /// The records as they were added, in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut long = self.long.iter().peekable();
        self.headers.iter().map(move |&at| {
            let header = self.header(at);
            let mut from = at + RECORD_HEADER as usize;
            let mut piece = |len: usize, tensor| match long.next_if(|(before, is, _)| *before == from && *is == tensor)
            {
                Some((_, _, piece)) => piece.bytes(),
                None => {
                    from += len;
                    &self.bytes.bytes()[from - len..from]
                }
            };
            let (payload, tensor) =
                (piece(header.payload_len as usize, false), piece(header.tensor_len as usize, true));
            let RecordHeader { mailbox, msg_type, flags, producer_ns, .. } = header;
            Entry { mailbox, msg_type, flags, producer_ns, payload, tensor }
        })
    }

    fn header(&self, at: usize) -> RecordHeader {
        bytemuck::pod_read_unaligned(&self.bytes.bytes()[at..at + RECORD_HEADER as usize])
    }

    /// Fills in what was left open.
    pub(super) fn place(&mut self, place: Place) {
        if std::mem::take(&mut self.unsummed) {
            let crcs: Vec<_> = self.entries().map(|e| (crc32c::crc32c(e.payload), crc32c::crc32c(e.tensor))).collect();
            for (i, crcs) in crcs.into_iter().enumerate() {
                let mut header = self.header(self.headers[i]);
                (header.payload_crc, header.tensor_crc) = crcs;
                self.set_header(self.headers[i], &header);
            }
        }
        let bytes = self.bytes.bytes_mut();
        for (&at, sequence) in self.headers.iter().zip(place.first..) {
            let bytes = &mut bytes[at..at + RECORD_HEADER as usize];
            match bytemuck::try_from_bytes_mut::<RecordHeader>(bytes) {
                Ok(header) => header.place(sequence, &place),
                // Behind a long tensor, which is not copied, it may lie at any address.
                Err(_) => {
                    let mut header: RecordHeader = bytemuck::pod_read_unaligned(bytes);
                    header.place(sequence, &place);
                    bytes.copy_from_slice(bytemuck::bytes_of(&header));
                }
            }
        }
    }

    fn set_header(&mut self, at: usize, header: &RecordHeader) {
        self.bytes.bytes_mut()[at..at + RECORD_HEADER as usize].copy_from_slice(bytemuck::bytes_of(header));
    }

    /// Its bytes, in order.
    fn pieces(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        let (copied, ends) = (self.bytes.bytes(), self.long.iter().map(|(before, ..)| *before));
        let begins = std::iter::once(0).chain(ends.clone());
        let long =
            self.long.iter().map(|(_, _, piece)| piece.bytes()).chain(std::iter::once(&[][..])).collect::<Vec<_>>();
        let parts: Vec<_> = begins.zip(ends.chain([copied.len()])).zip(long).collect();
        parts.into_iter().flat_map(|((from, to), long)| [&copied[from..to], long])
    }

    /// The last bytes of `behind` and of this batch, together `len` of them, in the place of `behind`.
    pub(super) fn tail(&self, behind: &mut Vec<u8>, len: usize) {
        let mut missing = len;
        let mut parts = Vec::new();
        for piece in self.pieces().rev() {
            let part = &piece[piece.len() - missing.min(piece.len())..];
            missing -= part.len();
            parts.push(part);
        }
        behind.drain(..behind.len().saturating_sub(missing));
        parts.into_iter().rev().for_each(|part| behind.extend_from_slice(part));
    }

    /// How much further than `end` the batch should begin for its bytes to lie in whole blocks as they lie in memory: 0, or
    /// room for a filler. Of a batch that is one long tensor, it is the tensor that should.
    pub(super) fn gap(&self, end: u64) -> u64 {
        let first_long = self.long.first().map_or(0, |(before, ..)| *before as u64);
        let wanted = if first_long.is_multiple_of(ALIGN) && first_long < BLOCK { first_long } else { 0 };
        let gap = (BLOCK - (end + wanted) % BLOCK) % BLOCK;
        if gap == 0 || gap >= RECORD_HEADER { gap } else { gap + BLOCK }
    }

    /// Writes the records one behind the other from an offset on.
    pub(super) fn write(&self, segment: &Segment, mut offset: u64) -> Result<()> {
        for piece in self.pieces().filter(|piece| !piece.is_empty()) {
            segment.write(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes them in whole blocks past the page cache, from an offset that is a multiple of the block on, behind `lead`.
    /// Gives the reason if there are no such writes after all: then they were written in the other way.
    pub(super) fn write_blocks(&mut self, segment: &mut Segment, offset: u64, lead: &[u8]) -> Result<Option<String>> {
        if self.long.is_empty() && lead.len() <= LEAD && lead.len().is_multiple_of(DIRECT_BLOCK) {
            return segment.write_blocks(offset, self.bytes.framed(lead));
        }
        let mut blocks = Blocks::new(segment, offset);
        blocks.put(lead)?;
        for piece in self.pieces() {
            blocks.put(piece)?;
        }
        blocks.finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on fails

    use super::*;

    #[test]
    fn entries_come_out_as_they_went_in() {
        let long: Vec<u8> = (0..GATHER + 5).map(|i| i as u8).collect();
        let of = |payload, tensor, n: u16| Entry { mailbox: 9, msg_type: n, flags: 1, producer_ns: 7, payload, tensor };
        let entries = [
            of(b"", b"", 0),
            of(b"abc", b"", 1),
            of(&long, &long[1..], 2),
            of(&long[..GATHER], &long, 3),
            of(b"", &long, 4),
            of(&long, b"x", 5),
        ];
        let (mut borrowed, mut copied, mut unsummed) = (Batch::new(), Batch::new(), Batch::new());
        unsummed.leave_unsummed(true);
        for entry in &entries {
            borrowed.push(entry).unwrap();
            copied.push_copy(entry).unwrap();
            unsummed.push(entry).unwrap();
        }
        for batch in [&borrowed, &copied, &unsummed] {
            assert!(batch.entries().eq(entries));
            assert_eq!((batch.len(), batch.bytes()), (6, entries.iter().map(Entry::bytes).sum()));
        }
        assert!(borrowed.bytes.len() < copied.bytes.len());
        // The ends of all kinds, with and without something before them.
        for len in [0, 1, 4095] {
            let ends = [&borrowed, &copied].map(|batch| {
                let mut behind = vec![7; 3];
                batch.tail(&mut behind, len);
                behind
            });
            assert!(ends[0] == ends[1] && ends[0].len() == len);
        }
        let (mut short, mut behind) = (Batch::new(), vec![7; 100]);
        short.push(&of(b"abc", b"", 1)).unwrap();
        short.tail(&mut behind, 90);
        assert!(behind.len() == 90 && behind[..10] == [7; 10] && behind.ends_with(b"abc\0\0\0\0\0"));
        // Placed, all three are the same; placed anew, too.
        let place = Place { id_crc: crc32c::crc32c(&[3; 16]), first: 40, synced: 39, wall_ns: 5 };
        for first in [1, 40] {
            [&mut borrowed, &mut copied, &mut unsummed].into_iter().for_each(|b| b.place(Place { first, ..place }));
        }
        for (i, entry) in entries.iter().enumerate() {
            let [a, b, c] = [&borrowed, &copied, &unsummed].map(|batch| batch.header(batch.headers[i]));
            assert!(a == b && b == c && a.header_crc == a.own_crc(&[3; 16]));
            assert_eq!((a.sequence, a.payload_crc), (40 + i as u64, crc32c::crc32c(entry.payload)));
        }
        copied.clear();
        assert!(copied.is_empty() && copied.bytes() == 0 && copied.entries().next().is_none());
        assert!(copied.push(&Entry { flags: 0x8000, ..Entry::default() }).is_err() && copied.is_empty());
    }
}
