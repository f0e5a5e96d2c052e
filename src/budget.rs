//! The spin budget: what the arbiter may cost while it has nothing to do.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::abi;
use crate::builtin;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::Builder;
use crate::image::HandlerImage;
use crate::options::{MailboxOptions, Mode};

/// Limits on the time the arbiter may hold an SM, and each of its further blocks ([`Builder::journal_blocks`](crate::Builder::journal_blocks)) another. All are kept in
/// release builds.
///
/// The arbiter *parks* when it has had nothing to do for a while: it leaves the SM, and whoever has news for it opens the
/// door of its next launch, for which the GPU's front end waits (on the twin, a sleeping thread). docs/parking.md tells how.
///
/// As TOML the members have the same names, times are words like `"20us"` or `"2ms"`, `idle_spin = "never"` stands for
/// none, and what is not named is as by default ([`SpinBudget::from_toml`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpinBudget {
    /// How long the arbiter polls without work before it parks: 1 µs to less than `residency`, or [`SpinBudget::BREAK_EVEN`]:
    /// as long as being woken costs here. None: it never parks.
    #[serde(with = "or_never")]
    pub idle_spin: Option<Duration>,
    /// Whether it parks at once, not after `idle_spin`, where news has been coming later than that: polling would have been
    /// in vain. Where news comes sooner it polls as long as `idle_spin` says.
    pub adaptive: bool,
    /// The limit on the time an SM is held without work, as a share of one SM's time, above 0 up to 1: polling, and what each
    /// launch costs to begin and to leave. Kept within a tenth over any second. Once it is overdrawn, the arbiter is away until
    /// it has filled again, and news waits for that: at most `max_wait`. What is not used is kept for later, up to a
    /// millisecond or `idle_spin`, and a twentieth of a second's share. At least 20 µs in each `max_wait`, which the launches
    /// that the pacer lets go may take.
    pub sm_share: f64,
    /// The longest that the arbiter's stream waits for a door, 100 µs to 1 s: then a thread of the host opens it. So no
    /// driver call that waits for streams waits much longer than this for a parked arbiter.
    #[serde(with = "words")]
    pub max_wait: Duration,
    /// The longest one launch of the arbiter stays; it then finishes the steps it has granted, leaves, and the next
    /// launch continues. Every driver call that waits for running kernels waits at most about this long. 100 µs to 1 s.
    #[serde(with = "words")]
    pub residency: Duration,
    /// How many SMs the arbiter may occupy, beside those of [`Builder::journal_blocks`](crate::Builder::journal_blocks): 1. It is one block, which is never on two; on the SM that it is on it leaves the
    /// others what its block does not need ([`Runtime::footprint`](crate::Runtime::footprint)). Whether it scans and serves
    /// faster is a matter of `servers`.
    pub sms: u32,
    /// Warps (twin: threads) that run handlers, 1 to 9. The twin takes 0 too: the arbiter's own thread serves.
    pub servers: u32,
}

/// What a sleeping thread's door costs, about: naps of up to half a millisecond.
const THREAD_BREAK_EVEN: Duration = Duration::from_micros(500);
/// Taken where it could not be measured.
const USUAL_BREAK_EVEN: Duration = Duration::from_micros(10);

/// What was measured, by ordinal.
static MEASURED: Mutex<BTreeMap<u32, Duration>> = Mutex::new(BTreeMap::new());

fn measured(device: &Device, ordinal: u32) -> Duration {
    let mut known = MEASURED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    *known.entry(ordinal).or_insert_with(|| {
        let begin = Instant::now();
        let time = SpinBudget::break_even(device).unwrap_or_else(|error| {
            tracing::warn!(%error, usual = ?USUAL_BREAK_EVEN, "what being woken costs could not be measured");
            USUAL_BREAK_EVEN
        });
        tracing::debug!(break_even = ?time, took = ?begin.elapsed(), "measured what being woken costs");
        time
    })
}

/// The arbiter is one block.
const SMS: u32 = 1;

/// What the launches that the pacer lets go at a time may hold an SM for, when they find nothing.
const PACED: Duration = Duration::from_micros(20);

impl Default for SpinBudget {
    fn default() -> Self {
        SpinBudget {
            idle_spin: Some(SpinBudget::BREAK_EVEN),
            adaptive: false,
            sm_share: 1.0,
            max_wait: Duration::from_millis(10),
            residency: Duration::from_millis(2),
            sms: SMS,
            servers: 6,
        }
    }
}

/// A time as a word.
mod words {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let word = String::deserialize(from)?;
        humantime::parse_duration(&word)
            .map_err(|e| D::Error::custom(format!("{word:?}: {e}; a time is like \"20us\"")))
    }
}

/// The same, or `"never"`.
mod or_never {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) if *time == super::SpinBudget::BREAK_EVEN => to.serialize_str("break-even"),
            Some(time) => super::words::serialize(time, to),
            None => to.serialize_str("never"),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let word = String::deserialize(from)?;
        super::SpinBudget::parse_idle_spin(&word).map_err(D::Error::custom)
    }
}

impl SpinBudget {
    /// Reads a budget from TOML. Unknown names, and values that break a rule, are refused with the reason.
    pub fn from_toml(text: &str) -> Result<Self> {
        let budget: Self = toml::from_str(text).map_err(|e| Error::refused("the budget", e.to_string()))?;
        budget.check()?;
        Ok(budget)
    }

    /// The budget as TOML, every member named.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::refused("the budget", e.to_string()))
    }

    /// `never`, `break-even`, or a time like `20us`.
    pub fn parse_idle_spin(word: &str) -> std::result::Result<Option<Duration>, String> {
        if word == "never" {
            return Ok(None);
        }
        if word == "break-even" {
            return Ok(Some(Self::BREAK_EVEN));
        }
        let time = humantime::parse_duration(word);
        time.map(Some)
            .map_err(|e| format!("{word:?}: {e}; idle_spin is \"never\", \"break-even\" or a time like \"20us\""))
    }

    /// The `idle_spin` at which polling has cost as much as leaving and being woken costs: whoever polls that long before
    /// parking never loses more than twice what knowing the future would have saved (the rule of the rented skis; Karlin
    /// et al., *Competitive randomized algorithms for nonuniform problems*, 1990). Measured here, on this device: an
    /// arbiter of its own runs for some milliseconds, and a record's way there and back is timed while it is hot and
    /// while it is parked. The difference of the medians, at least 1 µs and at most half of the default residency.
    ///
    /// # Errors
    /// What keeps a graph from being built there, and [`Error::Timeout`] where the device does not answer.
    pub fn break_even(device: &Device) -> Result<Duration> {
        let (hot, parked) = round_trips(device)?;
        let most = SpinBudget::default().residency / 2;
        Ok(parked.saturating_sub(hot).clamp(Duration::from_micros(1), most))
    }

    /// Stands for an `idle_spin` that is found when the graph is built: on a GPU whose streams can wait for a word in memory
    /// what [`SpinBudget::break_even`] measures, once for each device in this process; for arbiters that are threads of the
    /// host (the twin's, the CPU's) 500 µs, which is about what their doors cost; on other GPUs none, so that nothing parks
    /// there unasked. At most half of the residency. [`Runtime::budget`](crate::Runtime::budget) says what became of it.
    pub const BREAK_EVEN: Duration = Duration::MAX;

    /// The budget with [`Self::BREAK_EVEN`] replaced by what it stands for.
    pub(crate) fn settle(&mut self, device: &Device, mode: Mode) {
        if self.idle_spin != Some(Self::BREAK_EVEN) {
            return;
        }
        let is_thread = device.info().ordinal.is_none() || mode == Mode::Cpu;
        let found = match device.info().ordinal {
            Some(ordinal) if !is_thread && device.info().stream_memory_operations => Some(measured(device, ordinal)),
            _ if is_thread => Some(THREAD_BREAK_EVEN),
            _ => None,
        };
        self.idle_spin = found.map(|time| time.min(self.residency / 2));
        if self.idle_spin.is_none() {
            (self.sm_share, self.adaptive) = (1.0, false); // limits on what comes before parking
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (what, value) in [("residency", self.residency), ("max_wait", self.max_wait)] {
            if value < Duration::from_micros(100) || value > Duration::from_secs(1) {
                return Err(Error::refused(format!("{what} {value:?}"), "must be from 100 µs to 1 s"));
            }
        }
        if let Some(idle_spin) = self.idle_spin.filter(|time| *time != Self::BREAK_EVEN)
            && (idle_spin < Duration::from_micros(1) || idle_spin >= self.residency)
        {
            return Err(Error::refused(
                format!("idle_spin {idle_spin:?}"),
                format!(
                    "must be from 1 µs to less than the residency, here {:?}: a launch that stays no longer than that never parks",
                    self.residency
                ),
            ));
        }
        if !(self.sm_share >= 1e-6 && self.sm_share <= 1.0) {
            return Err(Error::refused(format!("sm_share {}", self.sm_share), "must be above 0 (0.000001) up to 1"));
        }
        if self.sm_share * self.max_wait.as_secs_f64() < PACED.as_secs_f64() {
            return Err(Error::refused(
                format!("sm_share {} with max_wait {:?}", self.sm_share, self.max_wait),
                format!(
                    "the launches that are let go every max_wait may take up to {PACED:?}: a larger share, or a longer max_wait"
                ),
            ));
        }
        if self.sm_share < 1.0 && self.idle_spin.is_none() {
            return Err(Error::refused(
                format!("sm_share {} without idle_spin", self.sm_share),
                "an arbiter that never parks polls all the time: set idle_spin too",
            ));
        }
        if self.adaptive && self.idle_spin.is_none() {
            return Err(Error::refused(
                "adaptive without idle_spin",
                "it says when to park before idle_spin: set that too",
            ));
        }
        if self.sms != SMS {
            return Err(Error::refused(
                format!("sms {}", self.sms),
                format!("must be {SMS}: the arbiter is one block, which is on one SM while it is there"),
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

/// Median times of a record's way to a resident module and back: to one that polls, and to one that has parked.
fn round_trips(device: &Device) -> Result<(Duration, Duration)> {
    const ROUNDS: usize = 9;
    const BOUND: Duration = Duration::from_secs(1);
    let mut graph = Builder::new(device.clone());
    let usual = graph.current_budget().clone();
    // Far longer than a round trip, and over soon.
    let idle_spin = Duration::from_micros(100);
    graph.mode(Mode::Device).budget(SpinBudget { idle_spin: Some(idle_spin), ..usual })?;
    let host = graph.host("host")?;
    let relay = graph.resident("relay", builtin::RELAY)?;
    let there = graph.mailbox(host, relay, MailboxOptions::slots(8))?;
    let back = graph.mailbox(relay, host, MailboxOptions::slots(8))?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let (mut sender, mut receiver) = (runtime.sender(there)?, runtime.receiver(back)?);
    runtime.start()?;
    let mut buffer = [0; 248];
    let mut round = |to: &mut Vec<Duration>| -> Result<()> {
        let begin = Instant::now();
        sender.push(1, &[0; 8], BOUND)?;
        receiver.pop(&mut buffer, BOUND)?;
        to.push(begin.elapsed());
        Ok(())
    };
    let (mut hot, mut parked) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        std::thread::sleep(4 * idle_spin);
        round(&mut parked)?;
        round(&mut hot)?;
        round(&mut hot)?;
    }
    runtime.stop(BOUND)?;
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    Ok((median(&mut hot), median(&mut parked)))
}
