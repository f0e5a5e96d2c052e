//! The CPU twin: host memory, and a thread that runs launches of the arbiter one after the other.

use std::collections::HashMap;
use std::sync::Mutex;

use memmap2::MmapMut;

use super::thread::{ThreadLaunches, launched};
use super::thread_steps::{Stage, ThreadSteps};
use super::{Backend, Blocks, Copies, Launches, Part, Pinned, StepPlan, StepQueue, StreamNote, part_of};
use crate::abi::{self, wm_arbiter_args};
use crate::device::DeviceInfo;
use crate::error::{Error, Result};
use crate::image::HandlerImage;
use crate::probe::BackendKind;
use crate::stream::Body;

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
                pci_bus_id: None,
                driver: None,
                compute_capability: None,
                multiprocessors: threads as u32,
                stream_memory_operations: true,
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

    fn follow(&self, stream: u64, _note: StreamNote) -> Result<()> {
        self.note(stream).map(|_| ())
    }

    fn intake(&self) -> Result<u64> {
        Ok(0)
    }

    fn copies(&self) -> Result<Box<dyn Copies>> {
        Ok(Box::new(HostCopies))
    }

    fn load(&self, image: &HandlerImage, _args: &wm_arbiter_args, _beside: Option<u64>) -> Result<Box<dyn Launches>> {
        let entry = image.twin;
        // SAFETY: the runtime keeps every table that `args` names alive until this launch has been collected.
        let arbiter = move |args: &wm_arbiter_args| launched(unsafe { entry(args) });
        Ok(Box::new(ThreadLaunches::start("warpmail-twin", || Ok(()), arbiter)?))
    }

    fn steps(&self, plan: StepPlan, body: Body) -> Result<Box<dyn StepQueue>> {
        Ok(Box::new(ThreadSteps::start(plan, body)?))
    }

    fn part(&self, plan: StepPlan, body: Body) -> Result<Part> {
        Ok(Box::new(Stage::new(plan, body)?))
    }

    fn pass(&self, parts: Vec<(Part, Vec<usize>)>, _under_way: usize) -> Result<Box<dyn StepQueue>> {
        // One thread goes through them as they come: each behind all those before it.
        let stages = parts.into_iter().map(|(part, _)| Ok(*part_of::<Stage>(part)?)).collect::<Result<_>>()?;
        Ok(Box::new(ThreadSteps::pass(stages)?))
    }
}

/// Copies that are done at once.
#[derive(Debug)]
struct HostCopies;

impl Copies for HostCopies {
    unsafe fn fetch(&self, to: *mut u8, from: u64, bytes: usize) -> Result<u64> {
        // SAFETY: as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to, bytes) };
        Ok(0)
    }

    fn wait(&self, _number: u64) -> Result<()> {
        Ok(())
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
