//! What is said on standard error: progress, and the summary at the end.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use warpmail::DeviceInfo;

use super::graph::Options;
use super::input::Account;
use super::pipeline::Summary;
use super::resume::Resumed;

/// A bar over `total` bytes, a spinner if that is not known; hidden unless standard error is a terminal.
pub(crate) fn progress(total: impl FnOnce() -> Option<u64>, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total() {
        Some(total) => (ProgressBar::new(total), "{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left"),
        None => (ProgressBar::no_length(), "{spinner} {bytes}, {bytes_per_sec}"),
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    ProgressStyle::with_template(template).map_or(bar.clone(), |style| bar.with_style(style))
}

/// What the run goes on with.
pub(crate) fn resumed(resumed: &Resumed) {
    match &resumed.last {
        None => eprintln!("nothing to resume: the run begins with nothing known"),
        Some(last) if resumed.replayed_lines > 0 => eprintln!(
            "resumed after {last}; {} lines of the log were in no checkpoint and went through the modules again",
            resumed.replayed_lines
        ),
        Some(last) => eprintln!("resumed after {last}"),
    }
}

/// The summary, and a line for each mailbox; with `detail` one for each module too.
pub(crate) fn summary(summary: &Summary, account: &Account, options: &Options, device: &DeviceInfo, detail: bool) {
    let seconds = summary.elapsed.as_secs_f64();
    eprintln!(
        "{} lines ({} empty, {} with invalid UTF-8) of {} files: {} novel, {} near-duplicates; {} files were not text",
        account.lines,
        account.empty,
        account.invalid_utf8,
        account.own_files(),
        summary.end.novel,
        summary.end.duplicates,
        account.binary
    );
    eprintln!(
        "{seconds:.2} s on {} ({}, arbiter on the {}): {:.0} lines/s, {:.1} MB/s; memory for {} lines: {} MiB",
        device.name,
        device.backend,
        options.mode,
        account.lines as f64 / seconds,
        account.bytes as f64 / seconds / 1e6,
        options.capacity,
        options.memory_bytes().div_ceil(1 << 20)
    );
    for m in &summary.stats.mailboxes {
        let quarantined = m.quarantined.map_or(String::new(), |reason| format!(", quarantined: {reason}"));
        eprintln!("  {:20} {:>10} records, at most {} waiting{quarantined}", m.name, m.written, m.depth_max);
    }
    for m in summary.stats.modules.iter().filter(|m| detail && m.steps > 0) {
        let each = m.busy_ns as f64 / m.steps as f64 / 1e3;
        eprintln!("  {:20} {:>10} steps, {:.2} s, {each:.2} µs each", m.name, m.steps, m.busy_ns as f64 / 1e9);
    }
    if let Some(j) = &summary.journal {
        eprintln!(
            "  journal: {} records passed, {} durable, {} dropped, {} lost",
            j.accepted, j.durable, j.dropped, j.lost
        );
    }
    if let Some(Ok(checkpoint)) = &summary.kept {
        let next = checkpoint.journal.map_or(0, |j| j.next);
        eprintln!("  checkpoint: {} bytes, of all records before {next}", checkpoint.file_bytes);
    }
    if detail {
        let s = &summary.stats;
        let (work, idle) = (s.work_ns as f64 / 1e9, s.idle_poll_ns as f64 / 1e9);
        eprintln!(
            "  arbiter: {} launches, {} grants, {work:.2} s with work, {idle:.2} s without, parked {} times for {:.2} s",
            s.launches,
            s.grants,
            s.parks,
            s.parked_ns as f64 / 1e9
        );
        if let Some(f) = summary.footprint {
            eprintln!(
                "  its launch: {} threads of {} registers, {} KiB of shared memory; an SM (of {}) would hold {} such",
                f.threads,
                f.registers,
                f.shared_bytes / 1024,
                f.multiprocessors,
                f.blocks_per_sm
            );
        }
    }
}

/// What went wrong without ending the run. False: nothing did.
pub(crate) fn problems(command: &str, summary: &Summary, account: &Account) -> bool {
    account.problems.iter().for_each(|p| eprintln!("warpmail {command}: {p}"));
    let refused = summary.stats.modules.iter().filter(|m| m.rejects.dropped() > 0);
    let mut lost = summary.lost() > 0;
    for m in refused {
        let r = &m.rejects;
        eprintln!(
            "warpmail {command}: {} dropped {} records: {} of a wrong length, {} of a wrong type, {} with wrong content",
            m.name,
            r.dropped(),
            r.length,
            r.msg_type,
            r.content
        );
        lost = true;
    }
    if summary.lost() > 0 {
        eprintln!("warpmail {command}: {} lines got no verdict", summary.lost());
    }
    let unkept = summary.kept.as_ref().and_then(|kept| kept.as_ref().err());
    if let Some(error) = unkept {
        eprintln!("warpmail {command}: no checkpoint was written at the end; --resume will use the log: {error}");
    }
    lost || unkept.is_some() || !account.problems.is_empty()
}
