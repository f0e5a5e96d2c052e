//! Reading a journal's directory.

use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use warpmail::journal;

use crate::errors::raise;
use crate::wait;

/// A record of a journal.
#[pyclass(frozen, get_all, module = "warpmail")]
pub(crate) struct JournalRecord {
    /// Its number in the log, from 1.
    sequence: u64,
    /// Which mailbox, by the order in which the graph got them.
    mailbox: u32,
    msg_type: u16,
    payload: Py<PyBytes>,
    /// The bytes of the tensor that went with it; empty if there is none.
    tensor: Py<PyBytes>,
    /// The producer's clock, nanoseconds.
    producer_ns: u64,
}

/// Reads the records of a journal in order, each checked; at the end, which may be for now, the iteration stops.
#[pyclass(frozen, module = "warpmail")]
pub(crate) struct JournalReader {
    inner: Mutex<journal::Reader>,
}

#[pymethods]
impl JournalReader {
    /// `first`: the sequence to begin with; 0: the oldest kept.
    #[new]
    #[pyo3(signature = (dir, first = 0))]
    fn new(py: Python<'_>, dir: std::path::PathBuf, first: u64) -> PyResult<Self> {
        let reader = py.allow_threads(|| journal::Reader::open(dir, first)).map_err(raise)?;
        Ok(JournalReader { inner: Mutex::new(reader) })
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<JournalRecord>> {
        let mut guard = wait::own(&self.inner, "journal")?;
        let reader = &mut *guard;
        let Some(record) = py.allow_threads(|| reader.next()).transpose().map_err(raise)? else { return Ok(None) };
        Ok(Some(JournalRecord {
            sequence: record.sequence,
            mailbox: record.mailbox,
            msg_type: record.msg_type,
            payload: PyBytes::new(py, &record.payload).unbind(),
            tensor: PyBytes::new(py, &record.tensor).unbind(),
            producer_ns: record.producer_ns,
        }))
    }
}
