//! Segments cut into blocks of work.

use std::ops::Range;

use super::segment::Segment;
use crate::simd::LANES;

/// Most queries of a block: its scores stay in the cache, and a causal block computes few scores that it then hides.
pub(super) const BLOCK: usize = 32;

/// Some consecutive queries of a segment with the keys that the last of them sees.
pub(super) struct Block {
    /// The first query.
    pub(super) query: usize,
    /// The number of queries.
    pub(super) rows: usize,
    /// The keys.
    ranges: Vec<Range<usize>>,
    /// Total length of the ranges.
    pub(super) keys: usize,
    /// Whether query `i` of the block sees only the first `keys - (rows - 1 - i)` keys.
    causal: bool,
}

impl Block {
    /// The blocks of all segments.
    pub(super) fn all(segments: &[Segment]) -> Vec<Self> {
        let mut blocks = Vec::new();
        for Segment { queries, sees, own, causal } in segments {
            for query in queries.clone().step_by(BLOCK) {
                let rows = BLOCK.min(queries.end - query);
                let own_end = if *causal { own.end - (queries.end - query - rows) } else { own.end };
                let ranges: Vec<_> =
                    sees.iter().cloned().chain(std::iter::once(own.start..own_end)).filter(|r| !r.is_empty()).collect();
                let keys = ranges.iter().map(|r| r.len()).sum();
                blocks.push(Self { query, rows, ranges, keys, causal: *causal });
            }
        }
        blocks
    }

    /// The first range of keys.
    pub(super) fn first_range(&self) -> Option<&Range<usize>> {
        self.ranges.first()
    }

    /// The last range of keys.
    pub(super) fn last_range(&self) -> Option<&Range<usize>> {
        self.ranges.last()
    }

    /// Whether the block is one query whose first range has at least `keys` keys.
    pub(super) fn is_one_on(&self, keys: usize) -> bool {
        self.rows == 1 && self.first_range().is_some_and(|range| range.len() >= keys)
    }

    /// The blocks as tasks: up to [`LANES`] consecutive single queries together if their first range of keys is the same and has at
    /// least `keys` keys, every other block alone.
    pub(super) fn together<'a>(blocks: &'a [&'a Self], keys: usize) -> Vec<&'a [&'a Self]> {
        let same = |a: &&Self, b: &&Self| a.is_one_on(keys) && b.is_one_on(keys) && a.first_range() == b.first_range();
        blocks.chunk_by(same).flat_map(|run| run.chunks(LANES)).collect()
    }

    /// Each range of keys with the index of its first key among the block's keys.
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, &Range<usize>)> {
        self.ranges.iter().scan(0, |next, range| {
            let start = *next;
            *next += range.len();
            Some((start, range))
        })
    }

    /// Sets scores `[keys, lanes]` of keys that a query of a causal block does not see to minus infinity.
    pub(super) fn hide(&self, scores: &mut [f32], lanes: usize) {
        if self.causal {
            let diagonal = scores.chunks_exact_mut(lanes).skip(self.keys - self.rows);
            diagonal.enumerate().for_each(|(i, key)| key[..i].fill(f32::NEG_INFINITY));
        }
    }

    /// Groups of blocks that share keys, directly or through other blocks, in their order. The gradients of different groups' keys
    /// can be summed in parallel.
    pub(super) fn groups(blocks: &[Self]) -> Vec<Vec<&Self>> {
        let mut spans: Vec<(usize, usize, usize)> = blocks
            .iter()
            .enumerate()
            .flat_map(|(i, block)| block.ranges.iter().map(move |r| (r.start, r.end, i)))
            .collect();
        spans.sort_unstable();
        let mut parent: Vec<usize> = (0..blocks.len()).collect();
        fn root(parent: &mut [usize], mut i: usize) -> usize {
            while parent[i] != i {
                parent[i] = parent[parent[i]];
                i = parent[i];
            }
            i
        }
        let (mut end, mut last) = (0, 0);
        for (start, stop, block) in spans {
            if start < end {
                let (a, b) = (root(&mut parent, last), root(&mut parent, block));
                parent[a.max(b)] = a.min(b);
            }
            (end, last) = (end.max(stop), block);
        }
        let mut groups: Vec<Vec<&Self>> = blocks.iter().map(|_| Vec::new()).collect();
        for (i, block) in blocks.iter().enumerate() {
            groups[root(&mut parent, i)].push(block);
        }
        groups.retain(|group| !group.is_empty());
        groups
    }
}
