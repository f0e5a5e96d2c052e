//! What a log holds, from its headers and the last segment alone.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::disk::{Disk, Folder};
use super::format::{SegmentHeader, id_text};
use super::recover::{Torn, follows, segments};
use super::scan::{Scan, walk};
use super::segment::{Head, Segment};
use crate::error::{Error, Result};

/// What [`stat`] tells of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogStat {
    /// The log's id, 32 hexadecimal digits; none as long as its only segment has no header.
    pub id: Option<String>,
    /// The oldest sequence kept, or the next one if none is. Those before it were removed by retention.
    pub first: u64,
    /// The highest sequence that can be read, 0 if none was ever written.
    pub last: u64,
    /// Bytes of all files, space set aside included.
    pub file_bytes: u64,
    /// What stands behind the last record: torn by a crash, or being written right now.
    pub torn: Option<Torn>,
    /// The segments, oldest first.
    pub segments: Vec<SegmentStat>,
}

/// One segment of a [`LogStat`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SegmentStat {
    /// The file.
    pub file: PathBuf,
    /// Its first sequence.
    pub first: u64,
    /// Records in it, as the next segment's name tells; in the last segment they were counted.
    pub records: u64,
    /// Bytes of records and headers.
    pub bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Wall clock at its creation, nanoseconds since 1970; 0 if it has no header yet.
    pub created_ns: u64,
}

/// Looks at a log without a lock and without reading more than it must.
///
/// # Errors
/// [`Error::Refused`] if there is no log, [`Error::Io`], [`Error::Foreign`], and [`Error::Damaged`] for damaged headers;
/// damaged records are found by reading all of them.
pub fn stat(dir: impl AsRef<Path>) -> Result<LogStat> {
    let folder = Folder::new(dir.as_ref());
    let firsts = segments(&folder)?;
    let Some(&first) = firsts.first() else {
        return Err(Error::refused(format!("{}", folder.path().display()), "holds no log: there is no segment in it"));
    };
    let mut log = LogStat { id: None, first, last: 0, file_bytes: 0, torn: None, segments: Vec::new() };
    let mut before: Option<SegmentHeader> = None;
    for (i, &first) in firsts.iter().enumerate() {
        let segment = Segment::open(&folder, first, false)?;
        let file_bytes = segment.size()?;
        let mut seen =
            SegmentStat { file: segment.path.clone(), first, records: 0, bytes: 0, file_bytes, created_ns: 0 };
        let next = firsts.get(i + 1);
        if next.is_none() && matches!(segment.head()?, Head::Unwritten) {
            log.last = first.saturating_sub(1);
        } else {
            let header = segment.header(before.as_ref().map(|h| &h.log_id))?;
            follows(&segment, &header, before.as_ref())?;
            seen.created_ns = header.created_ns;
            (seen.records, seen.bytes) = (next.map_or(0, |n| n - first), file_bytes);
            if next.is_none() {
                let mut scan = Scan::new(segment, header.log_id)?;
                let walked = walk(&mut scan)?;
                (seen.records, seen.bytes) = (walked.next - first, walked.end);
                log.last = walked.next - 1;
                log.torn = scan.segment.next_nonzero(walked.end, scan.size)?.map(|_| Torn {
                    file: seen.file.clone(),
                    offset: walked.end,
                    sequence: walked.next,
                    reason: walked.stop.into(),
                });
            }
            before = Some(header);
        }
        log.file_bytes += file_bytes;
        log.segments.push(seen);
    }
    log.id = before.map(|h| id_text(&h.log_id));
    Ok(log)
}
