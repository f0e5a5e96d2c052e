//! The built command, run in a folder of the test's own.
#![allow(dead_code)] // each of the files that use it needs a part
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Whatever hangs is killed.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

/// A folder of its own for a test, inside the target folder.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("run-{name}"));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warpmail"));
        command.arg("run").args(args).current_dir(&self.0).env_remove("RUST_LOG");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs on the twin, with a small memory.
    pub(crate) fn run(&self, args: &[&str], stdin: &[u8]) -> Output {
        let mut child = self.spawn(&[&["--backend", "twin", "--capacity", "4096"], args].concat());
        let mut to = child.stdin.take().unwrap();
        let stdin = stdin.to_vec();
        // A command that reads nothing closes the pipe early: no error.
        thread::spawn(move || drop(to.write_all(&stdin)));
        finish(child)
    }

    /// The JSON of a run without text.
    pub(crate) fn json(&self, args: &[&str], stdin: &[u8]) -> Value {
        let output = self.run(&[&["--json", "-"], args].concat(), stdin);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)))
    }
}

/// Waits for the end, and kills what does not end.
pub(crate) fn finish(child: Child) -> Output {
    finish_after(child, |_| true, |_| ())
}

/// Ctrl-C as soon as `word` stands in what the command has printed, and then its end.
pub(crate) fn interrupt_at(child: Child, word: &str) -> Output {
    let interrupt = |child: &Child| {
        let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    };
    finish_after(child, |printed| text(printed).contains(word), interrupt)
}

/// Calls `act` once, when `ready` says so of what stands on standard output, and waits for the end.
fn finish_after(mut child: Child, ready: impl Fn(&[u8]) -> bool, act: impl FnOnce(&Child)) -> Output {
    let read = |stream: Option<Box<dyn Read + Send>>| {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let to = bytes.clone();
        let reader = thread::spawn(move || {
            let (Some(mut from), mut piece) = (stream, [0; 4096]) else { return };
            loop {
                match from.read(&mut piece).unwrap() {
                    0 => return,
                    n => to.lock().unwrap().extend_from_slice(&piece[..n]),
                }
            }
        });
        (bytes, reader)
    };
    let (stdout, stdout_reader) = read(child.stdout.take().map(|s| Box::new(s) as _));
    let (stderr, stderr_reader) = read(child.stderr.take().map(|s| Box::new(s) as _));
    let (mut act, until) = (Some(act), Instant::now() + BOUND);
    let status = loop {
        if ready(&stdout.lock().unwrap())
            && let Some(act) = act.take()
        {
            act(&child);
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= until {
            child.kill().unwrap();
            panic!("the command did not end within {BOUND:?}: {}", text(&stderr.lock().unwrap()));
        }
        thread::sleep(Duration::from_millis(5));
    };
    for reader in [stdout_reader, stderr_reader] {
        reader.join().unwrap();
    }
    let all = |bytes: Arc<Mutex<Vec<u8>>>| std::mem::take(&mut *bytes.lock().unwrap());
    Output { status, stdout: all(stdout), stderr: all(stderr) }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed: {}", text(&output.stderr)))
}

impl Folder {
    /// `warpmail log` over the folder's log.
    pub(crate) fn log(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warpmail"));
        command.arg("log").args(args).arg("log").current_dir(&self.0).output().unwrap()
    }
}
