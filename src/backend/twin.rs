//! The CPU twin: host memory, and a thread that runs launches of the arbiter one after the other.

use std::collections::HashMap;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use crossbeam::utils::Backoff;
use memmap2::MmapMut;

use super::{Backend, Blocks, Launches, Pinned, StreamNote};
use crate::abi::{self, wm_arbiter_args};
use crate::device::DeviceInfo;
use crate::error::{Error, Result};
use crate::image::{HandlerImage, TwinEntry};
use crate::probe::BackendKind;

#[derive(Debug)]
pub(crate) struct Twin {
    info: DeviceInfo,
    /// What was allocated, by address: anonymous mappings, which are zero, page-aligned and cost nothing until touched.
    mappings: Mutex<HashMap<u64, MmapMut>>,
}

impl Twin {
    pub(crate) fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Twin {
            info: DeviceInfo {
                backend: BackendKind::Twin,
                ordinal: None,
                name: "CPU twin".into(),
                driver: None,
                compute_capability: None,
                multiprocessors: threads as u32,
                memory_bytes: None,
            },
            mappings: Mutex::default(),
        }
    }
}

impl Backend for Twin {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let refused =
            |e: std::io::Error| Error::Unavailable { what: "host memory", reason: format!("{bytes} bytes: {e}") };
        let mut mapping = MmapMut::map_anon(bytes.max(1)).map_err(refused)?;
        let address = mapping.as_mut_ptr() as u64;
        self.mappings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(address, mapping);
        Ok(address)
    }

    fn free(&self, address: u64, _bytes: usize) {
        self.mappings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&address);
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<Pinned> {
        let device = self.alloc(bytes)?;
        Ok(Pinned { host: device as *mut u8, device, bytes })
    }

    fn free_pinned(&self, pinned: Pinned) {
        self.free(pinned.device, pinned.bytes);
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller owns `to` for `from.len()` bytes and no module touches them meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        // SAFETY: the caller owns `from` for `to.len()` bytes and no module writes them meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn fill(&self, to: u64, bytes: usize, byte: u8) -> Result<()> {
        // SAFETY: the caller owns `to` for that many bytes and no module touches them meanwhile.
        unsafe { (to as *mut u8).write_bytes(byte, bytes) };
        Ok(())
    }

    fn read_words(&self, to: &mut [u64], from: u64) -> Result<()> {
        for (i, word) in to.iter_mut().enumerate() {
            // SAFETY: the caller owns `from` for that many aligned words.
            *word = unsafe { abi::wm_host_load_acquire((from as *const u64).add(i)) };
        }
        Ok(())
    }

    fn blocks(&self) -> Result<Box<dyn Blocks>> {
        Ok(Box::new(HostBlocks::default()))
    }

    fn owns(&self, address: u64) -> Result<()> {
        if address == 0 {
            return Err(Error::refused("a tensor at address 0", "there is no memory"));
        }
        Ok(())
    }

    fn note(&self, stream: u64) -> Result<StreamNote> {
        if stream != 0 {
            return Err(Error::refused(format!("stream {stream:#x}"), "the twin has no streams: pass 0"));
        }
        Ok(StreamNote(0))
    }

    fn is_past(&self, _note: StreamNote) -> Result<bool> {
        Ok(true)
    }

    fn load(&self, image: &HandlerImage, _args: &wm_arbiter_args) -> Result<Box<dyn Launches>> {
        let (queue, work) = channel::unbounded::<Credit>();
        let (ended, results) = channel::unbounded();
        let entry = image.twin;
        let thread = std::thread::Builder::new()
            .name("warpmail-twin".into())
            .spawn(move || run(entry, &work, &ended))
            .map_err(|e| Error::Unavailable { what: "a thread for the twin", reason: e.to_string() })?;
        Ok(Box::new(TwinLaunches { queue: Some(queue), results, outstanding: 0, thread: Some(thread) }))
    }
}

/// Blocks of host memory.
#[derive(Debug, Default)]
struct HostBlocks {
    mappings: HashMap<u64, MmapMut>,
}

impl Blocks for HostBlocks {
    fn alloc(&mut self, bytes: usize) -> Result<u64> {
        let refused =
            |e: std::io::Error| Error::Unavailable { what: "host memory", reason: format!("{bytes} bytes: {e}") };
        let mut mapping = MmapMut::map_anon(bytes.max(1)).map_err(refused)?;
        let address = mapping.as_mut_ptr() as u64;
        self.mappings.insert(address, mapping);
        Ok(address)
    }

    fn free(&mut self, address: u64, _bytes: usize) {
        self.mappings.remove(&address);
    }

    fn trim(&mut self, _keep: usize) {}
}

/// A launch and the door that it waits for.
type Credit = (wm_arbiter_args, Option<u64>);

/// What the GPU's front end does: waits until the door is open. Spins a little, then sleeps longer and longer.
fn wait_for_door(door: u64) {
    let backoff = Backoff::new();
    let mut nap = Duration::from_micros(20);
    // SAFETY: an aligned word of the runtime's pinned memory, which is kept until this launch has been collected. Bounded:
    // the pacer opens every door within max_wait, and a stop opens all.
    while unsafe { abi::wm_host_load_acquire(door as *const u64) } == 0 {
        if backoff.is_completed() {
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_micros(500));
        } else {
            backoff.snooze();
        }
    }
}

fn run(entry: TwinEntry, work: &Receiver<Credit>, ended: &Sender<i32>) {
    for (args, door) in work {
        if let Some(door) = door {
            wait_for_door(door);
        }
        // SAFETY: the runtime keeps every table that `args` names alive until this launch has been collected.
        let status = unsafe { entry(&args) };
        if ended.send(status).is_err() {
            return;
        }
    }
}

struct TwinLaunches {
    queue: Option<Sender<Credit>>,
    results: Receiver<i32>,
    outstanding: usize,
    thread: Option<JoinHandle<()>>,
}

impl TwinLaunches {
    fn ended(&mut self, status: i32) -> Result<()> {
        self.outstanding -= 1;
        match status {
            0 => Ok(()),
            s => Err(Error::Failed(format!("the twin's arbiter refused its arguments or lacked memory (status {s})"))),
        }
    }
}

impl Launches for TwinLaunches {
    fn adopt_thread(&mut self) -> Result<()> {
        Ok(())
    }

    fn launch(&mut self, args: &wm_arbiter_args, door: Option<u64>) -> Result<()> {
        let gone = || Error::Failed("the twin's thread has ended".into());
        self.queue.as_ref().ok_or_else(gone)?.send((*args, door)).map_err(|_| gone())?;
        self.outstanding += 1;
        Ok(())
    }

    fn outstanding(&mut self) -> Result<usize> {
        while let Ok(status) = self.results.try_recv() {
            self.ended(status)?;
        }
        Ok(self.outstanding)
    }

    fn wait(&mut self, bound: Duration) -> Result<usize> {
        let until = Instant::now() + bound;
        if self.outstanding()? > 0
            && let Ok(status) = self.results.recv_deadline(until)
        {
            self.ended(status)?;
        }
        self.outstanding()
    }
}

impl Drop for TwinLaunches {
    fn drop(&mut self) {
        self.queue = None;
        // A launch that does not end keeps its thread: joining it would be a wait without a bound.
        if self.outstanding == 0
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
