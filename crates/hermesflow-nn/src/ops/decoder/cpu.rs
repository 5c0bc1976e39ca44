//! The decoder block on the CPU, on slices in f32.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::block::DecoderBlock;
use crate::gradients;
use crate::measure::profile::{Part, on_host};
use crate::ops::affine::Affine;
use crate::ops::attention::fused::Attention;
use crate::ops::attention::segment::Segment;
use crate::ops::gelu;
use crate::ops::host_block::{HostPasses, host_block};
use crate::ops::layer_norm;
use crate::ops::rotary::Rotary;
use crate::simd::add_to;
use crate::storage::{HeadRows, host};

/// [`super::decoder_block`] for arguments that were checked.
pub(super) fn block(
    x: &Tensor,
    block: &DecoderBlock,
    (cos, sin): (&Tensor, &Tensor),
    segments: &Arc<[Segment]>,
) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    let d = width / block.heads;
    let table = |table: &Tensor| -> Result<Arc<[f32]>> { Ok(table.flatten_all()?.to_vec1::<f32>()?.into()) };
    let run = Run {
        attention: Attention::new(segments, 1.0 / (d as f32).sqrt()),
        block: block.clone(),
        cos: table(cos)?,
        sin: table(sin)?,
    };
    host_block("decoder-block", x, run, block.recompute)
}

/// LayerNorm of rows.
fn norm(by: &Affine, x: &[f32], eps: f32) -> Result<Vec<f32>> {
    let ((w, w_layout), (b, b_layout)) = (by.weight.storage_and_layout(), by.bias.storage_and_layout());
    let (w, b) = (host(&w, w_layout)?, host(&b, b_layout)?);
    on_host(Part::Norms, || Ok(layer_norm::forward(x, w, b, eps)))
}

/// The gradient of the rows `x` through [`norm`]; those of its weight and bias are collected.
fn norm_back(by: &Affine, x: &[f32], grad: &[f32], eps: f32) -> Result<Vec<f32>> {
    let (dx, sums) = {
        let (w, layout) = by.weight.storage_and_layout();
        let w = host(&w, layout)?;
        on_host(Part::Norms, || Ok(layer_norm::backward(x, w, grad, eps)))?
    };
    let (dw, db) = sums.split_at(sums.len() / 2);
    gradients::add_vector(&by.weight, dw)?;
    gradients::add_vector(&by.bias, db)?;
    Ok(dx)
}

/// The operator with its weights.
struct Run {
    block: DecoderBlock,
    attention: Attention,
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
}

/// What the backward pass needs besides `x`, `[n, h]` each but `up`.
struct Saved {
    /// Queries before their normalisation.
    query: Vec<f32>,
    /// Keys before their normalisation.
    key: Vec<f32>,
    /// Queries normalised and rotated.
    rotated_query: Vec<f32>,
    /// Keys normalised and rotated.
    rotated_key: Vec<f32>,
    value: Vec<f32>,
    /// What attention gave.
    seen: Vec<f32>,
    /// The inner layer before its activation, `[n, m]`.
    up: Vec<f32>,
}

impl Run {
    /// Each head rotated by its token's angles, or back.
    fn rotate(&self, x: &[f32], width: usize, back: bool) -> Vec<f32> {
        let (n, heads) = (x.len() / width, self.block.heads);
        let rows = HeadRows { data: x, stride: width };
        Rotary::all(rows, (n, heads, width / heads), &self.cos, &self.sin, back)
    }

    /// A map of the block.
    fn affine(&self, map: &Affine, x: &[f32]) -> Result<Vec<f32>> {
        self.block.products.affine(x, &map.weight, &map.bias)
    }
}

impl HostPasses for Run {
    type Saved = Saved;

    /// Everything but the last two products.
    fn inner(&self, x: &[f32], width: usize) -> Result<Saved> {
        let (block, n) = (&self.block, x.len() / width);
        let eps = block.eps as f32;
        let affine = |map: &Affine, x: &[f32]| self.affine(map, x);
        let normed = norm(&block.norm, x, eps)?;
        let (query, key) = (affine(&block.query, &normed)?, affine(&block.key, &normed)?);
        let value = affine(&block.value, &normed)?;
        let rotated_query = self.rotate(&norm(&block.query_norm, &query, eps)?, width, false);
        let rotated_key = self.rotate(&norm(&block.key_norm, &key, eps)?, width, false);
        let heads = [&rotated_query, &rotated_key, &value].map(|data| HeadRows { data, stride: width });
        let attend = || Ok(self.attention.forward(heads, n, block.heads, width / block.heads));
        let seen = on_host(Part::Attention, attend)?;
        let up = affine(&block.up, &normed)?;
        Ok(Saved { query, key, rotated_query, rotated_key, value, seen, up })
    }

    fn forward(&self, x: &[f32], width: usize) -> Result<(Vec<f32>, Saved)> {
        let saved = self.inner(x, width)?;
        let mut y = self.affine(&self.block.dense, &saved.seen)?;
        let mlp = self.affine(&self.block.down, &gelu::tanh_forward(&saved.up))?;
        add_residual(&mut y, x, &mlp);
        Ok((y, saved))
    }

    fn backward(&self, x: &[f32], saved: Saved, grad: &[f32], width: usize) -> Result<Vec<f32>> {
        let Saved { query, key, rotated_query, rotated_key, value, seen, up } = saved;
        let (block, n) = (&self.block, x.len() / width);
        let eps = block.eps as f32;
        // The gradient of an affine map's input, added to `sum`.
        let back = |map: &Affine, grad: &[f32], x: &[f32], sum: Option<Vec<f32>>| {
            block.products.weight_gradients(grad, x, &map.weight, &map.bias)?;
            block.products.input_gradient(grad, &map.weight, sum)
        };
        let normed = norm(&block.norm, x, eps)?;
        let active = back(&block.down, grad, &gelu::tanh_forward(&up), None)?;
        let d_up = gelu::tanh_backward(&up, &active);
        drop((up, active));
        let d_normed = back(&block.up, &d_up, &normed, None)?;
        drop(d_up);
        let d_seen = back(&block.dense, grad, &seen, None)?;
        let heads = [&rotated_query, &rotated_key, &value].map(|data| HeadRows { data, stride: width });
        let size = (n, n, block.heads, width / block.heads);
        let attend = || self.attention.backward(heads, &seen, &d_seen, size);
        let [d_query, d_key, d_value] = on_host(Part::Attention, attend)?;
        drop((rotated_query, rotated_key, value, seen, d_seen));
        let d_normed = back(&block.value, &d_value, &normed, Some(d_normed))?;
        let d_query = norm_back(&block.query_norm, &query, &self.rotate(&d_query, width, true), eps)?;
        let d_normed = back(&block.query, &d_query, &normed, Some(d_normed))?;
        let d_key = norm_back(&block.key_norm, &key, &self.rotate(&d_key, width, true), eps)?;
        let d_normed = back(&block.key, &d_key, &normed, Some(d_normed))?;
        let mut dx = norm_back(&block.norm, x, &d_normed, eps)?;
        dx.par_chunks_mut(RUN).zip(grad.par_chunks(RUN)).for_each(|(dx, grad)| add_to(dx, grad));
        Ok(dx)
    }
}

/// Elements per task of what is computed element by element.
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
