//! The vocabulary head with the log-probabilities of its targets. Logits exist for some rows at a time only; the backward
//! pass computes them again.

use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor};

use crate::matmul::Products;
use crate::matmul::f32_results;
use crate::measure::{Part, part};
use crate::ops::any_device::collect_affine;
use crate::ops::any_device::column;
use crate::ops::decoder::Pair;
use crate::ops::node::node;

/// Rows at a time: their logits over a large vocabulary are a quarter of a gigabyte.
pub const ROWS: usize = 1024;

/// As [`crate::ops::head_log_prob`], of arguments that fit each other.
pub(in crate::ops) fn log_prob(x: &Tensor, head: Pair, targets: &[u32], products: Products) -> Result<Tensor> {
    let values = part(Part::Head, x.device(), || forward(&x.detach(), &head, targets, products))?;
    let (given, targets): (_, Arc<[u32]>) = (x.detach(), targets.into());
    node("head-log-prob", x, values, move |grad| {
        let grad = grad.unsqueeze(1)?;
        part(Part::Head, given.device(), || backward(&given, &head, &targets, products, &grad))
    })
}

fn forward(x: &Tensor, head: &Pair, targets: &[u32], products: Products) -> Result<Tensor> {
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

/// Logits less their largest, and the logarithms of the sums of their exponentials.
fn normalized(x: &Tensor, head: &Pair, products: Products) -> Result<(Tensor, Tensor)> {
    let logits = products.composed_affine(x, head)?;
    let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let normalizers = logits.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok((logits, normalizers))
}

/// The logits' gradients are `(onehot - softmax) g`.
fn backward(x: &Tensor, head: &Pair, targets: &[u32], products: Products, grad: &Tensor) -> Result<Tensor> {
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
