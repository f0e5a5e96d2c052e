//! Lines out of files, directories and standard input.
//!
//! A thread of its own reads blocks ahead; it is not joined, so that a read that never returns (a terminal, a pipe) cannot
//! keep the program from ending.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};

const BLOCK: usize = 1 << 20;
/// A file with a NUL byte among its first bytes is not text.
const SNIFF: usize = 8 << 10;
const STDIN: &str = "-";

enum Event {
    Begin(PathBuf),
    Block(Vec<u8>),
    End,
    Problem(PathBuf, String),
    Binary(PathBuf),
}

/// What was read, apart from the lines.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// First line number (over all inputs) of each file, in order.
    pub(crate) files: Vec<(u64, PathBuf)>,
    /// All lines, empty ones too.
    pub(crate) lines: u64,
    pub(crate) empty: u64,
    pub(crate) invalid_utf8: u64,
    pub(crate) bytes: u64,
    pub(crate) binary: u64,
    pub(crate) problems: Vec<String>,
}

impl Account {
    /// The file of a line, and its number there, from 1.
    pub(crate) fn place(&self, line: u64) -> (&Path, u64) {
        let i = self.files.partition_point(|(first, _)| *first <= line);
        self.files.get(i.wrapping_sub(1)).map_or((Path::new("?"), line), |(first, path)| (path, line - first + 1))
    }
}

/// Size of all files that can be seen, for a progress bar; none if standard input is among them.
pub(crate) fn total_bytes(paths: &[PathBuf]) -> Option<u64> {
    if paths.iter().any(|p| p.as_os_str() == STDIN) {
        return None;
    }
    let mut files = Vec::new();
    paths.iter().for_each(|p| walk(p, &mut |path, _| files.push(path.to_path_buf())));
    Some(files.iter().filter_map(|f| fs::metadata(f).ok()).map(|m| m.len()).sum())
}

/// Calls `found` for every file, directories in the order of names; hidden entries of directories are left out. The second
/// argument says what is wrong with a path that cannot be read.
fn walk(path: &Path, found: &mut dyn FnMut(&Path, Option<String>)) {
    if path.as_os_str() == STDIN || !path.is_dir() {
        return found(path, None);
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) => return found(path, Some(e.to_string())),
    };
    let mut children: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    children.sort();
    for child in children {
        let hidden = child.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let is_linked_folder = child.is_symlink() && child.is_dir();
        if !hidden && !is_linked_folder {
            walk(&child, found);
        }
    }
}

/// Sends one file; an error if nobody listens any more.
fn send_file(path: &Path, send: &mut dyn FnMut(Event) -> bool) -> bool {
    let problem = |e: std::io::Error| Event::Problem(path.to_path_buf(), e.to_string());
    let mut input: Box<dyn Read> = if path.as_os_str() == STDIN {
        Box::new(std::io::stdin().lock())
    } else {
        match File::open(path) {
            Ok(file) => Box::new(file),
            Err(e) => return send(problem(e)),
        }
    };
    let mut begun = false;
    loop {
        let mut block = vec![0; BLOCK];
        let n = match input.read(&mut block) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return send(problem(e)) && (!begun || send(Event::End)),
        };
        block.truncate(n);
        if !begun {
            if block[..n.min(SNIFF)].contains(&0) {
                return send(Event::Binary(path.to_path_buf()));
            }
            begun = true;
            if !send(Event::Begin(path.to_path_buf())) {
                return false;
            }
        }
        if n == 0 {
            return send(Event::End);
        }
        if !send(Event::Block(block)) {
            return false;
        }
    }
}

fn read_ahead(paths: Vec<PathBuf>) -> Result<Receiver<Event>, String> {
    let (sender, events) = bounded(8);
    let body = move || {
        let mut listening = true;
        let mut send = |event| sender.send(event).is_ok();
        for path in paths {
            walk(&path, &mut |file, problem| {
                listening = listening
                    && match problem {
                        Some(text) => send(Event::Problem(file.to_path_buf(), text)),
                        None => send_file(file, &mut send),
                    };
            });
        }
    };
    std::thread::Builder::new().name("warpmail-input".into()).spawn(body).map_err(|e| e.to_string())?;
    Ok(events)
}

/// Gives every line that holds text to `on_line`, trimmed of white space at both ends, invalid UTF-8 replaced; until it says
/// false, or `cancelled` does. `on_event` is called now and then with the account so far.
pub(crate) fn lines<E: From<String>>(
    paths: &[PathBuf],
    account: &mut Account,
    cancelled: impl Fn() -> bool,
    mut on_line: impl FnMut(u64, &[u8]) -> Result<bool, E>,
    mut on_event: impl FnMut(&Account),
) -> Result<(), E> {
    let events = read_ahead(paths.to_vec())?;
    let mut rest = Vec::new();
    loop {
        let event = match events.recv_timeout(Duration::from_millis(50)) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) if !cancelled() => continue,
            Err(_) => return Ok(()),
        };
        let mut go_on = !cancelled();
        match event {
            Event::Begin(path) => account.files.push((account.lines, path)),
            Event::Problem(path, text) => account.problems.push(format!("{}: {text}", path.display())),
            Event::Binary(path) => {
                tracing::info!(path = %path.display(), "skipped: not text");
                account.binary += 1;
            }
            Event::Block(block) => {
                account.bytes += block.len() as u64;
                let mut pieces = block.split(|b| *b == b'\n');
                let last = pieces.next_back().unwrap_or_default();
                for piece in pieces {
                    go_on = go_on
                        && if rest.is_empty() {
                            one(piece, account, &mut on_line)?
                        } else {
                            rest.extend_from_slice(piece);
                            let more = one(&rest, account, &mut on_line)?;
                            rest.clear();
                            more
                        };
                    if !go_on {
                        break;
                    }
                }
                rest.extend_from_slice(last);
            }
            Event::End => {
                if !rest.is_empty() {
                    go_on = go_on && one(&rest, account, &mut on_line)?;
                    rest.clear();
                }
            }
        }
        on_event(account);
        if !go_on {
            return Ok(());
        }
    }
}

fn one<E>(
    raw: &[u8],
    account: &mut Account,
    on_line: &mut impl FnMut(u64, &[u8]) -> Result<bool, E>,
) -> Result<bool, E> {
    let line = account.lines;
    account.lines += 1;
    let text = raw.trim_ascii();
    if text.is_empty() {
        account.empty += 1;
        return Ok(true);
    }
    match std::str::from_utf8(text) {
        Ok(_) => on_line(line, text),
        Err(_) => {
            account.invalid_utf8 += 1;
            on_line(line, String::from_utf8_lossy(text).as_bytes())
        }
    }
}
