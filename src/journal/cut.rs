//! Giving up the damaged end of a log, on a person's word.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::disk::{Disk, Folder};
use super::format::{SEGMENT_HEADER, segment_name};
use super::reader::Reader;
use super::recover::{lock, segments};
use super::segment::{Segment, sync_names};
use crate::error::{Error, Result};

/// What has to go for a log to be whole again: everything behind its last valid record. Holds the writer's lock.
#[derive(Debug, Serialize)]
pub struct Cut {
    /// The highest sequence that stays, 0 if none does.
    pub last: u64,
    /// What is wrong there.
    pub reason: String,
    /// The segment that is cut, and where, bytes; none if whole segments are removed only.
    pub cut: Option<(PathBuf, u64)>,
    /// The segments that are removed.
    pub removed: Vec<PathBuf>,
    /// Bytes that are lost, zeros at the end included.
    pub bytes: u64,
    #[serde(skip)]
    disk: Arc<dyn Disk>,
    #[serde(skip)]
    doomed: Vec<u64>,
    #[serde(skip)]
    cut_first: Option<u64>,
    #[serde(skip)]
    _lock: Box<dyn Any + Send>,
}

impl Cut {
    /// Reads the whole log, calling `progress` with the bytes gone through, and says what would go. None: nothing, it is
    /// whole. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Locked`] while the log has a writer; [`Error::Refused`] if nothing would be left or there is no log;
    /// [`Error::Foreign`] for files that are not this log's: move them away; [`Error::Io`].
    pub fn plan(dir: impl AsRef<Path>, mut progress: impl FnMut(u64)) -> Result<Option<Self>> {
        let disk: Arc<dyn Disk> = Arc::new(Folder::new(dir.as_ref()));
        let firsts = segments(disk.as_ref())?;
        if firsts.is_empty() {
            return Err(Error::refused(
                format!("{}", dir.as_ref().display()),
                "holds no log: there is no segment in it",
            ));
        }
        let lock = lock(disk.as_ref())?;
        let (file, offset, sequence, reason) = match first_fault(&disk, &mut progress)? {
            Some(fault) => fault,
            None => return Ok(None),
        };
        let at = firsts.iter().position(|first| disk.path().join(segment_name(*first)) == file).unwrap_or(0);
        let whole = offset < SEGMENT_HEADER;
        if whole && at == 0 {
            let rule = format!("nothing of it would be left: {reason}; move the directory away to begin a new log");
            return Err(Error::refused(format!("{}", dir.as_ref().display()), rule));
        }
        let doomed = firsts[if whole { at } else { at + 1 }..].to_vec();
        let cut_first = (!whole).then_some(firsts[at]);
        let mut bytes = 0;
        for first in doomed.iter().chain(&cut_first) {
            bytes += Segment::open(disk.as_ref(), *first, false)?.size()?;
        }
        bytes -= if whole { 0 } else { offset };
        Ok(Some(Cut {
            last: sequence.saturating_sub(1),
            reason,
            cut: cut_first.map(|_| (file, offset)),
            removed: doomed.iter().map(|first| disk.path().join(segment_name(*first))).collect(),
            bytes,
            disk,
            doomed,
            cut_first,
            _lock: lock,
        }))
    }

    /// Does it, durably. A crash in between leaves a log that can be cut again.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::NotDurable`]; plan it again then.
    pub fn apply(self) -> Result<()> {
        // The newest first, so that no gap comes to be, and one at a time, as retention does.
        for first in self.doomed.iter().rev() {
            let name = segment_name(*first);
            self.disk.remove(&name).map_err(|e| Error::io("remove", &self.disk.path().join(&name), &e))?;
            sync_names(self.disk.as_ref())?;
        }
        if let (Some(first), Some((_, offset))) = (self.cut_first, &self.cut) {
            let segment = Segment::open(self.disk.as_ref(), first, true)?;
            segment.truncate(*offset)?;
            segment.sync()?;
        }
        Ok(())
    }
}

type Fault = (PathBuf, u64, u64, String);

fn first_fault(disk: &Arc<dyn Disk>, progress: &mut dyn FnMut(u64)) -> Result<Option<Fault>> {
    let damaged = |error| match error {
        Error::Damaged { file, offset, sequence, reason } => Ok(Some((file, offset, sequence, reason))),
        other => Err(other),
    };
    let mut reader = match Reader::open_on(disk.clone(), 0) {
        Ok(reader) => reader,
        Err(error) => return damaged(error),
    };
    while let Some(record) = reader.next() {
        match record {
            Ok(_) => progress(reader.bytes()),
            Err(error) => return damaged(error),
        }
    }
    Ok(reader.torn().map(|t| (t.file.clone(), t.offset, t.sequence, t.reason.clone())))
}
