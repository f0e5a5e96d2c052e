//! The host's ends of mailboxes.

use std::sync::Mutex;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use warpmail::abi;

use crate::errors::{BadMailbox, Empty, Refused, raise};
use crate::tensor::{self, Tensor};
use crate::{owners, wait};

/// A record that was taken.
#[pyclass(frozen, get_all, module = "warpmail")]
pub(crate) struct Record {
    /// The sender's message type.
    msg_type: u16,
    /// Its bytes; with a tensor, the note that was posted with it.
    payload: Py<PyBytes>,
    /// Its tensor, if it carries one and the graph has a pool.
    tensor: Option<Py<Tensor>>,
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
    pool: Option<warpmail::Pool>,
}

impl Sender {
    pub(crate) fn new(inner: warpmail::Sender, pool: Option<warpmail::Pool>) -> Self {
        Sender { inner: Mutex::new(Box::new(inner)), pool }
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

    /// Posts one record, bytes or a tensor with a note, waiting up to `timeout` seconds for a free slot.
    #[pyo3(signature = (payload, msg_type = 0, *, note = None, stream = None, timeout = 10.0))]
    fn post(
        &self,
        py: Python<'_>,
        payload: &Bound<'_, PyAny>,
        msg_type: u16,
        note: Option<&[u8]>,
        stream: Option<&Bound<'_, PyAny>>,
        timeout: f64,
    ) -> PyResult<()> {
        let Ok(bytes) = payload.downcast::<PyBytes>() else {
            return self.post_tensor(py, payload, msg_type, note, stream, Some(wait::bound(timeout)?));
        };
        let payload = plain(bytes, msg_type, note, stream)?;
        let mut sender = wait::own(&self.inner, "sender")?;
        match sender.try_push(msg_type, payload) {
            Err(warpmail::Error::Full { .. }) => {}
            other => return other.map_err(raise),
        }
        let (bound, sender) = (wait::bound(timeout)?, &mut *sender);
        wait::in_slices(py, bound, |slice| sender.push(msg_type, payload, slice))
    }

    /// The same at once, or `Full`.
    #[pyo3(signature = (payload, msg_type = 0, *, note = None, stream = None))]
    fn try_post(
        &self,
        py: Python<'_>,
        payload: &Bound<'_, PyAny>,
        msg_type: u16,
        note: Option<&[u8]>,
        stream: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let Ok(bytes) = payload.downcast::<PyBytes>() else {
            return self.post_tensor(py, payload, msg_type, note, stream, None);
        };
        let payload = plain(bytes, msg_type, note, stream)?;
        wait::own(&self.inner, "sender")?.try_push(msg_type, payload).map_err(raise)
    }

    /// Posts as many of the records as there is room for, each `length` bytes of `payloads`; says how many.
    #[pyo3(signature = (payloads, length, msg_type = 0))]
    fn try_post_batch(&self, payloads: &[u8], length: usize, msg_type: u16) -> PyResult<usize> {
        wait::own(&self.inner, "sender")?.try_push_batch(msg_type, payloads, length).map_err(raise)
    }
}

/// The bytes to post, unless something was said that only goes with a tensor.
fn plain<'a>(
    bytes: &'a Bound<'_, PyBytes>,
    msg_type: u16,
    note: Option<&[u8]>,
    stream: Option<&Bound<'_, PyAny>>,
) -> PyResult<&'a [u8]> {
    if u32::from(msg_type) == abi::WM_TYPE_TENSOR {
        return Err(Refused::new_err(format!("message type {msg_type}: it is the tensors'; choose another")));
    }
    if note.is_some() {
        return Err(Refused::new_err("a note goes with a tensor: bytes are their own"));
    }
    if stream.is_some() {
        return Err(Refused::new_err("a stream goes with a tensor: bytes are memory of the host"));
    }
    Ok(bytes.as_bytes())
}

impl Sender {
    /// Without a bound: at once.
    fn post_tensor(
        &self,
        py: Python<'_>,
        object: &Bound<'_, PyAny>,
        msg_type: u16,
        note: Option<&[u8]>,
        stream: Option<&Bound<'_, PyAny>>,
        bound: Option<Duration>,
    ) -> PyResult<()> {
        if msg_type != 0 {
            return Err(Refused::new_err("a message type goes with bytes: tensors have one of their own"));
        }
        // Before the lock: it calls Python.
        let mut lease = Some(tensor::lease_of(object, self.pool.as_ref(), stream)?);
        let note = note.unwrap_or_default();
        let mut guard = wait::own(&self.inner, "sender")?;
        let sender = &mut *guard;
        let mut attempt = |bound: Option<Duration>| {
            let Some(it) = lease.take() else { return Ok(()) };
            let outcome = match bound {
                None => sender.try_post(it, note),
                Some(bound) => sender.post(it, note, bound),
            };
            outcome.map_err(|unposted| {
                lease = Some(unposted.lease);
                unposted.error
            })
        };
        let outcome = match bound {
            None => attempt(None).map_err(raise),
            Some(bound) => wait::in_slices(py, bound, |slice| attempt(Some(slice))),
        };
        drop(guard);
        owners::release(py);
        outcome
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
    pool: Option<warpmail::Pool>,
    step: usize,
}

impl Receiver {
    pub(crate) fn new(receiver: warpmail::Receiver, pool: Option<warpmail::Pool>, payload_bytes: usize) -> Self {
        let end = End { receiver: Box::new(receiver), buffer: vec![0; payload_bytes] };
        Receiver { inner: Mutex::new(end), pool, step: payload_bytes }
    }
}

impl Receiver {
    fn record(&self, py: Python<'_>, buffer: &[u8], record: warpmail::Record) -> PyResult<Record> {
        let mut bytes = &buffer[..record.len];
        let mut tensor = None;
        if u32::from(record.msg_type) == abi::WM_TYPE_TENSOR
            && let Some(pool) = &self.pool
        {
            let Some((head, note)) = bytes.split_at_checked(size_of::<abi::wm_tensor>()) else {
                return Err(BadMailbox::new_err(format!("a tensor's record of {} bytes; it was dropped", record.len)));
            };
            let lease = pool.claim(bytemuck::pod_read_unaligned(head)).map_err(raise)?;
            tensor = Some(Py::new(py, Tensor::taken(lease))?);
            bytes = note;
        }
        Ok(Record { msg_type: record.msg_type, payload: PyBytes::new(py, bytes).unbind(), tensor })
    }
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
        self.record(py, buffer, taken)
    }

    /// The same at once, or `Empty`.
    fn try_take(&self, py: Python<'_>) -> PyResult<Record> {
        let mut end = wait::own(&self.inner, "receiver")?;
        let End { receiver, buffer } = &mut *end;
        let taken = receiver.try_pop(buffer).map_err(raise)?;
        let taken = taken.ok_or_else(|| Empty::new_err("the mailbox has no record now"))?;
        self.record(py, buffer, taken)
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
        taken.into_iter().map(|(place, it)| self.record(py, &buffer[place * self.step..], it)).collect()
    }
}
