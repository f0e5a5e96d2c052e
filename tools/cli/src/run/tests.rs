//! The pipeline against a scalar reference of the same definition, and against exact brute force.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::collections::HashMap;

use warpmail::Device;

use super::pipeline::{Options, Shared, Summary, find};
use super::records::{BANDS, BUCKET, DIMS, Match, ONE};

/// A small generator, so that every run tests the same text.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// The definition in handlers/features.hpp, written again without lanes, records or parts.
mod reference {
    use super::{BANDS, BUCKET, DIMS, HashMap, Match, ONE};

    fn mix(mut x: u32) -> u32 {
        x = x.wrapping_mul(0x9E37_79B1);
        x ^= x >> 15;
        x = x.wrapping_mul(0x2C1B_3C6D);
        x ^ (x >> 12)
    }

    fn grams(line: &[u8]) -> Vec<u32> {
        let text = line.to_ascii_lowercase();
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |w, b| w << 8 | u32::from(*b));
        match text.len() {
            n @ 1..3 => vec![mix(word(&text) | (n as u32) << 24)],
            _ => text.windows(3).map(|w| mix(word(w))).collect(),
        }
    }

    pub(super) fn vector(line: &[u8]) -> Vec<i64> {
        let mut bins = vec![0i64; DIMS];
        for h in grams(line) {
            bins[h as usize % DIMS] += if h >> 31 == 1 { -1 } else { 1 };
        }
        let square: i64 = bins.iter().map(|b| b * b).sum();
        let length = ((square as u64 * 65536) as f64).sqrt() as i64;
        let length = (length - 1..=length + 1).rev().find(|l| l * l <= square * 65536).unwrap_or(0).max(1);
        bins.iter().map(|b| b * 4096 * 256 / length).collect()
    }

    pub(super) fn keys(line: &[u8]) -> Vec<u32> {
        let grams = grams(line);
        let minimum = |k: u32| {
            let (a, b) = (mix(2 * k + 1) | 1, mix(2 * k + 2));
            grams.iter().map(|h| h.wrapping_mul(a).wrapping_add(b)).min().unwrap_or(u32::MAX)
        };
        let key = |band: u32| (0..3).fold(band + 1, |key, r| mix(key ^ minimum(band * 3 + r)).wrapping_add(r));
        (0..BANDS as u32).map(key).collect()
    }

    pub(super) fn similarity(a: &[i64], b: &[i64]) -> u32 {
        let dot: i64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
        (dot * i64::from(ONE) / (4096 * 4096)).clamp(0, i64::from(ONE)) as u32
    }

    /// The whole pipeline.
    pub(super) fn run(lines: &[Vec<u8>], options: &super::Options) -> Vec<Match> {
        let buckets = u64::from((options.capacity / 2).next_power_of_two().max(64));
        let mut index: HashMap<(usize, u64), Vec<(u32, usize)>> = HashMap::new();
        let mut memory: Vec<(Vec<i64>, u64)> = Vec::new();
        let mut matches = Vec::new();
        for (n, line) in lines.iter().enumerate() {
            let (vector, keys) = (vector(line), keys(line));
            let place = |b: usize| (b, u64::from(keys[b]) & (buckets - 1));
            let mut seen = Vec::new();
            for (b, key) in keys.iter().enumerate() {
                for (k, entry) in index.get(&place(b)).into_iter().flatten() {
                    if k == key && !seen.contains(entry) {
                        seen.push(*entry);
                    }
                }
            }
            let best = seen.iter().map(|e| (similarity(&vector, &memory[*e].0), memory[*e].1));
            let best = best.max_by_key(|(s, line)| (*s, u64::MAX - line));
            let entry = n % options.capacity as usize;
            if entry == memory.len() {
                memory.push((vector, n as u64));
            } else {
                memory[entry] = (vector, n as u64);
            }
            for (b, key) in keys.iter().enumerate() {
                let bucket = index.entry(place(b)).or_default();
                bucket.insert(0, (*key, entry));
                bucket.truncate(BUCKET);
            }
            let (similarity, of) = best.unwrap_or((0, u64::MAX));
            let duplicate = u32::from(of != u64::MAX && similarity >= options.threshold);
            let candidates = seen.len() as u32;
            matches.push(Match { line: n as u64, of, similarity, candidates, duplicate, reserved: 0 });
        }
        matches
    }
}

fn pipeline(lines: &[Vec<u8>], options: &Options) -> (Vec<Match>, Summary) {
    let mut matches = Vec::new();
    let read = |post: &mut dyn FnMut(super::pipeline::InputLine<'_>) -> Result<bool, warpmail::Error>| {
        for (n, line) in lines.iter().enumerate() {
            post((n as u64, line))?;
        }
        Ok(())
    };
    let summary = find(&Device::twin(), options, &Shared::default(), read, |m| matches.push(*m), || ()).unwrap();
    (matches, summary)
}

fn check(lines: &[Vec<u8>], capacity: u32) {
    let options = Options { threshold: 8500, emit_all: true, capacity };
    let (ours, summary) = pipeline(lines, &options);
    let theirs = reference::run(lines, &options);
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!(a, b, "line {}: {:?}", a.line, String::from_utf8_lossy(&lines[a.line as usize]));
    }
    assert_eq!(ours.len(), theirs.len());
    let duplicates = theirs.iter().filter(|m| m.duplicate != 0).count() as u64;
    assert_eq!((summary.end.lines, summary.end.duplicates), (lines.len() as u64, duplicates));
    assert_eq!(summary.end.novel + duplicates, lines.len() as u64);
    assert!(summary.stats.modules.iter().all(|m| m.rejects.dropped() == 0), "{:?}", summary.stats.modules);
}

fn sentence(random: &mut Random, words: &[String]) -> Vec<u8> {
    let n = 7 + random.below(9);
    (0..n).map(|_| words[random.below(words.len())].as_str()).collect::<Vec<_>>().join(" ").into_bytes()
}

fn vocabulary(random: &mut Random, size: usize) -> Vec<String> {
    (0..size).map(|_| (0..2 + random.below(8)).map(|_| char::from(b'a' + random.below(26) as u8)).collect()).collect()
}

/// A line with a few bytes changed, or a word dropped or exchanged.
fn nearly(random: &mut Random, line: &[u8], words: &[String]) -> Vec<u8> {
    let mut line = line.to_vec();
    match random.below(3) {
        0 => {
            for _ in 0..1 + random.below(2) {
                let at = random.below(line.len());
                line[at] = b'a' + random.below(26) as u8;
            }
        }
        1 => line.extend_from_slice(b" ok"),
        _ => {
            let mut parts: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
            let at = random.below(parts.len());
            parts[at] = words[random.below(words.len())].as_bytes();
            line = parts.join(&b' ');
        }
    }
    line
}

/// Sentences of which every fourth nearly repeats an earlier one.
fn corpus(seed: u64, n: usize) -> Vec<Vec<u8>> {
    let mut random = Random(seed);
    let words = vocabulary(&mut random, 3000);
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for i in 0..n {
        let line = if i % 4 == 3 {
            let of = random.below(lines.len());
            let of = lines[of].clone();
            nearly(&mut random, &of, &words)
        } else {
            sentence(&mut random, &words)
        };
        lines.push(line);
    }
    lines
}

#[test]
fn sentences_agree_with_the_reference() {
    check(&corpus(1, 3000), 1 << 14);
}

#[test]
fn a_full_memory_agrees_with_the_reference() {
    check(&corpus(2, 1500), 100);
}

#[test]
fn bytes_of_any_kind_and_length_agree_with_the_reference() {
    let mut random = Random(3);
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for _ in 0..400 {
        // Around the part size, far beyond it, and very short; every byte value.
        let n = match random.below(4) {
            0 => 1 + random.below(4),
            1 => 228 + random.below(10),
            2 => 460 + random.below(10),
            _ => 1 + random.below(3000),
        };
        let span = [2, 26, 256][random.below(3)];
        lines.push((0..n).map(|_| random.below(span) as u8).collect());
        if random.below(3) == 0 {
            lines.push(lines[random.below(lines.len())].to_ascii_uppercase());
        }
    }
    check(&lines, 1 << 10);
}

#[test]
fn nothing_in_nothing_out() {
    let (matches, summary) = pipeline(&[], &Options { threshold: 8500, emit_all: true, capacity: 10 });
    assert!(matches.is_empty());
    assert_eq!(summary.end.lines, 0);
}

/// "Is there an earlier line with this cosine", by comparing all pairs, is the truth.
#[test]
fn recall_and_precision_against_brute_force() {
    let lines = corpus(4, 6000);
    let options = Options { threshold: 8500, emit_all: true, capacity: 1 << 14 };
    let (matches, _) = pipeline(&lines, &options);
    let vectors: Vec<Vec<i64>> = lines.iter().map(|l| reference::vector(l)).collect();
    let (mut right, mut missed, mut wrong) = (0u32, 0u32, 0u32);
    for (n, m) in matches.iter().enumerate() {
        let truth = vectors[..n].iter().any(|v| reference::similarity(&vectors[n], v) >= options.threshold);
        match (truth, m.duplicate != 0) {
            (true, true) => right += 1,
            (true, false) => missed += 1,
            (false, true) => wrong += 1,
            (false, false) => {}
        }
    }
    let recall = f64::from(right) / f64::from(right + missed);
    let precision = f64::from(right) / f64::from(right + wrong);
    println!("recall {recall:.4}, precision {precision:.4}: {right} found, {missed} missed, {wrong} wrong");
    assert!(right > 1000, "the corpus has its planted lines");
    assert!(recall >= 0.95 && precision >= 0.95, "recall {recall}, precision {precision}");
}
