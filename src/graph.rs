//! Making a module graph: modules, mailboxes between them, and the rules they must keep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::abi;
use crate::budget::SpinBudget;
use crate::device::{Device, DeviceBuffer};
use crate::error::{Error, Result};
use crate::image::HandlerImage;
use crate::options::{MailboxOptions, Mode, ModuleOptions, Rule, Tap};
use crate::runtime::Runtime;
use crate::stream::StreamOptions;
use crate::tensor::Pool;

mod order;
mod state;
mod taps;

pub use state::StateBuffer;
pub(crate) use state::StatePlan;

/// A module of one graph: its row in the module table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(pub(crate) u32);

/// A mailbox of one graph: its row in the mailbox table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MailboxId(pub(crate) u32);

impl ModuleId {
    /// Row of the module table.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl MailboxId {
    /// Row of the mailbox table.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ModulePlan {
    pub(crate) name: String,
    pub(crate) kind: u32,
    pub(crate) options: ModuleOptions,
    /// Of a stream module whose steps the arbiter grants.
    pub(crate) steps: Option<StreamOptions>,
    pub(crate) inputs: Vec<u32>,
    pub(crate) outputs: Vec<u32>,
}

#[derive(Debug, Clone)]
pub(crate) struct MailboxPlan {
    pub(crate) name: String,
    pub(crate) options: MailboxOptions,
    pub(crate) producer: u32,
    pub(crate) consumer: u32,
    pub(crate) tap: Tap,
    /// The only type that the tap takes.
    pub(crate) tap_type: Option<u16>,
    pub(crate) tap_tensors: bool,
}

/// Collects modules and mailboxes, checks them, and makes a [`Runtime`].
#[derive(Debug)]
pub struct Builder {
    pub(crate) device: Device,
    pub(crate) budget: SpinBudget,
    pub(crate) mode: Option<Mode>,
    pub(crate) modules: Vec<ModulePlan>,
    pub(crate) mailboxes: Vec<MailboxPlan>,
    pub(crate) keep: Vec<DeviceBuffer>,
    pub(crate) has_pacer: bool,
    pub(crate) short_queues: Option<usize>,
    pub(crate) host_doors: bool,
    pub(crate) lingers: bool,
    pub(crate) ahead: bool,
    pub(crate) beside: Option<u64>,
    pub(crate) static_order: bool,
    pub(crate) held: Arc<AtomicBool>,
    pub(crate) journal_slots: u32,
    pub(crate) journal_threads: Option<u32>,
    pub(crate) journal_blocks: u32,
    pub(crate) state: StatePlan,
    pub(crate) pool: Option<Pool>,
}

impl Builder {
    /// An empty graph for a device.
    pub fn new(device: Device) -> Self {
        let budget = SpinBudget { servers: default_servers(&device), ..SpinBudget::default() };
        Builder {
            device,
            budget,
            mode: None,
            modules: Vec::new(),
            mailboxes: Vec::new(),
            keep: Vec::new(),
            has_pacer: true,
            short_queues: None,
            host_doors: false,
            lingers: false,
            ahead: true,
            beside: None,
            static_order: false,
            held: Arc::default(),
            journal_slots: 1024,
            journal_threads: None,
            journal_blocks: 0,
            state: StatePlan::default(),
            pool: None,
        }
    }

    /// The device that the graph is for.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Sets the limits on the arbiter. The default depends on the device: 6 servers on a GPU; on the twin as many
    /// threads as the machine has cores to spare.
    pub fn budget(&mut self, budget: SpinBudget) -> Result<&mut Self> {
        budget.check()?;
        self.budget = budget;
        Ok(self)
    }

    /// Whether servers keep the module that they have run for a while and wait for its next record themselves, at the slot:
    /// a record from another kernel is then seen as soon as its bytes arrive. Off unless it is called.
    ///
    /// Tried on the twin, under ThreadSanitizer, and in round trips on a GPU; its scenarios have not run on a GPU yet.
    pub fn lingering(&mut self, on: bool) -> &mut Self {
        self.lingers = on;
        self
    }

    /// Whether an arbiter on the CPU has work enqueued behind what may give it its records, before they are there; it does
    /// unless told otherwise. Without, each step is decided on and launched when its records are there: what there is to
    /// compare with, and less work where records often take another way than they might. Nothing else changes.
    pub fn ahead(&mut self, on: bool) -> &mut Self {
        self.ahead = on;
        self
    }

    /// A stream (`CUstream`, `cudaStream_t`; 0: the legacy default stream, PyTorch's) whose kernels are to notice nothing of a parked
    /// arbiter, also where they are small and launched one by one. A wait of the front end costs those on its own side of it something
    /// each (docs/parking.md), so [`Self::build`] finds out on which side this stream is, by about sixteen launches of a fifth of a
    /// millisecond on it, and has the arbiter wait on the other. It leaves that to chance unless a stream is named, and where the
    /// stream has other work or is being captured when it looks. It does not hold while records come, until a tenth of a second after the
    /// last, nor for the waits of stream modules. On the twin, and where the CPU arbitrates, this changes nothing.
    ///
    /// # Safety
    /// A stream of the device's primary context that exists until the last build. During a build nobody begins to capture it, and nobody
    /// has work on it that waits for what is enqueued there later; the same of all blocking streams, if it is the legacy default stream.
    pub unsafe fn beside(&mut self, stream: u64) -> &mut Self {
        self.beside = Some(stream);
        self
    }

    /// The limits on the arbiter as they are now.
    pub fn current_budget(&self) -> &SpinBudget {
        &self.budget
    }

    /// Says who arbitrates. Unless it is called: what the environment variable `WARPMAIL_MODE` says (`device` or `cpu`), or
    /// [`Mode::Device`] without it.
    pub fn mode(&mut self, mode: Mode) -> &mut Self {
        self.mode = Some(mode);
        self
    }

    /// Who will arbitrate, or what is wrong with `WARPMAIL_MODE`.
    pub fn current_mode(&self) -> Result<Mode> {
        self.mode.map_or_else(Mode::from_environment, Ok)
    }

    /// After `build` has settled it.
    pub(crate) fn is_cpu_arbitrated(&self) -> bool {
        self.mode == Some(Mode::Cpu)
    }

    /// Leaves out the thread that bounds the waits of a parked arbiter: for tests that a lost wake-up must fail.
    #[doc(hidden)]
    pub fn without_pacer(&mut self) -> &mut Self {
        self.has_pacer = false;
        self
    }

    /// Has the host's thread wait for the doors of a parked arbiter, as it does where the device's streams cannot: to try that.
    #[doc(hidden)]
    pub fn with_host_doors(&mut self) -> &mut Self {
        self.host_doors = true;
        self
    }

    /// Lets no launch begin while the word is set, as on a device that has no room for one: to try that.
    #[doc(hidden)]
    pub fn with_no_room(&mut self) -> Arc<AtomicBool> {
        self.host_doors = true;
        self.held.store(true, Ordering::Release);
        self.held.clone()
    }

    /// Has the streams of the twin hold so many launches that wait, as those of a GPU do: to try that.
    #[doc(hidden)]
    pub fn with_short_queues(&mut self, launches: usize) -> &mut Self {
        self.short_queues = Some(launches);
        self
    }

    /// Keeps a buffer as long as the runtime and its ends live: for state that holds its address.
    pub fn keep(&mut self, buffer: DeviceBuffer) -> &mut Self {
        self.keep.push(buffer);
        self
    }

    /// The pool that the tensors of this graph's records come from: its resident handlers check and release leases of it,
    /// its senders post and its receivers take them. Several graphs may share one. It must be of the same device.
    pub fn pool(&mut self, pool: &Pool) -> Result<&mut Self> {
        let (mine, its) = (self.device.info(), pool.device().info());
        if mine.ordinal != its.ordinal {
            return Err(Error::refused(
                format!("a pool on {} for a graph on {}", its.name, mine.name),
                "its memory is not the graph's device's",
            ));
        }
        self.pool = Some(pool.clone());
        Ok(self)
    }

    /// A resident module: a handler that the arbiter itself runs.
    pub fn resident(&mut self, name: &str, options: impl Into<ModuleOptions>) -> Result<ModuleId> {
        let options = options.into();
        if options.batch == 0 {
            return Err(Error::refused(format!("module {name}"), "a batch has at least one step"));
        }
        if u32::from(options.priority) >= abi::WM_PRIORITIES {
            return Err(Error::refused(
                format!("priority {} of module {name}", options.priority),
                format!("must be 0 (most urgent) to {}", abi::WM_PRIORITIES - 1),
            ));
        }
        self.module(name, abi::WM_KIND_RESIDENT, options, None)
    }

    /// A host module: its ends are a [`Sender`](crate::Sender) and a [`Receiver`](crate::Receiver), used by a thread of the
    /// caller's or by [`Runtime::spawn`].
    pub fn host(&mut self, name: &str) -> Result<ModuleId> {
        self.module(name, abi::WM_KIND_HOST, ModuleOptions::default(), None)
    }

    /// A module on the device that nobody wakes: a kernel of the caller's that uses the device API with the handles of
    /// [`Runtime::handle`]. [`Self::steps`] makes stream modules that the arbiter wakes.
    pub fn stream(&mut self, name: &str) -> Result<ModuleId> {
        self.module(name, abi::WM_KIND_STREAM, ModuleOptions::default(), None)
    }

    /// A stream module: work on a CUDA stream, in steps that the arbiter grants. Its body is given to the runtime with
    /// [`Runtime::body`] before the start. It needs an input, and at most 8 of each end; a step takes one record from every
    /// input (or one of them, by the rule) and pushes at most one to every output.
    pub fn steps(&mut self, name: &str, options: StreamOptions) -> Result<ModuleId> {
        options.check(name, self.budget.residency)?;
        let (rule, priority) = (options.rule, options.priority);
        let plain = ModuleOptions { rule, priority, out_records: 1, ..ModuleOptions::default() };
        self.module(name, abi::WM_KIND_STREAM, plain, Some(options))
    }

    fn module(
        &mut self,
        name: &str,
        kind: u32,
        options: ModuleOptions,
        steps: Option<StreamOptions>,
    ) -> Result<ModuleId> {
        if name.is_empty() {
            return Err(Error::refused(
                "a module without a name",
                "every module has a name, so that errors can say it",
            ));
        }
        if self.modules.iter().any(|m| m.name == name) {
            return Err(Error::refused(format!("module {name}"), "the name is taken by another module of this graph"));
        }
        if self.modules.len() >= abi::WM_MAX_MODULES as usize {
            return Err(Error::refused(format!("module {name}"), format!("at most {} modules", abi::WM_MAX_MODULES)));
        }
        let id = self.modules.len() as u32;
        let name = name.to_string();
        self.modules.push(ModulePlan { name, kind, options, steps, inputs: Vec::new(), outputs: Vec::new() });
        Ok(ModuleId(id))
    }

    fn module_name(&self, id: ModuleId) -> Result<String> {
        self.modules.get(id.index()).map(|m| m.name.clone()).ok_or_else(|| {
            Error::refused(format!("module id {}", id.0), "it belongs to another graph: this one has no such module")
        })
    }

    /// A mailbox from its one producer to its one consumer. It becomes the next output of the one and the next input of the
    /// other: handlers know their ends by these positions.
    pub fn mailbox(&mut self, from: ModuleId, to: ModuleId, options: MailboxOptions) -> Result<MailboxId> {
        let name = format!("{}->{}", self.module_name(from)?, self.module_name(to)?);
        options.check()?;
        if self.mailboxes.len() >= abi::WM_MAX_MAILBOXES as usize {
            return Err(Error::refused(name, format!("at most {} mailboxes", abi::WM_MAX_MAILBOXES)));
        }
        let limit = |module: ModuleId, count: usize, max: u32, what: &str| {
            let plan = &self.modules[module.index()];
            if plan.is_granted() && count >= max as usize {
                return Err(Error::refused(
                    format!("module {}", plan.name),
                    format!("a module that the arbiter grants steps to has at most {max} {what}"),
                ));
            }
            Ok(())
        };
        limit(from, self.modules[from.index()].outputs.len(), abi::WM_MAX_OUTPUTS, "outputs")?;
        limit(to, self.modules[to.index()].inputs.len(), abi::WM_MAX_INPUTS, "inputs")?;
        let id = self.mailboxes.len() as u32;
        self.modules[from.index()].outputs.push(id);
        self.modules[to.index()].inputs.push(id);
        self.mailboxes.push(MailboxPlan {
            name,
            options,
            producer: from.0,
            consumer: to.0,
            tap: Tap::Off,
            tap_type: None,
            tap_tensors: false,
        });
        Ok(MailboxId(id))
    }

    /// Checks the graph as a whole, allocates everything, loads the handler set. Nothing runs yet.
    pub fn build(mut self, image: HandlerImage) -> Result<Runtime> {
        let mode = self.current_mode()?;
        self.mode = Some(mode);
        self.check()?;
        self.budget.settle(&self.device, mode);
        Runtime::new(self, image)
    }

    fn check(&self) -> Result<()> {
        if self.mailboxes.is_empty() {
            return Err(Error::refused("the graph", "needs at least one mailbox"));
        }
        if self.pool.is_none()
            && let Some(m) = self.mailboxes.iter().find(|m| m.tap_tensors && m.tap != Tap::Off)
        {
            let rule = "there is no pool that they could come from: see Builder::pool";
            return Err(Error::refused(format!("the tensors of mailbox {}", m.name), rule));
        }
        let cuda = self.device.info().ordinal.is_some();
        if cuda
            && !self.is_cpu_arbitrated()
            && let Some(reason) = crate::probe::no_place_to_stay()
        {
            return Err(Error::Unavailable { what: "device-arbitrated mode", reason });
        }
        if cuda && self.budget.servers == 0 {
            return Err(Error::refused(
                "0 servers",
                "a GPU's arbiter needs at least one; only the twin can do without",
            ));
        }
        // Keeper, inbox, a scanner, and the journal's role.
        let most_servers = abi::WM_MAX_WARPS - 4;
        if self.has_server_taps() && !self.is_cpu_arbitrated() && self.budget.servers > most_servers {
            let rule = format!("at most {most_servers} where records are journalled, for which it needs a warp");
            return Err(Error::refused(format!("{} servers", self.budget.servers), rule));
        }
        self.check_journal_slots()?;
        self.check_steps()?;
        self.order()?;
        for module in self.modules.iter().filter(|m| m.is_granted()) {
            let what = || format!("module {}", module.name);
            if module.inputs.is_empty() {
                let rule = "a module that the arbiter grants steps to needs an input: nothing else would ever wake it";
                return Err(Error::refused(what(), rule));
            }
            for &output in &module.outputs {
                let mailbox = &self.mailboxes[output as usize];
                if module.out_records() > mailbox.options.slots {
                    return Err(Error::refused(
                        what(),
                        format!(
                            "one step may push {} records, but mailbox {} has only {} slots",
                            module.out_records(),
                            mailbox.name,
                            mailbox.options.slots
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// What stream modules' options say of their ends, and whether every module can ever be granted a step.
    fn check_steps(&self) -> Result<()> {
        for module in &self.modules {
            let Some(steps) = &module.steps else { continue };
            let what = || format!("stream module {}", module.name);
            steps.check(&module.name, self.budget.residency)?;
            if steps.outputs.len() > module.outputs.len() {
                let rule =
                    format!("it says what to push to {} outputs and has {}", steps.outputs.len(), module.outputs.len());
                return Err(Error::refused(what(), rule));
            }
            for (output, &mailbox) in module.outputs.iter().enumerate() {
                let (len, _) = steps.preset(output);
                let room = self.mailboxes[mailbox as usize].options.payload_bytes()?;
                if len != abi::WM_STEP_NOTHING && len as usize > room {
                    let rule = format!("{len} bytes for output {output}, whose slots carry {room}");
                    return Err(Error::refused(what(), rule));
                }
            }
        }
        let never =
            self.modules.iter().zip(self.can_fire()).find(|(m, can)| m.is_granted() && !m.inputs.is_empty() && !can);
        never.map_or(Ok(()), |(module, _)| {
            let rule = match module.options.rule {
                Rule::Any => "none of its inputs can ever have a record: a cycle needs a producer outside it",
                Rule::All => "one of its inputs can never have a record: a cycle needs a producer outside it",
            };
            Err(Error::refused(format!("module {}", module.name), rule))
        })
    }

    /// By module: whether a first record can ever reach it. Modules outside the arbiter produce of themselves.
    fn can_fire(&self) -> Vec<bool> {
        let mut can: Vec<bool> = self.modules.iter().map(|m| !m.is_granted()).collect();
        loop {
            let before = can.iter().filter(|c| **c).count();
            for (id, module) in self.modules.iter().enumerate() {
                let mut fed = module.inputs.iter().map(|&m| can[self.mailboxes[m as usize].producer as usize]);
                let fires = match module.options.rule {
                    Rule::Any => fed.any(|f| f),
                    Rule::All => fed.all(|f| f),
                };
                can[id] |= fires && !module.inputs.is_empty();
            }
            if can.iter().filter(|c| **c).count() == before {
                return can;
            }
        }
    }

    /// Bytes of scratch memory of a server: at least the largest payload, so that a handler can pop anything into it.
    pub(crate) fn scratch_bytes(&self) -> u32 {
        let largest = self.mailboxes.iter().map(|m| m.options.stride).max().unwrap_or(abi::WM_STRIDE_DEFAULT);
        largest.max(2048).next_multiple_of(16)
    }
}

impl ModulePlan {
    /// Whether the arbiter grants it steps.
    pub(crate) fn is_granted(&self) -> bool {
        self.kind == abi::WM_KIND_RESIDENT || self.steps.is_some()
    }

    pub(crate) fn out_records(&self) -> u32 {
        match self.options.out_records {
            0 => self.inputs.len().max(1) as u32,
            n => n,
        }
    }

    pub(crate) fn rule(&self) -> u32 {
        match self.options.rule {
            Rule::Any => abi::WM_RULE_ANY,
            Rule::All => abi::WM_RULE_ALL,
        }
    }
}

fn default_servers(device: &Device) -> u32 {
    if device.info().ordinal.is_some() {
        return SpinBudget::default().servers;
    }
    match device.info().multiprocessors {
        0..=3 => 0,
        4..=7 => 1,
        _ => 2,
    }
}
