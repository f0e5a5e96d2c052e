//! Deliveries: the tensors of a stream module's inputs, copied to a fixed address before the body runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use warpmail::abi::{WM_TYPE_TENSOR, wm_tensor};
use warpmail::{
    Body, Builder, DType, Delivery, Device, DeviceBuffer, Error, HandlerImage, MailboxOptions, Mode, ModuleId, Pool,
    PoolOptions, Receiver, Rejects, Rule, Runtime, Sender, StreamOptions, TensorSpec,
};
use warpmail_testkit::{bytes_of, word_of};

use crate::{BOUND, Outcome, expect, text};

/// What a step pushes: the beginning of the memory that was delivered to.
const SHOWN: usize = 240;

/// A sequence of random numbers.
struct Random(u64, u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.1 += 1;
        (word_of(self.0, self.1) >> 16) % n
    }
}

/// What is sent: memory, how it is to be read, and what should arrive.
struct Sent {
    memory: Vec<u8>,
    spec: TensorSpec,
    dense: Vec<u8>,
}

impl Sent {
    fn new(spec: TensorSpec, random: &mut Random) -> Self {
        let (shape, element) = (spec.shape.clone(), spec.dtype.bytes() as usize);
        let mut dense_strides = vec![1i64; shape.len()];
        (1..shape.len()).rev().for_each(|i| dense_strides[i - 1] = dense_strides[i] * shape[i]);
        let strides = spec.strides.clone().unwrap_or(dense_strides);
        let reach: i64 = shape.iter().zip(&strides).map(|(d, s)| (d - 1) * s).sum();
        let seed = random.below(u64::MAX >> 16);
        let size = spec.byte_offset as usize + (reach as usize + 1) * element;
        let memory: Vec<u8> =
            (0..size.div_ceil(8) as u64).flat_map(|i| word_of(seed, i).to_le_bytes()).take(size).collect();
        let (elements, mut dense) = (shape.iter().product::<i64>(), Vec::new());
        for n in 0..elements {
            let (mut rest, mut at) = (n, 0);
            for (d, s) in shape.iter().zip(&strides).rev() {
                at += rest % d * s;
                rest /= d;
            }
            let begin = spec.byte_offset as usize + at as usize * element;
            dense.extend_from_slice(&memory[begin..begin + element]);
        }
        Sent { memory, spec, dense }
    }

    /// Any type, up to five dimensions in any order, with gaps, repeats and offsets.
    fn any(random: &mut Random) -> Self {
        let pairs = DType { lanes: 2, ..DType::F32 };
        let threes = DType { lanes: 3, ..DType::U8 };
        let types = [DType::U8, DType::BF16, DType::F32, DType::F64, DType::I64, pairs, threes];
        let dtype = types[random.below(7) as usize];
        let shape: Vec<i64> = (0..random.below(6)).map(|_| 1 + random.below(5) as i64).collect();
        let mut order: Vec<usize> = (0..shape.len()).collect();
        (1..order.len()).rev().for_each(|i| order.swap(i, random.below(i as u64 + 1) as usize));
        let mut strides = vec![0; shape.len()];
        let mut next = 1 + i64::from(random.below(4) == 0);
        for d in order {
            strides[d] = if random.below(12) == 0 { 0 } else { next };
            next = (next * shape[d]).max(1) + if random.below(3) == 0 { random.below(3) as i64 } else { 0 };
        }
        let plain = random.below(3) == 0;
        let byte_offset = u64::from(dtype.bits) / 8 * random.below(9);
        // Nothing lies one further where there is one: any distance will do.
        for (stride, size) in strides.iter_mut().zip(&shape) {
            if *size == 1 && random.below(4) == 0 {
                *stride = i64::MAX >> random.below(8);
            }
        }
        Sent::new(
            TensorSpec { byte_offset, strides: (!plain).then_some(strides), ..TensorSpec::new(dtype, &shape) },
            random,
        )
    }
}

/// Memory that pools take in, and where it is counted how often they let go of it.
struct Lender {
    device: Device,
    pool: Pool,
    lent: u64,
    back: Arc<AtomicU64>,
    /// Memory that came back: to take some from a GPU waits for a moment in which no kernel runs.
    idle: Arc<Mutex<Vec<DeviceBuffer>>>,
}

impl Lender {
    fn new(device: &Device) -> Result<Self, Error> {
        let pool = Pool::new(device, PoolOptions::limit(1 << 20))?;
        Ok(Lender { device: device.clone(), pool, lent: 0, back: Arc::default(), idle: Arc::default() })
    }

    /// A lease on a copy of `sent.memory` for one reader.
    fn lease(&mut self, sent: &Sent) -> Result<warpmail::Lease, Error> {
        let kept = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = idle.iter().position(|b| b.len() >= sent.memory.len());
            fits.map(|i| idle.swap_remove(i))
        };
        let buffer = kept.map_or_else(|| self.device.alloc(sent.memory.len().next_power_of_two()), Ok)?;
        buffer.upload(0, &sent.memory)?;
        let (address, back, idle) = (buffer.address(), self.back.clone(), self.idle.clone());
        self.lent += 1;
        // SAFETY: the closure has the buffer, and is called when nobody uses it any more.
        let tensor = unsafe {
            self.pool.adopt("sent", address, &sent.spec, move || {
                idle.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
                back.fetch_add(1, Ordering::Relaxed);
            })
        }?;
        tensor.lease(1)
    }

    /// That all came back, without waiting: who has seen a step's record comes after its release.
    fn has_all(&self) -> Outcome {
        self.pool.collect();
        let (stats, back) = (self.pool.stats(), self.back.load(Ordering::Relaxed));
        expect(stats.open == 0 && stats.released_twice == 0 && back == self.lent, || {
            format!("{back} of {} came back: {stats:?}", self.lent)
        })
    }
}

/// host -> steps -> host, with a delivery for each input.
struct Delivering {
    lender: Lender,
    runtime: Runtime,
    module: ModuleId,
    senders: Vec<Sender>,
    receiver: Receiver,
    targets: Vec<DeviceBuffer>,
}

impl Delivering {
    fn new(
        device: &Device,
        options: StreamOptions,
        passes: bool,
        deliveries: &[(usize, &dyn Fn(u64) -> Delivery)],
        body: impl FnOnce(u64) -> Body,
    ) -> Result<Self, Error> {
        let lender = Lender::new(device)?;
        let mut graph = Builder::new(device.clone());
        graph.pool(&lender.pool)?;
        if passes {
            graph.static_order(true);
        }
        let host = graph.host("host")?;
        let module = graph.steps("model", options.pushes(SHOWN as u32, 9))?;
        let there: Result<Vec<_>, Error> =
            deliveries.iter().map(|_| graph.mailbox(host, module, MailboxOptions::slots(8))).collect();
        let there = there?;
        let back = graph.mailbox(module, host, MailboxOptions::slots(8))?;
        let mut runtime = graph.build(HandlerImage::builtin())?;
        let mut targets = Vec::new();
        for (input, (bytes, delivery)) in deliveries.iter().enumerate() {
            let target = device.alloc(*bytes)?;
            target.upload(0, &vec![0xEE; *bytes])?;
            // SAFETY: it is kept beside the runtime, and looked at when that has stopped.
            unsafe { runtime.deliver(module, input, &delivery(target.address())) }?;
            targets.push(target);
        }
        runtime.body(module, body(targets[0].address()))?;
        let senders = there.iter().map(|&m| runtime.sender(m)).collect::<Result<_, _>>()?;
        let receiver = runtime.receiver(back)?;
        runtime.start()?;
        Ok(Delivering { lender, runtime, module, senders, receiver, targets })
    }

    fn post(&mut self, input: usize, sent: &Sent) -> Outcome {
        let lease = self.lender.lease(sent).map_err(text)?;
        self.senders[input].post(lease, b"", BOUND).map_err(|e| e.to_string())
    }

    fn shown(&mut self) -> Result<[u8; SHOWN], String> {
        let mut buffer = [0; SHOWN];
        let record = self.receiver.pop(&mut buffer, BOUND).map_err(text)?;
        expect((record.len, record.msg_type) == (SHOWN, 9), || format!("{record:?}"))?;
        Ok(buffer)
    }

    /// Stops; what was refused, by reason, of `steps` steps.
    fn end(mut self, steps: u64, rejects: Rejects) -> Result<Vec<DeviceBuffer>, String> {
        self.runtime.drain(BOUND).map_err(text)?;
        self.runtime.stop(BOUND).map_err(text)?;
        let stats = self.runtime.stats();
        let m = &stats.modules[self.module.index()];
        let fine = m.steps == steps && m.rejects == rejects;
        expect(fine, || format!("{steps} steps and {rejects:?} were expected: {m:?}"))?;
        self.lender.has_all()?;
        Ok(self.targets)
    }
}

/// Copies the beginning of the target to the output.
fn show(captured: bool) -> impl Fn(u64) -> Body {
    move |target| {
        let copy = move |step: &mut warpmail::StepStream<'_>| {
            let to = step.output(0)?.payload();
            // SAFETY: both are as long, and live until the runtime has stopped.
            unsafe { step.copy(to, target, SHOWN) }
        };
        if captured { Body::captured(copy) } else { Body::each_step(copy) }
    }
}

/// Its name, how its steps run, whether in passes, and its body.
type Variant<'a> = (&'a str, &'a StreamOptions, bool, &'a dyn Fn(u64) -> Body);

pub(crate) fn arrive(device: &Device) -> Outcome {
    let cpu = matches!(Builder::new(device.clone()).current_mode(), Ok(Mode::Cpu));
    let patient = StreamOptions::default();
    let hasty = StreamOptions { spin: Some(Duration::from_micros(2)), ahead: 2, ..StreamOptions::default() };
    let always = |target| show(true)(target).always();
    let bodies: [Variant<'_>; 5] = [
        ("captured", &patient, false, &show(true)),
        ("always", &hasty, false, &always),
        ("each step", &hasty, false, &show(false)),
        ("passes", &patient, true, &show(true)),
        ("passes, always", &patient, true, &always),
    ];
    // Large enough for many blocks on a GPU; odd in every way that an address and a length can be.
    let (rows, columns) = if device.info().ordinal.is_some() { (1027, 1013) } else { (127, 113) };
    let room = rows * columns * 4 + 64;
    for (k, (what, options, passes, body)) in bodies.into_iter().enumerate().filter(|(_, b)| cpu || !b.2) {
        let mut random = Random(k as u64, 0);
        let shift = [0, 8, 4, 2, 1][k];
        let delivery = move |address| Delivery::up_to(address + shift, (room - 64) as u64);
        let shifted = move |address| body(address + shift);
        let mut graph = Delivering::new(device, options.clone(), passes, &[(room, &delivery)], shifted)
            .map_err(|e| format!("{what}: {e}"))?;
        let mut wanted = vec![0xEE; room];
        let mut n = 0;
        let mut pass = |graph: &mut Delivering, sent: Sent| -> Outcome {
            graph.post(0, &sent)?;
            let begin = shift as usize;
            wanted[begin..begin + sent.dense.len()].copy_from_slice(&sent.dense);
            let shown = graph.shown()?;
            expect(shown[..] == wanted[begin..begin + SHOWN], || format!("{what}, tensor {n}: {:?}", sent.spec))?;
            n += 1;
            graph.lender.has_all()
        };
        for _ in 0..150 {
            pass(&mut graph, Sent::any(&mut random)).map_err(|e| format!("{what}: {e}"))?;
        }
        let (r, c) = (rows as i64, columns as i64);
        let big = TensorSpec::new(DType::F32, &[r, c]);
        let turned = TensorSpec::new(DType::F32, &[c, r]).with_strides(&[1, c]);
        let odd = TensorSpec { byte_offset: 3, ..TensorSpec::new(DType::U8, &[r * c * 4 - 5]) };
        for spec in [big, turned, odd] {
            pass(&mut graph, Sent::new(spec, &mut random)).map_err(|e| format!("{what}: {e}"))?;
        }
        let targets = graph.end(n, Rejects::default()).map_err(|e| format!("{what}: {e}"))?;
        let mut whole = vec![0; room];
        targets[0].download(0, &mut whole).map_err(text)?;
        expect(whole == wanted, || format!("{what}: the memory behind what was shown"))?;
    }
    Ok(())
}

/// What cannot be delivered is counted and let go of, and the steps around it are as if it had not been there.
pub(crate) fn that_cannot_be(device: &Device) -> Outcome {
    let spec = TensorSpec::new(DType::F32, &[4, 16]);
    let calls = Arc::new(AtomicU64::new(0));
    for exactly in [true, false] {
        let (wanted, counted) = (spec.clone(), calls.clone());
        let delivery = move |address| match exactly {
            true => Delivery::exactly(address, &wanted),
            false => Delivery::up_to(address, 256),
        };
        let body = |target| {
            Body::each_step(move |step| {
                let to = step.output(0)?.payload();
                // SAFETY: as in `show`.
                unsafe { step.copy(to, target, SHOWN) }?;
                let counted = counted.clone();
                step.call(move || {
                    counted.fetch_add(1, Ordering::Relaxed);
                })
            })
        };
        calls.store(0, Ordering::Relaxed);
        let mut graph =
            Delivering::new(device, StreamOptions::default(), false, &[(256, &delivery)], body).map_err(text)?;
        let mut random = Random(99, u64::from(exactly));
        let (mut rejects, mut steps) = (Rejects::default(), 0);
        let good = Sent::new(spec.clone(), &mut random);
        let raw = |graph: &mut Delivering, len: usize, t: &wm_tensor| {
            graph.senders[0].push(WM_TYPE_TENSOR as u16, &bytes_of(t)[..len], BOUND).map_err(text)
        };
        for round in 0..20 {
            // Too large, and, where one type and shape are wanted, others that would fit.
            let other_type = TensorSpec::new(DType::I32, &[4, 16]);
            let other_shape = TensorSpec::new(DType::F32, &[16, 4]);
            let smaller = TensorSpec::new(DType::F32, &[4, 15]);
            let larger = TensorSpec::new(DType::U8, &[257]);
            let others = if exactly { vec![other_type, other_shape, smaller, larger] } else { vec![larger] };
            for other in others {
                graph.post(0, &Sent::new(other, &mut random))?;
                (rejects.content, steps) = (rejects.content + 1, steps + 1);
            }
            // No tensor; one cut short.
            graph.senders[0].push(7, &[1; 200], BOUND).map_err(text)?;
            let mut lease = graph.lender.lease(&good).map_err(text)?;
            raw(&mut graph, 100, &lease.descriptor().raw())?;
            (rejects.msg_type, rejects.content, steps) = (rejects.msg_type + 1, rejects.content + 1, steps + 2);
            // Its lease has ended.
            let stale = lease.descriptor().raw();
            drop(lease);
            graph.lender.pool.collect();
            raw(&mut graph, size_of::<wm_tensor>(), &stale)?;
            // One that is larger than its memory; it is let go of all the same, and cannot be used again.
            lease = graph.lender.lease(&good).map_err(text)?;
            let mut beyond = lease.into_raw();
            beyond.strides[0] = 17;
            raw(&mut graph, size_of::<wm_tensor>(), &beyond)?;
            beyond.strides[0] = 16;
            raw(&mut graph, size_of::<wm_tensor>(), &beyond)?;
            (rejects.lease, rejects.content, steps) = (rejects.lease + 2, rejects.content + 1, steps + 3);
            // What cannot be a tensor at all.
            for (shape, bits, stride) in [(-1, 32, 1), (i64::MAX, 32, 1), (4, 31, 1), (4, 32, i64::MAX), (4, 32, -1)] {
                let mut t = wm_tensor { data: graph.targets[0].address(), ..stale };
                (t.lease, t.shape[0], t.dtype_bits, t.strides[0]) = (0, shape, bits, stride);
                raw(&mut graph, size_of::<wm_tensor>(), &t)?;
                (rejects.content, steps) = (rejects.content + 1, steps + 1);
            }
            // Only this one is seen.
            let sent = Sent::new(spec.clone(), &mut random);
            graph.post(0, &sent)?;
            steps += 1;
            let shown = graph.shown().map_err(|e| format!("round {round}: {e}"))?;
            expect(shown[..] == sent.dense[..SHOWN], || format!("round {round}: other bytes"))?;
            graph.lender.has_all()?;
        }
        let mut none = [0; SHOWN];
        let more = graph.receiver.try_pop(&mut none).map_err(text)?;
        expect(more.is_none(), || "a step that was refused pushed".into())?;
        graph.end(steps, rejects)?;
        let called = calls.load(Ordering::Relaxed);
        expect(called == 20, || format!("the body ran {called} times"))?;
    }
    Ok(())
}

/// Of several inputs each has its own, whichever rule there is; and what is refused beforehand.
pub(crate) fn of_several_inputs(device: &Device) -> Outcome {
    let spec = TensorSpec::new(DType::F64, &[6, 5]);
    let delivery = |address| Delivery::exactly(address, &spec);
    let both: [(usize, &dyn Fn(u64) -> Delivery); 2] = [(240, &delivery), (240, &delivery)];
    for rule in [Rule::All, Rule::Any] {
        let options = StreamOptions::default().with_rule(rule);
        let mut graph = Delivering::new(device, options, false, &both, show(true)).map_err(text)?;
        let (mut random, mut rejects, mut steps) = (Random(7, 0), Rejects::default(), 0);
        let (mut first, mut second) = (vec![0xEE; SHOWN], Vec::new());
        for n in 0..60 {
            // Every third is refused on one side or the other, and the other side's is let go of with it.
            let bad = (n % 3 == 0).then_some(n % 2);
            for input in 0..2 {
                let spec = if bad == Some(input) { TensorSpec::new(DType::F64, &[5, 5]) } else { spec.clone() };
                let sent = Sent::new(spec, &mut random);
                graph.post(input, &sent)?;
                if bad != Some(input) && input == 0 {
                    first.clone_from(&sent.dense);
                } else if bad != Some(input) {
                    second.clone_from(&sent.dense);
                }
                // One at a time: which of them comes first is not said.
                if rule == Rule::Any && bad != Some(input) {
                    let shown = graph.shown().map_err(|e| format!("{rule:?}, {n}: {e}"))?;
                    expect(shown[..] == first, || format!("{rule:?}, {n}: other bytes"))?;
                }
            }
            steps += if rule == Rule::Any { 2 } else { 1 };
            rejects.content += u64::from(bad.is_some());
            if rule == Rule::All && bad.is_none() {
                let shown = graph.shown().map_err(|e| format!("{rule:?}, {n}: {e}"))?;
                expect(shown[..] == first, || format!("{rule:?}, {n}: other bytes"))?;
                graph.lender.has_all()?;
            }
        }
        let targets = graph.end(steps, rejects)?;
        let mut whole = vec![0; 240];
        targets[1].download(0, &mut whole).map_err(text)?;
        expect(whole == second, || format!("{rule:?}: what the second input has"))?;
    }
    beside_what_is_impossible(device, &spec)?;
    refusals(device, &spec)
}

/// A step is void where one of its records has a length that cannot be; the tensor of the other is let go of with it.
fn beside_what_is_impossible(device: &Device, spec: &TensorSpec) -> Outcome {
    let mut lender = Lender::new(device).map_err(text)?;
    let mut graph = Builder::new(device.clone());
    graph.pool(&lender.pool).map_err(text)?;
    let host = graph.host("host").map_err(text)?;
    let model = graph.steps("model", StreamOptions::default().with_rule(Rule::All).pushes(8, 9)).map_err(text)?;
    let ends = [0, 1].map(|_| graph.mailbox(host, model, MailboxOptions::slots(4)).map_err(text));
    let back = graph.mailbox(model, host, MailboxOptions::slots(4)).map_err(text)?;
    let [first, second] = ends;
    let (first, second) = (first?, second?);
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let target = device.alloc(240).map_err(text)?;
    // SAFETY: the runtime keeps the memory, which only the copies use.
    unsafe { runtime.deliver(model, 0, &Delivery::exactly(target.address(), spec)) }.map_err(text)?;
    runtime.keep(target);
    runtime.body(model, Body::captured(|_| Ok(()))).map_err(text)?;
    let mut senders = [runtime.sender(first).map_err(text)?, runtime.sender(second).map_err(text)?];
    let mut receiver = runtime.receiver(back).map_err(text)?;
    for _ in 0..2 {
        let lease = lender.lease(&Sent::new(spec.clone(), &mut Random(3, 0))).map_err(text)?;
        senders[0].post(lease, b"", BOUND).map_err(|e| e.to_string())?;
        senders[1].push(7, &[1; 100], BOUND).map_err(text)?;
    }
    let slots = runtime.handle(second).map_err(text)?.header + size_of::<warpmail::abi::wm_mailbox_header>() as u64;
    // SAFETY: the first slot's first word, in the runtime's pinned memory, which the host uses at the same address; nobody
    // else does before the start. The length is in its low bits.
    unsafe { *(slots as *mut u64) |= 0xFFFF << warpmail::abi::WM_HEAD_LEN_SHIFT };
    runtime.start().map_err(text)?;
    let mut buffer = [0; SHOWN];
    receiver.pop(&mut buffer, BOUND).map_err(text)?;
    runtime.stop(BOUND).map_err(text)?;
    let stats = runtime.stats();
    let m = &stats.modules[model.index()];
    let fine = m.rejects == Rejects { length: 1, ..Rejects::default() } && m.records_out == 1;
    expect(fine, || format!("one step is void, the next one is not: {m:?}"))?;
    lender.has_all()
}

fn refusals(device: &Device, spec: &TensorSpec) -> Outcome {
    let mut graph = Builder::new(device.clone());
    let host = graph.host("host").map_err(text)?;
    let model = graph.steps("model", StreamOptions::default()).map_err(text)?;
    graph.mailbox(host, model, MailboxOptions::default()).map_err(text)?;
    let mut runtime = graph.build(HandlerImage::builtin()).map_err(text)?;
    let target = device.alloc(240).map_err(text)?;
    let to = target.address();
    let mut refused = |module, input, delivery: Delivery, with: &str| {
        // SAFETY: refused, or never used: nothing is started.
        match unsafe { runtime.deliver(module, input, &delivery) } {
            Err(e) if e.to_string().contains(with) => Ok(()),
            other => Err(format!("{other:?}, not a refusal with {with:?}")),
        }
    };
    let gaps = spec.clone().with_strides(&[6, 1]);
    refused(host, 0, Delivery::exactly(to, spec), "Builder::steps")?;
    refused(model, 1, Delivery::exactly(to, spec), "input 1")?;
    refused(model, 0, Delivery::up_to(0, 8), "at least one byte")?;
    refused(model, 0, Delivery::up_to(to, 0), "at least one byte")?;
    refused(model, 0, Delivery::up_to(to, u64::MAX), "at least one byte")?;
    refused(model, 0, Delivery::exactly(to, &gaps), "without gaps")?;
    refused(model, 0, Delivery::exactly(to, &TensorSpec::new(DType::F32, &[0])), "without elements")?;
    if device.info().ordinal.is_some() {
        let mut here = [0u8; 64];
        refused(model, 0, Delivery::up_to(here.as_mut_ptr() as u64, 64), "CUDA")?;
        refused(model, 0, Delivery::up_to(to, 1 << 50), "CUDA")?;
    }
    // SAFETY: as above.
    unsafe { runtime.deliver(model, 0, &Delivery::exactly(to, spec)) }.map_err(text)?;
    let mut refused = |what: &str, with: &str| {
        // SAFETY: as above.
        match unsafe { runtime.deliver(model, 0, &Delivery::exactly(to, spec)) } {
            Err(e) if e.to_string().contains(with) => Ok(()),
            other => Err(format!("{what}: {other:?}, not a refusal with {with:?}")),
        }
    };
    refused("twice", "second delivery")?;
    runtime.body(model, Body::captured(|_| Ok(()))).map_err(text)?;
    // SAFETY: as above.
    match unsafe { runtime.deliver(model, 0, &Delivery::exactly(to, spec)) } {
        Err(e) if e.to_string().contains("has been given") => Ok(()),
        other => Err(format!("after the body: {other:?}")),
    }
}
