//! One segment file: its header, and its operations with errors that name it.

use std::io::ErrorKind;
use std::path::PathBuf;

use rustix::io::Errno;

use super::disk::{Disk, DiskFile};
use super::format::{self, MAX_SEQUENCE, OLDEST, SEGMENT_HEADER, SEGMENT_MAGIC, SegmentHeader, VERSION};
use crate::error::{Error, Result};

/// An open segment file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// The sequence in its name.
    pub(super) first: u64,
    file: Box<dyn DiskFile>,
    /// The same file, for writes past the page cache.
    direct: Option<Box<dyn DiskFile>>,
}

/// Makes the names in a directory durable.
pub(super) fn sync_names(disk: &dyn Disk) -> Result<()> {
    disk.sync().map_err(|e| Error::not_durable("fsync of the directory", disk.path(), &e))
}

/// What stands where the header should be.
pub(super) enum Head {
    Valid(SegmentHeader),
    /// A crash came between the file's creation and its header: the file is empty, or has zeros after what may be a
    /// part of a header. It holds no record.
    Unwritten,
}

impl Segment {
    pub(super) fn open(disk: &dyn Disk, first: u64, write: bool) -> Result<Self> {
        let name = format::segment_name(first);
        let path = disk.path().join(&name);
        let file = disk.open(&name, write).map_err(|e| Error::io("open", &path, &e))?;
        Ok(Segment { path, first, file, direct: None })
    }

    /// Makes an empty file that was not there.
    pub(super) fn create(disk: &dyn Disk, first: u64) -> Result<Self> {
        let name = format::segment_name(first);
        let path = disk.path().join(&name);
        let file = disk.create(&name).map_err(|e| Error::io("create", &path, &e))?;
        Ok(Segment { path, first, file, direct: None })
    }

    /// Gives an empty or zero file its space and its header; all of it is durable then, its name too.
    pub(super) fn begin(&self, disk: &dyn Disk, header: &SegmentHeader, bytes: u64) -> Result<()> {
        self.allocate(bytes)?;
        self.write(0, bytemuck::bytes_of(header))?;
        self.sync()?;
        sync_names(disk)
    }

    /// Reads the header and checks all that can be checked in it alone.
    pub(super) fn head(&self) -> Result<Head> {
        // A reader may look while the header is being written: the second look sees it whole.
        self.look().or_else(|_| self.look())
    }

    fn look(&self) -> Result<Head> {
        if !(1..=MAX_SEQUENCE).contains(&self.first) {
            let reason = "no record has the sequence that its name tells; move it away".into();
            return Err(Error::Foreign { file: self.path.clone(), reason });
        }
        let size = self.size()?;
        let mut bytes = [0; SEGMENT_HEADER as usize];
        let have = self.read(0, &mut bytes)?;
        if bytes == [0; SEGMENT_HEADER as usize] {
            return match self.next_nonzero(0, size)? {
                None => Ok(Head::Unwritten),
                Some(offset) => Err(self.damaged(0, format!("no header, but data at offset {offset}"))),
            };
        }
        let begun = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1).min(SEGMENT_MAGIC.len());
        if bytes[..begun] != SEGMENT_MAGIC[..begun] {
            let reason = "it does not begin as a segment does; if it is none, move it away".into();
            return Err(Error::Foreign { file: self.path.clone(), reason });
        }
        if (have as u64) < SEGMENT_HEADER {
            // No crash leaves this: a segment has its full length before its header is written.
            return Err(self.damaged(0, format!("the header is cut off after {have} bytes")));
        }
        let header: SegmentHeader = bytemuck::pod_read_unaligned(&bytes);
        if !matches!(header.version, 0 | OLDEST..=VERSION) {
            let reason = format!(
                "it has version {} and this warpmail reads versions {OLDEST} to {VERSION}: use the one that wrote it",
                header.version
            );
            return Err(Error::Foreign { file: self.path.clone(), reason });
        }
        if header.crc != header.own_crc() {
            return match self.next_nonzero(SEGMENT_HEADER, size)? {
                None => Ok(Head::Unwritten),
                Some(_) => Err(self.damaged(0, "the segment header does not match its checksum")),
            };
        }
        if header.version == 0
            || u64::from(header.header_bytes) != SEGMENT_HEADER
            || header.first_sequence != self.first
        {
            return Err(
                self.damaged(0, format!("its header is that of a segment that begins with {}", header.first_sequence))
            );
        }
        Ok(Head::Valid(header))
    }

    /// The header of a segment that must have one, of the log with this id if one is given.
    pub(super) fn header(&self, log_id: Option<&[u8; 16]>) -> Result<SegmentHeader> {
        match self.head()? {
            Head::Valid(header) if log_id.is_some_and(|id| *id != header.log_id) => {
                let reason = "it belongs to another log; a directory holds one log: move it away".into();
                Err(Error::Foreign { file: self.path.clone(), reason })
            }
            Head::Valid(header) => Ok(header),
            Head::Unwritten => Err(self.damaged(0, "the segment header is missing")),
        }
    }

    /// The first offset in `from..to` whose byte is not zero.
    pub(super) fn next_nonzero(&self, from: u64, to: u64) -> Result<Option<u64>> {
        let mut chunk = vec![0; 1 << 16];
        let mut at = from;
        while let Some(data) = self.next_data(at)?.filter(|data| *data < to) {
            let want = (to - data).min(chunk.len() as u64) as usize;
            let have = self.read(data, &mut chunk[..want])?;
            if let Some(i) = chunk[..have].iter().position(|b| *b != 0) {
                return Ok(Some(data + i as u64));
            }
            if have == 0 {
                break;
            }
            at = data + have as u64;
        }
        Ok(None)
    }

    pub(super) fn damaged(&self, offset: u64, reason: impl Into<String>) -> Error {
        Error::Damaged { file: self.path.clone(), offset, sequence: self.first, reason: reason.into() }
    }

    pub(super) fn size(&self) -> Result<u64> {
        self.file.size().map_err(|e| Error::io("stat", &self.path, &e))
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.file.read_at(offset, into).map_err(|e| Error::io("read", &self.path, &e))
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(offset, bytes).map_err(|e| Error::io("write", &self.path, &e))
    }

    /// Opens the file a second time, for writes past the page cache; or says why there are none.
    pub(super) fn go_direct(&mut self, disk: &dyn Disk) -> std::result::Result<(), String> {
        self.direct = Some(disk.open_direct(&format::segment_name(self.first)).map_err(|e| e.to_string())?);
        Ok(())
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Writes whole blocks past the page cache. Where the file system turns out to refuse them, through it, now and later;
    /// then the reason is given.
    pub(super) fn write_blocks(&mut self, offset: u64, bytes: &[u8]) -> Result<Option<String>> {
        let Some(direct) = &self.direct else { return self.write(offset, bytes).map(|()| None) };
        match direct.write_at(offset, bytes) {
            Ok(()) => Ok(None),
            // Where memory cannot be written from, that is the memory's fault, or a driver's.
            Err(e)
                if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported)
                    || e.raw_os_error() == Some(Errno::FAULT.raw_os_error()) =>
            {
                self.direct = None;
                self.write(offset, bytes).map(|()| Some(e.to_string()))
            }
            Err(e) => Err(Error::io("write", &self.path, &e)),
        }
    }

    pub(super) fn truncate(&self, bytes: u64) -> Result<()> {
        self.file.truncate(bytes).map_err(|e| Error::io("truncate", &self.path, &e))
    }

    pub(super) fn allocate(&self, bytes: u64) -> Result<()> {
        self.file.allocate(bytes).map_err(|e| Error::io("fallocate", &self.path, &e))
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::not_durable("fdatasync", &self.path, &e))
    }

    pub(super) fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        self.file.next_data(offset).map_err(|e| Error::io("seek in", &self.path, &e))
    }
}
