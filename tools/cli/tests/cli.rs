//! The command as a user meets it: output, exit codes, bad input.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use common::{interrupt_at, text};

fn warpmail(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_warpmail"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program that ends early closes the pipe: its own words say why.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn run(args: &[&str], input: &[u8]) -> Output {
    warpmail(&[&["run", "--backend", "twin", "--capacity", "4096"], args].concat(), input)
}

fn json(args: &[&str], input: &[u8]) -> (Value, Output) {
    let output = run(&[&["--json", "-"], args].concat(), input);
    (serde_json::from_slice(&output.stdout).unwrap(), output)
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("warpmail-cli-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn near_duplicates_are_named_with_their_places() {
    let lines = "the quick brown fox jumps over the lazy dog\nsomething else altogether, really\n\n  The quick brown fox jumps over the lazy dog.\n";
    let output = run(&[], lines.as_bytes());
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout).lines().count(), 1, "{}", text(&output.stdout));
    assert!(text(&output.stdout).starts_with("-:4 ~ -:1 0.9"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("4 lines (1 empty, 0 with invalid UTF-8)"), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("reader->encoder"), "{}", text(&output.stderr));

    let (json, _) = json(&["--all"], lines.as_bytes());
    assert_eq!(json["summary"]["near_duplicates"], 1);
    assert_eq!(json["summary"]["novel"], 2);
    assert_eq!(json["results"].as_array().unwrap().len(), 3);
    assert_eq!(json["results"][2]["of_line"], 1);
    assert_eq!(json["run"]["device"], "CPU twin");
}

#[test]
fn empty_input_gives_an_empty_result() {
    for input in [&b""[..], b"\n\n  \n"] {
        let (json, output) = json(&[], input);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(json["summary"]["compared"], 0);
        assert_eq!(json["results"].as_array().unwrap().len(), 0);
    }
}

#[test]
fn missing_files_are_named_and_the_others_go_on() {
    let folder = folder("missing");
    std::fs::write(folder.join("there.txt"), "a line of text that stands here\na line of text that stands here\n")
        .unwrap();
    let there = folder.join("there.txt").display().to_string();
    let output = run(&["no/such/file", &there, "nor/this"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("there.txt:2 ~ "), "{}", text(&output.stdout));
    for name in ["no/such/file", "nor/this"] {
        assert!(text(&output.stderr).contains(name), "{}", text(&output.stderr));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn invalid_utf8_is_replaced_and_counted_and_binary_files_are_left_out() {
    let folder = folder("bytes");
    std::fs::write(folder.join("a.txt"), b"good line of some length\nbad \xFF\xFE line of some length\n").unwrap();
    std::fs::write(folder.join("b.bin"), b"\x7fELF\0\0\0 not text").unwrap();
    std::fs::write(folder.join(".hidden"), b"good line of some length\n").unwrap();
    let (json, output) = json(&[&folder.display().to_string()], b"");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(json["summary"]["invalid_utf8"], 1);
    assert_eq!(json["summary"]["binary_files"], 1);
    assert_eq!(json["summary"]["lines"], 2);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn long_lines_are_carried_whole() {
    // Equal but for the last bytes, far beyond one record: cut lines would be identical.
    let long = "0123456789 the payload of one record is 248 bytes ".repeat(200);
    let input = format!("{long}{}\n{long}{}\n", "x".repeat(6000), "yz".repeat(4000));
    let (json, _) = json(&["--all"], input.as_bytes());
    let similarity = json["results"][1]["similarity"].as_f64().unwrap();
    assert!(similarity > 0.0 && similarity < 0.99, "{similarity}");
    assert_eq!(json["summary"]["compared"], 2);
}

#[test]
fn wrong_usage_says_what_is_wrong() {
    for (args, word) in [
        (&["--threshold", "0"][..], "above 0"),
        (&["--threshold", "1.5"], "up to 1"),
        (&["--threshold", "many"], "number"),
        (&["--capacity", "0"], "0"),
        (&["--backend", "abacus"], "abacus"),
        (&["--no-such-flag"], "no-such-flag"),
    ] {
        let output = warpmail(&[&["run"], args].concat(), b"");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(word), "{args:?}: {}", text(&output.stderr));
    }
    let output = run(&["--json", "/no/such/folder/out.json"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/no/such/folder/out.json"), "{}", text(&output.stderr));
}

#[test]
fn ctrl_c_keeps_the_results_so_far() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_warpmail"))
        .args(["run", "--backend", "twin", "--capacity", "4096", "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The input never ends: the pipe stays open.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one line of text, said twice\none line of text, said twice\n").unwrap();
    let output = interrupt_at(child, "near-duplicate");
    drop(stdin);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["summary"]["near_duplicates"], 1);
}

#[test]
fn probe_tells_in_text_and_json() {
    let output = warpmail(&["probe"], b"");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("=> modules run on"), "{}", text(&output.stdout));
    let output = warpmail(&["probe", "--json"], b"");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["host_threads"].as_u64().unwrap() > 0);
    assert!(json["kernels"].is_object() && json["driver"].is_object());
}

#[test]
fn launch_blocking_is_refused_with_the_reason() {
    let output = Command::new(env!("CARGO_BIN_EXE_warpmail"))
        .args(["run", "--backend", "cuda"])
        .env("CUDA_LAUNCH_BLOCKING", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is not available"), "{}", text(&output.stderr));
    let probe =
        Command::new(env!("CARGO_BIN_EXE_warpmail")).arg("probe").env("CUDA_LAUNCH_BLOCKING", "1").output().unwrap();
    assert!(text(&probe.stdout).contains("CUDA_LAUNCH_BLOCKING is set"), "{}", text(&probe.stdout));
}

#[test]
fn where_no_kernel_can_stay_the_other_mode_is_named() {
    for (variable, value, told) in [
        ("CUDA_LAUNCH_BLOCKING", "1", true),
        ("CUDA_LAUNCH_BLOCKING", "0", false),
        ("CUDA_DEVICE_MAX_CONNECTIONS", "1", true),
        ("CUDA_DEVICE_MAX_CONNECTIONS", "8", false),
    ] {
        let mut probe = Command::new(env!("CARGO_BIN_EXE_warpmail"));
        probe.env_remove("CUDA_LAUNCH_BLOCKING").env_remove("CUDA_DEVICE_MAX_CONNECTIONS");
        let output = probe.args(["probe", "--json"]).env(variable, value).output().unwrap();
        let process = serde_json::from_slice::<Value>(&output.stdout).unwrap()["process"].clone();
        let names_both = process.as_str().is_some_and(|p| p.contains(variable) && p.contains("--mode cpu"));
        assert!(names_both == told && process.is_null() != told, "{variable}={value}: {process}");
    }
}

#[test]
fn connections_are_those_of_the_environment() {
    for (set, connections, modules) in [(None, 8, 5), (Some("32"), 32, 29), (Some("4"), 4, 1)] {
        let mut probe = Command::new(env!("CARGO_BIN_EXE_warpmail"));
        probe.arg("probe").env_remove("CUDA_LAUNCH_BLOCKING").env_remove("CUDA_DEVICE_MAX_CONNECTIONS");
        probe.envs(set.map(|n| ("CUDA_DEVICE_MAX_CONNECTIONS", n)));
        let shown = probe.output().unwrap();
        let line = format!("{connections} connections to a device");
        let says = format!("{modules} stream modules");
        let told = text(&shown.stdout).lines().any(|l| l.contains(&line) && l.contains(&says));
        assert!(told, "{}", text(&shown.stdout));
        let json = probe.arg("--json").output().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&json.stdout).unwrap()["connections"], connections);
    }
}

#[test]
fn pair_bench_verifies_and_writes_rows() {
    let folder = folder("bench");
    let file = folder.join("rows.json");
    let output =
        warpmail(&["bench", "pair", "--records", "20000", "--rounds", "2", "--json", &file.display().to_string()], b"");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let rows: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let keys = [
        "id", "value", "unit", "floor", "ratio", "p50", "p99", "p999", "backend", "device", "driver", "commit",
        "command",
    ];
    for key in keys {
        assert!(rows[0].get(key).is_some(), "{key}");
    }
    assert_eq!(rows[0]["id"], "twin.pair");
    std::fs::remove_dir_all(folder).unwrap();
}
