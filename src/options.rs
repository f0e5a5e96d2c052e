//! What a user may choose, and the rules that the choices must keep.

use crate::abi;
use crate::error::{Error, Result};

/// Who arbitrates. The same module graph runs in both modes, with the same firing rules, credit and turns, compiled from the
/// same source; docs/arbitration.md tells when which is the better choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The persistent kernel, which runs the handlers itself: no host in the way of a record.
    #[default]
    Device,
    /// A thread of the host. It gives each grant to the device as a short launch and asks an event whether it has ended. It
    /// holds no SM, and works where no kernel can stay: with `CUDA_LAUNCH_BLOCKING`, or one connection to the device.
    Cpu,
}

impl Mode {
    /// What new builders begin with: `WARPMAIL_MODE` (`device` or `cpu`) if it is set, so that a program can be run in both
    /// without a change; else [`Mode::Device`].
    pub fn from_environment() -> Result<Self> {
        match std::env::var("WARPMAIL_MODE") {
            Ok(text) if !text.is_empty() => text.parse(),
            _ => Ok(Mode::Device),
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Device => "device",
            Mode::Cpu => "cpu",
        })
    }
}

impl std::str::FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "device" => Ok(Mode::Device),
            "cpu" => Ok(Mode::Cpu),
            other => Err(Error::refused(format!("mode {other}"), "there are `device` and `cpu`")),
        }
    }
}

/// Shape of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailboxOptions {
    /// Bytes from one slot to the next: a multiple of 64 from 64 to 4096. Eight bytes of every 256 (or part) are the
    /// slot's own, the rest is payload: 248 bytes for the default of 256.
    pub stride: u32,
    /// Slots in the ring: a power of two, up to 2^24.
    pub slots: u32,
}

impl Default for MailboxOptions {
    fn default() -> Self {
        MailboxOptions { stride: abi::WM_STRIDE_DEFAULT, slots: 64 }
    }
}

impl MailboxOptions {
    /// A ring of `slots` slots of the default stride.
    pub fn slots(slots: u32) -> Self {
        MailboxOptions { slots, ..Self::default() }
    }

    /// Payload bytes that one record carries, or the rule that the shape breaks.
    pub fn payload_bytes(&self) -> Result<usize> {
        // SAFETY: a pure function of its argument.
        let payload = unsafe { abi::wm_host_payload_bytes(self.stride) };
        if payload == 0 {
            return Err(Error::refused(
                format!("stride {}", self.stride),
                format!(
                    "must be a multiple of {} from {} to {}",
                    abi::WM_STRIDE_STEP,
                    abi::WM_STRIDE_MIN,
                    abi::WM_STRIDE_MAX
                ),
            ));
        }
        Ok(payload as usize)
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.payload_bytes()?;
        if !self.slots.is_power_of_two() || self.slots.trailing_zeros() > abi::WM_SLOTS_LOG2_MAX {
            return Err(Error::refused(
                format!("{} slots", self.slots),
                format!("must be a power of two up to 2^{}", abi::WM_SLOTS_LOG2_MAX),
            ));
        }
        Ok(())
    }

    pub(crate) fn bytes(&self) -> u64 {
        u64::from(abi::WM_HEADER_BYTES) + u64::from(self.stride) * u64::from(self.slots)
    }
}

/// Whether the records of a mailbox go to the journal, and what gives way when the journal cannot keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tap {
    /// They do not.
    #[default]
    Off,
    /// They do; those that find the ring full are left out, and counted ([`MailboxStats::tap_dropped`](crate::MailboxStats)).
    Drop,
    /// They do, all of them: while the ring is full the arbiter grants no steps, or the stream module whose it is takes none.
    Block,
}

impl Tap {
    pub(crate) fn of_word(word: u32) -> Self {
        match word & abi::WM_TAP_POLICY {
            abi::WM_TAP_DROP => Tap::Drop,
            abi::WM_TAP_BLOCK => Tap::Block,
            _ => Tap::Off,
        }
    }

    /// The only type that a tap takes.
    pub(crate) fn type_of_word(word: u32) -> Option<u16> {
        (word >> abi::WM_TAP_TYPED_BIT & 1 != 0).then_some((word >> abi::WM_TAP_TYPE_SHIFT) as u16)
    }

    /// `only`: the only type that it takes.
    pub(crate) fn word(self, only: Option<u16>) -> u32 {
        let policy = match self {
            Tap::Off => return abi::WM_TAP_NONE,
            Tap::Drop => abi::WM_TAP_DROP,
            Tap::Block => abi::WM_TAP_BLOCK,
        };
        let typed = |only: u16| 1 << abi::WM_TAP_TYPED_BIT | u32::from(only) << abi::WM_TAP_TYPE_SHIFT;
        policy | only.map_or(0, typed)
    }
}

/// When a module may be granted a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    /// At least one input has a record.
    #[default]
    Any,
    /// Every input has a record.
    All,
}

/// How a resident module is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleOptions {
    /// The number that the handler set's `step` switches on.
    pub handler: u32,
    /// The firing rule.
    pub rule: Rule,
    /// Steps that one grant may run while the rule still holds, at least 1. Larger is faster under load and makes the
    /// others wait longer.
    pub batch: u32,
    /// Free slots that every output must have before a step is granted: the most records one step may push to one
    /// output. 0 stands for the number of inputs.
    pub out_records: u32,
    /// Whose turn it is when several modules could step: 0, the most urgent class, to 3. A class waits for the more
    /// urgent ones, but not for ever: every 16th grant of a server begins its search at another class, each in its turn.
    pub priority: u8,
    /// The module's own memory on the device, as it is before the first step. Kept between steps and launches.
    pub state: Vec<u8>,
}

impl Default for ModuleOptions {
    fn default() -> Self {
        ModuleOptions { handler: 0, rule: Rule::Any, batch: 32, out_records: 0, priority: 0, state: Vec::new() }
    }
}

impl ModuleOptions {
    /// Options for a handler, everything else as by default.
    pub fn handler(handler: u32) -> Self {
        ModuleOptions { handler, ..Self::default() }
    }

    /// Sets the state from plain data.
    pub fn with_state<T: bytemuck::NoUninit>(mut self, state: &T) -> Self {
        self.state = bytemuck::bytes_of(state).to_vec();
        self
    }

    /// Sets the firing rule.
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }

    /// Sets the priority class, 0 (most urgent) to 3.
    pub fn with_priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }
}

impl From<u32> for ModuleOptions {
    fn from(handler: u32) -> Self {
        Self::handler(handler)
    }
}
