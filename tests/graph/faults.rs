//! Bad input and bad handlers: named, counted, and nobody else affected.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use warpmail::{
    Builder, Device, Error, HandlerImage, MailboxOptions, Mode, ModuleOptions, Refusals, Runtime, Sender, State,
    builtin,
};
use warpmail_testkit as kit;
use warpmail_testkit::forms::{Forms, LANES_ONE, LANES_WARP, Trial};

use crate::flow::echo;
use crate::{BOUND, Outcome, expect, text};

/// One handler of the kit with an input from the host, and a relay beside it that must not be affected.
struct Pair {
    runtime: Runtime,
    sender: Sender,
    strict: (Sender, warpmail::Receiver),
}

fn beside(device: &Device, options: ModuleOptions) -> Result<Pair, Error> {
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host")?;
    let suspect = graph.resident("suspect", options)?;
    let input = graph.mailbox(host, suspect, MailboxOptions::slots(64))?;
    let strict = graph.resident("strict", ModuleOptions::handler(kit::STRICT))?;
    let there = graph.mailbox(host, strict, MailboxOptions::slots(64))?;
    let back = graph.mailbox(strict, host, MailboxOptions::slots(64))?;
    let mut runtime = graph.build(kit::image())?;
    let sender = runtime.sender(input)?;
    let strict = (runtime.sender(there)?, runtime.receiver(back)?);
    Ok(Pair { runtime, sender, strict })
}

/// A few records through the module beside.
fn still_serves(pair: &mut Pair) -> Outcome {
    let mut buffer = [0; 248];
    for n in 0..200u64 {
        pair.strict.0.push(1, &n.to_le_bytes(), BOUND).map_err(text)?;
        let r = pair.strict.1.pop(&mut buffer, BOUND).map_err(text)?;
        expect(buffer[..r.len] == n.to_le_bytes(), || format!("record {n}"))?;
    }
    Ok(())
}

pub(crate) fn stuck_handler_is_named(device: &Device) -> Outcome {
    // It returns in the end, so that the device is free for the next test.
    let stays = Duration::from_secs(if device.info().ordinal.is_some() { 3 } else { 30 });
    let state: [u64; 8] = [stays.as_nanos() as u64, 0, 0, 0, 0, 0, 0, 0];
    let mut pair = beside(device, ModuleOptions::handler(kit::STUCK).with_state(&state)).map_err(text)?;
    pair.runtime.start().map_err(text)?;
    pair.sender.push(1, b"go", BOUND).map_err(text)?;
    let begin = Instant::now();
    while !pair.runtime.stats().serving.iter().any(|s| s.module == "suspect") {
        expect(begin.elapsed() < BOUND, || format!("{:?}", pair.runtime.stats()))?;
        std::thread::sleep(Duration::from_millis(1));
    }
    let begin = Instant::now();
    let stopped = pair.runtime.stop(Duration::from_millis(300));
    let took = begin.elapsed();
    let named = matches!(&stopped, Err(Error::Stuck { stuck, .. }) if stuck.contains("suspect"));
    expect(named, || format!("{stopped:?}"))?;
    expect(took < stays * 9 / 10, || format!("stop took {took:?}"))
}

/// No launch begins: that is a state with a name, which ends when there is room; and a stop meanwhile is bounded and says why.
pub(crate) fn no_room_is_a_state(device: &Device) -> Outcome {
    for stop in [false, true] {
        let mut graph = Builder::new(device.clone());
        let held = graph.mode(Mode::Device).with_no_room();
        let host = graph.host("host").map_err(text)?;
        let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
        let there = graph.mailbox(host, relay, MailboxOptions::slots(8)).map_err(text)?;
        let back = graph.mailbox(relay, host, MailboxOptions::slots(8)).map_err(text)?;
        let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
        let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
        runtime.start().map_err(text)?;
        let begin = Instant::now();
        while runtime.state() != State::Waiting {
            expect(begin.elapsed() < BOUND, || format!("{:?}", runtime.state()))?;
            std::thread::sleep(Duration::from_millis(10));
        }
        if stop {
            let error = runtime.stop(Duration::from_millis(100)).expect_err("nothing can end that has not begun");
            held.store(false, Ordering::Release); // its thread ends with the process
            return expect(error.to_string().contains("no SM has room"), || error.to_string());
        }
        held.store(false, Ordering::Release);
        echo(&mut sender, &mut receiver, 0, 100)?;
        while runtime.state() != State::Running {
            expect(begin.elapsed() < BOUND, || format!("{:?}", runtime.state()))?;
            std::thread::sleep(Duration::from_millis(10));
        }
        runtime.stop(BOUND).map_err(text)?;
    }
    Ok(())
}

pub(crate) fn wrong_types_and_lengths_are_counted(device: &Device) -> Outcome {
    let mut pair = beside(device, ModuleOptions::handler(kit::STRICT)).map_err(text)?;
    // "suspect" has no output: what it takes it drops; its rejects are what counts.
    pair.runtime.start().map_err(text)?;
    for n in 0..300u64 {
        let (kind, len) = [(1, 8), (2, 8), (1, 9)][n as usize % 3];
        pair.sender.push(kind, &[0; 16][..len], BOUND).map_err(text)?;
    }
    still_serves(&mut pair)?;
    pair.runtime.drain(BOUND).map_err(text)?;
    pair.runtime.stop(BOUND).map_err(text)?;
    let stats = pair.runtime.stats();
    let rejects = &stats.modules[1].rejects;
    expect(rejects.msg_type == 100 && rejects.length == 100, || format!("{rejects:?}"))?;
    expect(stats.modules[2].rejects.dropped() == 0, || format!("{:?}", stats.modules[2]))
}

pub(crate) fn no_progress_is_counted(device: &Device) -> Outcome {
    let mut pair = beside(device, ModuleOptions::handler(kit::IDLE)).map_err(text)?;
    pair.runtime.start().map_err(text)?;
    pair.sender.push(1, b"never taken", BOUND).map_err(text)?;
    still_serves(&mut pair)?;
    pair.runtime.stop(BOUND).map_err(text)?;
    let stats = pair.runtime.stats();
    expect(stats.modules[1].rejects.no_progress > 0, || format!("{:?}", stats.modules[1]))?;
    expect(stats.modules[1].records_in == 0, || format!("{:?}", stats.modules[1]))
}

/// What ends are given that cannot be is counted in their mailbox, wherever they are: a kernel's ends, on the twin a thread's
/// or lanes', and the host's.
pub(crate) fn refused_calls_are_counted(device: &Device) -> Outcome {
    let mut graph = Builder::new(device.clone());
    let (host, relay) = (graph.host("host").map_err(text)?, graph.resident("relay", builtin::RELAY).map_err(text)?);
    let [from, to] = ["from", "to"].map(|name| graph.stream(name).map_err(text));
    let between = graph.mailbox(from?, to?, MailboxOptions::slots(1)).map_err(text)?;
    let there = graph.mailbox(host, relay, MailboxOptions::slots(8)).map_err(text)?;
    let back = graph.mailbox(relay, host, MailboxOptions::slots(8)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    let handle = runtime.handle(between).map_err(text)?;
    let forms = Forms::new(device, 4096)?;
    forms.prepare_misuse()?;
    runtime.start().map_err(text)?;
    for lanes in [LANES_ONE, LANES_WARP] {
        // SAFETY: the runtime lives, and both ends of this mailbox are used here alone.
        let found = unsafe { forms.misuse_of(handle, &Trial::plain(lanes, 1)) }?;
        expect(found.iter().all(|[found, expected]| found == expected), || format!("lanes {lanes}: {found:?}"))?;
    }
    let too_long = sender.try_push(1, &[0; 249]);
    expect(matches!(too_long, Err(Error::PayloadTooLong { len: 249, max: 248, .. })), || format!("{too_long:?}"))?;
    let too_long = sender.try_push_batch(1, &[0; 600], 300);
    expect(matches!(too_long, Err(Error::PayloadTooLong { len: 300, .. })), || format!("{too_long:?}"))?;
    echo(&mut sender, &mut receiver, 0, 100)?;
    // The host's at once; a kernel's when the arbiter, if it can see them, has told.
    let at = |runtime: &Runtime, mailbox: warpmail::MailboxId| runtime.stats().mailboxes[mailbox.index()].refused;
    expect(at(&runtime, there).length == 2 && at(&runtime, there).total() == 2, || format!("{:?}", runtime.stats()))?;
    let wanted = Refusals { length: 2, argument: 4, ..Refusals::default() };
    let begin = Instant::now();
    while runtime.mode() == Mode::Device && at(&runtime, between) != wanted {
        expect(begin.elapsed() < BOUND, || format!("{:?}", runtime.stats()))?;
        std::thread::sleep(Duration::from_millis(1));
    }
    runtime.stop(BOUND).map_err(text)?;
    let told = at(&runtime, between) == wanted && at(&runtime, back).total() == 0;
    expect(told, || format!("{:?}", runtime.stats().mailboxes))
}

/// The host's view of a mailbox header in pinned memory: the addresses of the handle are the host's on the twin and, with
/// unified addressing, on CUDA too.
fn header_word(runtime: &Runtime, mailbox: warpmail::MailboxId, offset: u64) -> Result<*mut u64, String> {
    Ok((runtime.handle(mailbox).map_err(text)?.header + offset) as *mut u64)
}

fn quarantine(device: &Device, offset: u64, value: u64, before_start: bool) -> Outcome {
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let bad = graph.resident("bad", ModuleOptions::handler(kit::STRICT)).map_err(text)?;
    let good = graph.resident("good", warpmail::builtin::RELAY).map_err(text)?;
    let input = graph.mailbox(host, bad, MailboxOptions::slots(8)).map_err(text)?;
    let there = graph.mailbox(host, good, MailboxOptions::slots(8)).map_err(text)?;
    let back = graph.mailbox(good, host, MailboxOptions::slots(8)).map_err(text)?;
    let mut runtime = graph.build(warpmail::HandlerImage::builtin()).map_err(text)?;
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    let word = if before_start {
        header_word(&runtime, input, offset)?
    } else {
        runtime.handle(input).map_err(text)?.written as *mut u64
    };
    let spoil = || {
        // SAFETY: an aligned word of the runtime's pinned memory, which lives; nobody else writes this one.
        unsafe { word.write_volatile(value) };
    };
    if before_start {
        spoil();
    }
    runtime.start().map_err(text)?;
    echo(&mut sender, &mut receiver, 0, 500)?;
    if !before_start {
        spoil();
        std::thread::sleep(Duration::from_millis(50));
    }
    echo(&mut sender, &mut receiver, 500, 500)?;
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    expect(stats.mailboxes[0].quarantined.is_some(), || format!("{:?}", stats.mailboxes))?;
    expect(stats.mailboxes[1].quarantined.is_none(), || format!("{:?}", stats.mailboxes))?;
    expect(stats.modules[1].steps == 0, || format!("{:?}", stats.modules))
}

pub(crate) fn broken_header_is_quarantined(device: &Device) -> Outcome {
    quarantine(device, 0, 0x1234_5678, true)
}

pub(crate) fn wild_index_is_quarantined(device: &Device) -> Outcome {
    quarantine(device, 128, 1 << 40, true)?;
    quarantine(device, 0, 1 << 40, false)
}
