//! Attention by products of batches, for any device: segments of one shape go together.
//!
//! The operands of a class of segments ([`plan`]) are gathered into batches, so that a layer takes a few large products
//! however many segments it has. Products are in the type of `k` and `v` with results in f32, the softmax is in f32. Where
//! single queries see one long range (decoding), its keys are not copied for each of them. The backward pass computes the
//! scores again.

pub(crate) mod plan;

use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor};

use self::plan::{Batch, Plan, Shared};
use super::segment::Segment;
use crate::matmul::f32_results::multiply;
use crate::ops::by_rows::softmax;
use crate::ops::node::node3;

/// Attention with its backward pass; what it gives is in the type of `q`.
///
/// # Shapes
/// As [`super::attention`].
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

/// The operands as rows of one token each, without a graph.
pub(in crate::ops) struct Grouped {
    plan: Arc<Plan>,
    /// Scaled, in the type of the keys.
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: f64,
    heads: usize,
    d: usize,
}

impl Grouped {
    /// Of `q [tq, heads, d]`, `k [tk, heads, d]`, `v [tk, heads, d]`; `trained` if a backward pass follows.
    pub(in crate::ops) fn new(
        [q, k, v]: [&Tensor; 3],
        segments: &Arc<[Segment]>,
        scale: f32,
        trained: bool,
    ) -> Result<Self> {
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

    /// And back.
    fn by_row(&self, x: &Tensor, groups: usize) -> Result<Tensor> {
        let x = x.reshape((groups, self.heads, (), self.d))?.transpose(1, 2)?.contiguous()?;
        x.reshape(((), self.heads * self.d))
    }

    /// What the queries see, `[tq, heads · d]` in f32.
    pub(in crate::ops) fn forward(&self) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(self.plan.batches.len() + 1);
        for batch in &self.plan.batches {
            parts.push(match &batch.shared {
                None => self.alone(batch)?,
                Some(shared) => self.together(batch, shared)?,
            });
        }
        self.plan.in_order(parts, self.heads * self.d)
    }

    /// `q kᵀ` of a batch's own keys with its mask, `[groups · heads, n, keys]`.
    fn scores(&self, batch: &Batch, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let scores = multiply(q, &k.t()?)?;
        let Some(mask) = &batch.mask else { return Ok(scores) };
        let (rows, n, keys) = scores.dims3()?;
        let scores = scores.reshape((batch.segments, self.heads, n, keys))?.broadcast_add(mask)?;
        scores.reshape((rows, n, keys))
    }

    /// A batch whose keys are gathered for each segment.
    fn alone(&self, batch: &Batch) -> Result<Tensor> {
        let of = |x: &Tensor| self.by_head(&batch.keys.select(x)?, batch.segments);
        let q = self.by_head(&batch.queries.select(&self.q)?, batch.segments)?;
        let scores = self.scores(batch, &q, &of(&self.k)?)?;
        let weights = softmax(&scores)?.to_dtype(self.v.dtype())?;
        drop(scores);
        self.by_row(&multiply(&weights, &of(&self.v)?)?, batch.segments)
    }

    /// Single queries, each family of which sees one range of keys beside its own: the softmax is over both.
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

    /// The gradients of queries, keys and values from that of what they saw, in f32.
    ///
    /// The gradients of a query's scores sum to zero, however the operands were rounded: what is taken from each is the
    /// mean of those very numbers, not the product of values and gradient that it is without rounding.
    ///
    /// # Shapes
    /// `grad [tq, heads · d]` -> `[tq, heads, d]`, `[tk, heads, d]`, `[tk, heads, d]`
    pub(in crate::ops) fn backward(&self, grad: &Tensor) -> Result<[Tensor; 3]> {
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
