//! The bytes of DLPack, versions before 1 and 1.x. Checked against the crate dlpark in tests/dlpark.rs, which includes this file.

use std::ffi::c_void;

/// Flags of a versioned tensor.
pub(crate) const READ_ONLY: u64 = 1;
pub(crate) const IS_COPIED: u64 = 2;
/// What this speaks.
pub(crate) const MAJOR: u32 = 1;
pub(crate) const MINOR: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct DLTensor {
    pub(crate) data: *mut c_void,
    pub(crate) device_type: i32,
    pub(crate) device_id: i32,
    pub(crate) ndim: i32,
    pub(crate) code: u8,
    pub(crate) bits: u8,
    pub(crate) lanes: u16,
    pub(crate) shape: *const i64,
    pub(crate) strides: *const i64,
    pub(crate) byte_offset: u64,
}

#[repr(C)]
pub(crate) struct Legacy {
    pub(crate) tensor: DLTensor,
    pub(crate) context: *mut c_void,
    pub(crate) deleter: Option<unsafe extern "C" fn(*mut Legacy)>,
}

#[repr(C)]
pub(crate) struct Versioned {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) context: *mut c_void,
    pub(crate) deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    pub(crate) flags: u64,
    pub(crate) tensor: DLTensor,
}
