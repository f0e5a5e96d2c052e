//! `warpmail run` as a user meets it: the built command, its output and its exit codes.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use std::fs;
use std::io::{BufRead, BufReader};

use serde_json::Value;

use common::{Folder, code, finish, text};

const SENTENCE: &str = "The quick brown fox jumps over the lazy dog and runs away from it.\n";
const NEARLY: &str = "the quick brown fox jumps over   the lazy dog and runs away from us.\n";

#[test]
fn quiet_leaves_the_results_and_nothing_else() {
    let folder = Folder::new("quiet");
    folder.file("a.txt", format!("first\n\n{SENTENCE}"));
    folder.file("b.txt", format!("{NEARLY}something else altogether\n"));
    let output = folder.run(&["--quiet", "--all", "a.txt", "b.txt"], b"");
    // A machine that keeps the arbiter from its core for a second hears of it.
    let said: Vec<String> = text(&output.stderr).lines().map(String::from).collect();
    let unexpected = said.iter().find(|line| !line.contains("has not returned yet"));
    assert_eq!((code(&output), unexpected), (0, None));
    let lines: Vec<String> = text(&output.stdout).lines().map(String::from).collect();
    assert_eq!((lines.len(), lines[0].as_str()), (4, "a.txt:1 novel"));
    assert!(lines[2].starts_with("b.txt:1 ~ a.txt:3 0.9"), "{lines:?}");
    let missing = folder.run(&["--quiet", "not_there.txt"], b"");
    assert_eq!((code(&missing), text(&missing.stderr).lines().count()), (1, 1));
    let stats = folder.run(&["--stats", "a.txt"], b"");
    assert!(text(&stats.stderr).contains("steps"), "{}", text(&stats.stderr));
}

#[test]
fn json_keeps_results_apart_from_the_moment() {
    let folder = Folder::new("json");
    let input = format!("{SENTENCE}{SENTENCE}{NEARLY}");
    let one = folder.json(&["--threshold", "1"], input.as_bytes());
    let two = folder.json(&["--threshold", "1"], input.as_bytes());
    assert_eq!((&one["results"], &one["summary"]), (&two["results"], &two["summary"]));
    assert_eq!(one["results"].as_array().unwrap().len(), 1);
    let result = &one["results"][0];
    assert_eq!((&result["file"], &result["line"], &result["of_line"]), (&"-".into(), &2.into(), &1.into()));
    assert_eq!((&result["similarity"], &result["verdict"]), (&1.0.into(), &"near-duplicate".into()));
    let summary = &one["summary"];
    assert_eq!((&summary["lines"], &summary["novel"], &summary["near_duplicates"]), (&3.into(), &2.into(), &1.into()));
    assert_eq!((&one["run"]["backend"], &one["run"]["interrupted"]), (&"twin".into(), &false.into()));

    let output = folder.run(&["--json", "out.json"], input.as_bytes());
    assert_eq!((code(&output), text(&output.stdout).lines().count()), (0, 2));
    let file: Value = serde_json::from_slice(&fs::read(folder.0.join("out.json")).unwrap()).unwrap();
    assert_eq!(file["results"].as_array().unwrap().len(), 2);
}

#[test]
fn both_modes_give_the_same_and_others_are_refused() {
    let folder = Folder::new("modes");
    let lines: String = (0..300).map(|n| format!("{}{n} {SENTENCE}", if n % 3 == 0 { NEARLY } else { "" })).collect();
    let by = |mode| folder.json(&["--all", "--mode", mode], lines.as_bytes());
    let (device, cpu) = (by("device"), by("cpu"));
    assert_eq!((&device["run"]["mode"], &cpu["run"]["mode"]), (&"device".into(), &"cpu".into()));
    assert_eq!((&device["results"], &device["summary"]), (&cpu["results"], &cpu["summary"]));
    assert!(cpu["summary"]["near_duplicates"].as_u64().unwrap() > 100, "{}", cpu["summary"]);
    assert!(cpu["run"]["arbiter"]["grants"].as_u64().unwrap() > 0, "{}", cpu["run"]["arbiter"]);

    let wrong = folder.run(&["--mode", "gpu"], b"");
    assert!(code(&wrong) == 2 && text(&wrong.stderr).contains("`device` and `cpu`"), "{}", text(&wrong.stderr));
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_warpmail"));
    let wrong = run.args(["run", "--backend", "twin"]).env("WARPMAIL_MODE", "both").output().unwrap();
    assert!(code(&wrong) == 1 && text(&wrong.stderr).contains("mode both"), "{}", text(&wrong.stderr));
}

#[test]
fn directories_are_walked_in_order_and_only_text_is_read() {
    let folder = Folder::new("walk");
    folder.file("d/b.txt", SENTENCE);
    folder.file("d/a/z.txt", NEARLY);
    folder.file("d/.hidden", SENTENCE);
    folder.file("d/c.bin", b"bin\0ary");
    let output = folder.json(&["--all", "d"], b"");
    let files: Vec<_> = output["results"].as_array().unwrap().iter().map(|r| r["file"].as_str().unwrap()).collect();
    assert_eq!(files, ["d/a/z.txt", "d/b.txt"]);
    let summary = &output["summary"];
    assert_eq!((&summary["files"], &summary["binary_files"], &summary["lines"]), (&2.into(), &1.into(), &2.into()));
}

#[test]
fn what_replaces_invalid_utf8_is_compared() {
    let folder = Folder::new("utf8");
    let output = folder.json(&["--all"], b"\xFF\n\xC3\n");
    assert_eq!((&output["summary"]["invalid_utf8"], &output["results"][1]["similarity"]), (&2.into(), &1.0.into()));
}

#[test]
fn long_lines_that_are_equal_are_equal_to_the_end() {
    let folder = Folder::new("long");
    let long: String = (1..4000u32).map(|i| format!("{:x} ", i.wrapping_mul(2_654_435_761))).collect();
    let input = format!("{long}\n{long}{}\n{long}\nshort\n", "another ending ".repeat(300));
    let output = folder.json(&["--all", "--threshold", "0.5"], input.as_bytes());
    let results = output["results"].as_array().unwrap();
    assert!(results.len() == 4 && results[1]["similarity"].as_f64().unwrap() < 0.99, "{results:?}");
    assert_eq!((&results[2]["of_line"], &results[2]["similarity"]), (&1.into(), &1.0.into()));
    assert_eq!(results[3]["verdict"], "novel");
}

#[test]
fn wrong_usage_is_told_from_failure() {
    let folder = Folder::new("usage");
    for args in [&["--threshold", "-0.5"][..], &["--threshold", "nan"], &["--device", "0"], &["--stats", "--quiet"]] {
        let output = folder.run(args, SENTENCE.as_bytes());
        assert_eq!((code(&output), output.stdout.len()), (2, 0), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn whoever_closes_the_pipe_has_seen_enough() {
    let folder = Folder::new("pipe");
    folder.file("many.txt", SENTENCE.repeat(100_000));
    let mut child = folder.spawn(&["--backend", "twin", "--capacity", "4096", "many.txt"]);
    let mut first = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut first).unwrap();
    drop(stdout);
    assert_eq!(first, "many.txt:2 ~ many.txt:1 1.0000\n");
    assert_eq!(code(&finish(child)), 0);
}

#[test]
fn a_journal_keeps_lines_and_results() {
    let folder = Folder::new("journal");
    let input = format!("{SENTENCE}{SENTENCE}{NEARLY}").repeat(50);
    let kept = folder.json(&["--all", "--journal", "log", "--idle-spin", "50us"], input.as_bytes());
    let plain = folder.json(&["--all"], input.as_bytes());
    assert_eq!((&kept["results"], &kept["summary"]), (&plain["results"], &plain["summary"]));
    // A line a record and the end, there and back; that it begins, and the file's name.
    let journal = &kept["run"]["journal"];
    assert_eq!((&journal["durable"], &journal["accepted"]), (&304.into(), &304.into()), "{journal}");
    let log = |args: &[&str]| folder.log(args);
    let verified = log(&["verify"]);
    assert_eq!(code(&verified), 0, "{}", text(&verified.stderr));
    let lines = text(&log(&["cat", "--json", "--mailbox", "0"]).stdout).lines().count();
    assert_eq!(lines, 153);
    // A second run goes on where the first ended.
    let more = folder.json(&["--journal", "log"], SENTENCE.as_bytes());
    assert_eq!(more["run"]["journal"]["durable"], 5);
    assert_eq!(code(&log(&["verify"])), 0);
    // A log in use is not written by two.
    folder.file("other", "no directory");
    let refused = folder.run(&["--journal", "other"], SENTENCE.as_bytes());
    assert_eq!(code(&refused), 1);
    assert!(text(&refused.stderr).contains("other"), "{}", text(&refused.stderr));
}
