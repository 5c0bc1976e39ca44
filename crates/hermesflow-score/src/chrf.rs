//! chrF++ (Popović 2017), a similarity of texts by their spelling: the mean F₂ over character n-grams of lengths 1 to 6
//! and word n-grams of lengths 1 and 2.

use std::collections::HashMap;
use std::hash::Hash;

/// The length of the longest word n-grams.
const WORDS: usize = 2;
/// The length of the longest character n-grams.
const CHARACTERS: usize = 6;
/// Recall counts β times as much as precision.
const BETA: f64 = 2.0;

/// The chrF++ of a candidate against a true text, from 0 to 1; case and punctuation are ignored.
pub fn chrf(truth: &str, candidate: &str) -> f64 {
    chrf_of(&words(truth), &words(candidate))
}

pub(crate) fn chrf_of(truth: &[String], candidate: &[String]) -> f64 {
    let letters = |words: &[String]| words.concat().chars().collect::<Vec<char>>();
    let (truth_letters, candidate_letters) = (letters(truth), letters(candidate));
    let characters = (1..=CHARACTERS)
        .filter_map(|n| Overlap::new(truth_letters.windows(n), candidate_letters.windows(n)))
        .collect::<Vec<_>>();
    let words = (1..=WORDS).filter_map(|n| Overlap::new(truth.windows(n), candidate.windows(n)));
    let scores: Vec<f64> = characters.into_iter().chain(words).map(|overlap| overlap.f(BETA)).collect();
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

/// The words and numbers of a text, in lower case.
pub fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The overlap of two lists; an entry counts as often as it occurs in both.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Overlap {
    /// The share of the candidate's entries that are in both.
    pub precision: f64,
    /// The share of the true list's entries that are in both.
    pub recall: f64,
}

impl Overlap {
    /// The overlap of two lists; `None` if both are empty.
    pub fn new<T: Hash + Eq>(
        truth: impl IntoIterator<Item = T>,
        candidate: impl IntoIterator<Item = T>,
    ) -> Option<Self> {
        let mut left: HashMap<T, usize> = HashMap::new();
        let (mut truth_count, mut candidate_count, mut common) = (0usize, 0usize, 0usize);
        for entry in truth {
            *left.entry(entry).or_default() += 1;
            truth_count += 1;
        }
        for entry in candidate {
            candidate_count += 1;
            if let Some(count) = left.get_mut(&entry).filter(|count| **count > 0) {
                *count -= 1;
                common += 1;
            }
        }
        let share = |of: usize| common as f64 / of.max(1) as f64;
        (truth_count + candidate_count > 0)
            .then(|| Self { precision: share(candidate_count), recall: share(truth_count) })
    }

    /// The F_β score.
    pub fn f(self, beta: f64) -> f64 {
        let Self { precision, recall } = self;
        let sum = beta * beta * precision + recall;
        if sum == 0.0 { 0.0 } else { (1.0 + beta * beta) * precision * recall / sum }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn f_by_hand() {
        let letters = |text: &str| text.chars().collect::<Vec<_>>();
        let overlap = |truth: &str, candidate: &str, n| {
            Overlap::new(
                letters(truth).windows(n).map(<[char]>::to_vec),
                letters(candidate).windows(n).map(<[char]>::to_vec),
            )
        };
        assert_eq!(overlap("abc", "abd", 2), Some(Overlap { precision: 0.5, recall: 0.5 }));
        let longer = overlap("ab", "abab", 1).unwrap();
        assert_eq!(longer, Overlap { precision: 0.5, recall: 1.0 });
        assert!((longer.f(2.0) - 5.0 / 6.0).abs() < 1e-12, "5·½·1 / (4·½ + 1)");
        assert_eq!(overlap("a", "b", 2), None);
        assert_eq!(chrf("A red circle.", "a red circle"), 1.0);
        assert_eq!(chrf("a", ""), 0.0);
        assert_eq!(chrf("", ""), 0.0);
        // "ab" and "ac": letters ½, pairs of letters 0, words 0.
        assert!((chrf("ab", "ac") - 0.5 / 3.0).abs() < 1e-12);
    }
}
