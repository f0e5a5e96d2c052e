//! Launches where the arbiter is on the CPU. A step that has been granted is enqueued; and behind work that may give a module its
//! records, in the device's own order, the step that would take them, ahead of its grant. The rule is evaluated by
//! csrc/protocol/ahead.hpp, here before it is enqueued, and by its gate when it runs; a launch that was given nothing is void.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytemuck::Zeroable;

use super::Runner;
use crate::abi;
use crate::backend::Mark;
use crate::error::Result;
use crate::memory::gates::Source;

/// Passes that are under way at most: one runs, and others stand behind it.
pub(crate) const PASSES: u64 = 4;

/// What a launch ahead comes behind.
enum First {
    /// All launches of another lane so far.
    Lane(usize),
    /// A server's grant.
    Server(Mark),
}

impl Runner {
    /// What lane `i` has been granted, and what may follow from it.
    pub(super) fn top_up_granted(&mut self, i: usize) -> Result<()> {
        if self.has_news_of_servers(i) && self.enqueue_ahead(i)? > 0 {
            self.let_follow(i);
        }
        loop {
            let lane = &self.lanes[i];
            let report = self.memory.gate_report(lane.gate);
            let Some(granted) = self.memory.gate_granted(lane.gate) else { return Ok(()) };
            // Each of those under way takes a step, or is void, and then it is over. One that failed while it was enqueued may
            // have ended uncounted.
            let under_way = lane.launched.saturating_sub(report.ended);
            let lacking = i64::from(granted.wrapping_sub(report.steps as u32).cast_signed()) - under_way as i64;
            // As many as there are doors under way at most: bodies may hold memory while they are enqueued.
            if lacking <= 0 || under_way >= abi::WM_DOORS.into() {
                return Ok(());
            }
            self.enqueue(i)?;
            self.let_follow(i);
        }
    }

    /// As many passes as bring every module to the steps that it has been granted.
    pub(super) fn top_up_passes(&mut self, i: usize) -> Result<()> {
        loop {
            let (mut under_way, mut lacking) = (0, 0);
            for gate in self.gates_of(i) {
                let report = self.memory.gate_report(gate);
                let granted = self.memory.gate_granted(gate).unwrap_or_default();
                // Each pass takes a step of each module, or is void there.
                under_way = under_way.max(self.lanes[i].launched.saturating_sub(report.ended));
                lacking = lacking.max(granted.wrapping_sub(report.steps as u32).cast_signed());
            }
            if lacking <= 0 || under_way >= lacking.cast_unsigned().into() || under_way >= PASSES {
                return Ok(());
            }
            self.enqueue(i)?;
        }
    }

    fn enqueue(&mut self, i: usize) -> Result<()> {
        let lane = &mut self.lanes[i];
        if let Some(queue) = &mut lane.queue {
            queue.enqueue(None)?;
            lane.launched += 1;
            self.moved = Instant::now();
        }
        Ok(())
    }

    /// Lane `i` has launched something: enqueues what may follow from that, and from those.
    fn let_follow(&mut self, i: usize) {
        let mut next = VecDeque::from([i]);
        // In a ring there is always a next one; what is left out here is enqueued when it is granted.
        for _ in 0..2 * self.lanes.len() {
            let Some(from) = next.pop_front() else { return };
            for k in 0..self.lanes[from].followers.len() {
                let to = self.lanes[from].followers[k];
                if self.memory.failure().is_some() {
                    return;
                }
                match self.enqueue_ahead(to) {
                    Ok(0) => {}
                    Ok(_) => next.push_back(to),
                    Err(e) => self.note(to, Err(e)),
                }
            }
        }
    }

    /// Whether a resident module that gives to lane `i` has been granted something since this was last asked.
    fn has_news_of_servers(&mut self, i: usize) -> bool {
        let lane = &mut self.lanes[i];
        let Some(behind) = &self.memory.gates[lane.gate].behind else { return false };
        let mut news = false;
        for (server, seen) in lane.seen.iter_mut().enumerate() {
            let Some(held) = self.memory.held_by(server) else { continue };
            let gives = |&(_, source): &(usize, Source)| matches!(source, Source::Resident { module, .. } if module == held.module);
            if held.number != *seen && behind.inputs.iter().any(gives) {
                *seen = held.number;
                news = true;
            }
        }
        news
    }

    /// Launches of lane `i` behind what may give it records, as many as there may be steps; how many.
    fn enqueue_ahead(&mut self, i: usize) -> Result<u32> {
        let memory = self.memory.clone();
        let lane = &self.lanes[i];
        let gate = &memory.gates[lane.gate];
        let Some(behind) = &gate.behind else { return Ok(0) };
        if lane.queue.is_none() || !memory.may_step_ahead(lane.gate) {
            return Ok(0);
        }
        let report = memory.gate_report(lane.gate);
        let mut now = abi::wm_ahead {
            rule: gate.args.rule,
            n_inputs: gate.args.n_inputs,
            n_outputs: gate.args.n_outputs,
            taken: report.steps as u32,
            under_way: lane.launched.saturating_sub(report.ended) as u32,
            ..abi::wm_ahead::zeroed()
        };
        let mut first = Vec::new();
        for (input, &(word, source)) in behind.inputs.iter().enumerate() {
            now.given[input] = self.may_be_given(word, source, &mut first);
        }
        for (output, &(written, consumed, slots)) in behind.outputs.iter().enumerate() {
            let consumed = memory.index_at(consumed);
            // A consumer can be ahead of the `written` that is known.
            let waiting = memory.index_at(written).wrapping_sub(consumed).cast_signed().max(0).cast_unsigned();
            now.room[output] = slots.saturating_sub(waiting);
        }
        // SAFETY: a pure function of its argument.
        let wanted = unsafe { abi::wm_host_launches_ahead(&now) };
        let n = wanted.min((lane.ahead as u32).saturating_sub(now.under_way));
        if n == 0 {
            return Ok(0);
        }
        for before in first {
            let mark = match before {
                First::Lane(from) if from != i => self.lanes[from].queue.as_mut().map(|q| q.mark()).transpose()?,
                First::Lane(_) => None, // its own stream has an order
                First::Server(mark) => Some(mark),
            };
            if let (Some(mark), Some(queue)) = (mark, &mut self.lanes[i].queue) {
                queue.follow(&mark)?;
            }
        }
        for _ in 0..n {
            self.enqueue(i)?;
        }
        memory.enqueued_ahead.fetch_add(n.into(), Ordering::Relaxed);
        Ok(n)
    }

    /// What `written` of an input is, the word at `word`, or what it may come to when the work of its producer that is under
    /// way has ended; a launch that counts on that comes behind `first`.
    fn may_be_given(&self, word: usize, source: Source, first: &mut Vec<First>) -> u32 {
        match source {
            Source::Steps(from) => {
                let under_way = self.memory.steps_under_way(from, self.lanes[from].launched);
                if under_way > 0 {
                    first.push(First::Lane(from));
                }
                self.memory.index_at(word).wrapping_add(under_way)
            }
            Source::Resident { module, output } => {
                let mut given = self.memory.index_at(word);
                for server in 0..self.memory.servers() {
                    let Some(held) = self.memory.held_by(server).filter(|held| held.module == module) else { continue };
                    let event = self.servers.get(server).map(|event| Mark::Event(event.clone()));
                    let mark = event.unwrap_or_else(|| self.memory.twin_mark(server));
                    if let Some(until) = self.memory.held_until(server, held, output) {
                        first.push(First::Server(mark));
                        given = if until.wrapping_sub(given).cast_signed() > 0 { until } else { given };
                    }
                }
                given
            }
            Source::Elsewhere => self.memory.index_at(word),
        }
    }
}
