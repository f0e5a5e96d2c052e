//! On which side of the front end the arbiter waits. A GPU's front end takes what channels have for it on several sides, two on
//! the ones this was measured on, and a stream's channel is on one of them from its first launch on. A wait costs kernels that
//! others launch one by one on the same side something each, and nobody on the other; a launch behind an event of the other side
//! begins sooner than behind one of its own (docs/parking.md has the figures). No call tells a stream's side, so it is found out:
//! by how long a word takes to let a kernel in that stands behind an event of another stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cudarc::driver::{result, sys};

use super::events::Event;
use super::libraries::Library;
use super::notes::is_captured;
use super::tensors::Relaxed;
use super::{Context, Stream, driver};
use crate::error::{Error, Result};
use crate::image::HandlerImage;

/// The kernels that find it out (csrc/device/gates.cu): one stands behind the event, the other stores the word and takes the time.
const ANSWER: &std::ffi::CStr = c"warpmail_answer";
const ASK: &std::ffi::CStr = c"warpmail_ask";
/// Streams that are looked at for one on another side than the first.
const OTHERS: usize = 5;
/// Times of a pair, of which the second longest counts: on one side they are spread, between two they are not.
const TIMES: usize = 8;
/// Until the front end has put both channels aside.
const SETTLED: Duration = Duration::from_micros(200);
/// By how much the times of two pairs differ when one is on one side and the other is not, nanoseconds: less than that.
const APART: u64 = 1000;
/// An answer that takes longer says that the device, or the neighbour, has other things to do.
const LATE: Duration = Duration::from_millis(2);
/// Of pinned memory: what `front` waits for, and how long it took, each in a line of its own.
const PAGE: usize = 4096;
const TOOK: usize = 256;
/// Of device memory: when the answers began, a word for each of the last times, so that a late one is nobody else's.
const BEGAN: usize = 4096;

/// What it takes to find out; made once for a device.
#[derive(Debug)]
pub(super) struct Sides {
    context: Arc<Context>,
    /// Keeps the kernels' code.
    _library: Library,
    answer: sys::CUfunction,
    ask: sys::CUfunction,
    /// Of the one that asks.
    asking: Stream,
    front: Event,
    host: *mut u8,
    device: u64,
    began: u64,
    /// Number of the last time; the words say which one they are of.
    turn: u64,
    /// A kernel of this `choose` may still store its answer; of any of them.
    is_late: bool,
    was_late: bool,
}

// SAFETY: the driver's handles may be used from any thread, and the page is only used through `&mut self`.
unsafe impl Send for Sides {}

/// The arbiter's streams.
pub(super) struct Chosen {
    /// For launches, and for the waits that stand while nothing happens: not on the neighbour's side, if one was found.
    pub(super) launches: Stream,
    /// For the waits that stand aside: on another side than `launches`, if one was found.
    pub(super) doors: Stream,
}

/// Streams that nobody has chosen yet.
struct Candidates(Vec<Stream>);

impl Candidates {
    fn add(&mut self) -> Result<sys::CUstream> {
        let stream = Stream::urgent()?;
        let raw = stream.0;
        self.0.push(stream);
        Ok(raw)
    }
}

impl Drop for Candidates {
    fn drop(&mut self) {
        for stream in self.0.drain(..) {
            // SAFETY: made in `add`; the driver keeps a stream until what is on it has ended.
            let _ = unsafe { result::stream::destroy(stream.0) };
        }
    }
}

/// Which of the streams is on another side than the first, by their times with it, when `same` is what a pair on one side takes.
fn other_side(times: &[u64], same: u64) -> Option<usize> {
    let (at, soonest) = times.iter().enumerate().min_by_key(|(_, time)| **time)?;
    (soonest + APART <= same).then_some(at)
}

impl Sides {
    /// The context has been entered.
    pub(super) fn new(context: Arc<Context>) -> Result<Self> {
        let missing = |reason: &str| Error::Unavailable { what: "the kernels that ask", reason: reason.into() };
        let library = Library::of(HandlerImage::gates().map_err(missing)?.into())?;
        let kernel = |name| library.kernel(name)?.ok_or_else(|| missing("they were not compiled in"));
        let (answer, ask) = (kernel(ANSWER)?, kernel(ASK)?);
        let (front, asking) = (Event::new(context.clone())?, Stream::new()?);
        let mut sides = Sides {
            context,
            _library: library,
            answer,
            ask,
            asking,
            front,
            host: std::ptr::null_mut(),
            device: 0,
            began: 0,
            turn: 0,
            is_late: false,
            was_late: false,
        };
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: a plain allocation, given back when this is dropped.
        sides.host = unsafe { result::malloc_host(PAGE, flags) }.map_err(driver("cuMemHostAlloc"))?.cast();
        // SAFETY: just allocated with that size.
        unsafe { sides.host.write_bytes(0, PAGE) };
        // SAFETY: `host` is mapped memory of this context.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut sides.device, sides.host.cast(), 0) }
            .result()
            .map_err(driver("cuMemHostGetDevicePointer"))?;
        // SAFETY: as for the page.
        sides.began = unsafe { result::malloc_sync(BEGAN) }.map_err(driver("cuMemAlloc"))?;
        Ok(sides)
    }

    /// Two streams for an arbiter beside a stream of somebody else's. Where nothing can be told, any two; takes a few
    /// milliseconds, and bounded in any case. The context has been entered.
    pub(super) fn choose(&mut self, neighbour: Option<u64>) -> Result<Chosen> {
        let _relaxed = Relaxed::new()?;
        // One that still waits for room would store an older number over a newer one.
        self.is_late = !self.asking.is_empty()?;
        let mut candidates = Candidates(Vec::new());
        let first = candidates.add()?;
        self.touch(first)?;
        let (mut times, mut same) = (Vec::new(), 0);
        // Of any three streams two are on one side, where there are two: the longest of their times is that of such a pair.
        while times.len() < OTHERS {
            let other = candidates.add()?;
            self.touch(other)?;
            let time = self.time(other, first, false)?;
            let second = if times.len() == 1 { self.time(other, candidates.0[1].0, false)? } else { None };
            let Some(time) = time else { break };
            times.push(time);
            same = same.max(time).max(second.unwrap_or(0));
            if times.len() > 1 && other_side(&times, same).is_some() {
                break;
            }
        }
        let far = other_side(&times, same);
        let doors = match far {
            Some(at) => candidates.0.swap_remove(1 + at),
            None => {
                candidates.add()?;
                candidates.0.swap_remove(candidates.0.len() - 1)
            }
        };
        let mut chosen = Chosen { launches: candidates.0.swap_remove(0), doors };
        let mut beside = [None, None];
        if let (Some(neighbour), Some(_)) = (neighbour, far) {
            // A stream of another context, for one, cannot be told.
            let mut time = |front: &Stream| self.time(front.0, neighbour as sys::CUstream, true).ok().flatten();
            beside = [time(&chosen.launches), time(&chosen.doors)];
        }
        if let [Some(launches), Some(doors)] = beside
            && doors + APART <= launches
        {
            std::mem::swap(&mut chosen.launches, &mut chosen.doors);
        }
        tracing::debug!(?times, same, ?beside, "looked which sides of the front end streams are on, ns");
        Ok(chosen)
    }

    /// How long a word takes to let a kernel on `behind` in, behind an event of `front`, nanoseconds: the second longest of
    /// some times. None: too long to tell. `foreign`: `behind` is somebody else's, who may use it or capture it.
    fn time(&mut self, front: sys::CUstream, behind: sys::CUstream, foreign: bool) -> Result<Option<u64>> {
        let (mut times, mut taken) = ([0; TIMES], 0);
        for _ in 0..2 * TIMES {
            if foreign && (is_captured(behind as u64)? || !Stream(behind).is_empty()?) {
                return Ok(None);
            }
            // Where the host was slow the kernel may have stored the word too soon.
            let (time, in_time) = self.once(front, behind)?;
            let Some(time) = time else { return Ok(None) };
            if in_time {
                times[taken] = time;
                taken += 1;
            }
            if taken == TIMES {
                break;
            }
        }
        if taken < TIMES {
            return Ok(None);
        }
        times.sort_unstable();
        Ok(Some(times[TIMES - 2]))
    }

    /// The stream's first launch, which is what puts it on a side. Nothing can be told when it has not ended in time.
    fn touch(&mut self, stream: sys::CUstream) -> Result<()> {
        if self.is_late {
            return Ok(());
        }
        self.turn += 1;
        self.answer(stream)?;
        let begin = Instant::now();
        while !Stream(stream).is_empty()? {
            if begin.elapsed() > LATE {
                self.set_late();
                break;
            }
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn set_late(&mut self) {
        (self.is_late, self.was_late) = (true, true);
    }

    /// One time, and whether the host was quick enough for it to count.
    fn once(&mut self, front: sys::CUstream, behind: sys::CUstream) -> Result<(Option<u64>, bool)> {
        if self.is_late {
            return Ok((None, false));
        }
        self.turn += 1;
        let turn = self.turn;
        let begin = Instant::now();
        // First the kernel that stores the word: then whatever is enqueued behind the wait ends, also where a call of the driver's
        // waits for somebody else's, who waits for all that has been enqueued.
        self.ask()?;
        let enqueued = self.enqueue(front, behind);
        let in_time = begin.elapsed() < SETTLED / 2;
        let mut took = 0;
        while took >> 32 != turn && begin.elapsed() < SETTLED + 3 * LATE {
            std::hint::spin_loop();
            took = self.word(TOOK).load(Ordering::Relaxed); // all that is told is in the word
        }
        let ns = took & u64::from(u32::MAX);
        if enqueued.is_err() || took >> 32 != turn || ns >= LATE.as_nanos() as u64 {
            self.set_late();
        }
        enqueued?;
        Ok(((!self.is_late).then_some(ns), in_time))
    }

    fn enqueue(&self, front: sys::CUstream, behind: sys::CUstream) -> Result<()> {
        let flags = sys::CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
        // SAFETY: an aligned word of mapped memory that is kept where `ask` may not have stored it in time. Memory is little endian.
        unsafe { sys::cuStreamWaitValue32_v2(front, self.device, self.turn as u32, flags) }
            .result()
            .map_err(driver("cuStreamWaitValue32"))?;
        self.front.record(front)?;
        self.front.hold(behind)?;
        self.answer(behind)
    }

    fn answer(&self, stream: sys::CUstream) -> Result<()> {
        let mut began = self.began_at();
        // SAFETY: the kernel takes an address, of memory that is kept until it has ended.
        unsafe { result::launch_kernel(self.answer, (1, 1, 1), (32, 1, 1), 0, stream, &mut [(&raw mut began).cast()]) }
            .map_err(driver("cuLaunchKernel"))
    }

    fn ask(&self) -> Result<()> {
        let (mut door, mut began, mut took) = (self.device, self.began_at(), self.device + TOOK as u64);
        let (mut turn, mut settle, mut late) = (self.turn, SETTLED.as_nanos() as u64, LATE.as_nanos() as u64);
        let mut params = [&mut door, &mut began, &mut took, &mut turn, &mut settle, &mut late]
            .map(|param| std::ptr::from_mut(param).cast());
        // SAFETY: the kernel takes these six words; it ends by itself, and what it stores to is kept until then.
        unsafe { result::launch_kernel(self.ask, (1, 1, 1), (32, 1, 1), 0, self.asking.0, &mut params) }
            .map_err(driver("cuLaunchKernel"))
    }

    fn began_at(&self) -> u64 {
        self.began + self.turn % (BEGAN / 8) as u64 * 8
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: aligned words of a page that lives as long as `self`; the device accesses them whole.
        unsafe { AtomicU64::from_ptr(self.host.add(at).cast()) }
    }
}

impl Drop for Sides {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: made in `new`; the driver keeps a stream until what is on it has ended.
        let _ = unsafe { result::stream::destroy(self.asking.0) };
        // What may still be stored to is kept.
        if self.was_late {
            return;
        }
        // SAFETY: allocated in `new`, once, and nothing that stores there is left; null where `new` has failed before.
        unsafe {
            let _ = result::free_host(self.host.cast());
            let _ = result::free_sync(self.began);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times as they were measured on an H100.
    #[test]
    fn the_other_side_is_the_soonest_where_times_differ() {
        assert_eq!(other_side(&[3968, 5472], 5472), Some(0));
        assert_eq!(other_side(&[5472, 3744], 5472), Some(1));
        assert_eq!(other_side(&[3872, 3680], 5632), Some(1)); // the third pair was on one side
        assert_eq!(other_side(&[3808, 4640, 3776, 5600], 5600), Some(2));
        assert_eq!(other_side(&[5472, 5120], 5472), None);
        assert_eq!(other_side(&[3872], 3872), None);
        assert_eq!(other_side(&[], 0), None);
    }
}
