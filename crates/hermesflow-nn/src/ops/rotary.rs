//! Rotary position embedding: Su et al., "RoFormer" (arXiv:2104.09864), with the pairs of GPT-NeoX and Phi: dimensions `i` and
//! `i + rot/2` are rotated together, and dimensions from `rot` on stay as they are.

use std::collections::HashMap;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};

use crate::parallel;
use crate::simd::vectorised;
use crate::storage::{HeadRows, cpu, elements, host, kernels_take};

/// About as many elements has a task, in whole tokens.
const RUN: usize = 8 * 1024;

/// Cosines and sines of the angles `position · frequency`, computed in f32: for each position those of every frequency.
pub fn rotary_angles(positions: &[u32], frequencies: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let half = frequencies.len();
    let mut cos = Vec::with_capacity(positions.len() * half);
    let mut sin = Vec::with_capacity(positions.len() * half);
    // Where each position occurs first, because the sequences of a batch have equal positions.
    let mut known: HashMap<u32, usize> = HashMap::new();
    for &position in positions {
        if let Some(&at) = known.get(&position) {
            cos.extend_from_within(at..at + half);
            sin.extend_from_within(at..at + half);
            continue;
        }
        known.insert(position, cos.len());
        for frequency in frequencies {
            let angle = position as f32 * frequency;
            cos.push(angle.cos());
            sin.push(angle.sin());
        }
    }
    (cos, sin)
}

/// Rotates the first `rot` dimensions of each head by its token's angles, which get no gradient.
///
/// # Shapes
/// `x [n, heads, d]`, `cos [n, rot/2]`, `sin [n, rot/2]` -> `[n, heads, d]`
///
/// # Errors
/// When shapes do not fit.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let ((n, _, d), (tokens, half)) = (x.dims3()?, cos.dims2()?);
    if tokens != n || sin.dims() != cos.dims() || 2 * half > d {
        bail!("rotary: x {:?}, cos {:?}, sin {:?}", x.dims(), cos.dims(), sin.dims());
    }
    let (cos, sin) = (cos.detach(), sin.detach());
    if kernels_take(&[x, &cos, &sin]) {
        HeadRows::arrange(x)?.apply_op3(&cos.contiguous()?, &sin.contiguous()?, Rotary)
    } else {
        any_device(x, &cos, &sin)
    }
}

/// [`rotary`] by candle's operators.
pub(super) fn any_device(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (half, d) = (cos.dim(1)?, x.dim(2)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let mut parts =
        vec![(a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?, (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?];
    if d > 2 * half {
        parts.push(x.narrow(2, 2 * half, d - 2 * half)?);
    }
    Tensor::cat(&parts, D::Minus1)
}

/// The operator on the CPU.
pub(super) struct Rotary;

vectorised! {
    /// Rotates one token's heads by its angles, or back.
    fn rotate(y: &mut [f32], x: &[f32], d: usize, cos: &[f32], sin: &[f32], back: bool) {
        let half = cos.len();
        let sign = if back { -1.0 } else { 1.0 };
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let (ya, rest) = y.split_at_mut(half);
            let (yb, y_rest) = rest.split_at_mut(half);
            let (xa, rest) = x.split_at(half);
            let (xb, x_rest) = rest.split_at(half);
            for i in 0..half {
                let (c, s) = (cos[i], sign * sin[i]);
                ya[i] = xa[i] * c - xb[i] * s;
                yb[i] = xb[i] * c + xa[i] * s;
            }
            y_rest.copy_from_slice(x_rest);
        }
    }
}

impl Rotary {
    /// All tokens' heads rotated by their angles, or back.
    ///
    /// # Shapes
    /// `x [n, heads, d]`, `cos` and `sin` `[n, rot/2]` -> `[n, heads, d]`
    pub(super) fn all(
        x: HeadRows<'_>,
        (n, heads, d): (usize, usize, usize),
        cos: &[f32],
        sin: &[f32],
        back: bool,
    ) -> Vec<f32> {
        let (row, half) = (heads * d, cos.len() / n.max(1));
        let mut y = vec![0f32; n * row];
        let one = |(token, y): (usize, &mut [f32])| {
            let x = &x.data[token * x.stride..][..row];
            rotate(y, x, d, &cos[token * half..][..half], &sin[token * half..][..half], back);
        };
        let tokens = (RUN / row.max(1)).max(1);
        if n <= tokens {
            y.chunks_exact_mut(row).enumerate().for_each(one);
        } else {
            parallel::each_run(&mut y, tokens * row, |at, y| {
                y.chunks_exact_mut(row).enumerate().for_each(|(token, y)| one((at * tokens + token, y)));
            });
        }
        y
    }
}

impl CustomOp3 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (cos, sin) = (elements(cos, cos_layout)?, elements(sin, sin_layout)?);
        let y = Self::all(HeadRows::new(x, layout)?, layout.shape().dims3()?, cos, sin, false);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = HeadRows::arrange(grad)?;
        let (g_store, g_layout) = grad.storage_and_layout();
        let (c_store, c_layout) = cos.storage_and_layout();
        let (s_store, s_layout) = sin.storage_and_layout();
        let (cos, sin) = (host(&c_store, c_layout)?, host(&s_store, s_layout)?);
        let dx = Self::all(HeadRows::new(cpu(&g_store)?, g_layout)?, x.dims3()?, cos, sin, true);
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), None, None))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{agree, normal};

    #[test]
    fn agrees_with_plain_candle() {
        for (n, heads, d, half) in [(3, 2, 8, 4), (129, 3, 10, 2), (1, 1, 7, 3)] {
            let (cos, sin) = (normal(&[n, half]), normal(&[n, half]));
            agree(&[normal(&[n, heads, d])], |v| rotary(&v[0], &cos, &sin), |v| any_device(&v[0], &cos, &sin));
        }
    }

    #[test]
    fn takes_a_slice_of_a_wider_projection() {
        let (n, heads, d) = (70, 2, 6);
        let (cos, sin) = (normal(&[n, 3]), normal(&[n, 3]));
        let part = |v: &Tensor| v.narrow(1, heads * d, heads * d)?.reshape((n, heads, d));
        let view = |v: &Tensor| v.reshape((n, 3 * heads, d))?.narrow(1, heads, heads);
        agree(
            &[normal(&[n, 3 * heads * d])],
            |v| rotary(&view(&v[0])?, &cos, &sin),
            |v| any_device(&part(&v[0])?, &cos, &sin),
        );
    }

    #[test]
    fn keeps_lengths_and_relative_angles() {
        let angles: Vec<f32> = (0..6).map(|position| position as f32 * 0.3).collect();
        let angles = Tensor::from_vec(angles, (6, 1), &candle_core::Device::Cpu).unwrap();
        let x = Tensor::new(&[[[1f32, 0.5]]], &candle_core::Device::Cpu).unwrap().repeat((6, 1, 1)).unwrap();
        let y = rotary(&x, &angles.cos().unwrap(), &angles.sin().unwrap()).unwrap();
        let y = y.squeeze(1).unwrap().to_vec2::<f32>().unwrap();
        let product = |i: usize, j: usize| y[i][0] * y[j][0] + y[i][1] * y[j][1];
        assert!((product(0, 0) - 1.25).abs() < 1e-6 && (product(5, 5) - 1.25).abs() < 1e-6);
        assert!((product(1, 3) - product(3, 5)).abs() < 1e-6);
    }
}
