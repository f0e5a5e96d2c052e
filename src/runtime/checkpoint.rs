//! States to a checkpoint and back.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Runtime, State};
use crate::checkpoint::{
    self, Checkpoint, CheckpointOptions, Contents, Counts, Kind, Part, PointerRow, Saved, Sparse, load, none_there,
};
use crate::error::{Error, Result};
use crate::journal::disk::{Disk, Folder};
use crate::wait::deadline;

impl Runtime {
    /// Writes what the modules know to the checkpoint in a directory, made if it is not there, in place of an older one,
    /// which stays valid until the new one is durable. See [`checkpoint`](crate::checkpoint) for what is in it.
    ///
    /// While the runtime runs, it waits for a moment without records between resident modules, lets the arbiter leave,
    /// makes the journal durable, copies the states (blocks of zeros need no memory), and lets the arbiter go on before
    /// anything is written. Producers that never pause may keep that moment from coming: hold them back. After
    /// [`stop`](Self::stop) the states are those that the stop has left.
    ///
    /// # Errors
    /// [`Error::Timeout`] if it cannot be done within `bound`, with the mailbox that never was empty, or the journal;
    /// [`Error::Refused`] if a mailbox is quarantined, or if a word that was declared a pointer does not point into its
    /// buffer; [`Error::State`] before the start, and while another checkpoint is written there; [`Error::Io`] and the
    /// errors of the journal. After any error the older checkpoint is still there; it may be tried again.
    pub fn checkpoint(&mut self, dir: impl AsRef<Path>, bound: Duration) -> Result<Checkpoint> {
        self.checkpoint_with(dir, CheckpointOptions::default(), bound)
    }

    /// The same, with what [`CheckpointOptions`] adds.
    pub fn checkpoint_with(
        &mut self,
        dir: impl AsRef<Path>,
        options: CheckpointOptions<'_>,
        bound: Duration,
    ) -> Result<Checkpoint> {
        let folder = Folder::new(dir.as_ref());
        folder.make().map_err(|e| Error::io("make directory", dir.as_ref(), &e))?;
        self.checkpoint_on(&folder, options, bound)
    }

    /// The same on any [`Disk`].
    pub fn checkpoint_on(
        &mut self,
        disk: &dyn Disk,
        options: CheckpointOptions<'_>,
        bound: Duration,
    ) -> Result<Checkpoint> {
        let _span = tracing::info_span!("checkpoint").entered();
        self.memory.check_alive()?;
        let until = deadline(bound);
        let contents = match self.state {
            State::Running => self.contents_at_rest(&options, until, bound)?,
            State::Stopped => match self.unsettled()? {
                None => self.contents(&options, until)?,
                Some(what) => {
                    let rule =
                        "records wait in it that nobody takes any more: drain before the stop, or checkpoint before it";
                    return Err(Error::refused(what, rule));
                }
            },
            other => {
                return Err(Error::State(format!("checkpoint: the runtime is {other:?}, neither running nor stopped")));
            }
        };
        let info = checkpoint::save(disk, contents)?;
        tracing::debug!(bytes = info.file_bytes, "checkpoint written");
        Ok(info)
    }

    fn contents_at_rest(
        &mut self,
        options: &CheckpointOptions<'_>,
        until: Instant,
        bound: Duration,
    ) -> Result<Contents> {
        let left = || until.saturating_duration_since(Instant::now());
        loop {
            let drained = match self.drain(left()) {
                Err(Error::Timeout { .. }) => false,
                outcome => outcome.map(|()| true)?,
            };
            if drained {
                // The journal is waited for within the bound; a quiesce that began is given the time to end.
                let at_rest = |r: &Runtime| match r.unsettled()? {
                    None => r.contents(options, until).map(Some),
                    Some(_) => Ok(None),
                };
                if let Some(contents) = self.quiesce(left().max(Duration::from_millis(100)), at_rest)?? {
                    return Ok(contents);
                }
            }
            if !drained || left().is_zero() {
                let busiest = self.busiest();
                let what = format!(
                    "a moment without records between modules, which a checkpoint needs{busiest}; hold the producers back meanwhile"
                );
                return Err(Error::Timeout { what, waited: bound });
            }
        }
    }

    /// The mailbox with the most records that a resident module has not taken, in words.
    fn busiest(&self) -> String {
        let stats = self.stats();
        let served = |i: &usize| self.memory.is_served(*i);
        let waiting = (0..stats.mailboxes.len()).filter(served).map(|i| &stats.mailboxes[i]);
        let most = waiting.max_by_key(|m| m.written.saturating_sub(m.consumed));
        most.filter(|m| m.written > m.consumed)
            .map_or_else(String::new, |m| format!(" (mailbox {} has {} that wait)", m.name, m.written - m.consumed))
    }

    /// While nothing runs: a mailbox between resident modules that is not empty, and how many records it has.
    fn unsettled(&self) -> Result<Option<String>> {
        let stats = self.stats();
        for (id, mailbox) in stats.mailboxes.iter().enumerate() {
            if let Some(reason) = mailbox.quarantined {
                let rule = format!("is quarantined ({reason}): what its modules know cannot be trusted");
                return Err(Error::refused(format!("mailbox {}", mailbox.name), rule));
            }
            if self.memory.is_inside(id) && mailbox.written != mailbox.consumed {
                let records = mailbox.written.abs_diff(mailbox.consumed);
                return Ok(Some(format!("mailbox {} with {records} records", mailbox.name)));
            }
        }
        Ok(None)
    }

    /// Everything that a checkpoint has, while nothing runs.
    fn contents(&self, options: &CheckpointOptions<'_>, until: Instant) -> Result<Contents> {
        let journal = self.journal.as_ref().map(|journal| journal.settle(until)).transpose()?.or(options.journal);
        let mut parts = self.parts();
        for (part, address) in &mut parts {
            let backend = &self.device().backend;
            part.data = Sparse::collect(part.part.bytes, |at, into| backend.download(into, *address + at))?;
        }
        let addresses: Vec<(u64, u64)> = parts.iter().map(|(p, address)| (*address, p.part.bytes)).collect();
        let mut parts: Vec<Saved> = parts.into_iter().map(|(part, _)| part).collect();
        for part in parts.iter_mut().filter(|p| !p.pointers.is_empty()) {
            self.turn_pointers(part, |word, target| {
                let (address, bytes) = addresses[target];
                match word.checked_sub(address) {
                    _ if word == 0 => Some(0),
                    Some(distance) if distance <= bytes => Some(distance + 1),
                    _ => None,
                }
            })?;
        }
        let mailboxes = self.stats().mailboxes.into_iter().enumerate().map(|(i, m)| {
            let (given, taken) = self.counted_before.get(i).copied().unwrap_or_default();
            Counts { name: m.name, given: given + m.written, taken: taken + m.consumed }
        });
        let created_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let info = Checkpoint {
            journal,
            created_ns,
            file_bytes: 0,
            parts: parts.iter().map(|p| p.part.clone()).collect(),
            mailboxes: mailboxes.collect(),
            note: options.note.to_vec(),
        };
        Ok(Contents { info, parts })
    }

    /// The parts of this graph, without their bytes, and where they lie.
    fn parts(&self) -> Vec<(Saved, u64)> {
        let memory = &self.memory;
        let (plan, name) = (&memory.state_plan, |m: u32| memory.module_names[m as usize].clone());
        let with_state = |m: &u32| memory.states[*m as usize].1 > 0;
        let modules: Vec<u32> = (0..memory.states.len() as u32).filter(with_state).collect();
        let empty = |module, buffer, bytes: usize| Part { module, buffer, bytes: bytes as u64 };
        let states = modules.iter().map(|&m| {
            let (address, bytes) = memory.states[m as usize];
            let of_module = plan.pointers.iter().filter(|p| p.module == m);
            let pointers =
                of_module.map(|p| PointerRow { at: p.at as u64, part: modules.len() as u32 + p.buffer, reserved: 0 });
            let pointers = pointers.collect();
            let part = empty(name(m), String::new(), bytes);
            (Saved { part, kind: Kind::State, pointers, data: Sparse::default() }, address)
        });
        let buffers = plan.buffers.iter().map(|b| {
            let part = empty(name(b.module), b.name.clone(), b.bytes);
            (Saved { part, kind: Kind::Buffer, pointers: Vec::new(), data: Sparse::default() }, b.address)
        });
        states.chain(buffers).collect()
    }

    /// Replaces the words of a state that are pointers.
    fn turn_pointers(&self, part: &mut Saved, turn: impl Fn(u64, usize) -> Option<u64>) -> Result<()> {
        let mut bytes = part.data.dense()?;
        for p in &part.pointers {
            let word = &mut bytes[p.at as usize..p.at as usize + 8];
            let old = u64::from_le_bytes(std::array::from_fn(|i| word[i]));
            let new = turn(old, p.part as usize).ok_or_else(|| {
                let what = format!("the pointer at offset {} of the state of module {}", p.at, part.part.module);
                Error::refused(what, format!("{old:#x} is no place in the buffer that it was declared for"))
            })?;
            word.copy_from_slice(&new.to_le_bytes());
        }
        part.data = Sparse::of(&bytes)?;
        Ok(())
    }

    /// Puts the states of the checkpoint in a directory into the modules, before the start, and says what it tells of itself:
    /// the place in the journal above all. All of it is read and checked before anything is changed.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no checkpoint, or if it is of another graph: other modules, mailboxes, buffers, sizes or
    /// pointers; [`Error::Foreign`] for a file of another version or program, or one that is damaged or cut off;
    /// [`Error::State`] after the start; [`Error::Io`]. Nothing was changed then. After [`Error::Driver`] the states may be
    /// half written, and the runtime has failed.
    pub fn restore(&mut self, dir: impl AsRef<Path>) -> Result<Checkpoint> {
        self.restore_on(&Folder::new(dir.as_ref()))
    }

    /// The same on any [`Disk`].
    pub fn restore_on(&mut self, disk: &dyn Disk) -> Result<Checkpoint> {
        let _span = tracing::info_span!("restore").entered();
        if self.state() != State::Ready {
            return Err(Error::State(format!(
                "restore: the runtime is {:?}; states are put back between the build and the start",
                self.state()
            )));
        }
        let Contents { info, mut parts } = load(disk)?.ok_or_else(|| none_there(disk))?;
        let ours = self.parts();
        self.same_graph(&info, &parts, &ours)
            .map_err(|rule| Error::refused(format!("the checkpoint in {}", disk.path().display()), rule))?;
        for part in parts.iter_mut().filter(|p| !p.pointers.is_empty()) {
            self.turn_pointers(part, |word, target| {
                let (Saved { part, .. }, address) = &ours[target];
                match word.checked_sub(1) {
                    None => Some(0),
                    Some(distance) if distance <= part.bytes => Some(address + distance),
                    Some(_) => None,
                }
            })?;
        }
        let backend = &self.device().backend;
        for (part, (_, address)) in parts.iter().zip(&ours) {
            let fetch = |at, into: &mut [u8]| backend.download(into, address + at);
            let store = |at, from: &[u8]| backend.upload(address + at, from);
            part.data.put(fetch, store).inspect_err(|e| self.memory.fail(format!("a restore: {e}")))?;
        }
        self.counted_before = info.mailboxes.iter().map(|m| (m.given, m.taken)).collect();
        Ok(info)
    }

    fn same_graph(&self, info: &Checkpoint, theirs: &[Saved], ours: &[(Saved, u64)]) -> Result<(), String> {
        let other = "it is of another graph:";
        let names = |boxes: &[String]| if boxes.is_empty() { "none".to_string() } else { boxes.join(", ") };
        let mailboxes: Vec<String> = info.mailboxes.iter().map(|m| m.name.clone()).collect();
        if mailboxes != self.memory.mailbox_names {
            let here = names(&self.memory.mailbox_names);
            return Err(format!("{other} its mailboxes are {}, those of this one {here}", names(&mailboxes)));
        }
        for (i, (theirs, (ours, _))) in theirs.iter().zip(ours).enumerate() {
            let text = |p: &Part| match &*p.buffer {
                "" => format!("{} bytes of state of module {}", p.bytes, p.module),
                buffer => format!("{} bytes of buffer {buffer} of module {}", p.bytes, p.module),
            };
            if (&theirs.part, theirs.kind) != (&ours.part, ours.kind) {
                return Err(format!("{other} it has {}, this one has {}", text(&theirs.part), text(&ours.part)));
            }
            if theirs.pointers != ours.pointers {
                return Err(format!("{other} part {i}, {}, has its pointers elsewhere", text(&ours.part)));
            }
        }
        if theirs.len() != ours.len() {
            return Err(format!("{other} it has {} states and buffers, this one {}", theirs.len(), ours.len()));
        }
        Ok(())
    }
}
