//! Bytes of which the zeros need no room: large memories are mostly empty.

use super::format::BLOCK;
use crate::error::{Error, Result};

/// Bytes fetched at once.
const CHUNK: usize = 1 << 20;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// A run of bytes, with its blocks of zeros left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) bytes: u64,
    /// Offset, a multiple of a block, and what stands there; in order, none empty.
    pub(crate) pieces: Vec<(u64, Vec<u8>)>,
}

fn is_zero(block: &[u8]) -> bool {
    block == &ZEROS[..block.len()]
}

impl Sparse {
    /// Bytes that `fetch` gives piece by piece.
    pub(crate) fn collect(bytes: u64, mut fetch: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<Self> {
        let mut sparse = Sparse { bytes, pieces: Vec::new() };
        let mut chunk = vec![0; CHUNK.min(bytes as usize)];
        let mut at = 0;
        while at < bytes {
            let want = CHUNK.min((bytes - at) as usize);
            fetch(at, &mut chunk[..want])?;
            sparse.add(at, &chunk[..want])?;
            at += want as u64;
        }
        Ok(sparse)
    }

    pub(crate) fn of(bytes: &[u8]) -> Result<Self> {
        Self::collect(bytes.len() as u64, |at, into| {
            into.copy_from_slice(&bytes[at as usize..][..into.len()]);
            Ok(())
        })
    }

    /// Adds what follows, without its blocks of zeros.
    fn add(&mut self, at: u64, chunk: &[u8]) -> Result<()> {
        let blocks: Vec<&[u8]> = chunk.chunks(ZEROS.len()).collect();
        let mut done = 0;
        for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let len: usize = run.iter().map(|b| b.len()).sum();
            if !is_zero(run[0]) {
                let mut piece = Vec::new();
                piece.try_reserve_exact(len).map_err(|e| no_room(len as u64, &e.to_string()))?;
                piece.extend_from_slice(&chunk[done..done + len]);
                self.pieces.push((at + done as u64, piece));
            }
            done += len;
        }
        Ok(())
    }

    /// Bytes with the zeros up to the next block.
    pub(crate) fn stored(&self) -> u64 {
        self.bytes.next_multiple_of(BLOCK)
    }

    /// CRC32C of all bytes, and of the zeros up to the next block.
    pub(crate) fn crc(&self) -> u32 {
        let (mut crc, mut at) = (0, 0);
        for (offset, piece) in &self.pieces {
            crc = crc_of_zeros(crc, offset - at);
            crc = crc32c::crc32c_append(crc, piece);
            at = offset + piece.len() as u64;
        }
        crc_of_zeros(crc, self.stored() - at)
    }

    /// All bytes in one piece.
    pub(crate) fn dense(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.bytes as usize).map_err(|e| no_room(self.bytes, &e.to_string()))?;
        bytes.resize(self.bytes as usize, 0);
        for (offset, piece) in &self.pieces {
            bytes[*offset as usize..][..piece.len()].copy_from_slice(piece);
        }
        Ok(bytes)
    }

    /// Gives the pieces to `store`, and zeros wherever `fetch` finds something else than zeros between them.
    pub(crate) fn put(
        &self,
        mut fetch: impl FnMut(u64, &mut [u8]) -> Result<()>,
        mut store: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut clear = |from: u64, to: u64, store: &mut dyn FnMut(u64, &[u8]) -> Result<()>| {
            for at in (from..to).step_by(CHUNK) {
                let part = &mut chunk[..CHUNK.min((to - at) as usize)];
                fetch(at, part)?;
                for (i, block) in part.chunks(ZEROS.len()).enumerate().filter(|(_, b)| !is_zero(b)) {
                    store(at + (i * ZEROS.len()) as u64, &ZEROS[..block.len()])?;
                }
            }
            Ok(())
        };
        let mut at = 0;
        for (offset, piece) in &self.pieces {
            clear(at, *offset, &mut store)?;
            store(*offset, piece)?;
            at = offset + piece.len() as u64;
        }
        clear(at, self.bytes, &mut store)
    }
}

fn crc_of_zeros(mut crc: u32, mut n: u64) -> u32 {
    while n > 0 {
        let some = n.min(ZEROS.len() as u64);
        crc = crc32c::crc32c_append(crc, &ZEROS[..some as usize]);
        n -= some;
    }
    crc
}

fn no_room(bytes: u64, why: &str) -> Error {
    Error::Unavailable { what: "host memory", reason: format!("{bytes} bytes of a checkpoint: {why}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on fails

    use super::*;

    fn patterns() -> Vec<Vec<u8>> {
        let lens = [0, 1, 8, 4095, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 5000, 3 * CHUNK];
        let fill = |len: usize, every: usize| (0..len).map(|i| u8::from(i % every == every / 2)).collect();
        lens.iter().flat_map(|len| [1, 3000, 10_000, CHUNK, usize::MAX].map(|every| fill(*len, every))).collect()
    }

    #[test]
    fn bytes_come_back_and_zeros_take_no_room() {
        for bytes in patterns() {
            let sparse = Sparse::of(&bytes).unwrap();
            assert_eq!(sparse.dense().unwrap(), bytes);
            let mut padded = bytes.clone();
            padded.resize(bytes.len().next_multiple_of(4096), 0);
            assert_eq!((sparse.crc(), sparse.stored()), (crc32c::crc32c(&padded), padded.len() as u64));
            let kept: usize = sparse.pieces.iter().map(|(_, p)| p.len()).sum();
            let wanted: usize = bytes.chunks(4096).filter(|b| b.iter().any(|b| *b != 0)).map(<[u8]>::len).sum();
            assert_eq!(kept, wanted);
        }
    }

    #[test]
    fn putting_back_overwrites_what_was_there() {
        for bytes in patterns() {
            let sparse = Sparse::of(&bytes).unwrap();
            for old in [0, 9] {
                let target = std::cell::RefCell::new(vec![old; bytes.len()]);
                let fetch = |at: u64, into: &mut [u8]| {
                    into.copy_from_slice(&target.borrow()[at as usize..][..into.len()]);
                    Ok(())
                };
                let store = |at: u64, from: &[u8]| {
                    target.borrow_mut()[at as usize..][..from.len()].copy_from_slice(from);
                    Ok(())
                };
                sparse.put(fetch, store).unwrap();
                assert!(*target.borrow() == bytes, "{} bytes over {old}", bytes.len());
            }
        }
    }
}
