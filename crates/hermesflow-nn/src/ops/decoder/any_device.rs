//! A decoder block of Phi: the forward and the backward pass of [`crate::ops::decoder_block`].

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::matmul::f32_results;
use crate::ops::Segment;
use crate::ops::any_device::collect_affine;
use crate::ops::any_device::gelu_back;
use crate::ops::any_device::norm;
use crate::ops::any_device::norm_back;
use crate::ops::attention::grouped::Grouped;
use crate::ops::decoder::{DecoderBlock, Pair};
use crate::ops::node::{Passes, node_of};
use crate::ops::rotary;

/// As [`crate::ops::decoder_block`], of arguments that fit each other.
pub(in crate::ops) fn block(
    x: &Tensor,
    block: &DecoderBlock,
    (cos, sin): (&Tensor, &Tensor),
    segments: &Arc<[Segment]>,
) -> Result<Tensor> {
    let run = Run { block: block.clone(), cos: cos.detach(), sin: sin.detach(), segments: segments.clone() };
    node_of("decoder-block", x, run, block.checkpoint)
}

struct Run {
    block: DecoderBlock,
    cos: Tensor,
    sin: Tensor,
    segments: Arc<[Segment]>,
}

/// What the backward pass needs beside `x`.
struct Saved {
    /// Queries and keys before their normalisation, in f32.
    query: Tensor,
    key: Tensor,
    /// As attention sees them, and what was seen, as operands of products.
    attention: Grouped,
    seen: Tensor,
    /// Before the activation, in f32.
    up: Tensor,
}

impl Run {
    /// `[n, h]` to `[n, heads, d]`.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (n, width) = x.dims2()?;
        x.reshape((n, self.block.heads, width / self.block.heads))
    }

    /// Norms each head of `x [n, h]` and turns it by its token's angles.
    fn turned(&self, x: &Tensor, pair: &Pair) -> Result<Tensor> {
        rotary::plain(&norm(&self.split(x)?, pair, self.block.eps)?, &self.cos, &self.sin)
    }

    /// The gradient of [`Run::turned`].
    fn turned_back(&self, x: &Tensor, pair: &Pair, grad: &Tensor) -> Result<Tensor> {
        let (n, heads, d) = grad.dims3()?;
        let grad = rotary::plain(grad, &self.cos, &self.sin.neg()?)?.reshape((n * heads, d))?;
        norm_back(&x.reshape((n * heads, d))?, pair, &grad, self.block.eps)?.reshape((n, heads * d))
    }
}

impl Passes for Run {
    type Saved = Saved;

    /// What the backward pass needs, and all but the last two products.
    fn inner(&self, x: &Tensor) -> Result<Saved> {
        let (block, products) = (&self.block, self.block.products);
        let (_, width) = x.dims2()?;
        let normed = products.operand(&norm(x, &block.norm, block.eps)?)?;
        let query = products.composed_affine(&normed, &block.query)?;
        let key = products.composed_affine(&normed, &block.key)?;
        let value = products.operand(&self.split(&products.composed_affine(&normed, &block.value)?)?)?;
        let turned_query = self.turned(&query, &block.query_norm)?;
        let turned_key = products.operand(&self.turned(&key, &block.key_norm)?)?;
        let scale = 1.0 / ((width / block.heads) as f32).sqrt();
        // Planned for a backward pass also where there is none, so that a reference adds in the order of its policy.
        let attention = Grouped::new([&turned_query, &turned_key, &value], &self.segments, scale, true)?;
        drop((turned_query, turned_key, value));
        let seen = products.operand(&attention.forward()?)?;
        let up = products.composed_affine(&normed, &block.up)?;
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
        // Collects an affine map's gradients; its input's gradient is added to `sum`.
        let back = |pair: &Pair, wide_grad: &Tensor, x: &Tensor, sum: Option<&Tensor>| -> Result<Tensor> {
            let (grad, weight) = (products.operand(wide_grad)?, products.operand(&pair.weight)?);
            collect_affine(pair, &grad, wide_grad, x)?;
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
        let d_query = self.turned_back(&query, &block.query_norm, &d_query)?;
        back(&block.query, &d_query, &normed, Some(&d_normed))?;
        let d_key = self.turned_back(&key, &block.key_norm, &d_key)?;
        back(&block.key, &d_key, &normed, Some(&d_normed))?;
        norm_back(x, &block.norm, &d_normed, block.eps)? + grad
    }
}
