//! `x Wᵀ + b` of slices in f32 on the CPU, and its gradients.
//!
//! Many rows are one product into a result that already holds the bias. For few rows, as in decoding, packing the weight
//! for that product costs more than the product itself. They run as `yᵀ = W xᵀ`, which reads the weight as it lies, followed
//! by a transposition.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::operand::Operand;
use super::product::product;
use super::unpacked::{self, Product};
use super::{Kernel, cpu_kernel};
use crate::simd::{LANES, add_to, vectorised};
use crate::storage::host;

/// Fewest multiplications of a product that is shared between threads.
const PARALLEL_FROM: usize = 64 * 1024;

vectorised! {
    /// Rows `first..` of `y [.., out]` from `transposed [out, rows]`, plus the bias.
    fn transpose_back(y: &mut [f32], transposed: &[f32], bias: Option<&[f32]>, first: usize, rows: usize, out: usize) {
        let lines = y.len() / out;
        for column in (0..out).step_by(LANES) {
            let width = LANES.min(out - column);
            let mut block = [[0f32; LANES]; LANES];
            if width == LANES && lines == LANES {
                for (c, line) in transposed.chunks_exact(rows).skip(column).take(LANES).enumerate() {
                    let line = &line[first..first + LANES];
                    for r in 0..LANES {
                        block[r][c] = line[r];
                    }
                }
            } else {
                for (c, line) in transposed.chunks_exact(rows).skip(column).take(width).enumerate() {
                    for (r, &x) in line[first..first + lines].iter().enumerate() {
                        block[r][c] = x;
                    }
                }
            }
            for (y, block) in y.chunks_exact_mut(out).zip(&block) {
                let y = &mut y[column..column + width];
                match bias {
                    Some(bias) => {
                        for ((y, x), b) in y.iter_mut().zip(block).zip(&bias[column..]) {
                            *y = x + b;
                        }
                    }
                    None => y.copy_from_slice(&block[..width]),
                }
            }
        }
    }
}

/// `y = x Wᵀ + b` for some rows, by `yᵀ = W xᵀ`.
fn few_rows(y: &mut [f32], x: &[f32], weight: &[f32], bias: Option<&[f32]>, input: usize) {
    let (rows, out) = (x.len() / input, weight.len() / input);
    let mut transposed = vec![0f32; out * rows];
    let parallel = rows * weight.len() >= PARALLEL_FROM;
    let (w, x) = (Operand::rows(weight.as_ptr(), input), Operand::rows(x.as_ptr(), input));
    // SAFETY: x is [rows, input], weight [out, input], transposed [out, rows], all contiguous.
    unsafe { product((out, rows, input), transposed.as_mut_ptr(), rows, false, w, x.t(), 1.0, parallel) };
    let task = |(i, y): (usize, &mut [f32])| transpose_back(y, &transposed, bias, i * LANES, rows, out);
    if y.len() >= PARALLEL_FROM {
        y.par_chunks_mut(LANES * out).enumerate().for_each(task);
    } else {
        y.chunks_mut(LANES * out).enumerate().for_each(task);
    }
}

/// `x Wᵀ + b`.
///
/// # Shapes
/// `x [n, input]`, `weight [out, input]`, `bias [out]` -> `[n, out]`
pub(crate) fn forward(x: &[f32], weight: &[f32], bias: Option<&[f32]>, input: usize) -> Vec<f32> {
    let (n, out) = (x.len() / input, weight.len() / input);
    match cpu_kernel(n, DType::F32, weight.len(), input) {
        Kernel::Unpacked => unpacked::linear(Product { x, weight, bias, depth: input }),
        Kernel::Transposed { strip } => {
            let mut y = vec![0f32; n * out];
            for (y, x) in y.chunks_mut(strip * out).zip(x.chunks(strip * input)) {
                few_rows(y, x, weight, bias, input);
            }
            y
        }
        _ => {
            let mut y = match bias {
                Some(bias) => bias.repeat(n),
                None => vec![0f32; n * out],
            };
            // SAFETY: x is [n, input], weight [out, input], y [n, out], all contiguous.
            unsafe {
                product(
                    (n, out, input),
                    y.as_mut_ptr(),
                    out,
                    bias.is_some(),
                    Operand::rows(x.as_ptr(), input),
                    Operand::rows(weight.as_ptr(), input).t(),
                    1.0,
                    n * out * input >= PARALLEL_FROM,
                );
            }
            y
        }
    }
}

/// Several `x Wᵀ + b` of contiguous f32 tensors, whose [`super::kernel`] is [`Kernel::Unpacked`], in one go.
pub(crate) fn linear_all(products: &[(&Tensor, &Tensor, &Tensor)]) -> Result<Vec<Tensor>> {
    let stores: Vec<_> = products.iter().map(|(x, w, b)| [x, w, b].map(|tensor| tensor.storage_and_layout())).collect();
    let prepared = stores
        .iter()
        .map(|[(x, xl), (w, wl), (b, bl)]| {
            let depth = wl.dims()[1];
            Ok(Product { x: host(x, xl)?, weight: host(w, wl)?, bias: Some(host(b, bl)?), depth })
        })
        .collect::<Result<Vec<_>>>()?;
    let shape = |(x, weight, _): &(&Tensor, &Tensor, &Tensor)| (x.dims()[0], weight.dims()[0]);
    let results = unpacked::linear_all(&prepared).into_iter().zip(products);
    results.map(|(y, product)| Tensor::from_vec(y, shape(product), product.0.device())).collect()
}

/// The gradients of `x Wᵀ`: `dx = g W` and `dW = gᵀ x`, each only where the operand is part of the graph.
///
/// # Shapes
/// `x [n, input]`, `weight [out, input]`, `grad [n, out]`, all contiguous -> `[n, input]`, `[out, input]`
pub(crate) fn backward(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let ((n, input), (out, _)) = (x.dims2()?, weight.dims2()?);
    let parallel = n * out * input >= PARALLEL_FROM;
    let (g_store, g_layout) = grad.storage_and_layout();
    let g = Operand::rows(host(&g_store, g_layout)?.as_ptr(), out);
    let dx = if x.track_op() {
        let (store, layout) = weight.storage_and_layout();
        let w = Operand::rows(host(&store, layout)?.as_ptr(), input);
        let mut dx = vec![0f32; n * input];
        // SAFETY: g is [n, out], w [out, input], dx [n, input], all contiguous.
        unsafe { product((n, input, out), dx.as_mut_ptr(), input, false, g, w, 1.0, parallel) };
        Some(Tensor::from_vec(dx, (n, input), x.device())?)
    } else {
        None
    };
    let dw = if weight.track_op() {
        let (store, layout) = x.storage_and_layout();
        let x = Operand::rows(host(&store, layout)?.as_ptr(), input);
        let mut dw = vec![0f32; out * input];
        // SAFETY: g is [n, out], x [n, input], dw [out, input], all contiguous.
        unsafe { product((out, input, n), dw.as_mut_ptr(), input, false, g.t(), x, 1.0, parallel) };
        Some(Tensor::from_vec(dw, (out, input), weight.device())?)
    } else {
        None
    };
    Ok((dx, dw))
}

/// The gradient of a bias: the sum over the rows of `grad [n, out]`. Runs of 128 rows are summed on their own and added in
/// order, so the result does not depend on the threads.
pub(crate) fn bias_gradient(grad: &[f32], out: usize) -> Vec<f32> {
    const ROWS: usize = 128;
    let partial: Vec<Vec<f32>> = grad
        .par_chunks(ROWS * out)
        .map(|rows| {
            let mut sum = vec![0f32; out];
            rows.chunks_exact(out).for_each(|row| add_to(&mut sum, row));
            sum
        })
        .collect();
    let mut total = vec![0f32; out];
    partial.iter().for_each(|sum| add_to(&mut total, sum));
    total
}
