//! What the runtime needs of a machine: memory, copies, launches. Two implementations: `cuda` and `twin`.

pub(crate) mod cuda;
pub(crate) mod host_doors;
mod thread;
mod thread_steps;
pub(crate) mod twin;

use std::time::Duration;

use crate::abi::{wm_arbiter_args, wm_delivery, wm_gate_args};
use crate::device::DeviceInfo;
use crate::error::{Error, Result};
use crate::image::HandlerImage;
use crate::stats::Footprint;
use crate::stream::Body;

/// Pinned host memory that the device can reach.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pinned {
    pub(crate) host: *mut u8,
    pub(crate) device: u64,
    pub(crate) bytes: usize,
}

// SAFETY: an address; whoever dereferences it upholds the one-writer-per-word rule of the protocol.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

/// Memory and copies. Addresses are device addresses; on the twin they are host addresses.
pub(crate) trait Backend: Send + Sync + std::fmt::Debug {
    fn info(&self) -> &DeviceInfo;
    /// Device memory that nobody has taken, where there is a device that can be asked.
    fn free_bytes(&self) -> Result<Option<u64>>;
    /// Zero-filled device memory, aligned to at least 256 bytes.
    fn alloc(&self, bytes: usize) -> Result<u64>;
    fn free(&self, address: u64, bytes: usize);
    /// Zero-filled pinned memory, cached by the host, aligned to a page.
    fn alloc_pinned(&self, bytes: usize) -> Result<Pinned>;
    fn free_pinned(&self, pinned: Pinned);
    /// Copies and returns when the bytes have arrived.
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;
    fn download(&self, to: &mut [u8], from: u64) -> Result<()>;
    /// Fills device memory with a byte and returns when it is done.
    fn fill(&self, to: u64, bytes: usize, byte: u8) -> Result<()>;
    /// Copies words that the device may be changing: each is whole.
    fn read_words(&self, to: &mut [u64], from: u64) -> Result<()>;
    /// Memory for tensors, whose calls wait for no kernel.
    fn blocks(&self) -> Result<Box<dyn Blocks>>;
    /// Whether `address` is memory of this device, or why not.
    fn owns(&self, address: u64) -> Result<()>;
    /// Notes the work that is on a stream of the caller's now. [`Error::State`](crate::error::Error::State) while it, or a
    /// stream that it is tied to, is being captured.
    fn note(&self, stream: u64) -> Result<StreamNote>;
    /// Whether all that a note stands for is done; then the note has ended.
    fn is_past(&self, note: StreamNote) -> Result<bool>;
    /// What is enqueued on the stream from now on comes after what the note stands for. A note that has ended meanwhile
    /// may stand for later work, never for less.
    fn follow(&self, stream: u64, note: StreamNote) -> Result<()>;
    /// A stream of the device's own, for protocols in which a producer orders its consumer's stream. Nothing runs on it.
    fn intake(&self) -> Result<u64>;
    /// Copies of the journal's own, off the device.
    fn copies(&self) -> Result<Box<dyn Copies>>;
    /// Loads a handler set and touches its kernel, so that no launch loads anything. With a plan in `args` the arbiter will
    /// run on the CPU, and the set's steps on the device. `beside`: the stream, if there is one, whose kernels are to notice
    /// the least of it.
    fn load(&self, image: &HandlerImage, args: &wm_arbiter_args, beside: Option<u64>) -> Result<Box<dyn Launches>>;
    /// The steps of a stream module; loads and captures what they need.
    fn steps(&self, plan: StepPlan, body: Body) -> Result<Box<dyn StepQueue>>;
    /// The same of one that is to be part of a pass: for [`Self::pass`] alone.
    fn part(&self, plan: StepPlan, body: Body) -> Result<Part>;
    /// A queue of passes, at most `under_way` at a time: each is one launch of every part, each part behind those before it that
    /// it is given with.
    fn pass(&self, parts: Vec<(Part, Vec<usize>)>, under_way: usize) -> Result<Box<dyn StepQueue>>;
}

/// What a backend makes of a stream module that is part of a pass; only it knows what is inside.
pub(crate) type Part = Box<dyn std::any::Any + Send>;

pub(crate) fn part_of<T: 'static>(part: Part) -> Result<Box<T>> {
    part.downcast().map_err(|_| Error::Failed("a part of a pass was made by another device".into()))
}

/// What a stream module's steps are made of, beside their body.
#[derive(Debug, Clone)]
pub(crate) struct StepPlan {
    /// The module's name.
    pub(crate) name: String,
    pub(crate) args: wm_gate_args,
    /// What is copied between gate and body.
    pub(crate) deliveries: Vec<wm_delivery>,
    /// The caller's stream, if it is to run there.
    pub(crate) stream: Option<u64>,
    /// Launches that are under way at most, the running one and one more included.
    pub(crate) under_way: usize,
    /// On the twin, launches that fit into the stream's queue: one more makes the caller wait, as the driver does. None: any number.
    pub(crate) queue: Option<usize>,
    /// Where the host sees whether the running launch has records.
    pub(crate) live: Live,
}

/// Address of a word of pinned memory that outlives the steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Live(pub(crate) *const u64);

// SAFETY: an address of the runtime's pinned memory; it is only loaded from, as a whole word.
unsafe impl Send for Live {}

impl Live {
    /// Whether it has.
    pub(crate) fn get(self) -> bool {
        self.value() != 0
    }

    pub(crate) fn value(self) -> u64 {
        // SAFETY: an aligned word that outlives the steps.
        unsafe { crate::abi::wm_host_load_acquire(self.0) }
    }
}

/// A point in the order of the device's work that other work can be put behind.
#[derive(Debug, Clone)]
pub(crate) enum Mark {
    /// What was in front of the event when it was last recorded.
    Event(std::sync::Arc<cuda::Event>),
    /// On the twin: a word of pinned memory that outlives the steps has come to `count`.
    Count { word: Live, count: u64 },
}

/// The steps of one stream module on their stream, one after the other. One thread makes all calls.
pub(crate) trait StepQueue: Send {
    /// Called once by the thread that makes all other calls.
    fn adopt_thread(&mut self) -> Result<()>;
    /// Enqueues a launch, behind a wait until `door`, if one is given, is open: gate, body, the gate's end. Where the stream's queue
    /// is full it returns when there is room, which there may not be before a door has opened.
    fn enqueue(&mut self, door: Option<Door>) -> Result<()>;
    /// What is enqueued from now on comes behind `mark`.
    fn follow(&mut self, mark: &Mark) -> Result<()>;
    /// Stands for all launches so far; holds until the next call.
    fn mark(&mut self) -> Result<Mark>;
    /// What a launch puts into the stream's queue, in kernels and the like; none where that is not known.
    fn entries(&self) -> Option<usize>;
    /// Whether everything that was enqueued has ended, or what went wrong.
    fn is_empty(&mut self) -> Result<bool>;
}

/// An event of the driver's; on the twin, nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamNote(pub(crate) usize);

/// Memory for tensors: taken and given back in blocks, on a stream of its own.
pub(crate) trait Blocks: Send + std::fmt::Debug {
    /// Memory with any content, aligned to at least 256 bytes.
    fn alloc(&mut self, bytes: usize) -> Result<u64>;
    fn free(&mut self, address: u64, bytes: usize);
    /// Gives what is free back to the device, but for `keep` bytes in all.
    fn trim(&mut self, keep: usize);
}

/// A word of pinned memory that a launch waits for: it is open when it is not 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Door {
    /// Its device address.
    pub(crate) device: u64,
    /// Where the host sees it.
    pub(crate) host: u64,
    /// It is expected to be opened soon: to be let in quickly matters more than what the wait costs others.
    pub(crate) soon: bool,
}

/// Copies off the device that run beside everything else: no call waits for a kernel.
pub(crate) trait Copies: Send + Sync + std::fmt::Debug {
    /// Enqueues a copy from the device into pinned memory, and gives its number; they end in order. One thread enqueues.
    ///
    /// # Safety
    /// `to` is pinned memory of `bytes` bytes that nobody uses, and `from` memory that stays as it is, until the copy was
    /// waited for.
    unsafe fn fetch(&self, to: *mut u8, from: u64, bytes: usize) -> Result<u64>;
    /// Waits until this copy and those before it have ended. Any thread.
    fn wait(&self, number: u64) -> Result<()>;
}

/// The arbiter's queue of launches: they run one after the other.
pub(crate) trait Launches: Send {
    /// Called once by the thread that makes all other calls.
    fn adopt_thread(&mut self) -> Result<()>;
    /// Enqueues one launch, behind a wait until `door`, if one is given, is open.
    fn launch(&mut self, args: &wm_arbiter_args, door: Option<Door>) -> Result<()>;
    /// Launches that have not ended, or that had not when last some had: 0 only if all have.
    fn outstanding(&mut self) -> Result<usize>;
    /// Waits until none is outstanding, or fewer than before, or until the bound; then says how many are.
    fn wait(&mut self, bound: Duration) -> Result<usize>;
    /// Where an arbiter on the CPU runs its grants on a GPU: an event for each server, recorded behind each of its grants.
    fn server_events(&self) -> Vec<std::sync::Arc<cuda::Event>> {
        Vec::new()
    }
    /// What a launch takes of an SM, where there are SMs.
    fn footprint(&self) -> Option<Footprint> {
        None
    }
    /// Where the host is who lets launches in: lets in whom it can, and says how soon to look again, if any wait.
    fn watch(&mut self) -> Result<Option<Duration>> {
        Ok(None)
    }
}
