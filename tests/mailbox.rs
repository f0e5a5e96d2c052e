//! The ring between two host threads: against a model, over the wrap of its 64-bit indices, bit for bit.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use warpmail::{Device, Error, MailboxOptions, Receiver, Sender, direct_mailbox, direct_mailbox_at};

const BOUND: Duration = Duration::from_secs(30);
/// Starts from which the indices, or their low halves, wrap within a few records.
const STARTS: [u64; 5] = [0, u32::MAX as u64 - 2, u64::MAX - 2, u64::MAX / 2 - 3, 1 << 63];

fn ring(stride: u32, slots: u32, start: u64) -> (Sender, Receiver) {
    direct_mailbox_at(&Device::twin(), MailboxOptions { stride, slots }, start).unwrap()
}

fn payload_of(n: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(i as u32 * 7) >> 3) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Pushes and pops in any order, of any length, do what a queue with as many places does.
    #[test]
    fn ring_is_a_bounded_queue(
        stride in (1u32..=64).prop_map(|k| k * 64),
        slots in (0u32..6).prop_map(|k| 1 << k),
        start in prop::sample::select(STARTS.to_vec()),
        moves in prop::collection::vec((any::<bool>(), any::<u16>(), any::<u16>()), 1..200),
    ) {
        let (mut sender, mut receiver) = ring(stride, slots, start);
        let payload = sender.payload_bytes();
        let mut model: VecDeque<(u16, Vec<u8>)> = VecDeque::new();
        let mut buffer = vec![0; payload];
        for (i, (push, kind, len)) in moves.into_iter().enumerate() {
            if push {
                let bytes = payload_of(i as u64, usize::from(len) % (payload + 1));
                let pushed = sender.try_push(kind, &bytes);
                if model.len() < slots as usize {
                    prop_assert!(pushed.is_ok(), "{pushed:?}");
                    model.push_back((kind, bytes));
                } else {
                    prop_assert!(matches!(pushed, Err(Error::Full { .. })), "{pushed:?}");
                }
            } else {
                prop_assert_eq!(receiver.is_ready(), !model.is_empty());
                let popped = receiver.try_pop(&mut buffer).unwrap();
                prop_assert_eq!(popped.map(|r| (r.msg_type, buffer[..r.len].to_vec())), model.pop_front());
            }
        }
        prop_assert_eq!(sender.pushed().wrapping_sub(receiver.popped()), model.len() as u64);
    }

    /// Any bytes, at any alignment of source and destination, with any length: every bit arrives, the top ones too.
    #[test]
    fn every_bit_arrives(
        bytes in prop::collection::vec(prop::sample::select(vec![0u8, 0x7F, 0x80, 0xFF, 0x55]), 0..3968),
        from in 0usize..8,
        to in 0usize..8,
        start in prop::sample::select(STARTS.to_vec()),
    ) {
        let (mut sender, mut receiver) = ring(4096, 2, start);
        let mut source = vec![0u8; bytes.len() + 8];
        source[from..from + bytes.len()].copy_from_slice(&bytes);
        let mut target = vec![0xA5u8; 3968 + 16];
        for _ in 0..5 {
            sender.try_push(9, &source[from..from + bytes.len()]).unwrap();
            let r = receiver.try_pop(&mut target[to..to + 3968]).unwrap().unwrap();
            prop_assert_eq!(r.msg_type, 9);
            prop_assert_eq!(&target[to..to + r.len], &bytes[..]);
            prop_assert!(target[to + 3968..].iter().all(|b| *b == 0xA5), "wrote behind the buffer");
        }
    }
}

#[test]
fn payload_sizes_are_what_the_layout_promises() {
    for (stride, payload) in [(64, 56), (128, 120), (192, 184), (256, 248), (320, 304), (512, 496), (4096, 3968)] {
        assert_eq!(MailboxOptions { stride, slots: 2 }.payload_bytes().unwrap(), payload);
        assert_eq!(ring(stride, 2, 0).0.payload_bytes(), payload);
    }
}

#[test]
fn a_payload_that_does_not_fit_is_refused_and_nothing_is_pushed() {
    let (mut sender, mut receiver) = ring(256, 2, 0);
    let refused = sender.try_push(1, &[0; 249]);
    assert!(matches!(refused, Err(Error::PayloadTooLong { len: 249, max: 248, .. })), "{refused:?}");
    assert_eq!(receiver.try_pop(&mut [0; 248]).unwrap(), None);
    sender.try_push(1, &[7; 248]).unwrap();
    assert_eq!(receiver.try_pop(&mut [0; 248]).unwrap().unwrap().len, 248);
}

#[test]
fn a_buffer_that_is_too_small_keeps_the_record() {
    let (mut sender, mut receiver) = ring(256, 2, 0);
    sender.try_push(3, b"twelve bytes").unwrap();
    let small = receiver.try_pop(&mut [0; 11]);
    assert!(matches!(small, Err(Error::BufferTooSmall { len: 12, room: 11, .. })), "{small:?}");
    let mut buffer = [0; 12];
    let r = receiver.try_pop(&mut buffer).unwrap().unwrap();
    assert_eq!((r.msg_type, &buffer), (3, b"twelve bytes"));
}

#[test]
fn waits_are_bounded_and_say_what_they_waited_for() {
    let (mut sender, mut receiver) = direct_mailbox(&Device::twin(), MailboxOptions::slots(1)).unwrap();
    let short = Duration::from_millis(5);
    let empty = receiver.pop(&mut [0; 8], short).unwrap_err();
    assert!(matches!(empty, Error::Timeout { waited, .. } if waited == short), "{empty:?}");
    sender.push(1, b"x", short).unwrap();
    let full = sender.push(1, b"y", short).unwrap_err();
    assert!(full.to_string().contains("a free slot in mailbox direct"), "{full}");
}

/// Two threads, every record checked, with starts that wrap on the way.
#[test]
fn two_threads_lose_nothing() {
    for start in STARTS {
        let (mut sender, mut receiver) = ring(256, 64, start);
        const RECORDS: u64 = 200_000;
        let producer = std::thread::spawn(move || {
            for n in 0..RECORDS {
                let len = 8 + (n % 241) as usize;
                let mut bytes = payload_of(n, len);
                bytes[..8].copy_from_slice(&n.to_ne_bytes());
                sender.push(n as u16, &bytes, BOUND).unwrap();
            }
        });
        let mut buffer = [0; 248];
        for n in 0..RECORDS {
            let r = receiver.pop(&mut buffer, BOUND).unwrap();
            let mut expected = payload_of(n, 8 + (n % 241) as usize);
            expected[..8].copy_from_slice(&n.to_ne_bytes());
            assert_eq!((r.msg_type, &buffer[..r.len]), (n as u16, &expected[..]), "record {n} from start {start}");
        }
        producer.join().unwrap();
        assert_eq!(receiver.popped(), start.wrapping_add(RECORDS));
    }
}
