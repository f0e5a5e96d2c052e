//! Tensors that tapped records point to: held as soon as the drain sees the record, and copied beside everything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytemuck::pod_read_unaligned;

use super::ring::Slots;
use super::staging::{ARENA, Arena, PART, Room};
use crate::abi;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::tensor::{Pool, Tensor, Witness};

/// What the drain has seen of the rings: leases do not end before it has seen the records that carry them.
pub(super) struct Watch {
    rings: Vec<Slots>,
    seen: Vec<AtomicU64>,
    over: AtomicBool,
}

impl Watch {
    pub(super) fn new(rings: Vec<Slots>) -> Self {
        let seen = rings.iter().map(|_| AtomicU64::new(0)).collect();
        Watch { rings, seen, over: AtomicBool::new(false) }
    }

    /// So many records of a ring were seen, and what they point to is held.
    pub(super) fn saw(&self, ring: usize, records: u64) {
        self.seen[ring].store(records, Ordering::Release);
    }

    /// Nobody looks any more.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }
}

impl Witness for Watch {
    fn now(&self) -> Box<[u64]> {
        self.rings.iter().map(Slots::announced).collect()
    }

    fn has_seen(&self, moment: &[u64]) -> bool {
        self.over.load(Ordering::Acquire)
            || self.seen.iter().zip(moment).all(|(seen, due)| seen.load(Ordering::Acquire) >= *due)
    }
}

/// Ends the watch also where its thread ends early.
pub(super) struct EndOfWatch(pub(super) Arc<Watch>);

impl Drop for EndOfWatch {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A tensor that a record pointed to when it passed, with the bytes to its last element's end.
pub(super) type Held = (Arc<Tensor>, u64);

/// A tensor's bytes for the log, with their checksum if it is wanted.
pub(super) enum Taken {
    Staged(Room, u32),
    Copied(Vec<u8>),
}

/// Takes the tensors of the mailboxes whose taps want them.
#[derive(Debug)]
pub(super) struct Tensors {
    pool: Pool,
    wanted: Vec<bool>,
    arena: Arc<Arena>,
    checksums: bool,
}

impl Tensors {
    /// None if no tap wants tensors.
    pub(super) fn of(memory: &Memory, checksums: bool) -> Result<Option<Self>> {
        let (Some(pool), true) = (&memory.pool, memory.tensor_taps.contains(&true)) else { return Ok(None) };
        let arena = Arena::new(memory.device())?;
        Ok(Some(Tensors { pool: pool.clone(), wanted: memory.tensor_taps.clone(), arena, checksums }))
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Whether the record should bring a tensor; then a hold on it, or why there is none.
    pub(super) fn hold(&self, mailbox: u32, msg_type: u16, payload: &[u8]) -> Option<Result<Held>> {
        if u32::from(msg_type) != abi::WM_TYPE_TENSOR || !self.wanted.get(mailbox as usize).is_some_and(|w| *w) {
            return None;
        }
        Some(match payload.get(..size_of::<abi::wm_tensor>()) {
            Some(bytes) => {
                let raw = pod_read_unaligned(bytes);
                self.pool.core.hold_passing(&raw).map(|(tensor, bytes)| (Arc::new(tensor), bytes))
            }
            None => Err(Error::BadRecord { mailbox, len: payload.len() as u32 }),
        })
    }

    /// Copies the tensor's bytes off the device, or begins to. `make_room` hands on what occupies the arena; false: there is
    /// nobody who would take it.
    pub(super) fn take(&self, (tensor, bytes): &Held, make_room: &mut dyn FnMut() -> bool) -> Result<Taken> {
        let bytes = usize::try_from(*bytes).map_err(|_| Error::refused("a tensor", "longer than all memory"))?;
        let mut crc = 0;
        if bytes <= ARENA / 2 {
            let mut room = self.room(bytes, make_room)?;
            let mut sum = |part: &[u8]| crc = crc32c::crc32c_append(crc, part);
            room.fetch(tensor, 0, if self.checksums { Some(&mut sum) } else { None })?;
            return Ok(Taken::Staged(room, crc));
        }
        // Two parts at a time: one arrives while the other is copied on.
        let (mut all, mut before): (Vec<u8>, Option<Room>) = (Vec::with_capacity(bytes), None);
        let mut keep = |room: Room| {
            room.wait()?;
            all.extend_from_slice(room.bytes());
            Ok::<(), Error>(())
        };
        for at in (0..bytes).step_by(PART) {
            let mut room = self.room(PART.min(bytes - at), make_room)?;
            room.fetch(tensor, at, None)?;
            before.replace(room).map_or(Ok(()), &mut keep)?;
        }
        before.map_or(Ok(()), &mut keep)?;
        Ok(Taken::Copied(all))
    }

    fn room(&self, bytes: usize, make_room: &mut dyn FnMut() -> bool) -> Result<Room> {
        loop {
            if let Some(room) = self.arena.room(bytes) {
                return Ok(room);
            }
            if !make_room() {
                return Err(Error::Failed("the journal takes no more".into()));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
