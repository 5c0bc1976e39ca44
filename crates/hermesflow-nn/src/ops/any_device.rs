//! The operators of training as compositions of candle's, with their backward passes, for any device: what a GPU runs.
//!
//! Tensors here have no graph. Matrix products are of operands in the products' type with results in f32 ([`f32_results`]);
//! everything else is in f32. A weight is brought into the products' type where it is used and dropped again.

use candle_core::{D, Device, Result, Tensor};

use super::by_rows;
use super::decoder::Pair;
use crate::gradients;
use crate::matmul::f32_results;
use crate::matmul::training::Products;
use crate::measure::{Part, part};

impl Products {
    /// An operand of a product, without a graph.
    pub(crate) fn operand(self, x: &Tensor) -> Result<Tensor> {
        x.detach().to_dtype(self.dtype())
    }

    /// `x Wᵀ + b` of an operand `x [n, in]`.
    pub(crate) fn composed_affine(self, x: &Tensor, pair: &Pair) -> Result<Tensor> {
        f32_results::multiply(x, &self.operand(&pair.weight)?.t()?)?.broadcast_add(&pair.bias.detach())
    }
}

/// `Σ x` over the rows of `x [n, d]`: a product with ones, which a GPU sums faster than columns.
pub(crate) fn column_sums(x: &Tensor) -> Result<Tensor> {
    let ones = Tensor::ones((1, x.dim(0)?), x.dtype(), x.device())?;
    f32_results::multiply(&ones, x)?.squeeze(0)
}

/// Adds a whole gradient to those that are collected.
pub(crate) fn collect(weight: &Tensor, gradient: impl FnOnce() -> Result<Tensor>) -> Result<()> {
    gradients::add_tensor(weight, |sum| match sum {
        None => gradient(),
        Some(sum) => sum + gradient()?,
    })
}

/// Adds `dW = gᵀ x` and `db = Σ g`, of the gradient as an operand and in f32, and of the operand `x`.
pub(crate) fn collect_affine(pair: &Pair, grad: &Tensor, wide_grad: &Tensor, x: &Tensor) -> Result<()> {
    gradients::add_tensor(&pair.weight, |sum| match sum {
        None => f32_results::multiply(&grad.t()?, x),
        Some(sum) => f32_results::add(&sum, &grad.t()?, x).map(|()| sum),
    })?;
    collect(&pair.bias, || column_sums(wide_grad))
}

/// Rows less their means, with their reciprocal deviations.
pub(crate) fn centred(x: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    Ok((x, scale))
}

/// LayerNorm of rows `[n, d]`.
pub(crate) fn norm(x: &Tensor, pair: &Pair, eps: f64) -> Result<Tensor> {
    part(Part::Norms, x.device(), || {
        let (weight, bias) = (pair.weight.detach(), pair.bias.detach());
        if let Some(done) = by_rows::layer_norm(x, &weight, &bias, eps) {
            return done;
        }
        let (x, scale) = centred(x, eps)?;
        x.broadcast_mul(&scale)?.broadcast_mul(&weight)?.broadcast_add(&bias)
    })
}

/// With `n = (x - mean) scale` and `a = g weight`: `dx = scale (a - mean(a) - n mean(a n))`; the gradients of weight and
/// bias, `Σ g n` and `Σ g`, are collected.
pub(crate) fn norm_back(x: &Tensor, pair: &Pair, grad: &Tensor, eps: f64) -> Result<Tensor> {
    part(Part::Norms, x.device(), || {
        let (x, scale) = centred(x, eps)?;
        let x = x.broadcast_mul(&scale)?;
        collect(&pair.weight, || column_sums(&(grad * &x)?))?;
        collect(&pair.bias, || column_sums(grad))?;
        let grad = grad.broadcast_mul(&pair.weight.detach())?;
        let along = (&grad * &x)?.mean_keepdim(D::Minus1)?;
        let grad = grad.broadcast_sub(&grad.mean_keepdim(D::Minus1)?)?;
        (grad - x.broadcast_mul(&along)?)?.broadcast_mul(&scale)
    })
}

/// The gradient of `gelu_tanh` at `x`.
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

/// Whole numbers as a column of indices.
pub(crate) fn column(values: &[u32], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(values, (values.len(), 1), device)
}
