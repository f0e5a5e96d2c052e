//! The records and states of `handlers/neardup.h`, as bytes. A test compares sizes and offsets with the C++ side's.

use bytemuck::{Pod, Zeroable};
use warpmail::abi::wm_tensor;

pub(crate) const DIMS: usize = 256;
pub(crate) const BANDS: usize = 16;
pub(crate) const BUCKET: usize = 4;
pub(crate) const TENSORS: usize = 128;
pub(crate) const PART_BYTES: usize = 232;
/// Similarity 1.0.
pub(crate) const ONE: u32 = 10_000;

pub(crate) const LINE: u16 = 1;
pub(crate) const END: u16 = 2;
pub(crate) const RESULT: u16 = 5;

pub(crate) const ENCODER: u32 = 0;
pub(crate) const SIDECAR: u32 = 1;
pub(crate) const PLANNER: u32 = 2;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Line {
    pub(crate) line: u64,
    pub(crate) total: u32,
    pub(crate) offset: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct End {
    pub(crate) lines: u64,
    pub(crate) novel: u64,
    pub(crate) duplicates: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Features {
    vector: wm_tensor,
    line: u64,
    tensor: u32,
    reserved: u32,
    keys: [u32; BANDS],
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Tensor {
    tensor: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Match {
    pub(crate) line: u64,
    pub(crate) of: u64,
    pub(crate) similarity: u32,
    pub(crate) candidates: u32,
    pub(crate) duplicate: u32,
    pub(crate) reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct EncoderState {
    pub(crate) tensors: u64,
    line: u64,
    total: u32,
    received: u32,
    pub(crate) free_count: u32,
    carried: u32,
    carry: [u8; 8],
    pub(crate) free_list: [u32; TENSORS],
    bins: [i32; DIMS],
    minima: [u32; 48],
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct SidecarState {
    pub(crate) vectors: u64,
    pub(crate) lines: u64,
    pub(crate) buckets: u64,
    pub(crate) inserted: u64,
    pub(crate) capacity: u32,
    pub(crate) bucket_count: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct PlannerState {
    pub(crate) threshold: u32,
    pub(crate) emit_all: u32,
    pub(crate) novel: u64,
    pub(crate) duplicates: u64,
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    unsafe extern "C" {
        fn neardup_layout(count: *mut u64) -> *const u64;
    }

    #[test]
    fn bytes_are_those_of_the_c_header() {
        let ours = [
            size_of::<Line>(),
            size_of::<End>(),
            size_of::<Features>(),
            size_of::<Tensor>(),
            size_of::<Match>(),
            size_of::<EncoderState>(),
            size_of::<SidecarState>(),
            size_of::<PlannerState>(),
            offset_of!(Line, offset),
            offset_of!(End, duplicates),
            offset_of!(Features, tensor),
            offset_of!(Features, keys),
            offset_of!(Match, similarity),
            offset_of!(Match, duplicate),
            offset_of!(EncoderState, free_count),
            offset_of!(EncoderState, free_list),
            offset_of!(EncoderState, bins),
            offset_of!(EncoderState, minima),
            offset_of!(SidecarState, inserted),
            offset_of!(SidecarState, bucket_count),
            offset_of!(PlannerState, emit_all),
            DIMS,
            BANDS,
            TENSORS,
            PART_BYTES,
        ];
        let mut count = 0;
        // SAFETY: returns a static array of `count` words.
        let theirs = unsafe { std::slice::from_raw_parts(neardup_layout(&mut count), count as usize) };
        assert_eq!(theirs, ours.map(|n| n as u64));
    }
}
