//! Devices.

use std::ffi::c_char;

use super::args::{self, Out};
use super::border::enter;
use super::fault::{OK, Result};
use super::handle::Object;
use super::sys::warpmail_device;
use super::{table, version};
use crate::device::Device;

/// # Safety
/// `out` is null or can be written.
unsafe fn make(out: *mut *mut warpmail_device, device: impl FnOnce() -> crate::Result<Device>) -> i32 {
    enter(|| {
        // SAFETY: the caller's word.
        let out = unsafe { Out::new(out, "out") }?;
        out.set(table::insert(Object::Device(device()?))?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_device_best(out: *mut *mut warpmail_device) -> i32 {
    // SAFETY: as the header asks of the caller.
    unsafe { make(out, || Ok(Device::best())) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_device_twin(out: *mut *mut warpmail_device) -> i32 {
    // SAFETY: as the header asks of the caller.
    unsafe { make(out, || Ok(Device::twin())) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_device_cuda(ordinal: u32, out: *mut *mut warpmail_device) -> i32 {
    // SAFETY: as the header asks of the caller.
    unsafe { make(out, || Device::cuda(ordinal)) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_device_json(
    device: *mut warpmail_device,
    text: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    enter(|| {
        let json = version::json(table::share(device)?.info())?;
        // SAFETY: as the header asks of the caller.
        unsafe { args::give_text(&json, text, size, needed) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_device_destroy(device: *mut warpmail_device) -> i32 {
    enter(|| destroy(device))
}

/// The end of any handle whose object ends with its drop.
pub(super) fn destroy<H: super::handle::Handle>(handle: *mut H) -> Result<i32> {
    drop(table::remove(handle)?);
    Ok(OK)
}
