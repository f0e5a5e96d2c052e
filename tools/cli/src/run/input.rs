//! Lines out of files, and the account of what was read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam::channel::RecvTimeoutError;
use warpmail::Error;

use super::files::{Event, read_ahead};
use super::keep::Known;

/// Longer lines are left out, and named. Every other line is compared as a whole.
const LONGEST: usize = 1 << 30;

/// What is read, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// A file begins: the number of its first line.
    File(u64, &'a Path),
    /// A line to compare: its number over all inputs, and its bytes, not empty.
    Line(u64, &'a [u8]),
}

/// Takes an item. False: nobody wants more.
pub(crate) type OnItem<'a> = dyn FnMut(Item<'_>) -> Result<bool, Error> + 'a;

/// What was read, apart from the lines.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Number of the first line: earlier runs have had those before.
    pub(crate) first: u64,
    /// Files of earlier runs, at the beginning of `files`.
    pub(crate) earlier_files: usize,
    /// First line number (over all inputs) of each file, in order.
    pub(crate) files: Vec<(u64, PathBuf)>,
    /// All lines, empty ones too.
    pub(crate) lines: u64,
    /// Lines of nothing but white space: not compared.
    pub(crate) empty: u64,
    /// Lines in which something was replaced because it is no UTF-8.
    pub(crate) invalid_utf8: u64,
    pub(crate) bytes: u64,
    pub(crate) binary: u64,
    /// What could not be read, by name.
    pub(crate) problems: Vec<String>,
}

impl Account {
    /// Of a run that goes on where others ended.
    pub(crate) fn after(known: &Known) -> Self {
        let (first, files) = (known.next_line, known.files.clone());
        Account { first, earlier_files: files.len(), files, ..Account::default() }
    }

    /// The number of the line that is read next.
    fn next(&self) -> u64 {
        self.first + self.lines
    }

    /// Files of this run.
    pub(crate) fn own_files(&self) -> usize {
        self.files.len() - self.earlier_files
    }

    /// The file of a line, and its number there, from 1.
    pub(crate) fn place(&self, line: u64) -> (&Path, u64) {
        let i = self.files.partition_point(|(first, _)| *first <= line);
        self.files.get(i.wrapping_sub(1)).map_or((Path::new("?"), line), |(first, path)| (path, line - first + 1))
    }
}

/// The lines of blocks: what follows the last line break waits for the next block.
struct Splitter<'a, 'b> {
    account: &'a mut Account,
    rest: Vec<u8>,
    longest: usize,
    too_long: bool,
    on_item: &'a mut OnItem<'b>,
}

impl Splitter<'_, '_> {
    /// The same calls as [`lines`] makes; false when nobody wants more.
    fn block(&mut self, block: &[u8]) -> Result<bool, Error> {
        self.account.bytes += block.len() as u64;
        let mut pieces = block.split(|b| *b == b'\n');
        let last = pieces.next_back().unwrap_or_default();
        for piece in pieces {
            let go_on = if self.rest.is_empty() && !self.too_long {
                self.line(piece)?
            } else {
                self.keep(piece);
                self.flush()?
            };
            if !go_on {
                return Ok(false);
            }
        }
        self.keep(last);
        Ok(true)
    }

    fn keep(&mut self, piece: &[u8]) {
        self.too_long |= self.rest.len() + piece.len() > self.longest;
        if self.too_long {
            self.rest = Vec::new();
        } else {
            self.rest.extend_from_slice(piece);
        }
    }

    /// The last line may lack its line break.
    fn end(&mut self) -> Result<bool, Error> {
        if self.rest.is_empty() && !self.too_long { Ok(true) } else { self.flush() }
    }

    /// Ends the line that is being kept.
    fn flush(&mut self) -> Result<bool, Error> {
        if std::mem::take(&mut self.too_long) {
            let (file, line) = self.account.place(self.account.next());
            let problem = format!("{}:{line}: longer than {} bytes, left out", file.display(), self.longest);
            self.account.problems.push(problem);
            self.account.lines += 1;
            return Ok(true);
        }
        let mut line = std::mem::take(&mut self.rest);
        let go_on = self.line(&line);
        line.clear();
        self.rest = line;
        go_on
    }

    fn line(&mut self, raw: &[u8]) -> Result<bool, Error> {
        let number = self.account.next();
        self.account.lines += 1;
        let text = raw.trim_ascii();
        if text.is_empty() {
            self.account.empty += 1;
            return Ok(true);
        }
        match std::str::from_utf8(text) {
            Ok(_) => (self.on_item)(Item::Line(number, text)),
            Err(_) => {
                self.account.invalid_utf8 += 1;
                (self.on_item)(Item::Line(number, String::from_utf8_lossy(text).as_bytes()))
            }
        }
    }
}

/// Gives every file, and every line of it that holds text, to `on_item`; lines trimmed of white space at both ends, invalid
/// UTF-8 replaced; until it says false, or `cancelled` does. `on_event` is called before the lines of a block, with the account so far.
pub(crate) fn lines(
    paths: &[PathBuf],
    account: &mut Account,
    cancelled: impl Fn() -> bool,
    on_item: &mut OnItem<'_>,
    mut on_event: impl FnMut(&Account),
) -> Result<(), Error> {
    let events = read_ahead(paths.to_vec()).map_err(Error::Failed)?;
    let mut splitter = Splitter { account, rest: Vec::new(), longest: LONGEST, too_long: false, on_item };
    loop {
        let event = match events.recv_timeout(Duration::from_millis(50)) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) if !cancelled() => continue,
            Err(_) => return Ok(()),
        };
        let go_on = match event {
            _ if cancelled() => false,
            Event::Begin(path) => {
                let first = splitter.account.next();
                splitter.account.files.push((first, path.clone()));
                on_event(splitter.account);
                (splitter.on_item)(Item::File(first, &path))?
            }
            Event::Problem(path, text) => {
                splitter.account.problems.push(format!("{}: {text}", path.display()));
                true
            }
            Event::Binary(path) => {
                tracing::info!(path = %path.display(), "skipped: not text");
                splitter.account.binary += 1;
                true
            }
            Event::Block(block) => {
                on_event(splitter.account);
                splitter.block(&block)?
            }
            Event::End => splitter.end()?,
        };
        if !go_on {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on fails

    use super::*;

    fn split(blocks: &[&[u8]]) -> (Vec<(u64, String)>, Account) {
        let mut account = Account::default();
        let mut seen = Vec::new();
        let mut on_item = |item: Item<'_>| {
            if let Item::Line(n, text) = item {
                seen.push((n, String::from_utf8(text.to_vec()).unwrap()));
            }
            Ok(true)
        };
        let (rest, account_of, on_item) = (Vec::new(), &mut account, &mut on_item);
        let mut splitter = Splitter { account: account_of, rest, longest: 30, too_long: false, on_item };
        blocks.iter().for_each(|b| assert!(splitter.block(b).unwrap()));
        assert!(splitter.end().unwrap());
        (seen, account)
    }

    #[test]
    fn lines_do_not_depend_on_where_blocks_end() {
        let text = "one\r\n\n  two \nthree\n\t\nfour, and no line break".as_bytes();
        let (whole, account) = split(&[text]);
        let lines = [(0, "one"), (2, "two"), (3, "three"), (5, "four, and no line break")];
        assert_eq!(whole, lines.map(|(n, l)| (n, l.to_string())));
        assert_eq!((account.lines, account.empty, account.bytes), (6, 2, text.len() as u64));
        for at in 0..text.len() {
            assert_eq!(split(&[&text[..at], &text[at..]]).0, whole, "cut at {at}");
        }
    }

    #[test]
    fn invalid_utf8_is_replaced_and_counted() {
        let (lines, account) = split(&[b"good\nb\xFFd\nfine \xC3\xA9\n"]);
        assert_eq!(lines[1], (1, "b\u{FFFD}d".to_string()));
        assert_eq!((account.lines, account.invalid_utf8), (3, 1));
    }

    #[test]
    fn a_line_beyond_the_limit_is_left_out_whole_and_named() {
        let long = [b'x'; 31];
        let (lines, account) = split(&[b"one\n", &long[..20], &long[..11], b"\nthree\n", &long]);
        assert_eq!(lines, [(0, "one".to_string()), (2, "three".to_string())]);
        assert_eq!((account.lines, account.problems.len()), (4, 2), "{:?}", account.problems);
    }

    #[test]
    fn a_line_has_a_place_in_its_file() {
        let files = vec![(0, PathBuf::from("a")), (3, PathBuf::from("empty")), (3, PathBuf::from("b"))];
        let account = Account { files, ..Account::default() };
        assert_eq!(account.place(2), (Path::new("a"), 3));
        assert_eq!(account.place(3), (Path::new("b"), 1));
    }
}
