//! The host's producing ends. One compare-and-swap more than Rust's own: the check of the handle, and its lock.

use std::ffi::c_void;

use super::args::{self, Out, bound};
use super::border::enter;
use super::builder::mailbox_options;
use super::device::destroy;
use super::fault::{FULL, Fault, OK, Result};
use super::handle::Object;
use super::sys::{warpmail_device, warpmail_mailbox_options, warpmail_receiver, warpmail_sender};
use super::table;
use crate::error::Error;
use crate::port::direct_mailbox;

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_direct_mailbox(
    device: *mut warpmail_device,
    options: *const warpmail_mailbox_options,
    sender: *mut *mut warpmail_sender,
    receiver: *mut *mut warpmail_receiver,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let (to_sender, to_receiver, options) =
            unsafe { (Out::new(sender, "sender")?, Out::new(receiver, "receiver")?, mailbox_options(options)?) };
        let (sender, receiver) = direct_mailbox(&table::share(device)?, options)?;
        let sender = table::insert(Object::Sender(Box::new(sender)))?;
        match table::insert(Object::Receiver(Box::new(receiver))) {
            Ok(receiver) => to_receiver.set(receiver),
            Err(fault) => {
                destroy::<warpmail_sender>(sender)?;
                return Err(fault);
            }
        }
        to_sender.set(sender);
        Ok(OK)
    })
}

/// "Full" is an everyday answer, not a fault: it costs no message.
#[inline]
fn status_of(pushed: crate::Result<()>) -> Result<i32> {
    match pushed {
        Ok(()) => Ok(OK),
        Err(Error::Full { .. }) => Ok(FULL),
        Err(e) => Err(e.into()),
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_sender_try_push(
    sender: *mut warpmail_sender,
    msg_type: u16,
    payload: *const c_void,
    len: usize,
) -> i32 {
    enter(|| {
        let mut sender = table::hold(sender)?;
        // SAFETY: as the header asks of the caller.
        status_of(sender.try_push(msg_type, unsafe { args::bytes(payload, len, "the payload") }?))
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_sender_push(
    sender: *mut warpmail_sender,
    msg_type: u16,
    payload: *const c_void,
    len: usize,
    bound_ns: u64,
) -> i32 {
    enter(|| {
        let mut sender = table::hold(sender)?;
        // SAFETY: as the header asks of the caller.
        status_of(sender.push(msg_type, unsafe { args::bytes(payload, len, "the payload") }?, bound(bound_ns)?))
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_sender_try_push_batch(
    sender: *mut warpmail_sender,
    msg_type: u16,
    payloads: *const c_void,
    len: usize,
    count: usize,
    pushed: *mut usize,
) -> i32 {
    enter(|| {
        let mut sender = table::hold(sender)?;
        let total = len.checked_mul(count);
        let total = total.ok_or_else(|| Fault::argument(format!("{count} records of {len} bytes: too many")))?;
        // SAFETY: as the header asks of the caller.
        let (pushed, payloads) =
            unsafe { (Out::new(pushed, "pushed")?, args::bytes(payloads, total, "the payloads")?) };
        let n = sender.try_push_batch(msg_type, payloads, len)?;
        pushed.set(n);
        Ok(if n == 0 && count != 0 { FULL } else { OK })
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_sender_payload_bytes(sender: *mut warpmail_sender, bytes: *mut usize) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(bytes, "bytes") }?.set(table::hold(sender)?.payload_bytes());
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_sender_pushed(sender: *mut warpmail_sender, records: *mut u64) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(records, "records") }?.set(table::hold(sender)?.pushed());
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_sender_destroy(sender: *mut warpmail_sender) -> i32 {
    enter(|| destroy(sender))
}
