//! Every system call of a run, killed at and made to fail: what was acknowledged before is there, and the log goes on.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use warpmail::journal::disk::{Disk, Folder};
use warpmail::journal::{Log, SyncPolicy};

use crate::child;
use crate::model::{content, entries, read};

const CALLS: &str = "pwrite64,fdatasync,fsync,ftruncate,fallocate,unlink,openat";
/// A child that takes longer is killed.
const LIMIT: Duration = Duration::from_secs(20);

/// Why the crash points cannot be run; none if they can.
pub(crate) fn why_not() -> Option<String> {
    match Command::new("strace").arg("--version").output() {
        Err(_) => Some("strace is not installed".into()),
        Ok(_) => {
            let inject = ["-qq", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true"];
            let works = Command::new("strace").args(inject).output().is_ok_and(|o| o.status.success());
            (!works).then(|| "strace is not allowed to trace here, or is too old to inject".into())
        }
    }
}

/// Memory where there is some: a process that is killed loses nothing that was written, synced or not.
pub(crate) fn folder() -> TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { TempDir::new_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Runs the child; gives how it ended and what it told.
pub(crate) fn run(mut command: Command, dir: &Path) -> Result<(ExitStatus, String), String> {
    command.env(child::DIR, dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let until = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        if Instant::now() > until {
            let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status();
            let _ = child.wait();
            return Err(format!("killed after {LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let (mut told, mut errors) = (String::new(), String::new());
    child.stdout.take().map(|mut out| out.read_to_string(&mut told));
    child.stderr.take().map(|mut out| out.read_to_string(&mut errors));
    if errors.contains("panicked") { Err(errors) } else { Ok((status, told)) }
}

pub(crate) fn strace(output: &Path, expressions: &[String]) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(output);
    for expression in expressions {
        command.args(["-e", expression]);
    }
    command.arg(std::env::current_exe().unwrap());
    command
}

/// Opens what a child left, compares it with what it told, and goes on.
pub(crate) fn reopen(dir: &Path, told: &str) -> Result<(), String> {
    let disk: Arc<dyn Disk> = Arc::new(Folder::new(dir));
    let mut model = child::replay(told)?;
    let (mut log, recovered) = Log::open(dir, child::options(SyncPolicy::Never)).map_err(|e| e.to_string())?;
    let note = model.opened(&disk, &log, &recovered, u64::MAX)?;
    model.note(&note);
    let batch: Vec<_> = (0..2).map(|i| content(&mut fastrand::Rng::with_seed(i), 1 << 40 | i, 700)).collect();
    log.append(&entries(&batch)).and_then(|_| log.commit()).map_err(|e| e.to_string())?;
    let records = read(&disk, log.first(), recovered.last + 2)?;
    if records.ends_with(&batch) { Ok(()) } else { Err("appended records differ".into()) }
}

/// Which calls there are to hit: for each name, how many, and how many at the program's start are none of the log's.
pub(crate) fn points(trace: &str, calls: &str, dir: &Path) -> Vec<(String, usize)> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut points = Vec::new();
    for line in trace.lines() {
        let call = line.split_ascii_whitespace().nth(1).and_then(|rest| rest.split('(').next()).unwrap_or_default();
        let Some(name) = calls.split(',').find(|name| *name == call) else { continue };
        let nth = seen.entry(name).or_default();
        *nth += 1;
        if !matches!(name, "openat" | "rename" | "unlink" | "mkdir") || line.contains(&*dir.to_string_lossy()) {
            points.push((name.to_string(), *nth));
        }
    }
    points
}

fn one(call: &str, nth: usize, what: &str) -> Result<(), String> {
    let dir = folder();
    let inject = format!("inject={call}:{what}:when={nth}");
    let command = strace(Path::new("/dev/null"), &[format!("trace={call}"), inject.clone()]);
    let outcome = run(command, &dir.path().join("log")).and_then(|(status, told)| {
        let killed = what.starts_with("signal");
        if killed == status.success() {
            return Err(format!("the child ended with {status}"));
        }
        reopen(&dir.path().join("log"), &told).map_err(|e| format!("{e}; it had told:\n{told}"))
    });
    outcome.map_err(|e| format!("{inject}: {e}"))
}

pub(crate) fn every_system_call() {
    let begin = Instant::now();
    let dir = folder();
    let trace = dir.path().join("trace");
    let log = dir.path().join("log");
    let (status, told) = run(strace(&trace, &[format!("trace={CALLS}")]), &log).unwrap();
    assert!(status.success() && told.ends_with("end\n") && !told.contains("error"), "{status}: {told}");
    reopen(&log, &told).unwrap();
    // The check can fail: a record that was called durable and is not there.
    reopen(&log, &format!("{told}durable 9999\n")).expect_err("a missing record went unnoticed");

    let found = points(&std::fs::read_to_string(&trace).unwrap(), CALLS, &log);
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
    let mut each: BTreeMap<&str, usize> = BTreeMap::new();
    found.iter().for_each(|(call, _)| *each.entry(call).or_default() += 1);
    println!(
        "crash points: {} ({} calls: {each:?}; each killed at, EIO, ENOSPC); {:.1} s",
        points.len(),
        found.len(),
        begin.elapsed().as_secs_f64()
    );
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} failed, the first: {}", failures.len(), points.len(), failures[0]);
    assert!(points.len() >= 500, "only {} points", points.len());
}
