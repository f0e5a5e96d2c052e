//! A device that has no room for the arbiter: a state with a name, a host that does not spin, and all goes on afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use warpmail::{Builder, Device, HandlerImage, MailboxOptions, Mode, Runtime, SpinBudget, State, builtin};
use warpmail_testkit::filler::{self, Filler};

use crate::flow::echo;
use crate::{BOUND, Outcome, expect, text};

/// What keeps launches from beginning: a kernel on every SM of a GPU, for at most two seconds; on the twin, where there is no
/// SM to take, a word that they wait for, until a second after it has been noticed.
enum Full {
    Gpu(Filler),
    Twin(Arc<AtomicBool>),
}

impl Full {
    fn begin(&self) -> Outcome {
        match self {
            Full::Gpu(filler) => filler.fill(filler::LONGEST),
            Full::Twin(held) => {
                held.store(true, Ordering::Release);
                Ok(())
            }
        }
    }

    /// It has been noticed: a GPU's kernels end by themselves.
    fn is_noticed(&self) {
        if let Full::Twin(held) = self {
            let held = held.clone();
            std::thread::spawn(move || {
                std::thread::sleep(filler::LONGEST / 2);
                held.store(false, Ordering::Release);
            });
        }
    }

    fn is_over(&self) -> Result<bool, String> {
        match self {
            Full::Gpu(filler) => filler.is_over(),
            Full::Twin(held) => Ok(!held.load(Ordering::Acquire)),
        }
    }
}

/// Processor time of this process, all threads, from /proc: clock ticks of a hundredth of a second.
fn processor_time() -> Result<Duration, String> {
    let stat = std::fs::read_to_string("/proc/self/stat").map_err(|e| e.to_string())?;
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = behind_name.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok());
    Ok(Duration::from_millis(10 * ticks.sum::<u64>()))
}

fn until(runtime: &Runtime, state: State) -> Outcome {
    let begin = Instant::now();
    while runtime.state() != state {
        expect(begin.elapsed() < BOUND, || format!("{:?}, not {state:?}: {:?}", runtime.state(), runtime.stats()))?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The device is full before the first launch, and again while the arbiter is parked and has news.
pub(crate) fn a_full_device_is_waited_for(device: &Device) -> Outcome {
    let mut graph = Builder::new(device.clone());
    graph.mode(Mode::Device);
    let servers = if device.info().ordinal.is_some() { 6 } else { 1 };
    let budget = SpinBudget { idle_spin: Some(Duration::from_micros(50)), servers, ..SpinBudget::default() };
    graph.budget(budget).map_err(text)?;
    // Built before anything runs: loading code would wait.
    let full = match device.info().ordinal {
        Some(_) => Full::Gpu(Filler::new(device)?),
        None => Full::Twin(graph.with_no_room()),
    };
    let host = graph.host("host").map_err(text)?;
    let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
    let there = graph.mailbox(host, relay, MailboxOptions::slots(8)).map_err(text)?;
    let back = graph.mailbox(relay, host, MailboxOptions::slots(8)).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
    for first in [0, 100] {
        full.begin()?;
        if first == 0 {
            runtime.start().map_err(text)?;
        }
        sender.push(1, &u64::to_le_bytes(first), BOUND).map_err(text)?; // waits with the rest
        until(&runtime, State::Waiting)?;
        full.is_noticed();
        let (begin, used) = (Instant::now(), processor_time()?);
        while !full.is_over()? && runtime.state() == State::Waiting {
            std::thread::sleep(Duration::from_millis(20));
        }
        let (waited, used) = (begin.elapsed(), processor_time()?.saturating_sub(used));
        eprintln!("waited {waited:?} in that state, {used:?} of processor time in all threads");
        // A thread that spins would take all of it; this much leaves room for a slow clock of the system's.
        expect(used < waited / 4 + Duration::from_millis(50), || format!("{used:?} of {waited:?}: something spins"))?;
        let mut buffer = [0; 248];
        let record = receiver.pop(&mut buffer, BOUND).map_err(|e| format!("{e}: {:?}", runtime.stats()))?;
        expect(buffer[..record.len] == u64::to_le_bytes(first), || "the record came back changed".into())?;
        echo(&mut sender, &mut receiver, first + 1, 99)?;
        until(&runtime, State::Running)?;
        expect(full.is_over()?, || "the arbiter ran although the device was full".into())?;
    }
    runtime.stop(BOUND).map_err(text)
}

/// An arbiter is built and runs beside a stream that is idle, busy, or being captured: the capture gets nothing of it, and the build
/// does not wait for what the stream does.
pub(crate) fn a_neighbour_is_left_alone(device: &Device) -> Outcome {
    let filler = device.info().ordinal.map(|_| Filler::new(device)).transpose()?;
    let pass = |is_busy: bool| {
        let mut graph = Builder::new(device.clone());
        // SAFETY: the filler's own stream in the primary context, which is never destroyed; the twin looks at no stream.
        unsafe { graph.mode(Mode::Device).beside(filler.as_ref().map_or(7, Filler::raw_stream)) };
        let servers = if filler.is_some() { 6 } else { 1 };
        let budget = SpinBudget { idle_spin: Some(Duration::from_micros(50)), servers, ..SpinBudget::default() };
        graph.budget(budget).map_err(text)?;
        let host = graph.host("host").map_err(text)?;
        let relay = graph.resident("relay", builtin::RELAY).map_err(text)?;
        let there = graph.mailbox(host, relay, MailboxOptions::slots(8)).map_err(text)?;
        let back = graph.mailbox(relay, host, MailboxOptions::slots(8)).map_err(text)?;
        let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
        if let Some(filler) = filler.as_ref().filter(|_| is_busy) {
            expect(!filler.is_over()?, || "the build has waited for what was on the stream".into())?;
        }
        let (mut sender, mut receiver) = (runtime.sender(there).map_err(text)?, runtime.receiver(back).map_err(text)?);
        runtime.start().map_err(text)?;
        echo(&mut sender, &mut receiver, 0, 99)?;
        runtime.stop(BOUND).map_err(text)
    };
    pass(false)?;
    let Some(filler) = &filler else { return pass(false) };
    let nodes = filler.capture(|| pass(false))?;
    expect(nodes == 0, || format!("{nodes} nodes of somebody else's in a captured graph"))?;
    // All is loaded by now. The stream is busy, and no SM has room for an arbiter until its kernel has ended by itself.
    filler.fill(filler::LONGEST)?;
    let begin = Instant::now();
    pass(true)?;
    expect(filler.is_over()?, || "the arbiter ran although the device was full".into())?;
    eprintln!("built beside a full device, and ran {:?} later", begin.elapsed());
    pass(false)
}
