//! Making a module graph.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use warpmail::{Device, HandlerImage, MailboxOptions, Mode, ModuleOptions, SpinBudget, Tap};

use crate::errors::{Refused, StateError, raise};
use crate::runtime::Runtime;
use crate::tensor::Pool;
use crate::{steps, wait};

/// A module of one graph.
#[pyclass(frozen, eq, hash, module = "warpmail")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Module {
    pub(crate) graph: u64,
    pub(crate) id: warpmail::ModuleId,
    #[pyo3(get)]
    name: String,
}

#[pymethods]
impl Module {
    fn __repr__(&self) -> String {
        format!("<warpmail.Module {}>", self.name)
    }
}

/// A mailbox of one graph.
#[pyclass(frozen, eq, hash, module = "warpmail")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mailbox {
    pub(crate) graph: u64,
    pub(crate) id: warpmail::MailboxId,
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    pub(crate) payload_bytes: usize,
}

#[pymethods]
impl Mailbox {
    fn __repr__(&self) -> String {
        format!("<warpmail.Mailbox {}, {} payload bytes>", self.name, self.payload_bytes)
    }
}

/// Collects modules and mailboxes, checks them, and makes a `Runtime`.
/// `idle_spin` as Python has it: seconds, or a word.
#[derive(FromPyObject)]
enum IdleSpin {
    Seconds(f64),
    Word(String),
}

impl IdleSpin {
    fn time(self) -> PyResult<Option<Duration>> {
        match self {
            IdleSpin::Seconds(seconds) => wait::bound(seconds).map(Some),
            IdleSpin::Word(word) => SpinBudget::parse_idle_spin(&word).map_err(PyValueError::new_err),
        }
    }
}

#[pyclass(module = "warpmail")]
pub(crate) struct Builder {
    serial: u64,
    inner: Option<warpmail::Builder>,
}

/// Which graph a module or mailbox belongs to: ids of another are refused, not misread.
static SERIAL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

fn device_of(name: &str) -> PyResult<Device> {
    match name.split_once(':').map_or((name, Ok(0)), |(kind, n)| (kind, n.parse())) {
        ("best", Ok(0)) => Ok(Device::best()),
        ("twin", Ok(0)) => Ok(Device::twin()),
        ("cuda", Ok(ordinal)) => Device::cuda(ordinal).map_err(raise),
        _ => Err(Refused::new_err(format!("device {name:?}: must be 'best', 'twin', 'cuda' or 'cuda:N'"))),
    }
}

impl Builder {
    fn open(&mut self) -> PyResult<&mut warpmail::Builder> {
        self.inner.as_mut().ok_or_else(|| StateError::new_err("this builder has built its runtime; make a new one"))
    }

    fn own(&self, module: &Module) -> PyResult<warpmail::ModuleId> {
        if module.graph != self.serial {
            return Err(Refused::new_err(format!("module {}: it belongs to another graph", module.name)));
        }
        Ok(module.id)
    }
}

#[pymethods]
impl Builder {
    #[new]
    #[pyo3(signature = (device = "best", *, mode = None, static_order = false, beside = None, journal_blocks = 0))]
    fn new(
        py: Python<'_>,
        device: &str,
        mode: Option<&str>,
        static_order: bool,
        beside: Option<&Bound<'_, PyAny>>,
        journal_blocks: u32,
    ) -> PyResult<Self> {
        let device = py.allow_threads(|| device_of(device))?;
        let mut inner = warpmail::Builder::new(device);
        if let Some(mode) = mode {
            inner.mode(mode.parse::<Mode>().map_err(raise)?);
        }
        inner.static_order(static_order);
        inner.journal_blocks(journal_blocks).map_err(raise)?;
        if let Some(stream) = beside {
            // SAFETY: as the docstring asks of the caller.
            unsafe { inner.beside(crate::streams::handle(stream)?) };
        }
        let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Builder { serial, inner: Some(inner) })
    }

    /// Limits on the arbiter; what is not named stays as it is.
    #[pyo3(signature = (*, idle_spin = None, adaptive = None, sm_share = None, max_wait = None, residency = None, servers = None, sms = None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords")]
    fn budget(
        &mut self,
        idle_spin: Option<IdleSpin>,
        adaptive: Option<bool>,
        sm_share: Option<f64>,
        max_wait: Option<f64>,
        residency: Option<f64>,
        servers: Option<u32>,
        sms: Option<u32>,
    ) -> PyResult<()> {
        let builder = self.open()?;
        let seconds = |value: Option<f64>, now: Duration| value.map_or(Ok(now), wait::bound);
        let now = builder.current_budget().clone();
        let budget = SpinBudget {
            idle_spin: idle_spin.map_or(Ok(now.idle_spin), IdleSpin::time)?,
            adaptive: adaptive.unwrap_or(now.adaptive),
            sm_share: sm_share.unwrap_or(now.sm_share),
            max_wait: seconds(max_wait, now.max_wait)?,
            residency: seconds(residency, now.residency)?,
            sms: sms.unwrap_or(now.sms),
            servers: servers.unwrap_or(now.servers),
        };
        builder.budget(budget).map(|_| ()).map_err(raise)
    }

    /// Gives the graph a pool for the tensors of its records: at most `limit` bytes of its own, adopted ones not counted.
    #[pyo3(signature = (limit = 1 << 28, *, leases = 4096, poison = false))]
    fn pool(&mut self, limit: u64, leases: u32, poison: bool) -> PyResult<Pool> {
        let builder = self.open()?;
        let pool = Pool::new(builder.device(), limit, leases, poison)?;
        builder.pool(&pool.inner).map_err(raise)?;
        Ok(pool)
    }

    /// A host module: its ends are a `Sender` and a `Receiver`.
    fn host(&mut self, name: &str) -> PyResult<Module> {
        let id = self.open()?.host(name).map_err(raise)?;
        Ok(Module { graph: self.serial, id, name: name.into() })
    }

    /// A resident module: a handler that the arbiter itself runs.
    #[pyo3(signature = (name, handler, *, priority = 0, batch = 32, out_records = 0, rule = "any"))]
    fn resident(
        &mut self,
        name: &str,
        handler: u32,
        priority: u8,
        batch: u32,
        out_records: u32,
        rule: &str,
    ) -> PyResult<Module> {
        if ![warpmail::builtin::RELAY, warpmail::builtin::DISCARD].contains(&handler) {
            return Err(Refused::new_err(format!(
                "handler {handler}: the package has warpmail.RELAY and warpmail.DISCARD"
            )));
        }
        let rule = steps::rule_of(rule)?;
        let options = ModuleOptions { priority, batch, out_records, rule, ..ModuleOptions::handler(handler) };
        let id = self.open()?.resident(name, options).map_err(raise)?;
        Ok(Module { graph: self.serial, id, name: name.into() })
    }

    /// A stream module: work on a CUDA stream in steps that the arbiter grants; `Runtime.body` says what a step does.
    #[pyo3(signature = (name, *, rule = "any", priority = 0, spin = 20e-6, ahead = 4, pushes = Vec::new(), stream = None))]
    #[allow(clippy::too_many_arguments)]
    fn steps(
        &mut self,
        name: &str,
        rule: &str,
        priority: u8,
        spin: Option<f64>,
        ahead: u32,
        pushes: Vec<(u32, u16)>,
        stream: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Module> {
        let options = steps::options(rule, priority, spin, ahead, pushes, stream)?;
        let id = self.open()?.steps(name, options).map_err(raise)?;
        Ok(Module { graph: self.serial, id, name: name.into() })
    }

    /// A mailbox from its one producer to its one consumer.
    /// `tap_type`: it takes records of this type only; `tap_tensors`: the journal takes the tensors that its records point to as well.
    #[pyo3(signature = (producer, consumer, *, stride = 256, slots = 64, tap = None, tap_type = None, tap_tensors = false))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn mailbox(
        &mut self,
        producer: &Module,
        consumer: &Module,
        stride: u32,
        slots: u32,
        tap: Option<&str>,
        tap_type: Option<u16>,
        tap_tensors: bool,
    ) -> PyResult<Mailbox> {
        let tap = match tap {
            None => Tap::Off,
            Some("drop") => Tap::Drop,
            Some("block") => Tap::Block,
            Some(other) => return Err(Refused::new_err(format!("tap {other:?}: must be 'drop', 'block' or None"))),
        };
        if tap_type.is_some() && tap == Tap::Off {
            return Err(Refused::new_err("tap_type: its records are not tapped: say tap='block' or tap='drop' too"));
        }
        if tap_tensors && tap == Tap::Off {
            return Err(Refused::new_err("tap_tensors: its records are not tapped: say tap='block' or tap='drop' too"));
        }
        let (from, to) = (self.own(producer)?, self.own(consumer)?);
        let options = MailboxOptions { stride, slots };
        let payload_bytes = options.payload_bytes().map_err(raise)?;
        let id = self.open()?.mailbox(from, to, options).map_err(raise)?;
        match tap_type {
            Some(msg_type) => self.open()?.tap_type(id, tap, msg_type).map_err(raise)?,
            None => self.open()?.tap(id, tap).map_err(raise)?,
        };
        if tap_tensors {
            self.open()?.tap_tensors(id).map_err(raise)?;
        }
        let name = format!("{}->{}", producer.name, consumer.name);
        Ok(Mailbox { graph: self.serial, id, name, payload_bytes })
    }

    /// Checks the graph as a whole and makes the runtime. The builder is used up.
    fn build(&mut self, py: Python<'_>) -> PyResult<Runtime> {
        self.open()?;
        let builder = self.inner.take();
        let built = py.allow_threads(|| builder.map(|b| b.build(HandlerImage::builtin())));
        let inner = built.ok_or_else(|| StateError::new_err("this builder has built its runtime"))?.map_err(raise)?;
        Ok(Runtime::new(inner, self.serial))
    }
}
