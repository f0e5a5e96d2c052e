//! Who holds what.

use std::fmt::Write as _;

use serde::Serialize;

use super::books::State;
use super::pool::Pool;

/// Counters since the pool was made.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) opened: u64,
    pub(super) closed: u64,
    pub(super) released_twice: u64,
    pub(super) stale: u64,
    pub(super) refused: u64,
}

/// What a pool has, and what became of its leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolStats {
    /// Bytes that it may use.
    pub limit: u64,
    /// Bytes of its blocks in use.
    pub used: u64,
    /// The most that `used` has been.
    pub peak: u64,
    /// Bytes of free blocks that it keeps for later.
    pub kept: u64,
    /// Bytes of others' memory that is leased or held.
    pub adopted: u64,
    /// Leases open now.
    pub open: u64,
    /// Leases opened since the beginning.
    pub opened: u64,
    /// Of those, ended.
    pub closed: u64,
    /// Releases of this process that were refused, because the shares had been given back before.
    pub released_twice: u64,
    /// Descriptors that were refused here, because their lease had ended or its shares were taken.
    pub stale: u64,
    /// Allocations that were refused for want of room.
    pub refused: u64,
}

/// A block of memory that something holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The label that it was allocated or adopted with.
    pub label: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it is others' memory.
    pub adopted: bool,
    /// Tensors of this process that hold it.
    pub tensors: u32,
    /// Open leases on it.
    pub leases: u32,
    /// Their shares that are not back, by the table: with readers, or on their way.
    pub shares: u32,
    /// Age of the oldest of its open leases, milliseconds; 0 without one.
    pub oldest_lease_ms: u64,
    /// How long it is held, milliseconds.
    pub held_ms: u64,
}

impl Pool {
    /// What it has, and what became of its leases. Collects nothing.
    pub fn stats(&self) -> PoolStats {
        let state = self.core.lock();
        let c = state.counts;
        PoolStats {
            limit: self.core.limit,
            used: state.store.used,
            peak: state.store.peak,
            kept: state.store.kept,
            adopted: state.blocks.iter().flatten().filter(|b| b.adopted.is_some()).map(|b| b.bytes).sum(),
            open: state.open.len() as u64,
            opened: c.opened,
            closed: c.closed,
            released_twice: c.released_twice,
            stale: c.stale,
            refused: c.refused,
        }
    }

    /// Every block that something holds, the largest first. Collects first, so that what is released is not in it.
    pub fn holders(&self) -> Vec<Holder> {
        self.collect();
        let state = self.core.lock();
        let mut holders = state.holders();
        for row in &state.open {
            let Some(lease) = &state.rows[*row as usize] else { continue };
            // SAFETY: the table is this pool's, and the lock makes this thread its only owner.
            let back = unsafe { crate::abi::wm_host_lease_released(&self.core.on_host, *row) };
            if let Some((_, holder)) = holders.iter_mut().find(|(at, _)| *at == lease.block) {
                holder.shares += (lease.shares & !back).count_ones();
            }
        }
        holders.into_iter().map(|(_, holder)| holder).collect()
    }
}

impl State {
    /// With the blocks' rows.
    fn holders(&self) -> Vec<(u32, Holder)> {
        let ms = |since: std::time::Instant| since.elapsed().as_millis() as u64;
        let of = |(at, block): (usize, &Option<super::books::Block>)| {
            let block = block.as_ref()?;
            let holder = Holder {
                label: block.label.to_string(),
                bytes: block.bytes,
                adopted: block.adopted.is_some(),
                tensors: block.tensors,
                leases: block.leases,
                shares: 0,
                oldest_lease_ms: 0,
                held_ms: ms(block.since),
            };
            Some((at as u32, holder))
        };
        let mut holders: Vec<(u32, Holder)> = self.blocks.iter().enumerate().filter_map(of).collect();
        holders.sort_by_key(|(at, h)| (std::cmp::Reverse(h.bytes), *at));
        for lease in self.rows.iter().flatten() {
            if let Some((_, holder)) = holders.iter_mut().find(|(at, _)| *at == lease.block) {
                holder.oldest_lease_ms = holder.oldest_lease_ms.max(ms(lease.since));
            }
        }
        holders
    }

    /// The largest `most` of them in words, those of one label together.
    pub(super) fn who(&self, most: usize) -> String {
        let mut by_label: Vec<Holder> = Vec::new();
        for (_, holder) in self.holders() {
            match by_label.iter_mut().find(|h| h.label == holder.label) {
                Some(sum) => {
                    sum.bytes += holder.bytes;
                    sum.tensors += holder.tensors;
                    sum.leases += holder.leases;
                    sum.oldest_lease_ms = sum.oldest_lease_ms.max(holder.oldest_lease_ms);
                }
                None => by_label.push(holder),
            }
        }
        by_label.sort_by_key(|h| std::cmp::Reverse(h.bytes));
        let mut text = String::from(if by_label.is_empty() { "nobody holds anything" } else { "held by " });
        for (i, h) in by_label.iter().take(most).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let _ = write!(text, "{comma}{} ({} bytes, {} tensors, {} leases", h.label, h.bytes, h.tensors, h.leases);
            if h.leases > 0 {
                let _ = write!(text, ", the oldest for {} ms", h.oldest_lease_ms);
            }
            text.push(')');
        }
        if by_label.len() > most {
            let _ = write!(text, " and {} others", by_label.len() - most);
        }
        text
    }
}
