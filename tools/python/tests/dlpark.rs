//! The package's DLPack bytes against the crate dlpark: the same layout, and tensors of each read and deleted by the other.
//! Nothing of Python is in here, so that it links.

#![allow(dead_code, unreachable_pub, reason = "of the bytes a part is used")]

#[path = "../src/dlpack_bytes.rs"]
mod dlpack_bytes;

use std::ffi::c_void;
use std::mem::{align_of, offset_of};
use std::sync::atomic::{AtomicU32, Ordering};

use dlpack_bytes::{DLTensor, Legacy, MAJOR, MINOR, READ_ONLY, Versioned};
use dlpark::allocation::dynamic::Allocation;
use dlpark::ffi::{self, DLManagedTensor, DLManagedTensorVersioned};
use dlpark::{DlpackFlags, Managed, legacy, versioned};

macro_rules! same {
    ($ours:ty, $theirs:ty: $($own:tt $(. $more:tt)* = $field:tt $(. $deeper:tt)*),*) => {
        assert_eq!((size_of::<$ours>(), align_of::<$ours>()), (size_of::<$theirs>(), align_of::<$theirs>()));
        $(assert_eq!(offset_of!($ours, $own $(. $more)*), offset_of!($theirs, $field $(. $deeper)*), stringify!($own));)*
    };
}

#[test]
fn the_layout_is_the_same() {
    same!(DLTensor, ffi::DLTensor: data = data, device_type = device.device_type, device_id = device.device_id, ndim = ndim,
        code = dtype.code, bits = dtype.bits, lanes = dtype.lanes, shape = shape, strides = strides, byte_offset = byte_offset);
    same!(Legacy, DLManagedTensor: tensor = dl_tensor, context = manager_ctx, deleter = deleter);
    same!(Versioned, DLManagedTensorVersioned: major = version.major, minor = version.minor, context = manager_ctx,
        deleter = deleter, flags = flags, tensor = dl_tensor);
    assert_eq!(MAJOR, ffi::DLPACK_MAJOR_VERSION);
    const { assert!(MINOR <= ffi::DLPACK_MINOR_VERSION) };
    assert_eq!(READ_ONLY, u64::from(ffi::DLPACK_FLAG_BITMASK_READ_ONLY));
}

/// What one of ours points to, with a count of deletions.
struct Ours<T> {
    managed: T,
    values: [i32; 8],
    dims: [[i64; 2]; 2],
    deleted: &'static AtomicU32,
}

unsafe extern "C" fn delete<T>(context: *mut c_void) {
    // SAFETY: `context` is what `ours_*` boxed, and a consumer calls the deleter once.
    let boxed = unsafe { Box::from_raw(context.cast::<Ours<T>>()) };
    boxed.deleted.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn delete_versioned(managed: *mut Versioned) {
    // SAFETY: called with one of ours.
    unsafe { delete::<Versioned>((*managed).context) };
}

unsafe extern "C" fn delete_legacy(managed: *mut Legacy) {
    // SAFETY: called with one of ours.
    unsafe { delete::<Legacy>((*managed).context) };
}

/// A 2 by 3 tensor of int32 one element into its memory, whose rows are four apart.
fn described() -> DLTensor {
    let (data, shape) = (std::ptr::null_mut(), std::ptr::null());
    DLTensor {
        data,
        device_type: 1,
        device_id: 0,
        ndim: 2,
        code: 0,
        bits: 32,
        lanes: 1,
        shape,
        strides: shape,
        byte_offset: 4,
    }
}

fn boxed<T>(managed: T, deleted: &'static AtomicU32) -> *mut Ours<T> {
    Box::into_raw(Box::new(Ours { managed, values: [0, 1, 2, 3, 4, 5, 6, 7], dims: [[2, 3], [4, 1]], deleted }))
}

fn look<M: dlpark::ManagedTensorBase>(taken: &Managed<M>) {
    let tensor = taken.validate().expect("a tensor that dlpark takes");
    assert_eq!((tensor.shape(), tensor.strides()), (&[2, 3][..], Some(&[4, 1][..])));
    assert_eq!((tensor.byte_offset(), tensor.dtype().bits, tensor.dtype().lanes), (4, 32, 1));
    assert_eq!((tensor.device().device_type, tensor.device().device_id), (ffi::DLDeviceType::CPU, 0));
    // SAFETY: memory of the host that `taken` keeps; row 1 is whole.
    let first = unsafe { *tensor.offset_data_ptr::<i32>().expect("int32").add(4) };
    assert_eq!(first, 5);
}

#[test]
fn dlpark_reads_ours_and_deletes_it_once() {
    static DELETED: AtomicU32 = AtomicU32::new(0);
    let null = std::ptr::null_mut();
    let deleter = Some(delete_versioned as unsafe extern "C" fn(*mut Versioned));
    let managed =
        Versioned { major: MAJOR, minor: MINOR, context: null, deleter, flags: READ_ONLY, tensor: described() };
    let raw = boxed(managed, &DELETED);
    // SAFETY: just boxed; the arrays stay where they are until the deleter frees them.
    let taken = unsafe {
        (*raw).managed.context = raw.cast();
        (*raw).managed.tensor.data = (&raw mut (*raw).values).cast();
        (*raw).managed.tensor.shape = (&raw const (*raw).dims[0]).cast();
        (*raw).managed.tensor.strides = (&raw const (*raw).dims[1]).cast();
        versioned::Dlpack::from_raw((&raw mut (*raw).managed).cast()).expect("a version that dlpark takes")
    };
    look(&taken);
    assert_eq!(taken.flags(), DlpackFlags::READ_ONLY);
    drop(taken);
    assert_eq!(DELETED.load(Ordering::Relaxed), 1);

    let deleter = Some(delete_legacy as unsafe extern "C" fn(*mut Legacy));
    let raw = boxed(Legacy { tensor: described(), context: null, deleter }, &DELETED);
    // SAFETY: as above.
    let taken = unsafe {
        (*raw).managed.context = raw.cast();
        (*raw).managed.tensor.data = (&raw mut (*raw).values).cast();
        (*raw).managed.tensor.shape = (&raw const (*raw).dims[0]).cast();
        (*raw).managed.tensor.strides = (&raw const (*raw).dims[1]).cast();
        legacy::Dlpack::from_raw((&raw mut (*raw).managed).cast()).expect("a tensor")
    };
    look(&taken);
    drop(taken);
    assert_eq!(DELETED.load(Ordering::Relaxed), 2);
}

#[test]
fn ours_reads_dlparks_and_deletes_it_once() {
    struct Owner(&'static AtomicU32);
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    static DELETED: AtomicU32 = AtomicU32::new(0);
    static VALUES: [u8; 12] = [9; 12];
    let mut allocation = Allocation::<DLManagedTensorVersioned>::allocate(4).expect("memory");
    allocation.extra_mut().copy_from_slice(&[2, 3, 6, 2]);
    let mut made = allocation.initialize(Box::new(Owner(&DELETED)), 2).expect("two dimensions");
    let dims = made.extra_mut().as_mut_ptr();
    let tensor = made.tensor_mut();
    tensor.data = VALUES.as_ptr().cast_mut().cast();
    tensor.shape = dims;
    // SAFETY: the second half of the four.
    tensor.strides = unsafe { dims.add(2) };
    made.set_dtype(ffi::DLDataType::U8);
    made.set_flags(DlpackFlags::READ_ONLY).expect("it is versioned");
    // SAFETY: what it describes is static, or its own.
    let theirs = unsafe { made.finish() }.into_raw().cast::<Versioned>();
    // SAFETY: the layout is the same, by the test above; it is alive until its deleter is called, once.
    unsafe {
        let (it, t) = (&*theirs, &(*theirs).tensor);
        assert_eq!((it.major, it.flags), (MAJOR, READ_ONLY));
        assert_eq!((t.data.cast_const().cast(), t.byte_offset), (VALUES.as_ptr(), 0));
        assert_eq!((t.code, t.bits, t.lanes, t.ndim), (1, 8, 1, 2));
        assert_eq!(std::slice::from_raw_parts(t.shape, 2), &[2, 3]);
        assert_eq!(std::slice::from_raw_parts(t.strides, 2), &[6, 2]);
        assert_eq!(DELETED.load(Ordering::Relaxed), 0);
        (it.deleter.expect("a deleter"))(theirs);
    }
    assert_eq!(DELETED.load(Ordering::Relaxed), 1);
}
