//! Writing the file so that a crash leaves the old one or the new one, and reading it so that nothing wrong comes out.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::format::{self, BUFFER, HEADER, Header, LOCK, MAX_TABLE, NAME, NEW_NAME, NOTE, PointerRow, Row, STATE};
use super::{Checkpoint, Part, Sparse};
use crate::error::{Error, Result};
use crate::journal::disk::{Disk, DiskFile};

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    State,
    Buffer,
}

/// A part with its bytes; words that are pointers as the file has them.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) part: Part,
    pub(crate) kind: Kind,
    pub(crate) pointers: Vec<PointerRow>,
    pub(crate) data: Sparse,
}

/// A whole checkpoint in memory.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) info: Checkpoint,
    pub(crate) parts: Vec<Saved>,
}

/// Writes the checkpoint in place of the one that is there; that one stays as it is until the new one is durable. Gives
/// what was written.
pub(crate) fn save(disk: &dyn Disk, contents: Contents) -> Result<Checkpoint> {
    let io = |call, name: &str, e| Error::io(call, &disk.path().join(name), &e);
    let _lock = disk.lock(LOCK).map_err(|e| match e.kind() {
        ErrorKind::WouldBlock => Error::State(format!(
            "checkpoint: another one is being written to {}, in this process or another; give every runtime a directory of its own",
            disk.path().display()
        )),
        _ => io("lock", LOCK, e),
    })?;
    let Contents { mut info, parts } = contents;
    let note = Sparse::of(&info.note)?;
    let mut rows: Vec<Row> = Vec::new();
    let mut data: Vec<&Sparse> = Vec::new();
    for saved in &parts {
        let kind = if saved.kind == Kind::State { STATE } else { BUFFER };
        rows.push(Row { part: saved.part.clone(), kind, offset: 0, crc: 0, pointers: saved.pointers.clone() });
        data.push(&saved.data);
    }
    if note.bytes > 0 {
        let part = Part { bytes: note.bytes, ..Part::default() };
        rows.push(Row { part, kind: NOTE, offset: 0, crc: 0, pointers: Vec::new() });
        data.push(&note);
    }
    // Twice: how long the tables are, then what stands in them.
    let begin = format::encode(&info, &mut rows, |_| (0, 0)).len() as u64;
    if begin - HEADER > MAX_TABLE {
        return Err(Error::refused("the checkpoint", format!("its tables have more than {MAX_TABLE} bytes")));
    }
    let crcs: Vec<u32> = data.iter().map(|d| d.crc()).collect();
    let offset = |i: usize| begin + data[..i].iter().map(|d| d.stored()).sum::<u64>();
    info.file_bytes = offset(data.len());
    let head = format::encode(&info, &mut rows, |i| (offset(i), crcs[i]));

    // What an earlier attempt left; ours alone, by the lock.
    match disk.remove(NEW_NAME) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(io("remove", NEW_NAME, e)),
        _ => {}
    }
    let file = disk.create(NEW_NAME).map_err(|e| io("create", NEW_NAME, e))?;
    let written = write(file.as_ref(), info.file_bytes, &head, &rows, &data).map_err(|(call, e)| io(call, NEW_NAME, e));
    written.and_then(|()| disk.rename(NEW_NAME, NAME).map_err(|e| io("rename", NEW_NAME, e))).inspect_err(|_| {
        // Space that a full disk may need; the next attempt removes it otherwise.
        let _ = disk.remove(NEW_NAME);
    })?;
    disk.sync().map_err(|e| Error::io("fsync of the directory", disk.path(), &e))?;
    Ok(info)
}

type Failure = (&'static str, std::io::Error);

fn write(file: &dyn DiskFile, bytes: u64, head: &[u8], rows: &[Row], data: &[&Sparse]) -> Result<(), Failure> {
    // Holes stay where nothing is written: zeros, which is what belongs there.
    file.truncate(bytes).map_err(|e| ("truncate", e))?;
    file.write_at(0, head).map_err(|e| ("write", e))?;
    for (row, sparse) in rows.iter().zip(data) {
        for (at, piece) in &sparse.pieces {
            file.write_at(row.offset + at, piece).map_err(|e| ("write", e))?;
        }
    }
    file.sync_data().map_err(|e| ("fdatasync", e))
}

/// An open checkpoint whose header and tables were checked.
struct Opened {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    info: Checkpoint,
    rows: Vec<Row>,
}

impl Opened {
    fn foreign(&self, reason: impl Into<String>) -> Error {
        foreign(&self.path, reason)
    }

    fn data(&self, row: &Row) -> Result<Sparse> {
        let what = || match (row.kind, &*row.part.buffer) {
            (NOTE, _) => "the note".into(),
            (_, "") => format!("the state of module {}", row.part.module),
            (_, buffer) => format!("buffer {buffer} of module {}", row.part.module),
        };
        let stored = row.part.bytes.next_multiple_of(format::BLOCK);
        let mut sparse = Sparse::collect(stored, |at, into| {
            let have = self.file.read_at(row.offset + at, into).map_err(|e| Error::io("read", &self.path, &e))?;
            if have < into.len() { Err(self.foreign(format!("it ends inside {}", what()))) } else { Ok(()) }
        })?;
        if sparse.crc() != row.crc {
            return Err(self.foreign(damaged(&what())));
        }
        // With the zeros that follow it, a part is as long as its blocks.
        let extra = stored - row.part.bytes;
        sparse.bytes = row.part.bytes;
        if let Some((at, piece)) = sparse.pieces.last_mut()
            && *at + piece.len() as u64 > row.part.bytes
        {
            let zeros = piece.split_off(piece.len() - extra as usize);
            if zeros.iter().any(|b| *b != 0) {
                return Err(self.foreign(damaged(&what())));
            }
        }
        Ok(sparse)
    }
}

fn damaged(what: &str) -> String {
    format!("{what} does not match its checksum: the file is damaged; go back to a copy of it, or begin without it")
}

fn foreign(path: &std::path::Path, reason: impl Into<String>) -> Error {
    Error::Foreign { file: path.to_path_buf(), reason: reason.into() }
}

fn open(disk: &dyn Disk) -> Result<Option<Opened>> {
    let path = disk.path().join(NAME);
    let io = |call, e| Error::io(call, &path, &e);
    let file = match disk.open(NAME, false) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        outcome => outcome.map_err(|e| io("open", e))?,
    };
    let size = file.size().map_err(|e| io("stat", e))?;
    let mut bytes = [0; HEADER as usize];
    let have = file.read_at(0, &mut bytes).map_err(|e| io("read", e))?;
    let header: Header = bytemuck::pod_read_unaligned(&bytes);
    if have < bytes.len() || header.magic != format::MAGIC {
        return Err(foreign(&path, "it does not begin as a checkpoint does; move it away"));
    }
    if header.version != format::VERSION {
        let reason = format!("it has version {} and this warpmail writes version {}", header.version, format::VERSION);
        return Err(foreign(&path, reason));
    }
    if header.crc != header.own_crc() || u64::from(header.header_bytes) != HEADER {
        return Err(foreign(&path, damaged("the header")));
    }
    if size != header.file_bytes {
        let reason =
            format!("it has {size} bytes and was written with {}: it was cut or appended to", header.file_bytes);
        return Err(foreign(&path, reason));
    }
    if header.table_bytes > MAX_TABLE || header.table_bytes > size {
        return Err(foreign(&path, damaged("the header")));
    }
    let mut tables = vec![0; header.table_bytes as usize];
    let have = file.read_at(HEADER, &mut tables).map_err(|e| io("read", e))?;
    if have < tables.len() || crc32c::crc32c(&tables) != header.table_crc {
        return Err(foreign(&path, damaged("the tables")));
    }
    let Some((info, rows)) = format::decode(&header, &tables) else {
        return Err(foreign(&path, "its tables contradict themselves: it was not written by warpmail"));
    };
    Ok(Some(Opened { path, file, info, rows }))
}

impl Opened {
    fn with_note(mut self) -> Result<Self> {
        if let Some(row) = self.rows.iter().find(|r| r.kind == NOTE) {
            self.info.note = self.data(row)?.dense()?;
        }
        Ok(self)
    }
}

/// What the checkpoint says of itself.
pub(super) fn look(disk: &dyn Disk) -> Result<Option<Checkpoint>> {
    Ok(open(disk)?.map(Opened::with_note).transpose()?.map(|opened| opened.info))
}

/// Reads and checks all of it; none if there is none.
pub(crate) fn load(disk: &dyn Disk) -> Result<Option<Contents>> {
    let Some(opened) = open(disk)?.map(Opened::with_note).transpose()? else { return Ok(None) };
    let mut parts = Vec::new();
    for row in opened.rows.iter().filter(|r| r.kind != NOTE) {
        let kind = if row.kind == STATE { Kind::State } else { Kind::Buffer };
        let (part, pointers) = (row.part.clone(), row.pointers.clone());
        parts.push(Saved { part, kind, pointers, data: opened.data(row)? });
    }
    Ok(Some(Contents { info: opened.info, parts }))
}
