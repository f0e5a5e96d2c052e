//! What a step does, and where it does it.

use crate::abi;
use crate::error::{Error, Result};

pub(crate) type Enqueue = Box<dyn FnMut(&mut StepStream<'_>) -> Result<()> + Send>;

pub(crate) enum Kind {
    Captured(Enqueue),
    EachStep(Enqueue),
    /// A `CUgraph` of the caller's.
    Graph(u64),
}

/// The body of a stream module: what runs between a step's gate and its end.
pub struct Body {
    pub(crate) kind: Kind,
    /// Launches without records leave it out.
    pub(crate) skips: bool,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.kind {
            Kind::Captured(_) => "Body::captured",
            Kind::EachStep(_) => "Body::each_step",
            Kind::Graph(_) => "Body::graph",
        })
    }
}

impl Body {
    /// Calls `enqueue` once and captures what it enqueues as a CUDA graph, which each step launches again. A launch without
    /// records skips it, by a conditional node, unless [`always`](Self::always) says otherwise. Functions of the host
    /// ([`StepStream::call`]) cannot be captured so. Where the driver refuses what was captured, it is called once more, for a
    /// graph whose parts do not overlap.
    pub fn captured(enqueue: impl FnMut(&mut StepStream<'_>) -> Result<()> + Send + 'static) -> Self {
        Body { kind: Kind::Captured(Box::new(enqueue)), skips: true }
    }

    /// Calls `enqueue` for every step, ahead of its grant, on a thread of the runtime's. It must enqueue and return, not wait
    /// for the stream. A launch that finds no records in time runs what was enqueued all the same, over the buffers as they
    /// were; nothing it leaves there is pushed. So the work must bear that, or look at [`StepStream::live`] itself;
    /// functions of the host are left out.
    pub fn each_step(enqueue: impl FnMut(&mut StepStream<'_>) -> Result<()> + Send + 'static) -> Self {
        Body { kind: Kind::EachStep(Box::new(enqueue)), skips: false }
    }

    /// A CUDA graph (`CUgraph`) that the caller has captured, such as `torch.cuda.CUDAGraph.raw_cuda_graph()`; it is copied,
    /// and skipped by launches without records. Refused on the twin.
    ///
    /// # Safety
    /// It is a graph of the device's primary context, and the memory that its nodes use stays until the runtime has stopped.
    pub unsafe fn graph(graph: u64) -> Self {
        Body { kind: Kind::Graph(graph), skips: true }
    }

    /// Has launches without records run the body too, over the buffers as they were; nothing it leaves there is pushed. A
    /// conditional node costs several microseconds on the way of each record: this saves them, for bodies that bear it. One of more
    /// than 512 kernels and copies is skipped all the same: it does not fit into a stream's queue.
    pub fn always(mut self) -> Self {
        self.skips = false;
        self
    }
}

/// A bound buffer of one end: a head of length and type ([`abi::wm_step_head`]), then as many bytes as a slot carries. The same
/// for every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepBuffer {
    /// Device address of the head.
    pub head: u64,
    /// Bytes of payload that fit.
    pub bytes: usize,
}

impl StepBuffer {
    /// Device address of the payload, aligned to 16 bytes.
    pub fn payload(&self) -> u64 {
        self.head + u64::from(abi::WM_STEP_HEAD_BYTES)
    }
}

pub(crate) fn input_of(args: &abi::wm_gate_args, input: usize) -> Result<StepBuffer> {
    buffer(args, "input", input, args.n_inputs, input)
}

pub(crate) fn output_of(args: &abi::wm_gate_args, output: usize) -> Result<StepBuffer> {
    buffer(args, "output", output, args.n_outputs, abi::WM_MAX_INPUTS as usize + output)
}

fn buffer(args: &abi::wm_gate_args, what: &str, number: usize, of: u32, row: usize) -> Result<StepBuffer> {
    if number >= of as usize {
        return Err(Error::refused(format!("{what} {number} of a stream module"), format!("it has {of}")));
    }
    // SAFETY: a pure function of its argument.
    let bytes = unsafe { abi::wm_host_payload_bytes(args.ends[row].record_stride) } as usize;
    Ok(StepBuffer { head: args.buffers[row], bytes })
}

/// Where the work of a step is enqueued: a CUDA stream; on the twin a list that a thread goes through.
pub(crate) trait Sink {
    fn raw(&self) -> Option<u64>;
    /// # Safety
    /// As [`StepStream::copy`].
    unsafe fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()>;
    fn call(&mut self, function: Box<dyn FnMut() + Send>) -> Result<()>;
}

/// What a body enqueues into, with the buffers of the module's ends.
pub struct StepStream<'a> {
    sink: &'a mut dyn Sink,
    args: &'a abi::wm_gate_args,
}

impl std::fmt::Debug for StepStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepStream").field("raw", &self.sink.raw()).finish_non_exhaustive()
    }
}

impl<'a> StepStream<'a> {
    pub(crate) fn new(sink: &'a mut dyn Sink, args: &'a abi::wm_gate_args) -> Self {
        StepStream { sink, args }
    }

    /// The `CUstream`, to enqueue kernels and library calls into; none on the twin.
    pub fn raw(&self) -> Option<u64> {
        self.sink.raw()
    }

    /// Device address of a word that is not 0 while the step has records: for kernels that skip their work otherwise.
    pub fn live(&self) -> u64 {
        self.args.state + std::mem::offset_of!(abi::wm_gate_state, live) as u64
    }

    /// The buffer that the records of an input are delivered to. With [`Rule::Any`](crate::Rule) the step has one record, and
    /// the heads of the other inputs say [`abi::WM_STEP_NOTHING`].
    pub fn input(&self, input: usize) -> Result<StepBuffer> {
        input_of(self.args, input)
    }

    /// The buffer whose record is pushed to an output when the body is done.
    pub fn output(&self, output: usize) -> Result<StepBuffer> {
        output_of(self.args, output)
    }

    /// Enqueues a copy inside device memory.
    ///
    /// # Safety
    /// Both are memory of the device, that many bytes, and stay so until the runtime has stopped; nobody else writes them
    /// while a step runs.
    pub unsafe fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.sink.copy(to, from, bytes) }
    }

    /// Enqueues a copy of a whole record, length, type and payload, from an input to an output.
    pub fn forward(&mut self, input: usize, output: usize) -> Result<()> {
        let (from, to) = (self.input(input)?, self.output(output)?);
        if from.bytes > to.bytes {
            let rule = format!("its payload has {} bytes, more than the {} of output {output}", from.bytes, to.bytes);
            return Err(Error::refused(format!("forwarding input {input}"), rule));
        }
        // SAFETY: the module's own buffers, of those sizes; steps run one after the other.
        unsafe { self.copy(to.head, from.head, abi::WM_STEP_HEAD_BYTES as usize + from.bytes) }
    }

    /// Enqueues a call of a function of the host's, in stream order; left out by launches without records. It must be short
    /// and call nothing of CUDA. On the twin this is how a body computes.
    pub fn call(&mut self, function: impl FnMut() + Send + 'static) -> Result<()> {
        self.sink.call(Box::new(function))
    }
}
