//! Bytes in whole pages, with room before them: what a write past the page cache can be made from without a copy.

use bytemuck::{Pod, Zeroable};

use super::disk::DIRECT_BLOCK;

/// Blocks before the bytes, for what a write has to begin with.
pub(super) const LEAD: usize = 2 * DIRECT_BLOCK;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; DIRECT_BLOCK]);

const _: () = assert!(align_of::<Page>() == DIRECT_BLOCK && size_of::<Page>() == DIRECT_BLOCK, "a page is a block");

/// Bytes that begin at a multiple of the block in memory.
#[derive(Clone, Default)]
pub(super) struct Pages {
    pages: Vec<Page>,
    len: usize,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pages({} bytes)", self.len)
    }
}

impl Pages {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.pages).get(LEAD..LEAD + self.len).unwrap_or_default()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.pages).get_mut(LEAD..LEAD + self.len).unwrap_or_default()
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.more(bytes.len()).copy_from_slice(bytes);
    }

    /// Makes it so many bytes longer; what they are, the caller says.
    pub(super) fn more(&mut self, bytes: usize) -> &mut [u8] {
        let (from, to) = (LEAD + self.len, LEAD + self.len + bytes);
        if to > self.pages.len() * DIRECT_BLOCK {
            self.grow(to);
        }
        self.len += bytes;
        &mut bytemuck::cast_slice_mut(&mut self.pages)[from..to]
    }

    /// Whether it can become so many bytes longer and stay where it is.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        LEAD + self.len + bytes <= self.pages.len() * DIRECT_BLOCK
    }

    /// Makes room for so many bytes behind the end.
    pub(super) fn make_room(&mut self, bytes: usize) {
        if !self.has_room(bytes) {
            self.grow(LEAD + self.len + bytes);
        }
    }

    /// Makes it so many bytes longer, for which there is room, without looking at any: others may be writing some of those
    /// there are. Returns where the new ones are.
    pub(super) fn lengthen(&mut self, bytes: usize) -> *mut u8 {
        assert!(self.has_room(bytes), "room is made before");
        // SAFETY: inside the allocation, as was just seen.
        let at = unsafe { self.pages.as_mut_ptr().cast::<u8>().add(LEAD + self.len) };
        self.len += bytes;
        at
    }

    #[cold]
    fn grow(&mut self, bytes: usize) {
        let pages = bytes.div_ceil(DIRECT_BLOCK).max(2 * self.pages.len());
        self.pages.resize(pages, Page::zeroed());
    }

    /// The bytes with `lead`, up to [`LEAD`] whole blocks, before them and zeros behind, up to a whole block.
    pub(super) fn framed(&mut self, lead: &[u8]) -> &[u8] {
        debug_assert!(lead.len() <= LEAD && lead.len().is_multiple_of(DIRECT_BLOCK));
        let (end, whole) = (LEAD + self.len, (LEAD + self.len).next_multiple_of(DIRECT_BLOCK));
        if whole > self.pages.len() * DIRECT_BLOCK {
            self.grow(whole);
        }
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut self.pages);
        all[LEAD - lead.len()..LEAD].copy_from_slice(lead);
        all[end..whole].fill(0);
        &all[LEAD - lead.len()..whole]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_framed_by_whole_aligned_blocks() {
        let mut pages = Pages::default();
        assert!(pages.bytes().is_empty() && pages.bytes_mut().is_empty());
        for n in [1usize, 5000, 4096, 9000] {
            pages.extend(&vec![n as u8; n]);
        }
        for lead in [0, 1, 2] {
            let lead = vec![9; lead * DIRECT_BLOCK];
            let framed = pages.framed(&lead);
            assert!(framed.len().is_multiple_of(DIRECT_BLOCK) && framed.as_ptr().addr().is_multiple_of(DIRECT_BLOCK));
            assert!(framed.starts_with(&lead) && framed[lead.len()] == 1);
            assert!(framed[lead.len() + 18_097..].iter().all(|b| *b == 0));
        }
        assert_eq!((pages.len(), pages.bytes()[18_096]), (18_097, 9000usize as u8));
        // What was there before is not in the zeros behind.
        pages.clear();
        pages.extend(&[1, 2]);
        assert_eq!(pages.framed(&[])[..4], [1, 2, 0, 0]);
    }
}
