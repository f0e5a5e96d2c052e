//! A host thread sends records to a resident handler and gets them back.
//!
//! `cargo run --release --example 01_relay [-- twin]`

use std::time::{Duration, Instant};

use warpmail::{Builder, Device, HandlerImage, MailboxOptions, builtin};

fn main() -> Result<(), warpmail::Error> {
    // 1. A device: the first GPU if it can be used, else CPU threads running the same protocol.
    let twin = std::env::args().nth(1).is_some_and(|a| a == "twin");
    let device = if twin { Device::twin() } else { Device::best() };
    println!("running on {} ({})", device.info().name, device.info().backend);

    // 2. A graph: two modules, a mailbox each way.
    let mut graph = Builder::new(device);
    let host = graph.host("host")?;
    let relay = graph.resident("relay", builtin::RELAY)?;
    let there = graph.mailbox(host, relay, MailboxOptions::default())?;
    let back = graph.mailbox(relay, host, MailboxOptions::default())?;

    // 3. A runtime with the library's own handlers; the host's ends; go.
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let mut sender = runtime.sender(there)?;
    let mut receiver = runtime.receiver(back)?;
    runtime.start()?;

    // 4. Records there and back. Every wait has a bound.
    let bound = Duration::from_secs(5);
    let mut payload = [0; 248];
    let mut times = Vec::new();
    for i in 0..10_000u32 {
        let begin = Instant::now();
        sender.push(1, &i.to_le_bytes(), bound)?;
        let record = receiver.pop(&mut payload, bound)?;
        times.push(begin.elapsed());
        assert_eq!((record.len, &payload[..4]), (4, &i.to_le_bytes()[..]));
    }
    times.sort();
    println!(
        "round trip host -> device -> host: p50 {:?}, p99 {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );

    // 5. The arbiter's own account of it.
    let stats = runtime.stats();
    println!("{} launches, {} grants, {} rounds", stats.launches, stats.grants, stats.rounds);
    runtime.stop(bound)
}
