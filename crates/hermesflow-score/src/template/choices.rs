//! Wrong choices and the order of choices; both follow from the caption and the question alone.

use super::lexicon::{Lexicon, Noun};

/// Numbers that follow from a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draws(u64);

impl Draws {
    /// The numbers of a caption and a question (FNV-1a).
    pub fn of(caption: &str, question: &str) -> Self {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let bytes = caption.bytes().chain([0]).chain(question.bytes());
        Self(bytes.fold(0xcbf2_9ce4_8422_2325, step))
    }

    /// The next number, at least 0 and below `bound` (SplitMix64).
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }

    /// A list in another order.
    pub fn shuffled<T>(&mut self, mut list: Vec<T>) -> Vec<T> {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at + 1));
        }
        list
    }
}

/// The nouns and words that a caption mentions, which must not be wrong choices.
#[derive(Debug, Clone, Default)]
pub(super) struct Mentioned {
    words: Vec<String>,
    lines: Vec<usize>,
}

impl Mentioned {
    /// What these words name, singly and in twos and threes.
    pub fn of(words: &[&str]) -> Self {
        let lexicon = Lexicon::get();
        let mut lines = Vec::new();
        for length in 1..=3 {
            lines
                .extend(words.windows(length).filter_map(|words| lexicon.noun(&words.join(" "))).map(|noun| noun.line));
        }
        Self { words: words.iter().map(|word| (*word).to_string()).collect(), lines }
    }

    /// Whether a noun, or one that may name the same thing, is mentioned.
    pub fn noun(&self, noun: &Noun) -> bool {
        self.lines.contains(&noun.line) || self.word(noun.lemma)
    }

    /// Whether any word of a text is mentioned, in any form with the same beginning.
    pub fn word(&self, text: &str) -> bool {
        let stem = |word: &str| word.trim_end_matches('s').trim_end_matches("ing").to_string();
        text.split(' ').filter(|word| word.len() > 2 && *word != "the").any(|word| {
            let wanted = stem(word);
            self.words.iter().any(|there| stem(there) == wanted)
        })
    }
}
