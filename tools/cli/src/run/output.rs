//! Results as text and as JSON, written as they come.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::input::Account;
use super::pipeline::{Options, Summary};
use super::records::{Match, ONE};

/// One result, by the names that the user knows.
#[derive(Serialize)]
struct Finding<'a> {
    file: std::borrow::Cow<'a, str>,
    line: u64,
    verdict: &'static str,
    of_file: Option<std::borrow::Cow<'a, str>>,
    of_line: Option<u64>,
    similarity: f64,
}

/// Where results go.
pub(crate) struct Output {
    text: Option<Box<dyn Write>>,
    json: Option<Box<dyn Write>>,
    first: bool,
    failed: Option<io::Error>,
}

impl Output {
    pub(crate) fn new(json: Option<&Path>) -> Result<Self, String> {
        let to_stdout = json.is_some_and(|p| p.as_os_str() == "-");
        let json: Option<Box<dyn Write>> = match json {
            None => None,
            Some(_) if to_stdout => Some(Box::new(BufWriter::new(io::stdout()))),
            Some(path) => {
                let file =
                    std::fs::File::create(path).map_err(|e| format!("{} cannot be written: {e}", path.display()))?;
                Some(Box::new(BufWriter::new(file)))
            }
        };
        let text: Option<Box<dyn Write>> = if to_stdout { None } else { Some(Box::new(BufWriter::new(io::stdout()))) };
        let mut output = Output { text, json, first: true, failed: None };
        output.json(|w| w.write_all(b"{\"results\":["));
        Ok(output)
    }

    fn json(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        if let (Some(json), None) = (&mut self.json, &self.failed) {
            self.failed = write(json).err();
        }
    }

    /// Writes one result. `account` knows the files read so far.
    pub(crate) fn result(&mut self, m: &Match, account: &Account) {
        let (file, line) = account.place(m.line);
        let of = (m.of != u64::MAX).then(|| account.place(m.of));
        let similarity = f64::from(m.similarity) / f64::from(ONE);
        let duplicate = m.duplicate != 0;
        if let (Some(text), None) = (&mut self.text, &self.failed) {
            let written = match of {
                Some((of_file, of_line)) if duplicate => {
                    writeln!(text, "{}:{line} ~ {}:{of_line} {similarity:.4}", file.display(), of_file.display())
                }
                _ => writeln!(text, "{}:{line} novel", file.display()),
            };
            self.failed = written.err();
        }
        let finding = Finding {
            file: file.to_string_lossy(),
            line,
            verdict: if duplicate { "near-duplicate" } else { "novel" },
            of_file: of.map(|(f, _)| f.to_string_lossy()),
            of_line: of.map(|(_, l)| l),
            similarity,
        };
        let first = std::mem::take(&mut self.first);
        self.json(|w| {
            w.write_all(if first { b"\n" } else { b",\n" })?;
            serde_json::to_writer(w, &finding).map_err(io::Error::from)
        });
    }

    /// Ends the JSON object and flushes everything. What depends on the machine and the moment stands under `run`.
    pub(crate) fn finish(
        mut self,
        summary: &Summary,
        account: &Account,
        options: &Options,
        device: &str,
    ) -> Result<(), String> {
        let fixed = json!({
            "lines": account.lines, "empty": account.empty, "compared": summary.end.lines,
            "novel": summary.end.novel, "near_duplicates": summary.end.duplicates,
            "invalid_utf8": account.invalid_utf8, "binary_files": account.binary, "files": account.files.len(),
            "problems": account.problems, "threshold": f64::from(options.threshold) / f64::from(ONE),
            "capacity": options.capacity,
        });
        let seconds = summary.elapsed.as_secs_f64();
        let run = json!({
            "device": device, "seconds": seconds, "lines_per_second": account.lines as f64 / seconds,
            "commit": warpmail::COMMIT, "arbiter": summary.stats,
        });
        self.json(|w| {
            write!(w, "\n],\n\"summary\":{fixed},\n\"run\":{run}}}\n")?;
            w.flush()
        });
        if let (Some(text), None) = (&mut self.text, &self.failed) {
            self.failed = text.flush().err();
        }
        self.failed.map_or(Ok(()), |e| Err(format!("results cannot be written: {e}")))
    }
}
