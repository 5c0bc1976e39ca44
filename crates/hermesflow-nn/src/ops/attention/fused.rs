//! Attention on the CPU, one task per block of queries and head.

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::Segment;
use crate::ops::raw::{HeadRows, Operand, Shared, cpu, host, product};
use crate::ops::simd::{LANES, dot, exp, max, sum_lanes, vectorised};

/// Queries of one block: its scores stay in the cache, and a causal block
/// computes no scores far beyond its last query.
const BLOCK: usize = 64;
/// Below this many multiplications everything stays on one thread.
const PARALLEL_FROM: usize = 128 * 1024;

/// Some consecutive queries of a segment with the keys that the last of them sees.
struct Block {
    query: usize,
    rows: usize,
    ranges: Vec<Range<usize>>,
    /// Total length of the ranges.
    keys: usize,
    /// Row `i` sees the first `keys - (rows - 1 - i)` keys, not all.
    causal: bool,
}

impl Block {
    fn all(segments: &[Segment]) -> Vec<Self> {
        let mut blocks = Vec::new();
        for Segment { queries, sees, own, causal } in segments {
            for query in queries.clone().step_by(BLOCK) {
                let rows = BLOCK.min(queries.end - query);
                let own_end = if *causal { own.end - (queries.end - query - rows) } else { own.end };
                let ranges: Vec<_> =
                    sees.iter().cloned().chain([own.start..own_end]).filter(|r| !r.is_empty()).collect();
                let keys = ranges.iter().map(|r| r.len()).sum();
                blocks.push(Self { query, rows, ranges, keys, causal: *causal });
            }
        }
        blocks
    }

    /// Each range with the column of the block's scores where it starts.
    fn columns(&self) -> impl Iterator<Item = (usize, &Range<usize>)> {
        self.ranges.iter().scan(0, |column, range| {
            let start = *column;
            *column += range.len();
            Some((start, range))
        })
    }

    /// Blocks that share keys, directly or through others, gathered in one
    /// group, in their order: the gradients of different groups' keys can be
    /// summed at the same time.
    fn groups(blocks: &[Self]) -> Vec<Vec<&Self>> {
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

pub(super) struct Attention {
    blocks: Vec<Block>,
    scale: f32,
    /// Log-sum-exp of the scores, `[tq, heads]`, kept from the forward pass.
    normalizers: OnceLock<Vec<f32>>,
}

vectorised! {
    /// Turns rows of scores into `e^(score - largest)`, 0 where not seen, and
    /// gives each row's reciprocal sum and log-sum-exp.
    fn soften(scores: &mut [f32], keys: usize, causal: bool, reciprocals: &mut [f32], normalizers: &mut [f32]) {
        let rows = reciprocals.len();
        for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
            let seen = if causal { keys - (rows - 1 - i) } else { keys };
            let (row, hidden) = row.split_at_mut(seen);
            let largest = max(row);
            let mut lanes = [0f32; LANES];
            let (chunks, rest) = row.as_chunks_mut::<LANES>();
            for chunk in chunks {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *x = exp(*x - largest);
                    *lane += *x;
                }
            }
            let mut sum = sum_lanes(lanes);
            for x in rest {
                *x = exp(*x - largest);
                sum += *x;
            }
            hidden.fill(0.0);
            reciprocals[i] = 1.0 / sum;
            normalizers[i] = largest + sum.ln();
        }
    }

    fn scale_row(row: &mut [f32], by: f32) {
        row.iter_mut().for_each(|x| *x *= by);
    }

    /// Rows of scores into probabilities, by the kept log-sum-exp.
    fn probabilities(scores: &mut [f32], keys: usize, causal: bool, normalizers: &[f32]) {
        let rows = normalizers.len();
        for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
            let seen = if causal { keys - (rows - 1 - i) } else { keys };
            let (row, hidden) = row.split_at_mut(seen);
            row.iter_mut().for_each(|x| *x = exp(*x - normalizers[i]));
            hidden.fill(0.0);
        }
    }

    /// `dscores = p (dp - sum(dout out)) scale`, in the place of `dp`.
    fn score_gradients(dp: &mut [f32], p: &[f32], keys: usize, sums: &[f32], scale: f32) {
        for ((dp, p), sum) in dp.chunks_exact_mut(keys).zip(p.chunks_exact(keys)).zip(sums) {
            for (dp, p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - sum) * scale;
            }
        }
    }

    fn row_product(x: &[f32], y: &[f32]) -> f32 {
        dot(x, y)
    }
}

/// The operands of one pass, with the head sizes.
struct Inputs<'a> {
    q: HeadRows<'a>,
    k: HeadRows<'a>,
    v: HeadRows<'a>,
    heads: usize,
    d: usize,
    scale: f32,
}

/// What the backward pass reads and writes besides its inputs, all contiguous.
struct Gradients<'a> {
    out: &'a [f32],
    dout: &'a [f32],
    normalizers: &'a [f32],
    dq: Shared,
    dk: Shared,
    dv: Shared,
}

impl Inputs<'_> {
    fn width(&self) -> usize {
        self.heads * self.d
    }

    /// The scaled scores of a block.
    ///
    /// # Safety
    /// `scores` holds `block.rows * block.keys` elements; block and head lie in the inputs.
    unsafe fn scores(&self, block: &Block, head: usize, scores: *mut f32) {
        // SAFETY: by the contract of this function.
        unsafe {
            let q = Operand::rows(self.q.at(block.query, head * self.d), self.q.stride);
            for (column, range) in block.columns() {
                let k = Operand::rows(self.k.at(range.start, head * self.d), self.k.stride);
                let size = (block.rows, range.len(), self.d);
                product(size, scores.add(column), block.keys, false, q, k.t(), self.scale, false);
            }
        }
    }

    /// # Safety
    /// Block and head lie in the inputs; `out [tq, heads * d]` and
    /// `normalizers [tq, heads]` are writable, and no other task has this
    /// block and head.
    unsafe fn forward(&self, block: &Block, head: usize, scratch: &mut Vec<f32>, out: Shared, normalizers: Shared) {
        let &Block { query, rows, keys, causal, .. } = block;
        if keys == 0 {
            return; // the result is already zero
        }
        scratch.resize(scratch.len().max(rows * keys), 0.0);
        let scores = &mut scratch[..rows * keys];
        let (mut reciprocals, mut sums) = ([0f32; BLOCK], [0f32; BLOCK]);
        // SAFETY: by the contract of this function.
        unsafe {
            self.scores(block, head, scores.as_mut_ptr());
            soften(scores, keys, causal, &mut reciprocals[..rows], &mut sums[..rows]);
            let y = out.at(query * self.width() + head * self.d);
            for (column, range) in block.columns() {
                let p = Operand::rows(scores.as_ptr().add(column), keys);
                let v = Operand::rows(self.v.at(range.start, head * self.d), self.v.stride);
                product((rows, self.d, range.len()), y, self.width(), column > 0, p, v, 1.0, false);
            }
            for i in 0..rows {
                let row = std::slice::from_raw_parts_mut(y.add(i * self.width()), self.d);
                scale_row(row, reciprocals[i]);
                *normalizers.at((query + i) * self.heads + head) = sums[i];
            }
        }
    }

    /// With `p` the probabilities of the block and `D = rowsum(dout out)`:
    /// `dv += pᵀ dout`, `ds = scale p (dout vᵀ - D)`, `dq = ds k`, `dk += dsᵀ q`.
    ///
    /// # Safety
    /// Block and head lie in the inputs; `dq`, `dk`, `dv` have the shapes of
    /// the inputs; no other task has this block's keys and this head.
    unsafe fn backward(&self, block: &Block, head: usize, scratch: &mut Vec<f32>, g: &Gradients<'_>) {
        let &Block { query, rows, keys, causal, .. } = block;
        if keys == 0 {
            return;
        }
        scratch.resize(scratch.len().max(2 * rows * keys), 0.0);
        let (p, rest) = scratch.split_at_mut(rows * keys);
        let ds = &mut rest[..rows * keys];
        let (mut normalizers, mut sums) = ([0f32; BLOCK], [0f32; BLOCK]);
        let (d, width, first) = (self.d, self.width(), head * self.d);
        for i in 0..rows {
            let row = (query + i) * width + first..(query + i) * width + first + d;
            sums[i] = row_product(&g.out[row.clone()], &g.dout[row]);
            normalizers[i] = g.normalizers[(query + i) * self.heads + head];
        }
        // SAFETY: by the contract of this function; `out` and `dout` are [tq, width].
        unsafe {
            self.scores(block, head, p.as_mut_ptr());
            probabilities(p, keys, causal, &normalizers[..rows]);
            let dout = Operand::rows(g.dout.as_ptr().add(query * width + first), width);
            for (column, range) in block.columns() {
                let (n, key) = (range.len(), range.start * width + first);
                let part = Operand::rows(p.as_ptr().add(column), keys);
                product((n, d, rows), g.dv.at(key), width, true, part.t(), dout, 1.0, false);
                let v = Operand::rows(self.v.at(range.start, first), self.v.stride);
                product((rows, n, d), ds.as_mut_ptr().add(column), keys, false, dout, v.t(), 1.0, false);
            }
            score_gradients(ds, p, keys, &sums[..rows], self.scale);
            let q = Operand::rows(self.q.at(query, first), self.q.stride);
            let dq = g.dq.at(query * width + first);
            for (column, range) in block.columns() {
                let (n, key) = (range.len(), range.start * width + first);
                let part = Operand::rows(ds.as_ptr().add(column), keys);
                let k = Operand::rows(self.k.at(range.start, first), self.k.stride);
                product((rows, d, n), dq, width, column > 0, part, k, 1.0, false);
                product((n, d, rows), g.dk.at(key), width, true, part.t(), q, 1.0, false);
            }
        }
    }
}

impl Attention {
    pub(super) fn new(segments: &[Segment], scale: f32) -> Self {
        Self { blocks: Block::all(segments), scale, normalizers: OnceLock::new() }
    }

    /// Runs all tasks, in parallel where there is enough to do.
    fn run(&self, width: usize, tasks: usize, task: impl Fn(&mut Vec<f32>, usize) + Sync + Send) {
        let work: usize = self.blocks.iter().map(|block| block.rows * block.keys * width).sum();
        if work < PARALLEL_FROM {
            let mut scratch = Vec::new();
            (0..tasks).for_each(|i| task(&mut scratch, i));
        } else {
            (0..tasks).into_par_iter().for_each_init(Vec::new, task);
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tq, heads, d) = ql.shape().dims3()?;
        let (q, k, v) = (HeadRows::new(q, ql)?, HeadRows::new(k, kl)?, HeadRows::new(v, vl)?);
        let inputs = Inputs { q, k, v, heads, d, scale: self.scale };
        let (mut out, mut normalizers) = (vec![0f32; tq * heads * d], vec![0f32; tq * heads]);
        let (y, sums) = (Shared(out.as_mut_ptr()), Shared(normalizers.as_mut_ptr()));
        self.run(heads * d, self.blocks.len() * heads, |scratch, i| {
            // SAFETY: `check` has seen that the segments lie in the inputs and
            // that their queries are disjoint.
            unsafe { inputs.forward(&self.blocks[i / heads], i % heads, scratch, y, sums) }
        });
        self.normalizers.get_or_init(|| normalizers);
        Ok((CpuStorage::F32(out), (tq, heads * d).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(normalizers) = self.normalizers.get() else {
            bail!("attention: backward before forward");
        };
        let ((tq, heads, d), (tk, _, _)) = (q.dims3()?, k.dims3()?);
        let grad = grad.contiguous()?;
        let ((qs, ql), (ks, kl), (vs, vl)) =
            (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
        let ((os, ol), (gs, gl)) = (out.storage_and_layout(), grad.storage_and_layout());
        let (q, k, v) =
            (HeadRows::new(cpu(&qs)?, ql)?, HeadRows::new(cpu(&ks)?, kl)?, HeadRows::new(cpu(&vs)?, vl)?);
        let inputs = Inputs { q, k, v, heads, d, scale: self.scale };
        let mut dq = vec![0f32; tq * heads * d];
        let (mut dk, mut dv) = (vec![0f32; tk * heads * d], vec![0f32; tk * heads * d]);
        let gradients = Gradients {
            out: host(&os, ol)?,
            dout: host(&gs, gl)?,
            normalizers,
            dq: Shared(dq.as_mut_ptr()),
            dk: Shared(dk.as_mut_ptr()),
            dv: Shared(dv.as_mut_ptr()),
        };
        let groups = Block::groups(&self.blocks);
        self.run(heads * d, groups.len() * heads, |scratch, i| {
            for block in &groups[i / heads] {
                // SAFETY: as in the forward pass; groups have disjoint keys,
                // and the blocks of a group follow one another.
                unsafe { inputs.backward(block, i % heads, scratch, &gradients) }
            }
        });
        let device = grad.device();
        Ok((
            Some(Tensor::from_vec(dq, (tq, heads, d), device)?),
            Some(Tensor::from_vec(dk, (tk, heads, d), device)?),
            Some(Tensor::from_vec(dv, (tk, heads, d), device)?),
        ))
    }
}
