//! A decoder block of Phi whose weights are not trained, with its key/value cache, on a GPU.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::attention::{self, HEAD_SIZES};
use super::product::{self, By};
use super::rows::{Heads, Place, gelu_with_bias, narrowed, norm, takes_rotation, takes_width};
use crate::measure::profile::{Part, part};
use crate::ops::affine::Affine;
use crate::ops::attention::segment::Segment;
use crate::ops::decoder::block::{Cached, DecoderBlock};

/// Whether the kernels take a block with matrices in this type and vectors in f32: device, types and sizes fit.
pub(super) fn takes_sizes(x: &Tensor, block: &DecoderBlock, cos: &Tensor, matrices: DType) -> bool {
    let affine = [&block.query, &block.key, &block.value, &block.dense, &block.up, &block.down];
    let fits =
        |map: &&Affine| map.weight.dtype() == matrices && map.weight.is_contiguous() && map.bias.dtype() == DType::F32;
    let norms = [&block.norm, &block.query_norm, &block.key_norm];
    let norm = |map: &&Affine| map.weight.dtype() == DType::F32 && map.bias.dtype() == DType::F32;
    let (width, inner) = (x.dims().last().copied().unwrap_or(0), block.up.bias.elem_count());
    // The kernels need bf16 and asynchronous copies: compute capability 8 or later.
    x.device().is_cuda()
        && crate::device::multiplies_bf16(x.device())
        && x.dtype() == DType::F32
        && affine.iter().all(fits)
        && norms.iter().all(norm)
        && block.heads > 0
        && HEAD_SIZES.contains(&(width / block.heads))
        && takes_width(width)
        && cos.dtype() == DType::F32
        && cos.dims().last().is_some_and(|half| takes_rotation(*half))
        && inner.is_multiple_of(8)
}

/// Whether the kernels take a block for inference: matrices in bf16, and sizes that fit.
pub(crate) fn takes_frozen(x: &Tensor, block: &DecoderBlock, cos: &Tensor) -> bool {
    takes_sizes(x, block, cos, DType::BF16)
}

/// Fewest rows for which the activation is computed within the product before it: that reads and writes less, but rounds the bias
/// to bf16.
const MANY: usize = 256;

/// [`crate::ops::frozen_block`] for arguments that were checked and that [`takes_frozen`]; `x` is changed in place.
pub(crate) fn frozen_block(
    x: &Tensor,
    block: &DecoderBlock,
    tables: (&Tensor, &Tensor),
    segments: &Arc<[Segment]>,
    cached: &Cached,
) -> Result<()> {
    let device = x.device();
    let (n, width) = x.dims2()?;
    let d = width / block.heads;
    let normed = part(Part::Norms, device, || norm(x, &block.norm, block.eps, DType::BF16))?;
    let multiply = |x: &Tensor, map: &Affine| product::multiply(x, By::Transposed(&map.weight), None, DType::BF16);
    let [q, k, v] = part(Part::Products, device, || {
        Ok([multiply(&normed, &block.query)?, multiply(&normed, &block.key)?, multiply(&normed, &block.value)?])
    })?;
    // Keys and values of this pass go into the cache, or behind a copy of it.
    let (keys, values, place) = match cached {
        Cached::Nothing => {
            // SAFETY: the kernel writes all rows.
            let all = || unsafe { Tensor::empty((n, block.heads, d), DType::BF16, device) };
            (all()?, all()?, Place::From(0))
        }
        Cached::In { keys, values, rows: Some(rows), .. } => ((*keys).clone(), (*values).clone(), Place::Rows(rows)),
        Cached::In { keys, values, rows: None, first } => ((*keys).clone(), (*values).clone(), Place::From(*first)),
        Cached::Behind { keys, values } => {
            let before = keys.dim(0)?;
            let all = |known: &Tensor| -> Result<Tensor> {
                // SAFETY: the cache's rows are copied to the first rows, and the kernel writes the others.
                let all = unsafe { Tensor::empty((before + n, block.heads, d), DType::BF16, device)? };
                if before > 0 {
                    all.slice_set(&known.contiguous()?, 0, 0)?;
                }
                Ok(all)
            };
            (all(keys)?, all(values)?, Place::From(before))
        }
    };
    let heads = Heads::of(block, tables);
    let queries = part(Part::Norms, device, || heads.rotated([&q, &k, &v], (&keys, &values), &place))?;
    drop((q, k, v));
    let scale = 1.0 / (d as f32).sqrt();
    let operands = [&queries, &keys, &values];
    let (seen, _) = part(Part::Attention, device, || attention::forward(operands, segments, scale, false))?;
    drop((queries, keys, values));
    let add = |x: &Tensor, by: &Tensor, map: &Affine| product::add(x, by, By::Transposed(&map.weight), Some(&map.bias));
    part(Part::Products, device, || add(x, &seen, &block.dense))?;
    drop(seen);
    let inner = if n >= MANY {
        let bias = narrowed(&block.up.bias)?;
        part(Part::Products, device, || product::activated(&normed, By::Transposed(&block.up.weight), &bias))?
    } else {
        let inner = part(Part::Products, device, || multiply(&normed, &block.up))?;
        part(Part::Activations, device, || gelu_with_bias(&inner, &block.up.bias, true))?
    };
    drop(normed);
    part(Part::Products, device, || add(x, &inner, &block.down))
}
