//! Tensors on their way off the device: a pinned arena, and copies that run beside everything else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::DIRECT_BLOCK;
use crate::backend::{Copies, Pinned};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

/// Bytes of the arena. A tensor of more than half of it goes through it in parts.
pub(super) const ARENA: usize = 64 << 20;
/// Bytes of one copy: checksums of one are reckoned while the next is under way.
pub(super) const PART: usize = 4 << 20;

/// Page-aligned pinned memory, given out in order and taken back in any.
#[derive(Debug)]
pub(super) struct Arena {
    device: Device,
    pinned: Pinned,
    copies: Box<dyn Copies>,
    ranges: Mutex<Ranges>,
}

#[derive(Debug, Default)]
struct Ranges {
    /// Where the next range begins, if it fits.
    next: usize,
    /// Given out, oldest first: begin, end, whether it is free again.
    out: VecDeque<(usize, usize, bool)>,
}

impl Ranges {
    /// A place for so many bytes, if there is one now.
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let bytes = bytes.next_multiple_of(DIRECT_BLOCK);
        let Some(&(oldest, ..)) = self.out.front() else {
            self.next = 0;
            return (bytes <= ARENA).then(|| self.give(0, bytes));
        };
        if self.next > oldest {
            if bytes <= ARENA - self.next {
                return Some(self.give(self.next, bytes));
            }
            return (bytes <= oldest).then(|| self.give(0, bytes));
        }
        (bytes <= oldest - self.next).then(|| self.give(self.next, bytes))
    }

    fn give(&mut self, begin: usize, bytes: usize) -> usize {
        self.out.push_back((begin, begin + bytes, false));
        self.next = begin + bytes;
        begin
    }

    fn free(&mut self, begin: usize) {
        if let Some(range) = self.out.iter_mut().find(|range| range.0 == begin && !range.2) {
            range.2 = true;
        }
        while self.out.front().is_some_and(|range| range.2) {
            self.out.pop_front();
        }
    }
}

impl Arena {
    pub(super) fn new(device: &Device) -> Result<Arc<Self>> {
        let copies = device.backend.copies()?;
        let pinned = device.backend.alloc_pinned(ARENA)?;
        Ok(Arc::new(Arena { device: device.clone(), pinned, copies, ranges: Mutex::default() }))
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Room for so many bytes, more than 0, if there is some now.
    pub(super) fn room(self: &Arc<Self>, bytes: usize) -> Option<Room> {
        let begin = self.ranges().take(bytes)?;
        Some(Room { arena: self.clone(), begin, bytes, last: None, tensor: None })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.device.backend.free_pinned(self.pinned);
    }
}

/// Gets the parts of a tensor in order.
pub(super) type Each<'a> = &'a mut dyn FnMut(&[u8]);

/// A range of the arena, and what is copied into it.
#[derive(Debug)]
pub(super) struct Room {
    arena: Arc<Arena>,
    begin: usize,
    bytes: usize,
    last: Option<u64>,
    /// Held until the copy has ended.
    tensor: Option<Arc<Tensor>>,
}

impl Room {
    /// Enqueues copies of the tensor's bytes from `offset` on; calls `each` with the parts in order when they have arrived,
    /// if that is wanted.
    pub(super) fn fetch(&mut self, tensor: &Arc<Tensor>, offset: usize, mut each: Option<Each<'_>>) -> Result<()> {
        self.tensor = Some(tensor.clone());
        let mut under_way = VecDeque::new();
        for at in (0..self.bytes).step_by(PART) {
            let len = PART.min(self.bytes - at);
            let from = tensor.address() + (offset + at) as u64;
            // SAFETY: the range is this value's alone; the tensor, which is held, has these bytes, by the check of its hold.
            let number = unsafe { self.arena.copies.fetch(self.arena.pinned.host.add(self.begin + at), from, len) }?;
            self.last = Some(number);
            under_way.push_back((number, at, len));
        }
        if let Some(each) = &mut each {
            for (number, at, len) in under_way {
                self.arena.copies.wait(number)?;
                each(&self.all()[at..at + len]);
            }
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Waits until the bytes are there.
    pub(super) fn wait(&self) -> Result<()> {
        self.last.map_or(Ok(()), |number| self.arena.copies.wait(number))
    }

    /// The bytes; what was there before as long as they were not waited for.
    pub(super) fn bytes(&self) -> &[u8] {
        self.all()
    }

    fn all(&self) -> &[u8] {
        // SAFETY: a range of the arena that is this value's alone; the device writes it until the copies were waited for,
        // which whoever hands the batch on does first.
        unsafe { std::slice::from_raw_parts(self.arena.pinned.host.add(self.begin), self.bytes) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The device must be done with it, also where nobody wanted the bytes after all.
        if let Err(error) = self.wait() {
            tracing::warn!(%error, "a copy of the journal's failed");
        }
        self.tensor = None;
        self.arena.ranges().free(self.begin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_and_all_come_back() {
        let mut rng = fastrand::Rng::with_seed(4);
        let (mut ranges, mut mine): (Ranges, Vec<(usize, usize)>) = (Ranges::default(), Vec::new());
        for _ in 0..20_000 {
            if rng.bool()
                && let Some(begin) = ranges.take(rng.usize(1..ARENA / 2))
            {
                let end = ranges.next;
                assert!(begin.is_multiple_of(DIRECT_BLOCK) && end <= ARENA);
                assert!(mine.iter().all(|(b, e)| end <= *b || *e <= begin), "{mine:?} and {begin}..{end}");
                mine.push((begin, end));
            } else if !mine.is_empty() {
                ranges.free(mine.swap_remove(rng.usize(..mine.len())).0);
            }
        }
        mine.drain(..).for_each(|(begin, _)| ranges.free(begin));
        assert!(ranges.out.is_empty() && ranges.take(ARENA) == Some(0) && ranges.take(1).is_none());
    }
}
