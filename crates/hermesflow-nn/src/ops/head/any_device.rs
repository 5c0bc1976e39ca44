//! The vocabulary head on any device, as a composition of candle's operators. Logits exist for [`ROWS`] rows at a time only; the
//! backward pass computes them again.

use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor};

use crate::matmul::f32_results;
use crate::matmul::training::Products;
use crate::measure::profile::{Part, part};
use crate::ops::affine::Affine;
use crate::ops::any_device::{collect_affine, column};
use crate::ops::node::node;

/// Rows whose logits exist at a time outside the CPU: a quarter of a gigabyte over a large vocabulary.
pub const ROWS: usize = 1024;

/// [`super::head_log_prob`] for arguments that were checked.
pub(super) fn log_prob(x: &Tensor, head: Affine, targets: &[u32], products: Products) -> Result<Tensor> {
    let values = part(Part::Head, x.device(), || forward(&x.detach(), &head, targets, products))?;
    let (given, targets): (_, Arc<[u32]>) = (x.detach(), targets.into());
    node("head-log-prob", x, values, move |grad| {
        let grad = grad.unsqueeze(1)?;
        part(Part::Head, given.device(), || backward(&given, &head, &targets, products, &grad))
    })
}

fn forward(x: &Tensor, head: &Affine, targets: &[u32], products: Products) -> Result<Tensor> {
    let n = x.dim(0)?;
    let mut parts = Vec::with_capacity(n.div_ceil(ROWS));
    for (first, targets) in (0..n).step_by(ROWS).zip(targets.chunks(ROWS)) {
        let rows = products.operand(&x.narrow(0, first, targets.len())?)?;
        let (logits, normalizers) = normalized(&rows, head, products)?;
        let chosen = logits.gather(&column(targets, x.device())?, D::Minus1)?;
        parts.push((chosen - normalizers)?.squeeze(1)?);
    }
    if parts.is_empty() { Tensor::zeros(0, DType::F32, x.device()) } else { Tensor::cat(&parts, 0) }
}

/// Logits minus the largest of their row, and the logarithm of the sum of their exponentials, `[n, v]` and `[n, 1]`.
fn normalized(x: &Tensor, head: &Affine, products: Products) -> Result<(Tensor, Tensor)> {
    let logits = products.affine_any_device(x, head)?;
    let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let normalizers = logits.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok((logits, normalizers))
}

/// The gradient of `x`; those of weight and bias are collected. The gradient of the logits is `(onehot - softmax) g`.
fn backward(x: &Tensor, head: &Affine, targets: &[u32], products: Products, grad: &Tensor) -> Result<Tensor> {
    let weight = products.operand(&head.weight)?;
    let mut parts = Vec::with_capacity(targets.len().div_ceil(ROWS));
    for (part, targets) in targets.chunks(ROWS).enumerate() {
        let (first, rows) = (part * ROWS, targets.len());
        let (x, grad) = (products.operand(&x.narrow(0, first, rows)?)?, grad.narrow(0, first, rows)?.contiguous()?);
        let (logits, normalizers) = normalized(&x, head, products)?;
        let softmax = logits.broadcast_sub(&normalizers)?.exp()?;
        drop(logits);
        let wide = softmax.broadcast_mul(&grad.neg()?)?;
        drop(softmax);
        let wide = wide.scatter_add(&column(targets, x.device())?, &grad, 1)?;
        let narrow = products.operand(&wide)?;
        collect_affine(head, &narrow, &wide, &x)?;
        parts.push(f32_results::multiply(&narrow, &weight)?);
    }
    Tensor::cat(&parts, 0)
}
