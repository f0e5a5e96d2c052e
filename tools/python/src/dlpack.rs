//! Capsules of DLPack (versions before 1, and 1.x) in both directions; their bytes are in dlpack_bytes.rs.
//! <https://dmlc.github.io/dlpack/latest/python_spec.html>

use std::ffi::{CStr, c_void};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use warpmail::{DType, Lease, TensorSpec};

use crate::dlpack_bytes::{DLTensor, IS_COPIED, MAJOR, MINOR, READ_ONLY};
pub(crate) use crate::dlpack_bytes::{Legacy, Versioned};
use crate::errors::{Refused, raise};
use crate::owners::Owner;

const VERSIONED: &CStr = c"dltensor_versioned";
const LEGACY: &CStr = c"dltensor";
const USED_VERSIONED: &CStr = c"used_dltensor_versioned";
const USED_LEGACY: &CStr = c"used_dltensor";
/// What a capsule was read to.
pub(crate) struct Imported {
    pub(crate) address: u64,
    pub(crate) spec: TensorSpec,
    pub(crate) device: (i32, i32),
    /// Gives it back to who made it, when dropped.
    pub(crate) owner: Owner,
}

/// Consumes a capsule: from here on it is ours to give back.
pub(crate) fn import(capsule: &Bound<'_, PyAny>) -> PyResult<Imported> {
    let raw = capsule.as_ptr();
    // SAFETY: `raw` is a live object; the function checks what it is.
    let is = |name: &CStr| unsafe { ffi::PyCapsule_IsValid(raw, name.as_ptr()) } != 0;
    if is(USED_VERSIONED) || is(USED_LEGACY) {
        return Err(Refused::new_err("a DLPack capsule: it was consumed before; ask its producer for another"));
    }
    let (name, used) = match (is(VERSIONED), is(LEGACY)) {
        (true, _) => (VERSIONED, USED_VERSIONED),
        (_, true) => (LEGACY, USED_LEGACY),
        _ => return Err(Refused::new_err("what __dlpack__ returned is no DLPack capsule")),
    };
    // SAFETY: a capsule of this name, by the checks above; the names are static.
    let pointer = unsafe {
        let pointer = ffi::PyCapsule_GetPointer(raw, name.as_ptr());
        if pointer.is_null() || ffi::PyCapsule_SetName(raw, used.as_ptr()) != 0 {
            return Err(PyErr::fetch(capsule.py()));
        }
        pointer
    };
    let (owner, tensor, flags) = if name == VERSIONED {
        let managed = pointer.cast::<Versioned>();
        let owner = Owner::versioned(managed);
        // SAFETY: the capsule's name says what it points to; version and deleter are there in every version.
        let major = unsafe { (*managed).major };
        if major != MAJOR {
            return Err(Refused::new_err(format!("a DLPack capsule of version {major}: this reads version {MAJOR}")));
        }
        // SAFETY: and of this version it is all of the struct.
        unsafe { (owner, (*managed).tensor, (*managed).flags) }
    } else {
        let managed = pointer.cast::<Legacy>();
        // SAFETY: the capsule's name says what it points to.
        (Owner::legacy(managed), unsafe { (*managed).tensor }, 0)
    };
    if flags & IS_COPIED != 0 {
        return Err(Refused::new_err("a tensor that its producer had to copy: only tensors by pointer are posted"));
    }
    let spec = spec_of(&tensor, flags & READ_ONLY != 0)?;
    Ok(Imported { address: tensor.data as u64, spec, device: (tensor.device_type, tensor.device_id), owner })
}

fn spec_of(tensor: &DLTensor, read_only: bool) -> PyResult<TensorSpec> {
    let ndim = usize::try_from(tensor.ndim).map_err(|_| Refused::new_err("a tensor of negative dimensions"))?;
    if ndim > 0 && tensor.shape.is_null() {
        return Err(Refused::new_err("a tensor without a shape"));
    }
    let values = |from: *const i64| match (ndim, from.is_null()) {
        (0, _) | (_, true) => Vec::new(),
        // SAFETY: DLPack says that both have `ndim` values, and the owner keeps them.
        _ => unsafe { std::slice::from_raw_parts(from, ndim) }.to_vec(),
    };
    Ok(TensorSpec {
        dtype: DType { code: tensor.code, bits: tensor.bits, lanes: tensor.lanes },
        shape: values(tensor.shape),
        strides: (ndim > 0 && !tensor.strides.is_null()).then(|| values(tensor.strides)),
        byte_offset: tensor.byte_offset,
        read_only,
    })
}

/// What an exported capsule points to: the struct, the arrays that it names, and what keeps the memory.
struct Exported<T> {
    managed: T,
    dims: [[i64; 8]; 2],
    lease: Option<Lease>,
    /// The consumer's stream, whose work so far comes before the memory is used again.
    stream: Option<u64>,
}

impl<T> Drop for Exported<T> {
    fn drop(&mut self) {
        // Both only push to a lock-free queue.
        match (self.lease.take(), self.stream) {
            // SAFETY: DLPack's `stream` is one of the consumer's, on the tensor's device; docs/python.md says that it stays
            // until the pool has collected.
            (Some(lease), Some(stream)) => unsafe { lease.release_on(stream) },
            (lease, _) => drop(lease),
        }
    }
}

/// Any thread may call it, with or without the interpreter's lock: it does not touch Python.
unsafe extern "C" fn delete_versioned(managed: *mut Versioned) {
    // SAFETY: the consumer calls it once, with what `export` boxed.
    drop(unsafe { Box::from_raw((*managed).context.cast::<Exported<Versioned>>()) });
}

unsafe extern "C" fn delete_legacy(managed: *mut Legacy) {
    // SAFETY: as above.
    drop(unsafe { Box::from_raw((*managed).context.cast::<Exported<Legacy>>()) });
}

/// A capsule that nobody consumed gives back what it has.
unsafe extern "C" fn capsule_dropped(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls it with the capsule; one that was consumed has another name.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, VERSIONED.as_ptr()) != 0 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, VERSIONED.as_ptr()).cast());
        } else if ffi::PyCapsule_IsValid(capsule, LEGACY.as_ptr()) != 0 {
            delete_legacy(ffi::PyCapsule_GetPointer(capsule, LEGACY.as_ptr()).cast());
        }
    }
}

/// A capsule for what the lease is on, which the consumer releases.
pub(crate) fn export(py: Python<'_>, lease: Lease, stream: Option<u64>, versioned: bool) -> PyResult<Py<PyAny>> {
    let d = *lease.descriptor();
    if d.is_read_only() && !versioned {
        return Err(PyBufferError::new_err(
            "the tensor is read-only, which a DLPack capsule before version 1 cannot say: pass max_version=(1, 0)",
        ));
    }
    let mut dims = [[0; 8]; 2];
    dims[0][..d.shape().len()].copy_from_slice(d.shape());
    dims[1][..d.strides().len()].copy_from_slice(d.strides());
    let (dtype, (device_type, device_id)) = (d.dtype(), d.device());
    let tensor = DLTensor {
        data: d.data() as *mut c_void,
        device_type: device_type as i32,
        device_id: device_id as i32,
        ndim: d.shape().len() as i32,
        code: dtype.code,
        bits: dtype.bits,
        lanes: dtype.lanes,
        shape: std::ptr::null(),
        strides: std::ptr::null(),
        byte_offset: d.byte_offset(),
    };
    let null = std::ptr::null_mut();
    let pointer = if versioned {
        let flags = if d.is_read_only() { READ_ONLY } else { 0 };
        let deleter = Some(delete_versioned as unsafe extern "C" fn(*mut Versioned));
        let managed = Versioned { major: MAJOR, minor: MINOR, context: null, deleter, flags, tensor };
        let boxed = Box::into_raw(Box::new(Exported { managed, dims, lease: Some(lease), stream }));
        // SAFETY: just boxed, and nobody else has it.
        unsafe {
            (*boxed).managed.context = boxed.cast();
            (*boxed).managed.tensor.shape = (&raw const (*boxed).dims[0]).cast();
            (*boxed).managed.tensor.strides = (&raw const (*boxed).dims[1]).cast();
            (&raw mut (*boxed).managed).cast::<c_void>()
        }
    } else {
        let deleter = Some(delete_legacy as unsafe extern "C" fn(*mut Legacy));
        let managed = Legacy { tensor, context: null, deleter };
        let boxed = Box::into_raw(Box::new(Exported { managed, dims, lease: Some(lease), stream }));
        // SAFETY: as above.
        unsafe {
            (*boxed).managed.context = boxed.cast();
            (*boxed).managed.tensor.shape = (&raw const (*boxed).dims[0]).cast();
            (*boxed).managed.tensor.strides = (&raw const (*boxed).dims[1]).cast();
            (&raw mut (*boxed).managed).cast::<c_void>()
        }
    };
    let name = if versioned { VERSIONED } else { LEGACY };
    // SAFETY: the pointer is not null and the name static; a new reference or an error comes back.
    unsafe {
        let capsule = ffi::PyCapsule_New(pointer, name.as_ptr(), Some(capsule_dropped));
        if capsule.is_null() {
            match versioned {
                true => delete_versioned(pointer.cast()),
                false => delete_legacy(pointer.cast()),
            }
        }
        Py::from_owned_ptr_or_err(py, capsule)
    }
}

/// `raise`, for protocols that know only `BufferError`.
pub(crate) fn as_buffer_error(py: Python<'_>, e: warpmail::Error) -> PyErr {
    let cause = raise(e);
    let error = PyBufferError::new_err(cause.value(py).to_string());
    error.set_cause(py, Some(cause));
    error
}
