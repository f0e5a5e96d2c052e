//! Removing what is old: whole sealed segments, oldest first.

use std::time::{SystemTime, UNIX_EPOCH};

use super::format::segment_name;
use super::log::Log;
use super::segment::sync_names;
use crate::error::{Error, Result};

impl Log {
    /// Removes the segments that [`Retention`](super::Retention) gives up at this time, and gives their number. Everything
    /// in them was durable: a segment is sealed only then. Called by `append` when a segment is full, and by `tick`.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be removed; it is tried again next time. [`Error::NotDurable`]: the log is finished.
    pub fn retain(&mut self, now: SystemTime) -> Result<u64> {
        self.alive()?;
        let now_ns = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let mut removed = 0;
        while let Some(oldest) = self.sealed.front().copied() {
            let too_large = self.options.retention.max_bytes.is_some_and(|max| self.bytes() > max);
            let age = now_ns.saturating_sub(u128::from(oldest.closed_ns));
            let too_old = self.options.retention.max_age.is_some_and(|max| age > max.as_nanos());
            if !too_large && !too_old {
                break;
            }
            let name = segment_name(oldest.first);
            self.disk.remove(&name).map_err(|e| Error::io("remove", &self.disk.path().join(&name), &e))?;
            // One at a time: were two removals on their way, a crash could undo the first alone and leave a gap.
            let outcome = sync_names(self.disk.as_ref());
            self.note(outcome)?;
            self.sealed.pop_front();
            self.stats.removed_segments += 1;
            self.stats.removed_bytes += oldest.bytes;
            removed += 1;
        }
        Ok(removed)
    }

    /// The same where something else was asked for: that a file cannot be removed is no reason to refuse records.
    pub(super) fn retain_or_warn(&mut self) -> Result<()> {
        match self.retain(SystemTime::now()) {
            Err(error @ Error::Io { .. }) => {
                tracing::warn!(%error, "an old segment stays for now");
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }
}
