//! The pool against a reference that is too simple to be wrong, and against threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::abi;
use crate::device::Device;
use crate::error::Error;
use crate::port::direct_mailbox;

const BOUND: Duration = Duration::from_secs(30);

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

    fn check(&self) {
        let open: Vec<&Leased> = self.leases.iter().filter(|l| l.is_open()).collect();
        let stats = self.pool.stats();
        assert_eq!((stats.open, stats.opened), (open.len() as u64, self.leases.len() as u64));
        assert_eq!(stats.released_twice, 0);
        let in_use = |at: usize| self.blocks[at].0 > 0 || open.iter().any(|l| l.block == at);
        let used: u64 = (0..self.blocks.len()).filter(|b| in_use(*b)).map(|b| self.blocks[b].1).sum();
        assert_eq!(stats.used, used);
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
        let pool = pool(1 << 30, false);
        let mut model = Model { pool, tensors: Vec::new(), blocks: Vec::new(), leases: Vec::new() };
        for (op, a, b) in ops {
            model.run(op, a, b);
        }
        model.pool.collect();
        model.check();
    }
}

/// Hand-offs from one thread to readers that release in any order, by fan-out 1 to 8, on the device and here.
#[test]
fn a_million_hand_offs_leak_nothing() {
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
fn a_full_pool_says_who_holds_what() {
    let pool = pool(8192, false);
    let big = pool.alloc("kv cache", &words(512)).expect("room");
    let lease = pool.alloc("hidden states", &words(256)).expect("room").lease(3).expect("a row");
    let e = pool.alloc("one more", &words(512)).expect_err("no room").to_string();
    for word in [
        "4096 bytes wanted",
        "6144 of 8192",
        "kv cache (4096 bytes, 1 tensors, 0 leases)",
        "hidden states (2048",
        "raise",
    ] {
        assert!(e.contains(word), "{e}");
    }
    assert!(matches!(pool.alloc("too big", &words(2000)), Err(Error::PoolFull { wanted: 16384, .. })));
    let holders = pool.holders();
    assert_eq!((holders.len(), holders[1].shares, holders[0].tensors), (2, 3, 1));
    drop(lease);
    pool.alloc("one more", &words(512)).expect("the lease has ended");
    drop(big);
    let short = Duration::from_millis(20);
    let all = pool.alloc("all", &words(1024)).expect("free memory of other sizes makes room");
    assert!(matches!(pool.alloc_within("more", &words(1), short), Err(Error::PoolFull { .. })));
    let waiter = std::thread::spawn({
        let pool = pool.clone();
        move || pool.alloc_within("more", &words(1), BOUND).map(|_| ())
    });
    std::thread::sleep(short);
    drop(all);
    assert!(waiter.join().expect("it ends").is_ok());
}

#[test]
fn adopted_memory_comes_back_when_nobody_holds_it() {
    let pool = pool(4096, true);
    let calls = Arc::new(AtomicUsize::new(0));
    let memory: Arc<[u64]> = vec![7; 64].into();
    let adopt = || {
        let (calls, keep) = (calls.clone(), memory.clone());
        let released = move || {
            drop(keep);
            calls.fetch_add(1, Ordering::Relaxed);
        };
        let spec = TensorSpec { read_only: true, ..words(64) };
        // SAFETY: `keep` keeps it as it is until `released`.
        unsafe { pool.adopt("theirs", memory.as_ptr() as u64, &spec, released) }.expect("adopted")
    };
    let tensor = adopt();
    let lease = tensor.lease(2).expect("a row");
    let raw = lease.descriptor().raw();
    drop(tensor);
    pool.collect();
    assert_eq!((calls.load(Ordering::Relaxed), pool.stats().adopted, pool.stats().used), (0, 512, 0));
    assert!(matches!(lease.upload(&[0; 512]), Err(Error::Refused { .. })), "read only");
    drop(lease);
    assert_eq!(calls.load(Ordering::Relaxed), 0, "a drop calls nothing");
    pool.collect();
    assert_eq!((calls.load(Ordering::Relaxed), device_check(&pool, &raw)), (1, abi::WM_STALE_LEASE));
    assert!(memory.iter().all(|w| *w == 7), "others' memory is not poisoned");
    // A closure that panics harms nobody; one whose pool ends first is called then.
    // SAFETY: as above.
    drop(unsafe { pool.adopt("panics", memory.as_ptr() as u64, &words(1), || panic!("planted")) });
    let (last, raw) = (adopt(), pool.leases());
    let forgotten = last.lease(1).expect("a row").into_raw();
    assert!(raw.n_rows > forgotten.lease);
    drop((pool, last));
    collect_tensors();
    assert_eq!((calls.load(Ordering::Relaxed), Arc::strong_count(&memory)), (2, 1));
}

#[test]
fn bad_adoptions_and_tables_are_refused() {
    let pool = pool(4096, false);
    // SAFETY: refused before anything is done with it.
    let adopt = |address, spec: &TensorSpec| unsafe { pool.adopt("bad", address, spec, || ()) }.map(|_| ());
    for (result, word) in [
        (adopt(0, &words(1)), "no memory"),
        (adopt(4097, &words(1)), "aligned"),
        (adopt(u64::MAX - 7, &words(9)), "beyond"),
        (adopt(4096, &words(0)), "without elements"),
    ] {
        let e = result.expect_err("refused").to_string();
        assert!(e.contains(word), "{e}");
    }
    for options in [PoolOptions { leases: 0, ..PoolOptions::limit(1) }, PoolOptions::limit(0)] {
        assert!(matches!(Pool::new(&Device::twin(), options), Err(Error::Refused { .. })));
    }
    let tensor = pool.alloc("t", &words(4)).expect("room");
    assert!(tensor.lease(0).is_err() && tensor.lease(9).is_err());
    assert!(tensor.upload(&[0; 8]).is_err(), "another size");
    let small = Pool::new(&Device::twin(), PoolOptions { leases: 1, ..PoolOptions::limit(4096) }).expect("a pool");
    let tensor = small.alloc("t", &words(4)).expect("room");
    let first = tensor.lease(1).expect("a row");
    let e = tensor.lease(1).expect_err("no row").to_string();
    assert!(e.contains("all 1 rows") && e.contains("t (256 bytes"), "{e}");
    drop(first);
    drop(tensor.lease(1).expect("the row is free again"));
}

#[test]
fn damaged_descriptors_are_refused() {
    let pool = pool(1 << 16, false);
    let tensor = pool.alloc("t", &words(32)).expect("room");
    let good = tensor.lease(2).expect("a row").into_raw();
    let bad = |change: &dyn Fn(&mut abi::wm_tensor)| {
        let mut raw = good;
        change(&mut raw);
        raw
    };
    // What no pool gave out: by the host and by readers on the device.
    for raw in [
        bad(&|t| t.lease = 5000),
        bad(&|t| t.shares = 0),
        bad(&|t| (t.share, t.shares) = (7, 2)),
        bad(&|t| (t.share, t.shares) = (255, 255)),
        bad(&|t| t.data += 1 << 20),
        bad(&|t| t.byte_offset = 1 << 40),
    ] {
        assert!(pool.claim(raw).is_err(), "{raw:?}");
        assert_eq!(device_check(&pool, &raw), abi::WM_BAD_CONTENT, "{raw:?}");
    }
    for raw in [bad(&|t| t.epoch += 2), bad(&|t| t.lease = 9)] {
        assert!(matches!(pool.claim(raw), Err(Error::StaleLease { .. })), "{raw:?}");
        assert_eq!(device_check(&pool, &raw), abi::WM_STALE_LEASE, "{raw:?}");
    }
    for raw in [
        bad(&|t| t.ndim = 9),
        bad(&|t| t.ndim = 255),
        bad(&|t| t.shape[0] = 33),
        bad(&|t| t.shape[0] = -1),
        bad(&|t| t.strides[0] = i64::MAX),
        bad(&|t| t.dtype_bits = 3),
        bad(&|t| t.shares = 3),
    ] {
        assert!(pool.claim(raw).is_err(), "{raw:?}");
    }
    // None of it has touched the lease.
    drop(pool.claim(good).expect("still whole"));
    assert!(matches!(pool.claim(good), Err(Error::StaleLease { .. })), "not collected, but given back");
}

#[test]
fn both_sides_releasing_one_share_is_told() {
    let pool = pool(1 << 16, false);
    let tensor = pool.alloc("t", &words(32)).expect("room");
    let raw = tensor.lease(1).expect("a row").into_raw();
    let lease = pool.claim(raw).expect("here");
    assert_eq!(device_release(&pool, &raw), 0, "the device cannot know");
    pool.collect();
    assert_eq!(pool.stats().open, 1, "held here: not ended under its holder");
    assert!(matches!(lease.release(), Err(Error::StaleLease { .. })));
    pool.collect();
    assert_eq!((pool.stats().open, pool.stats().released_twice), (0, 1));
    // The next one of the same row is not touched by a late release of the old.
    let next = tensor.lease(1).expect("a row");
    assert_eq!(next.descriptor().raw().lease, raw.lease);
    assert_eq!(device_release(&pool, &raw), abi::WM_STALE_LEASE);
    assert_eq!(device_check(&pool, &next.descriptor().raw()), 0);
}

#[test]
fn of_many_that_release_a_share_one_does() {
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

#[test]
fn a_recall_leaves_what_others_have() {
    let pool = pool(1 << 16, false);
    let tensor = pool.alloc("t", &words(1)).expect("room");
    let mut rest = tensor.lease(3).expect("a row");
    let (one, two) = (rest.part(1).expect("of three"), rest.part(1).expect("of two"));
    for (lease, via) in [(&one, 77), (&two, 78)] {
        lease.hand_over(via);
    }
    assert_eq!((pool.core.recall(5), pool.core.recall(77), pool.core.recall(77)), (0, 1, 0));
    assert_eq!(device_check(&pool, &one.descriptor().raw()), abi::WM_STALE_LEASE);
    assert_eq!(device_check(&pool, &two.descriptor().raw()), 0, "another graph's");
    assert_eq!(device_check(&pool, &rest.descriptor().raw()), 0, "held here");
    one.forget();
    two.forget();
    drop(rest);
    pool.collect();
    assert_eq!((pool.stats().open, pool.core.recall(78), pool.stats().open), (1, 1, 0));
}

#[test]
fn lost_mail_is_found_in_the_marks() {
    let pool = pool(256, false);
    let raw = pool.alloc("t", &words(32)).expect("room").lease(1).expect("a row").into_raw();
    assert_eq!(device_release(&pool, &raw), 0);
    // What two readers that make the same mistake at the same time can do: an older epoch over the newer.
    let mail = pool.core.on_host.mail as *mut abi::wm_lease_mail;
    // SAFETY: a row of the table; nobody else is there.
    unsafe { (*mail.add(raw.lease as usize - 1)).released[0] = raw.epoch - 1 };
    pool.core.collect(usize::MAX, false);
    assert_eq!(pool.stats().open, 1);
    pool.alloc("next", &words(32)).expect("before it says that it is full, the pool asks the device");
}

#[test]
fn poison_is_seen() {
    let pool = pool(4096, true);
    let tensor = pool.alloc("t", &words(32)).expect("room");
    let lease = tensor.lease(1).expect("a row");
    let raw = lease.descriptor().raw();
    let mut content = [0; 256];
    assert!(matches!(lease.download(&mut content), Err(Error::PoisonRead { .. })), "never written");
    assert_eq!(device_check(&pool, &raw), abi::WM_POISONED);
    tensor.upload(&[1; 256]).expect("its size");
    lease.download(&mut content).expect("written");
    assert_eq!(device_check(&pool, &raw), 0);
    let address = tensor.address();
    drop((tensor, lease));
    pool.collect();
    // SAFETY: the pool keeps the block mapped; this is the mistake that the check is for.
    unsafe { ((address + 8) as *mut u64).write(3) };
    let written = pool.alloc("u", &words(32));
    assert!(matches!(written, Err(Error::WrittenAfterRelease { offset: 8, .. })), "{written:?}");
    pool.alloc("u", &words(32)).expect("another block");
}

#[test]
fn streams_of_the_twin_are_refused_or_past() {
    let pool = pool(4096, false);
    let tensor = pool.alloc("t", &words(1)).expect("room");
    tensor.lease(1).expect("a row").release_on(0);
    pool.collect();
    assert_eq!(pool.stats().open, 0);
    tensor.lease(1).expect("a row").release_on(0x1234);
    pool.collect();
    assert_eq!(pool.stats().open, 1, "no such stream: the lease stays, rather than end too early");
}

#[test]
fn posts_and_takes_say_what_is_wrong() {
    let pool = pool(1 << 16, false);
    let other = Pool::new(&Device::twin(), PoolOptions::limit(1 << 16)).expect("a pool");
    let (mut sender, mut receiver) =
        direct_mailbox(&Device::twin(), crate::MailboxOptions::slots(2)).expect("a mailbox");
    assert!(matches!(receiver.try_take(), Err(Error::State(_))), "no pool");
    receiver.attach_pool(&pool);
    sender.attach_pool(&pool);
    let tensor = pool.alloc("t", &words(4)).expect("room");
    let stranger = other.alloc("t", &words(4)).expect("room");
    let unposted = sender.try_post(stranger.lease(1).expect("a row"), b"").expect_err("another pool's");
    assert!(unposted.to_string().contains("another pool"), "{unposted}");
    let unposted = sender.try_post(tensor.lease(1).expect("a row"), &[0; 73]).expect_err("too long");
    assert!(matches!(unposted.error, Error::PayloadTooLong { len: 249, .. }));
    sender.try_post(unposted.lease, &[5; 72]).expect("it came back whole");
    sender.push(3, b"bytes", BOUND).expect("room");
    let unposted = sender.try_post(tensor.lease(1).expect("a row"), b"").expect_err("full");
    assert!(matches!(unposted.error, Error::Full { .. }));
    drop(unposted);
    let (lease, note) = receiver.take(BOUND).expect("posted");
    assert_eq!((lease.descriptor().shape(), &note[..]), (&[4][..], &[5; 72][..]));
    assert!(matches!(receiver.try_take(), Err(Error::NotATensor { msg_type: 3, .. })));
    let mut bytes = [0; 8];
    assert_eq!(receiver.try_pop(&mut bytes).expect("still there").map(|r| r.len), Some(5));
    assert!(matches!(receiver.take(Duration::from_millis(5)), Err(Error::Timeout { .. })));
    // A tensor's record by hand: too short, stale, and the same twice.
    sender.push(abi::WM_TYPE_TENSOR as u16, b"short", BOUND).expect("room");
    assert!(matches!(receiver.try_take(), Err(Error::BadRecord { len: 5, .. })));
    let raw = lease.descriptor().raw();
    sender.push(abi::WM_TYPE_TENSOR as u16, bytemuck::bytes_of(&raw), BOUND).expect("room");
    let e = receiver.take(BOUND).expect_err("stale").to_string();
    assert!(e.contains("taken twice"), "{e}");
    lease.release().expect("once");
    sender.push(abi::WM_TYPE_TENSOR as u16, bytemuck::bytes_of(&raw), BOUND).expect("room");
    assert!(receiver.take(BOUND).expect_err("stale").to_string().contains("has ended"));
    pool.collect();
    assert_eq!((pool.stats().open, pool.stats().stale), (0, 2));
}
