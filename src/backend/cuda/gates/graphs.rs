//! The graphs of one step: the gate, a body that was captured, the gate's end.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::super::{Stream, driver};
use super::{Gates, Onto, THREADS};
use crate::error::{Error, Result};
use crate::stream::{Enqueue, StepStream};

impl Gates {
    /// Graphs of one step around what `enqueue` enqueues, as many as are under way at most.
    pub(super) fn captured(
        &self,
        enqueue: &mut Enqueue,
        skips: bool,
        n: usize,
        early: bool,
    ) -> Result<Vec<sys::CUgraphExec>> {
        let graph = self.capture(enqueue, (!skips).then_some(early))?;
        let execs = if skips { self.graphs(graph, true, n) } else { self.instances(graph, n) };
        // SAFETY: captured above; what was made of it has copies.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        execs
    }

    /// Captures what `enqueue` enqueues, on a stream of its own: the module's may be the caller's, and have work. `whole`: with
    /// the gate in front of it and the gate's end behind, which may begin early, if that is asked for and can be.
    pub(super) fn capture(&self, enqueue: &mut Enqueue, whole: Option<bool>) -> Result<sys::CUgraph> {
        let (side, mode) = (Stream::new()?, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED);
        // SAFETY: an idle stream of this context.
        unsafe { sys::cuStreamBeginCapture_v2(side.0, mode) }.result().map_err(driver("cuStreamBeginCapture"))?;
        let mut sink = Onto { stream: side.0, calls: None, live: self.live, failed: &self.failed };
        let mut outcome = if whole.is_some() { self.launch(self.begin, side.0, false) } else { Ok(()) };
        outcome = outcome.and_then(|()| enqueue(&mut StepStream::new(&mut sink, &self.args)));
        if let (Some(early), Ok(())) = (whole, &outcome) {
            outcome = self.launch(self.end, side.0, early && is_behind_a_kernel(side.0));
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
            (Err(Error::Driver { call: "cuLaunchKernelEx", .. }), Err(e)) => Err(unfit(e)),
            (Err(e), _) => Err(e),
            (Ok(()), ended) => ended.map_err(unfit).map(|()| captured),
        }
    }

    /// Instances of one graph, as many as are under way at most.
    fn instances(&self, graph: sys::CUgraph, n: usize) -> Result<Vec<sys::CUgraphExec>> {
        let mut execs = Vec::new();
        for _ in 0..n {
            match self.instantiate(graph) {
                Ok(exec) => execs.push(exec),
                Err(e) => {
                    forget(execs);
                    return Err(e);
                }
            }
        }
        Ok(execs)
    }

    /// Graphs of one step around copies of `body`, as many as are under way at most.
    pub(super) fn graphs(&self, body: sys::CUgraph, skips: bool, n: usize) -> Result<Vec<sys::CUgraphExec>> {
        let mut execs = Vec::new();
        for _ in 0..n {
            let mut graph = std::ptr::null_mut();
            // SAFETY: a plain creation.
            unsafe { sys::cuGraphCreate(&mut graph, 0) }.result().map_err(driver("cuGraphCreate"))?;
            // A body that is skipped has its gate in front of the graph: see gates.cu.
            let end = if skips { self.conditional(graph, &[], body) } else { self.plain(graph, &[], body) };
            let exec = end.and_then(|_| self.instantiate(graph));
            // SAFETY: made above; what was instantiated of it stands alone.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
            match exec {
                Ok(exec) => execs.push(exec),
                Err(e) => {
                    forget(execs);
                    return Err(e);
                }
            }
        }
        Ok(execs)
    }

    pub(super) fn instantiate(&self, graph: sys::CUgraph) -> Result<sys::CUgraphExec> {
        let mut exec = std::ptr::null_mut();
        // SAFETY: a whole graph of this context.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0) }
            .result()
            .map_err(driver("cuGraphInstantiate"))?;
        // SAFETY: just instantiated; the first launch need not upload it.
        unsafe { sys::cuGraphUpload(exec, self.stream) }.result().map_err(driver("cuGraphUpload"))?;
        Ok(exec)
    }

    /// Gate, body, end, behind other nodes of the graph. The end.
    pub(super) fn plain(
        &self,
        graph: sys::CUgraph,
        after: &[sys::CUgraphNode],
        body: sys::CUgraph,
    ) -> Result<sys::CUgraphNode> {
        let begin = self.kernel_node(graph, after, self.begin, None)?;
        let middle = child(graph, &[begin], body)?;
        self.kernel_node(graph, &[middle], self.end, None)
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
        let begin = self.kernel_node(graph, after, self.kernels.decide, Some(handle))?;
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
        self.kernel_node(graph, &[node], self.end, None)
    }

    pub(super) fn kernel_node(
        &self,
        graph: sys::CUgraph,
        after: &[sys::CUgraphNode],
        function: sys::CUfunction,
        handle: Option<sys::CUgraphConditionalHandle>,
    ) -> Result<sys::CUgraphNode> {
        let (mut args, mut handle) = (self.args, handle.unwrap_or(0));
        let mut params = [(&raw mut args).cast::<c_void>(), (&raw mut handle).cast::<c_void>()];
        let node_params = sys::CUDA_KERNEL_NODE_PARAMS {
            func: function,
            gridDimX: 1,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: THREADS,
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

/// Destroys graphs that were never launched.
fn forget(execs: Vec<sys::CUgraphExec>) {
    for exec in execs {
        // SAFETY: instantiated by the caller, and never launched.
        let _ = unsafe { sys::cuGraphExecDestroy(exec) };
    }
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
