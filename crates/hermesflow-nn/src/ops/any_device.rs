//! What the compositions for any device share: affine maps, norms and activations of training with their backward passes, made
//! of candle's operators.
//!
//! Tensors here have no graph. The operands of matrix products are in the products' type and their results in f32
//! ([`f32_results`]); everything else is in f32. A weight is converted to the products' type at each use and dropped again.

use candle_core::{D, Device, Result, Tensor};

use super::affine::Affine;
use super::by_rows;
use crate::gradients;
use crate::matmul::f32_results;
use crate::matmul::training::Products;
use crate::measure::profile::{Part, part};

impl Products {
    /// A tensor as an operand of these products, without a graph.
    pub(crate) fn operand(self, x: &Tensor) -> Result<Tensor> {
        x.detach().to_dtype(self.dtype())
    }

    /// `x Wᵀ + b` in f32 of `x [n, in]`, an [`operand`](Self::operand).
    pub(crate) fn affine_any_device(self, x: &Tensor, map: &Affine) -> Result<Tensor> {
        f32_results::multiply(x, &self.operand(&map.weight)?.t()?)?.broadcast_add(&map.bias.detach())
    }
}

/// `Σ x` over the rows of `x [n, d]`: a product with ones, which a GPU sums faster than columns.
pub(crate) fn column_sums(x: &Tensor) -> Result<Tensor> {
    let ones = Tensor::ones((1, x.dim(0)?), x.dtype(), x.device())?;
    f32_results::multiply(&ones, x)?.squeeze(0)
}

/// Adds a gradient to those that [`gradients`] collects.
pub(crate) fn collect(weight: &Tensor, gradient: impl FnOnce() -> Result<Tensor>) -> Result<()> {
    gradients::add_tensor(weight, |sum| match sum {
        None => gradient(),
        Some(sum) => sum + gradient()?,
    })
}

/// Adds the gradients of an affine map, `dW = gᵀ x` and `db = Σ g`, to those that [`gradients`] collects.
///
/// # Shapes
/// `grad [n, out]` and `x [n, in]` as operands, `wide_grad [n, out]`: the same gradient in f32
pub(crate) fn collect_affine(map: &Affine, grad: &Tensor, wide_grad: &Tensor, x: &Tensor) -> Result<()> {
    gradients::add_tensor(&map.weight, |sum| match sum {
        None => f32_results::multiply(&grad.t()?, x),
        Some(sum) => f32_results::add(&sum, &grad.t()?, x).map(|()| sum),
    })?;
    collect(&map.bias, || column_sums(wide_grad))
}

/// Rows minus their means, `[.., d]`, and `1 / sqrt(variance + eps)` of each, `[.., 1]`.
pub(crate) fn centred(x: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    Ok((x, scale))
}

/// LayerNorm over the last dimension of `x [.., d]`.
pub(crate) fn norm(x: &Tensor, map: &Affine, eps: f64) -> Result<Tensor> {
    part(Part::Norms, x.device(), || {
        let (weight, bias) = (map.weight.detach(), map.bias.detach());
        if let Some(done) = by_rows::layer_norm(x, &weight, &bias, eps) {
            return done;
        }
        let (x, scale) = centred(x, eps)?;
        x.broadcast_mul(&scale)?.broadcast_mul(&weight)?.broadcast_add(&bias)
    })
}

/// The gradient of `x [n, d]` through its LayerNorm; those of weight and bias, `Σ g n` and `Σ g`, are collected.
///
/// With `n = (x - mean) scale` and `a = g weight`: `dx = scale (a - mean(a) - n mean(a n))`.
pub(crate) fn norm_back(x: &Tensor, map: &Affine, grad: &Tensor, eps: f64) -> Result<Tensor> {
    part(Part::Norms, x.device(), || {
        let (x, scale) = centred(x, eps)?;
        let x = x.broadcast_mul(&scale)?;
        collect(&map.weight, || column_sums(&(grad * &x)?))?;
        collect(&map.bias, || column_sums(grad))?;
        let grad = grad.broadcast_mul(&map.weight.detach())?;
        let along = (&grad * &x)?.mean_keepdim(D::Minus1)?;
        let grad = grad.broadcast_sub(&grad.mean_keepdim(D::Minus1)?)?;
        (grad - x.broadcast_mul(&along)?)?.broadcast_mul(&scale)
    })
}

/// The gradient of `x` through the tanh form of GELU.
pub(crate) fn gelu_back(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    const SLOPE: f64 = 1.595_769_121_605_730_7;
    const CUBIC: f64 = SLOPE * 0.044_715;
    let square = x.sqr()?;
    // 1 / (1 + e^(-2u)), and the derivative of 2u times x.
    let gate = ((x * square.affine(-CUBIC, -SLOPE)?)?.exp()? + 1.0)?.recip()?;
    let along = (x * square.affine(3.0 * CUBIC, SLOPE)?)?;
    let slope = (gate.affine(-1.0, 1.0)? * along)?.affine(1.0, 1.0)?;
    grad * (gate * slope)?
}

/// Indices as a column, `[n, 1]`.
pub(crate) fn column(values: &[u32], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(values, (values.len(), 1), device)
}
