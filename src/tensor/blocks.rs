//! Memory of a pool in blocks of certain sizes: taken from the device when needed, kept for the next of its size when free,
//! given back when another size needs the room. Never more than the limit.

use std::collections::BTreeMap;

use crate::abi;
use crate::backend::Blocks;
use crate::device::Device;
use crate::error::{Error, Result};

/// The smallest block, and the alignment of all.
const LEAST: u64 = 256;
const PATTERN: u8 = abi::WM_POISON_BYTE as u8;

#[derive(Debug)]
pub(super) struct Store {
    device: Device,
    memory: Box<dyn Blocks>,
    limit: u64,
    poison: bool,
    /// Bytes of blocks in use.
    pub(super) used: u64,
    /// The most that `used` has been.
    pub(super) peak: u64,
    /// Bytes of free blocks that are kept.
    pub(super) kept: u64,
    /// Free blocks by size.
    free: BTreeMap<u64, Vec<u64>>,
}

/// Why a block was not given.
pub(super) enum Short {
    /// The limit, or the device, has no room.
    Room,
    /// Another error.
    Other(Error),
}

impl Store {
    pub(super) fn new(device: &Device, limit: u64, poison: bool) -> Result<Self> {
        let (device, memory) = (device.clone(), device.backend.blocks()?);
        Ok(Store { device, memory, limit, poison, used: 0, peak: 0, kept: 0, free: BTreeMap::new() })
    }

    /// The size of the block that `bytes` need: at most a quarter more.
    pub(super) fn size_of(bytes: u64) -> u64 {
        let bytes = bytes.max(LEAST);
        let step = (1u64 << (63 - bytes.leading_zeros()) >> 2).max(LEAST);
        bytes.next_multiple_of(step)
    }

    /// A block of `size` bytes, a value of [`size_of`](Self::size_of).
    pub(super) fn take(&mut self, size: u64) -> Result<u64, Short> {
        if let Some(address) = self.free.get_mut(&size).and_then(Vec::pop) {
            self.kept -= size;
            return self.hand_out(address, size);
        }
        if self.used.saturating_add(size) > self.limit {
            return Err(Short::Room);
        }
        if self.used + self.kept + size > self.limit {
            self.shrink(self.limit - size - self.used);
        }
        let address = match self.memory.alloc(size as usize) {
            Ok(address) => address,
            // Somebody else may have the device's memory: what is kept here could make the room.
            Err(_) if self.kept > 0 => {
                self.shrink(0);
                self.memory.alloc(size as usize).map_err(short)?
            }
            Err(e) => return Err(short(e)),
        };
        if self.poison
            && let Err(e) = self.device.backend.fill(address, size as usize, PATTERN)
        {
            self.memory.free(address, size as usize);
            return Err(Short::Other(e));
        }
        self.hand_out(address, size)
    }

    fn hand_out(&mut self, address: u64, size: u64) -> Result<u64, Short> {
        self.used += size;
        self.peak = self.peak.max(self.used);
        if self.poison {
            // What was written after it was freed is not used again, nor counted as free.
            self.check(address, size).map_err(Short::Other)?;
        }
        Ok(address)
    }

    /// In debug mode: whether a free block is as it was left.
    fn check(&self, address: u64, size: u64) -> Result<()> {
        let mut bytes = vec![0; size.min(1 << 20) as usize];
        for from in (0..size).step_by(bytes.len()) {
            let n = (size - from).min(bytes.len() as u64) as usize;
            self.device.backend.download(&mut bytes[..n], address + from)?;
            if let Some(at) = bytes[..n].iter().position(|b| *b != PATTERN) {
                return Err(Error::WrittenAfterRelease { address, offset: from + at as u64, bytes: size });
            }
        }
        Ok(())
    }

    /// Takes a block back.
    pub(super) fn give(&mut self, address: u64, size: u64) {
        if self.poison
            && let Err(e) = self.device.backend.fill(address, size as usize, PATTERN)
        {
            tracing::warn!(error = %e, address, size, "a freed block could not be poisoned: it is not used again");
            return;
        }
        self.used -= size;
        self.kept += size;
        self.free.entry(size).or_default().push(address);
    }

    /// Gives free blocks back to the device until at most `keep` bytes of them are left, the largest first.
    pub(super) fn shrink(&mut self, keep: u64) {
        while self.kept > keep {
            let Some(mut entry) = self.free.last_entry() else { break };
            let size = *entry.key();
            match entry.get_mut().pop() {
                Some(address) => {
                    self.kept -= size;
                    self.memory.free(address, size as usize);
                }
                None => {
                    entry.remove();
                }
            }
        }
        self.memory.trim((self.used + self.kept) as usize);
    }

    /// Gives a block back to the device that the store has given out: at the pool's end.
    pub(super) fn end(&mut self, address: u64, size: u64) {
        self.memory.free(address, size as usize);
    }
}

fn short(e: Error) -> Short {
    match e {
        Error::Driver { ref reason, .. } if reason.contains("OUT_OF_MEMORY") => Short::Room,
        Error::Unavailable { .. } => Short::Room,
        other => Short::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(result: Result<u64, Short>) -> Option<u64> {
        match result {
            Ok(address) => Some(address),
            Err(Short::Room) => None,
            Err(Short::Other(e)) => panic!("{e}"),
        }
    }

    #[test]
    fn sizes_waste_at_most_a_quarter() {
        for bytes in (1..5000).chain([1 << 20, (1 << 20) + 1, (1 << 30) + 77, 3 << 40]) {
            let size = Store::size_of(bytes);
            assert!(size >= bytes && size.is_multiple_of(LEAST) && Store::size_of(size) == size, "{bytes} {size}");
            assert!(bytes < 4 * LEAST || size - bytes <= bytes / 4, "{bytes} {size}");
        }
    }

    #[test]
    fn the_limit_holds_and_free_blocks_make_room() {
        let mut store = Store::new(&Device::twin(), 4096, false).unwrap_or_else(|e| panic!("{e}"));
        let blocks: Vec<u64> = (0..4).filter_map(|_| room(store.take(1024))).collect();
        assert_eq!((blocks.len(), room(store.take(256))), (4, None));
        for address in blocks {
            store.give(address, 1024);
        }
        assert_eq!((store.used, store.kept, store.peak), (0, 4096, 4096));
        // Another size: kept blocks leave, only as many as must.
        assert!(room(store.take(2048)).is_some());
        assert_eq!((store.used, store.kept), (2048, 2048));
        assert!(room(store.take(1024)).is_some() && room(store.take(2048)).is_none());
    }

    #[test]
    fn a_write_after_the_release_is_found() {
        let mut store = Store::new(&Device::twin(), 4096, true).unwrap_or_else(|e| panic!("{e}"));
        let address = room(store.take(512)).expect("room");
        store.give(address, 512);
        // SAFETY: the store keeps the block mapped; this is the mistake that the check is for.
        unsafe { (address as *mut u8).add(300).write(1) };
        let Err(Short::Other(e)) = store.take(512) else { panic!("not found") };
        assert!(matches!(e, Error::WrittenAfterRelease { offset: 300, .. }), "{e}");
        assert!(room(store.take(512)).is_some_and(|other| other != address), "it is not used again");
    }
}
