//! Checkpoints through power loss, and through runs that are killed at, or failed in, each system call: what is restored is
//! one that was written, whole, and not an older one than was acknowledged.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use fastrand::Rng;
use tempfile::TempDir;
use warpmail::checkpoint::CheckpointOptions;
use warpmail::journal::Position;
use warpmail::journal::disk::Folder;

use crate::child::tell;
use crate::crash::{folder, points, run, strace};
use crate::keep::{BOUND, Keeper};
use crate::sim::{Faults, Image, Lies, Note, Op, SimDisk};

/// Set for the child: the directory.
pub(crate) const DIR: &str = "WARPMAIL_CHECKPOINT_CHILD";

/// What a restore may find after this much was done.
#[derive(Default)]
struct Model {
    /// The last that was acknowledged, and every one begun since.
    possible: Vec<Option<u64>>,
}

impl Model {
    fn at(ops: &[Op]) -> Self {
        let mut model = Model { possible: vec![None] };
        for op in ops {
            match op {
                Op::Note(Note::Durable(version)) if *version >= 1 << 32 => {
                    model.possible.push(Some(version - (1 << 32)))
                }
                Op::Note(Note::Durable(version)) => model.possible = vec![Some(*version)],
                _ => {}
            }
        }
        model
    }

    fn check(&self, found: Result<Option<u64>, String>) -> Result<(), String> {
        let found = found?;
        if self.possible.contains(&found) {
            Ok(())
        } else {
            Err(format!("{found:?} and not one of {:?}", self.possible))
        }
    }
}

fn begun(version: u64) -> Note {
    Note::Durable(version + (1 << 32))
}

fn campaign(seed: u64, runs: u64, images: u64, lies: Lies) -> (u64, u64, Vec<String>) {
    let (mut keeper, mut reader) = (Keeper::stopped(), Keeper::new());
    let (mut seen, mut failed, mut violations) = (0, 0, Vec::new());
    for r in 0..runs {
        let mut rng = Rng::with_seed(seed + r);
        let disk = SimDisk::new(Image::new(), lies);
        if r % 2 == 1 {
            disk.set_faults(Faults { write: 60, sync: 60, other: 60 }, seed + r);
        }
        for version in 1..rng.u64(2..7) {
            disk.note(begun(version));
            match keeper.save(&disk, version) {
                Ok(_) => disk.note(Note::Durable(version)),
                Err(_) => failed += 1,
            }
        }
        let ops = disk.ops();
        for _ in 0..images {
            let ops = &ops[..rng.usize(..=ops.len())];
            let keep = [0.0, 0.1, 0.5, 0.9, 1.0][rng.usize(..5)];
            let left = SimDisk::new(disk.image(ops, &mut rng, keep), Lies::default());
            seen += 1;
            // And it goes on from there.
            let again = Model::at(ops).check(reader.restored(&left)).and_then(|()| {
                keeper.save(&left, 40).map_err(|e| e.to_string())?;
                if reader.restored(&left)? == Some(40) { Ok(()) } else { Err("the next one is not there".into()) }
            });
            violations.extend(again.err());
        }
    }
    (seen, failed, violations)
}

pub(crate) fn survives_power_loss() {
    let begin = Instant::now();
    let (images, failed, violations) = campaign(1, 200, 60, Lies::default());
    println!("power loss: {images} images, {failed} failed checkpoints; {:.1} s", begin.elapsed().as_secs_f64());
    assert!(violations.is_empty(), "{} violations, the first: {}", violations.len(), violations[0]);
    assert!(images >= 10_000 && failed > 30, "{images} {failed}");
    for (what, lies) in [
        ("a sync that does nothing", Lies { sync_does_nothing: true, ..Lies::default() }),
        ("names never synced", Lies { name_sync_does_nothing: true, ..Lies::default() }),
        ("a bit flipped on its way", Lies { write_flips_a_bit: true, ..Lies::default() }),
    ] {
        let (images, _, violations) = campaign(7, 10, 20, lies);
        println!("planted: {what}: {} violations in {images} images", violations.len());
        assert!(!violations.is_empty(), "{what} went unnoticed");
    }
}

/// The child: five checkpoints, each told before and after.
pub(crate) fn child(dir: &Path) -> ExitCode {
    let mut keeper = Keeper::stopped();
    for version in 1..6 {
        tell(format!("begin {version}"));
        // Through the directory, as a user does: it may have to be made.
        keeper.set(version);
        let journal = Some(Position { log_id: [7; 16], next: version + 1 });
        let note = version.to_le_bytes();
        match keeper.runtime.checkpoint_with(dir, CheckpointOptions { note: &note, journal }, BOUND) {
            Ok(_) => tell(format!("done {version}")),
            Err(error) => tell(format!("error {error}")),
        }
    }
    tell("end".into());
    ExitCode::SUCCESS
}

fn model_of(told: &str) -> Model {
    let number = |line: &str| line.split(' ').nth(1).and_then(|w| w.parse().ok());
    let mut notes = Vec::new();
    for line in told.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        match number(line) {
            Some(version) if line.starts_with("begin") => notes.push(Op::Note(begun(version))),
            Some(version) if line.starts_with("done") => notes.push(Op::Note(Note::Durable(version))),
            _ => {}
        }
    }
    Model::at(&notes)
}

fn one(call: &str, nth: usize, what: &str) -> Result<(), String> {
    let dir = folder();
    let kept = dir.path().join("kept");
    let inject = format!("inject={call}:{what}:when={nth}");
    let mut command = strace(Path::new("/dev/null"), &[format!("trace={call}"), inject.clone()]);
    command.env(DIR, &kept);
    let outcome = run(command, &kept).and_then(|(status, told)| {
        if what.starts_with("signal") == status.success() {
            return Err(format!("the child ended with {status}"));
        }
        let there = Folder::new(&kept);
        let mut reader = Keeper::new();
        model_of(&told).check(reader.restored(&there)).map_err(|e| format!("{e}; it had told:\n{told}"))?;
        there.make().map_err(|e| e.to_string())?;
        Keeper::stopped().save(&there, 50).map_err(|e| e.to_string())?;
        if reader.restored(&there)? == Some(50) { Ok(()) } else { Err("the next one is not there".into()) }
    });
    outcome.map_err(|e| format!("{inject}: {e}"))
}

pub(crate) fn survives_every_system_call() {
    const CALLS: &str = "pwrite64,fdatasync,fsync,ftruncate,unlink,openat,rename,mkdir";
    let begin = Instant::now();
    let dir: TempDir = folder();
    let (trace, kept) = (dir.path().join("trace"), dir.path().join("kept"));
    let mut command = strace(&trace, &[format!("trace={CALLS}")]);
    command.env(DIR, &kept);
    let (status, told) = run(command, &kept).unwrap();
    assert!(status.success() && told.ends_with("end\n") && !told.contains("error"), "{status}: {told}");
    let mut reader = Keeper::new();
    model_of(&told).check(reader.restored(&Folder::new(&kept))).unwrap();
    // The check can fail.
    model_of(&format!("{told}done 6\n")).check(reader.restored(&Folder::new(&kept))).expect_err("an older one passed");

    let found = points(&std::fs::read_to_string(&trace).unwrap(), CALLS, &kept);
    let kinds = ["signal=KILL", "error=EIO", "error=ENOSPC"];
    let points: Vec<_> = found.iter().flat_map(|(call, nth)| kinds.map(|what| (call, *nth, what))).collect();
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((call, nth, what)) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(failure) = one(call, *nth, what) {
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    println!("crash points: {} of {} calls; {:.1} s", points.len(), found.len(), begin.elapsed().as_secs_f64());
    let failures = failures.lock().unwrap();
    assert!(failures.is_empty(), "{} of {} failed, the first: {}", failures.len(), points.len(), failures[0]);
    for call in ["pwrite64", "fdatasync", "fsync", "rename", "ftruncate"] {
        assert!(found.iter().any(|(name, _)| name == call), "no {call} was hit");
    }
    assert!(points.len() >= 100, "only {} points", points.len());
}
