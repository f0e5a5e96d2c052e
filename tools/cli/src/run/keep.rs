//! What a run keeps on disk: checkpoints of what the modules know, with the names and numbers that give it meaning.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use warpmail::checkpoint::{Checkpoint, CheckpointOptions};
use warpmail::journal::{Log, Position};
use warpmail::{Error, Runtime};

use super::records::Begin;

/// The longest that a checkpoint may take.
const BOUND: Duration = Duration::from_secs(60);

/// What the host must know to go on: kept as the checkpoint's note.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// The number that the next line gets.
    pub(crate) next_line: u64,
    /// First line number of each file, in order.
    pub(crate) files: Vec<(u64, PathBuf)>,
}

impl Known {
    /// The next line number, then for each file the number of its first line, the length of its name, and the name.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.next_line.to_le_bytes().to_vec();
        for (first, path) in &self.files {
            let name = path.as_os_str().as_bytes();
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
            bytes.extend_from_slice(name);
        }
        bytes
    }

    pub(crate) fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        fn take<'a>(bytes: &mut &'a [u8], n: u64) -> Option<&'a [u8]> {
            let (head, tail) = bytes.split_at_checked(usize::try_from(n).ok()?)?;
            *bytes = tail;
            Some(head)
        }
        let number = |bytes: &mut &[u8]| Some(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?));
        let mut known = Known { next_line: number(&mut bytes)?, files: Vec::new() };
        while !bytes.is_empty() {
            let (first, len) = (number(&mut bytes)?, number(&mut bytes)?);
            known.files.push((first, OsString::from_vec(take(&mut bytes, len)?.to_vec()).into()));
        }
        Some(known)
    }

    /// The last line that is known, by file and number there.
    pub(crate) fn last_place(&self) -> Option<(&Path, u64)> {
        let last = self.next_line.checked_sub(1)?;
        let (first, path) = self.files.iter().rfind(|(first, _)| *first <= last)?;
        Some((path, last - first + 1))
    }
}

/// Where a run keeps what it knows, and what it begins with.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) dir: PathBuf,
    /// Where lines and results go; none where the lines come from that log.
    pub(crate) log: Option<Log>,
    /// The place in that log, if it is not this run's journal.
    pub(crate) position: Option<Position>,
    /// Whether the checkpoint in the directory is taken up.
    pub(crate) restore: bool,
    /// Besides the one at the end.
    pub(crate) every: Option<Duration>,
    pub(crate) begin: Begin,
    pub(crate) known: Known,
}

/// Writes checkpoints when they are due.
#[derive(Debug)]
pub(crate) struct Keeper {
    dir: PathBuf,
    position: Option<Position>,
    every: Option<Duration>,
    last: Instant,
}

impl Keeper {
    pub(crate) fn new(kept: &Kept) -> Self {
        Keeper { dir: kept.dir.clone(), position: kept.position, every: kept.every, last: Instant::now() }
    }

    /// When the next one should be made, if one should.
    pub(crate) fn due_in(&self) -> Option<Duration> {
        self.every.map(|every| every.saturating_sub(self.last.elapsed()))
    }

    /// Writes one. Nobody posts meanwhile, and `known` is what was posted.
    pub(crate) fn save(&mut self, runtime: &mut Runtime, known: &Known) -> Result<Checkpoint, Error> {
        let note = known.to_bytes();
        let options = CheckpointOptions { note: &note, journal: self.position };
        let outcome = runtime.checkpoint_with(&self.dir, options, BOUND);
        self.last = Instant::now();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_comes_back() {
        let odd = OsString::from_vec(vec![b'a', 0xFF, b'\n']);
        let known = Known { next_line: 12, files: vec![(0, "a".into()), (0, odd.into()), (7, "dir/b".into())] };
        let bytes = known.to_bytes();
        assert_eq!(Known::from_bytes(&bytes), Some(known.clone()));
        assert_eq!(known.last_place(), Some((Path::new("dir/b"), 5)));
        assert_eq!(Known::default().last_place(), None);
        // A file ends where the next begins, so a cut between files is a shorter list; any other is refused.
        let whole = (0..=bytes.len()).filter(|n| Known::from_bytes(&bytes[..*n]).is_some()).count();
        assert_eq!(whole, 4);
    }
}
