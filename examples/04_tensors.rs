//! Tensors by pointer: a record carries where the memory is, never the memory. So 64 MiB take as long as 1 KiB.
//!
//! `cargo run --release --example 04_tensors [-- twin]`

use std::time::{Duration, Instant};

use warpmail::{Builder, DType, Device, Error, HandlerImage, MailboxOptions, Pool, PoolOptions, TensorSpec, builtin};

fn main() -> Result<(), Error> {
    let twin = std::env::args().nth(1).is_some_and(|a| a == "twin");
    let device = if twin { Device::twin() } else { Device::best() };
    println!("running on {} ({})", device.info().name, device.info().backend);
    let bound = Duration::from_secs(5);

    // 1. A pool: device memory with a limit, and the leases on it. The graph's ends and handlers use it.
    let pool = Pool::new(&device, PoolOptions::limit(80 << 20))?;
    let mut graph = Builder::new(device);
    graph.pool(&pool)?;
    let host = graph.host("host")?;
    let relay = graph.resident("relay", builtin::RELAY)?;
    let there = graph.mailbox(host, relay, MailboxOptions::default())?;
    let back = graph.mailbox(relay, host, MailboxOptions::default())?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let (mut sender, mut receiver) = (runtime.sender(there)?, runtime.receiver(back)?);
    runtime.start()?;

    // 2. A small and a large tensor, there and back: the same record, the same time.
    for (label, bytes) in [("small", 1i64 << 10), ("large", 64 << 20)] {
        let tensor = pool.alloc(label, &TensorSpec::new(DType::U8, &[bytes]))?;
        let mut times = Vec::new();
        for step in 0..2000u32 {
            let begin = Instant::now();
            let lease = tensor.lease(1)?; // one reader, who must release once
            sender.post(lease, &step.to_le_bytes(), bound)?; // the lease is the reader's now; a few bytes go along
            let (lease, note) = receiver.take(bound)?; // and is ours again
            times.push(begin.elapsed());
            assert_eq!((lease.address(), &note[..]), (tensor.address(), &step.to_le_bytes()[..]));
        } // a lease that is dropped is given back
        times.sort();
        println!("{label:>6}: {bytes:>9} bytes there and back, median {:?}", times[times.len() / 2]);
    }

    // 3. A pool refuses before it takes more than it may, and says who holds what.
    let held = pool.alloc("kv cache", &TensorSpec::new(DType::F16, &[32, 1 << 20]))?;
    let refused = pool.alloc("one more", &TensorSpec::new(DType::F16, &[32, 1 << 20]));
    println!("{}", refused.err().map_or("there was room".into(), |e| e.to_string()));
    drop(held);

    runtime.stop(bound)?;
    pool.collect();
    println!("{:?}", pool.stats());
    Ok(())
}
