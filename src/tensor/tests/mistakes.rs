//! What can go wrong, and what is said then.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::error::Error;
use crate::port::direct_mailbox;

#[test]
fn a_full_pool_says_who_holds_what() {
    let _turn = super::turn();
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
    let _turn = super::turn();
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
    let _turn = super::turn();
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
    let _turn = super::turn();
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
    let _turn = super::turn();
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
fn a_recall_leaves_what_others_have() {
    let _turn = super::turn();
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
    let _turn = super::turn();
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
    let _turn = super::turn();
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
    let _turn = super::turn();
    let pool = pool(4096, false);
    let tensor = pool.alloc("t", &words(1)).expect("room");
    // SAFETY: the twin looks at the number alone, here and below.
    unsafe { tensor.lease(1).expect("a row").release_on(0) };
    pool.collect();
    assert_eq!(pool.stats().open, 0);
    // SAFETY: as above.
    unsafe { tensor.lease(1).expect("a row").release_on(0x1234) };
    pool.collect();
    assert_eq!(pool.stats().open, 1, "no such stream: the lease stays, rather than end too early");
}

#[test]
fn posts_and_takes_say_what_is_wrong() {
    let _turn = super::turn();
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
