//! Generated text: the same in every run.

/// A small generator (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Words of syllables; the first are used most.
fn vocabulary(random: &mut Random) -> Vec<String> {
    const SYLLABLES: [&str; 24] = [
        "ka", "lo", "mi", "ter", "an", "su", "re", "vi", "no", "est", "ing", "ble", "tra", "or", "pen", "da", "qui",
        "sh", "ell", "um", "wick", "ous", "gra", "fe",
    ];
    (0..4000).map(|_| (0..1 + random.below(4)).map(|_| SYLLABLES[random.below(24)]).collect()).collect()
}

fn sentence(random: &mut Random, words: &[String]) -> Vec<u8> {
    let mut word = || {
        let limit = 1 + random.below(words.len());
        words[random.below(limit)].clone()
    };
    let n = 5 + word().len() % 9;
    (0..n).map(|_| word()).collect::<Vec<_>>().join(" ").into_bytes()
}

/// The line as somebody else would have written it: up to six small changes, perhaps none.
fn nearly(random: &mut Random, line: &[u8], words: &[String]) -> Vec<u8> {
    let mut line = line.to_vec();
    for _ in 0..random.below(7) {
        let at = random.below(line.len());
        let letter = b'a' + random.below(26) as u8;
        match random.below(7) {
            0 | 1 => line[at] = letter,
            2 => line.insert(at, letter),
            3 if line.len() > 1 => drop(line.remove(at)),
            4 => line[at].make_ascii_uppercase(),
            5 => drop(line.splice(at..at, *b" \t")),
            _ => line.extend(words[random.below(words.len())].bytes().take(2)),
        }
    }
    line
}

/// Sentences of which every fourth nearly repeats an earlier one.
pub(super) fn sentences(seed: u64, n: usize) -> Vec<Vec<u8>> {
    let mut random = Random(seed);
    let words = vocabulary(&mut random);
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for i in 0..n {
        let line = if i % 4 == 3 {
            let of = lines[random.below(lines.len())].clone();
            nearly(&mut random, &of, &words)
        } else {
            sentence(&mut random, &words)
        };
        lines.push(line);
    }
    lines
}

/// Bytes of any kind: very short, around one and two parts of a line, far beyond; with much white space, of few letters, of
/// every value.
pub(super) fn anything(seed: u64, n: usize) -> Vec<Vec<u8>> {
    const ALPHABETS: [&[u8]; 3] = [b"aB \t", b"ab", b"abcdefghijklmnopqrstuvwxyz     "];
    let mut random = Random(seed);
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for _ in 0..n {
        let len = match random.below(4) {
            0 => 1 + random.below(5),
            1 => 225 + random.below(15),
            2 => 458 + random.below(12),
            _ => 1 + random.below(3000),
        };
        let byte = |random: &mut Random, kind: usize| match ALPHABETS.get(kind) {
            Some(letters) => letters[random.below(letters.len())],
            None => random.below(256) as u8,
        };
        let kind = random.below(4);
        lines.push((0..len).map(|_| byte(&mut random, kind)).collect());
        if random.below(3) == 0 {
            lines.push(lines[random.below(lines.len())].to_ascii_uppercase());
        }
    }
    lines
}
