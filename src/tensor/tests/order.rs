//! The order of streams, on a twin whose streams are as slow as the test says.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::abi::wm_arbiter_args;
use crate::backend::{Backend, Blocks, Copies, Launches, Part, Pinned, StepPlan, StepQueue, StreamNote, twin::Twin};
use crate::device::DeviceInfo;
use crate::error::{Error, Result};
use crate::image::HandlerImage;
use crate::port::direct_mailbox;
use crate::stream::Body;

/// A stream that is being captured.
const CAPTURED: u64 = 99;

/// Streams by number: a note is past when its stream was told to get so far.
#[derive(Debug)]
struct Slow {
    twin: Twin,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// Notes that are not past, with their streams.
    waiting: HashMap<usize, u64>,
    made: usize,
    /// Which stream was made to wait for which note.
    followed: Vec<(u64, usize)>,
}

impl Slow {
    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The stream does all that it has to do.
    fn finish(&self, stream: u64) {
        self.log().waiting.retain(|_, of| *of != stream);
    }
}

impl Backend for Slow {
    fn note(&self, stream: u64) -> Result<StreamNote> {
        if stream == CAPTURED {
            return Err(Error::State("captured".into()));
        }
        let mut log = self.log();
        log.made += 1;
        let note = log.made;
        log.waiting.insert(note, stream);
        Ok(StreamNote(note))
    }

    fn is_past(&self, note: StreamNote) -> Result<bool> {
        Ok(!self.log().waiting.contains_key(&note.0))
    }

    fn follow(&self, stream: u64, note: StreamNote) -> Result<()> {
        self.log().followed.push((stream, note.0));
        Ok(())
    }

    fn intake(&self) -> Result<u64> {
        Ok(7)
    }

    fn info(&self) -> &DeviceInfo {
        self.twin.info()
    }
    fn free_bytes(&self) -> Result<Option<u64>> {
        self.twin.free_bytes()
    }
    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.twin.alloc(bytes)
    }
    fn free(&self, address: u64, bytes: usize) {
        self.twin.free(address, bytes);
    }
    fn alloc_pinned(&self, bytes: usize) -> Result<Pinned> {
        self.twin.alloc_pinned(bytes)
    }
    fn free_pinned(&self, pinned: Pinned) {
        self.twin.free_pinned(pinned);
    }
    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.twin.upload(to, from)
    }
    fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        self.twin.download(to, from)
    }
    fn fill(&self, to: u64, bytes: usize, byte: u8) -> Result<()> {
        self.twin.fill(to, bytes, byte)
    }
    fn read_words(&self, to: &mut [u64], from: u64) -> Result<()> {
        self.twin.read_words(to, from)
    }
    fn blocks(&self) -> Result<Box<dyn Blocks>> {
        self.twin.blocks()
    }
    fn owns(&self, address: u64) -> Result<()> {
        self.twin.owns(address)
    }
    fn copies(&self) -> Result<Box<dyn Copies>> {
        self.twin.copies()
    }
    fn load(&self, image: &HandlerImage, args: &wm_arbiter_args, beside: Option<u64>) -> Result<Box<dyn Launches>> {
        self.twin.load(image, args, beside)
    }
    fn steps(&self, plan: StepPlan, body: Body) -> Result<Box<dyn StepQueue>> {
        self.twin.steps(plan, body)
    }
    fn part(&self, plan: StepPlan, body: Body) -> Result<Part> {
        self.twin.part(plan, body)
    }
    fn pass(&self, parts: Vec<(Part, Vec<usize>)>, under_way: usize) -> Result<Box<dyn StepQueue>> {
        self.twin.pass(parts, under_way)
    }
}

fn slow(limit: u64) -> (Arc<Slow>, Pool) {
    let slow = Arc::new(Slow { twin: Twin::new(), log: Mutex::default() });
    let device = Device { backend: slow.clone() };
    (slow, Pool::new(&device, PoolOptions::limit(limit)).unwrap_or_else(|e| panic!("{e}")))
}

/// Lets a stream come after a lease's writers.
fn wait_on(lease: &Lease, stream: u64) {
    // SAFETY: the streams of these tests are numbers.
    unsafe { lease.wait_on(stream) }.expect("followed");
}

#[test]
fn readers_come_after_writers_whoever_hands_on() {
    let _turn = super::turn();
    let (slow, pool) = slow(1 << 16);
    let (mut sender, mut receiver) = direct_mailbox(pool.device(), Default::default()).expect("a mailbox");
    receiver.attach_pool(&pool);
    let tensor = pool.alloc("t", &words(4)).expect("room");
    // SAFETY: numbers.
    unsafe { sender.post_on(tensor.lease(1).expect("a row"), b"1", 3, BOUND) }.expect("posted at once");
    let (lease, _) = receiver.try_take().expect("a tensor").expect("at once");
    assert!(!lease.is_ready().expect("asked") && slow.log().followed.is_empty());
    wait_on(&lease, 4);
    assert_eq!(slow.log().followed, [(4, 1)]);
    // On to another, as it is: it waits for the same, and for what the second stream has added.
    // SAFETY: numbers.
    unsafe { sender.post_on(lease, b"2", 4, BOUND) }.expect("posted");
    let (lease, _) = receiver.try_take().expect("a tensor").expect("at once");
    let again = lease.tensor().expect("alive").lease(1).expect("a row");
    wait_on(&again, 5);
    assert_eq!(slow.log().followed[1..], [(5, 1), (5, 2)]);
    // A copy of the host's comes after them, and a bound is kept.
    assert!(matches!(lease.wait_ready(Duration::from_millis(5)), Err(Error::Timeout { .. })));
    slow.finish(3);
    slow.finish(4);
    assert!(again.is_ready().expect("asked"));
    lease.download(&mut [0; 32]).expect("all is written");
    wait_on(&again, 6);
    assert_eq!(slow.log().followed.len(), 3, "nothing is left to wait for");
}

#[test]
fn memory_is_used_again_when_its_writers_and_readers_are_past() {
    let _turn = super::turn();
    let (slow, pool) = slow(256);
    let calls = Arc::new(AtomicUsize::new(0));
    let (theirs, told) = (vec![0u64; 4], calls.clone());
    let released = move || {
        let _ = told.fetch_add(1, Ordering::Relaxed);
    };
    // SAFETY: `theirs` outlives the pool's use of it.
    let adopted = unsafe { pool.adopt("theirs", theirs.as_ptr() as u64, &words(4), released) }.expect("adopted");
    for tensor in [adopted, pool.alloc("ours", &words(4)).expect("room")] {
        let lease = tensor.lease(1).expect("a row");
        // SAFETY: numbers.
        unsafe { lease.written_on(3) }.expect("noted");
        drop((tensor, lease));
    }
    pool.collect();
    assert_eq!(pool.stats().open, 0, "nobody reads");
    assert!(matches!(pool.alloc("next", &words(4)), Err(Error::PoolFull { .. })), "but a stream has still to write");
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    slow.finish(3);
    let next = pool.alloc("next", &words(4)).expect("room");
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    // Readers: the second stream is the caller's own default, which another thread would take for its own.
    let lease = next.lease(1).expect("a row");
    drop(next);
    // SAFETY: numbers.
    unsafe { lease.release_on(2) };
    assert!(matches!(pool.alloc("more", &words(4)), Err(Error::PoolFull { .. })));
    slow.finish(2);
    assert!(pool.alloc("more", &words(4)).is_err(), "it was noted on the legacy stream");
    slow.finish(1);
    pool.alloc("more", &words(4)).expect("room");
}

#[test]
fn many_posts_keep_few_notes() {
    let _turn = super::turn();
    let (slow, pool) = slow(1 << 16);
    let tensor = pool.alloc("t", &words(4)).expect("room");
    let lease = tensor.lease(8).expect("a row");
    for n in 0..100 {
        // SAFETY: numbers.
        unsafe { lease.written_on(10 + n % 2) }.expect("noted");
        if n % 2 == 1 {
            slow.finish(10);
            slow.finish(11);
        }
    }
    assert!(pool.core.writers(&lease.descriptor().0).expect("alive").len() <= 5);
}

#[test]
fn captured_streams_are_refused_and_the_lease_comes_back() {
    let _turn = super::turn();
    let (_slow, pool) = slow(1 << 16);
    let (mut sender, _receiver) = direct_mailbox(pool.device(), Default::default()).expect("a mailbox");
    let lease = pool.alloc("t", &words(4)).expect("room").lease(1).expect("a row");
    // SAFETY: numbers.
    let unposted = unsafe { sender.post_on(lease, b"", CAPTURED, BOUND) }.expect_err("refused");
    assert!(matches!(unposted.error, Error::State(_)) && sender.pushed() == 0);
    sender.try_post(unposted.lease, b"").expect("posted without an order");
}

#[test]
fn a_pool_that_ends_first_keeps_memory_that_is_still_written() {
    let _turn = super::turn();
    let (slow, pool) = slow(1 << 16);
    let calls = Arc::new(AtomicUsize::new(0));
    let told = calls.clone();
    let theirs = [0u64; 4];
    let released = move || {
        let _ = told.fetch_add(1, Ordering::Relaxed);
    };
    // SAFETY: `theirs` outlives the pool's use of it.
    let tensor = unsafe { pool.adopt("theirs", theirs.as_ptr() as u64, &words(4), released) }.expect("adopted");
    let lease = tensor.lease(1).expect("a row");
    // SAFETY: numbers.
    unsafe { lease.written_on(3) }.expect("noted");
    drop((lease, tensor, pool));
    collect_tensors();
    assert_eq!(calls.load(Ordering::Relaxed), 0, "the stream may write yet");
    slow.finish(3);
}

#[test]
fn the_twin_has_the_same_calls() {
    let _turn = super::turn();
    let pool = pool(1 << 16, false);
    let (mut sender, mut receiver) = direct_mailbox(pool.device(), Default::default()).expect("a mailbox");
    receiver.attach_pool(&pool);
    let tensor = pool.alloc("t", &words(4)).expect("room");
    tensor.upload(&[7; 32]).expect("uploaded");
    // SAFETY: 0 is the twin's.
    unsafe { sender.post_on(tensor.lease(1).expect("a row"), b"note", 0, BOUND) }.expect("posted");
    let (lease, _) = receiver.take(BOUND).expect("taken");
    wait_on(&lease, 0);
    assert!(lease.is_ready().expect("asked") && pool.intake_stream().expect("0") == 0);
    let mut bytes = [0; 32];
    lease.download(&mut bytes).expect("a copy");
    assert_eq!(bytes, [7; 32]);
    // SAFETY: refused.
    let unposted = unsafe { sender.post_on(lease, b"", 5, BOUND) }.expect_err("the twin has no streams");
    assert!(unposted.error.to_string().contains("pass 0"), "{}", unposted.error);
}
