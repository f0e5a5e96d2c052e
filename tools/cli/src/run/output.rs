//! Results as text and as JSON, written as they come.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::json;
use warpmail::DeviceInfo;

use super::graph::Options;
use super::input::Account;
use super::pipeline::Summary;
use super::records::{Match, ONE};
use super::resume::Resumed;

/// One result, by the names that the user knows.
#[derive(Serialize)]
struct Finding<'a> {
    file: Cow<'a, str>,
    line: u64,
    verdict: &'static str,
    /// The most similar earlier line that was found; with a novel line it may be none.
    of_file: Option<Cow<'a, str>>,
    of_line: Option<u64>,
    similarity: f64,
    candidates: u32,
}

/// One place that results go to. After its first error nothing more is written there.
struct Stream {
    to: BufWriter<Box<dyn Write>>,
    name: String,
    failed: Option<io::Error>,
}

impl Stream {
    fn stdout() -> Self {
        Self::new(Box::new(io::stdout()), "standard output".into())
    }

    fn new(to: Box<dyn Write>, name: String) -> Self {
        Stream { to: BufWriter::new(to), name, failed: None }
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        if self.failed.is_none() {
            self.failed = write(&mut self.to).err();
        }
    }

    /// Whoever closes a pipe has seen enough: that is no error.
    fn outcome(mut self) -> Result<(), String> {
        self.write(|w| w.flush());
        match self.failed {
            Some(e) if e.kind() != ErrorKind::BrokenPipe => Err(format!("{} cannot be written: {e}", self.name)),
            _ => Ok(()),
        }
    }
}

/// Where results go.
pub(crate) struct Output {
    text: Option<Stream>,
    json: Option<Stream>,
    first: bool,
}

impl Output {
    /// Text to standard output, and JSON to the file if there is one; `-` puts JSON in the place of text.
    pub(crate) fn new(json: Option<&Path>) -> Result<Self, String> {
        let mut output = Output { text: None, json: None, first: true };
        match json {
            Some(path) if path.as_os_str() == "-" => output.json = Some(Stream::stdout()),
            Some(path) => {
                let name = path.display().to_string();
                let file = File::create(path).map_err(|e| format!("{name} cannot be written: {e}"))?;
                output.json = Some(Stream::new(Box::new(file), name));
                output.text = Some(Stream::stdout());
            }
            None => output.text = Some(Stream::stdout()),
        }
        if let Some(json) = &mut output.json {
            json.write(|w| w.write_all(b"{\"results\":["));
        }
        Ok(output)
    }

    /// Writes one result. `account` knows the files read so far. False: nobody listens any more.
    pub(crate) fn result(&mut self, m: &Match, account: &Account) -> bool {
        let (file, line) = account.place(m.line);
        let of = (m.of != u64::MAX).then(|| account.place(m.of));
        let similarity = f64::from(m.similarity) / f64::from(ONE);
        let duplicate = m.duplicate != 0;
        if let Some(text) = &mut self.text {
            text.write(|w| match of {
                Some((of_file, of_line)) if duplicate => {
                    writeln!(w, "{}:{line} ~ {}:{of_line} {similarity:.4}", file.display(), of_file.display())
                }
                _ => writeln!(w, "{}:{line} novel", file.display()),
            });
        }
        if let Some(json) = &mut self.json {
            let finding = Finding {
                file: file.to_string_lossy(),
                line,
                verdict: if duplicate { "near-duplicate" } else { "novel" },
                of_file: of.map(|(f, _)| f.to_string_lossy()),
                of_line: of.map(|(_, l)| l),
                similarity,
                candidates: m.candidates,
            };
            let first = std::mem::take(&mut self.first);
            json.write(|w| {
                w.write_all(if first { b"\n" } else { b",\n" })?;
                serde_json::to_writer(w, &finding).map_err(io::Error::from)
            });
        }
        [&self.text, &self.json].into_iter().flatten().any(|s| s.failed.is_none())
    }

    /// Lets results be seen that were written so far.
    pub(crate) fn flush(&mut self) {
        for stream in [&mut self.text, &mut self.json].into_iter().flatten() {
            stream.write(|w| w.flush());
        }
    }

    /// Ends the JSON object and flushes everything. What depends on the machine and the moment stands under `run`.
    pub(crate) fn finish(
        mut self,
        summary: &Summary,
        account: &Account,
        options: &Options,
        device: &DeviceInfo,
        resumed: Option<&Resumed>,
    ) -> Result<(), String> {
        if let Some(json) = &mut self.json {
            let refused: Vec<_> = summary.stats.modules.iter().filter(|m| m.rejects.dropped() > 0).collect();
            let fixed = json!({
                "files": account.own_files(), "binary_files": account.binary, "problems": account.problems,
                "bytes": account.bytes, "lines": account.lines, "empty": account.empty,
                "invalid_utf8": account.invalid_utf8, "compared": summary.end.lines, "novel": summary.end.novel,
                "near_duplicates": summary.end.duplicates, "lost": summary.lost(),
                "refused_records": refused.iter().map(|m| json!({"module": m.name, "rejects": m.rejects})).collect::<Vec<_>>(),
                "threshold": f64::from(options.threshold) / f64::from(ONE), "capacity": options.capacity,
            });
            let seconds = summary.elapsed.as_secs_f64();
            let run = json!({
                "backend": device.backend, "mode": options.mode, "device": device.name, "driver": device.driver,
                "commit": warpmail::COMMIT, "interrupted": summary.interrupted, "seconds": seconds,
                "lines_per_second": account.lines as f64 / seconds, "megabytes_per_second": account.bytes as f64 / seconds / 1e6,
                "memory_bytes": options.memory_bytes(), "arbiter": summary.stats, "journal": summary.journal,
                "resumed": resumed, "checkpoint": summary.kept.as_ref().and_then(|kept| kept.as_ref().ok()),
            });
            json.write(|w| writeln!(w, "\n],\n\"summary\":{fixed},\n\"run\":{run}}}"));
        }
        let outcomes = [self.text, self.json].into_iter().flatten().map(Stream::outcome);
        outcomes.fold(Ok(()), Result::and)
    }
}
