//! The pipeline on the twin: against a scalar reference of the same definition, against exact brute force, and with records
//! that cannot be.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod corpus;
mod reference;

use std::collections::HashMap;
use std::time::Duration;

use warpmail::{Device, Error, Mode, Rejects};

use crate::budget::BudgetArgs;

use super::graph::{Graph, Options, build};
use super::input::{Item, OnItem};
use super::pipeline::{Shared, Sink, Summary, find};
use super::records::{END, End, LINE, Line, Match, ONE, RESULT};

const THRESHOLD: u32 = 9000;
const BOUND: Duration = Duration::from_secs(20);

/// Keeps results, up to a number of them.
struct Keep(Vec<Match>, usize);

impl Sink for Keep {
    fn result(&mut self, result: &Match) -> bool {
        self.0.push(*result);
        self.0.len() < self.1
    }
    fn look(&mut self) {}
}

fn options(capacity: u32) -> Options {
    Options { threshold: THRESHOLD, emit_all: true, capacity, budget: Default::default(), mode: Mode::Device }
}

fn pipeline(lines: &[Vec<u8>], options: &Options) -> (Vec<Match>, Summary) {
    let read = |post: &mut OnItem<'_>| (0..).zip(lines).try_for_each(|(n, line)| post(Item::Line(n, line)).map(|_| ()));
    let mut sink = Keep(Vec::new(), usize::MAX);
    let summary = find(&Device::twin(), options, None, &Shared::default(), read, &mut sink).unwrap();
    (sink.0, summary)
}

fn agrees(lines: &[Vec<u8>], capacity: u32) {
    let options = options(capacity);
    agrees_with(&reference::run(lines, &options), lines, &options);
}

fn agrees_with(theirs: &[Match], lines: &[Vec<u8>], options: &Options) {
    let (ours, summary) = pipeline(lines, options);
    for (a, b) in ours.iter().zip(theirs) {
        assert_eq!(a, b, "line {}: {:?}", a.line, String::from_utf8_lossy(&lines[a.line as usize]));
    }
    assert_eq!(ours.len(), theirs.len());
    let duplicates = theirs.iter().filter(|m| m.duplicate != 0).count() as u64;
    let lines = lines.len() as u64;
    assert_eq!(summary.end, End { lines, novel: lines - duplicates, duplicates });
    assert!(summary.stats.modules.iter().all(|m| m.rejects == Rejects::default()), "{:?}", summary.stats.modules);
}

#[test]
fn sentences_agree_with_the_reference() {
    agrees(&corpus::sentences(1, 3000), 1 << 14);
}

#[test]
fn any_number_of_servers_agrees_with_the_reference() {
    let lines = corpus::sentences(12, 1500);
    let theirs = reference::run(&lines, &options(1000));
    for servers in [0, 1, 3] {
        agrees_with(&theirs, &lines, &Options { budget: BudgetArgs::of_servers(servers), ..options(1000) });
    }
}

#[test]
fn both_modes_agree_with_the_reference() {
    let lines = corpus::sentences(13, 1500);
    let theirs = reference::run(&lines, &options(1000));
    for servers in [1, 3] {
        agrees_with(
            &theirs,
            &lines,
            &Options { budget: BudgetArgs::of_servers(servers), mode: Mode::Cpu, ..options(1000) },
        );
    }
}

#[test]
fn a_memory_that_forgets_agrees_with_the_reference() {
    agrees(&corpus::sentences(2, 2000), 100);
    agrees(&corpus::sentences(3, 300), 1);
}

#[test]
fn bytes_of_any_kind_and_length_agree_with_the_reference() {
    agrees(&corpus::anything(4, 500), 1 << 10);
}

#[test]
fn a_long_line_is_compared_to_its_last_byte() {
    let long: Vec<u8> = corpus::sentences(5, 400).join(&b' ');
    let mut other = long.clone();
    other.truncate(long.len() - 1000);
    other.extend(corpus::anything(6, 3).concat().iter().take(1000));
    let lines = [long.clone(), other, long];
    agrees(&lines, 10);
    let (matches, _) = pipeline(&lines, &options(10));
    assert!(matches[1].similarity < ONE);
    assert_eq!((matches[2].of, matches[2].similarity), (0, ONE));
}

#[test]
fn nothing_in_nothing_out() {
    let (matches, summary) = pipeline(&[], &options(10));
    assert_eq!((matches.len(), summary.end), (0, End::default()));
}

#[test]
fn repeats_do_not_push_the_first_out_of_a_small_memory() {
    let mut lines = corpus::sentences(7, 8);
    let first = lines[0].clone();
    lines.extend(std::iter::repeat_n(first, 100));
    let (matches, _) = pipeline(&lines, &options(8));
    assert!(matches[8..].iter().all(|m| (m.of, m.similarity) == (0, ONE)));
}

#[test]
fn similarity_is_the_cosine() {
    let lines = corpus::sentences(8, 200);
    let all: Vec<_> = lines.iter().map(|l| reference::features(l)).collect();
    for a in &all {
        assert_eq!(reference::similarity(a, a), ONE);
        for b in &all {
            let dot = |a: &[i64], b: &[i64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<i64>() as f64;
            let cosine =
                dot(&a.vector, &b.vector) / (dot(&a.vector, &a.vector).sqrt() * dot(&b.vector, &b.vector).sqrt());
            let similarity = f64::from(reference::similarity(a, b)) / f64::from(ONE);
            assert!((similarity - cosine.max(0.0)).abs() <= 0.6 / f64::from(ONE), "{similarity} {cosine}");
        }
    }
}

/// Share of what is true that was found, and of what was found that is true.
fn recall_and_precision(truth: &[bool], matches: &[Match]) -> (f64, f64) {
    let count = |is: &dyn Fn(bool, bool) -> bool| {
        truth.iter().zip(matches).filter(|(t, m)| is(**t, m.duplicate != 0)).count() as f64
    };
    let right = count(&|t, m| t && m);
    (right / count(&|t, _| t), right / count(&|_, m| m))
}

/// "Is there an earlier line this similar", by comparing all pairs, is the truth: once of the vectors that the sidecar
/// compares, once of the n-grams themselves.
#[test]
fn recall_and_precision_against_brute_force() {
    let lines = corpus::sentences(9, 4000);
    let (matches, _) = pipeline(&lines, &options(1 << 14));
    let features: Vec<_> = lines.iter().map(|l| reference::features(l)).collect();
    let counts: Vec<_> = lines.iter().map(|l| reference::counts(l)).collect();
    let any = |similar: &dyn Fn(usize, usize) -> bool| -> Vec<bool> {
        (0..lines.len()).map(|i| (0..i).any(|j| similar(i, j))).collect()
    };
    let by_vector = any(&|i, j| reference::similarity(&features[i], &features[j]) >= THRESHOLD);
    let by_gram = any(&|i, j| reference::cosine(&counts[i], &counts[j]) >= f64::from(THRESHOLD) / f64::from(ONE));
    for (what, truth) in [("vectors", by_vector), ("n-grams", by_gram)] {
        let (recall, precision) = recall_and_precision(&truth, &matches);
        let repeats = truth.iter().filter(|t| **t).count();
        println!("against all pairs of {what}: recall {recall:.4}, precision {precision:.4}, {repeats} repeats");
        assert!(repeats > 500, "the corpus has its planted lines");
        assert!(recall >= 0.95 && precision >= 0.95, "{what}: recall {recall}, precision {precision}");
    }
}

/// The same of a sample of the second half of a million lines.
#[test]
#[ignore = "a minute in a release build; for the figures in docs/near-duplicates.md"]
fn recall_and_precision_at_a_million_lines() {
    let lines = corpus::sentences(11, 1_000_000);
    let (matches, summary) = pipeline(&lines, &options(1 << 20));
    let sample: Vec<usize> = (0..1000).map(|i| 500_000 + 499 * i).collect();
    let mut holders: HashMap<u32, Vec<(usize, f64)>> = HashMap::new();
    for (k, i) in sample.iter().enumerate() {
        reference::counts(&lines[*i]).into_iter().for_each(|(g, n)| holders.entry(g).or_default().push((k, n)));
    }
    let mut truth = vec![false; sample.len()];
    for (i, line) in lines.iter().enumerate() {
        let mut cosines = vec![0.0; sample.len()];
        for (gram, n) in reference::counts(line) {
            holders.get(&gram).into_iter().flatten().for_each(|(k, m)| cosines[*k] += n * m);
        }
        let similar = |k: usize| i < sample[k] && cosines[k] * f64::from(ONE) >= f64::from(THRESHOLD);
        (0..sample.len()).for_each(|k| truth[k] |= similar(k));
    }
    let sampled: Vec<Match> = sample.iter().map(|i| matches[*i]).collect();
    let (recall, precision) = recall_and_precision(&truth, &sampled);
    let candidates = sampled.iter().map(|m| f64::from(m.candidates)).sum::<f64>() / sampled.len() as f64;
    println!("recall {recall:.4}, precision {precision:.4}, {candidates:.1} candidates a line, {:?}", summary.elapsed);
    assert!(recall >= 0.95 && precision >= 0.95);
}

#[test]
fn a_sink_that_has_enough_ends_the_input() {
    let lines = corpus::sentences(10, 100);
    let read = |post: &mut OnItem<'_>| {
        let endless = (0..).zip(lines.iter().cycle());
        for (n, line) in endless {
            if !post(Item::Line(n, line))? {
                break;
            }
        }
        Ok(())
    };
    let mut sink = Keep(Vec::new(), 50);
    find(&Device::twin(), &options(100), None, &Shared::default(), read, &mut sink).unwrap();
    assert!(sink.0.len() >= 50);
}

#[test]
fn an_error_or_a_panic_of_the_reader_ends_the_run() {
    let find = |fail: fn() -> Result<(), Error>| {
        let mut sink = Keep(Vec::new(), usize::MAX);
        find(&Device::twin(), &options(10), None, &Shared::default(), move |_| fail(), &mut sink)
            .unwrap_err()
            .to_string()
    };
    assert!(find(|| Err(Error::Failed("no more".into()))).contains("no more"));
    assert!(find(|| panic!("planted")).contains("panicked"));
}

#[test]
fn records_that_cannot_be_are_counted_and_dropped_and_the_others_go_on() {
    let Graph { mut runtime, mut lines, mut results, .. } = build(&Device::twin(), &options(10), None).unwrap();
    runtime.start().unwrap();
    let part = |line: u64, total: u32, offset: u32, text: &[u8]| {
        [bytemuck::bytes_of(&Line { line, total, offset }), text].concat()
    };
    let content = [
        part(0, 4, 1, b"abc"), // does not begin at the beginning
        part(0, 2, 0, b"abc"), // more bytes than the whole
        part(0, 0, 0, b""),    // no bytes at all
        part(0, u32::MAX, u32::MAX, b"abc"),
    ];
    content.iter().for_each(|bytes| lines.push(LINE, bytes, BOUND).unwrap());
    lines.push(LINE, &[0; 15], BOUND).unwrap();
    lines.push(END, &[0; 23], BOUND).unwrap();
    lines.push(RESULT, &[0; 40], BOUND).unwrap();
    lines.push(0xFFFF, b"", BOUND).unwrap();
    // A line whose second part never comes, and one that is whole.
    lines.push(LINE, &part(1, 300, 0, &[b'x'; 200]), BOUND).unwrap();
    lines.push(LINE, &part(2, 300, 200, &[b'x'; 100]), BOUND).unwrap();
    lines.push(LINE, &part(3, 5, 0, b"hello"), BOUND).unwrap();
    lines.push(END, bytemuck::bytes_of(&End { lines: 1, ..End::default() }), BOUND).unwrap();

    let mut buffer = [0; 64];
    let record = results.pop(&mut buffer, BOUND).unwrap();
    assert_eq!(record.msg_type, RESULT);
    assert_eq!(bytemuck::pod_read_unaligned::<Match>(&buffer[..record.len]).line, 3);
    let record = results.pop(&mut buffer, BOUND).unwrap();
    assert_eq!(record.msg_type, END);
    assert_eq!(bytemuck::pod_read_unaligned::<End>(&buffer[..record.len]), End { lines: 1, novel: 1, duplicates: 0 });
    runtime.stop(BOUND).unwrap();
    let stats = runtime.stats();
    let encoder = stats.modules.iter().find(|m| m.name == "encoder").unwrap();
    assert_eq!(encoder.rejects, Rejects { length: 2, msg_type: 2, content: 5, no_progress: 0, lease: 0 });
}
