//! The host's ends of mailboxes. Both are the protocol's own code (csrc/protocol), reached through C functions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::utils::Backoff;

use crate::abi;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::options::MailboxOptions;
use crate::tensor::Pool;
use crate::wait::deadline;

/// What [`Receiver::try_pop`] and [`Receiver::pop`] report of a record; its bytes are in the caller's buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    /// Payload bytes.
    pub len: usize,
    /// The sender's message type.
    pub msg_type: u16,
}

/// The one producer's end of a mailbox, for one thread at a time.
///
/// Ordering: what this thread wrote before a push is visible to whoever pops that record.
// Alone on its lines: beside the receiver's, every push and pop would take the line away from the other thread.
#[derive(Debug)]
#[repr(align(128))]
pub struct Sender {
    end: abi::wm_producer,
    payload: usize,
    memory: Arc<Memory>,
    pub(crate) pool: Option<Pool>,
}

/// The one consumer's end of a mailbox, for one thread at a time.
#[derive(Debug)]
#[repr(align(128))]
pub struct Receiver {
    end: abi::wm_consumer,
    memory: Arc<Memory>,
    pub(crate) pool: Option<Pool>,
}

/// Waits between attempts: spins, yields, then sleeps, so that a waiting host thread costs little.
pub(crate) struct Pause {
    backoff: Backoff,
    naps: u32,
}

impl Pause {
    pub(crate) fn new() -> Self {
        Pause { backoff: Backoff::new(), naps: 0 }
    }

    /// Whether it has become worth a sleep.
    pub(crate) fn is_long(&self) -> bool {
        self.naps >= 64
    }

    pub(crate) fn wait(&mut self) {
        if !self.backoff.is_completed() {
            self.backoff.snooze();
        } else if self.naps < 64 {
            self.naps += 1;
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

impl Sender {
    pub(crate) fn attach(mailbox: &abi::wm_mailbox, memory: Arc<Memory>) -> Result<Self> {
        check(mailbox)?;
        // SAFETY: the header was checked, and `memory` keeps the mailbox alive. The runtime gives out one producer.
        let end = unsafe { abi::wm_host_attach_producer(mailbox) };
        // SAFETY: a pure function of its argument.
        let payload = unsafe { abi::wm_host_payload_bytes(mailbox.record_stride) } as usize;
        let pool = memory.pool.clone();
        Ok(Sender { end, payload, memory, pool })
    }

    /// Row of the mailbox table.
    pub(crate) fn mailbox_id(&self) -> u32 {
        self.end.mailbox.mailbox_id
    }

    /// Whether the records are read by the host, in this process.
    pub(crate) fn is_read_by_host(&self) -> bool {
        u32::from(self.end.mailbox.consumer_side) == abi::WM_SIDE_HOST
    }

    /// Whether there is no arbiter.
    pub(crate) fn is_direct(&self) -> bool {
        self.memory.handles.is_empty()
    }

    /// Number of the graph, among all of this process.
    pub(crate) fn serial(&self) -> u64 {
        self.memory.serial
    }

    /// Payload bytes that one record carries.
    pub fn payload_bytes(&self) -> usize {
        self.payload
    }

    /// Records pushed so far.
    pub fn pushed(&self) -> u64 {
        self.end.write_idx
    }

    /// Pushes one record, or says [`Error::Full`] at once.
    #[inline]
    pub fn try_push(&mut self, msg_type: u16, payload: &[u8]) -> Result<()> {
        if payload.len() > self.payload {
            return Err(self.too_long(payload.len()));
        }
        let (src, len) = (payload.as_ptr().cast(), payload.len() as u32);
        // SAFETY: `end` was attached to a checked mailbox that `memory` keeps alive; `src` has `len` bytes; `&mut self`
        // makes this the only push.
        match unsafe { abi::wm_host_try_push(&mut self.end, src, len, u32::from(msg_type)) } {
            0 => {
                self.memory.stir(self.end.mailbox.bell);
                Ok(())
            }
            abi::WM_BAD_INDEX => Err(Error::header(self.end.mailbox.mailbox_id, abi::WM_BAD_INDEX)),
            _ => Err(Error::Full { mailbox: self.end.mailbox.mailbox_id }),
        }
    }

    /// A record that no slot carries: counted in the mailbox.
    #[cold]
    fn too_long(&mut self, len: usize) -> Error {
        let at_least = len.min(u32::MAX as usize) as u32;
        // SAFETY: as in `try_push`; a length beyond the payload is refused before the source is looked at.
        unsafe { abi::wm_host_try_push(&mut self.end, std::ptr::null(), at_least, 0) };
        Error::PayloadTooLong { mailbox: self.end.mailbox.mailbox_id, len, max: self.payload }
    }

    /// Pushes as many as there is room for of the records in `payloads`, each of `len` bytes, one behind the other, and
    /// publishes them together. Returns their number, 0 when the mailbox is full.
    pub fn try_push_batch(&mut self, msg_type: u16, payloads: &[u8], len: usize) -> Result<usize> {
        if len > self.payload {
            return Err(self.too_long(len));
        }
        if len == 0 || !payloads.len().is_multiple_of(len) {
            return Err(Error::refused(
                format!("a batch of {} bytes in records of {len}", payloads.len()),
                "must be a whole number of records of at least one byte",
            ));
        }
        let n = (payloads.len() / len).min(u32::MAX as usize) as u32;
        let mut pushed = 0;
        // SAFETY: as in `try_push`; `payloads` has `n` times `len` bytes.
        let status = unsafe {
            let src = payloads.as_ptr().cast();
            abi::wm_host_try_push_batch(&mut self.end, src, len as u32, u32::from(msg_type), n, &mut pushed)
        };
        if status == abi::WM_BAD_INDEX {
            return Err(Error::header(self.end.mailbox.mailbox_id, status));
        }
        if pushed != 0 {
            self.memory.stir(self.end.mailbox.bell);
        }
        Ok(pushed as usize)
    }

    /// Pushes one record, waiting up to `bound` for a free slot.
    pub fn push(&mut self, msg_type: u16, payload: &[u8], bound: Duration) -> Result<()> {
        let mut until = None;
        let mut pause = Pause::new();
        loop {
            match self.try_push(msg_type, payload) {
                Err(Error::Full { mailbox }) => {
                    self.memory.check_alive()?;
                    if *until.get_or_insert_with(|| deadline(bound)) <= Instant::now() {
                        let what = format!("a free slot in mailbox {} ({mailbox})", self.memory.mailbox_name(mailbox));
                        return Err(Error::Timeout { what, waited: bound });
                    }
                    pause.wait();
                }
                other => return other,
            }
        }
    }
}

impl Receiver {
    pub(crate) fn attach(mailbox: &abi::wm_mailbox, memory: Arc<Memory>) -> Result<Self> {
        check(mailbox)?;
        // SAFETY: the header was checked, and `memory` keeps the mailbox alive. The runtime gives out one consumer.
        let end = unsafe { abi::wm_host_attach_consumer(mailbox) };
        let pool = memory.pool.clone();
        Ok(Receiver { end, memory, pool })
    }

    /// Row of the mailbox table.
    pub(crate) fn mailbox_id(&self) -> u32 {
        self.end.mailbox.mailbox_id
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        self.memory.check_alive()
    }

    /// Length and message type of the next record, if it has begun to arrive.
    pub(crate) fn peek(&self) -> Option<(u32, u16)> {
        let head = self.head()?;
        let field = |shift: u32| (head >> shift) as u16;
        Some((field(abi::WM_HEAD_LEN_SHIFT).into(), field(abi::WM_HEAD_TYPE_SHIFT)))
    }

    /// Waits up to `bound` until the next record has begun to arrive.
    pub(crate) fn wait_ready(&self, bound: Duration) -> Result<()> {
        let until = deadline(bound);
        let mut pause = Pause::new();
        while !self.is_ready() {
            self.check_alive()?;
            if Instant::now() >= until {
                return Err(self.waited(bound));
            }
            pause.wait();
        }
        Ok(())
    }

    /// That nothing came within `bound`.
    pub(crate) fn waited(&self, bound: Duration) -> Error {
        let mailbox = self.mailbox_id();
        let what = format!("a record in mailbox {} ({mailbox})", self.memory.mailbox_name(mailbox));
        Error::Timeout { what, waited: bound }
    }

    /// Records popped so far.
    pub fn popped(&self) -> u64 {
        self.end.read_idx
    }

    /// Pops the next record into `buffer`, or says at once that there is none. The buffer's bytes behind the record are
    /// unspecified.
    #[inline]
    pub fn try_pop(&mut self, buffer: &mut [u8]) -> Result<Option<Record>> {
        let (mut len, mut kind) = (0, 0);
        let room = buffer.len().min(u32::MAX as usize) as u32;
        // SAFETY: `end` was attached to a checked mailbox that `memory` keeps alive; `buffer` has `room` bytes; `&mut
        // self` makes this the only pop.
        let status =
            unsafe { abi::wm_host_try_pop(&mut self.end, buffer.as_mut_ptr().cast(), room, &mut len, &mut kind) };
        let mailbox = self.end.mailbox.mailbox_id;
        match status {
            0 => Ok(Some(Record { len: len as usize, msg_type: kind as u16 })),
            s if s == abi::WM_EMPTY as i32 => Ok(None),
            abi::WM_TOO_SMALL => Err(Error::BufferTooSmall { mailbox, len: len as usize, room: buffer.len() }),
            _ => Err(Error::BadRecord { mailbox, len }),
        }
    }

    /// Pops as many records as are there and `buffer` has places for, `step` bytes each, and gives their slots back
    /// together. Calls `each` with a record's place and what it is, in order; returns their number. A record that does
    /// not fit a place, or cannot be, ends the batch; if it is the first, that is the error.
    pub fn try_pop_batch(
        &mut self,
        buffer: &mut [u8],
        step: usize,
        mut each: impl FnMut(usize, Record),
    ) -> Result<usize> {
        const AT_ONCE: usize = 64;
        let (mut lens, mut kinds, mut popped) = ([0u32; AT_ONCE], [0u32; AT_ONCE], 0);
        let n = buffer.len().checked_div(step).unwrap_or(0).min(AT_ONCE);
        let step = step.min(u32::MAX as usize);
        // SAFETY: as in `try_pop`; `buffer` has `n` places of `step` bytes, `lens` and `kinds` have at least `n`.
        let status = unsafe {
            let (dst, lens, kinds) = (buffer.as_mut_ptr().cast(), lens.as_mut_ptr(), kinds.as_mut_ptr());
            abi::wm_host_try_pop_batch(&mut self.end, dst, step as u64, lens, kinds, n as u32, &mut popped)
        };
        let popped = popped as usize;
        for (i, (&len, &kind)) in lens.iter().zip(&kinds).take(popped).enumerate() {
            each(i, Record { len: len as usize, msg_type: kind as u16 });
        }
        let mailbox = self.end.mailbox.mailbox_id;
        match status {
            0 => Ok(popped),
            s if s == abi::WM_EMPTY as i32 => Ok(0),
            abi::WM_TOO_SMALL => Err(Error::BufferTooSmall { mailbox, len: self.next_len(), room: step }),
            _ => Err(Error::BadRecord { mailbox, len: 0 }),
        }
    }

    /// Length of the record at the front, 0 if there is none.
    fn next_len(&mut self) -> usize {
        let (mut len, mut kind) = (0, 0);
        // SAFETY: as in `try_pop`, with no room: nothing is written and the record stays.
        unsafe { abi::wm_host_try_pop(&mut self.end, std::ptr::null_mut(), 0, &mut len, &mut kind) };
        len as usize
    }

    /// Pops the next record, waiting up to `bound` for one.
    pub fn pop(&mut self, buffer: &mut [u8], bound: Duration) -> Result<Record> {
        let mut until = None;
        let mut pause = Pause::new();
        loop {
            if let Some(record) = self.try_pop(buffer)? {
                return Ok(record);
            }
            self.memory.check_alive()?;
            if *until.get_or_insert_with(|| deadline(bound)) <= Instant::now() {
                return Err(self.waited(bound));
            }
            pause.wait();
        }
    }

    /// Whether the next record has begun to arrive. A pop may still say "none" for the moment its last bytes need.
    pub fn is_ready(&self) -> bool {
        self.head().is_some()
    }

    /// The first word of the next record, if it has begun to arrive.
    fn head(&self) -> Option<u64> {
        let mailbox = &self.end.mailbox;
        let slot = mailbox.header
            + u64::from(abi::WM_HEADER_BYTES)
            + (self.end.read_idx & ((1 << mailbox.slots_log2) - 1)) * u64::from(mailbox.record_stride);
        // SAFETY: an aligned word inside the mailbox that `memory` keeps alive.
        let head = unsafe { abi::wm_host_load_acquire(slot as *const u64) };
        let lap_is_odd = (self.end.read_idx >> mailbox.slots_log2) & 1 == 1;
        ((head >> abi::WM_TAG_SHIFT == 1) != lap_is_odd).then_some(head)
    }
}

/// A mailbox between two threads of the host, with no arbiter: the ring alone.
pub fn direct_mailbox(device: &Device, options: MailboxOptions) -> Result<(Sender, Receiver)> {
    direct_mailbox_at(device, options, 0)
}

/// The same, with the 64-bit indices starting at `start`.
#[doc(hidden)]
pub fn direct_mailbox_at(device: &Device, options: MailboxOptions, start: u64) -> Result<(Sender, Receiver)> {
    let (memory, mailbox) = Memory::direct(device, &options)?;
    // SAFETY: nobody else knows the mailbox yet.
    unsafe { abi::wm_host_clear_mailbox(&mailbox, start) };
    Ok((Sender::attach(&mailbox, memory.clone())?, Receiver::attach(&mailbox, memory)?))
}

fn check(mailbox: &abi::wm_mailbox) -> Result<()> {
    // SAFETY: the handle was made by the runtime for memory that is alive.
    match unsafe { abi::wm_host_check_header(mailbox) } {
        0 => Ok(()),
        status => Err(Error::header(mailbox.mailbox_id, status)),
    }
}
