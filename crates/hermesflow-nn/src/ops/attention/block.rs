//! The work of one block of queries and one head.
//!
//! Scores are stored as `[keys, lanes]` with one query in each lane: so every operand of a product is contiguous in one direction,
//! and the softmax runs over the keys with whole vectors. A single query (decoding) has a path of its own, because there a general
//! product costs more than its work.

use super::plan::{BLOCK, Block};
use crate::matmul::operand::Operand;
use crate::matmul::product::product;
use crate::simd::{LANES, dot, exp, max, sum_by, vectorised};
use crate::storage::{HeadRows, SharedPointer};

/// The operands of one pass, with the head sizes.
pub(super) struct Inputs<'a> {
    pub(super) q: HeadRows<'a>,
    pub(super) k: HeadRows<'a>,
    pub(super) v: HeadRows<'a>,
    pub(super) heads: usize,
    pub(super) d: usize,
    pub(super) scale: f32,
}

/// What the backward pass reads and writes besides its inputs, all contiguous.
pub(super) struct Gradients<'a> {
    pub(super) out: &'a [f32],
    pub(super) dout: &'a [f32],
    pub(super) normalizers: &'a [f32],
    pub(super) dq: SharedPointer,
    pub(super) dk: SharedPointer,
    pub(super) dv: SharedPointer,
}

/// One value for each query of a block; values beyond its rows are meaningless.
type Lanes = [f32; BLOCK];

vectorised! {
    /// Replaces scores by `e^(score - largest)`, and writes each query's reciprocal sum and log-sum-exp.
    pub(super) fn soften(scores: &mut [f32], lanes: usize, reciprocals: &mut Lanes, normalizers: &mut Lanes) {
        for first in (0..lanes).step_by(LANES) {
            let mut largest = [f32::NEG_INFINITY; LANES];
            for key in scores.chunks_exact(lanes) {
                for (largest, &x) in largest.iter_mut().zip(&key[first..][..LANES]) {
                    *largest = if x > *largest { x } else { *largest };
                }
            }
            let mut sum = [0f32; LANES];
            for key in scores.chunks_exact_mut(lanes) {
                for ((sum, &largest), x) in sum.iter_mut().zip(&largest).zip(&mut key[first..][..LANES]) {
                    *x = exp(*x - largest);
                    *sum += *x;
                }
            }
            for i in 0..LANES {
                reciprocals[first + i] = 1.0 / sum[i];
                normalizers[first + i] = largest[i] + sum[i].ln();
            }
        }
    }

    /// Replaces scores by probabilities `p`, from the log-sum-exp of the forward pass, and `dp` by the gradients of the scores,
    /// `p (dp - sum(dout out)) scale`.
    fn score_gradients(p: &mut [f32], dp: &mut [f32], lanes: usize, normalizers: &Lanes, sums: &Lanes, scale: f32) {
        for first in (0..lanes).step_by(LANES) {
            let (normalizers, sums) = (&normalizers[first..][..LANES], &sums[first..][..LANES]);
            for (p, dp) in p.chunks_exact_mut(lanes).zip(dp.chunks_exact_mut(lanes)) {
                let (p, dp) = (&mut p[first..][..LANES], &mut dp[first..][..LANES]);
                for i in 0..LANES {
                    p[i] = exp(p[i] - normalizers[i]);
                    dp[i] = p[i] * (dp[i] - sums[i]) * scale;
                }
            }
        }
    }

    /// `out += by * sum_j weights[j] rows[j]`, the rows `stride` apart.
    pub(super) fn weighted_sum(out: &mut [f32], weights: &[f32], rows: &[f32], stride: usize, by: f32) {
        const WIDE: usize = 4;
        let whole = out.len() - out.len() % LANES;
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        let wides = chunks.len() - chunks.len() % WIDE;
        let (wide, narrow) = chunks.split_at_mut(wides);
        // Several vectors at a time, because each addition to one vector of sums waits for the one before.
        for (chunks, first) in wide.chunks_exact_mut(WIDE).zip((0..).step_by(WIDE * LANES)) {
            let mut sums = [0f32; WIDE * LANES];
            for (weight, row) in weights.iter().zip(rows.chunks(stride)) {
                if let Some(row) = row[first..].first_chunk::<{ WIDE * LANES }>() {
                    for i in 0..WIDE * LANES {
                        sums[i] += weight * row[i];
                    }
                }
            }
            for (out, sum) in chunks.as_flattened_mut().iter_mut().zip(sums) {
                *out += by * sum;
            }
        }
        for (chunk, first) in narrow.iter_mut().zip((wides * LANES..).step_by(LANES)) {
            let mut sums = [0f32; LANES];
            for (weight, row) in weights.iter().zip(rows.chunks(stride)) {
                for (sum, x) in sums.iter_mut().zip(&row[first..first + LANES]) {
                    *sum += weight * x;
                }
            }
            for (out, sum) in chunk.iter_mut().zip(sums) {
                *out += by * sum;
            }
        }
        for (i, out) in rest.iter_mut().enumerate() {
            for (weight, row) in weights.iter().zip(rows.chunks(stride)) {
                *out += by * weight * row[whole + i];
            }
        }
    }

    /// Replaces scores by `e^(score - largest)`; returns their sum and the largest score.
    pub(super) fn soften_one(scores: &mut [f32]) -> (f32, f32) {
        let largest = max(scores);
        scores.iter_mut().for_each(|x| *x = exp(*x - largest));
        (sum_by(scores, |x| x), largest)
    }

    fn scale_row(row: &mut [f32], by: f32) {
        row.iter_mut().for_each(|x| *x *= by);
    }

    fn row_product(x: &[f32], y: &[f32]) -> f32 {
        dot(x, y)
    }
}

/// A number of queries, rounded up to whole vectors.
fn lanes_of(rows: usize) -> usize {
    rows.next_multiple_of(LANES)
}

impl Inputs<'_> {
    fn width(&self) -> usize {
        self.heads * self.d
    }

    /// Writes `scale keys queriesᵀ` of a block to `products [keys, lanes]`, in as many lanes as the block has queries.
    ///
    /// # Safety
    /// `products` has that size; block and head lie in `keys`; `queries` are the block's rows of the head.
    unsafe fn against(
        &self,
        block: &Block,
        head: usize,
        keys: HeadRows<'_>,
        queries: Operand,
        scale: f32,
        products: &mut [f32],
    ) {
        let lanes = lanes_of(block.rows);
        for (first, range) in block.places() {
            let size = (range.len(), block.rows, self.d);
            // SAFETY: by the contract of this function.
            unsafe {
                let keys = Operand::rows(keys.at(range.start, head * self.d), keys.stride);
                let products = products.as_mut_ptr().add(first * lanes);
                product(size, products, lanes, false, keys, queries.t(), scale, false);
            }
        }
    }

    /// Writes what attention gives for a block and a head to `out`, and the log-sum-exp of its scores to `normalizers`.
    ///
    /// # Safety
    /// Block and head lie in the inputs; `out [tq, heads * d]`, filled with zeros, and `normalizers [tq, heads]` are writable, and
    /// no other task has this block and head.
    pub(super) unsafe fn forward(
        &self,
        block: &Block,
        head: usize,
        scratch: &mut Vec<f32>,
        out: SharedPointer,
        normalizers: SharedPointer,
    ) {
        let &Block { query, rows, keys, .. } = block;
        if keys == 0 {
            return;
        }
        let (lanes, width, first) = (lanes_of(rows), self.width(), head * self.d);
        if rows == 1 {
            // SAFETY: by the contract of this function.
            unsafe { self.forward_one(block, head, scratch, out, normalizers) };
            return;
        }
        let [scores] = sections(scratch, [keys * lanes]);
        let (mut reciprocals, mut sums) = ([0f32; BLOCK], [0f32; BLOCK]);
        // SAFETY: by the contract of this function.
        unsafe {
            let q = Operand::rows(self.q.at(query, first), self.q.stride);
            self.against(block, head, self.k, q, self.scale, scores);
            block.hide(scores, lanes);
            soften(scores, lanes, &mut reciprocals, &mut sums);
            let y = out.at(query * width + first);
            for (key, range) in block.places() {
                let p = Operand::rows(scores.as_ptr().add(key * lanes), lanes).t();
                let v = Operand::rows(self.v.at(range.start, first), self.v.stride);
                product((rows, self.d, range.len()), y, width, key > 0, p, v, 1.0, false);
            }
            for i in 0..rows {
                scale_row(std::slice::from_raw_parts_mut(y.add(i * width), self.d), reciprocals[i]);
                *normalizers.at((query + i) * self.heads + head) = sums[i];
            }
        }
    }

    /// [`Self::forward`] for a block of one query.
    ///
    /// # Safety
    /// As for [`Self::forward`].
    unsafe fn forward_one(
        &self,
        block: &Block,
        head: usize,
        scratch: &mut Vec<f32>,
        out: SharedPointer,
        normalizers: SharedPointer,
    ) {
        let &Block { query, keys, .. } = block;
        let (d, first) = (self.d, head * self.d);
        let [scores] = sections(scratch, [keys]);
        // SAFETY: by the contract of this function.
        let y = unsafe {
            let q = Operand::rows(self.q.at(query, first), self.q.stride).t();
            for (place, range) in block.places() {
                let k = Operand::rows(self.k.at(range.start, first), self.k.stride);
                let scores = scores.as_mut_ptr().add(place);
                product((range.len(), 1, d), scores, 1, false, k, q, self.scale, false);
            }
            std::slice::from_raw_parts_mut(out.at(query * self.width() + first), d)
        };
        let (sum, largest) = soften_one(scores);
        for (place, range) in block.places() {
            let weights = &scores[place..][..range.len()];
            let rows = &self.v.data[range.start * self.v.stride + first..];
            weighted_sum(y, weights, rows, self.v.stride, 1.0 / sum);
        }
        // SAFETY: by the contract of this function.
        unsafe { *normalizers.at(query * self.heads + head) = largest + sum.ln() };
    }

    /// The gradients of a block and a head: with probabilities `p` and `D = rowsum(dout out)`, `dv += pᵀ dout`,
    /// `ds = scale p (dout vᵀ - D)`, `dq = ds k`, `dk += dsᵀ q`.
    ///
    /// # Safety
    /// Block and head lie in the inputs; `dq`, `dk`, `dv` have the shapes of the inputs; no other task has this block's keys and
    /// this head.
    pub(super) unsafe fn backward(&self, block: &Block, head: usize, scratch: &mut Vec<f32>, g: &Gradients<'_>) {
        let &Block { query, rows, keys, .. } = block;
        if keys == 0 {
            return;
        }
        let (lanes, width, d, first) = (lanes_of(rows), self.width(), self.d, head * self.d);
        let [p, ds] = sections(scratch, [keys * lanes, keys * lanes]);
        let (mut normalizers, mut sums) = ([0f32; BLOCK], [0f32; BLOCK]);
        for i in 0..rows {
            let start = (query + i) * width + first;
            sums[i] = row_product(&g.out[start..][..d], &g.dout[start..][..d]);
            normalizers[i] = g.normalizers[(query + i) * self.heads + head];
        }
        // SAFETY: by the contract of this function; `out` and `dout` are [tq, width].
        unsafe {
            let q = Operand::rows(self.q.at(query, first), self.q.stride);
            let dout = Operand::rows(g.dout.as_ptr().add(query * width + first), width);
            self.against(block, head, self.k, q, self.scale, p);
            self.against(block, head, self.v, dout, 1.0, ds);
            block.hide(p, lanes);
            score_gradients(p, ds, lanes, &normalizers, &sums, self.scale);
            let dq = g.dq.at(query * width + first);
            for (key, range) in block.places() {
                let (n, start) = (range.len(), range.start * width + first);
                let p = Operand::rows(p.as_ptr().add(key * lanes), lanes);
                let ds = Operand::rows(ds.as_ptr().add(key * lanes), lanes);
                let k = Operand::rows(self.k.at(range.start, first), self.k.stride);
                product((n, d, rows), g.dv.at(start), width, true, p, dout, 1.0, false);
                product((n, d, rows), g.dk.at(start), width, true, ds, q, 1.0, false);
                product((rows, d, n), dq, width, key > 0, ds.t(), k, 1.0, false);
            }
        }
    }
}

/// Disjoint parts of `scratch` with the given lengths, whose contents are arbitrary.
pub(super) fn sections<const N: usize>(scratch: &mut Vec<f32>, lengths: [usize; N]) -> [&mut [f32]; N] {
    let total = lengths.iter().sum();
    if scratch.len() < total {
        scratch.resize(total, 0.0);
    }
    let mut rest = scratch.as_mut_slice();
    lengths.map(|length| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(length);
        rest = after;
        part
    })
}
