//! Stream modules: their buffers as arrays, and what their bodies may be.

use pyo3::exceptions::{PyAttributeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use warpmail::{Body, Error, Push, Rule, StreamOptions};

use crate::errors::Refused;
use crate::runtime::Runtime;
use crate::{streams, wait};

pub(crate) fn rule_of(rule: &str) -> PyResult<Rule> {
    match rule {
        "any" => Ok(Rule::Any),
        "all" => Ok(Rule::All),
        _ => Err(Refused::new_err(format!("rule {rule:?}: must be 'any' or 'all'"))),
    }
}

pub(crate) fn options(
    rule: &str,
    priority: u8,
    spin: Option<f64>,
    ahead: u32,
    pushes: Vec<(u32, u16)>,
    stream: Option<&Bound<'_, PyAny>>,
) -> PyResult<StreamOptions> {
    Ok(StreamOptions {
        rule: rule_of(rule)?,
        priority,
        spin: spin.map(wait::bound).transpose()?,
        ahead,
        outputs: pushes.into_iter().map(|(len, msg_type)| Push::Record { len, msg_type }).collect(),
        stream: stream.map(streams::handle).transpose()?,
    })
}

/// The buffer of one end of a stream module: where each step finds its record, or leaves it. An array of bytes for
/// `torch.as_tensor` (on a GPU) and `numpy.asarray` (on the twin), always at the same address.
#[pyclass(frozen, module = "warpmail")]
pub(crate) struct StepBuffer {
    address: u64,
    bytes: usize,
    /// Address of the head in front of a payload.
    head: Option<u64>,
    is_cuda: bool,
    /// Its memory.
    runtime: Py<Runtime>,
}

impl StepBuffer {
    pub(crate) fn new(end: warpmail::StepBuffer, is_cuda: bool, runtime: Py<Runtime>) -> Self {
        StepBuffer { address: end.payload(), bytes: end.bytes, head: Some(end.head), is_cuda, runtime }
    }

    /// The word that says whether a launch has records.
    pub(crate) fn live(address: u64, is_cuda: bool, runtime: Py<Runtime>) -> Self {
        StepBuffer { address, bytes: 8, head: None, is_cuda, runtime }
    }

    fn array<'py>(&self, py: Python<'py>, version: u32) -> PyResult<Bound<'py, PyDict>> {
        let array = PyDict::new(py);
        array.set_item("shape", (self.bytes,))?;
        array.set_item("typestr", "|u1")?;
        array.set_item("data", (self.address, false))?;
        array.set_item("version", version)?;
        Ok(array)
    }
}

#[pymethods]
impl StepBuffer {
    /// Address of the payload.
    #[getter]
    fn address(&self) -> u64 {
        self.address
    }

    /// Address of the head in front of it: length and message type, 32 bits each, then the number of the step.
    #[getter]
    fn head(&self) -> PyResult<u64> {
        self.head.ok_or_else(|| PyAttributeError::new_err("this buffer has no head"))
    }

    /// The head as a buffer of its own.
    #[getter]
    fn header(&self, py: Python<'_>) -> PyResult<StepBuffer> {
        let (address, runtime) = (self.head()?, self.runtime.clone_ref(py));
        let bytes = warpmail::abi::WM_STEP_HEAD_BYTES as usize;
        Ok(StepBuffer { address, bytes, head: None, is_cuda: self.is_cuda, runtime })
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.bytes
    }

    #[getter]
    fn __cuda_array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        if !self.is_cuda {
            return Err(PyAttributeError::new_err("this buffer is memory of the host: the twin's"));
        }
        self.array(py, 3)
    }

    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        if self.is_cuda {
            return Err(PyAttributeError::new_err("this buffer is memory of a GPU"));
        }
        self.array(py, 3)
    }
}

/// A Python error as the library's, with its words.
fn failed(e: &PyErr) -> Error {
    Error::Failed(format!("the body raised {e}"))
}

/// A body from exactly one of the three.
pub(crate) fn body(
    graph: Option<&Bound<'_, PyAny>>,
    enqueue: Option<Py<PyAny>>,
    call: Option<Py<PyAny>>,
    always: bool,
) -> PyResult<Body> {
    let body = match (graph, enqueue, call) {
        (Some(graph), None, None) => {
            let raw = match graph.getattr("raw_cuda_graph") {
                Ok(raw) => raw.call0()?,
                Err(_) => graph.clone(),
            };
            let raw = raw.extract::<u64>().map_err(|_| {
                PyTypeError::new_err("graph: pass a torch.cuda.CUDAGraph(keep_graph=True), or a CUgraph as a number")
            })?;
            // SAFETY: the caller's word, as docs/python.md says: a graph of this device whose memory stays.
            unsafe { Body::graph(raw) }
        }
        (None, Some(enqueue), None) => Body::each_step(move |step| {
            Python::with_gil(|py| enqueue.call1(py, (step.raw(),)).map(drop)).map_err(|e| failed(&e))
        }),
        (None, None, Some(call)) => {
            let call = std::sync::Arc::new(call);
            Body::each_step(move |step| {
                let call = call.clone();
                step.call(move || {
                    if let Err(e) = Python::with_gil(|py| call.call0(py).map(drop)) {
                        std::panic::panic_any(e.to_string()); // caught by the library, which names the module
                    }
                })
            })
        }
        _ => return Err(Refused::new_err("a body is one of graph=, enqueue= and call=")),
    };
    Ok(if always { body.always() } else { body })
}
