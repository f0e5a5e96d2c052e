//! Pools.

use std::ffi::{c_char, c_void};
use std::time::Duration;

use super::args::{self, Options, Out, bound};
use super::border::enter;
use super::device::destroy;
use super::fault::{Fault, OK, Result};
use super::handle::Object;
use super::sys::{
    self, warpmail_builder, warpmail_device, warpmail_lease, warpmail_pool, warpmail_pool_options, warpmail_pool_stats,
    warpmail_receiver, warpmail_released_fn, warpmail_runtime, warpmail_sender, warpmail_tensor,
    warpmail_tensor_options,
};
use super::{table, version};
use crate::abi::{self, wm_leases, wm_tensor};
use crate::tensor::{DType, Pool, PoolOptions, TensorSpec};

// SAFETY: `repr(C)`: the size and integers.
unsafe impl Options for warpmail_pool_options {
    const NAME: &'static str = "warpmail_pool_options";
    fn defaults() -> Self {
        Self::default()
    }
}

// SAFETY: `repr(C)`: the size, integers and pointers.
unsafe impl Options for warpmail_tensor_options {
    const NAME: &'static str = "warpmail_tensor_options";
    fn defaults() -> Self {
        Self::default()
    }
}

/// # Safety
/// As [`args::options`]; `shape` and `strides` are null, or have `ndim` numbers.
pub(super) unsafe fn spec_of(options: *const warpmail_tensor_options) -> Result<TensorSpec> {
    // SAFETY: the caller's word.
    let o = unsafe { args::options(options) }?;
    if o.ndim > abi::WM_MAX_DIMS {
        return Err(Fault::new(sys::WARPMAIL_REFUSED, format!("a tensor of {} dimensions: at most 8", o.ndim)));
    }
    if o.flags & !abi::WM_TENSOR_READ_ONLY != 0 {
        return Err(Fault::argument(format!("flags {:#x}: WM_TENSOR_READ_ONLY or 0", o.flags)));
    }
    let numbers = |from: *const i64, name| -> Result<Vec<i64>> {
        // SAFETY: the caller's word: `ndim` of them.
        let bytes = unsafe { args::bytes(from.cast(), 8 * o.ndim as usize, name) }?;
        Ok(bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect())
    };
    let strides = if o.strides.is_null() { None } else { Some(numbers(o.strides, "strides")?) };
    Ok(TensorSpec {
        dtype: DType { code: o.dtype_code, bits: o.dtype_bits, lanes: o.dtype_lanes },
        shape: numbers(o.shape, "shape")?,
        strides,
        byte_offset: o.byte_offset,
        read_only: o.flags & abi::WM_TENSOR_READ_ONLY != 0,
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_pool_new(
    device: *mut warpmail_device,
    options: *const warpmail_pool_options,
    out: *mut *mut warpmail_pool,
) -> i32 {
    enter(|| {
        let device = table::share(device)?;
        // SAFETY: as the header asks of the caller.
        let (o, out) = unsafe { (args::options(options)?, Out::new(out, "out")?) };
        if o.poison > 1 || o.reserved != 0 {
            return Err(Fault::argument(format!("poison {} is 0 or 1, and reserved {} is 0", o.poison, o.reserved)));
        }
        let options = PoolOptions { limit: o.limit_bytes, leases: o.leases, poison: o.poison == 1 };
        out.set(table::insert(Object::Pool(Pool::new(&device, options)?))?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_pool_alloc(
    pool: *mut warpmail_pool,
    label: *const c_char,
    options: *const warpmail_tensor_options,
    bound_ns: u64,
    out: *mut *mut warpmail_tensor,
) -> i32 {
    enter(|| {
        let pool = table::share(pool)?;
        // SAFETY: as the header asks of the caller.
        let (label, spec, out) = unsafe { (args::string(label, "label")?, spec_of(options)?, Out::new(out, "out")?) };
        let tensor = pool.alloc_within(label, &spec, bound(bound_ns)?)?;
        out.set(table::insert(Object::Tensor(Box::new(tensor)))?);
        Ok(OK)
    })
}

/// What the caller's callback gets back: C says that it may be called by another thread.
struct User(*mut c_void);
// SAFETY: the header says that any call with a pool, on any thread, may call the callback with it.
unsafe impl Send for User {}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_pool_adopt(
    pool: *mut warpmail_pool,
    label: *const c_char,
    address: u64,
    options: *const warpmail_tensor_options,
    released: warpmail_released_fn,
    user: *mut c_void,
    out: *mut *mut warpmail_tensor,
) -> i32 {
    enter(|| {
        let pool = table::share(pool)?;
        // SAFETY: as the header asks of the caller.
        let (label, spec, out) = unsafe { (args::string(label, "label")?, spec_of(options)?, Out::new(out, "out")?) };
        let user = User(user);
        let tell = move || {
            let user = user;
            if let Some(released) = released {
                // SAFETY: the callback and its pointer are the caller's, who asked to be told once.
                unsafe { released(user.0) }
            }
        };
        // SAFETY: as the header asks of the caller.
        let tensor = unsafe { pool.adopt(label, address, &spec, tell) }?;
        out.set(table::insert(Object::Tensor(Box::new(tensor)))?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_pool_collect(pool: *mut warpmail_pool, freed: *mut u64) -> i32 {
    enter(|| {
        let pool = table::share(pool)?;
        // SAFETY: as the header asks of the caller.
        let out = (!freed.is_null()).then(|| unsafe { Out::new(freed, "freed") }).transpose()?;
        let freed = pool.collect() as u64;
        if let Some(out) = out {
            out.set(freed);
        }
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_pool_trim(pool: *mut warpmail_pool) -> i32 {
    enter(|| {
        table::share(pool)?.trim();
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_pool_leases(pool: *mut warpmail_pool, out: *mut wm_leases) -> i32 {
    enter(|| {
        // SAFETY: as the header asks of the caller.
        unsafe { Out::new(out, "out") }?.set(table::share(pool)?.leases());
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_pool_claim(
    pool: *mut warpmail_pool,
    descriptor: *const wm_tensor,
    out: *mut *mut warpmail_lease,
) -> i32 {
    enter(|| {
        let pool = table::share(pool)?;
        if descriptor.is_null() {
            return Err(Fault::argument("descriptor is null"));
        }
        // SAFETY: as the header asks of the caller; any bytes are a value, and they may stand anywhere.
        let (raw, out) = unsafe { (descriptor.read_unaligned(), Out::new(out, "out")?) };
        out.set(table::insert(Object::Lease(Box::new(pool.claim(raw)?)))?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_pool_stats_get(
    pool: *mut warpmail_pool,
    stats: *mut warpmail_pool_stats,
) -> i32 {
    enter(|| {
        let s = table::share(pool)?.stats();
        let value = warpmail_pool_stats {
            struct_size: 0,
            reserved: 0,
            limit: s.limit,
            used: s.used,
            peak: s.peak,
            kept: s.kept,
            adopted: s.adopted,
            open: s.open,
            opened: s.opened,
            closed: s.closed,
            released_twice: s.released_twice,
            stale: s.stale,
            refused: s.refused,
        };
        // SAFETY: as the header asks of the caller.
        unsafe { args::give_struct(value, stats, "warpmail_pool_stats") }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_pool_holders_json(
    pool: *mut warpmail_pool,
    text: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    enter(|| {
        let json = version::json(&table::share(pool)?.holders())?;
        // SAFETY: as the header asks of the caller.
        unsafe { args::give_text(&json, text, size, needed) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_pool_destroy(pool: *mut warpmail_pool) -> i32 {
    enter(|| destroy(pool))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_builder_pool(builder: *mut warpmail_builder, pool: *mut warpmail_pool) -> i32 {
    enter(|| {
        let mut builder = table::hold(builder)?;
        builder.pool(&table::share(pool)?)?;
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_sender_attach_pool(
    sender: *mut warpmail_sender,
    pool: *mut warpmail_pool,
) -> i32 {
    enter(|| {
        let mut sender = table::hold(sender)?;
        sender.attach_pool(&table::share(pool)?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_receiver_attach_pool(
    receiver: *mut warpmail_receiver,
    pool: *mut warpmail_pool,
) -> i32 {
    enter(|| {
        let mut receiver = table::hold(receiver)?;
        receiver.attach_pool(&table::share(pool)?);
        Ok(OK)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_recall_tensors(
    runtime: *mut warpmail_runtime,
    leases: *mut u64,
) -> i32 {
    enter(|| {
        let runtime = table::share(runtime)?;
        // SAFETY: as the header asks of the caller.
        let out = (!leases.is_null()).then(|| unsafe { Out::new(leases, "leases") }).transpose()?;
        let recalled = runtime.change(Duration::ZERO, |r, _| Ok(r.recall_tensors()?))? as u64;
        if let Some(out) = out {
            out.set(recalled);
        }
        Ok(OK)
    })
}
