//! The host's consuming ends.

use std::ffi::c_void;

use super::args::{self, Out, bound};
use super::border::enter;
use super::device::destroy;
use super::fault::{EMPTY, Fault, OK, Result};
use super::sys::{self, warpmail_receiver, warpmail_record};
use super::table;
use crate::error::Error;
use crate::port::Record;

fn record_of(record: Record) -> warpmail_record {
    warpmail_record { len: record.len as u32, msg_type: record.msg_type, reserved: 0 }
}

/// A record that does not fit says how long it is.
#[inline]
fn status_of(popped: crate::Result<Option<Record>>, out: &Out<warpmail_record>) -> Result<i32> {
    match popped {
        Ok(Some(record)) => {
            out.set(record_of(record));
            Ok(OK)
        }
        Ok(None) => Ok(EMPTY),
        Err(e) => {
            if let Error::BufferTooSmall { len, .. } = e {
                out.set(record_of(Record { len, msg_type: 0 }));
            }
            Err(e.into())
        }
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_receiver_try_pop(
    receiver: *mut warpmail_receiver,
    buffer: *mut c_void,
    size: usize,
    record: *mut warpmail_record,
) -> i32 {
    enter(|| {
        let mut receiver = table::hold(receiver)?;
        // SAFETY: as the header asks of the caller.
        let (buffer, out) = unsafe { (args::bytes_mut(buffer, size, "the buffer")?, Out::new(record, "record")?) };
        status_of(receiver.try_pop(buffer), &out)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_receiver_pop(
    receiver: *mut warpmail_receiver,
    buffer: *mut c_void,
    size: usize,
    record: *mut warpmail_record,
    bound_ns: u64,
) -> i32 {
    enter(|| {
        let mut receiver = table::hold(receiver)?;
        // SAFETY: as the header asks of the caller.
        let (buffer, out) = unsafe { (args::bytes_mut(buffer, size, "the buffer")?, Out::new(record, "record")?) };
        status_of(receiver.pop(buffer, bound(bound_ns)?).map(Some), &out)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_receiver_try_pop_batch(
    receiver: *mut warpmail_receiver,
    buffer: *mut c_void,
    step: usize,
    count: usize,
    records: *mut warpmail_record,
    popped: *mut usize,
) -> i32 {
    enter(|| {
        let mut receiver = table::hold(receiver)?;
        if step == 0 || count == 0 {
            return Err(Fault::argument(format!("{count} places of {step} bytes: at least one of each")));
        }
        let count = count.min(sys::WARPMAIL_POP_BATCH_MAX as usize);
        let total = step.checked_mul(count);
        let total = total.ok_or_else(|| Fault::argument(format!("{count} places of {step} bytes: too many")))?;
        // SAFETY: as the header asks of the caller; `records` has at least `count` places.
        let (buffer, popped, first) = unsafe {
            let buffer = args::bytes_mut(buffer, total, "the buffer")?;
            (buffer, Out::new(popped, "popped")?, Out::new(records, "records")?)
        };
        // SAFETY: the batch has at most `count` records, and `records` as many places.
        let each = |i: usize, record| unsafe { records.add(i).write(record_of(record)) };
        match receiver.try_pop_batch(buffer, step, each) {
            Ok(n) => {
                popped.set(n);
                Ok(if n == 0 { EMPTY } else { OK })
            }
            Err(e) => {
                popped.set(0);
                status_of(Err(e), &first)
            }
        }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_receiver_is_ready(receiver: *mut warpmail_receiver, ready: *mut i32) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(ready, "ready") }?.set(table::hold(receiver)?.is_ready().into());
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_receiver_popped(receiver: *mut warpmail_receiver, records: *mut u64) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(records, "records") }?.set(table::hold(receiver)?.popped());
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_receiver_destroy(receiver: *mut warpmail_receiver) -> i32 {
    enter(|| destroy(receiver))
}
