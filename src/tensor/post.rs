//! Tensors through mailboxes: the host's ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::descriptor::{TensorDescriptor, TensorSpec};
use super::hold::Tensor;
use super::lease::Lease;
use super::pool::Pool;
use crate::abi;
use crate::error::{Error, Result};
use crate::port::{Pause, Receiver, Sender};
use crate::wait::deadline;

const TYPE: u16 = abi::WM_TYPE_TENSOR as u16;
const DESCRIPTOR: usize = size_of::<abi::wm_tensor>();
/// No payload is longer.
const LONGEST: usize = abi::WM_STRIDE_MAX as usize;

/// A post that did not happen, with the lease that was to be posted.
#[derive(Debug)]
pub struct Unposted {
    /// Why not; [`Error::Full`] when there is no free slot now.
    pub error: Error,
    /// What was to be posted, as it was.
    pub lease: Lease,
}

impl std::fmt::Display for Unposted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Unposted {}

impl From<Box<Unposted>> for Error {
    fn from(unposted: Box<Unposted>) -> Error {
        unposted.error
    }
}

impl Sender {
    /// Lets a mailbox without an arbiter check what is posted. The mailboxes of a graph know the pool of their builder.
    pub fn attach_pool(&mut self, pool: &Pool) {
        self.pool = Some(pool.clone());
    }

    /// Posts a lease: a record of type `WM_TYPE_TENSOR` with the descriptor, and behind it up to 72 bytes of the caller's
    /// (more where the slots are longer). Its reader has to release it from then on. [`Error::Full`] at once if there is no
    /// free slot.
    ///
    /// If work on a stream has still to write the tensor ([`Lease::written_on`]): a reader on the host gets the record at once,
    /// and its [`Lease::wait_on`] or copy comes after that work; for a reader on the device, which could not wait, the record
    /// is pushed when the work is done, and until then this is [`Error::Full`].
    pub fn try_post(&mut self, lease: Lease, note: &[u8]) -> Result<(), Box<Unposted>> {
        self.post(lease, note, Duration::ZERO).map_err(|mut unposted| {
            if matches!(unposted.error, Error::Timeout { .. }) {
                unposted.error = Error::Full { mailbox: self.mailbox_id() };
            }
            unposted
        })
    }

    /// The same, waiting up to `bound` for a free slot.
    pub fn post(&mut self, lease: Lease, note: &[u8], bound: Duration) -> Result<(), Box<Unposted>> {
        let mut payload = [0; LONGEST];
        let len = DESCRIPTOR + note.len();
        let until = deadline(bound);
        let outcome = match self.may_post(&lease, len).and_then(|()| self.come_after(&lease, bound)) {
            Ok(()) => {
                let bound = until.saturating_duration_since(Instant::now());
                payload[..DESCRIPTOR].copy_from_slice(bytemuck::bytes_of(&lease.descriptor().0));
                payload[DESCRIPTOR..len].copy_from_slice(note);
                lease.hand_over(self.serial());
                self.push(TYPE, &payload[..len], bound).inspect_err(|_| lease.take_over())
            }
            Err(e) => Err(e),
        };
        match outcome {
            Ok(()) => {
                lease.forget();
                Ok(())
            }
            Err(error) => Err(Box::new(Unposted { error, lease })),
        }
    }

    /// Posts a lease whose memory the work that is on `stream` now has still to write, as [`post`](Self::post) after
    /// [`Lease::written_on`]. The lease of a post that did not happen stays in the order of the stream: post it again with `post`.
    ///
    /// # Safety
    /// `stream` is a stream of the pool's device (a `CUstream`; 0 on the twin).
    pub unsafe fn post_on(
        &mut self,
        lease: Lease,
        note: &[u8],
        stream: u64,
        bound: Duration,
    ) -> Result<(), Box<Unposted>> {
        // SAFETY: the caller's word.
        match unsafe { lease.written_on(stream) } {
            Ok(()) => self.post(lease, note, bound),
            Err(error) => Err(Box::new(Unposted { error, lease })),
        }
    }

    /// A reader that cannot wait for a stream gets the record when the work that writes the tensor is done.
    fn come_after(&self, lease: &Lease, bound: Duration) -> Result<()> {
        if self.is_read_by_host() { Ok(()) } else { lease.wait_ready(bound) }
    }

    /// Opens a lease for one reader and posts it, waiting up to `bound` for a free slot.
    pub fn post_tensor(&mut self, tensor: &Tensor, bound: Duration) -> Result<()> {
        self.post(tensor.lease(1)?, &[], bound).map_err(|unposted| unposted.error)
    }

    /// Makes a tensor like one of another time in the pool of this mailbox's graph and posts it, to as many readers; waits up
    /// to `bound` for memory, and for a slot.
    pub(crate) fn post_again(
        &mut self,
        like: &TensorDescriptor,
        bytes: &[u8],
        note: &[u8],
        bound: Duration,
    ) -> Result<()> {
        let Some(pool) = self.pool.clone() else {
            return Err(Error::State("replay: the graph has no pool: give its builder one with Builder::pool".into()));
        };
        let spec = TensorSpec { byte_offset: 0, ..like.spec() };
        let tensor = pool.alloc_within("replay", &spec, bound)?;
        pool.device().backend.upload(tensor.address(), bytes)?;
        self.post(tensor.lease(like.0.shares.max(1))?, note, bound).map_err(|unposted| unposted.error)
    }

    fn may_post(&self, lease: &Lease, len: usize) -> Result<()> {
        if len > self.payload_bytes() {
            return Err(Error::PayloadTooLong { mailbox: self.mailbox_id(), len, max: self.payload_bytes() });
        }
        let Some(core) = lease.core() else { return Ok(()) };
        match &self.pool {
            Some(pool) if Arc::ptr_eq(&pool.core, core) => Ok(()),
            Some(_) => {
                Err(Error::refused("a tensor of another pool", "a graph's tensors come from the pool of its builder"))
            }
            None if self.is_direct() => Ok(()),
            None => Err(Error::State("post: the graph has no pool: give its builder one with Builder::pool".into())),
        }
    }
}

impl Receiver {
    /// Lets a mailbox without an arbiter take tensors. The mailboxes of a graph know the pool of their builder.
    pub fn attach_pool(&mut self, pool: &Pool) {
        self.pool = Some(pool.clone());
    }

    /// Takes the next record, which must carry a tensor: its lease, and the bytes behind the descriptor. None if there is
    /// no record. [`Error::NotATensor`] leaves the record where it is. A tensor whose lease has ended is
    /// [`Error::StaleLease`], one that cannot be is [`Error::Refused`]: such a record is dropped.
    pub fn try_take(&mut self) -> Result<Option<(Lease, Vec<u8>)>> {
        let no_pool = || Error::State("take: the graph has no pool: give its builder one with Builder::pool".into());
        if self.pool.is_none() {
            return Err(no_pool());
        }
        let Some((len, msg_type)) = self.peek() else { return Ok(None) };
        if msg_type != TYPE {
            return Err(Error::NotATensor { mailbox: self.mailbox_id(), msg_type });
        }
        let mut payload = [0; LONGEST];
        let Some(record) = self.try_pop(&mut payload)? else { return Ok(None) };
        if record.len < DESCRIPTOR {
            return Err(Error::BadRecord { mailbox: self.mailbox_id(), len });
        }
        let raw: abi::wm_tensor = bytemuck::pod_read_unaligned(&payload[..DESCRIPTOR]);
        let lease = self.pool.as_ref().ok_or_else(no_pool)?.claim(raw)?;
        Ok(Some((lease, payload[DESCRIPTOR..record.len].to_vec())))
    }

    /// The same, waiting up to `bound` for a record.
    pub fn take(&mut self, bound: Duration) -> Result<(Lease, Vec<u8>)> {
        let until = deadline(bound);
        let mut pause = Pause::new();
        loop {
            if let Some(taken) = self.try_take()? {
                return Ok(taken);
            }
            if Instant::now() >= until {
                return Err(self.waited(bound));
            }
            self.check_alive()?;
            pause.wait();
        }
    }
}
