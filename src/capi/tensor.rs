//! Tensors and leases, and posting and taking them.

use std::ffi::c_void;

use super::args::{self, Out, bound};
use super::border::enter;
use super::device::destroy;
use super::fault::{EMPTY, FULL, Fault, OK, Result};
use super::handle::Object;
use super::sys::{warpmail_lease, warpmail_receiver, warpmail_sender, warpmail_tensor};
use super::table;
use crate::abi::{self, wm_tensor};
use crate::error::Error;
use crate::tensor::{Lease, Tensor};

fn give_tensor(tensor: Tensor, out: &Out<*mut warpmail_tensor>) -> Result<i32> {
    out.set(table::insert(Object::Tensor(Box::new(tensor)))?);
    Ok(OK)
}

fn give_lease(lease: Lease, out: &Out<*mut warpmail_lease>) -> Result<i32> {
    out.set(table::insert(Object::Lease(Box::new(lease)))?);
    Ok(OK)
}

/// A number of readers; more than any lease has is refused by whoever is asked for them.
fn readers_of(readers: u32) -> u8 {
    u8::try_from(readers).unwrap_or(u8::MAX)
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_tensor_descriptor(tensor: *mut warpmail_tensor, out: *mut wm_tensor) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(out, "out") }?.set(table::hold(tensor)?.descriptor().raw());
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_tensor_upload(
    tensor: *mut warpmail_tensor,
    from: *const c_void,
    bytes: usize,
) -> i32 {
    enter(|| {
        let tensor = table::hold(tensor)?;
        // SAFETY: as the header asks of the caller.
        tensor.upload(unsafe { args::bytes(from, bytes, "from") }?)?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_tensor_download(
    tensor: *mut warpmail_tensor,
    into: *mut c_void,
    bytes: usize,
) -> i32 {
    enter(|| {
        let tensor = table::hold(tensor)?;
        // SAFETY: as the header asks of the caller.
        tensor.download(unsafe { args::bytes_mut(into, bytes, "into") }?)?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_tensor_lease(
    tensor: *mut warpmail_tensor,
    readers: u32,
    out: *mut *mut warpmail_lease,
) -> i32 {
    enter(|| {
        let tensor = table::hold(tensor)?;
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        give_lease(tensor.lease(readers_of(readers))?, &out)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_tensor_destroy(tensor: *mut warpmail_tensor) -> i32 {
    enter(|| destroy(tensor))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_lease_descriptor(lease: *mut warpmail_lease, out: *mut wm_tensor) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(out, "out") }?.set(table::hold(lease)?.descriptor().raw());
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_lease_upload(
    lease: *mut warpmail_lease,
    from: *const c_void,
    bytes: usize,
) -> i32 {
    enter(|| {
        let lease = table::hold(lease)?;
        // SAFETY: as the header asks of the caller.
        lease.upload(unsafe { args::bytes(from, bytes, "from") }?)?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_lease_download(
    lease: *mut warpmail_lease,
    into: *mut c_void,
    bytes: usize,
) -> i32 {
    enter(|| {
        let lease = table::hold(lease)?;
        // SAFETY: as the header asks of the caller.
        lease.download(unsafe { args::bytes_mut(into, bytes, "into") }?)?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_lease_part(
    lease: *mut warpmail_lease,
    readers: u32,
    out: *mut *mut warpmail_lease,
) -> i32 {
    enter(|| {
        let mut lease = table::hold(lease)?;
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        give_lease(lease.part(readers_of(readers))?, &out)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_lease_tensor(
    lease: *mut warpmail_lease,
    out: *mut *mut warpmail_tensor,
) -> i32 {
    enter(|| {
        let lease = table::hold(lease)?;
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        give_tensor(lease.tensor()?, &out)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_lease_destroy(lease: *mut warpmail_lease) -> i32 {
    enter(|| destroy(lease))
}

/// Takes a lease out of the table: its handle is gone.
fn remove(lease: *mut warpmail_lease) -> Result<Lease> {
    match table::remove(lease)? {
        Object::Lease(lease) => Ok(*lease),
        _ => Err(Fault::argument("the handle names no lease")),
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_lease_release(lease: *mut warpmail_lease) -> i32 {
    enter(|| {
        remove(lease)?.release()?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_lease_release_on(lease: *mut warpmail_lease, stream: u64) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        unsafe { remove(lease)?.release_on(stream) };
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_lease_into_raw(lease: *mut warpmail_lease, out: *mut wm_tensor) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        out.set(remove(lease)?.into_raw());
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_sender_post(
    sender: *mut warpmail_sender,
    lease: *mut warpmail_lease,
    note: *const c_void,
    len: usize,
    bound_ns: u64,
) -> i32 {
    enter(|| {
        let mut sender = table::hold(sender)?;
        let mut held = table::hold(lease)?;
        // SAFETY: as the header asks of the caller.
        let note = unsafe { args::bytes(note, len, "the note") }?;
        let bound = bound(bound_ns)?;
        let value = std::mem::replace(&mut *held, Lease::nothing());
        let posted = if bound.is_zero() { sender.try_post(value, note) } else { sender.post(value, note, bound) };
        match posted {
            Ok(()) => {
                drop(held);
                destroy(lease)
            }
            Err(unposted) => {
                *held = unposted.lease;
                match unposted.error {
                    Error::Full { .. } => Ok(FULL),
                    e => Err(e.into()),
                }
            }
        }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_receiver_take(
    receiver: *mut warpmail_receiver,
    note: *mut c_void,
    size: usize,
    note_bytes: *mut usize,
    bound_ns: u64,
    out: *mut *mut warpmail_lease,
) -> i32 {
    enter(|| {
        let mut receiver = table::hold(receiver)?;
        // SAFETY: as the header asks of the caller.
        let (note, note_bytes, out) = unsafe {
            let note = args::bytes_mut(note, size, "the note")?;
            (note, Out::new(note_bytes, "note_bytes")?, Out::new(out, "out")?)
        };
        let bound = bound(bound_ns)?;
        if !bound.is_zero() {
            receiver.wait_ready(bound)?;
        }
        let is_tensor = |(_, msg_type): &(u32, u16)| u32::from(*msg_type) == abi::WM_TYPE_TENSOR;
        let len = receiver.peek().filter(is_tensor).map_or(0, |(len, _)| len as usize);
        let longest = len.saturating_sub(size_of::<wm_tensor>());
        if longest > note.len() {
            note_bytes.set(longest);
            let text = format!("the note has {longest} bytes and the buffer {size}; the record is still there");
            return Err(Fault::new(abi::WM_TOO_SMALL, text));
        }
        let taken = if bound.is_zero() { receiver.try_take()? } else { Some(receiver.take(bound)?) };
        let Some((lease, bytes)) = taken else { return Ok(EMPTY) };
        note[..bytes.len()].copy_from_slice(&bytes);
        give_lease(lease, &out)?;
        note_bytes.set(bytes.len());
        Ok(OK)
    })
}
