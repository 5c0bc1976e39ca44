//! Attention on any device, as a composition of candle's operators: segments of one shape are computed together.
//!
//! The operands of segments of one shape ([`plan`]) are gathered into batches, so that a layer is a few large products however many
//! segments it has. Operands of products have the type of `k` and `v`; results and the softmax are in f32. Where single queries see
//! one long range of keys (decoding), the keys are not copied for each of them. The backward pass computes the scores again.

pub(crate) mod plan;

use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor};

use self::plan::{Batch, Plan, Shared};
use super::segment::Segment;
use crate::matmul::f32_results::multiply;
use crate::ops::by_rows::softmax;
use crate::ops::node::node3;

/// [`super::attention()`] for arguments that were checked; the result has the type of `q`.
///
/// # Shapes
/// `q [tq, heads, d]`, `k` and `v` `[tk, heads, d]` -> `[tq, heads · d]`
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, segments: &Arc<[Segment]>, scale: f32) -> Result<Tensor> {
    let given = [q, k, v];
    let trained = given.iter().any(|tensor| tensor.track_op());
    let grouped = Grouped::new([q, k, v], segments, scale, trained)?;
    let dtypes = given.map(Tensor::dtype);
    let values = grouped.forward()?.to_dtype(dtypes[0])?;
    node3("attention", given, values, move |grad| {
        let [dq, dk, dv] = grouped.backward(grad)?;
        Ok([Some(dq.to_dtype(dtypes[0])?), Some(dk.to_dtype(dtypes[1])?), Some(dv.to_dtype(dtypes[2])?)])
    })
}

/// Attention with its operands, without a graph: `[tokens, heads · d]` each, in the type of the keys.
pub(crate) struct Grouped {
    plan: Arc<Plan>,
    /// Queries, multiplied by the scale.
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: f64,
    heads: usize,
    d: usize,
}

impl Grouped {
    /// Attention of `q [tq, heads, d]` on `k` and `v` `[tk, heads, d]`; `trained` says whether a backward pass follows.
    pub(crate) fn new([q, k, v]: [&Tensor; 3], segments: &Arc<[Segment]>, scale: f32, trained: bool) -> Result<Self> {
        let ((tq, heads, d), tk) = (q.dims3()?, k.dim(0)?);
        let (plan, dtype) = (Plan::of(segments, (tq, tk, heads), q.device(), trained)?, k.dtype());
        let scale = f64::from(scale);
        let rows = |x: &Tensor| x.detach().to_dtype(dtype)?.contiguous()?.reshape(((), heads * d));
        let q = (q.detach().to_dtype(DType::F32)? * scale)?;
        Ok(Self { plan, q: rows(&q)?, k: rows(k)?, v: rows(v)?, scale, heads, d })
    }

    /// `[groups · rows, heads · d]` to `[groups · heads, rows, d]`.
    fn by_head(&self, x: &Tensor, groups: usize) -> Result<Tensor> {
        let (heads, d) = (self.heads, self.d);
        let x = x.reshape((groups, (), heads, d))?.transpose(1, 2)?.contiguous()?;
        x.reshape((groups * heads, (), d))
    }

    /// `[groups · heads, rows, d]` to `[groups · rows, heads · d]`.
    fn by_row(&self, x: &Tensor, groups: usize) -> Result<Tensor> {
        let x = x.reshape((groups, self.heads, (), self.d))?.transpose(1, 2)?.contiguous()?;
        x.reshape(((), self.heads * self.d))
    }

    /// What attention gives, `[tq, heads · d]` in f32.
    pub(crate) fn forward(&self) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(self.plan.batches.len() + 1);
        for batch in &self.plan.batches {
            parts.push(match &batch.shared {
                None => self.alone(batch)?,
                Some(shared) => self.together(batch, shared)?,
            });
        }
        self.plan.in_order(parts, self.heads * self.d)
    }

    /// The scores `q kᵀ` of a batch on its own keys, plus its mask, `[groups · heads, n, keys]`.
    fn scores(&self, batch: &Batch, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let scores = multiply(q, &k.t()?)?;
        let Some(mask) = &batch.mask else { return Ok(scores) };
        let (rows, n, keys) = scores.dims3()?;
        let scores = scores.reshape((batch.segments, self.heads, n, keys))?.broadcast_add(mask)?;
        scores.reshape((rows, n, keys))
    }

    /// Attention of a batch whose keys are gathered for each segment.
    fn alone(&self, batch: &Batch) -> Result<Tensor> {
        let of = |x: &Tensor| self.by_head(&batch.keys.select(x)?, batch.segments);
        let q = self.by_head(&batch.queries.select(&self.q)?, batch.segments)?;
        let scores = self.scores(batch, &q, &of(&self.k)?)?;
        let weights = softmax(&scores)?.to_dtype(self.v.dtype())?;
        drop(scores);
        self.by_row(&multiply(&weights, &of(&self.v)?)?, batch.segments)
    }

    /// Attention of a batch of single queries in families, each of which shares one range of keys; the softmax is over the shared
    /// keys and each query's own.
    fn together(&self, batch: &Batch, shared: &Shared) -> Result<Tensor> {
        let (heads, d, dtype) = (self.heads, self.d, self.v.dtype());
        let (families, members) = (shared.families, batch.segments / shared.families);
        let queries = batch.queries.select(&self.q)?;
        let (all, each) = (self.by_head(&queries, families)?, self.by_head(&queries, batch.segments)?);
        let of = |x: &Tensor| self.by_head(&shared.keys.select(x)?, families);
        let own = |x: &Tensor| self.by_head(&batch.keys.select(x)?, batch.segments);
        // [families · heads, members, keys] and [segments · heads, 1, keys].
        let (far, near) = (multiply(&all, &of(&self.k)?.t()?)?, self.scores(batch, &each, &own(&self.k)?)?);
        // One number for each query and head: [families, members, heads, 1] and [families, heads, members, 1].
        let to_far = |x: &Tensor| -> Result<Tensor> {
            let width = x.dim(D::Minus1)?;
            let x = x.reshape((families, members, heads, width))?.transpose(1, 2)?.contiguous()?;
            x.reshape((families * heads, members, width))
        };
        let to_near = |x: &Tensor| -> Result<Tensor> {
            let x = x.reshape((families, heads, members, 1))?.transpose(1, 2)?.contiguous()?;
            x.reshape((families * members * heads, 1, 1))
        };
        let largest = far.max_keepdim(D::Minus1)?.maximum(&to_far(&near.max_keepdim(D::Minus1)?)?)?;
        let far = far.broadcast_sub(&largest)?.exp()?;
        let near = near.broadcast_sub(&to_near(&largest)?)?.exp()?;
        let sums = (far.sum_keepdim(D::Minus1)? + to_far(&near.sum_keepdim(D::Minus1)?)?)?;
        let seen = multiply(&far.to_dtype(dtype)?, &of(&self.v)?)?;
        let near = multiply(&near.to_dtype(dtype)?, &own(&self.v)?)?;
        let seen = (seen + to_far(&near)?)?.broadcast_div(&sums)?;
        self.by_row(&seen.reshape((families * heads, members, d))?, families)
    }

    /// The gradients of queries, keys and values in f32, from the gradient of [`Self::forward`]'s result.
    ///
    /// The gradients of a query's scores sum to zero even when operands are rounded, because the mean of the rounded terms themselves
    /// is subtracted, not the product of result and gradient that equals it without rounding.
    ///
    /// # Shapes
    /// `grad [tq, heads · d]` -> `[tq, heads, d]`, `[tk, heads, d]`, `[tk, heads, d]`
    pub(crate) fn backward(&self, grad: &Tensor) -> Result<[Tensor; 3]> {
        let (plan, dtype) = (&self.plan, self.v.dtype());
        let grad = grad.detach().to_dtype(dtype)?.contiguous()?;
        let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
        for batch in &plan.batches {
            let segments = batch.segments;
            let queries = |x: &Tensor| self.by_head(&batch.queries.select(x)?, segments);
            let of = |x: &Tensor| self.by_head(&batch.keys.select(x)?, segments);
            let (q, k, v) = (queries(&self.q)?, of(&self.k)?, of(&self.v)?);
            let grad = queries(&grad)?;
            let scores = self.scores(batch, &q, &k)?;
            let weights = softmax(&scores)?;
            drop(scores);
            dv.push(self.by_row(&multiply(&weights.to_dtype(dtype)?.t()?, &grad)?, segments)?);
            let weighted = (multiply(&grad, &v.t()?)? * &weights)?;
            let mean = weighted.sum_keepdim(D::Minus1)?;
            let d_scores = (weighted - weights.broadcast_mul(&mean)?)?.to_dtype(dtype)?;
            dq.push((self.by_row(&multiply(&d_scores, &k)?, segments)? * self.scale)?);
            // The queries are scaled already.
            dk.push(self.by_row(&multiply(&d_scores.t()?, &q)?, segments)?);
        }
        let (heads, d) = (self.heads, self.d);
        let split = |x: Tensor| x.reshape(((), heads, d));
        let dq = split(plan.in_order(dq, heads * d)?)?;
        Ok([dq, split(plan.back_to_keys(dk, heads * d)?)?, split(plan.back_to_keys(dv, heads * d)?)?])
    }
}
