//! Rows of the lease table as the owner keeps them: opening one, and whether a descriptor may be taken.

use std::time::Instant;

use super::books::{Block, Core, Row, State};
use crate::abi;
use crate::error::{Error, Result};

impl State {
    pub(super) fn open_row(&mut self, core: &Core, block: u32, shares: u64) -> Option<(u32, u64)> {
        let memory = self.blocks.get_mut(block as usize)?.as_mut()?;
        let row = self.free_rows.pop()?;
        memory.leases += 1;
        // SAFETY: the table is this core's, and the state's lock makes this thread its only owner.
        let epoch = unsafe { abi::wm_host_lease_open(&core.on_host, row, memory.address, memory.bytes) };
        let place = self.open.len();
        self.open.push(row);
        self.counts.opened += 1;
        let lease = Row {
            epoch,
            shares,
            held: shares,
            block,
            via: Default::default(),
            moments: None,
            since: Instant::now(),
            place,
        };
        self.rows[row as usize] = Some(lease);
        Some((row, epoch))
    }
}

/// Whether memory has these bytes.
pub(super) fn has_bytes(b: &Block, address: u64, bytes: u64) -> bool {
    address >= b.address && address - b.address <= b.bytes && bytes <= b.bytes - (address - b.address)
}

/// The shares that a descriptor stands for.
pub(super) fn mask(raw: &abi::wm_tensor) -> u64 {
    ((1u64 << raw.shares) - 1) << raw.share
}

impl State {
    /// The open lease that a descriptor names.
    pub(super) fn row_of(&mut self, raw: &abi::wm_tensor) -> Option<&mut Row> {
        let row = (raw.lease as usize).checked_sub(1)?;
        self.rows.get_mut(row)?.as_mut().filter(|lease| lease.epoch == raw.epoch)
    }

    pub(super) fn claim(&mut self, core: &Core, raw: &abi::wm_tensor, bytes: u64) -> Result<()> {
        let stale = |why: String| Err(Error::StaleLease { lease: raw.lease.wrapping_sub(1), epoch: raw.epoch, why });
        if raw.lease > core.on_host.n_rows
            || raw.shares == 0
            || raw.share as u32 + raw.shares as u32 > abi::WM_MAX_SHARES
        {
            return Err(Error::refused(
                format!("a descriptor of lease {}, shares {}+{}", raw.lease, raw.share, raw.shares),
                "no pool has given it out",
            ));
        }
        let shares = mask(raw);
        let Some(lease) = self.row_of(raw) else {
            return stale("it has ended: all its readers released it, and the memory may be another's".into());
        };
        let block = lease.block;
        if lease.shares & shares != shares {
            return stale(format!("it was opened for {} readers only", lease.shares.count_ones()));
        }
        if lease.held & shares != 0 {
            return stale("this process holds these shares already: the record was taken twice".into());
        }
        // SAFETY: the table is this core's, and the state's lock makes this thread its only owner.
        if unsafe { abi::wm_host_lease_released(&core.on_host, raw.lease - 1) } & shares != 0 {
            return stale("its reader has released it already".into());
        }
        let inside = |b: &Block| has_bytes(b, raw.data, bytes);
        if !self.blocks[block as usize].as_ref().is_some_and(inside) {
            return Err(Error::refused(
                format!("a descriptor of {bytes} bytes at {:#x}", raw.data),
                "reaches outside the memory that was leased",
            ));
        }
        if let Some(lease) = self.row_of(raw) {
            lease.held |= shares;
        }
        Ok(())
    }
}
