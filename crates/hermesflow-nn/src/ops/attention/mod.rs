//! Scaled dot-product attention over packed sequences: many prompts, prefixes
//! and cached continuations in one flat run of tokens, with no batch
//! dimension, no padding and no mask tensor.
//!
//! Which key a query sees is told by [`Segment`]s. That covers every pattern
//! of a unified model:
//!
//! * **a causal text**: one segment, `own` = its tokens, `causal`;
//! * **an image block** that sees a prompt and all of itself: `sees` = the
//!   prompt, `own` = the image, not `causal`;
//! * **several replies to one image**: each sees the one range of prefix keys,
//!   which is computed and stored once;
//! * **cached decoding**: `own` is longer than `queries`, the new tokens being
//!   its last ones.
//!
//! The fused form never builds the whole score matrix: it keeps the
//! log-sum-exp of each query and head, and the backward pass computes the
//! scores again (Dao et al., "FlashAttention", arXiv:2205.14135, section 3.1).

mod block;
pub(super) mod fused;
pub(super) mod grouped;
mod plan;
#[cfg(test)]
mod tests;
mod together;

pub use self::grouped::SCORES;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::measure::{Part, part};
use crate::storage::{self, HeadRows};

/// A run of queries that see the same keys.
///
/// Every query of the run sees all keys of each range of `sees`, and of its
/// own keys `own` either all (`causal` false) or, for query `i` of the run,
/// the first `own.len() - queries.len() + i + 1` (`causal` true): the queries
/// are the last of their own keys. A key that stands in two ranges of one
/// segment counts twice. A query that sees no key gets zeros.
///
/// Segments may see the same keys; in training all of them add to those keys'
/// gradients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The queries, as rows of `q`.
    pub queries: Range<usize>,
    /// Keys, as rows of `k` and `v`, that every query sees.
    pub sees: Vec<Range<usize>>,
    /// The queries' own keys, as rows of `k` and `v`.
    pub own: Range<usize>,
    /// Whether a query sees its own keys only up to itself.
    pub causal: bool,
}

impl Segment {
    /// Queries that see their own keys up to themselves.
    pub fn causal(queries: Range<usize>, own: Range<usize>) -> Self {
        Self { queries, sees: Vec::new(), own, causal: true }
    }

    /// Queries that see all of their own keys.
    pub fn block(queries: Range<usize>, own: Range<usize>) -> Self {
        Self { queries, sees: Vec::new(), own, causal: false }
    }

    /// The same queries, which also see all of these keys.
    pub fn seeing(mut self, keys: Range<usize>) -> Self {
        self.sees.push(keys);
        self
    }
}

/// Attention of packed queries on packed keys: for each query and head,
/// `softmax(scale q kᵀ) v` over the keys that its segment sees.
///
/// The segments' queries are disjoint and cover `0..tq`, in any order.
///
/// # Shapes
/// `q [tq, heads, d]`, `k [tk, heads, d]`, `v [tk, heads, d]` -> `[tq, heads * d]`
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, segments: &Arc<[Segment]>, scale: f32) -> Result<Tensor> {
    let ((tq, heads, d), (tk, _, _)) = (q.dims3()?, k.dims3()?);
    if k.dims() != [tk, heads, d] || v.dims() != k.dims() {
        bail!("attention: q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
    }
    check(segments, tq, tk)?;
    part(Part::Attention, q.device(), || {
        if storage::fused(&[q, k, v]) {
            let (q, k, v) = (HeadRows::arrange(q)?, HeadRows::arrange(k)?, HeadRows::arrange(v)?);
            q.apply_op3(&k, &v, fused::Attention::new(segments, scale))
        } else {
            grouped::attention(q, k, v, segments, scale)
        }
    })
}

/// Every query once, every key in the tensor, and a causal run no longer than its keys.
pub(super) fn check(segments: &[Segment], tq: usize, tk: usize) -> Result<()> {
    let mut order: Vec<&Segment> = segments.iter().collect();
    order.sort_by_key(|segment| (segment.queries.start, segment.queries.end));
    let mut next = 0;
    for segment in order {
        let Segment { queries, sees, own, causal } = segment;
        if queries.start != next || queries.end < queries.start {
            bail!("attention: expected queries from {next}, found {queries:?}");
        }
        next = queries.end;
        if let Some(range) = sees.iter().chain([own]).find(|r| r.start > r.end || r.end > tk) {
            bail!("attention: queries {queries:?} see keys {range:?} of {tk}");
        }
        if *causal && own.len() < queries.len() {
            bail!("attention: causal queries {queries:?} have only the keys {own:?}");
        }
    }
    if next != tq {
        bail!("attention: the segments hold {next} of {tq} queries");
    }
    Ok(())
}
