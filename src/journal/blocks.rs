//! Writes past the page cache: in whole blocks, whatever the pieces.

use super::disk::DIRECT_BLOCK;
use super::pages::Pages;
use super::segment::Segment;
use crate::error::Result;

/// A payload or tensor that is longer is written from where it lies; what is shorter is copied together up to so many bytes.
pub(super) const GATHER: usize = 1 << 20;

/// Writes pieces of any length in whole blocks: long ones that lie as they should from where they are, the others copied.
pub(super) struct Blocks<'a> {
    segment: &'a mut Segment,
    /// Where what is staged goes.
    offset: u64,
    staged: Pages,
    refused: Option<String>,
}

impl<'a> Blocks<'a> {
    /// From an offset on that is a multiple of the block.
    pub(super) fn new(segment: &'a mut Segment, offset: u64) -> Self {
        Blocks { segment, offset, staged: Pages::default(), refused: None }
    }

    pub(super) fn put(&mut self, mut piece: &[u8]) -> Result<()> {
        if self.staged.len().is_multiple_of(DIRECT_BLOCK) && piece.as_ptr().addr().is_multiple_of(DIRECT_BLOCK) {
            let whole = piece.len() - piece.len() % DIRECT_BLOCK;
            self.flush()?;
            self.write(&piece[..whole])?;
            piece = &piece[whole..];
        }
        while !piece.is_empty() {
            let part = piece.len().min(GATHER - self.staged.len());
            self.staged.extend(&piece[..part]);
            piece = &piece[part..];
            if self.staged.len() == GATHER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what is left. Gives the reason if there are no such writes after all: then it was written in the other way.
    pub(super) fn finish(mut self) -> Result<Option<String>> {
        self.flush()?;
        Ok(self.refused)
    }

    /// Writes what is staged, with zeros up to a whole block: only at the end, and where whole blocks are staged.
    fn flush(&mut self) -> Result<()> {
        let mut staged = std::mem::take(&mut self.staged);
        self.write(staged.framed(&[]))?;
        staged.clear();
        self.staged = staged;
        Ok(())
    }

    fn write(&mut self, blocks: &[u8]) -> Result<()> {
        if !blocks.is_empty() {
            let refused = self.segment.write_blocks(self.offset, blocks)?;
            self.refused = self.refused.take().or(refused);
            self.offset += blocks.len() as u64;
        }
        Ok(())
    }
}
