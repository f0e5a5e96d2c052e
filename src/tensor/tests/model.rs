//! Random calls, and a reference that says what each must do.

use proptest::prelude::*;

use super::*;
use crate::error::Error;

/// What one share of a lease has come to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    OnDevice,
    Held,
    Back,
}

type Share = (Fate, Option<Lease>);

struct Model {
    pool: Pool,
    /// Tensors, with the number of their block; none when dropped.
    tensors: Vec<Option<(Tensor, usize)>>,
    /// Of each block: tensors that hold it, its size.
    blocks: Vec<(usize, u64)>,
    leases: Vec<Leased>,
}

struct Leased {
    raw: abi::wm_tensor,
    block: usize,
    shares: Vec<Share>,
}

impl Leased {
    fn is_open(&self) -> bool {
        self.shares.iter().any(|s| s.0 != Fate::Back)
    }
}

impl Model {
    fn run(&mut self, op: u8, a: usize, b: usize) {
        match op {
            0 => {
                let n = 1 + (a % 100) as i64;
                let tensor = self.pool.alloc("model", &words(n)).expect("room");
                self.blocks.push((1, blocks::Store::size_of(8 * n as u64)));
                self.tensors.push(Some((tensor, self.blocks.len() - 1)));
            }
            1 => self.open(a, 1 + (b % 8) as u8),
            2 => self.release_on_device(a, b),
            3 => self.release_here(a, b),
            4 => self.take(a, b),
            5 => {
                if let Some(slot) = pick(&mut self.tensors, a)
                    && let Some((_, block)) = slot.take()
                {
                    self.blocks[block].0 -= 1;
                }
            }
            6 => self.reopen(a, b),
            _ => {
                self.pool.collect();
                self.check();
            }
        }
    }

    /// A lease whose shares are all handed to readers on the device, which some give back to this process by `take`.
    fn open(&mut self, a: usize, readers: u8) {
        let Some(Some((tensor, block))) = pick(&mut self.tensors, a) else { return };
        let lease = tensor.lease(readers).expect("a row");
        let block = *block;
        let raw = lease.into_raw();
        assert_eq!(device_check(&self.pool, &raw), 0);
        self.leases.push(Leased { raw, block, shares: (0..readers).map(|_| (Fate::OnDevice, None)).collect() });
    }

    fn share(&mut self, a: usize, b: usize) -> Option<(abi::wm_tensor, &mut Share, Pool)> {
        let pool = self.pool.clone();
        let lease = pick(&mut self.leases, a)?;
        let share = b % lease.shares.len();
        Some((part(&lease.raw, share as u8), &mut lease.shares[share], pool))
    }

    fn release_on_device(&mut self, a: usize, b: usize) {
        let Some((raw, share, pool)) = self.share(a, b) else { return };
        match share.0 {
            // A share that this process holds is not the device's to release: not tried, as nothing could tell.
            Fate::Held => {}
            Fate::OnDevice => {
                assert_eq!(device_release(&pool, &raw), 0);
                share.0 = Fate::Back;
            }
            Fate::Back => {
                if device_check(&pool, &raw) != abi::WM_STALE_LEASE {
                    panic!("a share that is back can be followed");
                }
            }
        }
        // A second time is always refused, by the one who did it first.
        if share.0 == Fate::Back && share.1.is_none() {
            assert_ne!(device_check(&pool, &raw), 0);
        }
    }

    fn release_here(&mut self, a: usize, b: usize) {
        let Some((raw, share, pool)) = self.share(a, b) else { return };
        if share.0 == Fate::Held {
            let lease = share.1.take().expect("held");
            lease.release().expect("once");
            share.0 = Fate::Back;
            assert_eq!(device_check(&pool, &raw), abi::WM_STALE_LEASE);
        }
    }

    fn take(&mut self, a: usize, b: usize) {
        let Some((raw, share, pool)) = self.share(a, b) else { return };
        let taken = pool.claim(raw);
        match share.0 {
            Fate::OnDevice => *share = (Fate::Held, Some(taken.expect("it is there to be taken"))),
            _ => assert!(matches!(taken, Err(Error::StaleLease { .. })), "{taken:?}"),
        }
    }

    /// A tensor from a lease that is held here.
    fn reopen(&mut self, a: usize, b: usize) {
        let Some(lease) = pick(&mut self.leases, a) else { return };
        let share = b % lease.shares.len();
        if let Some(held) = &lease.shares[share].1 {
            let tensor = held.tensor().expect("it is held");
            self.blocks[lease.block].0 += 1;
            self.tensors.push(Some((tensor, lease.block)));
        }
    }

    fn used(&self) -> u64 {
        let in_use = |at: usize| self.blocks[at].0 > 0 || self.leases.iter().any(|l| l.is_open() && l.block == at);
        (0..self.blocks.len()).filter(|b| in_use(*b)).map(|b| self.blocks[b].1).sum()
    }

    /// Collects. What was dropped is taken back by whoever collects, for all pools of the process: another test's thread may
    /// have taken it on and not be done yet.
    fn settle(&self) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let open = self.leases.iter().filter(|l| l.is_open()).count() as u64;
        loop {
            self.pool.collect();
            let stats = self.pool.stats();
            if (stats.open, stats.used) == (open, self.used()) || std::time::Instant::now() >= until {
                return;
            }
            std::thread::yield_now();
        }
    }

    fn check(&self) {
        let open: Vec<&Leased> = self.leases.iter().filter(|l| l.is_open()).collect();
        let stats = self.pool.stats();
        assert_eq!((stats.open, stats.opened), (open.len() as u64, self.leases.len() as u64));
        assert_eq!(stats.released_twice, 0);
        assert_eq!(stats.used, self.used());
        for lease in &self.leases {
            for (i, (fate, _)) in lease.shares.iter().enumerate() {
                let wanted = if *fate == Fate::Back { abi::WM_STALE_LEASE } else { 0 };
                assert_eq!(device_check(&self.pool, &part(&lease.raw, i as u8)), wanted);
            }
        }
        // No two blocks in use overlap.
        let mut at: Vec<(u64, u64)> = open.iter().map(|l| (l.raw.data, self.blocks[l.block].1)).collect();
        at.sort_unstable();
        at.dedup();
        assert!(at.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{at:?}");
    }
}

fn pick<T>(all: &mut [T], at: usize) -> Option<&mut T> {
    if all.is_empty() { None } else { all.get_mut(at % all.len()) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn leases_follow_the_reference(ops in prop::collection::vec((0u8..8, any::<usize>(), any::<usize>()), 1..300)) {
        let _turn = super::turn();
        let pool = pool(1 << 30, false);
        let mut model = Model { pool, tensors: Vec::new(), blocks: Vec::new(), leases: Vec::new() };
        for (op, a, b) in ops {
            model.run(op, a, b);
        }
        model.settle();
        model.check();
    }
}
