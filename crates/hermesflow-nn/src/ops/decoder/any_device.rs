//! The decoder block on any device, as a composition of candle's operators with its own backward pass.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::block::DecoderBlock;
use crate::matmul::f32_results;
use crate::ops::affine::Affine;
use crate::ops::any_device::{collect_affine, gelu_back, norm, norm_back};
use crate::ops::attention::grouped::Grouped;
use crate::ops::attention::segment::Segment;
use crate::ops::node::{Passes, node_of};
use crate::ops::rotary;

/// [`super::decoder_block`] for arguments that were checked.
pub(super) fn block(
    x: &Tensor,
    block: &DecoderBlock,
    (cos, sin): (&Tensor, &Tensor),
    segments: &Arc<[Segment]>,
) -> Result<Tensor> {
    let run = Run { block: block.clone(), cos: cos.detach(), sin: sin.detach(), segments: segments.clone() };
    node_of("decoder-block", x, run, block.recompute)
}

/// The operator with its weights.
struct Run {
    block: DecoderBlock,
    cos: Tensor,
    sin: Tensor,
    segments: Arc<[Segment]>,
}

/// What the backward pass needs besides `x`.
struct Saved {
    /// Queries before their normalisation, `[n, h]` in f32.
    query: Tensor,
    /// Keys before their normalisation, `[n, h]` in f32.
    key: Tensor,
    /// Attention with its queries, keys and values.
    attention: Grouped,
    /// What attention gave, `[n, h]` in the products' type.
    seen: Tensor,
    /// The inner layer before its activation, `[n, m]` in f32.
    up: Tensor,
}

impl Run {
    /// `[n, h]` to `[n, heads, d]`.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (n, width) = x.dims2()?;
        x.reshape((n, self.block.heads, width / self.block.heads))
    }

    /// Each head of `x [n, h]`, normalised and rotated by its token's angles, `[n, heads, d]`.
    fn rotated(&self, x: &Tensor, map: &Affine) -> Result<Tensor> {
        rotary::any_device(&norm(&self.split(x)?, map, self.block.eps)?, &self.cos, &self.sin)
    }

    /// The gradient of `x` through [`Run::rotated`]; those of the norm's weight and bias are collected.
    fn rotated_back(&self, x: &Tensor, map: &Affine, grad: &Tensor) -> Result<Tensor> {
        let (n, heads, d) = grad.dims3()?;
        let grad = rotary::any_device(grad, &self.cos, &self.sin.neg()?)?.reshape((n * heads, d))?;
        norm_back(&x.reshape((n * heads, d))?, map, &grad, self.block.eps)?.reshape((n, heads * d))
    }
}

impl Passes for Run {
    type Saved = Saved;

    /// Everything but the last two products: what the backward pass needs.
    fn inner(&self, x: &Tensor) -> Result<Saved> {
        let (block, products) = (&self.block, self.block.products);
        let (_, width) = x.dims2()?;
        let normed = products.operand(&norm(x, &block.norm, block.eps)?)?;
        let query = products.affine_any_device(&normed, &block.query)?;
        let key = products.affine_any_device(&normed, &block.key)?;
        let value = products.operand(&self.split(&products.affine_any_device(&normed, &block.value)?)?)?;
        let rotated_query = self.rotated(&query, &block.query_norm)?;
        let rotated_key = products.operand(&self.rotated(&key, &block.key_norm)?)?;
        let scale = 1.0 / ((width / block.heads) as f32).sqrt();
        // Planned as if a backward pass followed, even where none does, so that a reference model sums in the order of the model
        // that is trained.
        let attention = Grouped::new([&rotated_query, &rotated_key, &value], &self.segments, scale, true)?;
        drop((rotated_query, rotated_key, value));
        let seen = products.operand(&attention.forward()?)?;
        let up = products.affine_any_device(&normed, &block.up)?;
        Ok(Saved { query, key, attention, seen, up })
    }

    fn forward(&self, x: &Tensor) -> Result<(Tensor, Saved)> {
        let (block, products) = (&self.block, self.block.products);
        let saved = self.inner(x)?;
        let Saved { seen, up, .. } = &saved;
        let y = x.broadcast_add(&(block.dense.bias.detach() + block.down.bias.detach())?)?;
        f32_results::add(&y, seen, &products.operand(&block.dense.weight)?.t()?)?;
        f32_results::add(&y, &products.operand(&up.gelu()?)?, &products.operand(&block.down.weight)?.t()?)?;
        Ok((y, saved))
    }

    fn backward(&self, x: &Tensor, saved: Saved, grad: &Tensor) -> Result<Tensor> {
        let Saved { query, key, attention, seen, up } = saved;
        let (block, products) = (&self.block, self.block.products);
        let (n, width) = x.dims2()?;
        // The gradient of an affine map's input, added to `sum` if that is given; those of weight and bias are collected.
        let back = |map: &Affine, wide_grad: &Tensor, x: &Tensor, sum: Option<&Tensor>| -> Result<Tensor> {
            let (grad, weight) = (products.operand(wide_grad)?, products.operand(&map.weight)?);
            collect_affine(map, &grad, wide_grad, x)?;
            match sum {
                None => f32_results::multiply(&grad, &weight),
                Some(sum) => f32_results::add(sum, &grad, &weight).map(|()| sum.clone()),
            }
        };
        let active = back(&block.down, grad, &products.operand(&up.gelu()?)?, None)?;
        let d_up = gelu_back(&up, &active)?;
        drop((up, active));
        let normed = products.operand(&norm(x, &block.norm, block.eps)?)?;
        let d_normed = back(&block.up, &d_up, &normed, None)?;
        drop(d_up);
        let d_seen = back(&block.dense, grad, &seen, None)?;
        let [d_query, d_key, d_value] = attention.backward(&d_seen)?;
        drop((attention, seen, d_seen));
        back(&block.value, &d_value.reshape((n, width))?, &normed, Some(&d_normed))?;
        let d_query = self.rotated_back(&query, &block.query_norm, &d_query)?;
        back(&block.query, &d_query, &normed, Some(&d_normed))?;
        let d_key = self.rotated_back(&key, &block.key_norm, &d_key)?;
        back(&block.key, &d_key, &normed, Some(&d_normed))?;
        norm_back(x, &block.norm, &d_normed, block.eps)? + grad
    }
}
