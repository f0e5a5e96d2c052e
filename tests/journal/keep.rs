//! Checkpoints that somebody has damaged, that are something else, or that two would write.

use std::time::Duration;

use fastrand::Rng;
use warpmail::checkpoint::{Checkpoint, CheckpointOptions};
use warpmail::journal::Position;
use warpmail::journal::disk::{Disk, Folder};
use warpmail::{Builder, Device, Error, HandlerImage, MailboxOptions, ModuleId, ModuleOptions, Runtime, builtin};

use crate::sim::{Image, Lies, SimDisk};

pub(crate) const BOUND: Duration = Duration::from_secs(10);
const STATE: usize = 5000;
const BUFFER: usize = 20_000;

/// A graph that can be restored again and again, or be stopped and saved again and again.
pub(crate) struct Keeper {
    pub(crate) runtime: Runtime,
    module: ModuleId,
    buffer: u64,
}

impl Keeper {
    pub(crate) fn new() -> Self {
        let device = Device::twin();
        let mut graph = Builder::new(device.clone());
        let host = graph.host("host").unwrap();
        let module =
            graph.resident("module", ModuleOptions { state: vec![0; STATE], ..builtin::RELAY.into() }).unwrap();
        let buffer = device.alloc(BUFFER).unwrap();
        let address = buffer.address();
        let id = graph.state_buffer(module, "buffer", buffer).unwrap();
        graph.pointer(module, 8, id).unwrap();
        graph.mailbox(host, module, MailboxOptions::slots(4)).unwrap();
        Keeper { runtime: graph.build(HandlerImage::builtin()).unwrap(), module, buffer: address }
    }

    pub(crate) fn stopped() -> Self {
        let mut keeper = Self::new();
        keeper.runtime.start().unwrap();
        keeper.runtime.stop(BOUND).unwrap();
        keeper
    }

    /// The state of a version: its number, a pointer, bytes of its own; in the buffer too, with room between.
    fn state(&self, version: u64) -> Vec<u8> {
        let mut rng = Rng::with_seed(version);
        let mut state: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(STATE).collect();
        state[..8].copy_from_slice(&version.to_le_bytes());
        state[8..16].copy_from_slice(&(self.buffer + version).to_le_bytes());
        state
    }

    pub(crate) fn set(&self, version: u64) {
        self.runtime.write_state(self.module, &self.state(version)).unwrap();
    }

    pub(crate) fn save(&mut self, disk: &dyn Disk, version: u64) -> Result<Checkpoint, Error> {
        self.set(version);
        let journal = Some(Position { log_id: [7; 16], next: version + 1 });
        self.runtime.checkpoint_on(disk, CheckpointOptions { note: &version.to_le_bytes(), journal }, BOUND)
    }

    /// The version that is restored, checked to its last byte; none if there is no checkpoint.
    pub(crate) fn restored(&mut self, disk: &dyn Disk) -> Result<Option<u64>, String> {
        let seen = Checkpoint::look_on(disk).map_err(|e| e.to_string())?;
        if seen.is_none() {
            return Ok(None);
        }
        let info = self.runtime.restore_on(disk).map_err(|e| e.to_string())?;
        let version = u64::from_le_bytes(info.note[..].try_into().map_err(|_| "no note")?);
        let mut state = vec![0; STATE];
        self.runtime.read_state(self.module, &mut state).unwrap();
        if state != self.state(version) || info.journal.is_none_or(|j| j.next != version + 1) {
            return Err(format!("version {version} is not what was written"));
        }
        Ok(Some(version))
    }
}

fn saved(version: u64) -> (SimDisk, Image) {
    let disk = SimDisk::new(Image::new(), Lies::default());
    Keeper::stopped().save(&disk, version).unwrap();
    let image = disk.image(&disk.ops(), &mut Rng::with_seed(0), 1.0);
    (disk, image)
}

const NAME: &str = "checkpoint.wmstate";

/// A flipped bit of any byte, and a file of any other length: each is refused by name, and changes nothing.
pub(crate) fn every_flipped_bit_and_length() {
    let (_, image) = saved(3);
    let whole = image[NAME].clone();
    let mut keeper = Keeper::new();
    keeper.set(99);
    let before = keeper.state(99);
    let mut told = 0;
    let mut refused = |bytes: Vec<u8>, what: String| {
        let disk = SimDisk::new(Image::from([(NAME.into(), bytes)]), Lies::default());
        let error = keeper.runtime.restore_on(&disk).expect_err(&what);
        assert!(matches!(error, Error::Foreign { .. }), "{what}: {error}");
        assert!(error.to_string().contains(NAME), "{what}: {error}");
        let mut state = vec![0; STATE];
        keeper.runtime.read_state(keeper.module, &mut state).unwrap();
        assert!(state == before, "{what}: the state was changed");
        told += 1;
    };
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        refused(bad, format!("bit {} of byte {at}", at % 8));
    }
    for len in (0..whole.len()).step_by(61).chain([whole.len() - 1]) {
        refused(whole[..len].to_vec(), format!("cut at {len}"));
    }
    refused([&whole[..], &[0]].concat(), "a byte more".into());
    refused(vec![0; whole.len()], "zeros".into());
    refused(b"{\"json\": true}".repeat(1000), "another kind of file".into());
    println!("refused: {told} of {told} damaged files; {} bytes", whole.len());
    // And the whole one is not.
    let disk = SimDisk::new(image, Lies::default());
    assert_eq!(keeper.restored(&disk), Ok(Some(3)));
}

/// Words of the header that a newer or another program could have written, with a checksum that is right.
pub(crate) fn other_versions_and_programs() {
    let (_, image) = saved(1);
    let crafted = |at: usize, byte: u8, header: bool| {
        let mut bytes = image[NAME].clone();
        bytes[at] = byte;
        let crc = |bytes: &[u8]| crc32c::crc32c(bytes).to_le_bytes();
        if !header {
            let table = u64::from_le_bytes(bytes[56..64].try_into().unwrap()) as usize;
            let sum = crc(&bytes[80..80 + table]);
            bytes[72..76].copy_from_slice(&sum);
        }
        let sum = crc(&bytes[..76]);
        bytes[76..80].copy_from_slice(&sum);
        SimDisk::new(Image::from([(NAME.into(), bytes)]), Lies::default())
    };
    for (what, at, byte, header, words) in [
        ("version 2", 8, 2, true, "version 2"),
        ("a longer header", 12, 96, true, "the header"),
        ("fewer tables", 57, 0, true, "the tables"),
        ("huge tables", 63, 0x7F, true, "the header"),
        ("a part less", 64, 2, true, "contradict themselves"),
        ("parts without end", 67, 0x7F, true, "contradict themselves"),
        ("mailboxes without end", 71, 0x7F, true, "contradict themselves"),
        ("a part elsewhere", 81, 0x20, false, "contradict themselves"),
        ("a huge part", 80 + 15, 0x7F, false, "contradict themselves"),
        ("a kind unknown", 80 + 16, 3, false, "contradict themselves"),
        ("a huge name", 80 + 27, 0xFF, false, "contradict themselves"),
        ("pointers without end", 80 + 35, 0xFF, false, "contradict themselves"),
        ("a pointer outside", 80 + 40 + 8 + 7, 0xFF, false, "contradict themselves"),
        ("a pointer to no part", 80 + 40 + 8 + 8, 9, false, "contradict themselves"),
        ("a name that is no text", 80 + 40, 0xFF, false, "contradict themselves"),
    ] {
        let error = Keeper::new().runtime.restore_on(&crafted(at, byte, header)).expect_err(what);
        assert!(matches!(error, Error::Foreign { .. }) && error.to_string().contains(words), "{what}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let there = Folder::new(dir.path());
    let mut keeper = Keeper::new();
    assert!(keeper.runtime.restore_on(&there).unwrap_err().to_string().contains("holds no checkpoint"));
    std::fs::create_dir(dir.path().join(NAME)).unwrap();
    let error = keeper.runtime.restore_on(&there).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
    assert!(
        keeper.runtime.restore(dir.path().join("missing")).unwrap_err().to_string().contains("holds no checkpoint")
    );
}

pub(crate) fn one_writer_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let there = Folder::new(dir.path());
    let mut keeper = Keeper::stopped();
    let lock = there.lock("checkpoint.LOCK").unwrap();
    let error = keeper.save(&there, 1).unwrap_err();
    assert!(matches!(error, Error::State(_)) && error.to_string().contains("another one is being written"), "{error}");
    drop(lock);
    // What a crash left of an earlier attempt is no obstacle.
    std::fs::write(dir.path().join("checkpoint.wmstate.new"), b"half").unwrap();
    keeper.save(&there, 2).unwrap();
    assert_eq!(Keeper::new().restored(&there), Ok(Some(2)));
    assert!(!dir.path().join("checkpoint.wmstate.new").exists());
    // Zeros take no room: 20 KB of buffer have none but zeros.
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(dir.path().join(NAME)).unwrap();
    assert!(file.blocks() * 512 < file.len(), "{} blocks of {} bytes", file.blocks(), file.len());
}
