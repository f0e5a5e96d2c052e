//! Pools, tensors, and what becomes of an object with `__dlpack__` that is posted.

use std::sync::Mutex;

use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use warpmail::{DType, Lease, PoolOptions, TensorDescriptor, TensorSpec};

use crate::errors::{Refused, StateError, raise};
use crate::owners::Owner;
use crate::streams::{self, Order};
use crate::{dlpack, owners, to_python, wait};

/// Memory for tensors, and the leases on it. Any thread may use it.
#[pyclass(frozen, module = "warpmail")]
pub(crate) struct Pool {
    pub(crate) inner: warpmail::Pool,
}

impl Pool {
    pub(crate) fn new(device: &warpmail::Device, limit: u64, leases: u32, poison: bool) -> PyResult<Self> {
        Ok(Pool { inner: warpmail::Pool::new(device, PoolOptions { limit, leases, poison }).map_err(raise)? })
    }
}

/// Element types by name.
const NAMES: [(&str, DType); 12] = [
    ("uint8", DType::U8),
    ("int8", DType::new(0, 8)),
    ("int16", DType::new(0, 16)),
    ("int32", DType::I32),
    ("int64", DType::I64),
    ("uint64", DType::U64),
    ("float16", DType::F16),
    ("bfloat16", DType::BF16),
    ("float32", DType::F32),
    ("float64", DType::F64),
    ("bool", DType::BOOL),
    ("complex64", DType::new(5, 64)),
];

#[pymethods]
impl Pool {
    /// Memory for a tensor, row-major without gaps, with any content.
    #[pyo3(signature = (shape, dtype = "float32", *, label = "python"))]
    fn alloc(&self, py: Python<'_>, shape: Vec<i64>, dtype: &str, label: &str) -> PyResult<Tensor> {
        let known = NAMES.iter().find(|(name, _)| *name == dtype);
        let Some((_, dtype)) = known else {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            return Err(Refused::new_err(format!("dtype {dtype:?}: must be one of {}", names.join(", "))));
        };
        let tensor = self.inner.alloc(label, &TensorSpec::new(*dtype, &shape)).map_err(raise);
        owners::release(py);
        Ok(Tensor::new(*tensor.as_ref().map_err(|e| e.clone_ref(py))?.descriptor(), Held::Tensor(tensor?)))
    }

    /// Collects what readers have released, and gives adopted tensors back to their owners. How many blocks came free.
    fn collect(&self, py: Python<'_>) -> usize {
        let freed = py.allow_threads(|| self.inner.collect());
        owners::release(py);
        freed
    }

    /// What it has, and what became of its leases, as a dict.
    fn stats(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(to_python(py, &self.inner.stats())?.unbind())
    }

    /// Who holds what, as a list of dicts.
    fn holders(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(to_python(py, &self.inner.holders())?.unbind())
    }
}

enum Held {
    Tensor(warpmail::Tensor),
    Lease(Lease),
}

/// Memory of a pool, by pointer. Gives it back when it is dropped or released.
#[pyclass(frozen, module = "warpmail")]
pub(crate) struct Tensor {
    descriptor: TensorDescriptor,
    held: Mutex<Option<Held>>,
}

impl Tensor {
    fn new(descriptor: TensorDescriptor, held: Held) -> Self {
        Tensor { descriptor, held: Mutex::new(Some(held)) }
    }

    pub(crate) fn taken(lease: Lease) -> Self {
        Tensor::new(*lease.descriptor(), Held::Lease(lease))
    }

    fn is_on_gpu(&self) -> bool {
        self.descriptor.device().0 != warpmail::abi::WM_DEVICE_CPU
    }

    /// Another lease on the same memory, for one reader.
    fn lease(&self) -> PyResult<warpmail::Result<Lease>> {
        match &*wait::own(&self.held, "tensor")? {
            Some(Held::Tensor(tensor)) => Ok(tensor.lease(1)),
            Some(Held::Lease(lease)) => Ok(lease.tensor().and_then(|tensor| tensor.lease(1))),
            None => Err(StateError::new_err("the tensor has been released")),
        }
    }
}

#[pymethods]
impl Tensor {
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.descriptor.shape())
    }

    /// In elements.
    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.descriptor.strides())
    }

    #[getter]
    fn dtype(&self) -> String {
        let d = self.descriptor.dtype();
        let known = NAMES.iter().find(|(_, dtype)| *dtype == d);
        known.map_or_else(|| format!("{}:{}x{}", d.code, d.bits, d.lanes), |(name, _)| (*name).into())
    }

    /// Of the first element.
    #[getter]
    fn address(&self) -> u64 {
        self.descriptor.data() + self.descriptor.byte_offset()
    }

    #[getter]
    fn read_only(&self) -> bool {
        self.descriptor.is_read_only()
    }

    /// Gives the memory back now; what was made of it with `__dlpack__` keeps it on.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let held = wait::own(&self.held, "tensor")?.take();
        let outcome = match held {
            None => return Err(StateError::new_err("the tensor has been released before")),
            Some(Held::Lease(lease)) => lease.release().map_err(raise),
            Some(Held::Tensor(_)) => Ok(()),
        };
        owners::release(py);
        outcome
    }

    /// What is enqueued on `stream` from now on comes after the work that has still to write the tensor.
    fn wait_on(&self, stream: &Bound<'_, PyAny>) -> PyResult<()> {
        let order = streams::order(Some(stream), self.is_on_gpu())?;
        match (self.lease()?.map_err(raise)?, order) {
            // SAFETY: the caller's word that it is a stream of the device.
            (lease, Order::Of(stream)) => unsafe { lease.wait_on(stream) }.map_err(raise),
            _ => Ok(()),
        }
    }

    /// Waits, up to `timeout` seconds, until the work is done that has still to write the tensor.
    #[pyo3(signature = (*, timeout = 10.0))]
    fn wait(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let lease = self.lease()?.map_err(raise)?;
        wait::in_slices(py, wait::bound(timeout)?, |slice| lease.wait_ready(slice))
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        if wait::own(&self.held, "tensor")?.is_some() { self.release(py) } else { Ok(()) }
    }

    fn __dlpack_device__(&self) -> (u32, u32) {
        self.descriptor.device()
    }

    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__(
        &self,
        py: Python<'_>,
        stream: Option<i64>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(u32, u32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        let device = self.descriptor.device();
        if copy == Some(true) || dl_device.is_some_and(|d| d != device) {
            return Err(PyBufferError::new_err("tensors go by pointer: no copy is made, and none to another device"));
        }
        let stream = streams::of_consumer(device.0, stream)?;
        let lease = self.lease()?.map_err(|e| dlpack::as_buffer_error(py, e))?;
        if let Some(stream) = stream {
            // SAFETY: DLPack's `stream` is one of the consumer's, on the tensor's device.
            unsafe { lease.wait_on(stream) }.map_err(|e| dlpack::as_buffer_error(py, e))?;
        }
        dlpack::export(py, lease, stream, max_version.is_some_and(|(major, _)| major >= 1))
    }

    fn __repr__(&self) -> String {
        format!("<warpmail.Tensor {} {:?} at {:#x}>", self.dtype(), self.descriptor.shape(), self.address())
    }
}

/// What PyTorch's tensors may be that a pointer cannot say.
fn check_flags(object: &Bound<'_, PyAny>) -> PyResult<()> {
    let is = |name: &str| -> PyResult<bool> {
        let Ok(value) = object.getattr(name) else { return Ok(false) };
        if value.is_callable() { value.call0()?.is_truthy() } else { value.is_truthy() }
    };
    let rules = [
        ("requires_grad", "a tensor that requires grad", "post its detach()"),
        ("is_sparse", "a sparse tensor", "post its parts, or its to_dense()"),
        ("is_sparse_csr", "a sparse tensor", "post its parts, or its to_dense()"),
        ("is_quantized", "a quantised tensor", "post its int_repr()"),
        ("is_nested", "a nested tensor", "post its unbind()"),
        ("is_mkldnn", "a tensor in MKL-DNN's layout", "post its to_dense()"),
        ("is_meta", "a meta tensor, which has no memory", "post one that has"),
        ("is_conj", "a tensor with the conjugate bit", "post its resolve_conj()"),
        ("is_neg", "a tensor with the negative bit", "post its resolve_neg()"),
    ];
    for (name, what, instead) in rules {
        if is(name)? {
            return Err(Refused::new_err(format!("{what}: a pointer cannot say so; {instead}")));
        }
    }
    Ok(())
}

/// The lease for one reader to post for an object: a `Tensor`, or anything with `__dlpack__`.
pub(crate) fn lease_of(
    object: &Bound<'_, PyAny>,
    pool: Option<&warpmail::Pool>,
    stream: Option<&Bound<'_, PyAny>>,
) -> PyResult<Lease> {
    if let Ok(tensor) = object.downcast::<Tensor>() {
        let tensor = tensor.get();
        let order = streams::order(stream, tensor.is_on_gpu())?;
        return in_order(tensor.lease()?.map_err(raise)?, order);
    }
    if !object.hasattr("__dlpack__")? {
        let kind = object.get_type().name()?;
        return Err(PyTypeError::new_err(format!("{kind} is neither bytes nor a tensor (an object with __dlpack__)")));
    }
    let pool = pool.ok_or_else(|| StateError::new_err("the graph has no pool for tensors: call Builder.pool first"))?;
    check_flags(object)?;
    let ours = pool.device().info().ordinal.map_or((1, 0), |ordinal| (2, ordinal as i32));
    let device = object.call_method0("__dlpack_device__").and_then(|pair| pair.extract());
    let theirs: (i32, i32) = device.map_err(|cause| not_given(object.py(), cause))?;
    refuse_device(theirs, ours)?;
    let on_gpu = ours.0 != 1;
    // What the producer is told, and whose order the tensor is then in. Nothing said: DLPack's own way, in which the
    // producer makes a stream of ours wait for whatever it has enqueued.
    let (told, order) = match (streams::order(stream, on_gpu)?, on_gpu) {
        (Order::Unsaid, true) => {
            let intake = pool.intake_stream().map_err(raise)?;
            (Some(intake as i64), Order::Of(intake))
        }
        (order, true) => (Some(-1), order),
        (order, false) => (None, order),
    };
    let capsule = capsule_of(object, told)?;
    let imported = dlpack::import(&capsule)?;
    refuse_device(imported.device, ours)?;
    let owner = imported.owner;
    // SAFETY: the capsule's struct says that this memory is there until its deleter is called, which `owner` does.
    let tensor = unsafe { pool.adopt("dlpack", imported.address, &imported.spec, move || drop(owner)) };
    owners::release(object.py());
    in_order(tensor.and_then(|tensor| tensor.lease(1)).map_err(raise)?, order)
}

/// The lease, in the order of the stream that has still to write the tensor.
fn in_order(lease: Lease, order: Order) -> PyResult<Lease> {
    if let Order::Of(stream) = order {
        // SAFETY: the caller's word that it is a stream of the device, or the device's own.
        unsafe { lease.written_on(stream) }.map_err(raise)?;
    }
    Ok(lease)
}

/// Memory of a framework's that tensors are to be delivered to: an object with `__dlpack__`, gapless and not read-only. Where it
/// lies, what it holds, and what keeps it.
pub(crate) fn place_of(object: &Bound<'_, PyAny>, ordinal: Option<u32>) -> PyResult<(u64, TensorSpec, Owner)> {
    check_flags(object)?;
    let ours = ordinal.map_or((1, 0), |ordinal| (2, ordinal as i32));
    let capsule = capsule_of(object, ordinal.map(|_| -1))?; // whoever still writes there does so before the start
    let imported = dlpack::import(&capsule)?;
    refuse_device(imported.device, ours)?;
    let mut spec = imported.spec;
    if spec.read_only {
        return Err(Refused::new_err("a read-only tensor: what is delivered is written there"));
    }
    let address = imported.address + std::mem::take(&mut spec.byte_offset);
    Ok((address, spec, imported.owner))
}

fn refuse_device(theirs: (i32, i32), ours: (i32, i32)) -> PyResult<()> {
    if theirs == ours {
        return Ok(());
    }
    let name = |(kind, id): (i32, i32)| match kind {
        1 => "host memory".to_string(),
        2 => format!("CUDA device {id}"),
        3 => "pinned host memory".to_string(),
        10 => format!("ROCm device {id}"),
        13 => "CUDA managed memory".to_string(),
        kind => format!("device type {kind}, number {id}"),
    };
    Err(Refused::new_err(format!("a tensor in {}: the graph is in {}", name(theirs), name(ours))))
}

/// Asks for version 1, then, of producers that do not know the question, for what they have.
fn capsule_of<'py>(object: &Bound<'py, PyAny>, stream: Option<i64>) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    let options = PyDict::new(py);
    if let Some(stream) = stream {
        options.set_item("stream", stream)?;
    }
    options.set_item("max_version", (1, 1))?;
    let answer = match object.call_method("__dlpack__", (), Some(&options)) {
        Err(e) if e.is_instance_of::<PyTypeError>(py) => {
            options.del_item("max_version")?;
            object.call_method("__dlpack__", (), Some(&options))
        }
        other => other,
    };
    answer.map_err(|cause| not_given(py, cause))
}

/// What the producer raised instead of a tensor.
fn not_given(py: Python<'_>, cause: PyErr) -> PyErr {
    let error = Refused::new_err(format!("its producer does not give the tensor: {}", cause.value(py)));
    error.set_cause(py, Some(cause));
    error
}
