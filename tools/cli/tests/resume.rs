//! `warpmail run --resume`: runs that go on where others ended, or died, answer as one run over all that they read.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use std::fs;
use std::io::Write;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use common::{BOUND, Folder, code, finish, interrupt_at, text};

/// Lines of which every third nearly repeats an earlier one, of this text or of the one before it (`seed - 1`).
fn lines(seed: u64, n: u64) -> String {
    let word = |x: u64| format!("{:x}", x.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44);
    let fresh = |seed: u64, i: u64| (0..9).map(|w| word(seed << 40 | i << 8 | w)).collect::<Vec<_>>().join(" ");
    let line = |i: u64| match i % 6 {
        2 => format!("{} +", fresh(seed, i / 2 * 2 - 2)),
        5 => format!("{} -", fresh(seed - 1, i * 7 % n / 6 * 6)),
        _ => fresh(seed, i),
    };
    (0..n).map(|i| line(i) + if i % 50 == 49 { "\n\n" } else { "\n" }).collect()
}

fn results(of: &Value) -> Vec<Value> {
    of["results"].as_array().unwrap().clone()
}

fn near_duplicates(results: &[Value]) -> usize {
    results.iter().filter(|r| r["verdict"] == "near-duplicate").count()
}

/// Results of lines of these files.
fn of_files(all: &[Value], files: &[&str]) -> Vec<Value> {
    all.iter().filter(|r| files.contains(&r["file"].as_str().unwrap())).cloned().collect()
}

#[test]
fn resumed_runs_answer_as_one_run() {
    let folder = Folder::new("resumed");
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        folder.file(name, lines(seed, 1200));
    }
    let whole = results(&folder.json(&["--all", "a", "b", "c"], b""));
    let first = folder.json(&["--all", "--journal", "log", "--resume", "a"], b"");
    assert_eq!(first["run"]["resumed"]["lines"], 0);
    let second = folder.json(&["--all", "--journal", "log", "--resume", "--checkpoint-every", "0.02", "b"], b"");
    let resumed = &second["run"]["resumed"];
    // The last line of `a` is followed by an empty one.
    assert_eq!((&resumed["replayed_lines"], &resumed["last"]), (&0.into(), &"a:1223".into()), "{resumed}");
    assert_eq!((&second["summary"]["lines"], &second["summary"]["files"]), (&1224.into(), &1.into()));
    let third = folder.json(&["--all", "--journal", "log", "--resume", "c"], b"");
    for (run, file) in [(&first, "a"), (&second, "b"), (&third, "c")] {
        let (ours, theirs) = (results(run), of_files(&whole, &[file]));
        assert!(
            near_duplicates(&theirs) > if file == "a" { 150 } else { 300 },
            "the texts repeat themselves and each other"
        );
        assert_eq!((ours.len(), theirs.len()), (1200, 1200));
        ours.iter().zip(&theirs).for_each(|(a, b)| assert_eq!(a, b));
        let (n, d) = (near_duplicates(&theirs) as u64, &run["summary"]);
        assert_eq!((&d["near_duplicates"], &d["novel"], &d["lost"]), (&n.into(), &(1200 - n).into(), &0.into()));
        // Everything in the log is in the checkpoint.
        let stat: Value = serde_json::from_slice(&folder.log(&["stat", "--json"]).stdout).unwrap();
        let last = run["run"]["checkpoint"]["journal"]["next"].as_u64().unwrap() - 1;
        assert!(file != "c" || stat["last"] == last, "{stat} {last}");
    }
    let across = results(&second).iter().filter(|r| r["of_file"] == "a").count();
    assert!(across > 50, "only {across} lines of the second were found in the first");

    // A run that does not resume knows nothing, and is what the next one resumes.
    let anew = folder.json(&["--all", "--journal", "log", "c"], b"");
    assert_eq!(results(&anew), results(&folder.json(&["--all", "c"], b"")));
    let more = folder.json(&["--all", "--journal", "log", "--resume", "a"], b"");
    assert_eq!(results(&more), of_files(&results(&folder.json(&["--all", "c", "a"], b"")), &["a"]));
}

/// The place in the log of the checkpoint, 0 if there is none: docs/checkpoint-format.md.
fn checkpointed(folder: &Folder) -> u64 {
    let bytes = fs::read(folder.0.join("log/checkpoint.wmstate")).unwrap_or_default();
    bytes.get(32..40).map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
}

/// A run that reads `text` slowly, given back when its log has `records`, and its checkpoint knows `known` of them.
fn feed(folder: &Folder, args: &[&str], text: &str, records: u64, known: u64) -> Child {
    let args = [&["--backend", "twin", "--capacity", "4096", "--journal", "log", "--resume"], args, &["-"]].concat();
    let mut child = folder.spawn(&args);
    let mut to = child.stdin.take().unwrap();
    let text = text.to_string();
    // It never ends by itself: the pipe stays open until the child is gone.
    thread::spawn(move || {
        for line in text.split_inclusive('\n') {
            if to.write_all(line.as_bytes()).is_err() {
                return;
            }
            thread::sleep(Duration::from_micros(300));
        }
        thread::sleep(BOUND);
    });
    let begin = Instant::now();
    let last = || serde_json::from_slice::<Value>(&folder.log(&["stat", "--json"]).stdout).ok()?["last"].as_u64();
    while last().unwrap_or(0) < records || checkpointed(folder) < known {
        assert!(begin.elapsed() < BOUND, "the log does not grow");
        thread::sleep(Duration::from_millis(20));
    }
    child
}

/// Lines of the log's runs, one number a run, in order. Every line of these texts fits one record.
fn lines_of_runs(folder: &Folder) -> Vec<usize> {
    let mut runs = Vec::new();
    for line in text(&folder.log(&["cat", "--json", "--mailbox", "0"]).stdout).lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        match record["msg_type"].as_u64() {
            Some(8) => runs.push(0),
            Some(1) => *runs.last_mut().unwrap() += 1,
            _ => {}
        }
    }
    runs
}

#[test]
fn a_run_that_was_killed_is_taken_up_to_its_last_logged_line() {
    for (name, args, expects_replay) in
        [("killed", &[][..], true), ("killed-often", &["--checkpoint-every", "0.02"], false)]
    {
        let folder = Folder::new(name);
        let (a, b) = (lines(1, 1200), lines(2, 600));
        folder.file("b", &b);
        // Twice: the second dies after it has resumed.
        let mut at = 500;
        for _ in 0..2 {
            // The second, with some lines of its own in the checkpoint.
            let known = if expects_replay { 0 } else { at - 200 };
            let mut child = feed(&folder, args, &a, at, known);
            child.kill().unwrap();
            finish(child);
            let stat: Value = serde_json::from_slice(&folder.log(&["stat", "--json"]).stdout).unwrap();
            at = stat["last"].as_u64().unwrap() + 500;
        }
        let resumed = folder.json(&["--all", "--journal", "log", "--resume", "b"], b"");
        let runs = lines_of_runs(&folder);
        assert!(runs.len() == 3 && runs[0] > 100 && runs[1] > 100, "{runs:?}");
        let told = &resumed["run"]["resumed"];
        assert!(told["last"].as_str().unwrap().starts_with("-:"), "{told}");
        let replayed = told["replayed_lines"].as_u64().unwrap();
        // Without checkpoints on the way everything since the last end or resume is done again.
        assert!(if expects_replay { replayed == runs[1] as u64 } else { replayed < runs[1] as u64 }, "{told} {runs:?}");
        // The same lines, read by one run.
        let texts: Vec<&str> = a.split_inclusive('\n').filter(|line| line.len() > 1).collect();
        folder.file("a1", texts[..runs[0]].concat());
        folder.file("a2", texts[..runs[1]].concat());
        let whole = results(&folder.json(&["--all", "a1", "a2", "b"], b""));
        let theirs = of_files(&whole, &["b"]);
        let ours = results(&resumed);
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(&theirs) {
            for field in ["line", "verdict", "similarity", "candidates"] {
                assert_eq!(a[field], b[field], "{a} {b}");
            }
            let (of, wanted) = (a["of_file"].as_str(), b["of_file"].as_str());
            assert_eq!(of == Some("-"), wanted.is_some_and(|w| w.starts_with('a')), "{a} {b}");
        }
        assert!(ours.iter().filter(|r| r["of_file"] == "-").count() > 5);
        assert_eq!(code(&folder.log(&["verify"])), 0);
    }
}

#[test]
fn ctrl_c_keeps_what_is_known() {
    let folder = Folder::new("ctrl-c");
    let a = lines(1, 1200);
    let child = feed(&folder, &[], &a, 400, 0);
    let output = interrupt_at(child, "");
    assert_eq!(code(&output), 130, "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("checkpoint:"), "{}", text(&output.stderr));
    let resumed = folder.json(&["--journal", "log", "--resume"], a.as_bytes());
    let (runs, told) = (lines_of_runs(&folder), &resumed["run"]["resumed"]);
    assert_eq!((&told["replayed_lines"], runs.len()), (&0.into(), 2), "{told} {runs:?}");
    // Every line that the first had is found by the second.
    let again = results(&resumed).iter().filter(|r| r["of_file"] == "-" && r["similarity"] == 1.0).count();
    assert!(again >= runs[0], "{again} of {}", runs[0]);
}

#[test]
fn what_cannot_be_resumed_is_named() {
    let folder = Folder::new("refused");
    folder.file("a", lines(1, 100));
    let run = |args: &[&str]| folder.run(args, b"");
    assert_eq!(code(&run(&["--resume", "a"])), 2);
    assert_eq!(code(&run(&["--checkpoint-every", "1", "a"])), 2);
    assert_eq!(code(&run(&["--journal", "log", "--checkpoint-every", "0", "a"])), 2);
    let begun = run(&["--journal", "log", "--resume", "a"]);
    assert_eq!(code(&begun), 0);
    assert!(text(&begun.stderr).contains("nothing to resume"), "{}", text(&begun.stderr));

    let refused = |words: &[&str]| {
        let output = run(&["--journal", "log", "--resume", "a"]);
        assert_eq!(code(&output), 1, "{}", text(&output.stderr));
        words.iter().for_each(|w| assert!(text(&output.stderr).contains(w), "{w}: {}", text(&output.stderr)));
    };
    let mut child = folder.spawn(&["--backend", "twin", "--capacity", "5000", "--journal", "log", "--resume", "a"]);
    drop(child.stdin.take());
    let output = finish(child);
    assert_eq!(code(&output), 1);
    assert!(text(&output.stderr).contains("holds 4096 lines, not 5000"), "{}", text(&output.stderr));
    // Without a number it takes what is there.
    let mut child = folder.spawn(&["--backend", "twin", "--journal", "log", "--resume", "--json", "-", "a"]);
    drop(child.stdin.take());
    let value: Value = serde_json::from_slice(&finish(child).stdout).unwrap();
    assert_eq!(value["summary"]["capacity"], 4096);

    let file = folder.0.join("log/checkpoint.wmstate");
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad[5000] ^= 1;
    fs::write(&file, &bad).unwrap();
    refused(&["checkpoint.wmstate", "does not match its checksum"]);
    fs::write(&file, &good[..good.len() - 4096]).unwrap();
    refused(&["checkpoint.wmstate", "it was cut or appended to"]);
    fs::write(&file, &good).unwrap();
    // A log that was cut below the checkpoint, and another log.
    let segment = folder.0.join("log/00000000000000000001.wmlog");
    let log = fs::read(&segment).unwrap();
    fs::write(&segment, &log[..4000]).unwrap();
    refused(&["the checkpoint knows records up to"]);
    fs::remove_file(&segment).unwrap();
    refused(&["belongs to another log"]);
}
