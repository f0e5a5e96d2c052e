//! Memory for tensors. No call here waits for a kernel that stays.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Context, Stream, driver};
use crate::backend::Blocks;
use crate::error::{Error, Result};

/// Lets calls of this thread be made while the application captures a graph, without invalidating it.
pub(super) struct Relaxed(sys::CUstreamCaptureMode);

impl Relaxed {
    pub(super) fn new() -> Result<Self> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges this thread's mode only.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }
            .result()
            .map_err(driver("cuThreadExchangeStreamCaptureMode"))?;
        Ok(Relaxed(mode))
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: puts back what `new` found on this thread.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.0) };
    }
}

/// A memory pool of the driver's, with a stream of its own.
#[derive(Debug)]
pub(super) struct PoolBlocks {
    context: Arc<Context>,
    pool: sys::CUmemoryPool,
    stream: Stream,
}

// SAFETY: the driver's handles may be used from any thread; `&mut self` keeps the calls apart.
unsafe impl Send for PoolBlocks {}

impl PoolBlocks {
    pub(super) fn new(context: Arc<Context>, ordinal: i32) -> Result<Self> {
        let entered = context.enter()?;
        // SAFETY: plain data, for which zero bytes are a value: no handle types, no limit of the driver's.
        let mut props: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
        props.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        props.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        props.location.id = ordinal;
        let mut pool = std::ptr::null_mut();
        // SAFETY: `props` is filled in, `pool` can be written.
        unsafe { sys::cuMemPoolCreate(&mut pool, &props) }.result().map_err(driver("cuMemPoolCreate"))?;
        let stream = Stream::new().inspect_err(|_| {
            // SAFETY: just made, and nothing was taken from it.
            let _ = unsafe { sys::cuMemPoolDestroy(pool) };
        })?;
        drop(entered);
        let blocks = PoolBlocks { context, pool, stream };
        // What is free stays until `trim`: otherwise every wait for a stream could unmap memory.
        let mut threshold = u64::MAX;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: this attribute is a 64-bit number.
        unsafe { sys::cuMemPoolSetAttribute(blocks.pool, attribute, (&raw mut threshold).cast()) }
            .result()
            .map_err(driver("cuMemPoolSetAttribute"))?;
        Ok(blocks)
    }

    /// Waits for this pool's own stream, on which only takings and givings are.
    fn settle(&self) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream.0) }.map_err(driver("cuStreamSynchronize"))
    }
}

impl Blocks for PoolBlocks {
    fn alloc(&mut self, bytes: usize) -> Result<u64> {
        let _entered = self.context.enter()?;
        let _relaxed = Relaxed::new()?;
        let mut address = 0;
        // SAFETY: pool and stream live as long as `self`; the caller owns what comes back.
        unsafe { sys::cuMemAllocFromPoolAsync(&mut address, bytes.max(1), self.pool, self.stream.0) }
            .result()
            .map_err(driver("cuMemAllocFromPoolAsync"))?;
        self.settle()?; // so that any stream may use it
        Ok(address)
    }

    fn free(&mut self, address: u64, _bytes: usize) {
        if let (Ok(_entered), Ok(_relaxed)) = (self.context.enter(), Relaxed::new()) {
            // SAFETY: the owner gives back what `alloc` returned, once, and no reader is left.
            let _ = unsafe { result::free_async(address, self.stream.0) };
        }
    }

    fn trim(&mut self, keep: usize) {
        if let (Ok(_entered), Ok(_relaxed)) = (self.context.enter(), Relaxed::new()) {
            let _ = self.settle();
            // SAFETY: the pool lives as long as `self`; blocks in use are never touched.
            let _ = unsafe { sys::cuMemPoolTrimTo(self.pool, keep) };
        }
    }
}

impl Drop for PoolBlocks {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        let _ = self.settle();
        // SAFETY: both were made in `new`; the blocks were given back before.
        unsafe {
            let _ = result::stream::destroy(self.stream.0);
            let _ = sys::cuMemPoolDestroy(self.pool);
        }
    }
}

/// See [`Backend::owns`](crate::backend::Backend::owns).
pub(super) fn owns(context: &Context, ordinal: u32, address: u64) -> Result<()> {
    let refused = |why: String| Err(Error::refused(format!("a tensor at {address:#x}"), why));
    let _entered = context.enter()?;
    let attribute = |which, value: &mut u32| {
        // SAFETY: both attributes that are asked for are 32-bit numbers; any address may be asked about.
        unsafe { sys::cuPointerGetAttribute((value as *mut u32).cast(), which, address) }.result()
    };
    let (mut kind, mut owner) = (0, 0);
    if attribute(sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, &mut kind).is_err() {
        return refused("the address is no memory that CUDA knows: is the tensor on the CPU?".into());
    }
    if kind != sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as u32 {
        return refused("it is not device memory: move the tensor to the GPU".into());
    }
    attribute(sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, &mut owner)
        .map_err(driver("cuPointerGetAttribute"))?;
    if owner != ordinal {
        return refused(format!("it is on CUDA device {owner}: this is {ordinal}"));
    }
    Ok(())
}
