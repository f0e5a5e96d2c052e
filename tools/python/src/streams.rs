//! Streams as Python names them: by the rules of DLPack, or as objects that frameworks give.

use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use warpmail::abi;

use crate::errors::Refused;

/// The legacy default stream; the driver's own name of it too, as 2 is that of the calling thread's.
const LEGACY: u64 = 1;

/// In which order something is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing was said.
    Unsaid,
    /// None: the caller sees to it.
    Not,
    /// That of a stream, as the driver names it.
    Of(u64),
}

/// The handle of a stream: of an object with `cuda_stream`, or the number itself.
pub(crate) fn handle(stream: &Bound<'_, PyAny>) -> PyResult<u64> {
    let raw = stream.getattr("cuda_stream").unwrap_or_else(|_| stream.clone());
    raw.extract().map_err(|_| PyTypeError::new_err("stream: pass a torch.cuda.Stream, or a CUstream as a number"))
}

/// The stream that writes what is posted, or reads what was taken. `on_gpu`: where the memory is.
pub(crate) fn order(stream: Option<&Bound<'_, PyAny>>, on_gpu: bool) -> PyResult<Order> {
    let Some(stream) = stream.filter(|stream| !stream.is_none()) else { return Ok(Order::Unsaid) };
    if !on_gpu {
        return Err(Refused::new_err("a stream for a tensor in host memory: leave it out"));
    }
    if stream.hasattr("cuda_stream")? {
        // A framework's default stream is 0 there, and no doubt which one is meant.
        let raw = handle(stream)?;
        return Ok(Order::Of(if raw == 0 { LEGACY } else { raw }));
    }
    let number = stream.extract::<i64>().map_err(|_| {
        PyTypeError::new_err("stream: pass a torch.cuda.Stream, or a number as DLPack has them: -1, 1, 2 or a handle")
    })?;
    of_number(number).map_err(Refused::new_err)
}

fn of_number(number: i64) -> Result<Order, String> {
    match number {
        -1 => Ok(Order::Not),
        0 => Err("stream 0 is ambiguous: pass 1 (legacy default) or 2 (per thread)".into()),
        n if n > 0 => Ok(Order::Of(n as u64)),
        n => Err(format!("stream {n}: must be -1 (no order), 1 (legacy default), 2 (per thread) or a handle")),
    }
}

/// The stream that a consumer names in `__dlpack__`; None: no order is asked for.
pub(crate) fn of_consumer(device_type: u32, stream: Option<i64>) -> PyResult<Option<u64>> {
    match (device_type, stream) {
        (abi::WM_DEVICE_CPU, None) => Ok(None),
        (abi::WM_DEVICE_CPU, Some(s)) => {
            Err(PyBufferError::new_err(format!("stream {s} for a tensor in host memory: must be None")))
        }
        (_, None) => Ok(Some(LEGACY)),
        (_, Some(number)) => match of_number(number).map_err(PyBufferError::new_err)? {
            Order::Of(stream) => Ok(Some(stream)),
            _ => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_mean_what_dlpack_says() {
        assert_eq!(of_number(-1), Ok(Order::Not));
        assert_eq!((of_number(1), of_number(2)), (Ok(Order::Of(1)), Ok(Order::Of(2))));
        assert_eq!(of_number(0x7f00_1234_5670), Ok(Order::Of(0x7f00_1234_5670)));
        for bad in [0, -2, -77, i64::MIN] {
            assert!(of_number(bad).is_err(), "{bad}");
        }
        let cuda = |stream| of_consumer(abi::WM_DEVICE_CUDA, stream).ok();
        assert_eq!((cuda(None), cuda(Some(-1)), cuda(Some(2))), (Some(Some(1)), Some(None), Some(Some(2))));
        assert_eq!(of_consumer(abi::WM_DEVICE_CPU, None).ok(), Some(None));
    }
}
