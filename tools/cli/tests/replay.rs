//! `warpmail log replay`: what was logged happens again.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use warpmail::journal::{Entry, Log, LogOptions};

use common::{Folder, code, interrupt_at, text};

const TWIN: [&str; 4] = ["--backend", "twin", "--capacity", "4096"];

/// Sentences of which every fourth nearly repeats the one before; some long, some empty lines between.
fn sentences(seed: u64, n: u64) -> String {
    let words = |i: u64| {
        (0..12).map(move |w| format!("{:x}", (seed << 32 | i << 8 | w).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44))
    };
    let line = |i: u64| match i % 4 {
        3 => words(i - 1).collect::<Vec<_>>().join(" ") + " +\n\n",
        2 => words(i).collect::<Vec<_>>().join("  ") + "\n",
        _ => {
            words(i).chain(words(i + 1000)).chain(words(i + 2000)).chain(words(i + 3000)).collect::<Vec<_>>().join(" ")
                + "\n"
        }
    };
    (0..n).map(line).collect()
}

fn replay(folder: &Folder, args: &[&str]) -> Output {
    folder.log(&[&["replay"], args, &TWIN].concat())
}

fn json(output: &Output) -> Value {
    assert_eq!(code(output), 0, "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn logged_lines_get_the_answers_of_a_run() {
    let folder = Folder::new("replay");
    folder.file("a", sentences(1, 300));
    folder.file("b", sentences(2, 200) + &sentences(1, 100));
    let first = folder.json(&["--all", "--journal", "log", "a", "b"], b"");
    let again = json(&replay(&folder, &["--all", "--json"]));
    assert_eq!(again["results"], first["results"]);
    for field in ["compared", "novel", "near_duplicates", "lost", "files"] {
        assert_eq!(again["summary"][field], first["summary"][field], "{field}");
    }
    let other = folder.json(&["--threshold", "0.99", "a", "b"], b"");
    let replayed = json(&replay(&folder, &["--threshold", "0.99", "--json"]));
    assert_eq!(replayed["results"], other["results"]);
    assert_ne!(replayed["results"], first["results"]);
    let words = text(&replay(&folder, &["--quiet"]).stdout);
    assert_eq!(words, text(&folder.run(&["--quiet", "a", "b"], b"").stdout));

    // A second run of its own comes after the first, with other line numbers and the same files.
    folder.json(&["--journal", "log", "b"], b"");
    let both = json(&replay(&folder, &["--all", "--json"]));
    assert_eq!(both["results"], folder.json(&["--all", "a", "b", "b"], b"")["results"]);
    // From somewhere on, with the names that were told before it.
    let cat = text(&folder.log(&["cat", "--json", "--mailbox", "0", "--type", "1"]).stdout);
    let nth = |n: usize| serde_json::from_str::<Value>(cat.lines().nth(n).unwrap()).unwrap()["sequence"].to_string();
    // The first and second of four lines have two records each; the tenth record is the end of line 7.
    let some = json(&replay(&folder, &["--all", "--json", "--from", &nth(9), "--to", &nth(20)]));
    let lines: Vec<u64> = some["results"].as_array().unwrap().iter().map(|r| r["line"].as_u64().unwrap()).collect();
    assert_eq!((lines.len(), lines[0], &some["results"][0]["file"]), (8, 7, &"a".into()), "{lines:?}");
    assert_eq!(
        json(&replay(&folder, &["--all", "--json", "--until", "2001-01-01T00:00:00Z"]))["results"],
        Value::Array(vec![])
    );
}

/// Records of two mailboxes, `gap` apart by the producers' clock.
fn spaced(folder: &Folder, n: u64, gap: Duration) {
    let (mut log, _) = Log::open(folder.0.join("log"), LogOptions::default()).unwrap();
    let payloads: Vec<String> = (0..n).map(|i| format!("record {i}")).collect();
    for (i, payload) in (0..).zip(&payloads) {
        // The wall clock is behind by less than a second, as in the log of a run.
        let (mailbox, producer_ns) = (i as u32 % 2, 1_000_000_007 + i * gap.as_nanos() as u64);
        let payload = payload.as_bytes();
        log.append(&[Entry { mailbox, msg_type: 3, producer_ns, payload, ..Entry::default() }]).unwrap();
    }
    log.close().unwrap();
}

#[test]
fn records_come_out_as_cat_prints_them_at_the_pace_they_had() {
    let folder = Folder::new("pace");
    spaced(&folder, 4, Duration::from_millis(200));
    let stdout = |args: &[&str]| {
        let begin = Instant::now();
        let output = replay(&folder, &[&["--into", "stdout"], args].concat());
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        (text(&output.stdout), begin.elapsed())
    };
    let cat = |args: &[&str]| text(&folder.log(&[&["cat"], args].concat()).stdout);
    assert_eq!(stdout(&[]).0, cat(&[]));
    assert_eq!(
        stdout(&["--json", "--mailbox", "1", "--from", "3"]).0,
        cat(&["--json", "--mailbox", "1", "--from", "3"])
    );
    let (words, took) = stdout(&["--pace", "recorded"]);
    assert!(words == cat(&[]) && took >= Duration::from_millis(600), "{took:?}");
    // At their own pace these would take a minute and a half.
    let folder = Folder::new("no-pace");
    spaced(&folder, 100, Duration::from_millis(900));
    for args in [&["--pace", "recorded", "--max-gap", "0.01"][..], &["--pace", "full"]] {
        let begin = Instant::now();
        let output = replay(&folder, &[&["--into", "stdout"], args].concat());
        assert_eq!((code(&output), text(&output.stdout)), (0, text(&folder.log(&["cat"]).stdout)), "{args:?}");
        assert!(begin.elapsed() < Duration::from_secs(60), "{args:?} took {:?}", begin.elapsed());
    }
}

#[test]
fn ctrl_c_ends_a_slow_replay_with_what_there_is() {
    let folder = Folder::new("interrupted");
    folder.file("a", sentences(1, 40));
    folder.json(&["--journal", "log", "a"], b"");
    // The same lines a day apart: as their producers' clocks would say if the log had seen it.
    let mut records: Vec<_> =
        warpmail::journal::Reader::open(folder.0.join("log"), 1).unwrap().map(Result::unwrap).collect();
    records.retain(|r| r.mailbox == 0);
    let slow = folder.0.join("slow");
    let (mut log, _) = Log::open(&slow, LogOptions::default()).unwrap();
    for (i, r) in records.iter().enumerate() {
        // Within a second of the wall clock a producer's gap counts: 0.8 s each.
        let producer_ns = 1_000_000_000 + i as u64 * 800_000_000;
        log.append(&[Entry { msg_type: r.msg_type, producer_ns, payload: &r.payload, ..Entry::default() }]).unwrap();
    }
    log.close().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_warpmail"));
    command.args(["log", "replay"]).arg(&slow).args(["--all", "--json", "--pace", "recorded"]).args(TWIN);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // To its end it would take half a minute.
    let output = interrupt_at(child, "verdict");
    assert_eq!(code(&output), 130, "{}", text(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let n = value["results"].as_array().unwrap().len();
    assert!((1..40).contains(&n), "{n} results");
}

#[test]
fn what_cannot_be_replayed_is_named() {
    let folder = Folder::new("unreplayed");
    let none = replay(&folder, &[]);
    assert_eq!(code(&none), 1);
    assert!(text(&none.stderr).contains("log"), "{}", text(&none.stderr));
    for usage in [&["--pace", "slow"][..], &["--into", "nowhere"], &["--max-gap", "-1"], &["--device", "0"]] {
        assert_eq!(code(&replay(&folder, usage)), 2, "{usage:?}");
    }
    // A log without lines has no results, and says so by having none.
    spaced(&folder, 3, Duration::from_millis(1));
    assert_eq!(json(&replay(&folder, &["--json"]))["summary"]["lines"], 0);
    // Damage ends it, named, after what stands before it.
    let segment = folder.0.join("log/00000000000000000001.wmlog");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[64 + 80 + 75] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    for (args, lines) in [(&["--into", "stdout"][..], 1), (&[], 0)] {
        let output = replay(&folder, args);
        assert_eq!((code(&output), text(&output.stdout).lines().count()), (1, lines));
        assert!(text(&output.stderr).contains("record 2 should be"), "{}", text(&output.stderr));
    }
}
