//! Bytes in whole pages, with room before them: what a write past the page cache can be made from without a copy.

use bytemuck::{Pod, Zeroable};
use memmap2::{Advice, MmapMut, MmapRaw};

use super::disk::DIRECT_BLOCK;

/// Blocks before the bytes, for what a write has to begin with.
pub(super) const LEAD: usize = 2 * DIRECT_BLOCK;

/// A huge page, where the machine has them. A megabyte of it is one piece to a disk, and else hundreds, more than many a disk
/// takes with one request: a write then takes up to 1.4 times as long.
const HUGE: usize = 2 << 20;
/// Who needs less than that gets ordinary memory.
const HUGE_FROM: usize = HUGE / 8;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; DIRECT_BLOCK]);

const _: () = assert!(align_of::<Page>() == DIRECT_BLOCK && size_of::<Page>() == DIRECT_BLOCK, "a page is a block");

/// Where bytes lie, from a multiple of the block on.
enum Memory {
    Plain(Vec<Page>),
    Huge(Mapping),
}

/// Whole huge pages inside a mapping. A raw one: [`Pages::lengthen`] gives out pointers into it, and no reference may come between.
struct Mapping {
    map: MmapRaw,
    /// Where they begin in it, and how long they are, bytes.
    at: usize,
    bytes: usize,
}

impl Mapping {
    /// Zeros, at least so many bytes; none if there is no memory.
    fn new(bytes: usize) -> Option<Self> {
        let bytes = bytes.checked_next_multiple_of(HUGE)?;
        // One page more than is wanted, for the part of the mapping that begins where a huge page does.
        let map = MmapRaw::from(MmapMut::map_anon(bytes.checked_add(HUGE)?).ok()?);
        // Advice: without huge pages it is memory as well.
        let _ = map.advise(Advice::HugePage);
        let at = map.as_ptr().addr().next_multiple_of(HUGE) - map.as_ptr().addr();
        Some(Mapping { map, at, bytes })
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `at` is less than a huge page, by which the mapping is longer than `bytes`.
        unsafe { self.map.as_mut_ptr().add(self.at) }
    }
}

impl Memory {
    /// At least so many bytes, zeros.
    fn new(bytes: usize) -> Self {
        let huge = if bytes < HUGE_FROM { None } else { Mapping::new(bytes) };
        huge.map_or_else(|| Memory::Plain(vec![Page::zeroed(); bytes.div_ceil(DIRECT_BLOCK)]), Memory::Huge)
    }

    /// All of it, whole blocks.
    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Plain(pages) => bytemuck::cast_slice(pages),
            // SAFETY: mapped as long as `self`, whose borrow the slice has; anonymous mappings begin as zeros.
            Memory::Huge(m) => unsafe { std::slice::from_raw_parts(m.start(), m.bytes) },
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Plain(pages) => bytemuck::cast_slice_mut(pages),
            // SAFETY: as above, and the borrow is the only one.
            Memory::Huge(m) => unsafe { std::slice::from_raw_parts_mut(m.start(), m.bytes) },
        }
    }

    // Neither of these looks at any of it.
    fn len(&self) -> usize {
        match self {
            Memory::Plain(pages) => pages.len() * DIRECT_BLOCK,
            Memory::Huge(m) => m.bytes,
        }
    }

    fn start(&mut self) -> *mut u8 {
        match self {
            Memory::Plain(pages) => pages.as_mut_ptr().cast(),
            Memory::Huge(m) => m.start(),
        }
    }
}

/// Bytes that begin at a multiple of the block in memory.
pub(super) struct Pages {
    memory: Memory,
    len: usize,
}

impl Default for Pages {
    fn default() -> Self {
        Pages { memory: Memory::Plain(Vec::new()), len: 0 }
    }
}

impl Clone for Pages {
    fn clone(&self) -> Self {
        let mut copy = Pages::default();
        copy.extend(self.bytes());
        copy
    }
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
        self.memory.bytes().get(LEAD..LEAD + self.len).unwrap_or_default()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut().get_mut(LEAD..LEAD + self.len).unwrap_or_default()
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.more(bytes.len()).copy_from_slice(bytes);
    }

    /// Makes it so many bytes longer; what they are, the caller says.
    pub(super) fn more(&mut self, bytes: usize) -> &mut [u8] {
        let (from, to) = (LEAD + self.len, LEAD + self.len + bytes);
        if to > self.memory.len() {
            self.grow(to);
        }
        self.len += bytes;
        &mut self.memory.bytes_mut()[from..to]
    }

    /// Whether it can become so many bytes longer and stay where it is.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        LEAD + self.len + bytes <= self.memory.len()
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
        let at = unsafe { self.memory.start().add(LEAD + self.len) };
        self.len += bytes;
        at
    }

    #[cold]
    fn grow(&mut self, bytes: usize) {
        let mut memory = Memory::new(bytes.max(2 * self.memory.len()));
        let kept = &self.memory.bytes()[..(LEAD + self.len).min(self.memory.len())];
        memory.bytes_mut()[..kept.len()].copy_from_slice(kept);
        self.memory = memory;
    }

    /// The bytes with `lead`, up to [`LEAD`] whole blocks, before them and zeros behind, up to a whole block.
    pub(super) fn framed(&mut self, lead: &[u8]) -> &[u8] {
        debug_assert!(lead.len() <= LEAD && lead.len().is_multiple_of(DIRECT_BLOCK));
        let (end, whole) = (LEAD + self.len, (LEAD + self.len).next_multiple_of(DIRECT_BLOCK));
        if whole > self.memory.len() {
            self.grow(whole);
        }
        let all = self.memory.bytes_mut();
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
        // What is long moves to memory of another kind, and stays what it is.
        let mut long = pages.clone();
        let content = |i: usize| (i * 7 + i / 4096) as u8;
        long.clear();
        for from in (0..5 * HUGE / 2).step_by(10_000) {
            long.extend(&(from..from + 10_000).map(content).collect::<Vec<_>>());
        }
        assert!(matches!(long.memory, Memory::Huge(..)) && matches!(pages.memory, Memory::Plain(_)));
        assert!(long.memory.bytes().as_ptr().addr().is_multiple_of(HUGE) && long.memory.len() == 4 * HUGE);
        for all in [&long, &long.clone()] {
            assert!(all.bytes().iter().enumerate().all(|(i, b)| *b == content(i)) && all.len() == 5_250_000);
        }
        assert!(long.has_room(4 * HUGE - LEAD - long.len()) && !long.has_room(4 * HUGE - LEAD - long.len() + 1));
        let (at, end) = (long.lengthen(1), long.memory.bytes().as_ptr().addr() + LEAD + long.len());
        assert_eq!(at.addr() + 1, end);
        // What was there before is not in the zeros behind.
        pages.clear();
        pages.extend(&[1, 2]);
        assert_eq!(pages.framed(&[])[..4], [1, 2, 0, 0]);
    }
}
