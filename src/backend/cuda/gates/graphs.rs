//! The graphs of one step: the gate, a body that was captured, the gate's end.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::super::{Stream, driver};
use super::{Gates, Kernel, LAUNCH, Onto, Second, warp};
use crate::error::{Error, Result};
use crate::stream::{Enqueue, QUEUE, StepStream};

/// Graphs of one step, alike: a launch of one whose last launch has not ended makes the host wait.
pub(super) struct Graphs {
    pub(super) execs: Vec<sys::CUgraphExec>,
    /// The gate is in them.
    pub(super) whole: bool,
    /// What a launch puts into the stream's queue: its wait, its gate and the graph's nodes. What is inside a conditional node
    /// lies with the device.
    pub(super) entries: usize,
}

impl Graphs {
    /// As many as are under way at most, each made by `make`.
    pub(super) fn several(
        n: usize,
        whole: bool,
        entries: usize,
        make: impl Fn() -> Result<sys::CUgraphExec>,
    ) -> Result<Self> {
        let mut graphs = Graphs { execs: Vec::new(), whole, entries };
        for _ in 0..n {
            match make() {
                Ok(exec) => graphs.execs.push(exec),
                Err(e) => {
                    // SAFETY: never launched.
                    unsafe { graphs.destroy() };
                    return Err(e);
                }
            }
        }
        Ok(graphs)
    }

    /// # Safety
    /// No launch of theirs is under way, and their context has been entered.
    pub(super) unsafe fn destroy(self) {
        for exec in self.execs {
            // SAFETY: instantiated for this object; the rest is the caller's word.
            let _ = unsafe { sys::cuGraphExecDestroy(exec) };
        }
    }
}

impl Gates {
    /// Graphs of one step around what `enqueue` enqueues, as many as are under way at most.
    pub(super) fn captured(&self, enqueue: &mut Enqueue, skips: bool, n: usize, early: bool) -> Result<Graphs> {
        let graph = Graph(self.capture(enqueue, (!skips).then_some(early))?);
        if skips {
            return self.around(graph.0, true, n);
        }
        let entries = entries_of(graph.0)?;
        if self.is_too_long(entries) {
            let bare = Graph(self.capture(enqueue, None)?);
            return self.around(bare.0, false, n);
        }
        Graphs::several(n, true, entries + 1, || self.instantiate(graph.0))
    }

    /// Whether a launch with so many nodes does not fit into a queue behind a door.
    fn is_too_long(&self, entries: usize) -> bool {
        self.args.doors != 0 && entries > QUEUE
    }

    /// Captures what `enqueue` enqueues, on a stream of its own: the module's may be the caller's, and have work. `whole`: with
    /// the gate in front of it and the gate's end behind, which may begin early, if that is asked for and can be.
    pub(super) fn capture(&self, enqueue: &mut Enqueue, whole: Option<bool>) -> Result<sys::CUgraph> {
        let (side, mode) = (Stream::new()?, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED);
        // SAFETY: an idle stream of this context.
        unsafe { sys::cuStreamBeginCapture_v2(side.0, mode) }.result().map_err(driver("cuStreamBeginCapture"))?;
        let mut sink = Onto { stream: side.0, calls: None, live: self.live, failed: &self.failed };
        let begun = if whole.is_some() { self.launch_begin(side.0) } else { Ok(()) };
        let has_begun = begun.is_ok();
        let mut outcome = begun.and_then(|()| enqueue(&mut StepStream::new(&mut sink, &self.args)));
        if let (Some(early), Ok(())) = (whole, &outcome) {
            outcome = self.launch(&warp(self.end), side.0, early && is_behind_a_kernel(side.0));
        }
        let mut captured = std::ptr::null_mut();
        // SAFETY: ends what was begun above; nothing is enqueued on the stream, it only captured.
        let ended = unsafe {
            let ended = sys::cuStreamEndCapture(side.0, &mut captured);
            let _ = result::stream::destroy(side.0);
            ended
        };
        let unfit = |e| {
            let reason = format!(
                "{}; a body must not wait for its stream, allocate, or use a stream that it did not fork from it",
                crate::probe::driver_reason(e)
            );
            Error::Driver { call: "capturing the body", reason }
        };
        match (outcome, ended.result()) {
            // What the body did shows in the launch behind it.
            (Err(Error::Driver { call: LAUNCH, .. }), Err(e)) if has_begun => Err(unfit(e)),
            (Err(e), _) => Err(e),
            (Ok(()), ended) => ended.map_err(unfit).map(|()| captured),
        }
    }

    /// Graphs of one step around copies of `body`, as many as are under way at most. A body that is too long for a queue is
    /// skipped by launches without records even if it need not be, where the driver can.
    pub(super) fn around(&self, body: sys::CUgraph, skips: bool, n: usize) -> Result<Graphs> {
        let skipping = || {
            Graphs::several(n, false, CONDITIONAL_ENTRIES + self.deliveries.len(), || {
                self.instance(|g| self.conditional(g, &[], body).map(drop))
            })
        };
        if skips {
            return skipping();
        }
        let entries = entries_of(body)? + 3 + self.deliveries.len(); // wait, gate, end
        if self.is_too_long(entries) {
            match skipping() {
                Ok(graphs) => return Ok(graphs),
                Err(e) => tracing::debug!(error = %e, entries, "a long body cannot be skipped; the host lets it in"),
            }
        }
        Graphs::several(n, true, entries, || self.instance(|g| self.plain(g, &[], body).map(drop)))
    }

    /// An instance of a new graph that `fill` fills.
    pub(super) fn instance(&self, fill: impl Fn(sys::CUgraph) -> Result<()>) -> Result<sys::CUgraphExec> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: a plain creation.
        unsafe { sys::cuGraphCreate(&mut graph, 0) }.result().map_err(driver("cuGraphCreate"))?;
        let graph = Graph(graph);
        fill(graph.0)?;
        self.instantiate(graph.0)
    }

    fn instantiate(&self, graph: sys::CUgraph) -> Result<sys::CUgraphExec> {
        let mut exec = std::ptr::null_mut();
        // SAFETY: a whole graph of this context.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0) }
            .result()
            .map_err(driver("cuGraphInstantiate"))?;
        // SAFETY: just instantiated; the first launch need not upload it.
        unsafe { sys::cuGraphUpload(exec, self.stream) }.result().map_err(driver("cuGraphUpload"))?;
        Ok(exec)
    }

    /// The gate and what is to be there before the body begins, behind other nodes of the graph. The last of them.
    pub(super) fn begin_nodes(&self, graph: sys::CUgraph, after: &[sys::CUgraphNode]) -> Result<sys::CUgraphNode> {
        let begin = self.kernel_node(graph, after, &warp(self.begin))?;
        let mut deliveries = self.deliveries.iter();
        deliveries.try_fold(begin, |last, d| self.kernel_node(graph, &[last], &self.kernels.delivery(d)))
    }

    /// Gate, body, end, behind other nodes of the graph. The end.
    pub(super) fn plain(
        &self,
        graph: sys::CUgraph,
        after: &[sys::CUgraphNode],
        body: sys::CUgraph,
    ) -> Result<sys::CUgraphNode> {
        let begin = self.begin_nodes(graph, after)?;
        let middle = child(graph, &[begin], body)?;
        self.kernel_node(graph, &[middle], &warp(self.end))
    }

    /// Body and end, the body as a conditional node; the gate stands in front of them. The end.
    pub(super) fn conditional(
        &self,
        graph: sys::CUgraph,
        after: &[sys::CUgraphNode],
        body: sys::CUgraph,
    ) -> Result<sys::CUgraphNode> {
        let cannot = |e| {
            let reason = crate::probe::driver_reason(e);
            let what = "conditional nodes of CUDA graphs, which skip a captured body (CUDA 12.4 or newer)";
            Error::Unavailable { what, reason: format!("{reason}; Body::always does without") }
        };
        let assign = sys::CU_GRAPH_COND_ASSIGN_DEFAULT;
        let mut handle = 0;
        // SAFETY: a graph of this context.
        unsafe { sys::cuGraphConditionalHandleCreate(&mut handle, graph, self.context.raw, 0, assign) }
            .result()
            .map_err(cannot)?;
        let decide = Kernel { second: Second::Handle(handle), ..warp(self.kernels.decide) };
        let begin = self.kernel_node(graph, after, &decide)?;
        let mut params: sys::CUgraphNodeParams = unsafe_zeroed();
        params.type_ = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_CONDITIONAL;
        params.__bindgen_anon_1.conditional = sys::CUDA_CONDITIONAL_NODE_PARAMS {
            handle,
            type_: sys::CUgraphConditionalNodeType::CU_GRAPH_COND_TYPE_IF,
            size: 1,
            phGraph_out: std::ptr::null_mut(),
            ctx: self.context.raw,
        };
        let mut node = std::ptr::null_mut();
        // SAFETY: the node before is of this graph; the driver writes the body's graph into the parameters.
        unsafe { sys::cuGraphAddNode_v2(&mut node, graph, &begin, std::ptr::null(), 1, &mut params) }
            .result()
            .map_err(cannot)?;
        // SAFETY: written by the call above, which made a conditional of one body.
        let inside = unsafe { *params.__bindgen_anon_1.conditional.phGraph_out };
        child(inside, &[], body)?;
        self.kernel_node(graph, &[node], &warp(self.end))
    }

    pub(super) fn kernel_node(
        &self,
        graph: sys::CUgraph,
        after: &[sys::CUgraphNode],
        kernel: &Kernel<'_>,
    ) -> Result<sys::CUgraphNode> {
        let mut args = self.args;
        let mut params = [(&raw mut args).cast::<c_void>(), kernel.second.address()];
        let node_params = sys::CUDA_KERNEL_NODE_PARAMS {
            func: kernel.function,
            gridDimX: kernel.blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            kernelParams: params.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        let mut node = std::ptr::null_mut();
        // SAFETY: the nodes before are of this graph; the parameters are those that the kernel takes (the last is left alone
        // by the one that has none); the driver copies them.
        unsafe { sys::cuGraphAddKernelNode_v2(&mut node, graph, after.as_ptr(), after.len(), &node_params) }
            .result()
            .map_err(driver("cuGraphAddKernelNode"))?;
        Ok(node)
    }
}

/// A graph of this module's own; what is instantiated of it, or copied, stands alone.
struct Graph(sys::CUgraph);

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made or captured for this object alone.
        let _ = unsafe { sys::cuGraphDestroy(self.0) };
    }
}

/// Wait, gate, decision, conditional node, end.
pub(super) const CONDITIONAL_ENTRIES: usize = 5;

/// Nodes of a graph, those of its children in their place.
pub(super) fn entries_of(graph: sys::CUgraph) -> Result<usize> {
    let mut n = 0;
    // SAFETY: asks for the number of nodes of a graph that is whole.
    unsafe { sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut n) }.result().map_err(driver("cuGraphGetNodes"))?;
    let mut nodes = vec![std::ptr::null_mut(); n];
    // SAFETY: as many places as it has nodes.
    unsafe { sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut n) }.result().map_err(driver("cuGraphGetNodes"))?;
    nodes.truncate(n);
    let mut entries = 0;
    for node in nodes {
        let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
        // SAFETY: a node of the graph.
        unsafe { sys::cuGraphNodeGetType(node, &mut kind) }.result().map_err(driver("cuGraphNodeGetType"))?;
        if kind != sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_GRAPH {
            entries += 1;
            continue;
        }
        let mut child = std::ptr::null_mut();
        // SAFETY: a node that holds a graph, which stays its own.
        unsafe { sys::cuGraphChildGraphNodeGetGraph(node, &mut child) }
            .result()
            .map_err(driver("cuGraphChildGraphNodeGetGraph"))?;
        entries += entries_of(child)?;
    }
    Ok(entries)
}

/// Whether what is captured next on a stream follows one kernel and nothing else. Only then may it begin early.
fn is_behind_a_kernel(stream: sys::CUstream) -> bool {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    let (mut id, mut graph, mut n) = (0, std::ptr::null_mut(), 0);
    let (mut nodes, mut edges) = (std::ptr::null(), std::ptr::null());
    // SAFETY: asks for what the stream has captured; the lists stay until the next call for it.
    let asked = unsafe {
        sys::cuStreamGetCaptureInfo_v3(stream, &mut status, &mut id, &mut graph, &mut nodes, &mut edges, &mut n)
    };
    if asked.result().is_err() || n != 1 || nodes.is_null() {
        return false;
    }
    let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
    // SAFETY: the first of `n` nodes.
    let asked = unsafe { sys::cuGraphNodeGetType(*nodes, &mut kind) };
    asked.result().is_ok() && kind == sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL
}

/// Adds a copy of `body` to a graph.
fn child(graph: sys::CUgraph, after: &[sys::CUgraphNode], body: sys::CUgraph) -> Result<sys::CUgraphNode> {
    let mut node = std::ptr::null_mut();
    // SAFETY: both are graphs of this context (for a caller's own, see Body::graph); the nodes before are of the first.
    unsafe { sys::cuGraphAddChildGraphNode(&mut node, graph, after.as_ptr(), after.len(), body) }
        .result()
        .map_err(driver("cuGraphAddChildGraphNode"))?;
    Ok(node)
}

/// A union that the driver takes zero-filled.
fn unsafe_zeroed() -> sys::CUgraphNodeParams {
    // SAFETY: plain data of which every bit pattern, zeros too, is a value.
    unsafe { std::mem::zeroed() }
}
