//! Tensors by pointer: leased, followed, handed on, released; on the twin and on a GPU.

use std::time::{Duration, Instant};

use warpmail::{
    Builder, DType, Device, Error, Lease, MailboxOptions, ModuleId, ModuleOptions, Pool, PoolOptions, Receiver,
    Runtime, Sender, TensorSpec,
};
use warpmail_testkit::{self as kit, word_of};

use crate::{BOUND, Outcome, expect, text, words};

const WORDS: i64 = 64;
const RELEASE: u64 = 0;
const HAND_ON: u64 = 1;
const TWICE: u64 = 2;
const KEEP: u64 = 3;

fn spec() -> TensorSpec {
    TensorSpec::new(DType::U64, &[WORDS])
}

fn content(n: u64) -> Vec<u8> {
    (0..WORDS as u64).flat_map(|i| word_of(n, i).to_le_bytes()).collect()
}

fn reader(mode: u64) -> ModuleOptions {
    let mut state = vec![0; 8 * 8 + 4 * 192];
    state[16..24].copy_from_slice(&mode.to_le_bytes());
    ModuleOptions { state, out_records: 1, ..ModuleOptions::handler(kit::LEASE_READER) }
}

/// host -> reader -> host.
struct Pair {
    runtime: Runtime,
    reader: ModuleId,
    sender: Sender,
    receiver: Receiver,
    pool: Pool,
}

fn pair(device: &Device, mode: u64, options: PoolOptions) -> Result<Pair, Error> {
    let pool = Pool::new(device, options)?;
    let mut graph = Builder::new(device.clone());
    graph.pool(&pool)?;
    let host = graph.host("host")?;
    let reader = graph.resident("reader", reader(mode))?;
    let there = graph.mailbox(host, reader, MailboxOptions::default())?;
    let back = graph.mailbox(reader, host, MailboxOptions::default())?;
    let mut runtime = graph.build(kit::image())?;
    let (sender, receiver) = (runtime.sender(there)?, runtime.receiver(back)?);
    runtime.start()?;
    Ok(Pair { runtime, reader, sender, receiver, pool })
}

impl Pair {
    /// A tensor of number `n`, leased to one reader.
    fn lease(&self, n: u64) -> Result<Lease, String> {
        let tensor = self.pool.alloc_within("test", &spec(), BOUND).map_err(text)?;
        tensor.upload(&content(n)).map_err(text)?;
        tensor.lease(1).map_err(text)
    }

    fn post(&mut self, lease: Lease, n: u64) -> Outcome {
        self.sender.post(lease, &n.to_le_bytes(), BOUND).map_err(|e| e.to_string())
    }

    /// Stops, and the reader's words.
    fn end(mut self) -> Result<([u64; 8], Self), String> {
        self.runtime.drain(BOUND).map_err(text)?;
        self.runtime.stop(BOUND).map_err(text)?;
        Ok((words(&self.runtime, self.reader)?, self))
    }
}

/// Nothing is held and nothing was released twice.
fn nothing_is_left(pool: &Pool) -> Outcome {
    pool.collect();
    let stats = pool.stats();
    expect(stats.open == 0 && stats.used == 0 && stats.opened == stats.closed && stats.released_twice == 0, || {
        format!("{stats:?} {:?}", pool.holders())
    })
}

pub(crate) fn travel_and_come_back(device: &Device) -> Outcome {
    const TENSORS: u64 = 2000;
    let mut p = pair(device, HAND_ON, PoolOptions::limit(16 << 10)).map_err(text)?;
    let (mut sent, mut bytes) = (0, vec![0; content(0).len()]);
    for n in 0..TENSORS {
        while sent < TENSORS && sent < n + 8 {
            let lease = p.lease(sent)?;
            p.post(lease, sent)?;
            sent += 1;
        }
        let (lease, note) = p.receiver.take(BOUND).map_err(text)?;
        lease.download(&mut bytes).map_err(text)?;
        expect(note == n.to_le_bytes() && bytes == content(n), || format!("tensor {n} came back changed"))?;
        let expected = (&[WORDS][..], DType::U64, device.info().ordinal.map_or((1, 0), |d| (2, d)));
        let d = *lease.descriptor();
        expect((d.shape(), d.dtype(), d.device()) == expected, || format!("{d:?}"))?;
        // By a drop, at once, or when a stream has got so far.
        match n % 3 {
            0 => drop(lease),
            1 => lease.release().map_err(text)?,
            // SAFETY: 0 is the legacy stream, and on the twin none.
            _ => unsafe { lease.release_on(0) },
        }
    }
    let (s, p) = p.end()?;
    expect(s[0] == TENSORS && s[1] == 0 && s[3] == 0, || format!("{s:?}"))?;
    let until = Instant::now() + BOUND;
    while p.pool.stats().open > 0 && Instant::now() < until {
        p.pool.collect();
    }
    nothing_is_left(&p.pool)
}

pub(crate) fn stale_ones_are_refused(device: &Device) -> Outcome {
    let mut p = pair(device, TWICE, PoolOptions::limit(1 << 20)).map_err(text)?;
    let lease = p.lease(5)?;
    let (live, n) = (lease.descriptor().raw(), 5u64);
    // The same record again by hand: released by the reader, ended, and another lease in its row.
    let record = |raw: warpmail::abi::wm_tensor| [kit::bytes_of(&raw), &n.to_le_bytes()].concat();
    let kind = warpmail::abi::WM_TYPE_TENSOR as u16;
    p.post(lease, 5)?;
    p.sender.push(kind, &record(live), BOUND).map_err(text)?;
    p.runtime.drain(BOUND).map_err(text)?;
    p.pool.collect();
    expect(p.pool.stats().open == 0, || format!("{:?}", p.pool.holders()))?;
    p.sender.push(kind, &record(live), BOUND).map_err(text)?;
    let next = p.lease(6)?;
    expect(next.descriptor().raw().lease == live.lease, || "the row is used again".into())?;
    p.sender.push(kind, &record(live), BOUND).map_err(text)?;
    // And some that no pool gave out.
    let wild = |change: &dyn Fn(&mut warpmail::abi::wm_tensor)| {
        let mut raw = next.descriptor().raw();
        change(&mut raw);
        raw
    };
    let wilds = [wild(&|t| t.lease = 77_777), wild(&|t| t.data = 64), wild(&|t| t.shares = 9), wild(&|t| t.epoch += 2)];
    for raw in wilds {
        p.sender.push(kind, &record(raw), BOUND).map_err(text)?;
    }
    p.runtime.drain(BOUND).map_err(text)?;
    expect(next.release().is_ok(), || "the other lease was not touched".into())?;
    let (s, p) = p.end()?;
    // Followed once, released once, refused a second time; the other seven were not followed.
    expect(s[0] == 1 && s[1] == 0 && s[3] == 7 && s[4] == 1 && s[7] == 1, || format!("{s:?}"))?;
    let rejects = &p.runtime.stats().modules[1].rejects;
    expect(rejects.lease == 8, || format!("{rejects:?}"))?;
    nothing_is_left(&p.pool)
}

pub(crate) fn poison_is_not_followed(device: &Device) -> Outcome {
    let options = PoolOptions { poison: true, ..PoolOptions::limit(64 << 10) };
    let mut p = pair(device, RELEASE, options).map_err(text)?;
    for n in 0..200 {
        let lease = p.lease(n)?;
        p.post(lease, n)?;
    }
    // One whose producer never wrote it.
    let empty = p.pool.alloc_within("never written", &spec(), BOUND).map_err(text)?;
    let lease = empty.lease(1).map_err(text)?;
    let mut bytes = vec![0; content(0).len()];
    let read = lease.download(&mut bytes);
    expect(matches!(read, Err(Error::PoisonRead { .. })), || format!("{read:?}"))?;
    let raw = lease.descriptor().raw();
    p.post(lease, 0)?;
    p.runtime.drain(BOUND).map_err(text)?;
    let held = p.pool.claim(raw).map_err(text)?; // the handler has not released it: it takes it back
    drop((held, empty));
    let (s, p) = p.end()?;
    expect(s[0] == 200 && s[1] == 0 && s[3] == 1 && s[6] == 0 && s[7] == 200, || format!("{s:?}"))?;
    nothing_is_left(&p.pool)
}

pub(crate) fn a_full_pool_refuses(device: &Device) -> Outcome {
    let mut p = pair(device, HAND_ON, PoolOptions::limit(4 * 512)).map_err(text)?;
    for n in 0..4 {
        let lease = p.lease(n)?;
        p.post(lease, n)?;
    }
    let full = p.pool.alloc("one more", &spec());
    let told = matches!(&full, Err(Error::PoolFull { wanted: 512, used: 2048, holders, .. })
        if holders.contains("test (2048 bytes, 0 tensors, 4 leases"));
    expect(told, || format!("{full:?}"))?;
    let holders = p.pool.holders();
    expect(holders.len() == 4 && holders.iter().all(|h| h.shares == 1 && h.leases == 1), || format!("{holders:?}"))?;
    let wait = p.pool.alloc_within("one more", &spec(), Duration::from_millis(20));
    expect(matches!(wait, Err(Error::PoolFull { .. })), || format!("{wait:?}"))?;
    // The arbiter runs all the time: taking and giving back memory does not wait for it.
    drop(p.receiver.take(BOUND).map_err(text)?);
    for _ in 0..100 {
        drop(p.pool.alloc_within("one more", &spec(), BOUND).map_err(text)?);
        p.pool.trim();
    }
    for _ in 0..3 {
        drop(p.receiver.take(BOUND).map_err(text)?);
    }
    let (_, p) = p.end()?;
    nothing_is_left(&p.pool)
}

pub(crate) fn adopted_memory_is_lent(device: &Device) -> Outcome {
    let mut p = pair(device, RELEASE, PoolOptions::limit(4096)).map_err(text)?;
    let theirs = device.alloc(4096).map_err(text)?;
    theirs.upload(1024, &content(3)).map_err(text)?;
    let local = [0u64; 64];
    // SAFETY: refused on a GPU; on the twin it is memory that outlives the tensor.
    let wrong = unsafe { p.pool.adopt("host memory", local.as_ptr() as u64, &spec(), || ()) };
    expect(wrong.is_err() == device.info().ordinal.is_some(), || format!("{wrong:?}"))?;
    drop(wrong);
    let (told, said) = std::sync::mpsc::channel();
    let at = TensorSpec { byte_offset: 1024, ..spec() };
    // SAFETY: the buffer lives until the end of the scenario.
    let tensor =
        unsafe { p.pool.adopt("theirs", theirs.address(), &at, move || told.send(()).unwrap_or(())) }.map_err(text)?;
    let lease = tensor.lease(1).map_err(text)?;
    drop(tensor);
    p.post(lease, 3)?;
    p.runtime.drain(BOUND).map_err(text)?;
    expect(said.try_recv().is_err(), || "told before the pool was called".into())?;
    p.pool.collect();
    expect(said.try_recv().is_ok(), || format!("not told: {:?}", p.pool.holders()))?;
    let (s, p) = p.end()?;
    expect(s[0] == 1 && s[1] == 0 && s[7] == 1, || format!("{s:?}"))?;
    nothing_is_left(&p.pool)
}

pub(crate) fn a_stop_gives_back_what_is_on_its_way(device: &Device) -> Outcome {
    let mut p = pair(device, KEEP, PoolOptions::limit(1 << 20)).map_err(text)?;
    for n in 0..20 {
        let lease = p.lease(n)?;
        p.post(lease, n)?;
    }
    p.runtime.drain(BOUND).map_err(text)?;
    let early = p.runtime.recall_tensors();
    expect(matches!(early, Err(Error::State(_))), || format!("{early:?}"))?;
    let (s, mut p) = p.end()?;
    expect(s[5] == 4 && s[7] == 16, || format!("{s:?}"))?;
    // Some that nobody will take any more.
    for n in 0..3 {
        let lease = p.lease(n)?;
        p.post(lease, n)?;
    }
    let recalled = p.runtime.recall_tensors().map_err(text)?;
    expect(recalled == 7, || format!("{recalled} recalled: {:?}", p.pool.holders()))?;
    nothing_is_left(&p.pool)
}

/// Shares handed to readers: by the environment, or few enough for every day.
fn hand_offs() -> u64 {
    std::env::var("WARPMAIL_LEASE_HANDOFFS").ok().and_then(|v| v.parse().ok()).unwrap_or(500_000)
}

/// host -> writer -> three resident readers and the host, with 1 to 8 readers a lease, who all keep some and release them in
/// any order, while the memory goes round.
pub(crate) fn hand_offs_in_any_order(device: &Device) -> Outcome {
    const READERS: usize = 3;
    let wanted = hand_offs();
    // With poison, every check looks whether what it reads is free memory.
    let poison = std::env::var_os("WARPMAIL_LEASE_POISON").is_some();
    let pool = Pool::new(device, PoolOptions { leases: 512, poison, ..PoolOptions::limit(256 * 512) }).map_err(text)?;
    let mut graph = Builder::new(device.clone());
    graph.pool(&pool).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    // 8 readers by turns to 4 outputs.
    let writer = ModuleOptions { out_records: 2, ..ModuleOptions::handler(kit::LEASE_WRITER) };
    let writer = graph.resident("writer", writer.with_state(&[0u64; 8])).map_err(text)?;
    let there = graph.mailbox(host, writer, MailboxOptions::slots(32)).map_err(text)?;
    let mut readers = Vec::new();
    for i in 0..READERS {
        let id = graph.resident(&format!("reader{i}"), reader(KEEP)).map_err(text)?;
        graph.mailbox(writer, id, MailboxOptions::slots(32)).map_err(text)?;
        readers.push(id);
    }
    let back = graph.mailbox(writer, host, MailboxOptions::slots(32)).map_err(text)?;
    let mut runtime = graph.build(kit::image()).map_err(text)?;
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    runtime.start().map_err(text)?;
    let (mut handed, mut leases, mut taken, mut kept) = (0, 0u64, 0u64, Vec::new());
    let mut bytes = vec![0; content(0).len()];
    let mut waiting: Option<Lease> = None;
    let mut last = Instant::now();
    let (mut asked, mut ended) = (false, false);
    while !ended {
        expect(last.elapsed() < BOUND, || format!("nothing moves: {:?} {:?}", pool.stats(), runtime.stats()))?;
        if handed < wanted && waiting.is_none() {
            match pool.alloc("hand-off", &spec()) {
                Ok(tensor) => {
                    if poison {
                        // The writer's check finds what was never written.
                        tensor.upload(&content(leases)).map_err(text)?;
                    }
                    waiting = Some(tensor.lease(1 + (word_of(leases, 1) % 8) as u8).map_err(text)?);
                }
                Err(Error::PoolFull { .. }) => {}
                Err(e) => return Err(text(e)),
            }
        }
        if let Some(lease) = waiting.take() {
            let readers = u64::from(lease.readers());
            match sender.try_post(lease, &leases.to_le_bytes()) {
                Ok(()) => (handed, leases, last) = (handed + readers, leases + 1, Instant::now()),
                Err(unposted) if matches!(unposted.error, Error::Full { .. }) => waiting = Some(unposted.lease),
                Err(e) => return Err(e.to_string()),
            }
        } else if handed >= wanted && waiting.is_none() && !asked {
            // Everything is posted: the readers give back what they keep, and the record comes here last.
            match sender.try_push(1, b"end") {
                Ok(()) => asked = true,
                Err(Error::Full { .. }) => {}
                Err(e) => return Err(text(e)),
            }
        }
        loop {
            let (lease, note) = match receiver.try_take() {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(Error::NotATensor { .. }) => {
                    ended = true;
                    break;
                }
                Err(e) => return Err(text(e)),
            };
            (taken, last) = (taken + 1, Instant::now());
            if taken % 64 == 0 {
                let n = u64::from_le_bytes(note[..8].try_into().map_err(|_| "a note of 8 bytes")?);
                lease.download(&mut bytes).map_err(text)?;
                expect(bytes == content(n), || format!("tensor {n} is another"))?;
            }
            kept.push(lease);
            if kept.len() > 16 {
                drop(kept.swap_remove(word_of(taken, 2) as usize % kept.len()));
            }
        }
    }
    drop(kept);
    runtime.drain(BOUND).map_err(text)?;
    runtime.stop(BOUND).map_err(text)?;
    let w = words(&runtime, writer)?;
    expect(w[0] == leases && w[1] == 0 && w[3] == 0, || format!("the writer: {w:?} of {leases}"))?;
    let mut released = taken;
    for (i, id) in readers.iter().enumerate() {
        let s = words(&runtime, *id)?;
        let faults = s[1] + s[3] + s[4] + s[5] + s[6];
        expect(faults == 0, || format!("reader {i}: {s:?}"))?;
        released += s[7];
    }
    expect(released == handed, || format!("{released} of {handed} released"))?;
    eprintln!("{handed} hand-offs, {leases} leases");
    nothing_is_left(&pool)
}
