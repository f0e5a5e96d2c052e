//! Counters that are final: what the arbiter has told, and what ends outside of it did after it had left.

use std::mem::offset_of;

use super::Memory;
use crate::abi;
use crate::error::Result;

const HEADER_WORDS: usize = abi::WM_HEADER_BYTES as usize / 8;

impl Memory {
    /// Brings the counters of stream modules, and of mailboxes with an end outside of the arbiter, to where their ends stand. The
    /// arbiter, who writes them else, leaves before the last steps end, so it has not seen those. While it is away and
    /// nothing of the modules' is enqueued: the streams were seen empty, which is behind all that their steps stored.
    pub(crate) fn settle(&self) -> Result<()> {
        for gate in self.gates.iter().filter(|g| g.args.stats_out == 0) {
            let mut words = [0; size_of::<abi::wm_module_stats>() / 8];
            self.device.backend.read_words(&mut words, gate.args.stats)?;
            self.store_words(self.module_stats + gate.module * size_of::<abi::wm_module_stats>(), &words);
        }
        for (mailbox, handle) in self.handles.iter().enumerate() {
            let is_outside = |side: u16| u32::from(side) != abi::WM_SIDE_RESIDENT;
            if is_outside(handle.producer_side) || is_outside(handle.consumer_side) {
                self.settle_mailbox(mailbox)?;
            }
        }
        Ok(())
    }

    fn settle_mailbox(&self, mailbox: usize) -> Result<()> {
        let at = self.mailbox_stats + mailbox * size_of::<abi::wm_mailbox_stats>();
        let told: abi::wm_mailbox_stats = self.read_pinned(at);
        if told.quarantine != 0 {
            return Ok(()); // its header says what cannot be
        }
        let handle = &self.handles[mailbox];
        let mut header = [0; HEADER_WORDS];
        match handle.scope {
            abi::WM_SCOPE_SYS => header = self.read_pinned((handle.header - self.pinned.device) as usize),
            _ => self.device.backend.read_words(&mut header, handle.header)?,
        }
        let write_idx = header[offset_of!(abi::wm_mailbox_header, write_idx) / 8];
        let read_idx = header[offset_of!(abi::wm_mailbox_header, read_idx) / 8];
        if let Some((written, consumed)) =
            settled((told.written, told.consumed), (write_idx, read_idx), handle.slots_log2)
        {
            self.store_words(at + offset_of!(abi::wm_mailbox_stats, written), &[written]);
            self.store_words(at + offset_of!(abi::wm_mailbox_stats, consumed), &[consumed]);
        }
        Ok(())
    }

    /// Counters whose writer is away.
    fn store_words(&self, offset: usize, words: &[u64]) {
        for (i, &word) in words.iter().enumerate() {
            // SAFETY: an aligned word inside the allocation.
            unsafe { abi::wm_host_store_release(self.pinned.host.add(offset + 8 * i).cast(), word) };
        }
    }
}

/// Records written and consumed by a header's indices; none if those cannot be, seen from what was told before. An end of the
/// host's may be between its two stores, the first of which tells: what was told has been consumed, and what was consumed has been
/// written.
fn settled(told: (u64, u64), header: (u64, u64), slots_log2: u32) -> Option<(u64, u64)> {
    let ahead_of = |a: u64, b: u64| a.wrapping_sub(b).cast_signed();
    let later = |a: u64, b: u64| if ahead_of(a, b) < 0 { b } else { a };
    let slots = 1 << slots_log2;
    let consumed = later(header.1, told.1);
    let depth = ahead_of(header.0, consumed);
    let may_be =
        ahead_of(header.0, told.0) >= 0 && ahead_of(header.1, told.1) >= -slots && depth.unsigned_abs() <= slots as u64;
    may_be.then_some((later(header.0, consumed), consumed))
}

#[cfg(test)]
mod tests {
    use super::settled;

    #[test]
    fn counters_go_where_the_ends_are_and_never_back() {
        assert_eq!(settled((5, 3), (9, 8), 2), Some((9, 8)));
        assert_eq!(settled((5, 3), (8, 9), 2), Some((9, 9)), "a consumer goes by the tags");
        assert_eq!(settled((u64::MAX, u64::MAX), (2, 1), 2), Some((2, 1)), "indices wrap");
        assert_eq!(settled((5, 3), (4, 3), 2), None);
        assert_eq!(settled((5, 3), (7, 2), 2), Some((7, 3)), "a consumer tells first");
        assert_eq!(settled((9, 8), (9, 2), 2), None);
        assert_eq!(settled((5, 3), (9, 4), 2), None, "more than the slots");
    }
}
