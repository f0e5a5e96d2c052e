//! What the mailboxes' headers say when nothing runs any more.
//!
//! The arbiter tells of indices as it sees them, and its last launch has left before the last steps on streams end. Their
//! ends keep the indices in the headers, so a runtime that has stopped takes them from there.

use std::mem::offset_of;

use super::Memory;
use crate::abi;
use crate::error::Result;

/// Records given and taken, of one mailbox.
pub(super) type Indices = (u64, u64);

impl Memory {
    /// Notes the indices of all mailboxes, for `stats`. Nothing runs, and nothing will.
    pub(crate) fn note_ended(&self) -> Result<()> {
        let mut header = [0; abi::WM_HEADER_BYTES as usize];
        let mut ended = Vec::with_capacity(self.handles.len());
        for (host, device) in self.host_handles.iter().zip(&self.handles) {
            let (written, consumed) =
                (offset_of!(abi::wm_mailbox_header, write_idx), offset_of!(abi::wm_mailbox_header, read_idx));
            ended.push(if device.scope == abi::WM_SCOPE_SYS {
                let at = (host.header - self.pinned.host as u64) as usize;
                (self.read_pinned(at + written), self.read_pinned(at + consumed))
            } else {
                self.device.backend.download(&mut header, device.header)?;
                let index = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| header[at + i]));
                (index(written), index(consumed))
            });
        }
        let _ = self.ended.set(ended);
        Ok(())
    }

    /// Those of a mailbox: what the arbiter `told`, or, when nothing runs any more, what its header says. An index that cannot be
    /// trusted stays what it was.
    pub(super) fn indices(&self, mailbox: usize, told: &abi::wm_mailbox_stats) -> Indices {
        match self.ended.get().and_then(|ended| ended.get(mailbox)) {
            Some(&(written, consumed)) if told.quarantine == 0 => {
                (told.written.max(written), told.consumed.max(consumed))
            }
            _ => (told.written, told.consumed),
        }
    }
}
