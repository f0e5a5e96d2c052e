//! The Python package `warpmail`. Its face for users is `python/warpmail/`: the stubs there say what each class does.
//!
//! Every wait releases the interpreter's lock and looks for signals (`wait.rs`). Nothing that Rust drops calls Python: owners
//! of adopted memory go to a lock-free queue and are released later, with the lock (`owners.rs`).

mod dlpack;
mod dlpack_bytes;
mod errors;
mod graph;
mod journal;
mod owners;
mod ports;
mod runtime;
mod steps;
mod streams;
mod tensor;
mod wait;

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A serde value as Python's own objects.
fn to_python<'py>(py: Python<'py>, value: &impl serde::Serialize) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_string(value).map_err(|e| errors::Error::new_err(e.to_string()))?;
    py.import("json")?.getattr("loads")?.call1((text,))
}

/// What this machine can do, and why not. Creates no CUDA context and launches nothing.
#[pyfunction]
fn probe(py: Python<'_>) -> PyResult<Py<PyDict>> {
    let probe = py.allow_threads(warpmail::probe);
    let answer = to_python(py, &probe)?.downcast_into::<PyDict>()?;
    answer.set_item("best", probe.best().to_string())?;
    Ok(answer.unbind())
}

#[pymodule]
fn _warpmail(m: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::add(m)?;
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("RELAY", warpmail::builtin::RELAY)?;
    m.add("DISCARD", warpmail::builtin::DISCARD)?;
    m.add("TENSOR", warpmail::abi::WM_TYPE_TENSOR)?;
    m.add("NOTHING", warpmail::abi::WM_STEP_NOTHING)?;
    m.add("TENSOR_BYTES", size_of::<warpmail::abi::wm_tensor>())?;
    m.add_function(wrap_pyfunction!(probe, m)?)?;
    m.add_function(wrap_pyfunction!(runtime::_stop_all, m)?)?;
    m.add_class::<graph::Builder>()?;
    m.add_class::<graph::Module>()?;
    m.add_class::<graph::Mailbox>()?;
    m.add_class::<runtime::Runtime>()?;
    m.add_class::<runtime::Quiesce>()?;
    m.add_class::<steps::StepBuffer>()?;
    m.add_class::<journal::JournalReader>()?;
    m.add_class::<journal::JournalRecord>()?;
    m.add_class::<ports::Sender>()?;
    m.add_class::<ports::Receiver>()?;
    m.add_class::<tensor::Pool>()?;
    m.add_class::<tensor::Tensor>()?;
    m.add_class::<ports::Record>()
}
