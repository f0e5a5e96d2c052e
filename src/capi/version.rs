//! Versions, names of statuses, the last error, and the probe.

use std::ffi::{CStr, c_char};

use super::border::{enter, last_error};
use super::fault::{Fault, OK, Result};
use super::{args, sys};
use crate::abi;

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_version() -> *const c_char {
    const TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    TEXT.as_ptr().cast()
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_abi_version() -> u32 {
    abi::WM_ABI_VERSION
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_check_abi(abi_version: u32, api_version: u32) -> i32 {
    enter(|| {
        check_abi(abi_version)?;
        if api_version > sys::WARPMAIL_API_VERSION {
            return Err(Fault::new(
                abi::WM_BAD_VERSION,
                format!(
                    "the program was compiled for version {api_version} of the C API and this library has {}: install a \
                     newer library",
                    sys::WARPMAIL_API_VERSION
                ),
            ));
        }
        Ok(OK)
    })
}

/// The bytes that a program's kernels and this library share are of one version.
pub(super) fn check_abi(version: u32) -> Result<()> {
    if version == abi::WM_ABI_VERSION {
        return Ok(());
    }
    let text = format!(
        "compiled with version {version} of warpmail/abi.h and this library has {}: compile against the headers that were \
         installed with it",
        abi::WM_ABI_VERSION
    );
    Err(Fault::new(abi::WM_BAD_VERSION, text))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_status_name(status: i32) -> *const c_char {
    name_of(status).as_ptr()
}

fn name_of(status: i32) -> &'static CStr {
    macro_rules! names {
        ($($from:ident::$name:ident),* $(,)?) => {
            match status {
                $(s if s == $from::$name as i32 => {
                    // SAFETY: the literal ends with its only zero byte.
                    unsafe { CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) }
                })*
                _ => c"unknown status",
            }
        };
    }
    names![
        abi::WM_OK,
        abi::WM_EMPTY,
        abi::WM_FULL,
        abi::WM_TIMEOUT,
        abi::WM_STOPPING,
        abi::WM_BAD_LENGTH,
        abi::WM_BAD_TYPE,
        abi::WM_BAD_ARGUMENT,
        abi::WM_TOO_SMALL,
        abi::WM_BAD_MAGIC,
        abi::WM_BAD_VERSION,
        abi::WM_BAD_STRIDE,
        abi::WM_BAD_INDEX,
        abi::WM_BAD_CONTENT,
        abi::WM_STALE_LEASE,
        abi::WM_POISONED,
        abi::WM_NOT_DURABLE,
        sys::WARPMAIL_BAD_HANDLE,
        sys::WARPMAIL_STALE_HANDLE,
        sys::WARPMAIL_BUSY,
        sys::WARPMAIL_BAD_STRUCT,
        sys::WARPMAIL_REFUSED,
        sys::WARPMAIL_UNAVAILABLE,
        sys::WARPMAIL_DRIVER,
        sys::WARPMAIL_FAILED,
        sys::WARPMAIL_STUCK,
        sys::WARPMAIL_BAD_STATE,
        sys::WARPMAIL_BAD_MAILBOX,
        sys::WARPMAIL_INTERNAL,
        sys::WARPMAIL_JOURNAL,
        sys::WARPMAIL_POOL_FULL,
    ]
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_last_error() -> *const c_char {
    last_error()
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_probe_json(text: *mut c_char, size: usize, needed: *mut usize) -> i32 {
    enter(|| {
        let json = json(&crate::probe())?;
        // SAFETY: as the header asks of the caller.
        unsafe { args::give_text(&json, text, size, needed) }
    })
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Fault::new(sys::WARPMAIL_INTERNAL, format!("no JSON: {e}")))
}
