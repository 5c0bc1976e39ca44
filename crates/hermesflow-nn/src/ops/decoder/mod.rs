//! A decoder block of Phi as one operator with its own backward pass, for training large models.
//!
//! Operator by operator, candle adds each of a block's thirty gradients to zeros in new memory and keeps every
//! intermediate result. Here the backward pass keeps what it cannot cheaply compute again, frees it as it goes, and the
//! weights' gradients are summed in place ([`crate::gradients`]).

mod any_device;
pub mod frozen;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::Segment;
use super::attention::fused::Attention;
use super::rotary::Rotary;
use crate::matmul::training::Products;
use crate::storage::{HeadRows, elements, host, on_cpu};

use super::gelu;
use super::layer_norm;
use crate::gradients;
use crate::measure::{Part, on_host};

/// A weight and its bias: of an affine map, or of a normalisation.
#[derive(Debug, Clone)]
pub struct Pair {
    /// `[out, in]` or `[d]`.
    pub weight: Tensor,
    /// `[out]` or `[d]`.
    pub bias: Tensor,
}

impl Pair {
    fn norm(&self, x: &[f32], eps: f32) -> Result<Vec<f32>> {
        let ((w, w_layout), (b, b_layout)) = (self.weight.storage_and_layout(), self.bias.storage_and_layout());
        let (w, b) = (host(&w, w_layout)?, host(&b, b_layout)?);
        on_host(Part::Norms, || Ok(layer_norm::forward(x, w, b, eps)))
    }

    /// `dx`; the gradients of weight and bias are collected.
    fn norm_back(&self, x: &[f32], grad: &[f32], eps: f32) -> Result<Vec<f32>> {
        let (dx, sums) = {
            let (w, layout) = self.weight.storage_and_layout();
            let w = host(&w, layout)?;
            on_host(Part::Norms, || Ok(layer_norm::backward(x, w, grad, eps)))?
        };
        let (dw, db) = sums.split_at(sums.len() / 2);
        gradients::add_vector(&self.weight, dw)?;
        gradients::add_vector(&self.bias, db)?;
        Ok(dx)
    }
}

/// The weights and numbers of a block.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct DecoderBlock {
    pub norm: Pair,
    pub query: Pair,
    pub key: Pair,
    pub value: Pair,
    pub dense: Pair,
    pub query_norm: Pair,
    pub key_norm: Pair,
    pub up: Pair,
    pub down: Pair,
    pub heads: usize,
    pub eps: f64,
    pub products: Products,
    /// Whether the backward pass keeps only the input and computes the rest again: the same numbers for less memory.
    pub checkpoint: bool,
}

/// `x + attention(norm(x)) + mlp(norm(x))`, with normalised and turned queries and keys.
///
/// Its backward pass runs in [`crate::gradients::backward`] only.
///
/// # Shapes
/// `x [n, h]`, `cos` and `sin` `[n, rotated / 2]` -> `[n, h]`; segments as in [`super::attention()`]
///
/// # Errors
/// When weights are trained and `x` has no graph: their gradients would be lost.
pub fn decoder_block(
    x: &Tensor,
    block: &DecoderBlock,
    (cos, sin): (&Tensor, &Tensor),
    segments: &Arc<[Segment]>,
) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    if block.heads == 0 || !width.is_multiple_of(block.heads) {
        bail!("decoder block: {} heads in x {:?}", block.heads, x.dims());
    }
    if block.query.weight.track_op() && !x.track_op() {
        bail!("decoder block: its weights are trained, what it is applied to is not");
    }
    super::attention::check(segments, n, n)?;
    #[cfg(feature = "cuda")]
    if super::gpu::takes_trained(x, block, cos) {
        return super::gpu::trained_block(x, block, (cos, sin), segments);
    }
    if !on_cpu(x.device()) {
        return any_device::block(x, block, (cos, sin), segments);
    }
    let d = width / block.heads;
    let table = |table: &Tensor| -> Result<Arc<[f32]>> { Ok(table.flatten_all()?.to_vec1::<f32>()?.into()) };
    let run = Run {
        attention: Attention::new(segments, 1.0 / (d as f32).sqrt()),
        block: block.clone(),
        cos: table(cos)?,
        sin: table(sin)?,
        saved: (x.track_op() && !block.checkpoint).then(Mutex::default),
    };
    x.contiguous()?.apply_op1(run)
}

struct Run {
    block: DecoderBlock,
    attention: Attention,
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    /// From forward to backward, where there will be one.
    saved: Option<Mutex<Option<Saved>>>,
}

/// What the backward pass needs beside `x`.
struct Saved {
    /// Queries and keys before their normalisation.
    query: Vec<f32>,
    key: Vec<f32>,
    /// As attention sees them.
    turned_query: Vec<f32>,
    turned_key: Vec<f32>,
    value: Vec<f32>,
    seen: Vec<f32>,
    /// Before the activation.
    up: Vec<f32>,
}

impl Run {
    fn turn(&self, x: &[f32], width: usize, back: bool) -> Vec<f32> {
        let (n, heads) = (x.len() / width, self.block.heads);
        let rows = HeadRows { data: x, stride: width };
        Rotary::all(rows, (n, heads, width / heads), &self.cos, &self.sin, back)
    }

    fn affine(&self, pair: &Pair, x: &[f32]) -> Result<Vec<f32>> {
        self.block.products.affine(x, &pair.weight, &pair.bias)
    }

    /// What the backward pass needs, and all but the last two products.
    fn inner(&self, x: &[f32], width: usize) -> Result<Saved> {
        let (block, n) = (&self.block, x.len() / width);
        let eps = block.eps as f32;
        let affine = |pair: &Pair, x: &[f32]| self.affine(pair, x);
        let normed = block.norm.norm(x, eps)?;
        let (query, key) = (affine(&block.query, &normed)?, affine(&block.key, &normed)?);
        let value = affine(&block.value, &normed)?;
        let turned_query = self.turn(&block.query_norm.norm(&query, eps)?, width, false);
        let turned_key = self.turn(&block.key_norm.norm(&key, eps)?, width, false);
        let heads = [&turned_query, &turned_key, &value].map(|data| HeadRows { data, stride: width });
        let attend = || Ok(self.attention.forward(heads, n, block.heads, width / block.heads));
        let seen = on_host(Part::Attention, attend)?;
        let up = affine(&block.up, &normed)?;
        Ok(Saved { query, key, turned_query, turned_key, value, seen, up })
    }

    fn forward(&self, x: &[f32], width: usize) -> Result<(Vec<f32>, Saved)> {
        let saved = self.inner(x, width)?;
        let mut y = self.affine(&self.block.dense, &saved.seen)?;
        let mlp = self.affine(&self.block.down, &gelu::tanh_forward(&saved.up))?;
        add_residual(&mut y, x, &mlp);
        Ok((y, saved))
    }

    fn backward(&self, x: &[f32], grad: &[f32], width: usize) -> Result<Vec<f32>> {
        let saved = self.saved.as_ref().and_then(|saved| saved.lock().unwrap_or_else(PoisonError::into_inner).take());
        let Saved { query, key, turned_query, turned_key, value, seen, up } = match saved {
            Some(saved) => saved,
            None if self.block.checkpoint => self.inner(x, width)?,
            None => bail!("decoder block: backward before forward, or twice"),
        };
        let (block, n) = (&self.block, x.len() / width);
        let eps = block.eps as f32;
        // The gradient of an affine map's input, added to `sum`.
        let back = |pair: &Pair, grad: &[f32], x: &[f32], sum: Option<Vec<f32>>| {
            block.products.weight_gradients(grad, x, &pair.weight, &pair.bias)?;
            block.products.input_gradient(grad, &pair.weight, sum)
        };
        let normed = block.norm.norm(x, eps)?;
        let active = back(&block.down, grad, &gelu::tanh_forward(&up), None)?;
        let d_up = gelu::tanh_backward(&up, &active);
        drop((up, active));
        let d_normed = back(&block.up, &d_up, &normed, None)?;
        drop(d_up);
        let d_seen = back(&block.dense, grad, &seen, None)?;
        let heads = [&turned_query, &turned_key, &value].map(|data| HeadRows { data, stride: width });
        let size = (n, n, block.heads, width / block.heads);
        let attend = || self.attention.backward(heads, &seen, &d_seen, size);
        let [d_query, d_key, d_value] = on_host(Part::Attention, attend)?;
        drop((turned_query, turned_key, value, seen, d_seen));
        let d_normed = back(&block.value, &d_value, &normed, Some(d_normed))?;
        let d_query = block.query_norm.norm_back(&query, &self.turn(&d_query, width, true), eps)?;
        let d_normed = back(&block.query, &d_query, &normed, Some(d_normed))?;
        let d_key = block.key_norm.norm_back(&key, &self.turn(&d_key, width, true), eps)?;
        let d_normed = back(&block.key, &d_key, &normed, Some(d_normed))?;
        let mut dx = block.norm.norm_back(x, &d_normed, eps)?;
        dx.par_chunks_mut(RUN).zip(grad.par_chunks(RUN)).for_each(|(dx, grad)| crate::simd::add_to(dx, grad));
        Ok(dx)
    }
}

/// Elements of one task.
const RUN: usize = 16 * 1024;

/// `y ← (x + y) + mlp`.
fn add_residual(y: &mut [f32], x: &[f32], mlp: &[f32]) {
    let parts = x.par_chunks(RUN).zip(mlp.par_chunks(RUN));
    y.par_chunks_mut(RUN).zip(parts).for_each(|(y, (x, mlp))| {
        for ((y, x), mlp) in y.iter_mut().zip(x).zip(mlp) {
            *y = (x + *y) + mlp;
        }
    });
}

impl CustomOp1 for Run {
    fn name(&self) -> &'static str {
        "decoder-block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        let (y, kept) = self.forward(elements(x, layout)?, width)?;
        if let Some(saved) = &self.saved {
            *saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, width) = x.dims2()?;
        let grad = grad.contiguous()?;
        let ((xs, x_layout), (gs, g_layout)) = (x.storage_and_layout(), grad.storage_and_layout());
        let dx = self.backward(host(&xs, x_layout)?, host(&gs, g_layout)?, width)?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests;
