//! Scaled dot-product attention, `softmax(scale q kᵀ) v`, over packed sequences: prompts, prefixes and cached continuations in
//! one flat row of tokens, without a batch dimension, padding or a mask.
//!
//! [`Segment`]s say which keys a query sees. They cover every pattern of a unified model:
//!
//! * **a causal text**: one segment, `own` = its tokens, `causal`;
//! * **an image block** that sees a prompt and all of itself: `sees` = the prompt, `own` = the image, not `causal`;
//! * **several replies about one image**: each sees the same range of prefix keys, which is computed and stored once;
//! * **cached decoding**: `own` is longer than `queries`, which are its last tokens.
//!
//! The kernel for the CPU ([`fused`]) never holds the whole matrix of scores. It keeps the log-sum-exp of each query and head,
//! and the backward pass computes the scores again (Dao et al., "FlashAttention", arXiv:2205.14135, section 3.1). On any other
//! device attention is a composition of candle's operators ([`grouped`]).

mod alone;
mod block;
pub(crate) mod fused;
pub(crate) mod grouped;
mod plan;
pub(crate) mod segment;
#[cfg(test)]
mod tests;
mod together;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use self::segment::{Segment, check};
use crate::device::uses_kernels;
use crate::measure::profile::{Part, part};
use crate::storage::{HeadRows, kernels_take};

/// The type in which keys and values are best kept beside matrices in `dtype`: f32 for the CPU's kernels, `dtype` elsewhere.
pub fn key_value_dtype(dtype: DType, device: &Device) -> DType {
    if uses_kernels(device) { DType::F32 } else { dtype }
}

/// [`key_value_dtype`] where nearly all passes have single queries on many keys of their own, whose heads have `d` numbers: the
/// CPU reads those in bf16, too, if it has AVX-512.
pub fn own_key_value_dtype(dtype: DType, device: &Device, d: usize) -> DType {
    if dtype == DType::BF16 && uses_kernels(device) && alone::takes(d) { dtype } else { key_value_dtype(dtype, device) }
}

/// Attention of packed queries on packed keys: for each query and head,
/// `softmax(scale q kᵀ) v` over the keys that its segment sees.
///
/// The segments' queries are disjoint and cover `0..tq`, in any order. On the CPU keys and values may be in bf16 under queries in
/// f32, for forward passes.
///
/// # Shapes
/// `q [tq, heads, d]`, `k [tk, heads, d]`, `v [tk, heads, d]` -> `[tq, heads * d]`
///
/// # Errors
/// When shapes or segments do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, segments: &Arc<[Segment]>, scale: f32) -> Result<Tensor> {
    let ((tq, heads, d), (tk, _, _)) = (q.dims3()?, k.dims3()?);
    if k.dims() != [tk, heads, d] || v.dims() != k.dims() {
        bail!("attention: q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
    }
    check(segments, tq, tk)?;
    part(Part::Attention, q.device(), || {
        let kept = [k, v].iter().all(|x| x.dtype() == DType::BF16);
        if kept && kernels_take(&[q]) {
            let single = segments.iter().all(|segment| segment.queries.len() == 1);
            let in_graph = q.track_op() || k.track_op() || v.track_op();
            let (k, v) = if single && !in_graph && alone::takes(d) {
                (HeadRows::arrange(k)?, HeadRows::arrange(v)?)
            } else {
                // Rows that nobody sees are left where they are.
                let ranges = segments.iter().flat_map(|segment| segment.sees.iter().chain([&segment.own]));
                let rows = ranges.map(|range| range.end).max().unwrap_or(0);
                let wide = |x: &Tensor| HeadRows::arrange(&x.narrow(0, 0, rows)?)?.to_dtype(DType::F32);
                (wide(k)?, wide(v)?)
            };
            HeadRows::arrange(q)?.apply_op3(&k, &v, fused::Attention::new(segments, scale))
        } else if kernels_take(&[q, k, v]) {
            let (q, k, v) = (HeadRows::arrange(q)?, HeadRows::arrange(k)?, HeadRows::arrange(v)?);
            q.apply_op3(&k, &v, fused::Attention::new(segments, scale))
        } else {
            grouped::attention(q, k, v, segments, scale)
        }
    })
}
