//! Handler sets as the runtime takes them: a compiled kernel for the device and a function for the twin.

use std::borrow::Cow;
use std::ffi::{CString, c_int};

use crate::abi;

mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// The twin's entry point of a handler set: one call is one launch.
pub type TwinEntry = unsafe extern "C" fn(args: *const abi::wm_arbiter_args) -> c_int;

/// A handler set, instantiated in the arbiter's kernel template and in the twin's.
///
/// Made by the code that `warpmail-build` generates for a user's own handlers, or by [`HandlerImage::builtin`].
#[derive(Debug, Clone)]
pub struct HandlerImage {
    pub(crate) name: Cow<'static, str>,
    pub(crate) fatbin: Option<Cow<'static, [u8]>>,
    pub(crate) missing: &'static str,
    pub(crate) kernel: CString,
    pub(crate) twin: TwinEntry,
}

impl HandlerImage {
    /// A handler set from its compiled parts. `missing` says why `fatbin` is none.
    ///
    /// # Safety
    /// `kernel` in `fatbin`, and `twin`, must be `warpmail::arbiter_kernel` and `warpmail::twin_arbiter` instantiated
    /// from the headers of this version of warpmail.
    pub unsafe fn new(
        name: &'static str,
        fatbin: Option<&'static [u8]>,
        missing: &'static str,
        kernel: &'static str,
        twin: TwinEntry,
    ) -> Self {
        // A name with a NUL inside names no kernel: the empty name will be refused by the driver, with a reason.
        let kernel = CString::new(kernel).unwrap_or_default();
        HandlerImage { name: name.into(), fatbin: fatbin.map(Cow::Borrowed), missing, kernel, twin }
    }

    /// The same from parts that only live now, as a C caller has them.
    ///
    /// # Safety
    /// As for [`HandlerImage::new`].
    pub(crate) unsafe fn owned(
        name: String,
        fatbin: Option<Vec<u8>>,
        missing: &'static str,
        kernel: CString,
        twin: TwinEntry,
    ) -> Self {
        HandlerImage { name: name.into(), fatbin: fatbin.map(Cow::Owned), missing, kernel, twin }
    }

    /// The handlers that come with the library: see [`builtin`](crate::builtin).
    pub fn builtin() -> Self {
        // SAFETY: build.rs compiled both from csrc/protocol/builtin.hpp.
        unsafe {
            Self::new("builtin", kernels::FATBIN, kernels::MISSING, "warpmail_builtin_arbiter", abi::wm_builtin_twin)
        }
    }

    /// Whether the set was compiled for CUDA, or why not.
    pub fn cuda(&self) -> Result<(), &'static str> {
        if self.fatbin.is_some() { Ok(()) } else { Err(self.missing) }
    }

    /// The kernels around the bodies of stream modules, or why there are none.
    pub(crate) fn gates() -> Result<&'static [u8], &'static str> {
        kernels::GATES.ok_or(kernels::MISSING)
    }

    pub(crate) fn built_archs() -> &'static str {
        kernels::ARCHS
    }
}
