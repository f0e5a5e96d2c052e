//! What a user may choose, and the rules that the choices must keep.

use std::time::Duration;

use crate::abi;
use crate::error::{Error, Result};

/// Limits on the time the arbiter may hold an SM. All are kept in release builds.
///
/// The arbiter *parks* when it has had nothing to do for a while: it leaves the SM, and whoever has news for it opens the
/// door of its next launch, for which the GPU's front end waits (on the twin, a sleeping thread). docs/parking.md tells how.
#[derive(Debug, Clone, PartialEq)]
pub struct SpinBudget {
    /// How long the arbiter polls without work before it parks: 1 µs up to `residency`. None: it never parks.
    pub idle_spin: Option<Duration>,
    /// The long-run limit on polling without work, as a share of one SM's time, above 0 up to 1. What is not used is kept
    /// for later, up to a millisecond or `idle_spin`. A launch that finds nothing stays 5 µs, whatever the share.
    pub sm_share: f64,
    /// The longest that the arbiter's stream waits for a door, 100 µs to 1 s: then a thread of the host opens it. So no
    /// driver call that waits for streams waits much longer than this for a parked arbiter.
    pub max_wait: Duration,
    /// The longest one launch of the arbiter stays; it then finishes the steps it has granted, leaves, and the next
    /// launch continues. Every driver call that waits for running kernels waits at most about this long. 100 µs to 1 s.
    pub residency: Duration,
    /// Warps (twin: threads) that run handlers, 1 to 13. The twin takes 0 too: the arbiter's own thread serves.
    pub servers: u32,
}

impl Default for SpinBudget {
    fn default() -> Self {
        SpinBudget {
            idle_spin: None,
            sm_share: 1.0,
            max_wait: Duration::from_millis(10),
            residency: Duration::from_millis(2),
            servers: 6,
        }
    }
}

impl SpinBudget {
    pub(crate) fn check(&self) -> Result<()> {
        for (what, value) in [("residency", self.residency), ("max_wait", self.max_wait)] {
            if value < Duration::from_micros(100) || value > Duration::from_secs(1) {
                return Err(Error::refused(format!("{what} {value:?}"), "must be from 100 µs to 1 s"));
            }
        }
        if let Some(idle_spin) = self.idle_spin
            && (idle_spin < Duration::from_micros(1) || idle_spin > self.residency)
        {
            return Err(Error::refused(
                format!("idle_spin {idle_spin:?}"),
                format!(
                    "must be from 1 µs to the residency, here {:?}: a longer launch than that never gets to park",
                    self.residency
                ),
            ));
        }
        if !(self.sm_share >= 1e-6 && self.sm_share <= 1.0) {
            return Err(Error::refused(format!("sm_share {}", self.sm_share), "must be above 0 (0.000001) up to 1"));
        }
        if self.sm_share < 1.0 && self.idle_spin.is_none() {
            return Err(Error::refused(
                format!("sm_share {} without idle_spin", self.sm_share),
                "an arbiter that never parks polls all the time: set idle_spin too",
            ));
        }
        if self.servers > abi::WM_MAX_SERVERS {
            return Err(Error::refused(
                format!("{} servers", self.servers),
                format!("at most {}", abi::WM_MAX_SERVERS),
            ));
        }
        Ok(())
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
    /// They do, all of them: while the ring is full the arbiter grants no steps.
    Block,
}

impl Tap {
    pub(crate) fn of_word(word: u32) -> Self {
        match word {
            abi::WM_TAP_DROP => Tap::Drop,
            abi::WM_TAP_BLOCK => Tap::Block,
            _ => Tap::Off,
        }
    }

    pub(crate) fn word(self) -> u32 {
        match self {
            Tap::Off => abi::WM_TAP_NONE,
            Tap::Drop => abi::WM_TAP_DROP,
            Tap::Block => abi::WM_TAP_BLOCK,
        }
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
