//! The host's side of a journal ring; `csrc/protocol/ring.hpp` is the other. A record's bytes are used where they lie, until its
//! slot is given back.

use std::mem::offset_of;
use std::sync::Arc;

use crate::abi;
use crate::memory::Memory;

/// Bytes before the payload in a slot.
pub(super) const HEAD: usize = size_of::<abi::wm_journal_head>();

/// The side that reads, for one thread at a time.
pub(super) struct Ring {
    slots: Slots,
    /// The next record to take, and how many are known to be there.
    next: u64,
    written: u64,
}

/// Where the slots of a ring are, for whoever uses them or gives them back.
#[derive(Clone)]
pub(super) struct Slots {
    ring: abi::wm_ring,
    _memory: Arc<Memory>,
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.ring.fmt(f)
    }
}

/// Records that stand in front of a ring.
pub(super) struct Fronts {
    n: usize,
    first: u64,
    heads: [abi::wm_journal_head; Fronts::MOST],
}

impl Fronts {
    /// As many are looked at together.
    pub(super) const MOST: usize = 64;

    pub(super) fn heads(&self) -> &[abi::wm_journal_head] {
        &self.heads[..self.n]
    }
}

impl Slots {
    /// Whether they are of the same ring.
    pub(super) fn is(&self, other: &Slots) -> bool {
        self.ring.header == other.ring.header
    }

    fn word(&self, offset: usize) -> *mut u64 {
        (self.ring.header + offset as u64) as *mut u64
    }

    fn load(&self, offset: usize) -> u64 {
        // SAFETY: an aligned word of the ring's header, which `_memory` keeps.
        unsafe { abi::wm_host_load_acquire(self.word(offset)) }
    }

    fn at(&self, index: u64) -> *const u8 {
        let slot = index & ((1 << self.ring.slots_log2) - 1);
        let offset = u64::from(abi::WM_RING_HEADER_BYTES) + slot * u64::from(self.ring.slot_bytes);
        (self.ring.header + offset) as *const u8
    }

    /// Up to where descriptors of tensors are in the ring, or about to be: of each that anybody can have learned of.
    pub(super) fn announced(&self) -> u64 {
        self.load(offset_of!(abi::wm_ring_header, announced))
    }

    /// All slots before this record are the device's again. Nobody looks at their bytes any more.
    pub(super) fn give_back(&self, before: u64) {
        // RELEASE: the last look at them; the device acquires it before it fills them (R2 of ring.hpp).
        // SAFETY: as in `load`; the drain is its one writer.
        unsafe { abi::wm_host_store_release(self.word(offset_of!(abi::wm_ring_header, read_idx)), before) };
    }
}

impl Ring {
    /// Taken up where the header says it was left.
    pub(super) fn attach(ring: &abi::wm_ring, memory: Arc<Memory>) -> Self {
        let slots = Slots { ring: *ring, _memory: memory };
        let next = slots.load(offset_of!(abi::wm_ring_header, read_idx));
        Ring { slots, next, written: next }
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// The records in front, up to `most`; they stay there.
    pub(super) fn look(&mut self, most: usize) -> Fronts {
        let most = most.min(Fronts::MOST) as u64;
        if self.written - self.next < most {
            self.written = self.slots.load(offset_of!(abi::wm_ring_header, write_idx)); // ACQUIRE of R1
        }
        let n = (self.written - self.next).min(most) as usize;
        let mut fronts = Fronts { n, first: self.next, heads: [abi::wm_journal_head::default(); Fronts::MOST] };
        for (head, index) in fronts.heads.iter_mut().zip(self.next..).take(n) {
            // SAFETY: a slot of the ring that holds a record: the device does not write it before it is given back.
            *head = unsafe { self.slots.at(index).cast::<abi::wm_journal_head>().read() };
            if usize::from(head.len) + HEAD > self.slots.ring.slot_bytes as usize {
                head.mailbox_id = u32::MAX; // what cannot be is nobody's
            }
        }
        fronts
    }

    /// The first `n` of those records are taken; gives the index behind them, up to which the slots are to be given back when
    /// nobody needs their bytes.
    pub(super) fn take(&mut self, n: usize) -> u64 {
        self.next += n as u64;
        self.next
    }

    /// Records taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.next
    }

    /// The payload of record `i` of those that were looked at.
    ///
    /// # Safety
    /// It can be one (see [`look`](Self::look)), its slot has not been given back, and is not as long as the bytes are used.
    pub(super) unsafe fn payload(&self, fronts: &Fronts, i: usize) -> &'static [u8] {
        let slot = self.slots.at(fronts.first + i as u64);
        // SAFETY: behind the head, inside the slot, which `_memory` keeps; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(slot.add(HEAD), fronts.heads[i].len.into()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may end there
pub(super) mod tests {
    use super::*;
    use crate::{Device, MailboxOptions};

    /// A server's side of a ring.
    pub(in crate::journal) struct Filler {
        slots: Slots,
        written: u64,
    }

    /// Both sides of a ring in memory of the twin's.
    pub(in crate::journal) fn ring(bytes: u32, slots: u32) -> (Filler, Ring) {
        let slot_bytes = bytes.next_multiple_of(abi::WM_RING_STEP);
        // Any memory of the twin's that is long enough.
        let options = MailboxOptions { stride: abi::WM_STRIDE_MAX, slots };
        let (memory, mailbox) = Memory::direct(&Device::twin(), &options).unwrap();
        let ring = abi::wm_ring { header: mailbox.header, slot_bytes, slots_log2: slots.trailing_zeros() };
        // SAFETY: the beginning of that memory, which nobody else knows.
        unsafe { std::ptr::write_bytes(ring.header as *mut u8, 0, abi::WM_RING_HEADER_BYTES as usize) };
        let reader = Ring::attach(&ring, memory);
        (Filler { slots: reader.slots().clone(), written: 0 }, reader)
    }

    impl Filler {
        pub(in crate::journal) fn given_back(&self) -> u64 {
            self.slots.load(offset_of!(abi::wm_ring_header, read_idx))
        }

        /// False: the ring is full.
        pub(in crate::journal) fn try_push(&mut self, (head, payload): &(abi::wm_journal_head, Vec<u8>)) -> bool {
            if self.written - self.given_back() == 1 << self.slots.ring.slots_log2 {
                return false;
            }
            let slot = self.slots.at(self.written).cast_mut();
            assert!(HEAD + payload.len() <= self.slots.ring.slot_bytes as usize);
            self.written += 1;
            // SAFETY: a free slot of the ring, and a word of its header whose one writer this is.
            unsafe {
                slot.cast::<abi::wm_journal_head>().write(*head);
                slot.add(HEAD).copy_from_nonoverlapping(payload.as_ptr(), payload.len());
                abi::wm_host_store_release(self.slots.word(offset_of!(abi::wm_ring_header, write_idx)), self.written);
            }
            true
        }
    }

    #[test]
    fn slots_are_used_again_only_when_they_are_given_back() {
        let (mut filler, mut ring) = ring(100, 4);
        let record = |n: u64| (abi::wm_journal_head { number: n, len: 60, ..Default::default() }, vec![n as u8; 60]);
        for lap in 0..3 {
            for n in 0..4 {
                assert!(filler.try_push(&record(4 * lap + n)));
            }
            assert!(!filler.try_push(&record(99)));
            let fronts = ring.look(3);
            assert_eq!(fronts.heads().len(), 3);
            assert!(fronts.heads().iter().zip(4 * lap..).all(|(head, n)| head.number == n));
            let before = ring.take(2);
            assert_eq!(ring.look(64).heads().len(), 2);
            assert!(!filler.try_push(&record(99)));
            ring.slots().give_back(before);
            assert!(filler.try_push(&record(50)) && filler.try_push(&record(51)) && !filler.try_push(&record(52)));
            let fronts = ring.look(64);
            let numbers: Vec<u64> = fronts.heads().iter().map(|head| head.number).collect();
            assert_eq!(numbers, [4 * lap + 2, 4 * lap + 3, 50, 51]);
            // SAFETY: it is there, and given back below.
            assert_eq!(unsafe { ring.payload(&fronts, 3) }, [51; 60]);
            let before = ring.take(4);
            ring.slots().give_back(before);
            assert_eq!((ring.taken(), filler.given_back(), ring.look(1).heads().len()), (before, before, 0));
        }
    }
}
