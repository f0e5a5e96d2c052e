//! Chains of streams whose order is made in advance, without an arbiter: events between the streams, words that one stream
//! writes and the next waits for, and a captured graph. The floor of pipelines that never branch.

use std::time::{Duration, Instant};

use cudarc::driver::sys;
use warpmail::{Device, DeviceBuffer};

use super::LENGTH;
use crate::bench::gpu::{Kernel, Kernels, Mapped, Stream, arg};

/// Records that are enqueued behind one door: a stream's queue holds about a thousand entries.
const BATCH: usize = 40;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Events,
    WriteWait,
    Graph,
}

pub(super) const ALL: [(How, &str); 3] =
    [(How::Events, "queued"), (How::WriteWait, "write_wait"), (How::Graph, "graph")];

struct Chain<'a> {
    kernels: &'a Kernels,
    work: Kernel,
    streams: Vec<Stream>,
    events: Vec<sys::CUevent>,
    stamps: DeviceBuffer,
    words: DeviceBuffer,
    nanos: u64,
}

fn call(call: &str, result: sys::CUresult) -> Result<(), String> {
    result.result().map_err(|e| format!("{call} failed: {e}"))
}

impl Chain<'_> {
    fn hop(&self, record: usize, i: usize) -> Result<(), String> {
        let mut at = self.stamps.address() + ((record * LENGTH + i) * 16) as u64;
        let mut nanos = self.nanos;
        let stream = self.streams[i];
        self.kernels.launch(self.work, 1, 32, 0, stream, &mut [arg(&mut at), arg(&mut nanos)])
    }

    /// One record's way: each hop waits for the one before, the first for the last of the record before.
    fn enqueue(&self, how: How, record: usize, number: u32) -> Result<(), String> {
        let word = |i: usize| self.words.address() + 8 * i as u64;
        let geq = sys::CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
        for i in 0..LENGTH {
            let (stream, before) = (self.streams[i].raw(), (i + LENGTH - 1) % LENGTH);
            // SAFETY: streams and events of this context; words of a live allocation, each written by the stream before and
            // waited for by the next, which stands behind the door of this batch.
            unsafe {
                match how {
                    How::Events if i > 0 || record > 0 => {
                        call("cuStreamWaitEvent", sys::cuStreamWaitEvent(stream, self.events[before], 0))?;
                    }
                    How::WriteWait => {
                        let value = if i == 0 { number } else { number + 1 };
                        let waited = sys::cuStreamWaitValue32_v2(stream, word(before), value, geq);
                        call("cuStreamWaitValue32", waited)?;
                    }
                    _ => {}
                }
            }
            self.hop(record, i)?;
            // SAFETY: as above.
            unsafe {
                match how {
                    How::Events => call("cuEventRecord", sys::cuEventRecord(self.events[i], stream))?,
                    How::WriteWait => {
                        call("cuStreamWriteValue32", sys::cuStreamWriteValue32_v2(stream, word(i), number + 1, 0))?;
                    }
                    How::Graph => {}
                }
            }
        }
        Ok(())
    }

    /// The same as one graph on the first stream, which is launched for each record.
    fn graph(&mut self) -> Result<sys::CUgraphExec, String> {
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        self.streams = vec![self.streams[0]; LENGTH];
        let stream = self.streams[0].raw();
        // SAFETY: an idle stream of this context; the graph is destroyed once it has been instantiated.
        unsafe {
            call("cuStreamBeginCapture", sys::cuStreamBeginCapture_v2(stream, mode))?;
            (0..LENGTH).try_for_each(|i| self.hop(0, i))?;
            call("cuStreamEndCapture", sys::cuStreamEndCapture(stream, &mut graph))?;
            call("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0))?;
            call("cuGraphDestroy", sys::cuGraphDestroy(graph))?;
        }
        Ok(exec)
    }

    /// Waits, bounded, until all streams are done.
    fn wait(&self) -> Result<(), String> {
        let begin = Instant::now();
        for &stream in &self.streams {
            while !self.kernels.is_done(stream)? {
                if begin.elapsed() > Duration::from_secs(20) {
                    return Err("a queued chain did not end within 20 s".into());
                }
            }
        }
        Ok(())
    }

    /// Time from the end of each hop to the beginning of the next, of the first records of `stamps`.
    fn hops(&self, records: usize, hops: &mut Vec<f64>) -> Result<(), String> {
        let mut bytes = vec![0; records * LENGTH * 16];
        self.stamps.download(0, &mut bytes).map_err(|e| e.to_string())?;
        let word = |w: usize| u64::from_ne_bytes(std::array::from_fn(|b| bytes[8 * w + b]));
        for record in 0..records {
            for i in 1..LENGTH {
                let at = 2 * (record * LENGTH + i);
                hops.push(word(at).saturating_sub(word(at - 1)) as f64);
            }
        }
        Ok(())
    }
}

/// Hops of a chain of [`LENGTH`] bodies, one record at a time, nanoseconds.
pub(super) fn measure(device: &Device, how: How, body: Duration, records: usize) -> Result<Vec<f64>, String> {
    let kernels = Kernels::load(device)?;
    let alloc = |bytes: usize| device.alloc(bytes).map_err(|e| e.to_string());
    let mut chain = Chain {
        work: kernels.get("queued_work", 0)?,
        streams: (0..LENGTH).map(|_| kernels.stream()).collect::<Result<_, _>>()?,
        events: Vec::new(),
        stamps: alloc(BATCH * LENGTH * 16)?,
        words: alloc(8 * LENGTH)?,
        nanos: body.as_nanos() as u64,
        kernels: &kernels,
    };
    for _ in 0..LENGTH {
        let mut event = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: a plain creation in the context that `Kernels::load` bound.
        call("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        chain.events.push(event);
    }
    let (door, mut hops, mut number) = (Mapped::new(1)?, Vec::new(), 0);
    if how == How::Graph {
        let exec = chain.graph()?;
        for _ in 0..records {
            // SAFETY: instantiated for this context; its stamps are live.
            call("cuGraphLaunch", unsafe { sys::cuGraphLaunch(exec, chain.streams[0].raw()) })?;
            chain.wait()?;
            chain.hops(1, &mut hops)?;
        }
        // SAFETY: nothing of it runs any more.
        call("cuGraphExecDestroy", unsafe { sys::cuGraphExecDestroy(exec) })?;
    }
    while how != How::Graph && hops.len() < records * (LENGTH - 1) {
        door.store(0, 0);
        kernels.wait_for_value(chain.streams[0], door.device())?;
        let enqueued = (0..BATCH).try_for_each(|record| {
            number += 1;
            chain.enqueue(how, record, number - 1)
        });
        door.store(0, 1);
        enqueued?;
        chain.wait()?;
        chain.hops(BATCH, &mut hops)?;
    }
    for event in chain.events.drain(..) {
        // SAFETY: made above; nothing waits for it any more.
        call("cuEventDestroy", unsafe { sys::cuEventDestroy_v2(event) })?;
    }
    Ok(hops)
}
