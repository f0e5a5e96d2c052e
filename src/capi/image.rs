//! Handler sets.

use std::ffi::CString;
use std::sync::Arc;

use super::args::{self, Options, Out};
use super::border::enter;
use super::device::destroy;
use super::fault::{Fault, OK, Result};
use super::handle::Object;
use super::sys::{self, warpmail_image, warpmail_image_options};
use super::{table, version};
use crate::image::HandlerImage;

// SAFETY: `repr(C)`: the size, integers, pointers and an optional function pointer; what they point to is the caller's word.
unsafe impl Options for warpmail_image_options {
    const NAME: &'static str = "warpmail_image_options";
    fn defaults() -> Self {
        Self::default()
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_image_builtin(out: *mut *mut warpmail_image) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let out = unsafe { Out::new(out, "out") }?;
        out.set(table::insert(Object::Image(Arc::new(HandlerImage::builtin())))?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_image_new(
    options: *const warpmail_image_options,
    out: *mut *mut warpmail_image,
) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        let (out, image) = unsafe { (Out::new(out, "out")?, image_of(&args::options(options)?)?) };
        out.set(table::insert(Object::Image(Arc::new(image)))?);
        Ok(OK)
    })
}

/// # Safety
/// The options' pointers are as the header asks.
unsafe fn image_of(options: &warpmail_image_options) -> Result<HandlerImage> {
    version::check_abi(options.abi_version)?;
    // SAFETY: the caller's word.
    let name = unsafe { args::string(options.name, "the image's name") }?.to_string();
    let refused = |rule: &str| Fault::new(sys::WARPMAIL_REFUSED, format!("image {name}: {rule}"));
    let Some(twin) = options.twin else {
        return Err(refused(
            "needs a twin entry: the same handlers compiled by a C++ compiler, see warpmail/handler.hpp",
        ));
    };
    let (fatbin, kernel) = if options.fatbin.is_null() {
        if options.fatbin_bytes != 0 || !options.kernel.is_null() {
            return Err(refused("has a kernel name or a size, but no fatbin"));
        }
        (None, CString::default())
    } else {
        if options.fatbin_bytes == 0 {
            return Err(refused("has a fatbin of 0 bytes"));
        }
        // SAFETY: the caller's word.
        let (bytes, kernel) = unsafe {
            let bytes = args::bytes(options.fatbin, options.fatbin_bytes as usize, "the fatbin")?;
            (bytes, args::string(options.kernel, "the kernel's name")?)
        };
        (Some(args::copy(bytes, "the fatbin")?), CString::new(kernel).unwrap_or_default())
    };
    // SAFETY: that kernel and twin are what they should be is the caller's word: the header says that it cannot be checked.
    Ok(unsafe { HandlerImage::owned(name, fatbin, "the image was made without a fatbin", kernel, twin) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_image_destroy(image: *mut warpmail_image) -> i32 {
    enter(|| destroy(image))
}
