//! A decoder block of Phi whose weights are trained, on a GPU. Weights, their gradients and the residual stream are in f32,
//! everything between two products in bf16.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};

use super::attention;
use super::product::{self, By};
use super::rows::{Heads, Place, gelu_back, gelu_with_bias, narrowed, norm, norm_back};
use crate::matmul::training::Products;
use crate::measure::profile::{Part, part};
use crate::ops::affine::Affine;
use crate::ops::any_device::{collect, collect_affine};
use crate::ops::attention::segment::Segment;
use crate::ops::decoder::block::DecoderBlock;
use crate::ops::node::{Passes, node_of};

/// Whether the kernels take a block: products in bf16, matrices in f32 or bf16, and sizes that fit.
pub(crate) fn takes_trained(x: &Tensor, block: &DecoderBlock, cos: &Tensor) -> bool {
    let products = block.products == Products::Bf16;
    let of = |matrices| super::frozen::takes_sizes(x, block, cos, matrices);
    products && (of(DType::F32) || of(DType::BF16))
}

/// [`crate::ops::decoder_block`] for arguments that were checked and that [`takes_trained`].
pub(crate) fn trained_block(
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

/// What the backward pass needs besides `x`, in bf16 except the sums.
struct Saved {
    /// Queries before their bias and norm, `[n, h]`.
    query: Tensor,
    /// Keys before their bias and norm, `[n, h]`.
    key: Tensor,
    /// Queries, keys and values as attention takes them, `[n, heads, d]`.
    operands: [Tensor; 3],
    /// What attention gave, `[n, h]`.
    seen: Tensor,
    /// The log-sum-exp of the scores, `[heads, n]` in f32.
    log_sums: Tensor,
    /// The inner layer before its bias and activation, `[n, m]`.
    up: Tensor,
}

/// A tensor in bf16, as an operand of products.
fn operand(x: &Tensor) -> Result<Tensor> {
    part(Part::Conversions, x.device(), || narrowed(x))
}

/// Collects the gradients of an affine map, from the gradient of its result and from its input, both in bf16.
fn collect_narrow(map: &Affine, grad: &Tensor, x: &Tensor) -> Result<()> {
    part(Part::Products, x.device(), || collect_affine(map, grad, grad, x))
}

/// Collects the gradients of a norm's weight and bias.
fn collect_norm(map: &Affine, [weight, bias]: [Tensor; 2]) -> Result<()> {
    collect(&map.weight, || Ok(weight))?;
    collect(&map.bias, || Ok(bias))
}

impl Run {
    fn heads(&self) -> Heads<'_> {
        Heads::of(&self.block, (&self.cos, &self.sin))
    }

    fn scale(&self, width: usize) -> f32 {
        1.0 / ((width / self.block.heads) as f32).sqrt()
    }

    fn normed(&self, x: &Tensor) -> Result<Tensor> {
        part(Part::Norms, x.device(), || norm(x, &self.block.norm, self.block.eps, DType::BF16))
    }

    fn active(&self, up: &Tensor) -> Result<Tensor> {
        part(Part::Activations, up.device(), || gelu_with_bias(up, &self.block.up.bias.detach(), false))
    }
}

impl Passes for Run {
    type Saved = Saved;

    /// Everything but the last two products: what the backward pass needs.
    fn inner(&self, x: &Tensor) -> Result<Saved> {
        let (block, device, (n, width)) = (&self.block, x.device(), x.dims2()?);
        let normed = self.normed(x)?;
        let multiply = |map: &Affine| -> Result<Tensor> {
            let weight = operand(&map.weight)?;
            part(Part::Products, device, || product::multiply(&normed, By::Transposed(&weight), None, DType::BF16))
        };
        let (query, key, value) = (multiply(&block.query)?, multiply(&block.key)?, multiply(&block.value)?);
        // SAFETY: the kernel writes all rows.
        let rows = || unsafe { Tensor::empty((n, block.heads, width / block.heads), DType::BF16, device) };
        let (keys, values) = (rows()?, rows()?);
        let queries = part(Part::Norms, device, || {
            self.heads().rotated([&query, &key, &value], (&keys, &values), &Place::From(0))
        })?;
        drop(value);
        let operands = [queries, keys, values];
        let (seen, log_sums) = part(Part::Attention, device, || {
            attention::forward(operands.each_ref(), &self.segments, self.scale(width), true)
        })?;
        let Some(log_sums) = log_sums else { bail!("attention gave no sums") };
        let up = multiply(&block.up)?;
        Ok(Saved { query, key, operands, seen, log_sums, up })
    }

    fn forward(&self, x: &Tensor) -> Result<(Tensor, Saved)> {
        let saved = self.inner(x)?;
        let y = x.copy()?;
        let add = |x: &Tensor, map: &Affine| -> Result<()> {
            let (weight, bias) = (operand(&map.weight)?, map.bias.detach());
            part(Part::Products, y.device(), || product::add(&y, x, By::Transposed(&weight), Some(&bias)))
        };
        add(&saved.seen, &self.block.dense)?;
        add(&self.active(&saved.up)?, &self.block.down)?;
        Ok((y, saved))
    }

    fn backward(&self, x: &Tensor, saved: Saved, wide: &Tensor) -> Result<Tensor> {
        let Saved { query, key, operands, seen, log_sums, up } = saved;
        let (block, device, (n, width)) = (&self.block, x.device(), x.dims2()?);
        let grad = operand(wide)?;
        // The gradient of an affine map's input.
        let back = |grad: &Tensor, map: &Affine, dtype: DType| -> Result<Tensor> {
            let weight = operand(&map.weight)?;
            part(Part::Products, device, || product::multiply(grad, By::AsItLies(&weight), None, dtype))
        };
        collect_narrow(&block.down, &grad, &self.active(&up)?)?;
        let d_up = back(&grad, &block.down, DType::BF16)?;
        part(Part::Activations, device, || gelu_back(&up, &block.up.bias.detach(), &d_up))?;
        drop(up);
        let normed = self.normed(x)?;
        collect_narrow(&block.up, &d_up, &normed)?;
        let d_normed = back(&d_up, &block.up, DType::F32)?;
        drop(d_up);
        collect_narrow(&block.dense, &grad, &seen)?;
        let d_seen = back(&grad, &block.dense, DType::BF16)?;
        let [d_query, d_key, d_value] = part(Part::Attention, device, || {
            let scale = self.scale(width);
            attention::backward(operands.each_ref(), (&seen, &log_sums), &d_seen, &self.segments, scale)
        })?;
        drop((operands, seen, log_sums, d_seen));
        let heads = self.heads();
        let (d_query, of_query_norm) = part(Part::Norms, device, || heads.back(0, &query, &d_query))?;
        let (d_key, of_key_norm) = part(Part::Norms, device, || heads.back(1, &key, &d_key))?;
        collect_norm(&block.query_norm, of_query_norm)?;
        collect_norm(&block.key_norm, of_key_norm)?;
        for (map, grad) in [(&block.query, d_query), (&block.key, d_key), (&block.value, d_value.reshape((n, width))?)]
        {
            collect_narrow(map, &grad, &normed)?;
            let weight = operand(&map.weight)?;
            part(Part::Products, device, || product::add(&d_normed, &grad, By::AsItLies(&weight), None))?;
        }
        let (dx, of_norm) = part(Part::Norms, device, || norm_back(x, &block.norm, &d_normed, wide, block.eps))?;
        collect_norm(&block.norm, of_norm)?;
        Ok(dx)
    }
}
