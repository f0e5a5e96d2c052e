//! The journal's log: records on disk, in order, each with a checksum, and a number from which on they are not durable yet.
//!
//! ```
//! use warpmail::journal::{Entry, Log, LogOptions, Reader};
//!
//! # fn main() -> Result<(), warpmail::Error> {
//! # let dir = std::env::temp_dir().join(format!("warpmail-doc-{}", std::process::id()));
//! let (mut log, recovered) = Log::open(&dir, LogOptions::default())?;
//! assert_eq!(recovered.last, 0);
//! let sequences = log.append(&[Entry { mailbox: 3, msg_type: 7, payload: b"hello", ..Entry::default() }])?;
//! assert_eq!((sequences, log.durable()), (1..=1, 1));
//! log.close()?;
//!
//! let record = Reader::open(&dir, 1)?.next().transpose()?;
//! assert_eq!(record.map(|r| r.payload), Some(b"hello".to_vec()));
//! # let _ = std::fs::remove_dir_all(dir);
//! # Ok(()) }
//! ```
//!
//! A log is a directory of segments, append-only files whose names carry their first sequence. [`Log`] is its one writer,
//! [`Reader`] reads it at any time. Sequences are consecutive and begin with 1; 0 stands for "nothing durable yet". The bytes
//! and the rules by which [`Log::open`] recovers from a crash are told in `docs/journal-format.md`.
//!
//! [`Builder::tap`](crate::Builder::tap) chooses the mailboxes whose records go there, [`Runtime::journal`](crate::Runtime::journal)
//! says where, and [`replay`] puts records back into mailboxes.
//!
//! What is promised: once a sequence was given as durable, the record is there after any crash or power loss, with its bytes,
//! unless retention removes it. No record is invented, altered, or given twice. Damage of what was durable is an error that
//! names file, offset and sequence, and never taken for a torn end. It rests on a disk that keeps what `fdatasync` said and
//! that does not harm a 512-byte sector while it writes the same bytes to it again.

mod active;
mod batch;
mod blocks;
mod counters;
mod cut;
pub mod disk;
mod drain;
mod drained;
mod encode;
pub mod format;
mod guarded;
mod log;
mod merge;
mod options;
mod order;
mod pages;
mod reader;
mod recover;
mod replay;
mod retention;
mod ring;
mod scan;
mod segment;
mod sink;
mod staging;
mod stat;
mod tensors;
mod writer;

pub use batch::Batch;
pub use counters::{JournalStats, TapStats};
pub use cut::Cut;
pub(crate) use drain::Drain;
pub use log::{Log, LogStats};
pub use options::{Entry, LogOptions, Retention, SyncPolicy};
pub use reader::{Reader, Record};
pub use recover::{Recovered, Torn};
pub use replay::{Pace, Replayed, Tempo, replay};
pub use sink::{NullSink, Position, Sink};
pub use stat::{LogStat, SegmentStat, stat};
