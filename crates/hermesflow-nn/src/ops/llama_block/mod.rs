//! A block of LLaMA as one operator with its own backward pass, for training large models.
//!
//! As [`super::decoder`] does it for Phi: the backward pass keeps what it cannot cheaply compute again and frees it as it
//! goes, and the weights' gradients are summed in place ([`crate::gradients`]).

#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};

use super::attention::fused::Attention;
use super::attention::segment::{Segment, check};
use super::grouped_heads::grouped_attention;
use super::host_block::{HostPasses, host_block};
use super::linear::linear;
use super::rms_norm::{self, rms_norm};
use super::rotary::{Rotary, rotary};
use super::swiglu::{self, swiglu};
use crate::device::uses_kernels;
use crate::gradients;
use crate::matmul::training::Products;
use crate::measure::profile::{Part, on_host};
use crate::simd::add_to;
use crate::storage::{HeadRows, host};

/// The weights and numbers of a block.
#[derive(Debug, Clone)]
pub struct LlamaBlock {
    /// Of the RMSNorm before attention, `[h]`.
    pub input_norm: Tensor,
    /// `[h, h]`.
    pub query: Tensor,
    /// `[key heads · d, h]`.
    pub key: Tensor,
    /// `[key heads · d, h]`.
    pub value: Tensor,
    /// `[h, h]`.
    pub output: Tensor,
    /// Of the RMSNorm before the feed-forward layer, `[h]`.
    pub post_norm: Tensor,
    /// `[m, h]`.
    pub gate: Tensor,
    /// `[m, h]`.
    pub up: Tensor,
    /// `[h, m]`.
    pub down: Tensor,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub key_heads: usize,
    /// Added to mean squares.
    pub eps: f64,
    /// How matrices are multiplied.
    pub products: Products,
    /// Whether the backward pass keeps only the input and computes the rest again: the same numbers for less memory.
    pub recompute: bool,
}

impl LlamaBlock {
    fn weights(&self) -> [&Tensor; 9] {
        let Self { input_norm, query, key, value, output, post_norm, gate, up, down, .. } = self;
        [input_norm, query, key, value, output, post_norm, gate, up, down]
    }
}

/// `y = x + attention(norm(x))`, then `y + down(silu(gate(norm(y))) · up(norm(y)))`.
///
/// On the CPU its backward pass runs in [`crate::gradients::backward`] only.
///
/// # Shapes
/// `x [n, h]`, `cos` and `sin` `[n, d / 2]` -> `[n, h]`; segments as in [`super::attention()`]
///
/// # Errors
/// When weights are trained and `x` has no graph: their gradients would be lost.
pub fn llama_block(
    x: &Tensor,
    block: &LlamaBlock,
    (cos, sin): (&Tensor, &Tensor),
    segments: &Arc<[Segment]>,
) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let LlamaBlock { heads, key_heads, .. } = *block;
    if key_heads == 0 || heads == 0 || !heads.is_multiple_of(key_heads) || !width.is_multiple_of(heads) {
        bail!("llama block: {heads} heads on {key_heads} key heads in x {:?}", x.dims());
    }
    if block.weights().iter().any(|weight| weight.track_op()) && !x.track_op() {
        bail!("llama block: its weights are trained, what it is applied to is not");
    }
    check(segments, n, n)?;
    if !uses_kernels(x.device()) {
        return composed(x, block, (cos, sin), segments);
    }
    let d = width / heads;
    let table = |table: &Tensor| -> Result<Arc<[f32]>> { Ok(table.flatten_all()?.to_vec1::<f32>()?.into()) };
    let most = block.weights().iter().filter_map(|weight| weight.dims().first()).max().copied().unwrap_or(0);
    let run = Run {
        attention: Attention::new(segments, 1.0 / (d as f32).sqrt()),
        no_bias: Tensor::zeros(most, DType::F32, x.device())?,
        block: block.clone(),
        cos: table(cos)?,
        sin: table(sin)?,
    };
    host_block("llama-block", x, run, block.recompute)
}

/// The same operator by operator, for any device.
fn composed(
    x: &Tensor,
    block: &LlamaBlock,
    (cos, sin): (&Tensor, &Tensor),
    segments: &Arc<[Segment]>,
) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let d = width / block.heads;
    let products = block.products;
    // Operands are rounded to the products' type; results are in f32.
    let multiply = |x: &Tensor, weight: &Tensor| match products {
        Products::F32 => linear(x, weight, None),
        Products::Bf16 => x.to_dtype(DType::BF16)?.matmul(&weight.to_dtype(DType::BF16)?.t()?)?.to_dtype(DType::F32),
    };
    let normed = rms_norm(x, &block.input_norm, block.eps)?;
    let query = multiply(&normed, &block.query)?.reshape((n, block.heads, d))?;
    let key = multiply(&normed, &block.key)?.reshape((n, block.key_heads, d))?;
    let value = multiply(&normed, &block.value)?.reshape((n, block.key_heads, d))?;
    let (query, key) = (rotary(&query, cos, sin)?, rotary(&key, cos, sin)?);
    let seen = grouped_attention(&query, &key, &value, segments, 1.0 / (d as f32).sqrt())?;
    let x = (x + multiply(&seen, &block.output)?)?;
    let normed = rms_norm(&x, &block.post_norm, block.eps)?;
    let inner = swiglu(&multiply(&normed, &block.gate)?, &multiply(&normed, &block.up)?)?;
    x + multiply(&inner, &block.down)?
}

struct Run {
    block: LlamaBlock,
    attention: Attention,
    /// Zeros, as many as any projection has outputs.
    no_bias: Tensor,
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
}

/// What the backward pass needs beside `x`.
struct Saved {
    /// As attention sees them: rotated, and keys and values for each query head.
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    seen: Vec<f32>,
    /// The input of the feed-forward half.
    between: Vec<f32>,
    /// Before the activation.
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Run {
    fn norm(&self, x: &[f32], weight: &Tensor) -> Result<Vec<f32>> {
        let (w, layout) = weight.storage_and_layout();
        let w = host(&w, layout)?;
        on_host(Part::Norms, || Ok(rms_norm::forward(x, w, self.block.eps as f32)))
    }

    /// `dx`; the gradient of the weight is collected.
    fn norm_back(&self, x: &[f32], weight: &Tensor, grad: &[f32]) -> Result<Vec<f32>> {
        let (dx, dw) = {
            let (w, layout) = weight.storage_and_layout();
            let w = host(&w, layout)?;
            on_host(Part::Norms, || Ok(rms_norm::backward(x, w, grad, self.block.eps as f32)))?
        };
        gradients::add_vector(weight, &dw)?;
        Ok(dx)
    }

    fn multiply(&self, x: &[f32], weight: &Tensor) -> Result<Vec<f32>> {
        self.block.products.affine(x, weight, &self.no_bias.narrow(0, 0, weight.dim(0)?)?)
    }

    /// The gradient of a product's input, added to `sum`; that of the weight is collected.
    fn back(&self, weight: &Tensor, grad: &[f32], x: &[f32], sum: Option<Vec<f32>>) -> Result<Vec<f32>> {
        self.block.products.weight_gradients(grad, x, weight, &self.no_bias)?;
        self.block.products.input_gradient(grad, weight, sum)
    }

    /// Rotates heads of `d` numbers by their tokens' angles, or back.
    fn rotate(&self, x: &[f32], heads: usize, d: usize, back: bool) -> Vec<f32> {
        let rows = HeadRows { data: x, stride: heads * d };
        Rotary::all(rows, (x.len() / (heads * d), heads, d), &self.cos, &self.sin, back)
    }

    /// Key heads, each in the place of every query head that reads it.
    fn spread(&self, x: Vec<f32>, d: usize) -> Vec<f32> {
        let sharing = self.block.heads / self.block.key_heads;
        match sharing {
            1 => x,
            _ => x.chunks_exact(d).flat_map(|head| std::iter::repeat_n(head, sharing).flatten().copied()).collect(),
        }
    }

    /// The sums of the gradients of [`Run::spread`].
    fn gathered(&self, x: Vec<f32>, d: usize) -> Vec<f32> {
        let sharing = self.block.heads / self.block.key_heads;
        if sharing == 1 {
            return x;
        }
        let sum = |heads: &[f32]| {
            let (first, others) = heads.split_at(d);
            let mut sum = first.to_vec();
            others.chunks_exact(d).for_each(|head| add_to(&mut sum, head));
            sum
        };
        x.chunks_exact(d * sharing).flat_map(sum).collect()
    }
}

impl HostPasses for Run {
    type Saved = Saved;

    /// All but the last product.
    fn inner(&self, x: &[f32], width: usize) -> Result<Saved> {
        let (block, n, d) = (&self.block, x.len() / width, width / self.block.heads);
        let normed = self.norm(x, &block.input_norm)?;
        let query = self.rotate(&self.multiply(&normed, &block.query)?, block.heads, d, false);
        let key = self.rotate(&self.multiply(&normed, &block.key)?, block.key_heads, d, false);
        let key = self.spread(key, d);
        let value = self.spread(self.multiply(&normed, &block.value)?, d);
        drop(normed);
        let heads = [&query, &key, &value].map(|data| HeadRows { data, stride: width });
        let seen = on_host(Part::Attention, || Ok(self.attention.forward(heads, n, block.heads, d)))?;
        let mut between = self.multiply(&seen, &block.output)?;
        add_to(&mut between, x);
        let normed = self.norm(&between, &block.post_norm)?;
        let (gate, up) = (self.multiply(&normed, &block.gate)?, self.multiply(&normed, &block.up)?);
        Ok(Saved { query, key, value, seen, between, gate, up })
    }

    fn forward(&self, x: &[f32], width: usize) -> Result<(Vec<f32>, Saved)> {
        let saved = self.inner(x, width)?;
        let mut y = self.multiply(&swiglu::forward(&saved.gate, &saved.up), &self.block.down)?;
        add_to(&mut y, &saved.between);
        Ok((y, saved))
    }

    fn backward(&self, x: &[f32], saved: Saved, grad: &[f32], width: usize) -> Result<Vec<f32>> {
        let Saved { query, key, value, seen, between, gate, up } = saved;
        let (block, n, d) = (&self.block, x.len() / width, width / self.block.heads);
        let active = self.back(&block.down, grad, &swiglu::forward(&gate, &up), None)?;
        let (d_gate, d_up) = swiglu::backward(&gate, &up, &active);
        drop((gate, up, active));
        let normed = self.norm(&between, &block.post_norm)?;
        let d_normed = self.back(&block.gate, &d_gate, &normed, None)?;
        drop(d_gate);
        let d_normed = self.back(&block.up, &d_up, &normed, Some(d_normed))?;
        drop((d_up, normed));
        // The gradient of what stands between the halves, and so far of the input.
        let mut d_between = self.norm_back(&between, &block.post_norm, &d_normed)?;
        drop((between, d_normed));
        add_to(&mut d_between, grad);
        let d_seen = self.back(&block.output, &d_between, &seen, None)?;
        let heads = [&query, &key, &value].map(|data| HeadRows { data, stride: width });
        let size = (n, n, block.heads, d);
        let [d_query, d_key, d_value] =
            on_host(Part::Attention, || self.attention.backward(heads, &seen, &d_seen, size))?;
        drop((query, key, value, seen, d_seen));
        let normed = self.norm(x, &block.input_norm)?;
        let d_normed = self.back(&block.value, &self.gathered(d_value, d), &normed, None)?;
        let d_query = self.rotate(&d_query, block.heads, d, true);
        let d_normed = self.back(&block.query, &d_query, &normed, Some(d_normed))?;
        let d_key = self.rotate(&self.gathered(d_key, d), block.key_heads, d, true);
        let d_normed = self.back(&block.key, &d_key, &normed, Some(d_normed))?;
        let mut dx = self.norm_back(x, &block.input_norm, &d_normed)?;
        add_to(&mut dx, &d_between);
        Ok(dx)
    }
}
