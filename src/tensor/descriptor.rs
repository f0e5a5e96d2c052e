//! What a tensor is: element type, shape, strides, where it lies.

use crate::abi;
use crate::error::{Error, Result};

/// Element type, as DLPack has it: `code` is a `DLDataTypeCode`, an element has `lanes` numbers of `bits` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DType {
    /// `DLDataTypeCode`.
    pub code: u8,
    /// Bits of one number: a multiple of 8.
    pub bits: u8,
    /// Numbers in an element, usually 1.
    pub lanes: u16,
}

impl DType {
    /// 8-bit unsigned integer.
    pub const U8: DType = DType::new(1, 8);
    /// 32-bit signed integer.
    pub const I32: DType = DType::new(0, 32);
    /// 64-bit signed integer.
    pub const I64: DType = DType::new(0, 64);
    /// 64-bit unsigned integer.
    pub const U64: DType = DType::new(1, 64);
    /// 16-bit float.
    pub const F16: DType = DType::new(2, 16);
    /// bfloat16.
    pub const BF16: DType = DType::new(4, 16);
    /// 32-bit float.
    pub const F32: DType = DType::new(2, 32);
    /// 64-bit float.
    pub const F64: DType = DType::new(2, 64);
    /// Boolean, a byte.
    pub const BOOL: DType = DType::new(6, 8);

    /// A type of one lane.
    pub const fn new(code: u8, bits: u8) -> Self {
        DType { code, bits, lanes: 1 }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        u64::from(self.bits) / 8 * u64::from(self.lanes)
    }

    fn check(self) -> Result<()> {
        let refused = |why: &str| Err(Error::refused(format!("dtype {self:?}"), why));
        if self.code == 3 {
            return refused("opaque handles mean nothing outside the process that made them");
        }
        if self.lanes == 0 || self.bits == 0 || !self.bits.is_multiple_of(8) {
            return refused("an element must have whole bytes: packed types below 8 bits are not passed");
        }
        Ok(())
    }
}

/// What to allocate, or how memory that exists is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Element type.
    pub dtype: DType,
    /// Elements in each dimension: at most 8 dimensions, none of them 0. No dimension at all is a scalar.
    pub shape: Vec<i64>,
    /// Distance of neighbours in each dimension, in elements, not negative; none: row-major without gaps.
    pub strides: Option<Vec<i64>>,
    /// Bytes from the memory's address to the first element.
    pub byte_offset: u64,
    /// Readers must not write.
    pub read_only: bool,
}

impl TensorSpec {
    /// Row-major without gaps.
    pub fn new(dtype: DType, shape: &[i64]) -> Self {
        TensorSpec { dtype, shape: shape.to_vec(), strides: None, byte_offset: 0, read_only: false }
    }

    /// Sets the strides, in elements.
    pub fn with_strides(mut self, strides: &[i64]) -> Self {
        self.strides = Some(strides.to_vec());
        self
    }

    /// The descriptor without address and lease, and the bytes from the address to the end of the last element; or the
    /// rule that is broken.
    pub(crate) fn check(&self) -> Result<(abi::wm_tensor, u64)> {
        self.dtype.check()?;
        let refused = |what: String, why: &str| Err(Error::refused(what, why));
        if self.shape.len() > abi::WM_MAX_DIMS as usize {
            return refused(format!("a tensor of {} dimensions", self.shape.len()), "a descriptor has room for 8");
        }
        if let Some(d) = self.shape.iter().find(|d| **d <= 0) {
            return match d {
                0 => refused(format!("shape {:?}", self.shape), "a tensor without elements has no memory to lease"),
                _ => refused(format!("shape {:?}", self.shape), "a dimension cannot be negative"),
            };
        }
        let elements = self.shape.iter().try_fold(self.dtype.bytes(), |n, d| n.checked_mul(*d as u64));
        if elements.is_none_or(|bytes| bytes > i64::MAX as u64) {
            return refused(format!("shape {:?}", self.shape), "more elements than can be counted");
        }
        let rows = match &self.strides {
            Some(strides) => strides.clone(),
            None => match row_major(&self.shape) {
                Some(strides) => strides,
                None => return refused(format!("shape {:?}", self.shape), "more elements than can be counted"),
            },
        };
        if rows.len() != self.shape.len() {
            return refused(format!("{} strides for {} dimensions", rows.len(), self.shape.len()), "one for each");
        }
        if rows.iter().any(|s| *s < 0) {
            return refused(
                format!("strides {rows:?}"),
                "negative strides are not passed: make a copy that runs forward",
            );
        }
        let last = self.shape.iter().zip(&rows).try_fold(0i64, |sum, (d, s)| sum.checked_add((d - 1).checked_mul(*s)?));
        let bytes = last
            .and_then(|last| u64::try_from(last).ok()?.checked_add(1)?.checked_mul(self.dtype.bytes()))
            .and_then(|bytes| bytes.checked_add(self.byte_offset))
            .filter(|bytes| *bytes <= i64::MAX as u64);
        let Some(bytes) = bytes else {
            return refused(
                format!("shape {:?}, strides {rows:?}", self.shape),
                "more bytes than an address can reach",
            );
        };
        let mut t = abi::wm_tensor { byte_offset: self.byte_offset, ..Default::default() };
        t.shape[..rows.len()].copy_from_slice(&self.shape);
        t.strides[..rows.len()].copy_from_slice(&rows);
        (t.dtype_code, t.dtype_bits, t.dtype_lanes) = (self.dtype.code, self.dtype.bits, self.dtype.lanes);
        t.ndim = rows.len() as u8;
        t.flags = if self.read_only { abi::WM_TENSOR_READ_ONLY as u8 } else { 0 };
        Ok((t, bytes))
    }
}

/// Strides without gaps; none if they overflow.
fn row_major(shape: &[i64]) -> Option<Vec<i64>> {
    let mut strides = vec![1i64; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].checked_mul(shape[i])?;
    }
    Some(strides)
}

/// A tensor as it travels in a record: see `wm_tensor` in `abi.h`. Checked when it was made.
#[derive(Clone, Copy)]
pub struct TensorDescriptor(pub(crate) abi::wm_tensor);

impl PartialEq for TensorDescriptor {
    fn eq(&self, other: &Self) -> bool {
        bytemuck::bytes_of(&self.0) == bytemuck::bytes_of(&other.0)
    }
}

impl Eq for TensorDescriptor {}

impl std::fmt::Debug for TensorDescriptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut d = f.debug_struct("TensorDescriptor");
        d.field("data", &format_args!("{:#x}", self.0.data)).field("byte_offset", &self.0.byte_offset);
        d.field("dtype", &self.dtype()).field("shape", &self.shape()).field("strides", &self.strides());
        d.field("lease", &self.0.lease).field("epoch", &self.0.epoch).finish()
    }
}

impl TensorDescriptor {
    /// The bytes, for records and kernels.
    pub fn raw(&self) -> abi::wm_tensor {
        self.0
    }

    /// Address of the memory on the device; the first element is [`byte_offset`](Self::byte_offset) bytes behind it.
    pub fn data(&self) -> u64 {
        self.0.data
    }

    /// Bytes from [`data`](Self::data) to the first element.
    pub fn byte_offset(&self) -> u64 {
        self.0.byte_offset
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        DType { code: self.0.dtype_code, bits: self.0.dtype_bits, lanes: self.0.dtype_lanes }
    }

    /// Elements in each dimension.
    pub fn shape(&self) -> &[i64] {
        &self.0.shape[..usize::from(self.0.ndim).min(self.0.shape.len())]
    }

    /// Distance of neighbours in each dimension, in elements.
    pub fn strides(&self) -> &[i64] {
        &self.0.strides[..usize::from(self.0.ndim).min(self.0.strides.len())]
    }

    /// Whether readers must not write.
    pub fn is_read_only(&self) -> bool {
        u32::from(self.0.flags) & abi::WM_TENSOR_READ_ONLY != 0
    }

    /// `DLDeviceType` and ordinal.
    pub fn device(&self) -> (u32, u32) {
        (self.0.device_type, self.0.device_id)
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape().iter().map(|d| *d as u64).product()
    }

    /// Bytes of all elements, gaps not counted.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype().bytes()
    }

    /// Whether the elements lie row-major without gaps. Strides of dimensions of one element do not matter.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape().iter().zip(self.strides()).rev().all(|(&d, &s)| {
            let fits = d == 1 || s == expected;
            expected *= d;
            fits
        })
    }

    /// The spec of the same tensor, for checks and reinterpretation.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec {
            dtype: self.dtype(),
            shape: self.shape().to_vec(),
            strides: Some(self.strides().to_vec()),
            byte_offset: self.0.byte_offset,
            read_only: self.is_read_only(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spec: &TensorSpec, word: &str) {
        let e = spec.check().map(|(_, bytes)| bytes).expect_err("refused").to_string();
        assert!(e.contains(word), "{e}");
    }

    #[test]
    fn rules_are_told() {
        let f32s = |shape: &[i64]| TensorSpec::new(DType::F32, shape);
        refused(&f32s(&[1; 9]), "9 dimensions");
        refused(&f32s(&[2, 0]), "without elements");
        refused(&f32s(&[2, -1]), "negative");
        refused(&f32s(&[i64::MAX, 2, 2]), "counted");
        refused(&f32s(&[i64::MAX / 2]), "counted");
        refused(&f32s(&[2, 2]).with_strides(&[2]), "1 strides");
        refused(&f32s(&[2, 2]).with_strides(&[-2, 1]), "forward");
        refused(&f32s(&[3, 3]).with_strides(&[i64::MAX, 1]), "reach");
        refused(&TensorSpec::new(DType::new(0, 4), &[2]), "packed");
        refused(&TensorSpec::new(DType::new(3, 64), &[2]), "opaque");
        refused(&TensorSpec::new(DType { lanes: 0, ..DType::F32 }, &[2]), "whole bytes");
        refused(&TensorSpec { byte_offset: u64::MAX, ..f32s(&[2]) }, "reach");
    }

    #[test]
    fn sizes_and_strides() {
        let (t, bytes) = TensorSpec::new(DType::BF16, &[2, 3, 4]).check().expect("fine");
        let d = TensorDescriptor(t);
        assert_eq!((bytes, d.bytes(), d.strides()), (48, 48, &[12, 4, 1][..]));
        assert!(d.is_contiguous());
        let turned = TensorSpec { byte_offset: 16, ..TensorSpec::new(DType::F32, &[3, 2]).with_strides(&[1, 100]) };
        let (t, bytes) = turned.check().expect("fine");
        assert_eq!((bytes, TensorDescriptor(t).is_contiguous()), (16 + 103 * 4, false));
        assert_eq!(TensorSpec::new(DType::I64, &[]).check().expect("a scalar").1, 8);
        assert!(
            TensorDescriptor(TensorSpec::new(DType::U8, &[1, 5]).with_strides(&[77, 1]).check().expect("fine").0)
                .is_contiguous()
        );
    }
}
