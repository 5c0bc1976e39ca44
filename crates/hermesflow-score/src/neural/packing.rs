//! Sentences packed one after another, sorted by length so that equal lengths are neighbours; nothing is padded.

use std::ops::Range;

use hermesflow_nn::ops::Segment;

/// The largest number of tokens of a pass.
const MOST_TOKENS: usize = 4096;

/// The places of the sentences of one pass.
#[derive(Debug, Clone)]
pub(super) struct Packing {
    /// The indices of the sentences, in the order in which they are packed.
    pub order: Vec<usize>,
    /// The rows of each packed sentence.
    pub rows: Vec<Range<usize>>,
}

impl Packing {
    /// The passes over sentences of these lengths.
    pub fn passes(lengths: &[usize]) -> Vec<Self> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|sentence| lengths[*sentence]);
        let mut passes: Vec<Self> = Vec::new();
        for sentence in order {
            let length = lengths[sentence];
            if passes.last().is_none_or(|pass| pass.tokens() + length > MOST_TOKENS) {
                passes.push(Self { order: Vec::new(), rows: Vec::new() });
            }
            if let Some(pass) = passes.last_mut() {
                let start = pass.tokens();
                pass.order.push(sentence);
                pass.rows.push(start..start + length);
            }
        }
        passes
    }

    /// The number of tokens of the pass.
    pub fn tokens(&self) -> usize {
        self.rows.last().map_or(0, |rows| rows.end)
    }

    /// The tokens of all sentences in packed order.
    pub fn packed<'a, T: Copy + 'a>(&self, sentence: impl Fn(usize) -> &'a [T]) -> Vec<T> {
        self.order.iter().flat_map(|number| sentence(*number).iter().copied()).collect()
    }

    /// One segment per sentence, which attends to itself.
    pub fn segments(&self) -> Vec<Segment> {
        self.rows.iter().map(|rows| Segment::block(rows.clone(), rows.clone())).collect()
    }

    /// The runs of sentences of equal length: first row, number of sentences, length.
    pub fn runs(&self) -> Vec<(usize, usize, usize)> {
        let mut runs: Vec<(usize, usize, usize)> = Vec::new();
        for rows in &self.rows {
            match runs.last_mut() {
                Some((_, count, length)) if *length == rows.len() => *count += 1,
                _ => runs.push((rows.start, 1, rows.len())),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_once_and_equal_lengths_together() {
        let lengths = [3, 5, 3, 4000, 90, 7];
        let passes = Packing::passes(&lengths);
        assert_eq!(passes.len(), 2);
        assert_eq!(passes[0].order, [0, 2, 1, 5, 4]);
        assert_eq!(passes[0].runs(), [(0, 2, 3), (6, 1, 5), (11, 1, 7), (18, 1, 90)]);
        assert_eq!((passes[1].order.as_slice(), passes[1].tokens()), (&[3][..], 4000));
        assert!(Packing::passes(&[]).is_empty());
    }
}
