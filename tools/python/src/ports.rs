//! The host's ends of mailboxes.

use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{Empty, Refused, raise};
use crate::wait;

/// A record that was taken.
#[pyclass(frozen, get_all, module = "warpmail")]
pub(crate) struct Record {
    /// The sender's message type.
    msg_type: u16,
    /// Its bytes.
    payload: Py<PyBytes>,
}

#[pymethods]
impl Record {
    fn __repr__(&self, py: Python<'_>) -> String {
        format!("<warpmail.Record type {}, {} bytes>", self.msg_type, self.payload.as_bytes(py).len())
    }
}

/// The one producer's end of a mailbox. One thread at a time may use it.
#[pyclass(frozen, module = "warpmail")]
pub(crate) struct Sender {
    /// Boxed: it stands alone on its cache lines, which an interpreter's allocator does not give.
    inner: Mutex<Box<warpmail::Sender>>,
}

impl Sender {
    pub(crate) fn new(inner: warpmail::Sender) -> Self {
        Sender { inner: Mutex::new(Box::new(inner)) }
    }
}

#[pymethods]
impl Sender {
    /// Payload bytes that one record carries.
    #[getter]
    fn payload_bytes(&self) -> PyResult<usize> {
        Ok(wait::own(&self.inner, "sender")?.payload_bytes())
    }

    /// Records posted so far.
    #[getter]
    fn posted(&self) -> PyResult<u64> {
        Ok(wait::own(&self.inner, "sender")?.pushed())
    }

    /// Posts one record, waiting up to `timeout` seconds for a free slot.
    #[pyo3(signature = (payload, msg_type = 0, *, timeout = 10.0))]
    fn post(&self, py: Python<'_>, payload: &[u8], msg_type: u16, timeout: f64) -> PyResult<()> {
        let mut sender = wait::own(&self.inner, "sender")?;
        match sender.try_push(msg_type, payload) {
            Err(warpmail::Error::Full { .. }) => {}
            other => return other.map_err(raise),
        }
        let (bound, sender) = (wait::bound(timeout)?, &mut *sender);
        wait::in_slices(py, bound, |slice| sender.push(msg_type, payload, slice))
    }

    /// The same at once, or `Full`.
    #[pyo3(signature = (payload, msg_type = 0))]
    fn try_post(&self, payload: &[u8], msg_type: u16) -> PyResult<()> {
        wait::own(&self.inner, "sender")?.try_push(msg_type, payload).map_err(raise)
    }

    /// Posts as many of the records as there is room for, each `length` bytes of `payloads`; says how many.
    #[pyo3(signature = (payloads, length, msg_type = 0))]
    fn try_post_batch(&self, payloads: &[u8], length: usize, msg_type: u16) -> PyResult<usize> {
        wait::own(&self.inner, "sender")?.try_push_batch(msg_type, payloads, length).map_err(raise)
    }
}

struct End {
    /// Boxed, as the sender.
    receiver: Box<warpmail::Receiver>,
    buffer: Vec<u8>,
}

/// The one consumer's end of a mailbox. One thread at a time may use it.
#[pyclass(frozen, module = "warpmail")]
pub(crate) struct Receiver {
    inner: Mutex<End>,
    step: usize,
}

impl Receiver {
    pub(crate) fn new(receiver: warpmail::Receiver, payload_bytes: usize) -> Self {
        Receiver {
            inner: Mutex::new(End { receiver: Box::new(receiver), buffer: vec![0; payload_bytes] }),
            step: payload_bytes,
        }
    }
}

fn record(py: Python<'_>, buffer: &[u8], record: warpmail::Record) -> Record {
    Record { msg_type: record.msg_type, payload: PyBytes::new(py, &buffer[..record.len]).unbind() }
}

#[pymethods]
impl Receiver {
    /// Records taken so far.
    #[getter]
    fn taken(&self) -> PyResult<u64> {
        Ok(wait::own(&self.inner, "receiver")?.receiver.popped())
    }

    /// Takes the next record, waiting up to `timeout` seconds for one.
    #[pyo3(signature = (*, timeout = 10.0))]
    fn take(&self, py: Python<'_>, timeout: f64) -> PyResult<Record> {
        let mut end = wait::own(&self.inner, "receiver")?;
        let End { receiver, buffer } = &mut *end;
        let taken = match receiver.try_pop(buffer).map_err(raise)? {
            Some(taken) => taken,
            None => {
                let bound = wait::bound(timeout)?;
                wait::in_slices(py, bound, |slice| receiver.pop(buffer, slice))?
            }
        };
        Ok(record(py, buffer, taken))
    }

    /// The same at once, or `Empty`.
    fn try_take(&self, py: Python<'_>) -> PyResult<Record> {
        let mut end = wait::own(&self.inner, "receiver")?;
        let End { receiver, buffer } = &mut *end;
        let taken = receiver.try_pop(buffer).map_err(raise)?;
        taken.map(|taken| record(py, buffer, taken)).ok_or_else(|| Empty::new_err("the mailbox has no record now"))
    }

    /// Takes what is there, up to `limit` records (1 to 64), and gives their slots back together. A list, maybe empty.
    #[pyo3(signature = (limit = 64))]
    fn try_take_batch(&self, py: Python<'_>, limit: usize) -> PyResult<Vec<Record>> {
        if limit == 0 || limit > 64 {
            return Err(Refused::new_err(format!("a batch of {limit}: must be 1 to 64 records")));
        }
        let mut end = wait::own(&self.inner, "receiver")?;
        let (mut buffer, mut taken) = (vec![0; limit * self.step], Vec::with_capacity(limit));
        end.receiver.try_pop_batch(&mut buffer, self.step, |place, it| taken.push((place, it))).map_err(raise)?;
        Ok(taken.into_iter().map(|(place, it)| record(py, &buffer[place * self.step..], it)).collect())
    }
}
