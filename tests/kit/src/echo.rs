//! The outer ends of relays, as kernels or as the twin's threads: see `forms/echo.hpp`.

use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use warpmail::{Device, DeviceBuffer, abi};

use crate::forms::{Kernels, param, text};

/// What an end spoils on purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum Spoil {
    /// Nothing.
    #[default]
    Nothing = 0,
    /// Behind every [`SPOIL_EVERY`]th record a slot with a length that cannot be.
    Lengths = 1,
    /// At the end it says that it had pushed far more records than fit.
    Index = 2,
    /// At the end it pushes [`RECORDS_BEHIND`] more records that nobody is to take.
    NoneTake = 3,
}

/// See [`Spoil::Lengths`].
pub const SPOIL_EVERY: u64 = 50;
/// See [`Spoil::NoneTake`].
pub const RECORDS_BEHIND: u64 = 4;
/// Relays of one run.
pub const MOST: usize = 8;

/// What the ends of one relay do.
#[derive(Debug, Clone, Copy)]
pub struct Echo {
    /// The mailbox that they push into.
    pub there: abi::wm_mailbox,
    /// The one that they take from.
    pub back: abi::wm_mailbox,
    /// Records that they send at least.
    pub records: u64,
    /// They go on until so many records of another relay of the run are back.
    pub until: Option<(usize, u64)>,
    /// The most that are under way.
    pub ahead: u64,
    /// With none under way they rest ahead of two of three records, once up to this long and once until the arbiter is parked.
    pub rest: Option<Duration>,
    /// What they spoil.
    pub spoil: Spoil,
}

impl Echo {
    /// So many records, one at a time and at once.
    pub fn new(there: abi::wm_mailbox, back: abi::wm_mailbox, records: u64) -> Self {
        Echo { there, back, records, until: None, ahead: 1, rest: None, spoil: Spoil::Nothing }
    }
}

/// What the ends of one relay say when they are done.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct EchoReport {
    /// Records that came back, in order and whole.
    pub got: u64,
    /// As in [`Report`](crate::forms::Report).
    pub fault: u64,
    /// What was expected.
    pub expected: u64,
    /// What was found.
    pub found: u64,
    /// Records sent.
    pub sent: u64,
    /// What they spoilt, and how often.
    pub spoilt: u64,
    /// Rests that ended when they saw the arbiter parked.
    pub parked: u64,
    reserved: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
struct Task {
    there: abi::wm_mailbox,
    back: abi::wm_mailbox,
    seed: u64,
    records: u64,
    until: u64,
    until_count: u64,
    ahead: u64,
    rest_ns: u64,
    spoil: u64,
    by_registers: u64,
    budget_ns: u64,
    scratch: u64,
    report: u64,
}

unsafe extern "C" {
    fn forms_echo(task: *const Task);
}

const SCRATCH: usize = 512;
const REPORT: usize = size_of::<EchoReport>();

/// What the ends need of a device; made before anything else runs there.
pub struct Echoes {
    kernels: Option<Kernels>,
    /// Of each run and relay a report and scratch memory.
    memory: DeviceBuffer,
    runs: usize,
}

impl Echoes {
    /// For so many runs.
    pub fn new(device: &Device, runs: usize) -> Result<Self, String> {
        let kernels = device.info().ordinal.map(Kernels::load).transpose()?;
        // Loading code waits for what runs.
        kernels.iter().try_for_each(|k| k.prepare("forms_echo"))?;
        let memory = device.alloc(runs * MOST * (REPORT + SCRATCH)).map_err(text)?;
        memory.upload(0, &vec![0; memory.len()]).map_err(text)?;
        Ok(Echoes { kernels, memory, runs })
    }

    /// Runs the ends of all relays until they are done, or a time is over (a quarter of a minute for kernels, a minute for
    /// threads), and says what was wrong.
    ///
    /// # Safety
    ///
    /// The mailboxes are those of a runtime that lives, and nobody else has these ends.
    pub unsafe fn run(&mut self, echoes: &[Echo]) -> Result<Vec<EchoReport>, String> {
        assert!(echoes.len() <= MOST && self.runs > 0, "no memory for that");
        self.runs -= 1;
        let reports = self.runs * MOST * REPORT;
        let scratch = (self.memory.len() / (REPORT + SCRATCH)) * REPORT + self.runs * MOST * SCRATCH;
        let report_of = |i: usize| self.memory.address() + (reports + i * REPORT) as u64;
        let mut tasks = [Task::default(); MOST];
        for (i, (task, echo)) in tasks.iter_mut().zip(echoes).enumerate() {
            let (until, until_count) = echo.until.map_or((0, 0), |(other, count)| (report_of(other), count));
            *task = Task {
                there: echo.there,
                back: echo.back,
                seed: 1000 + i as u64,
                records: echo.records,
                until,
                until_count,
                ahead: echo.ahead,
                rest_ns: echo.rest.map_or(0, |d| d.as_nanos() as u64),
                spoil: echo.spoil as u64,
                by_registers: u64::from(i % 2 == 1 && echo.spoil == Spoil::Nothing),
                budget_ns: if self.kernels.is_some() { 15_000_000_000 } else { 240_000_000_000 },
                scratch: self.memory.address() + (scratch + i * SCRATCH) as u64,
                report: report_of(i),
            };
        }
        match &self.kernels {
            Some(kernels) => kernels.run("forms_echo", echoes.len() as u32, 32, &mut [param(&mut tasks)])?,
            None => std::thread::scope(|threads| {
                for task in &tasks[..echoes.len()] {
                    // SAFETY: the caller answers for the mailboxes; report and scratch memory are this value's own.
                    threads.spawn(move || unsafe { forms_echo(task) });
                }
            }),
        }
        let mut told = vec![EchoReport::default(); echoes.len()];
        self.memory.download(reports, bytemuck::cast_slice_mut(&mut told)).map_err(text)?;
        match told.iter().position(|r| r.fault != 0 || r.got != r.sent) {
            Some(i) => Err(format!("the ends of relay {i}: {:?}; all: {told:?}", told[i])),
            None => Ok(told),
        }
    }
}
