//! The few operations on a directory and its files that a log needs, so that tests can stand in for the disk.

use std::any::Any;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FallocateFlags, FlockOperation, OFlags, SeekFrom, StatxFlags, fallocate, flock, seek, statx,
};
use rustix::io::{Errno, retry_on_intr};

/// What direct writes are made of: their offset, their length and the address of their bytes are multiples of it.
pub const DIRECT_BLOCK: usize = 4096;

/// A directory that holds a log, a checkpoint, or both. Names are plain file names.
pub trait Disk: Debug + Send + Sync {
    /// How errors name the directory.
    fn path(&self) -> &Path;
    /// Takes the lock of this name without waiting; it is released when the guard is dropped. `WouldBlock` if it is taken.
    fn lock(&self, name: &str) -> io::Result<Box<dyn Any + Send>>;
    /// Names of the files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes an empty file that was not there. Its name is durable only after [`sync`](Self::sync).
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading, and for writing if `write`.
    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file that is there for writes past the page cache; [`write_at`](DiskFile::write_at) alone is called on it, with
    /// whole [`DIRECT_BLOCK`]s. They are seen by, and synced through, the file as [`open`](Self::open) gives it. The error
    /// says why the disk has no such writes, which is no failure.
    fn open_direct(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let _ = name;
        Err(io::Error::new(ErrorKind::Unsupported, "this disk has no direct writes"))
    }
    /// Removes a name. Durable only after [`sync`](Self::sync).
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Gives a file another name, in place of the file that has it. Durable only after [`sync`](Self::sync); a crash before
    /// leaves the one or the other.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes the names durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file of a [`Disk`].
pub trait DiskFile: Debug + Send {
    /// Bytes in the file.
    fn size(&self) -> io::Result<u64>;
    /// Reads at an offset; fewer bytes than asked for only at the end of the file.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Writes at an offset, all bytes or an error; after an error any part of them may be in the file.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the file, or lengthens it with zeros.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    /// Lengthens the file with zeros up to `bytes`, with space set aside where the file system can.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Makes contents and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// The first offset from `offset` on that may hold something other than zeros; none if nothing does.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
}

/// A directory of the file system.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A directory that is there, or will be made by [`make`](Self::make).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Folder { path: path.into() }
    }

    /// Makes the directory, and those above it that are missing, durably; nothing if it is there.
    pub fn make(&self) -> io::Result<()> {
        let missing: Vec<_> = self.path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.is_dir()).collect();
        std::fs::create_dir_all(&self.path)?;
        for folder in missing {
            let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }
}

/// A lock file that is held.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread is starting just now has it open too.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Disk for Folder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self, name: &str) -> io::Result<Box<dyn Any + Send>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.path.join(name))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(Lock(file)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is no UTF-8 is not one of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).create_new(true).open(self.path.join(name))?))
    }

    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn DiskFile>> {
        // Without the flag a pipe in the place of a segment would wait for its other end.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(self.path.join(name))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
        }
        Ok(Box::new(file))
    }

    fn open_direct(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let flags = (OFlags::DIRECT | OFlags::NONBLOCK).bits() as i32;
        let file = OpenOptions::new().write(true).custom_flags(flags).open(self.path.join(name))?;
        let no = |why: String| Err(io::Error::new(ErrorKind::Unsupported, why));
        // An older kernel, or file system, does not say; then a write that it cannot do fails, and says so.
        match statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
            Ok(s) if s.stx_mask & StatxFlags::DIOALIGN.bits() == 0 => Ok(Box::new(file)),
            Ok(s) if s.stx_dio_offset_align == 0 => no("the file system has no direct writes for this file".into()),
            Ok(s) if s.stx_dio_offset_align.max(s.stx_dio_mem_align) as usize > DIRECT_BLOCK => {
                no(format!("the file system wants direct writes in blocks of {}", s.stx_dio_offset_align))
            }
            _ => Ok(Box::new(file)),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match FileExt::read_at(self, &mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match retry_on_intr(|| fallocate(self, FallocateFlags::empty(), 0, bytes)) {
            // No space is set aside then, and a write may find the disk full.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if bytes > DiskFile::size(self)? => self.set_len(bytes),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        // What fdatasync leaves out, such as times, no reader of a log needs; the length is included.
        File::sync_data(self)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match seek(self, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            // A file system that knows no holes: look at everything.
            Err(_) => Ok((offset < DiskFile::size(self)?).then_some(offset)),
        }
    }
}
