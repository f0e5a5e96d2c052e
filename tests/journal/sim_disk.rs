//! The operations of the disk in memory, with their planted failures and lies.

use std::any::Any;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use warpmail::journal::disk::{DIRECT_BLOCK, Disk, DiskFile};

use crate::sim::{Direct, Op, SimDisk, State, lock, put};

#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<State>>,
    inode: usize,
    /// Whole blocks from aligned memory only.
    direct: bool,
}

/// A lock that is held, by name.
struct Guard(Arc<Mutex<State>>, String);

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&self.0).locked.remove(&self.1);
    }
}

impl Disk for SimDisk {
    fn path(&self) -> &Path {
        Path::new("sim")
    }

    fn lock(&self, name: &str) -> io::Result<Box<dyn Any + Send>> {
        let free = lock(&self.state).locked.insert(name.into());
        if free { Ok(Box::new(Guard(self.state.clone(), name.into()))) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.state).names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = lock(&self.state);
        state.fault()?;
        if state.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = state.files.len();
        state.files.push(Vec::new());
        state.names.insert(name.into(), inode);
        state.ops.push(Op::Create(name.into(), inode));
        Ok(Box::new(SimFile { state: self.state.clone(), inode, direct: false }))
    }

    fn open(&self, name: &str, _write: bool) -> io::Result<Box<dyn DiskFile>> {
        let inode = *lock(&self.state).names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { state: self.state.clone(), inode, direct: false }))
    }

    fn open_direct(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = lock(&self.state);
        if state.direct == Direct::NotOpened {
            return Err(ErrorKind::Unsupported.into());
        }
        let inode = *state.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { state: self.state.clone(), inode, direct: true }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.fault()?;
        state.names.remove(name).ok_or(ErrorKind::NotFound)?;
        state.ops.push(Op::Remove(name.into()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.fault()?;
        let inode = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        state.names.insert(to.into(), inode);
        state.ops.push(Op::Rename(inode, from.into(), to.into()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        let rate = state.faults.sync;
        if state.fails(rate) {
            return Err(ErrorKind::Other.into());
        }
        if !state.lies.name_sync_does_nothing {
            state.ops.push(Op::SyncNames);
        }
        Ok(())
    }
}

impl SimFile {
    fn resize(&self, bytes: u64, remembered: bool) {
        let mut state = lock(&self.state);
        state.files[self.inode].resize(bytes as usize, 0);
        if remembered {
            state.ops.push(Op::Resize(self.inode, bytes));
        }
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(lock(&self.state).files[self.inode].len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = lock(&self.state);
        let file = state.files[self.inode].get(offset as usize..).unwrap_or_default();
        let len = into.len().min(file.len());
        into[..len].copy_from_slice(&file[..len]);
        Ok(len)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        if self.direct {
            let block = DIRECT_BLOCK;
            let whole = offset.is_multiple_of(block as u64) && bytes.len().is_multiple_of(block);
            assert!(whole && bytes.as_ptr().addr().is_multiple_of(block), "{} bytes at {offset}", bytes.len());
            if state.direct == Direct::NotWritten {
                return Err(ErrorKind::InvalidInput.into());
            }
            state.direct_writes += 1;
        }
        let rate = state.faults.write;
        let fails = state.fails(rate);
        state.trouble |= fails;
        let part = if fails { state.rng.as_mut().map_or(0, |rng| rng.usize(..=bytes.len())) } else { bytes.len() };
        put(&mut state.files[self.inode], offset, &bytes[..part]);
        let mut kept = bytes[..part].to_vec();
        if state.lies.write_flips_a_bit && kept.len() > 300 {
            kept[200] ^= 4;
        }
        let inode = self.inode;
        state.ops.push(Op::Write(inode, offset, kept));
        if fails { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let remembered = {
            let mut state = lock(&self.state);
            state.fault()?;
            !state.lies.truncate_is_forgotten
        };
        self.resize(bytes, remembered);
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        lock(&self.state).fault()?;
        if bytes > self.size()? {
            self.resize(bytes, true);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        let rate = state.faults.sync * if std::mem::take(&mut state.trouble) { 12 } else { 1 };
        if state.fails(rate) {
            state.ops.push(Op::SyncFailed(self.inode));
            return Err(ErrorKind::Other.into());
        }
        if !state.lies.sync_does_nothing {
            state.ops.push(Op::Sync(self.inode));
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.size()?).then_some(offset))
    }
}
