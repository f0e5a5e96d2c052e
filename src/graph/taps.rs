//! What of a graph goes to the journal: which mailboxes, who journals them, and what that needs.

use super::{Builder, MailboxId, MailboxPlan, ModulePlan};
use crate::abi;
use crate::error::{Error, Result};
use crate::options::{MailboxOptions, Tap};

/// Who journals the records of a tapped mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TappedBy {
    /// Whoever serves the resident module at an end.
    Servers,
    /// The steps of a stream module.
    Steps(u32),
}

/// Who would journal a mailbox, if anybody can: the consumer, if it is resident, or else the producer; of stream modules the
/// producer, which still has the record when it has been pushed.
fn tapped_by(modules: &[ModulePlan], m: &MailboxPlan) -> Option<TappedBy> {
    let is_resident = |id: u32| modules[id as usize].kind == abi::WM_KIND_RESIDENT;
    if is_resident(m.consumer) || is_resident(m.producer) {
        return Some(TappedBy::Servers);
    }
    let has_steps = |id: &u32| modules[*id as usize].steps.is_some();
    [m.producer, m.consumer].into_iter().find(has_steps).map(TappedBy::Steps)
}

impl Builder {
    /// Sends the records of a mailbox to the journal, see [`Runtime::journal`](crate::Runtime::journal): where a resident module takes or else gives
    /// them, or, where neither end is one, where a stream module of [`Self::steps`] gives or else takes them. A mailbox between
    /// others is refused: nothing of the runtime's sees its records. An arbiter whose servers journal has a warp for that, so it has
    /// at most 8 of them, unless it is on the CPU.
    pub fn tap(&mut self, mailbox: MailboxId, tap: Tap) -> Result<&mut Self> {
        let plan = self.mailboxes.get_mut(mailbox.index()).ok_or_else(|| {
            Error::refused(
                format!("mailbox id {}", mailbox.0),
                "it belongs to another graph: this one has no such mailbox",
            )
        })?;
        if tap != Tap::Off && tapped_by(&self.modules, plan).is_none() {
            return Err(Error::refused(
                format!("a tap of mailbox {}", plan.name),
                "neither end is a resident module or a stream module of Builder::steps: nobody would journal its records",
            ));
        }
        (plan.tap, plan.tap_type) = (tap, None);
        Ok(self)
    }

    /// The same for records of one message type only; what other records the mailbox carries the tap neither takes nor counts.
    /// Nobody can wait on the device for such a tap's records ([`Runtime::durable`](crate::Runtime::durable)): a record of one's own may not be among
    /// those counted.
    pub fn tap_type(&mut self, mailbox: MailboxId, tap: Tap, msg_type: u16) -> Result<&mut Self> {
        self.tap(mailbox, tap)?;
        self.mailboxes[mailbox.index()].tap_type = Some(msg_type);
        Ok(self)
    }

    /// The same for every mailbox that there is so far and that can be tapped. Refused if there is none.
    pub fn tap_all(&mut self, tap: Tap) -> Result<&mut Self> {
        let mut tapped = 0;
        for plan in self.mailboxes.iter_mut().filter(|m| tapped_by(&self.modules, m).is_some()) {
            (plan.tap, plan.tap_type) = (tap, None);
            tapped += 1;
        }
        if tapped == 0 {
            return Err(Error::refused(
                "a tap of all mailboxes",
                "none has a resident module or one of Builder::steps at an end: there is nothing to tap",
            ));
        }
        Ok(self)
    }

    /// Lets the journal also take the tensors that records of a tapped mailbox point to: copied off the device beside
    /// everything else while the lease is held, and put behind the record. Without it the log has descriptors only. Needs a
    /// [`pool`](Self::pool): a tensor without a lease of it is not taken, and counted.
    pub fn tap_tensors(&mut self, mailbox: MailboxId) -> Result<&mut Self> {
        let what = || Error::refused(format!("mailbox id {}", mailbox.0), "this graph has no such mailbox");
        let plan = self.mailboxes.get_mut(mailbox.index()).ok_or_else(what)?;
        if plan.tap == Tap::Off {
            let what = format!("the tensors of mailbox {}", plan.name);
            return Err(Error::refused(what, "its records are not tapped: call Builder::tap first"));
        }
        plan.tap_tensors = true;
        Ok(self)
    }

    /// Slots of each ring to the journal (of the arbiter's roles and servers, and of each stream module), a power of two; 1024
    /// unless set. A burst that is longer than the rings drops records, or waits in its mailbox or with who journals it, as each tap says.
    pub fn journal_slots(&mut self, slots: u32) -> Result<&mut Self> {
        MailboxOptions::slots(slots).check()?;
        self.journal_slots = slots;
        Ok(self)
    }

    /// Threads that empty the rings to the journal while one alone would fall behind, at least 1; half of the cores, up to 8,
    /// unless set. Never more than there are rings, and one alone where tensors are journalled.
    pub fn journal_threads(&mut self, threads: u32) -> Result<&mut Self> {
        if threads == 0 {
            return Err(Error::refused("0 threads for the journal", "somebody must empty its rings"));
        }
        self.journal_threads = Some(threads);
        Ok(self)
    }

    /// Further blocks of the arbiter's launch, 0 to 3, whose warps help to bring records of 1 KiB and more to the
    /// rings, which one block carries more slowly than a bus takes them. None unless set. Each holds an SM while a launch stays, with work and without: what a [`SpinBudget`](crate::SpinBudget) and the counters
    /// of [`Stats`](crate::Stats) say of an SM's time is true of each block. A launch ends when all of its blocks have: where the
    /// device has no room for one of them the next launch begins late, and records are carried without it meanwhile. On the twin,
    /// with an arbiter on the CPU, and where servers tap nothing, this changes nothing.
    pub fn journal_blocks(&mut self, blocks: u32) -> Result<&mut Self> {
        if blocks > abi::WM_MAX_CARRIERS {
            let rule = format!("at most {}: each holds an SM, and fewer fill a bus", abi::WM_MAX_CARRIERS);
            return Err(Error::refused(format!("{blocks} blocks for the journal"), rule));
        }
        self.journal_blocks = blocks;
        Ok(self)
    }

    /// Those that the arbiter's launches have.
    pub(crate) fn carriers(&self) -> u32 {
        let on_gpu = self.device.info().ordinal.is_some() && !self.is_cpu_arbitrated();
        if on_gpu && self.has_server_taps() { self.journal_blocks } else { 0 }
    }

    /// Where a mailbox is tapped, if it is.
    fn tapped_at(&self, m: &MailboxPlan) -> Option<TappedBy> {
        if m.tap == Tap::Off { None } else { tapped_by(&self.modules, m) }
    }

    /// The mailboxes that servers tap.
    fn tapped_by_servers(&self) -> impl Iterator<Item = &MailboxPlan> {
        self.mailboxes.iter().filter(|m| self.tapped_at(m) == Some(TappedBy::Servers))
    }

    /// Whether the arbiter, or its servers' steps, journal anything.
    pub(crate) fn has_server_taps(&self) -> bool {
        self.tapped_by_servers().next().is_some()
    }

    /// The mailboxes whose records a role of the arbiter's journals.
    pub(crate) fn followed_mailboxes(&self) -> u32 {
        self.tapped_by_servers().filter(|m| !m.tap_tensors).count() as u32
    }

    /// Whether the stream module journals the mailbox.
    pub(crate) fn taps(&self, module: usize, mailbox: u32) -> bool {
        self.tapped_at(&self.mailboxes[mailbox as usize]) == Some(TappedBy::Steps(module as u32))
    }

    /// Of a stream module: the mailboxes that it journals.
    fn tapped_by_steps(&self, module: usize) -> impl Iterator<Item = &MailboxPlan> {
        self.mailboxes.iter().filter(move |m| self.tapped_at(m) == Some(TappedBy::Steps(module as u32)))
    }

    /// Whether a stream module journals anything.
    pub(crate) fn has_steps_taps(&self, module: usize) -> bool {
        self.tapped_by_steps(module).next().is_some()
    }

    /// Free slots that its step needs in its ring; 0 if no tap of its blocks.
    pub(crate) fn steps_journal_need(&self, module: usize) -> u32 {
        if self.tapped_by_steps(module).all(|m| m.tap != Tap::Block) {
            return 0;
        }
        let gives = |m: &&MailboxPlan| m.producer as usize == module;
        let (given, all) = (self.tapped_by_steps(module).filter(gives).count(), self.tapped_by_steps(module).count());
        let taken = all - given;
        // With the rule *any* a step takes one record.
        let any = self.modules[module].rule() == abi::WM_RULE_ANY;
        (given + if any { taken.min(1) } else { taken }) as u32
    }

    /// Free slots that a step needs in its server's ring; 0 if no tap holds it back. Where the arbiter is on the device, a
    /// role of its own journals most records, and those that wait for it stay in their mailboxes.
    pub(crate) fn journal_need(&self) -> u32 {
        let holds = |m: &MailboxPlan| m.tap == Tap::Block && (self.is_cpu_arbitrated() || m.tap_tensors);
        if self.tapped_by_servers().any(holds) { self.journalled_a_step() } else { 0 }
    }

    /// A step that can never be journalled would never run.
    pub(super) fn check_journal_slots(&self) -> Result<()> {
        let of_steps = self.modules.iter().enumerate().map(|(id, m)| (m.name.as_str(), self.steps_journal_need(id)));
        let blocks = self.tapped_by_servers().any(|m| m.tap == Tap::Block);
        let of_servers = ("a resident module", if blocks { self.journalled_a_step() } else { 0 });
        let (who, need) = of_steps.fold(of_servers, |most, one| if one.1 > most.1 { one } else { most });
        if need <= self.journal_slots {
            return Ok(());
        }
        Err(Error::refused(
            format!("journal rings of {} slots", self.journal_slots),
            format!("one step of {who} may journal {need} records: set journal_slots to that at least"),
        ))
    }

    /// Bytes of a server's stage, for a batch of records as they lie in their mailbox: the longest stride of a tapped mailbox,
    /// or several shorter ones; 0 without taps.
    pub(crate) fn journal_stage_bytes(&self) -> u32 {
        const AT_LEAST: u32 = 2048;
        self.tapped_by_servers().map(|m| m.options.stride.max(AT_LEAST)).max().unwrap_or(0)
    }

    fn longest_tapped(&self) -> Option<usize> {
        let tapped = self.mailboxes.iter().filter(|m| m.tap != Tap::Off);
        tapped.map(|m| m.options.payload_bytes().unwrap_or(0)).max()
    }

    /// Records that one step may journal at most.
    fn journalled_a_step(&self) -> u32 {
        let tapped = |m: &u32| self.tapped_at(&self.mailboxes[*m as usize]) == Some(TappedBy::Servers);
        let of = |m: &ModulePlan| {
            let inputs = m.inputs.iter().filter(|m| tapped(m)).count() as u32;
            inputs + m.outputs.iter().filter(|m| tapped(m)).count() as u32 * m.out_records()
        };
        self.modules.iter().map(of).max().unwrap_or(0)
    }

    /// Bytes of a slot of a journal ring, for the longest payload of a tapped mailbox behind its head; 0 without taps.
    pub(crate) fn journal_slot_bytes(&self) -> u32 {
        let bytes = |longest| (size_of::<abi::wm_journal_head>() + longest) as u32;
        self.longest_tapped().map_or(0, |longest| bytes(longest).next_multiple_of(abi::WM_RING_STEP))
    }
}
