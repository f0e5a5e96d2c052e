//! What the bus can carry, measured in the same run as the rows that it bounds.

use super::kernels::Gpu;
use super::tensors;
use crate::bench::median;

/// Blocks, each on an SM of its own, that store into pinned memory: one, and as many as fill the bus.
const BLOCKS: [u32; 3] = [1, 8, 32];

/// Bytes a nanosecond, a value for each round.
#[derive(Default)]
pub(super) struct Bus {
    stores: [Vec<f64>; BLOCKS.len()],
    carried: Vec<f64>,
    copies: Vec<f64>,
}

/// Ceilings, GB/s; on the twin, whose device is the host's memory, all are a copy in it.
pub(super) struct Ceilings {
    /// Zero-copy stores of as many SMs as fill the bus.
    pub(super) stores: f64,
    /// What one SM stores, and an arbiter is one block.
    pub(super) one_sm: f64,
    /// What one SM stores that loads the same bytes from device memory first, with as many warps as an arbiter has servers.
    pub(super) carried: f64,
    /// Copies into pinned memory by the copy engine.
    pub(super) copies: f64,
}

impl Bus {
    /// Measures each once.
    pub(super) fn round(&mut self, gpu: Option<&Gpu>) -> Result<(), String> {
        let Some(gpu) = gpu else {
            self.copies.push(tensors::copy_rate());
            return Ok(());
        };
        for (rates, blocks) in self.stores.iter_mut().zip(BLOCKS) {
            rates.push(gpu.store_rate(blocks)?);
        }
        self.carried.push(gpu.carry_rate()?);
        self.copies.push(gpu.copy_rate()?);
        Ok(())
    }

    /// Medians of all rounds.
    pub(super) fn ceilings(mut self) -> Ceilings {
        let copies = median(&mut self.copies);
        if self.carried.is_empty() {
            return Ceilings { stores: copies, one_sm: copies, carried: copies, copies };
        }
        let [one_sm, rest @ ..] = self.stores.map(|mut rates| median(&mut rates));
        let stores = rest.into_iter().fold(one_sm, f64::max);
        Ceilings { stores, one_sm, carried: median(&mut self.carried), copies }
    }
}
