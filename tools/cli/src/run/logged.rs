//! Lines and files out of the records that the reader of a run posted.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use warpmail::journal::Record;

use super::graph::LINES;
use super::records::{BEGIN, Begin, FILE, LINE, Line};

/// What a record, with those before it, makes whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Logged {
    Begin(Begin),
    /// Number of its first line, and name.
    File(u64, PathBuf),
    Line(u64, Vec<u8>),
}

/// Puts parts together. A line whose parts do not follow one another was never whole, and never known.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    line: Parts,
    file: Parts,
}

#[derive(Debug, Default)]
struct Parts {
    number: u64,
    total: u32,
    bytes: Vec<u8>,
}

impl Parts {
    fn take(&mut self, payload: &[u8]) -> Option<(u64, Vec<u8>)> {
        let (head, part) = payload.split_at_checked(size_of::<Line>())?;
        let head: Line = bytemuck::pod_read_unaligned(head);
        if head.offset == 0 {
            *self = Parts { number: head.line, total: head.total, bytes: Vec::new() };
        }
        let follows = (head.line, head.total, head.offset as usize) == (self.number, self.total, self.bytes.len());
        if !follows || part.len() > head.total as usize - self.bytes.len() {
            return None;
        }
        self.bytes.extend_from_slice(part);
        let whole = self.bytes.len() == self.total as usize && self.total > 0;
        whole.then(|| (self.number, std::mem::take(self).bytes))
    }
}

impl Assembler {
    pub(crate) fn take(&mut self, record: &Record) -> Option<Logged> {
        if record.mailbox != LINES {
            return None;
        }
        match record.msg_type {
            LINE => self.line.take(&record.payload).map(|(number, text)| Logged::Line(number, text)),
            FILE => {
                let (first, name) = self.file.take(&record.payload)?;
                Some(Logged::File(first, OsString::from_vec(name).into()))
            }
            BEGIN if record.payload.len() == size_of::<Begin>() => {
                Some(Logged::Begin(bytemuck::pod_read_unaligned(&record.payload)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(msg_type: u16, mailbox: u32, payload: Vec<u8>) -> Record {
        let (producer_ns, wall_ns, synced, sequence, flags) = (0, 0, 0, 1, 0);
        Record { sequence, mailbox, msg_type, flags, producer_ns, wall_ns, synced, payload, tensor: Vec::new() }
    }

    fn part(line: u64, total: u32, offset: u32, text: &[u8]) -> Vec<u8> {
        [bytemuck::bytes_of(&Line { line, total, offset }), text].concat()
    }

    #[test]
    fn only_what_is_whole_comes_out() {
        let mut assembler = Assembler::default();
        let mut take = |kind, payload: Vec<u8>| assembler.take(&record(kind, LINES, payload));
        assert_eq!(take(LINE, part(3, 5, 0, b"hello")), Some(Logged::Line(3, b"hello".to_vec())));
        assert_eq!(take(LINE, part(3, 5, 0, b"hello, and more")), None);
        assert_eq!(take(LINE, part(4, 5, 0, b"hel")), None);
        assert_eq!(take(FILE, part(4, 1, 0, b"f")), Some(Logged::File(4, "f".into())));
        assert_eq!(take(LINE, part(4, 5, 3, b"lo")), Some(Logged::Line(4, b"hello".to_vec())));
        // A part that is missing, one of another line, a line that begins again, nothing at all.
        assert_eq!(take(LINE, part(5, 9, 0, b"abc")), None);
        assert_eq!(take(LINE, part(5, 9, 6, b"ghi")), None);
        assert_eq!(take(LINE, part(6, 9, 3, b"defghi")), None);
        assert_eq!(take(LINE, part(7, 2, 0, b"ok")), Some(Logged::Line(7, b"ok".to_vec())));
        assert_eq!(take(LINE, part(8, 0, 0, b"")), None);
        assert_eq!(take(LINE, vec![1, 2, 3]), None);
        let begin = Begin { first: 8, resumed: 1, capacity: 9 };
        assert_eq!(take(BEGIN, bytemuck::bytes_of(&begin).to_vec()), Some(Logged::Begin(begin)));
        assert_eq!(take(BEGIN, vec![0; 3]), None);
        assert_eq!(assembler.take(&record(LINE, LINES + 4, part(3, 5, 0, b"hello"))), None);
    }
}
