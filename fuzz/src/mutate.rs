//! What is changed in a file: bits, bytes, numbers, lengths, words, lines; often several at once.

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers that a case draws.
#[derive(Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The numbers of a campaign's case: its seed, and the case's number.
    pub fn new(seed: u64, case: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(case);
        Self(random)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end.max(1))
    }

    /// One of some.
    pub fn of<'a, T>(&mut self, some: &'a [T]) -> &'a T {
        &some[self.below(some.len())]
    }
}

/// Numbers at which programs fail.
const NUMBERS: [u64; 18] = [
    0,
    1,
    2,
    7,
    0x7f,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// Words at which programs fail.
const WORDS: [&str; 34] = [
    "0",
    "-1",
    "1e400",
    "-1e39",
    "1e-60",
    "0.5",
    "NaN",
    ".inf",
    "Infinity",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[[[[[[[[",
    "4294967296",
    "2147483648",
    "9223372036854775807",
    "18446744073709551615",
    "1000000000000000000",
    "99999999999999999999999",
    "${a}",
    "${${a}}",
    "&a *a",
    "<|soi|>",
    "../../x",
    "/",
    "\u{feff}",
    "\u{0}",
    "\n",
    "\\",
    "\"",
    "'",
    ": ",
];

/// A file with one change, or up to four; `other` is another one of its kind.
pub fn mutated(file: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = file.to_vec();
    let is_text = std::str::from_utf8(file).is_ok();
    let changes = if random.below(2) == 0 { 1 } else { 1 + random.below(4) };
    for _ in 0..changes {
        if is_text && random.below(6) > 0 { word(&mut bytes, random) } else { change(&mut bytes, other, random) }
    }
    bytes
}

/// One change of bytes.
fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    // Headers are where the numbers are.
    let near = if random.below(2) == 0 { bytes.len().min(512) } else { bytes.len() };
    let at = random.below(near);
    let longest = if random.below(4) == 0 { bytes.len() / 2 } else { 16 };
    let run = 1 + random.below(longest);
    let end = (at + run).min(bytes.len());
    match random.below(10) {
        _ if bytes.is_empty() => bytes.extend(&other[..other.len().min(run)]),
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 | 3 => {
            let size = *random.of(&[1usize, 2, 4, 8]);
            let number = if random.below(4) == 0 { random.next() } else { *random.of(&NUMBERS) };
            let number = if random.below(2) == 0 {
                number.to_le_bytes()
            } else {
                number.rotate_right(8 * size as u32).to_be_bytes()
            };
            let number = if random.below(8) == 0 { (bytes.len() as u64).to_le_bytes() } else { number };
            let size = size.min(bytes.len() - at);
            bytes[at..at + size].copy_from_slice(&number[..size]);
        }
        4 => drop(bytes.drain(at..end)),
        5 => {
            let copy = bytes[at..end].to_vec();
            bytes.splice(at..at, copy);
        }
        6 => bytes.truncate(at),
        7 => {
            let from = random.below(other.len());
            let to = (from + run).min(other.len());
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        8 => bytes[at..end].fill(*random.of(&[0, 0xff, b' ', b'(', b'[', b'{'])),
        _ => {
            let extra: Vec<u8> = (0..run.min(64)).map(|_| random.next() as u8).collect();
            bytes.splice(at..at, extra);
        }
    }
}

/// One change of a text: a word or number becomes another, comes twice, or goes.
fn word(bytes: &mut Vec<u8>, random: &mut Random) {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-+".contains(byte);
    let from = random.below(bytes.len());
    let start = bytes[from..].iter().position(is_part).map_or(bytes.len(), |skip| from + skip);
    let end = bytes[start..].iter().position(|byte| !is_part(byte)).map_or(bytes.len(), |length| start + length);
    match random.below(8) {
        0 => drop(bytes.drain(start..end)),
        1 => {
            // A piece of the text again, many times.
            let piece = bytes[start..(end + random.below(40)).min(bytes.len())].to_vec();
            let times = *random.of(&[2, 10, 300]);
            bytes.splice(start..start, piece.repeat(times));
        }
        2 => {
            let opened = *random.of(&["[", "{\"a\":", "(", "${", "- ", "  "]);
            bytes.splice(start..start, opened.repeat(*random.of(&[1, 200, 5000])).into_bytes());
        }
        _ => drop(bytes.splice(start..end, random.of(&WORDS).bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_file_and_another_seed_another() {
        let file = b"{\"id\": 1, \"caption\": \"a red circle\"}".repeat(3);
        let of = |seed| mutated(&file, &file[5..], &mut Random::new(seed, 0));
        let all: std::collections::HashSet<Vec<u8>> = (0..500).map(of).collect();
        assert!(all.len() > 400, "{}", all.len());
        assert_eq!(of(7), of(7));
        // Nothing is too small to be changed.
        (0..2000).for_each(|seed| drop(mutated(&file[..seed as usize % 3], &file, &mut Random::new(seed, 0))));
        (0..200).for_each(|seed| drop(mutated(b"", b"", &mut Random::new(seed, 0))));
    }
}
