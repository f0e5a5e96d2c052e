//! A disk in memory that remembers every operation, and from any prefix of them makes what a power loss could have left:
//! writes that were not synced are lost sector by sector, and names that were not synced come and go one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;

const SECTOR: u64 = 512;

/// Files by name.
pub(crate) type Image = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Create(String, usize),
    Remove(String),
    /// A file, from one name to another.
    Rename(usize, String, String),
    SyncNames,
    Write(usize, u64, Vec<u8>),
    /// To this length, shorter or longer.
    Resize(usize, u64),
    Sync(usize),
    /// The bytes may or may not be on disk, and no later sync will write them.
    SyncFailed(usize),
    /// What the test did meanwhile.
    Note(Note),
}

#[derive(Debug, Clone)]
pub(crate) enum Note {
    /// A batch is about to be appended.
    Begin(Vec<Content>),
    /// The log took it.
    Taken,
    /// The log said that everything up to here is durable.
    Durable(u64),
    /// The log was opened: its last record, and those of them that it had not taken before.
    Opened(u64, Vec<Content>),
}

/// Mailbox, type, payload, tensor.
pub(crate) type Content = (u32, u16, Vec<u8>, Vec<u8>);

/// Mistakes that a disk can make, to see that the test would notice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lies {
    pub(crate) sync_does_nothing: bool,
    pub(crate) name_sync_does_nothing: bool,
    pub(crate) truncate_is_forgotten: bool,
    pub(crate) write_flips_a_bit: bool,
}

/// How often an operation fails, in 1000.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) write: u32,
    pub(crate) sync: u32,
    pub(crate) other: u32,
}

/// Writes past the page cache: there are some, the file cannot be opened for them, or it can and they are refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Direct {
    #[default]
    Written,
    NotOpened,
    NotWritten,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) names: BTreeMap<String, usize>,
    pub(crate) files: Vec<Vec<u8>>,
    pub(crate) ops: Vec<Op>,
    pub(crate) lies: Lies,
    pub(crate) faults: Faults,
    pub(crate) rng: Option<Rng>,
    pub(crate) locked: BTreeSet<String>,
    /// A write has failed and nothing was synced since: syncs fail more often then.
    pub(crate) trouble: bool,
    pub(crate) direct: Direct,
    pub(crate) direct_writes: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct SimDisk {
    base: Image,
    pub(crate) state: Arc<Mutex<State>>,
}

pub(crate) fn lock(state: &Arc<Mutex<State>>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl State {
    pub(crate) fn fails(&mut self, per_mille: u32) -> bool {
        self.rng.as_mut().is_some_and(|rng| rng.u32(..1000) < per_mille)
    }

    pub(crate) fn fault(&mut self) -> io::Result<()> {
        let rate = self.faults.other;
        if self.fails(rate) { Err(io::Error::from(ErrorKind::StorageFull)) } else { Ok(()) }
    }
}

impl SimDisk {
    pub(crate) fn new(base: Image, lies: Lies) -> Self {
        let names = base.keys().cloned().zip(0..).collect();
        let state = State { names, files: base.values().cloned().collect(), lies, ..State::default() };
        SimDisk { base, state: Arc::new(Mutex::new(state)) }
    }

    pub(crate) fn set_faults(&self, faults: Faults, seed: u64) {
        let mut state = lock(&self.state);
        state.faults = faults;
        state.rng = Some(Rng::with_seed(seed));
    }

    pub(crate) fn set_direct(&self, direct: Direct) {
        lock(&self.state).direct = direct;
    }

    pub(crate) fn direct_writes(&self) -> u64 {
        lock(&self.state).direct_writes
    }

    pub(crate) fn note(&self, note: Note) {
        lock(&self.state).ops.push(Op::Note(note));
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        lock(&self.state).ops.clone()
    }

    /// What may be on the disk after these operations and a power loss. `keep` is the chance of what was not synced.
    pub(crate) fn image(&self, ops: &[Op], rng: &mut Rng, keep: f64) -> Image {
        let mut names: BTreeMap<String, usize> = self.base.keys().cloned().zip(0..).collect();
        let mut pending_names: Vec<&Op> = Vec::new();
        let mut files: Vec<(Vec<u8>, Vec<&Op>)> = self.base.values().map(|b| (b.clone(), Vec::new())).collect();
        for op in ops {
            match op {
                Op::Create(_, inode) => {
                    files.resize_with(files.len().max(inode + 1), Default::default);
                    pending_names.push(op);
                }
                Op::Remove(_) | Op::Rename(..) => pending_names.push(op),
                Op::SyncNames => pending_names.drain(..).for_each(|op| apply_name(&mut names, op)),
                Op::Write(inode, ..) | Op::Resize(inode, _) => files[*inode].1.push(op),
                Op::Sync(inode) => {
                    let (bytes, pending) = &mut files[*inode];
                    settle(bytes, pending, &mut || true);
                }
                Op::SyncFailed(inode) => {
                    let (bytes, pending) = &mut files[*inode];
                    settle(bytes, pending, &mut || rng.f64() < keep);
                }
                Op::Note(_) => {}
            }
        }
        for op in pending_names {
            if rng.f64() < keep {
                apply_name(&mut names, op);
            }
        }
        for (bytes, pending) in &mut files {
            settle(bytes, pending, &mut || rng.f64() < keep);
        }
        names.into_iter().map(|(name, inode)| (name, files[inode].0.clone())).collect()
    }

    /// The names that were there after these operations, had there been no power loss.
    pub(crate) fn names(&self, ops: &[Op]) -> Vec<String> {
        let mut names: BTreeMap<String, usize> = self.base.keys().cloned().zip(0..).collect();
        ops.iter().for_each(|op| apply_name(&mut names, op));
        names.into_keys().collect()
    }
}

fn apply_name(names: &mut BTreeMap<String, usize>, op: &Op) {
    match op {
        Op::Create(name, inode) => drop(names.insert(name.clone(), *inode)),
        Op::Remove(name) => drop(names.remove(name)),
        Op::Rename(inode, from, to) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        _ => {}
    }
}

/// Does operations to a file; of a write, only the sectors that `keep` keeps. A file system puts changes of a file's length
/// in order: what lengthens the file on disk brings an earlier, greater length with it.
fn settle(file: &mut Vec<u8>, pending: &mut Vec<&Op>, keep: &mut dyn FnMut() -> bool) {
    let mut lost_len = 0;
    for op in pending.drain(..) {
        match op {
            Op::Resize(_, len) if keep() => file.resize(*len as usize, 0),
            Op::Resize(_, len) => lost_len = *len as usize,
            Op::Write(_, offset, bytes) => {
                let end = offset + bytes.len() as u64;
                let mut at = *offset;
                while at < end {
                    let to = end.min((at / SECTOR + 1) * SECTOR);
                    if keep() {
                        if to as usize > file.len() {
                            file.resize(file.len().max(lost_len), 0);
                        }
                        put(file, at, &bytes[(at - offset) as usize..(to - offset) as usize]);
                    }
                    at = to;
                }
            }
            _ => {}
        }
    }
}

pub(crate) fn put(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    file.resize(file.len().max(end), 0);
    file[offset as usize..end].copy_from_slice(bytes);
}
