//! Readers at the same time, in any order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::*;
use crate::error::Error;
use crate::port::direct_mailbox;

/// Hand-offs from one thread to readers that release in any order, by fan-out 1 to 8, on the device and here.
#[test]
fn a_million_hand_offs_leak_nothing() {
    let _turn = super::turn();
    const LEASES: u64 = 250_000; // 4.5 readers each
    const READERS: usize = 2;
    let pool = pool(1 << 20, false);
    let device = Device::twin();
    let (mut senders, mut threads) = (Vec::new(), Vec::new());
    let faults = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(AtomicU64::new(0));
    for reader in 0..READERS {
        let (mut sender, mut receiver) = direct_mailbox(&device, Default::default()).expect("a mailbox");
        receiver.attach_pool(&pool);
        sender.attach_pool(&pool);
        senders.push(sender);
        let (pool, faults, seen) = (pool.clone(), faults.clone(), seen.clone());
        threads.push(std::thread::spawn(move || read(reader as u64, &pool, &mut receiver, &faults, &seen)));
    }
    let mut sent = 0;
    for n in 0..LEASES {
        let readers = 1 + (n % 8) as u8;
        let tensor = pool.alloc_within("hand-off", &words(32), BOUND).expect("room in time");
        tensor.upload(bytemuck::cast_slice(&[n; 32])).expect("its size");
        let mut lease = tensor.lease(readers).expect("a row");
        drop(tensor);
        for i in 0..readers {
            let one =
                if i + 1 < readers { lease.part(1).expect("enough") } else { std::mem::replace(&mut lease, none()) };
            let to = (n + u64::from(i)) as usize % READERS;
            senders[to].post(one, &n.to_le_bytes(), BOUND).unwrap_or_else(|e| panic!("{e}"));
            sent += 1;
        }
    }
    for sender in &mut senders {
        sender.push(0, b"", BOUND).expect("the end");
    }
    for thread in threads {
        thread.join().expect("a reader");
    }
    assert!(sent > 1_000_000, "{sent}");
    assert_eq!((faults.load(Ordering::Relaxed), seen.load(Ordering::Relaxed)), (0, sent));
    pool.collect();
    let stats = pool.stats();
    assert_eq!((stats.open, stats.used, stats.closed), (0, 0, LEASES), "{stats:?} {:?}", pool.holders());
    assert_eq!((stats.released_twice, stats.stale), (0, 0), "{stats:?}");
}

/// A lease of nothing.
fn none() -> Lease {
    let mut raw = abi::wm_tensor { ndim: 1, dtype_code: 1, dtype_bits: 8, dtype_lanes: 1, ..Default::default() };
    raw.shape[0] = 1;
    pool(1, false).claim(raw).expect("a tensor without a lease")
}

fn read(reader: u64, pool: &Pool, receiver: &mut crate::Receiver, faults: &AtomicUsize, seen: &AtomicU64) {
    let mut random = fastrand::Rng::with_seed(reader);
    let mut waiting: Vec<Lease> = Vec::new();
    loop {
        let (lease, note) = match receiver.take(BOUND) {
            Ok(taken) => taken,
            Err(Error::NotATensor { .. }) => break,
            Err(e) => panic!("{e}"),
        };
        let mut content = [0u64; 32];
        let n = u64::from_le_bytes(note[..8].try_into().expect("8 bytes"));
        let read = lease.download(bytemuck::cast_slice_mut(&mut content));
        if read.is_err() || content.iter().any(|w| *w != n) {
            faults.fetch_add(1, Ordering::Relaxed);
        }
        seen.fetch_add(1, Ordering::Relaxed);
        waiting.push(lease);
        // A few are kept, and released in any order, by any of the three ways.
        while waiting.len() > 16 {
            give(waiting.swap_remove(random.usize(..waiting.len())), pool, &mut random, faults);
        }
    }
    for lease in waiting {
        give(lease, pool, &mut random, faults);
    }
}

fn give(lease: Lease, pool: &Pool, random: &mut fastrand::Rng, faults: &AtomicUsize) {
    let fault = match random.u8(..3) {
        0 => {
            drop(lease);
            false
        }
        1 => lease.release().is_err(),
        // As a reader on the device; a second time is refused.
        _ => {
            let raw = lease.into_raw();
            let first = device_check(pool, &raw) != 0 || device_release(pool, &raw) != 0;
            first || device_release(pool, &raw) != abi::WM_STALE_LEASE
        }
    };
    faults.fetch_add(usize::from(fault), Ordering::Relaxed);
}

#[test]
fn of_many_that_release_a_share_one_does() {
    let _turn = super::turn();
    const THREADS: usize = 4;
    const ROUNDS: usize = 5000;
    let pool = pool(1 << 16, false);
    let tensor = pool.alloc("t", &words(1)).expect("room");
    // Each round a lease with two readers, and threads that all release both, in any order, and late ones too.
    let raws: Vec<_> = (0..2).map(|_| tensor.lease(2).expect("a row").into_raw()).collect();
    let current = Arc::new(std::sync::Mutex::new(raws));
    let won = Arc::new(AtomicUsize::new(0));
    let line = Arc::new(std::sync::Barrier::new(THREADS + 1));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (pool, current, won, line) = (pool.clone(), current.clone(), won.clone(), line.clone());
            std::thread::spawn(move || {
                for round in 0..ROUNDS {
                    let raws = current.lock().expect("whole").clone();
                    line.wait();
                    for i in 0..4 {
                        let i = i ^ ((thread + round) % 4);
                        match device_release(&pool, &part(&raws[i / 2], (i % 2) as u8)) {
                            0 => won.fetch_add(1, Ordering::Relaxed),
                            status => usize::from(assert_stale(status)),
                        };
                    }
                    line.wait();
                    line.wait(); // the next leases are there
                }
            })
        })
        .collect();
    for round in 0..ROUNDS {
        line.wait();
        line.wait();
        assert_eq!(won.swap(0, Ordering::Relaxed), if round == 0 { 4 } else { 2 });
        pool.core.collect(usize::MAX, false);
        assert_eq!(pool.stats().open, 0);
        // The older of the two that they release next time has ended by then.
        let mut raws = current.lock().expect("whole");
        raws.rotate_left(1);
        raws[1] = tensor.lease(2).expect("a row").into_raw();
        drop(raws);
        line.wait();
    }
    threads.into_iter().for_each(|t| t.join().expect("a thread"));
}

fn assert_stale(status: i32) -> bool {
    assert_eq!(status, abi::WM_STALE_LEASE);
    false
}
