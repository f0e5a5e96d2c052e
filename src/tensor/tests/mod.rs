//! The pool against a reference that is too simple to be wrong, against threads, and against mistakes.

mod mistakes;
mod model;
mod order;
mod threads;

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::*;
use crate::abi;
use crate::device::Device;

const BOUND: Duration = Duration::from_secs(30);

/// One of these tests at a time: who collects takes back what was dropped of all pools of the process, so another test's
/// thread could be at it still when a test looks at its counts.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn pool(limit: u64, poison: bool) -> Pool {
    let options = PoolOptions { poison, ..PoolOptions::limit(limit) };
    Pool::new(&Device::twin(), options).unwrap_or_else(|e| panic!("{e}"))
}

fn words(n: i64) -> TensorSpec {
    TensorSpec::new(DType::U64, &[n])
}

/// What a reader on the device does, as a thread of the twin's.
fn device_check(pool: &Pool, t: &abi::wm_tensor) -> i32 {
    // SAFETY: the twin's table is memory of this process, alive with the pool.
    unsafe { abi::wm_host_lease_check(&pool.leases(), t) }
}

fn device_release(pool: &Pool, t: &abi::wm_tensor) -> i32 {
    // SAFETY: as above.
    unsafe { abi::wm_host_lease_release(&pool.leases(), t) }
}

fn part(t: &abi::wm_tensor, share: u8) -> abi::wm_tensor {
    abi::wm_tensor { share, shares: 1, ..*t }
}
