//! docs/near-duplicates.md once more, without lanes, records or parts: what the pipeline must agree with.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::super::graph::Options;
use super::super::records::{BANDS, BUCKET, DIMS, Match, ONE, ROWS};

fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7FEB_352D);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

/// The text that is compared.
fn folded(line: &[u8]) -> Vec<u8> {
    let words = line.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
    words.collect::<Vec<_>>().join(&b' ').to_ascii_lowercase()
}

/// N-grams as numbers, not hashed.
fn grams(line: &[u8]) -> Vec<u32> {
    let text = folded(line);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |w, b| w << 8 | u32::from(*b));
    if text.len() < 3 {
        return vec![word(&text) | (text.len() as u32) << 24];
    }
    text.windows(3).map(word).collect()
}

/// 2^16 times the square root.
fn length(square: u64) -> u64 {
    if square >> 32 == 0 { (square << 32).isqrt() } else { square.isqrt() << 16 }
}

/// What is remembered of a line.
#[derive(Clone)]
pub(super) struct Features {
    pub(super) vector: Vec<i64>,
    inverse: u64,
    keys: Vec<u32>,
}

pub(super) fn features(line: &[u8]) -> Features {
    let hashes: Vec<u32> = grams(line).into_iter().map(mix).collect();
    let mut bins = vec![0i64; DIMS];
    for h in &hashes {
        bins[*h as usize % DIMS] += if h >> 31 == 1 { -1 } else { 1 };
    }
    if bins.iter().all(|b| *b == 0) {
        bins[0] = 1;
    }
    let scale = (127 << 48) / length(bins.iter().map(|b| (b * b) as u64).sum());
    let scaled = |b: &i64| ((b.unsigned_abs() * scale + (1 << 31)) >> 32) as i64 * b.signum();
    let vector: Vec<i64> = bins.iter().map(scaled).collect();
    let own = length(vector.iter().map(|v| (v * v) as u64).sum());
    let minimum = |k: u32| {
        let (a, b) = (mix(2 * k + 1) | 1, mix(2 * k + 2));
        hashes.iter().map(|h| h.wrapping_mul(a).wrapping_add(b)).min().unwrap_or(u32::MAX)
    };
    let rows = ROWS as u32;
    let key = |band: u32| (0..rows).fold(band + 1, |key, r| mix(key ^ minimum(band * rows + r)).wrapping_add(r));
    let keys = (0..BANDS as u32).map(key).collect();
    Features { vector, inverse: ((1 << 40) + own / 2) / own, keys }
}

pub(super) fn similarity(a: &Features, b: &Features) -> u32 {
    let dot: i64 = a.vector.iter().zip(&b.vector).map(|(a, b)| a * b).sum();
    let product = dot.max(0) as u128 * u128::from(a.inverse) * u128::from(b.inverse) * u128::from(ONE);
    ((product + (1 << 47)) >> 48).min(u128::from(ONE)) as u32
}

/// Every n-gram with how often it occurs, divided so that the squares add up to 1; in the order of n-grams.
pub(super) fn counts(line: &[u8]) -> Vec<(u32, f64)> {
    let mut grams = grams(line);
    grams.sort_unstable();
    let counts: Vec<_> = grams.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as f64)).collect();
    let length = counts.iter().map(|(_, n)| n * n).sum::<f64>().sqrt();
    counts.into_iter().map(|(gram, n)| (gram, n / length)).collect()
}

/// The cosine that all of this is about: of the counts of n-grams, neither hashed nor rounded.
pub(super) fn cosine(a: &[(u32, f64)], b: &[(u32, f64)]) -> f64 {
    let (mut i, mut j, mut dot) = (0, 0, 0.0);
    while i < a.len() && j < b.len() {
        match a[i].0.cmp(&b[j].0) {
            Ordering::Less => i += 1,
            Ordering::Greater => j += 1,
            Ordering::Equal => {
                dot += a[i].1 * b[j].1;
                (i, j) = (i + 1, j + 1);
            }
        }
    }
    dot
}

/// The whole pipeline, every line emitted.
pub(super) fn run(lines: &[Vec<u8>], options: &Options) -> Vec<Match> {
    let place = |band: usize, key: u32| (band, key & (options.bucket_count() - 1));
    let mut index: HashMap<(usize, u32), Vec<(u32, usize)>> = HashMap::new();
    let mut memory: Vec<(Features, u64)> = Vec::new();
    let (mut matches, mut remembered) = (Vec::new(), 0);
    for (line, text) in (0..).zip(lines) {
        let f = features(text);
        let mut found = Vec::new();
        for (band, key) in f.keys.iter().enumerate() {
            let bucket = index.get(&place(band, *key)).into_iter().flatten();
            found.extend(bucket.filter(|(k, _)| k == key).map(|(_, entry)| *entry));
        }
        found.sort_unstable();
        found.dedup();
        let best = found.iter().map(|e| (similarity(&f, &memory[*e].0), memory[*e].1));
        let best = best.max_by_key(|(s, line)| (*s, u64::MAX - line));
        let (similarity, of) = best.unwrap_or((0, u64::MAX));
        let duplicate = u32::from(of != u64::MAX && similarity >= options.threshold);
        matches.push(Match { line, of, similarity, candidates: found.len() as u32, duplicate, reserved: 0 });
        if similarity == ONE {
            continue;
        }
        let entry = remembered % options.capacity as usize;
        remembered += 1;
        for (band, key) in f.keys.iter().enumerate() {
            let bucket = index.entry(place(band, *key)).or_default();
            bucket.insert(0, (*key, entry));
            bucket.truncate(BUCKET);
        }
        if entry == memory.len() {
            memory.push((f, line));
        } else {
            memory[entry] = (f, line);
        }
    }
    matches
}
