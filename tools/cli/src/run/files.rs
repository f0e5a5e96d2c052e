//! Files, directories and standard input as a sequence of events.
//!
//! A thread of its own reads ahead; it is not joined, so that a read that never returns (a terminal, a pipe) cannot keep
//! the program from ending.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crossbeam::channel::{Receiver, bounded};

const BLOCK: usize = 1 << 20;
/// A file with a NUL byte among its first bytes is not text.
const SNIFF: usize = 8 << 10;
const STDIN: &str = "-";

/// What the thread says, in order. Blocks stand between `Begin` and `End`, a problem stands anywhere.
pub(crate) enum Event {
    Begin(PathBuf),
    Block(Vec<u8>),
    End,
    Problem(PathBuf, String),
    Binary(PathBuf),
}

/// What a walk comes upon.
enum Found<'a> {
    File(&'a Path),
    Problem(&'a Path, io::Error),
}

/// Size of all files that can be seen, for a progress bar; none if the size of an input cannot be known.
pub(crate) fn total_bytes(paths: &[PathBuf]) -> Option<u64> {
    let mut total = Some(0);
    for path in paths {
        walk(path, &mut |found| {
            if let Found::File(path) = found {
                let size = fs::metadata(path).map(|m| m.is_file().then_some(m.len())).unwrap_or(Some(0));
                total = total.zip(size.filter(|_| path.as_os_str() != STDIN)).map(|(a, b)| a + b);
            }
        });
    }
    total
}

/// Everything that is named, directories in the order of names. Of directories only files that are not hidden, and
/// directories that are not links: a walk ends, and does not wait for a pipe.
fn walk(path: &Path, found: &mut dyn FnMut(Found)) {
    if path.as_os_str() == STDIN || !path.is_dir() {
        return found(Found::File(path));
    }
    let mut children = Vec::new();
    match fs::read_dir(path) {
        Err(e) => found(Found::Problem(path, e)),
        Ok(entries) => {
            for entry in entries {
                match entry {
                    Ok(entry) => children.push(entry.path()),
                    Err(e) => found(Found::Problem(path, e)),
                }
            }
        }
    }
    children.sort();
    for child in children {
        let hidden = child.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        match fs::metadata(&child) {
            _ if hidden => {}
            Err(e) => found(Found::Problem(&child, e)),
            Ok(m) if m.is_dir() && !child.is_symlink() => walk(&child, found),
            Ok(m) if m.is_file() => found(Found::File(&child)),
            Ok(_) => tracing::debug!(path = %child.display(), "left out: neither a file nor a directory of its own"),
        }
    }
}

/// Reads until the block is full, `enough` bytes are there, or the input ends.
fn fill(input: &mut dyn Read, block: &mut Vec<u8>, enough: usize) -> io::Result<()> {
    block.resize(BLOCK, 0);
    let mut n = 0;
    let outcome = loop {
        match input.read(&mut block[n..]) {
            Ok(0) => break Ok(()),
            Ok(more) => n += more,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => break Err(e),
        }
        if n >= enough {
            break Ok(());
        }
    };
    block.truncate(n);
    outcome
}

/// Sends one file. False: nobody listens any more.
fn send_file(path: &Path, send: &mut dyn FnMut(Event) -> bool) -> bool {
    let problem = |e: io::Error| Event::Problem(path.to_path_buf(), e.to_string());
    let from_stdin = path.as_os_str() == STDIN;
    let mut input: Box<dyn Read> = if from_stdin {
        Box::new(io::stdin().lock())
    } else {
        match File::open(path) {
            Ok(file) => Box::new(file),
            Err(e) => return send(problem(e)),
        }
    };
    let mut begun = false;
    loop {
        let mut block = Vec::new();
        // Standard input is text by decree: someone may be typing it.
        let enough = if begun || from_stdin { 1 } else { SNIFF };
        let outcome = fill(&mut *input, &mut block, enough);
        if !begun {
            if block.is_empty()
                && let Err(e) = outcome
            {
                return send(problem(e));
            }
            if !from_stdin && block[..block.len().min(SNIFF)].contains(&0) {
                return send(Event::Binary(path.to_path_buf()));
            }
            begun = true;
            if !send(Event::Begin(path.to_path_buf())) {
                return false;
            }
        }
        let ended = block.is_empty();
        if !ended && !send(Event::Block(block)) {
            return false;
        }
        match outcome {
            Err(e) => return send(problem(e)) && send(Event::End),
            Ok(()) if ended => return send(Event::End),
            Ok(()) => {}
        }
    }
}

/// Starts to read.
pub(crate) fn read_ahead(paths: Vec<PathBuf>) -> Result<Receiver<Event>, String> {
    let (sender, events) = bounded(8);
    let body = move || {
        let mut listening = true;
        let mut send = |event| sender.send(event).is_ok();
        for path in paths {
            walk(&path, &mut |found| {
                listening = listening
                    && match found {
                        Found::Problem(path, e) => send(Event::Problem(path.to_path_buf(), e.to_string())),
                        Found::File(path) => send_file(path, &mut send),
                    };
            });
        }
    };
    std::thread::Builder::new()
        .name("warpmail-files".into())
        .spawn(body)
        .map_err(|e| format!("a thread that reads files cannot be started: {e}"))?;
    Ok(events)
}
