//! Tensors that tapped records point to: in the log as they were when the record passed, and back in a pool.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use warpmail::journal::{Batch, Log, NullSink, Pace, Position, Reader, Sink, replay};
use warpmail::{
    Builder, DType, Device, Error, HandlerImage, MailboxOptions, Pool, PoolOptions, Receiver, Runtime, Sender, Tap,
    TensorSpec, abi, builtin,
};

use crate::tap::Folder;
use crate::{BOUND, Outcome, expect, text};

const MIB: u64 = 1 << 20;

/// host -> relay -> host, with the tensors of the first mailbox tapped.
fn relay(device: &Device, pool: &Pool, tap: Tap) -> Result<(Runtime, Sender, Receiver), Error> {
    let mut graph = Builder::new(device.clone());
    graph.pool(pool)?;
    let host = graph.host("host")?;
    let relay = graph.resident("relay", builtin::RELAY)?;
    let there = graph.mailbox(host, relay, MailboxOptions::slots(16))?;
    let back = graph.mailbox(relay, host, MailboxOptions::slots(16))?;
    graph.tap(there, tap)?.tap_tensors(there)?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let ends = (runtime.sender(there)?, runtime.receiver(back)?);
    Ok((runtime, ends.0, ends.1))
}

fn bytes_of(n: u64, len: u64) -> Vec<u8> {
    let mut x = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let word = |_| {
        x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(17);
        x.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(word).take(len as usize).collect()
}

/// Elements of the nth tensor: short and long ones, one that is longer than the journal's arena takes at once.
fn elements(n: u64) -> u64 {
    match n % 40 {
        39 => 10 * MIB,
        i if i % 10 == 9 => MIB / 2 + n,
        i => 1 + i * 97,
    }
}

/// Posts tensor n and takes it back; its memory is free for the next one then, as far as its readers are concerned.
fn pass(pool: &Pool, sender: &mut Sender, receiver: &mut Receiver, n: u64) -> Outcome {
    let spec = TensorSpec::new(DType::F32, &[elements(n) as i64]);
    let tensor = pool.alloc_within("test", &spec, BOUND).map_err(text)?;
    tensor.upload(&bytes_of(n, elements(n) * 4)).map_err(text)?;
    let lease = tensor.lease(1).map_err(text)?;
    drop(tensor);
    sender.post(lease, &n.to_le_bytes(), BOUND).map_err(|e| e.to_string())?;
    let (lease, note) = receiver.take(BOUND).map_err(text)?;
    expect(note == n.to_le_bytes(), || format!("tensor {n} came back as {note:?}"))?;
    lease.release().map_err(text)
}

/// Every tensor is in the log with the bytes that it had, although its memory was wanted for the next one at once.
pub(crate) fn tensors_reach_the_log_and_come_back(device: &Device) -> Outcome {
    const TENSORS: u64 = 80;
    let folder = Folder::new("tensors");
    let pool = Pool::new(device, PoolOptions { poison: true, ..PoolOptions::limit(64 * MIB) }).map_err(text)?;
    let (mut runtime, mut sender, mut receiver) = relay(device, &pool, Tap::Block).map_err(text)?;
    runtime.journal(Log::open(&folder.0, Default::default()).map_err(text)?.0).map_err(text)?;
    runtime.start().map_err(text)?;
    for n in 0..TENSORS {
        pass(&pool, &mut sender, &mut receiver, n)?;
    }
    sender.push(7, b"no tensor", BOUND).map_err(text)?;
    receiver.pop(&mut [0; 248], BOUND).map_err(text)?;
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.journal_stats().ok_or("no journal")?;
    let bytes: u64 = (0..TENSORS).map(|n| elements(n) * 4).sum();
    let all = stats.tensors == TENSORS && stats.tensors_missed == 0 && stats.tensor_bytes == bytes;
    expect(all && stats.durable == TENSORS + 1, || format!("{stats:?}"))?;
    drop((runtime, sender, receiver));
    pool.collect();
    expect(pool.stats().open == 0, || format!("{:?}", pool.stats()))?;

    let mut n = 0;
    for record in Reader::open(&folder.0, 1).map_err(text)? {
        let record = record.map_err(text)?;
        let Some(descriptor) = record.descriptor().map_err(text)? else {
            expect(n == TENSORS && record.payload == b"no tensor", || format!("{record:?}"))?;
            continue;
        };
        let same = descriptor.shape() == [elements(n) as i64] && record.tensor == bytes_of(n, elements(n) * 4);
        expect(same && record.payload.ends_with(&n.to_le_bytes()), || format!("tensor {n} is another in the log"))?;
        n += 1;
    }
    expect(n == TENSORS, || format!("{n} tensors in the log"))?;

    // Into another pool, at other addresses.
    let pool = Pool::new(device, PoolOptions::limit(64 * MIB)).map_err(text)?;
    let (mut runtime, sender, mut receiver) = relay(device, &pool, Tap::Drop).map_err(text)?;
    runtime.journal(NullSink::default()).map_err(text)?;
    runtime.start().map_err(text)?;
    let (from, mut senders) = (folder.0.clone(), HashMap::from([(0, sender)]));
    let replaying = std::thread::spawn(move || replay(Reader::open(&from, 1)?, Pace::Full, &mut senders, BOUND));
    for n in 0..TENSORS {
        let (lease, note) = receiver.take(BOUND).map_err(text)?;
        let mut bytes = vec![0; elements(n) as usize * 4];
        lease.download(&mut bytes).map_err(text)?;
        let same = bytes == bytes_of(n, elements(n) * 4) && note == n.to_le_bytes();
        expect(same, || format!("tensor {n} came back changed"))?;
    }
    receiver.pop(&mut [0; 248], BOUND).map_err(text)?;
    let done = replaying.join().map_err(|_| "the replay panicked".to_string())?.map_err(text)?;
    let counted = (done.pushed, done.tensors, done.without_tensor, done.skipped) == (TENSORS + 1, TENSORS, 0, 0);
    expect(counted, || format!("{done:?}"))?;
    runtime.stop(BOUND).map_err(text)
}

/// Keeps the tensors' bytes, slowly, and wants no checksums.
#[derive(Default)]
struct Slow {
    null: NullSink,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Sink for Slow {
    fn append(&mut self, batch: &mut Batch<'_>) -> Result<RangeInclusive<u64>, Error> {
        std::thread::sleep(Duration::from_millis(3));
        if let Ok(mut seen) = self.seen.lock() {
            seen.extend(batch.entries().map(|e| e.tensor.to_vec()));
        }
        self.null.append(batch)
    }
    fn wants_checksums(&self) -> bool {
        false
    }
    fn tick(&mut self) -> Result<u64, Error> {
        self.null.tick()
    }
    fn commit(&mut self) -> Result<Position, Error> {
        self.null.commit()
    }
    fn durable(&self) -> u64 {
        self.null.durable()
    }
    fn due_in(&self) -> Option<Duration> {
        None
    }
    fn finish(self: Box<Self>) -> Result<u64, Error> {
        Ok(self.null.durable())
    }
}

/// A sink far behind holds the memory no longer than the copy takes, and gets what was there all the same.
pub(crate) fn a_slow_sink_gets_the_tensors_as_they_were(device: &Device) -> Outcome {
    const TENSORS: u64 = 120;
    // Room for one of the longest, and for little beside it.
    let pool = Pool::new(device, PoolOptions { poison: true, ..PoolOptions::limit(52 * MIB) }).map_err(text)?;
    let (mut runtime, mut sender, mut receiver) = relay(device, &pool, Tap::Block).map_err(text)?;
    let sink = Slow::default();
    let seen = sink.seen.clone();
    runtime.journal(sink).map_err(text)?;
    runtime.start().map_err(text)?;
    for n in 0..TENSORS {
        pass(&pool, &mut sender, &mut receiver, n)?;
    }
    runtime.stop(BOUND).map_err(text)?;
    let seen = seen.lock().map_err(|e| e.to_string())?;
    expect(seen.len() as u64 == TENSORS, || format!("{} tensors seen", seen.len()))?;
    for (n, tensor) in (0..).zip(seen.iter()) {
        expect(*tensor == bytes_of(n, elements(n) * 4), || format!("tensor {n} is not what it was"))?;
    }
    Ok(())
}

/// A tensor with gaps is taken with them; one without a lease is not, and is counted; taps without a pool are refused.
pub(crate) fn tensors_that_are_unusual(device: &Device) -> Outcome {
    let folder = Folder::new("unusual");
    let pool = Pool::new(device, PoolOptions::limit(MIB)).map_err(text)?;
    let (mut runtime, mut sender, mut receiver) = relay(device, &pool, Tap::Block).map_err(text)?;
    runtime.journal(folder.log().map_err(text)?).map_err(text)?;
    runtime.start().map_err(text)?;
    let memory = device.alloc(1024).map_err(text)?;
    let whole = bytes_of(5, 1024);
    memory.upload(0, &whole).map_err(text)?;
    let gaps = TensorSpec { byte_offset: 8, ..TensorSpec::new(DType::F32, &[3, 2]).with_strides(&[1, 100]) };
    // SAFETY: the buffer outlives the runtime and has more than the 420 bytes that the spec reaches.
    let tensor = unsafe { pool.adopt("gaps", memory.address(), &gaps, || ()) }.map_err(text)?;
    sender.post(tensor.lease(2).map_err(text)?, b"gaps", BOUND).map_err(|e| e.to_string())?;
    drop(receiver.take(BOUND).map_err(text)?);
    // What the module graph itself owns has no lease, and nobody could say how long it stays as it is.
    let mut raw = tensor.descriptor().raw();
    raw.lease = 0;
    sender.post(pool.claim(raw).map_err(text)?, b"", BOUND).map_err(|e| e.to_string())?;
    drop(receiver.take(BOUND).map_err(text)?);
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.journal_stats().ok_or("no journal")?;
    expect((stats.tensors, stats.tensors_missed, stats.durable) == (1, 1, 2), || format!("{stats:?}"))?;
    let records: Result<Vec<_>, Error> = Reader::open(&folder.0, 1).map_err(text)?.collect();
    let records = records.map_err(text)?;
    let descriptor = records[0].descriptor().map_err(text)?.ok_or("no tensor")?;
    let kept = descriptor.strides() == [1, 100] && records[0].tensor == whole[8..8 + 4 * 103];
    expect(kept, || format!("{descriptor:?}, {} bytes", records[0].tensor.len()))?;
    let only_descriptor = records[1].descriptor().map_err(text)?.is_none()
        && u32::from(records[1].msg_type) == abi::WM_TYPE_TENSOR
        && records[1].tensor.is_empty();
    expect(only_descriptor, || format!("{:?}", records[1]))?;

    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let sink = graph.resident("sink", builtin::DISCARD).map_err(text)?;
    let mailbox = graph.mailbox(host, sink, MailboxOptions::slots(4)).map_err(text)?;
    let refused = graph.tap_tensors(mailbox).err().map(text).unwrap_or_default();
    expect(refused.contains("not tapped"), || refused.clone())?;
    graph.tap(mailbox, Tap::Drop).and_then(|g| g.tap_tensors(mailbox)).map_err(text)?;
    let refused = graph.build(HandlerImage::builtin()).err().map(text).unwrap_or_default();
    expect(refused.contains("no pool"), || refused.clone())
}
