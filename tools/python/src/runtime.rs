//! A running module graph, and its quiesce as a context manager.

use std::sync::mpsc::{Receiver as Inbox, RecvTimeoutError, Sender as Outbox, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use warpmail::Delivery;

use crate::errors::{Refused, StateError, raise};
use crate::graph::{Mailbox, Module};
use crate::owners;
use crate::ports::{Receiver, Sender};
use crate::steps::{self, StepBuffer};
use crate::tensor::place_of;
use crate::{to_python, wait};

/// Stops are tried this long when an object is dropped or a `with` ends.
const STOP: Duration = Duration::from_secs(10);

/// Stops are tried this long at the interpreter's end.
const AT_THE_END: Duration = Duration::from_secs(2);

/// None: a quiesce has it.
type Shared = Arc<Mutex<Option<warpmail::Runtime>>>;

/// Modules and mailboxes with their arbiter. `with runtime:` starts and stops it.
#[pyclass(frozen, weakref, module = "warpmail")]
pub(crate) struct Runtime {
    inner: Shared,
    graph: u64,
}

/// All that were built, for the interpreter's end.
static LIVE: Mutex<Vec<Weak<Mutex<Option<warpmail::Runtime>>>>> = Mutex::new(Vec::new());

/// Stops every runtime, because the interpreter ends; waits that other threads are in do not come back.
#[pyfunction]
pub(crate) fn _stop_all(py: Python<'_>) {
    py.allow_threads(|| {
        wait::end_waits();
        let live = LIVE.lock().map(|mut live| std::mem::take(&mut *live)).unwrap_or_default();
        for runtime in live.iter().filter_map(Weak::upgrade) {
            // One that is in use is that thread's; one in a quiesce has no arbiter on the device.
            if let Ok(mut guard) = runtime.try_lock()
                && let Some(runtime) = guard.as_mut()
            {
                // Nobody is left to be told of an error.
                let _ = runtime.stop(AT_THE_END);
            }
        }
    });
}

fn away() -> PyErr {
    StateError::new_err("the runtime is quiesced: leave that `with` first")
}

impl Runtime {
    pub(crate) fn new(inner: warpmail::Runtime, graph: u64) -> Self {
        let inner = Arc::new(Mutex::new(Some(inner)));
        if let Ok(mut live) = LIVE.lock() {
            live.retain(|runtime| runtime.strong_count() > 0);
            live.push(Arc::downgrade(&inner));
        }
        Runtime { inner, graph }
    }

    /// Calls something of the library's that may wait, without the interpreter's lock.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut warpmail::Runtime) -> warpmail::Result<T> + Send,
    ) -> PyResult<T> {
        let mut guard = wait::own(&self.inner, "runtime")?;
        let runtime = guard.as_mut().ok_or_else(away)?;
        py.allow_threads(|| call(runtime)).map_err(raise)
    }

    fn own(&self, mailbox: &Mailbox) -> PyResult<warpmail::MailboxId> {
        if mailbox.graph != self.graph {
            return Err(Refused::new_err("the mailbox belongs to another graph"));
        }
        Ok(mailbox.id)
    }

    fn own_module(&self, module: &Module) -> PyResult<warpmail::ModuleId> {
        if module.graph != self.graph {
            return Err(Refused::new_err("the module belongs to another graph"));
        }
        Ok(module.id)
    }

    fn step_buffer(slf: &Bound<'_, Self>, module: &Module, input: bool, number: usize) -> PyResult<StepBuffer> {
        let id = slf.get().own_module(module)?;
        let (buffer, is_cuda) = slf.get().with(slf.py(), |r| {
            let buffer = if input { r.step_input(id, number)? } else { r.step_output(id, number)? };
            Ok((buffer, r.device().info().ordinal.is_some()))
        })?;
        Ok(StepBuffer::new(buffer, is_cuda, slf.clone().unbind()))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Dropping it waits for the arbiter: not with the interpreter's lock. A quiesce that still has it ends by itself.
        let inner = self.inner.try_lock().ok().and_then(|mut guard| guard.take());
        Python::with_gil(|py| {
            py.allow_threads(|| drop(inner));
            owners::release(py);
        });
    }
}

#[pymethods]
impl Runtime {
    /// `'ready'`, `'running'`, `'quiet'`, `'stopped'` or `'failed'`.
    #[getter]
    fn state(&self) -> PyResult<String> {
        let guard = wait::own(&self.inner, "runtime")?;
        Ok(guard.as_ref().map_or("quiet".into(), |r| format!("{:?}", r.state()).to_lowercase()))
    }

    /// What it runs on, as a dict.
    #[getter]
    fn device(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let guard = wait::own(&self.inner, "runtime")?;
        Ok(to_python(py, guard.as_ref().ok_or_else(away)?.device().info())?.unbind())
    }

    /// The producer's end of a mailbox whose producer is a host module. There is one.
    fn sender(&self, py: Python<'_>, mailbox: &Mailbox) -> PyResult<Sender> {
        let id = self.own(mailbox)?;
        let (end, pool) = self.with(py, |r| Ok((r.sender(id)?, r.pool().cloned())))?;
        Ok(Sender::new(end, pool))
    }

    /// The consumer's end of a mailbox whose consumer is a host module. There is one.
    fn receiver(&self, py: Python<'_>, mailbox: &Mailbox) -> PyResult<Receiver> {
        let id = self.own(mailbox)?;
        let (end, pool) = self.with(py, |r| Ok((r.receiver(id)?, r.pool().cloned())))?;
        Ok(Receiver::new(end, pool, mailbox.payload_bytes))
    }

    /// Sends the records of tapped mailboxes to the log in a directory. Before the start.
    fn journal(&self, py: Python<'_>, dir: std::path::PathBuf) -> PyResult<()> {
        self.with(py, |r| r.journal(warpmail::journal::Log::open(dir, Default::default())?.0))
    }

    /// What the steps of a stream module do: `graph`, a captured `torch.cuda.CUDAGraph(keep_graph=True)`; `enqueue(stream)`,
    /// called for every step ahead of its grant; or `call()`, a function of the host, in the stream's order. Before the start.
    #[pyo3(signature = (module, *, graph = None, enqueue = None, call = None, always = false))]
    fn body(
        &self,
        py: Python<'_>,
        module: &Module,
        graph: Option<&Bound<'_, PyAny>>,
        enqueue: Option<Py<PyAny>>,
        call: Option<Py<PyAny>>,
        always: bool,
    ) -> PyResult<()> {
        let (id, body) = (self.own_module(module)?, steps::body(graph, enqueue, call, always)?);
        self.with(py, |r| r.body(id, body))
    }

    /// Has the tensors of a stream module's input copied into `target`, whose type and shape they must have. Before the body.
    #[pyo3(signature = (module, target, input = 0))]
    fn deliver(&self, py: Python<'_>, module: &Module, target: &Bound<'_, PyAny>, input: usize) -> PyResult<()> {
        let id = self.own_module(module)?;
        let ordinal = self.with(py, |r| Ok(r.device().info().ordinal))?;
        let (address, spec, owner) = place_of(target, ordinal)?;
        let delivery = Delivery::exactly(address, &spec);
        let outcome = self.with(py, move |r| {
            // SAFETY: the owner keeps the memory as long as the runtime keeps its own; nobody but the body uses it.
            unsafe { r.deliver(id, input, &delivery) }?;
            r.keep(owner);
            Ok(())
        });
        owners::release(py); // the new owner, if it was refused
        outcome
    }

    /// Where the records of a stream module's input are delivered to.
    #[pyo3(signature = (module, input = 0))]
    fn step_input(slf: &Bound<'_, Self>, module: &Module, input: usize) -> PyResult<StepBuffer> {
        Self::step_buffer(slf, module, true, input)
    }

    /// Where a stream module's steps leave what is pushed to an output.
    #[pyo3(signature = (module, output = 0))]
    fn step_output(slf: &Bound<'_, Self>, module: &Module, output: usize) -> PyResult<StepBuffer> {
        Self::step_buffer(slf, module, false, output)
    }

    /// A word of 64 bits that is not 0 while the launch has records: for bodies with `always=True`.
    fn step_live(slf: &Bound<'_, Self>, module: &Module) -> PyResult<StepBuffer> {
        let id = slf.get().own_module(module)?;
        let (address, is_cuda) =
            slf.get().with(slf.py(), |r| Ok((r.step_live(id)?, r.device().info().ordinal.is_some())))?;
        Ok(StepBuffer::live(address, is_cuda, slf.clone().unbind()))
    }

    /// Ends the steps of one stream module for good; its records wait in its mailboxes.
    #[pyo3(signature = (module, timeout = 10.0))]
    fn close(&self, py: Python<'_>, module: &Module, timeout: f64) -> PyResult<()> {
        let (id, bound) = (self.own_module(module)?, wait::bound(timeout)?);
        self.with(py, |r| r.close(id, bound))
    }

    /// Starts the arbiter.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |r| r.start())
    }

    /// Ends the arbiter. Records still in mailboxes are left there. A second stop does nothing.
    #[pyo3(signature = (timeout = 10.0))]
    fn stop(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let bound = wait::bound(timeout)?;
        self.with(py, |r| r.stop(bound))
    }

    /// Waits until every record has been taken from every mailbox that a resident module consumes.
    #[pyo3(signature = (timeout = 10.0))]
    fn drain(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let mut guard = wait::own(&self.inner, "runtime")?;
        let runtime = guard.as_mut().ok_or_else(away)?;
        wait::in_slices(py, wait::bound(timeout)?, move |slice| runtime.drain(slice))
    }

    /// Counters as a dict. No driver call.
    fn stats(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let guard = wait::own(&self.inner, "runtime")?;
        Ok(to_python(py, &guard.as_ref().ok_or_else(away)?.stats())?.unbind())
    }

    /// What became of the records that taps saw, as a dict; `None` without a journal.
    fn journal_stats(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let guard = wait::own(&self.inner, "runtime")?;
        Ok(to_python(py, &guard.as_ref().ok_or_else(away)?.journal_stats())?.unbind())
    }

    /// Writes what modules know to one crash-safe file in `dir`; says what is in it, as a dict.
    #[pyo3(signature = (dir, timeout = 10.0))]
    fn checkpoint(&self, py: Python<'_>, dir: std::path::PathBuf, timeout: f64) -> PyResult<Py<PyAny>> {
        let bound = wait::bound(timeout)?;
        Ok(to_python(py, &self.with(py, |r| r.checkpoint(dir, bound))?)?.unbind())
    }

    /// Puts the checkpoint of another run of the same graph into this one, before its start.
    fn restore(&self, py: Python<'_>, dir: std::path::PathBuf) -> PyResult<Py<PyAny>> {
        Ok(to_python(py, &self.with(py, |r| r.restore(dir))?)?.unbind())
    }

    /// `with runtime.quiesce():` the arbiter is away, records wait where they are.
    #[pyo3(signature = (timeout = 10.0))]
    fn quiesce(&self, timeout: f64) -> PyResult<Quiesce> {
        let state = Mutex::new(None);
        Ok(Quiesce { runtime: self.inner.clone(), bound: wait::bound(timeout)?, state })
    }

    fn __enter__<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        if slf.get().state()? == "ready" {
            slf.get().start(slf.py())?;
        }
        Ok(slf)
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.with(py, |r| r.stop(STOP))
    }
}

/// A quiesce that has begun: the thread that is inside it, and how to make it leave.
struct Inside {
    leave: Outbox<()>,
    thread: JoinHandle<()>,
}

/// The context manager of `Runtime.quiesce`.
#[pyclass(frozen, module = "warpmail")]
pub(crate) struct Quiesce {
    runtime: Shared,
    bound: Duration,
    state: Mutex<Option<Inside>>,
}

/// Runs on a thread of its own, because the library's quiesce lasts as long as a closure does. Ends when `leave` is sent to
/// or dropped.
fn quiet(
    shared: &Shared,
    mut runtime: warpmail::Runtime,
    bound: Duration,
    entered: &Outbox<Option<warpmail::Error>>,
    leave: &Inbox<()>,
) {
    let outcome = runtime.quiesce(bound, |_| {
        let _ = entered.send(None);
        let _ = leave.recv();
    });
    if let Ok(mut guard) = shared.lock() {
        *guard = Some(runtime);
    }
    if let Err(e) = outcome {
        let _ = entered.send(Some(e));
    }
}

/// An inbox may move to the thread that waits, but not be shared: hence `&mut`.
fn waited<T: Send>(py: Python<'_>, inbox: &mut Inbox<T>, slice: Duration) -> Result<T, RecvTimeoutError> {
    py.allow_threads(move || inbox.recv_timeout(slice))
}

#[pymethods]
impl Quiesce {
    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        let mut state = wait::own(&self.state, "quiesce")?;
        let runtime = wait::own(&self.runtime, "runtime")?.take().ok_or_else(away)?;
        let (leave, stay) = channel();
        let (entered, mut answer) = channel();
        let (shared, bound) = (self.runtime.clone(), self.bound);
        let body = move || quiet(&shared, runtime, bound, &entered, &stay);
        let thread = std::thread::Builder::new().name("warpmail-quiesce".into()).spawn(body);
        let thread = thread.map_err(|e| StateError::new_err(format!("no thread for the quiesce: {e}")))?;
        // The library keeps the bound; a little more for the thread itself.
        let until = Instant::now() + self.bound + Duration::from_secs(5);
        loop {
            let slice = Duration::from_millis(20);
            match waited(py, &mut answer, slice) {
                Ok(None) => break,
                Ok(Some(e)) => return Err(raise(e)),
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => py.check_signals()?,
                Err(_) => return Err(StateError::new_err("the arbiter did not answer a quiesce")),
            }
        }
        *state = Some(Inside { leave, thread });
        Ok(())
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        let Some(inside) = wait::own(&self.state, "quiesce")?.take() else { return Ok(()) };
        drop(inside.leave);
        // It only resumes the arbiter, which is a message to the launcher.
        let ended = py.allow_threads(|| inside.thread.join());
        ended.map_err(|_| StateError::new_err("the quiesce ended with a panic"))
    }
}
