//! Counters as the host sees them: copied out of the mapped telemetry page without any driver call.

use serde::Serialize;

/// What the arbiter said of itself when it last wrote its telemetry (about every 100 µs).
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stats {
    /// Clock of the arbiter, nanoseconds: `%globaltimer`, on the twin `CLOCK_MONOTONIC`.
    pub heartbeat_ns: u64,
    /// Launches that have begun.
    pub launches: u64,
    /// Launches that have ended in order.
    pub launches_ended: u64,
    /// Turns of the decide loop.
    pub rounds: u64,
    /// Grants given.
    pub grants: u64,
    /// Of them, those that an arbiter on the CPU gave ahead: behind another, in case that one gives a record.
    pub ahead: u64,
    /// Launches of stream modules that the host enqueued behind the work which gives them their records, before the arbiter on
    /// the CPU granted them. Beside the grants, which count the same steps.
    pub steps_ahead: u64,
    /// Time with a grant outstanding or about to be given, nanoseconds; also what it takes to leave in the middle of work,
    /// because the residency is over, and to come back.
    pub work_ns: u64,
    /// Other time resident, nanoseconds: polling, and the beginning and leaving of launches. What `sm_share` limits.
    pub idle_poll_ns: u64,
    /// Launches that ended parked.
    pub parks: u64,
    /// Time parked or closed, nanoseconds; a wait that has not ended yet is not in it.
    pub parked_ns: u64,
    /// Whether it was parked when last seen.
    pub parked: bool,
    /// Whether it was away until `sm_share` allows its next launch.
    pub closed: bool,
    /// How the spin budget was kept.
    pub budget: BudgetStats,
    /// Per module, in the order they were added.
    pub modules: Vec<ModuleStats>,
    /// Per mailbox, in the order they were added.
    pub mailboxes: Vec<MailboxStats>,
    /// Handlers running at the heartbeat.
    pub serving: Vec<Serving>,
}

/// How the spin budget was kept, as the arbiter counted it. A limit counts as missed where it was missed by more than a tenth
/// of it; the times beside say by how much, all cases together, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BudgetStats {
    /// Idle polling that `sm_share` allowed when the last launch ended, nanoseconds; negative: overdrawn.
    pub allowance_ns: i64,
    /// Launches that ended because their residency was over.
    pub residency_ends: u64,
    /// Launches that ended because `sm_share` was overdrawn; the next began when it allowed it.
    pub closings: u64,
    /// Launches that stayed longer than `residency`: steps that they had granted took so long.
    pub over_residency: u64,
    /// By how much.
    pub over_residency_ns: u64,
    /// Spells of polling without work that were longer than `idle_spin`: there was no next launch ready to be rung for.
    pub over_spin: u64,
    /// By how much.
    pub over_spin_ns: u64,
    /// Seconds in which idle polling took more than `sm_share`.
    pub over_share: u64,
    /// By how much.
    pub over_share_ns: u64,
}

impl BudgetStats {
    /// Limits missed, all together.
    pub fn violations(&self) -> u64 {
        self.over_residency + self.over_spin + self.over_share
    }
}

/// What one launch of the arbiter takes of an SM, as the driver calculates it for the loaded kernel; of another SM each of its further
/// blocks ([`Builder::journal_blocks`](crate::Builder::journal_blocks)) takes the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Threads of its block.
    pub threads: u32,
    /// Registers of each.
    pub registers: u32,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
    /// Bytes of local memory of each thread: spills, and what the handlers keep on a stack.
    pub local_bytes: u32,
    /// How many such blocks one SM would hold: what the arbiter leaves of its SM to others follows from it.
    pub blocks_per_sm: u32,
    /// SMs of the device, of which its block takes part of one.
    pub multiprocessors: u32,
}

/// Counters of one module.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ModuleStats {
    /// The module's name.
    pub name: String,
    /// Steps run.
    pub steps: u64,
    /// Records popped.
    pub records_in: u64,
    /// Records pushed.
    pub records_out: u64,
    /// Time in the handler, nanoseconds.
    pub busy_ns: u64,
    /// Records refused, by reason.
    pub rejects: Rejects,
}

/// Records refused, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Rejects {
    /// A length that cannot be.
    pub length: u64,
    /// A message type that the handler does not know.
    pub msg_type: u64,
    /// Content that contradicts itself.
    pub content: u64,
    /// Steps that moved no record although their rule had fired.
    pub no_progress: u64,
    /// Tensors that a handler refused to follow, or to release a second time: their leases had ended.
    pub lease: u64,
}

impl Rejects {
    /// Records dropped, all reasons together.
    pub fn dropped(&self) -> u64 {
        self.length + self.msg_type + self.content
    }
}

/// Counters of one mailbox.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MailboxStats {
    /// `producer->consumer`.
    pub name: String,
    /// Records pushed.
    pub written: u64,
    /// Records popped.
    pub consumed: u64,
    /// The most records that the arbiter saw waiting.
    pub depth_max: u64,
    /// Records that were put into the journal's rings.
    pub tapped: u64,
    /// Records that found them full and were left out.
    pub tap_dropped: u64,
    /// Why the arbiter refuses to touch it; none if it does not.
    pub quarantined: Option<&'static str>,
    /// Calls that its two ends refused. Where an end is on the host they are counted at once. Of the other mailboxes the
    /// arbiter on the device tells with the rest, of 32 mailboxes each time; one on the CPU as of the last quiesce or stop.
    pub refused: Refusals,
}

/// Calls that an end of a mailbox refused, by reason: what it was given cannot be. A handle of another magic or version is not
/// counted, since there is no place for it: its status says so, and the arbiter quarantines the mailbox if it is in its table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Refusals {
    /// A record longer than a slot carries: to be pushed, or found in a slot.
    pub length: u64,
    /// A null pointer for bytes.
    pub argument: u64,
    /// The handle was of another mailbox, or of another shape, than the header.
    pub header: u64,
    /// The two indices were further apart than the ring is long.
    pub index: u64,
}

impl Refusals {
    /// All reasons together.
    pub fn total(&self) -> u64 {
        self.length + self.argument + self.header + self.index
    }
}

/// A handler that is running.
#[derive(Debug, Clone, Serialize)]
pub struct Serving {
    /// The module's name.
    pub module: String,
    /// For how long, nanoseconds, at the heartbeat.
    pub for_ns: u64,
}
