//! `drain.tensors`: tensors that tapped records point to, to a sink that forgets them.

use std::time::{Duration, Instant};

use warpmail::journal::NullSink;
use warpmail::{Builder, DType, Device, HandlerImage, MailboxOptions, Pool, PoolOptions, Tap, TensorSpec, builtin};

use super::super::text;
use super::{BOUND, hot};

/// Of one tensor, and how many of them pass.
pub(super) const BYTES: usize = 4 << 20;
pub(super) const TENSORS: usize = 512;

/// Bytes a nanosecond (GB/s) from the first post until the sink had all.
pub(super) fn rate(device: &Device) -> Result<f64, String> {
    let pool = Pool::new(device, PoolOptions::limit(64 * BYTES as u64)).map_err(text)?;
    let mut graph = Builder::new(device.clone());
    hot(&mut graph, None).map_err(text)?;
    graph.pool(&pool).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
    let there = graph.mailbox(host, relay, MailboxOptions::slots(64)).map_err(text)?;
    let back = graph.mailbox(relay, host, MailboxOptions::slots(64)).map_err(text)?;
    graph.tap(there, Tap::Block).map_err(text)?.tap_tensors(there).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    runtime.journal(NullSink::default()).map_err(text)?;
    let spec = TensorSpec::new(DType::U8, &[BYTES as i64]);
    let tensors: Result<Vec<_>, _> = (0..8).map(|_| pool.alloc("bench", &spec)).collect();
    let tensors = tensors.map_err(text)?;
    let bytes: Vec<u8> = (0..BYTES).map(|i| (i * 31) as u8).collect();
    tensors.iter().try_for_each(|t| t.upload(&bytes)).map_err(text)?;
    runtime.start().map_err(text)?;
    let begin = Instant::now();
    let (mut posted, mut taken) = (0, 0);
    while taken < TENSORS {
        if posted < TENSORS && posted - taken < 32 {
            let lease = tensors[posted % tensors.len()].lease(1).map_err(text)?;
            sender.post(lease, &[], BOUND).map_err(|e| e.to_string())?;
            posted += 1;
        } else {
            receiver.take(BOUND).map_err(text)?.0.release().map_err(text)?;
            taken += 1;
        }
    }
    let wanted = TENSORS as u64;
    loop {
        let stats = runtime.journal_stats().unwrap_or_default();
        if stats.tensors_missed > 0 {
            return Err(format!("{} tensors could not be taken", stats.tensors_missed));
        }
        if stats.durable >= wanted {
            break;
        }
        if begin.elapsed() > 2 * BOUND {
            return Err(format!("only {} of {wanted} tensors reached the sink", stats.durable));
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    let rate = (TENSORS * BYTES) as f64 / begin.elapsed().as_nanos() as f64;
    runtime.stop(BOUND).map_err(text)?;
    Ok(rate)
}

/// The floor of the twin, whose device is this memory: a copy of the same bytes by one thread.
pub(super) fn copy_rate() -> f64 {
    let from = vec![7u8; 8 * BYTES];
    let mut to = vec![1u8; 16 * BYTES];
    let begin = Instant::now();
    for i in 0..TENSORS {
        let (f, t) = (i % 8 * BYTES, i % 16 * BYTES);
        to[t..t + BYTES].copy_from_slice(&from[f..f + BYTES]);
        std::hint::black_box(&mut to);
    }
    (TENSORS * BYTES) as f64 / begin.elapsed().as_nanos() as f64
}
