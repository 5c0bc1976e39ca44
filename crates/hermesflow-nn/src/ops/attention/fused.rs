//! Attention on the CPU: one task per block of queries and head.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::alone::{self, Alone, KeptRows};
use super::block::{Gradients, Inputs};
use super::plan::Block;
use super::segment::Segment;
use crate::parallel;
use crate::storage::{HeadRows, SharedPointer, cpu, host};

/// Fewest multiplications that are shared between threads.
const PARALLEL_FROM: usize = 256 * 1024;
/// Fewest elements of shared keys from which single queries on them are computed together.
const TOGETHER_FROM: usize = 64 * 1024;

/// The operator with its blocks of work.
pub(crate) struct Attention {
    blocks: Vec<Block>,
    scale: f32,
    /// Log-sum-exp of the scores, `[tq, heads]`, from the forward pass.
    normalizers: OnceLock<Vec<f32>>,
}

impl Attention {
    /// Attention of these segments with scores multiplied by `scale`.
    pub(crate) fn new(segments: &[Segment], scale: f32) -> Self {
        Self { blocks: Block::all(segments), scale, normalizers: OnceLock::new() }
    }

    /// Runs all tasks, in parallel if there is enough work.
    fn run(&self, width: usize, tasks: usize, task: impl Fn(&mut Vec<f32>, usize) + Sync + Send) {
        let work: usize = self.blocks.iter().map(|block| block.rows * block.keys * width).sum();
        if work < PARALLEL_FROM {
            let mut scratch = Vec::new();
            (0..tasks).for_each(|i| task(&mut scratch, i));
        } else {
            parallel::each_with(tasks, Vec::new, task);
        }
    }

    /// What attention gives, `[tq, heads · d]`.
    pub(crate) fn forward(&self, [q, k, v]: [HeadRows<'_>; 3], tq: usize, heads: usize, d: usize) -> Vec<f32> {
        let inputs = Inputs { q, k, v, heads, d, scale: self.scale };
        let (mut out, mut normalizers) = (vec![0f32; tq * heads * d], vec![0f32; tq * heads]);
        let (y, sums) = (SharedPointer(out.as_mut_ptr()), SharedPointer(normalizers.as_mut_ptr()));
        let (own, others): (Vec<&Block>, Vec<&Block>) = self.blocks.iter().partition(|block| alone::suits(block, d));
        if !own.is_empty() {
            let alone = Alone { q, k: KeptRows::F32(k), v: KeptRows::F32(v), d, scale: self.scale };
            self.run_alone(&alone, &own, heads, y, sums);
        }
        let keys = TOGETHER_FROM.div_ceil((heads * d).max(1));
        let runs = Block::together(&others, keys);
        self.run(heads * d, runs.len() * heads, |scratch, i| {
            // SAFETY: the segments were checked to lie in the inputs and to have disjoint queries.
            unsafe {
                match runs[i / heads] {
                    [block] if !block.is_one_on(keys) => inputs.forward(block, i % heads, scratch, y, sums),
                    blocks => inputs.forward_together(blocks, i % heads, scratch, y, sums),
                }
            }
        });
        self.normalizers.get_or_init(|| normalizers);
        out
    }

    /// [`Self::forward`] of single queries only, with keys and values as they are kept; for forward passes alone.
    fn forward_single(&self, alone: &Alone<'_>, tq: usize, heads: usize) -> Vec<f32> {
        let (mut out, mut normalizers) = (vec![0f32; tq * heads * alone.d], vec![0f32; tq * heads]);
        let (y, sums) = (SharedPointer(out.as_mut_ptr()), SharedPointer(normalizers.as_mut_ptr()));
        self.run_alone(alone, &self.blocks.iter().collect::<Vec<_>>(), heads, y, sums);
        out
    }

    /// Computes blocks of one query each, of which [`alone`] takes the heads' size.
    fn run_alone(&self, alone: &Alone<'_>, blocks: &[&Block], heads: usize, out: SharedPointer, sums: SharedPointer) {
        let d = alone.d;
        let at_once = alone::heads_at_once(blocks.len(), heads);
        let pieces = heads.div_ceil(at_once);
        self.run(heads * d, blocks.len() * pieces, |scratch, i| {
            let (block, head) = (blocks[i / pieces], i % pieces * at_once);
            if block.keys == 0 {
                return;
            }
            let (count, at) = (at_once.min(heads - head), block.query * heads + head);
            // SAFETY: the segments were checked to lie in the inputs and to have disjoint queries; no other task has these heads.
            unsafe {
                let (out, sums) = (alone::part(out, at * d, count * d), alone::part(sums, at, count));
                alone.forward(block, head, scratch, out, sums);
            }
        });
    }

    /// The gradients of queries, keys and values, from the result `out` of [`Self::forward`] and its gradient `dout`.
    ///
    /// # Errors
    /// When [`Self::forward`] has not run.
    pub(crate) fn backward(
        &self,
        [q, k, v]: [HeadRows<'_>; 3],
        out: &[f32],
        dout: &[f32],
        (tq, tk, heads, d): (usize, usize, usize, usize),
    ) -> Result<[Vec<f32>; 3]> {
        let Some(normalizers) = self.normalizers.get() else {
            bail!("attention: the backward pass ran before the forward pass");
        };
        let inputs = Inputs { q, k, v, heads, d, scale: self.scale };
        let mut dq = vec![0f32; tq * heads * d];
        let (mut dk, mut dv) = (vec![0f32; tk * heads * d], vec![0f32; tk * heads * d]);
        let gradients = Gradients {
            out,
            dout,
            normalizers,
            dq: SharedPointer(dq.as_mut_ptr()),
            dk: SharedPointer(dk.as_mut_ptr()),
            dv: SharedPointer(dv.as_mut_ptr()),
        };
        let groups = Block::groups(&self.blocks);
        self.run(heads * d, groups.len() * heads, |scratch, i| {
            for block in &groups[i / heads] {
                // SAFETY: as in the forward pass; groups have disjoint keys, and the blocks of a group run one after the other.
                unsafe { inputs.backward(block, i % heads, scratch, &gradients) }
            }
        });
        Ok([dq, dk, dv])
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
        let (q, k, v) = (HeadRows::new(q, ql)?, KeptRows::new(k, kl)?, KeptRows::new(v, vl)?);
        let out = match (k, v) {
            (KeptRows::F32(k), KeptRows::F32(v)) => self.forward([q, k, v], tq, heads, d),
            (k, v) => self.forward_single(&Alone { q, k, v, d, scale: self.scale }, tq, heads),
        };
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
        let ((tq, heads, d), (tk, _, _)) = (q.dims3()?, k.dims3()?);
        let grad = grad.contiguous()?;
        let ((qs, ql), (ks, kl), (vs, vl)) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
        let ((os, ol), (gs, gl)) = (out.storage_and_layout(), grad.storage_and_layout());
        let (q, k, v) = (HeadRows::new(cpu(&qs)?, ql)?, HeadRows::new(cpu(&ks)?, kl)?, HeadRows::new(cpu(&vs)?, vl)?);
        let [dq, dk, dv] = self.backward([q, k, v], host(&os, ol)?, host(&gs, gl)?, (tq, tk, heads, d))?;
        let device = grad.device();
        Ok((
            Some(Tensor::from_vec(dq, (tq, heads, d), device)?),
            Some(Tensor::from_vec(dk, (tk, heads, d), device)?),
            Some(Tensor::from_vec(dv, (tk, heads, d), device)?),
        ))
    }
}
