//! The records and states of `handlers/neardup.h`, as bytes. A test compares every size, offset and number with C++'s.

use bytemuck::{Pod, Zeroable};
use warpmail::abi::wm_tensor;

pub(crate) const DIMS: usize = 256;
pub(crate) const BANDS: usize = 16;
pub(crate) const ROWS: usize = 5;
pub(crate) const BUCKET: usize = 4;
pub(crate) const TENSORS: usize = 128;
pub(crate) const PART_BYTES: usize = 232;
/// Similarity 1.0.
pub(crate) const ONE: u32 = 10_000;

pub(crate) const LINE: u16 = 1;
pub(crate) const END: u16 = 2;
pub(crate) const RESULT: u16 = 5;
pub(crate) const FILE: u16 = 7;
pub(crate) const BEGIN: u16 = 8;

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

/// A run begins: with what the runs before knew, or without.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Begin {
    pub(crate) first: u64,
    pub(crate) resumed: u32,
    pub(crate) capacity: u32,
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
    inverse: u32,
    keys: [u32; BANDS],
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Tensor {
    tensor: u32,
    reserved: u32,
}

/// What the sidecar found for a line, and the planner's verdict.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Match {
    pub(crate) line: u64,
    /// `u64::MAX`: none.
    pub(crate) of: u64,
    /// Cosine, in [`ONE`].
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
    grams: u32,
    carried: u32,
    gap: u32,
    pub(crate) free_count: u32,
    carry: [u8; 8],
    pub(crate) free_list: [u32; TENSORS],
    bins: [i32; DIMS],
    minima: [[u32; ROWS]; BANDS],
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Entry {
    line: u64,
    inverse: u32,
    reserved: u32,
    vector: [i8; DIMS],
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct SidecarState {
    pub(crate) entries: u64,
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

    /// The size of a struct and the offsets of its fields.
    macro_rules! layout {
        ($name:ident: $($field:ident)*) => { vec![size_of::<$name>(), $(offset_of!($name, $field)),*] };
    }

    #[test]
    fn bytes_are_those_of_the_c_header() {
        let ours = [
            layout!(Line: line total offset),
            layout!(Begin: first resumed capacity),
            layout!(End: lines novel duplicates),
            layout!(Features: vector line tensor inverse keys),
            layout!(Tensor: tensor reserved),
            layout!(Match: line of similarity candidates duplicate reserved),
            layout!(EncoderState: tensors line total received grams carried gap free_count carry free_list bins minima),
            layout!(Entry: line inverse reserved vector),
            layout!(SidecarState: entries buckets inserted capacity bucket_count),
            layout!(PlannerState: threshold emit_all novel duplicates),
            vec![DIMS, 127, BANDS, ROWS, BUCKET, ONE as usize, PART_BYTES, TENSORS],
            [LINE, END, RESULT, FILE, BEGIN].map(usize::from).to_vec(),
            [ENCODER, SIDECAR, PLANNER].map(|h| h as usize).to_vec(),
        ];
        let mut count = 0;
        // SAFETY: it writes `count` and returns a static array of that many words.
        let theirs = unsafe {
            let first = neardup_layout(&mut count);
            std::slice::from_raw_parts(first, count as usize)
        };
        assert_eq!(theirs, ours.concat().iter().map(|n| *n as u64).collect::<Vec<_>>());
    }
}
