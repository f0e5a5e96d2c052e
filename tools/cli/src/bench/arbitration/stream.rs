//! The same work on streams: bodies that read a record from a bound buffer, work, and leave it in others with a stamp.

use std::sync::Arc;

use warpmail::{Body, Device, Error, Result, StepBuffer, StepStream, abi};

use super::{How, WORDS};
use crate::bench::gpu::{Kernel, Kernels, arg};

/// `step_ends` of bench_kernels/steps.cuh.
const ENDS: usize = 4;

/// `step_work` of bench_kernels/steps.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Work {
    pub(super) inputs: [u64; ENDS],
    pub(super) outputs: [u64; ENDS],
    pub(super) n_inputs: u64,
    pub(super) n_outputs: u64,
    pub(super) work_ns: u64,
    pub(super) early: u64,
    pub(super) leaves_after: u64,
}

impl Work {
    fn bind(mut self, step: &StepStream<'_>) -> Result<Self> {
        let head = |buffer: StepBuffer| buffer.head;
        for i in 0..self.n_inputs as usize {
            self.inputs[i] = head(step.input(i)?);
        }
        for o in 0..self.n_outputs as usize {
            self.outputs[o] = head(step.output(o)?);
        }
        Ok(self)
    }
}

/// The bench kernels, if there is a GPU.
pub(super) struct Bodies {
    gpu: Option<(Arc<Kernels>, Kernel)>,
    how: How,
}

impl Bodies {
    pub(super) fn new(device: &Device, how: How) -> std::result::Result<Self, String> {
        if device.info().ordinal.is_none() {
            return Ok(Bodies { gpu: None, how });
        }
        let how = match how {
            How::Early if device.info().compute_capability < Some((9, 0)) => How::Always,
            how => how,
        };
        let kernels = Kernels::load(device)?;
        let kernel = kernels.get("step_work", 0)?;
        Ok(Bodies { gpu: Some((Arc::new(kernels), kernel)), how })
    }

    pub(super) fn are_captured(&self) -> bool {
        self.gpu.is_some() && self.how != How::EachStep
    }

    pub(super) fn body(&self, work: Work) -> Body {
        let Some((kernels, kernel)) = &self.gpu else {
            return Body::each_step(move |step| {
                let work = work.bind(step)?;
                // SAFETY: the buffers are the module's own, which nobody else touches while its step runs.
                step.call(move || unsafe { on_the_host(&work) })
            });
        };
        let (kernels, kernel, early) = (kernels.clone(), *kernel, self.how == How::Early);
        let enqueue = move |step: &mut StepStream<'_>| {
            let mut work = Work { early: u64::from(early), ..work.bind(step)? };
            let stream = step.raw().ok_or_else(|| Error::Failed("there is no stream".into()))?;
            let outcome = kernels.launch_on(kernel, (1, 32), early, stream, &mut [arg(&mut work)]);
            outcome.map_err(Error::Failed)
        };
        match self.how {
            How::Early | How::Always => Body::captured(enqueue).always(),
            How::Conditional => Body::captured(enqueue),
            How::EachStep => Body::each_step(enqueue),
        }
    }
}

/// # Safety
/// The buffers are live, have a head and [`WORDS`] words each, and are this thread's meanwhile.
unsafe fn on_the_host(work: &Work) {
    // SAFETY: reads a clock.
    let now = || unsafe { abi::wm_host_now_ns() };
    let began = now();
    // SAFETY: as the caller promises.
    let buffer = |at: u64| unsafe {
        let words = (at + u64::from(abi::WM_STEP_HEAD_BYTES)) as *mut [u64; WORDS];
        (&mut *(at as *mut abi::wm_step_head), &mut *words)
    };
    let mut record: Option<([u64; WORDS], u32)> = None;
    for &at in &work.inputs[..work.n_inputs as usize] {
        let (head, words) = buffer(at);
        if head.len == abi::WM_STEP_NOTHING {
            continue;
        }
        let last = 1 + 2 * words[1] as usize;
        match &mut record {
            Some((first, _)) => first[last] = first[last].max(words[last]),
            None => record = Some((*words, head.type_)),
        }
    }
    let Some((mut record, msg_type)) = record else { return };
    while now() - began < work.work_ns {
        std::hint::spin_loop();
    }
    let hops = record[1] as usize;
    (record[2 + 2 * hops], record[3 + 2 * hops], record[1]) = (began, now(), record[1] + 1);
    let leaves = work.leaves_after != 0;
    let outputs = &work.outputs[..work.n_outputs as usize];
    let to = match outputs {
        [.., last] if leaves && record[1] >= work.leaves_after => std::slice::from_ref(last),
        [first, ..] if leaves => std::slice::from_ref(first),
        all => all,
    };
    for &at in to {
        let (head, words) = buffer(at);
        *words = record;
        *head = abi::wm_step_head { len: 8 * WORDS as u32, type_: msg_type, step: 0 };
    }
}
