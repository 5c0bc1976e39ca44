//! Single queries (decoding) that see the same first range of keys, such as the replies about one image. Each query has one lane of
//! the vectors, so that those keys and values are read once for all of them.
//!
//! A lane does not depend on the others: a query has the same bits alone and with any others.

use super::block::{Inputs, sections, soften, weighted_sum};
use super::plan::{BLOCK, Block};
use crate::simd::{LANES, dot, vectorised};
use crate::storage::SharedPointer;

/// Keys whose scores, and elements of values whose sums, are computed at the same time.
const SIDE_BY_SIDE: usize = 8;

vectorised! {
    /// `scores [keys, LANES]` of the transposed queries `[d, LANES]` and keys that are `stride` apart.
    fn shared_scores(scores: &mut [f32], transposed: &[f32], keys: &[f32], stride: usize) {
        let (transposed, _) = transposed.as_chunks::<LANES>();
        let (scores, _) = scores.as_chunks_mut::<LANES>();
        let mut rest = keys;
        for scores in scores.chunks_mut(SIDE_BY_SIDE) {
            if let Some(scores) = scores.first_chunk_mut::<SIDE_BY_SIDE>() {
                let rows: [&[f32]; SIDE_BY_SIDE] = std::array::from_fn(|key| &rest[key * stride..][..transposed.len()]);
                let mut sums = [[0f32; LANES]; SIDE_BY_SIDE];
                for (i, q) in transposed.iter().enumerate() {
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        let x = row[i];
                        for (sum, q) in sums.iter_mut().zip(q) {
                            *sum += x * q;
                        }
                    }
                }
                *scores = sums;
                rest = rest.get(SIDE_BY_SIDE * stride..).unwrap_or_default();
            } else {
                for (scores, row) in scores.iter_mut().zip(rest.chunks(stride)) {
                    let mut sums = [0f32; LANES];
                    for (x, q) in row.iter().zip(transposed) {
                        for (sum, q) in sums.iter_mut().zip(q) {
                            *sum += x * q;
                        }
                    }
                    *scores = sums;
                }
            }
        }
    }

    /// One lane of `scores [keys, LANES]`, of a query and keys that only it sees.
    fn own_scores(scores: &mut [f32], lane: usize, query: &[f32], keys: &[f32], stride: usize) {
        let (scores, _) = scores.as_chunks_mut::<LANES>();
        for (scores, key) in scores.iter_mut().zip(keys.chunks(stride)) {
            scores[lane] = dot(query, &key[..query.len()]);
        }
    }

    /// `out [d, LANES]`, for each lane the sum of the rows by its `weights [keys, LANES]`.
    fn shared_values(out: &mut [f32], weights: &[f32], rows: &[f32], stride: usize) {
        let (weights, _) = weights.as_chunks::<LANES>();
        let (out, _) = out.as_chunks_mut::<LANES>();
        for (out, first) in out.chunks_mut(SIDE_BY_SIDE).zip((0..).step_by(SIDE_BY_SIDE)) {
            if let Some(out) = out.first_chunk_mut::<SIDE_BY_SIDE>() {
                let mut sums = [[0f32; LANES]; SIDE_BY_SIDE];
                for (weights, row) in weights.iter().zip(rows.chunks(stride)) {
                    let row = &row[first..first + SIDE_BY_SIDE];
                    // By index: as a zip, with the sums unrolled before they are vectors, it is forty times slower.
                    #[allow(clippy::needless_range_loop)]
                    for i in 0..SIDE_BY_SIDE {
                        let x = row[i];
                        for (sum, weight) in sums[i].iter_mut().zip(weights) {
                            *sum += x * weight;
                        }
                    }
                }
                *out = sums;
            } else {
                for (out, i) in out.iter_mut().zip(first..) {
                    let mut sums = [0f32; LANES];
                    for (weights, row) in weights.iter().zip(rows.chunks(stride)) {
                        let x = row[i];
                        for (sum, weight) in sums.iter_mut().zip(weights) {
                            *sum += x * weight;
                        }
                    }
                    *out = sums;
                }
            }
        }
    }
}

impl Inputs<'_> {
    /// [`Inputs::forward`] for up to [`LANES`] blocks of one query each, whose first range of keys is the same.
    ///
    /// # Safety
    /// As for [`Inputs::forward`], for each of the blocks.
    pub(super) unsafe fn forward_together(
        &self,
        blocks: &[&Block],
        head: usize,
        scratch: &mut Vec<f32>,
        out: SharedPointer,
        normalizers: SharedPointer,
    ) {
        let Some(shared) = blocks.first().and_then(|block| block.first_range()) else { return };
        let (d, first) = (self.d, head * self.d);
        let common = shared.len();
        let most = blocks.iter().map(|block| block.keys).max().unwrap_or(0);
        let [queries, transposed, scores, values, column] =
            sections(scratch, [LANES * d, LANES * d, most * LANES, LANES * d, most - common]);
        transposed.fill(0.0);
        for (lane, block) in blocks.iter().enumerate() {
            let query = &self.q.data[block.query * self.q.stride + first..][..d];
            for (i, (scaled, x)) in queries[lane * d..][..d].iter_mut().zip(query).enumerate() {
                *scaled = x * self.scale;
                transposed[i * LANES + lane] = *scaled;
            }
        }
        shared_scores(
            &mut scores[..common * LANES],
            transposed,
            &self.k.data[shared.start * self.k.stride + first..],
            self.k.stride,
        );
        // Other keys are hidden from a lane unless they are its own.
        scores[common * LANES..].fill(f32::NEG_INFINITY);
        for (lane, block) in blocks.iter().enumerate() {
            for (place, range) in block.places().skip(1) {
                let scores = &mut scores[place * LANES..][..range.len() * LANES];
                let keys = &self.k.data[range.start * self.k.stride + first..];
                own_scores(scores, lane, &queries[lane * d..][..d], keys, self.k.stride);
            }
        }
        let (mut reciprocals, mut sums) = ([0f32; BLOCK], [0f32; BLOCK]);
        soften(scores, LANES, &mut reciprocals, &mut sums);
        let rows = &self.v.data[shared.start * self.v.stride + first..];
        shared_values(values, &scores[..common * LANES], rows, self.v.stride);
        for (lane, block) in blocks.iter().enumerate() {
            // SAFETY: by the contract of this function the block and head are this task's alone.
            let y = unsafe { std::slice::from_raw_parts_mut(out.at(block.query * self.heads * d + first), d) };
            let shared = values.iter().skip(lane).step_by(LANES);
            y.iter_mut().zip(shared).for_each(|(y, value)| *y = value * reciprocals[lane]);
            for (place, range) in block.places().skip(1) {
                let weights = &mut column[..range.len()];
                let own = scores[place * LANES..].iter().skip(lane).step_by(LANES);
                weights.iter_mut().zip(own).for_each(|(weight, score)| *weight = *score);
                let rows = &self.v.data[range.start * self.v.stride + first..];
                weighted_sum(y, weights, rows, self.v.stride, reciprocals[lane]);
            }
            // SAFETY: as above.
            unsafe { *normalizers.at(block.query * self.heads + head) = sums[lane] };
        }
    }
}
