//! `warpmail log` as a user meets it.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use warpmail::journal::{Entry, Log, LogOptions, Retention};

fn run(command: &str, dir: &Path, args: &[&str]) -> Output {
    let mut run = Command::new(env!("CARGO_BIN_EXE_warpmail"));
    run.args(["log", command]).arg(dir).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Ten records, mailboxes 0 to 2, types 0 and 1; every fifth with bytes that are no text, and a tensor.
fn log(options: LogOptions) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(dir.path(), options).unwrap();
    for i in 0..10u16 {
        let words = format!("record number {i}");
        let (payload, tensor) =
            if i % 5 == 4 { (&[0xFF, 0, i as u8][..], &[1u8; 100][..]) } else { (words.as_bytes(), &[][..]) };
        let mailbox = u32::from(i % 3);
        log.append(&[Entry { mailbox, msg_type: i % 2, payload, tensor, ..Entry::default() }]).unwrap();
    }
    dir
}

fn segment(dir: &TempDir) -> PathBuf {
    dir.path().join("00000000000000000001.wmlog")
}

/// Record 3 of the ten.
fn damage(dir: &TempDir) {
    let file = OpenOptions::new().write(true).open(segment(dir)).unwrap();
    file.write_all_at(b"?", 64 + 2 * 88 + 75).unwrap();
}

#[test]
fn cat_prints_and_filters() {
    let dir = log(LogOptions::default());
    let lines = |args: &[&str]| {
        let output = run("cat", dir.path(), args);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let all = lines(&[]);
    assert_eq!(all.len(), 10);
    assert!(
        all[0].starts_with("1 20") && all[0].ends_with("Z mailbox 0 type 0 15 bytes \"record number 0\""),
        "{}",
        all[0]
    );
    assert!(all[4].ends_with("mailbox 1 type 0 3 bytes + tensor of 100 bytes ff0004"), "{}", all[4]);
    assert_eq!(lines(&["--mailbox", "2"]).len(), 3);
    assert_eq!(lines(&["--mailbox", "0", "--mailbox", "1", "--type", "1"]).len(), 4);
    assert_eq!(lines(&["--from", "3", "--to", "5"]), all[2..5]);
    assert_eq!(lines(&["--until", "2001-01-01T00:00:00Z"]).len(), 0);
    assert_eq!(lines(&["--since", "2001-01-01T00:00:00Z"]).len(), 10);
    assert!(lines(&["--payload", "text"])[4].ends_with("\"\\xff\\x00\\x04\""));
    assert!(lines(&["--payload", "hex", "--to", "1"])[0].ends_with(" 7265636f7264206e756d6265722030"));
    let objects: Vec<Value> = lines(&["--json"]).iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&objects[0]["sequence"], &objects[0]["payload_text"]), (&1.into(), &"record number 0".into()));
    assert_eq!((&objects[4]["payload_hex"], &objects[4]["tensor_bytes"]), (&"ff0004".into(), &100.into()));
    assert!(objects[4]["payload_text"].is_null());
}

#[test]
fn verify_tells_whole_from_damaged() {
    let dir = log(LogOptions::default());
    let output = run("verify", dir.path(), &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("10 valid records (1 to 10)"), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("the log is whole"), "{}", text(&output.stdout));

    damage(&dir);
    let output = run("verify", dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("2 valid records (1 to 2)"), "{}", text(&output.stdout));
    for word in ["00000000000000000001.wmlog", "offset 240", "record 3", "payload that does not match"] {
        assert!(text(&output.stderr).contains(word), "{word}: {}", text(&output.stderr));
    }
    let output = run("verify", dir.path(), &["--json"]);
    let told = json(&output);
    assert_eq!((output.status.code(), &told["whole"]), (Some(1), &false.into()));
    assert_eq!((&told["damage"]["offset"], &told["damage"]["sequence"]), (&240.into(), &3.into()));
    let output = run("cat", dir.path(), &[]);
    assert_eq!((output.status.code(), text(&output.stdout).lines().count()), (Some(1), 2));
}

#[test]
fn what_is_behind_damage_can_be_printed() {
    let dir = log(LogOptions { segment_bytes: 4096, ..LogOptions::default() });
    let (mut writer, _) = Log::open(dir.path(), LogOptions { segment_bytes: 4096, ..LogOptions::default() }).unwrap();
    for _ in 0..20 {
        writer.append(&[Entry { payload: &[3; 900], ..Entry::default() }]).unwrap();
    }
    drop(writer);
    damage(&dir);
    let (all, stat) = (run("cat", dir.path(), &[]), json(&run("stat", dir.path(), &["--json"])));
    assert_eq!((all.status.code(), text(&all.stdout).lines().count()), (Some(1), 2));
    let second = stat["segments"][1]["first"].as_u64().unwrap();
    let behind = run("cat", dir.path(), &["--from", &second.to_string()]);
    assert_eq!(behind.status.code(), Some(0), "{}", text(&behind.stderr));
    assert_eq!(text(&behind.stdout).lines().count() as u64, 31 - second);
}

#[test]
fn a_torn_end_is_no_damage() {
    let dir = log(LogOptions::default());
    let end = json(&run("stat", dir.path(), &["--json"]))["segments"][0]["bytes"].as_u64().unwrap();
    OpenOptions::new().write(true).open(segment(&dir)).unwrap().write_all_at(b"WMRC half a header", end).unwrap();
    let output = run("verify", dir.path(), &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("a torn end"), "{}", text(&output.stdout));
    assert_eq!(json(&run("stat", dir.path(), &["--json"]))["torn"]["offset"], end);
}

#[test]
fn stat_tells_what_is_held_and_what_retention_removed() {
    let dir = log(LogOptions::default());
    let output = run("stat", dir.path(), &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("10 records, 1 to 10; 1 segments"), "{}", text(&output.stdout));
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { max_bytes: Some(10_000), max_age: None };
    let (mut log, _) =
        Log::open(dir.path(), LogOptions { segment_bytes: 4096, retention, ..LogOptions::default() }).unwrap();
    for _ in 0..50 {
        log.append(&[Entry { payload: &[3; 900], ..Entry::default() }]).unwrap();
    }
    let told = json(&run("stat", dir.path(), &["--json"]));
    assert_eq!((&told["first"], &told["last"]), (&log.first().into(), &50.into()));
    assert!(log.first() > 1 && told["segments"].as_array().unwrap().len() > 1);
    let words = text(&run("stat", dir.path(), &[]).stdout);
    assert!(words.contains(&format!("{} before them were removed", log.first() - 1)), "{words}");
    let output = run("cat", dir.path(), &["--from", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("the oldest kept is"), "{}", text(&output.stderr));
}

#[test]
fn cut_asks_first_and_says_what_goes() {
    let dir = log(LogOptions::default());
    let output = run("cut", dir.path(), &["--yes"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("nothing to cut"), "{}", text(&output.stdout));
    damage(&dir);
    let before = std::fs::read(segment(&dir)).unwrap();
    let output = run("cut", dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    for word in ["would be cut: everything after record 2", "from offset 240 on", "nothing was changed; --yes does it"]
    {
        assert!(text(&output.stdout).contains(word), "{word}: {}", text(&output.stdout));
    }
    assert_eq!(std::fs::read(segment(&dir)).unwrap(), before);
    let output = run("cut", dir.path(), &["--yes", "--json"]);
    let told = json(&output);
    assert_eq!((output.status.code(), &told["done"], &told["plan"]["last"]), (Some(0), &true.into(), &2.into()));
    assert_eq!(run("verify", dir.path(), &[]).status.code(), Some(0));
    assert_eq!(Log::open(dir.path(), LogOptions::default()).unwrap().1.last, 2);
}

#[test]
fn what_cannot_be_done_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["cat", "verify", "stat", "cut"] {
        let output = run(command, dir.path(), &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("holds no log"), "{}", text(&output.stderr));
        let output = run(command, &dir.path().join("missing"), &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("missing"), "{}", text(&output.stderr));
        assert_eq!(run(command, dir.path(), &["--no-such-flag"]).status.code(), Some(2));
        assert!(text(&run(command, dir.path(), &["--help"]).stdout).contains("DIR"));
    }
    assert_eq!(run("cat", dir.path(), &["--from", "zero"]).status.code(), Some(2));
    assert_eq!(run("cat", dir.path(), &["--since", "yesterday"]).status.code(), Some(2));
    let dir = log(LogOptions::default());
    let (_writer, _) = Log::open(dir.path(), LogOptions::default()).unwrap();
    let output = run("cut", dir.path(), &["--yes"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("open for writing already"), "{}", text(&output.stderr));
    assert_eq!(run("verify", dir.path(), &[]).status.code(), Some(0));
}
