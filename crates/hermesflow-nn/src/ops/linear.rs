//! The affine map `y = x Wᵀ + b`.
//!
//! Many rows: one matrix product into a bias-filled result. Few rows, as in
//! decoding: packing the weight for that product costs more than the product
//! (3 to 10 times, for 20 rows), so `yᵀ = W xᵀ`, which leaves the weight as it
//! lies, and a transposition.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use rayon::prelude::*;

use crate::matmul::f32_results;
use crate::matmul::half_weight;
use crate::matmul::unpacked::{self, Element, Product};
use crate::measure::{self, Part, part};
use crate::simd::{LANES, vectorised};
use crate::storage::{Operand, column_sums, elements, fused, host, on_cpu, product};

/// Below this many multiplications a product stays on one thread.
const PARALLEL_FROM: usize = 64 * 1024;
/// Up to so many rows of a [`MIDDLING`] weight of [`DEEP`] lines are multiplied without packing where the CPU has AVX-512:
/// reading the weight is what takes the time.
const VERY_FEW: usize = 96;
const MIDDLING: usize = 1 << 18;
const DEEP: usize = 256;
/// Up to so many rows go through the transposed product.
const FEW: usize = 192;
/// A weight of at least so many elements is never packed for up to [`FEW_STRIPS`]
/// rows, which go in strips.
const LARGE: usize = 1 << 20;
const FEW_STRIPS: usize = 640;
const STRIP: usize = 128;

/// `x Wᵀ + b`; a frozen weight may be in 16 bits under an `x` in f32.
///
/// # Shapes
/// `x [.., in]`, `weight [out, in]`, `bias [out]` -> `[.., out]`
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out, input) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == input => *last = out,
        _ => bail!("linear: x {:?} does not end in the {input} of weight {:?}", x.dims(), weight.dims()),
    }
    if let Some(bias) = bias
        && bias.dims() != [out]
    {
        bail!("linear: bias {:?} does not fit weight {:?}", bias.dims(), weight.dims());
    }
    part(Part::Products, x.device(), || affine(&x.reshape(((), input))?, weight, bias)?.reshape(dims))
}

/// [`linear`] of `x [n, in]`.
fn affine(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if half_weight::is_half(weight) && x.dtype() == DType::F32 {
        let bias = bias.map(Tensor::contiguous).transpose()?;
        return half_weight::linear(&x.contiguous()?, &weight.contiguous()?, bias.as_ref());
    }
    match bias {
        Some(bias) if fused(&[x, weight, bias]) => {
            x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear)
        }
        None if fused(&[x, weight]) => x.contiguous()?.apply_op2(&weight.contiguous()?, Linear),
        _ => plain(x, weight, bias),
    }
}

/// Several [`linear`]s, `(x, weight, bias)` each, in one go where nothing of them is part of a graph: the products of few
/// rows are so short that waking the threads for each would take as long.
///
/// # Shapes
/// As [`linear`], each.
pub fn linear_all(products: &[(&Tensor, &Tensor, &Tensor)]) -> Result<Vec<Tensor>> {
    let Some((first, _, _)) = products.first() else { return Ok(Vec::new()) };
    part(Part::Products, first.device(), || all(products))
}

fn all(products: &[(&Tensor, &Tensor, &Tensor)]) -> Result<Vec<Tensor>> {
    let one_by_one = || products.iter().map(|(x, weight, bias)| linear(x, weight, Some(bias))).collect();
    let fits = |(x, weight, bias): &(&Tensor, &Tensor, &Tensor)| {
        let in_graph = x.track_op() || weight.track_op() || bias.track_op();
        let whole = x.is_contiguous() && weight.is_contiguous() && bias.is_contiguous();
        let shapes = matches!((x.dims(), weight.dims(), bias.dims()),
            (&[_, input], &[out, depth], &[bias]) if input == depth && out == bias);
        !in_graph && whole && shapes && fused(&[x, bias])
    };
    if products.iter().all(is_mixed) {
        return plain_all(products);
    }
    if !products.iter().all(fits) {
        return one_by_one();
    }
    if products.iter().all(|(_, weight, _)| half_weight::is_brain(weight)) && half_weight::multiplies_bf16() {
        return half_weight::linear_all(products);
    }
    let unpacked = |(x, weight, _): &(&Tensor, &Tensor, &Tensor)| {
        let rows = x.dims()[0];
        fused(&[weight]) && Linear::is_unpacked(rows, weight.elem_count(), weight.dims()[1])
    };
    if !products.iter().all(unpacked) {
        return one_by_one();
    }
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

/// Whether a frozen weight in 16 bits is under an input in f32, without the CPU's kernels.
fn is_mixed((x, weight, _): &(&Tensor, &Tensor, &Tensor)) -> bool {
    let half = matches!(weight.dtype(), DType::BF16 | DType::F16) && x.dtype() == DType::F32;
    half && x.rank() == 2 && !on_cpu(x.device()) && !x.track_op() && !weight.track_op()
}

/// Several products of such, by candle's operators; an `x` that stands in several is narrowed once.
fn plain_all(products: &[(&Tensor, &Tensor, &Tensor)]) -> Result<Vec<Tensor>> {
    let mut narrowed: Vec<(&Tensor, Tensor)> = Vec::new();
    let mut results = Vec::with_capacity(products.len());
    for &(x, weight, bias) in products {
        let known = narrowed.iter().find(|(known, y)| known.id() == x.id() && y.dtype() == weight.dtype());
        let narrow = match known {
            Some((_, narrow)) => narrow.clone(),
            None => {
                narrowed.push((x, x.to_dtype(weight.dtype())?));
                narrowed[narrowed.len() - 1].1.clone()
            }
        };
        results.push(f32_results::multiply(&narrow, &weight.t()?)?.broadcast_add(bias)?);
    }
    Ok(results)
}

/// The same by candle's operators.
fn plain(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    // A frozen weight in 16 bits under an input in f32, on a GPU: the product is of 16 bits, its sums and result in f32.
    let in_graph = x.track_op() || weight.track_op();
    if !x.device().is_cpu() && (in_graph || weight.dtype() == x.dtype()) {
        measure::queued(1, (x.dim(0)?, weight.dim(0)?, weight.dim(1)?));
    }
    let y = if weight.dtype() == x.dtype() {
        x.matmul(&weight.t()?)?
    } else if in_graph {
        x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(x.dtype())?
    } else {
        f32_results::multiply(&x.to_dtype(weight.dtype())?, &weight.t()?)?.to_dtype(x.dtype())?
    };
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

pub(crate) struct Linear;

vectorised! {
    /// Rows `first..` of `y [.., out]` from `turned [out, rows]`, and the bias.
    fn turn_back(y: &mut [f32], turned: &[f32], bias: Option<&[f32]>, first: usize, rows: usize, out: usize) {
        let lines = y.len() / out;
        for column in (0..out).step_by(LANES) {
            let width = LANES.min(out - column);
            let mut block = [[0f32; LANES]; LANES];
            if width == LANES && lines == LANES {
                for (c, line) in turned.chunks_exact(rows).skip(column).take(LANES).enumerate() {
                    let line = &line[first..first + LANES];
                    for r in 0..LANES {
                        block[r][c] = line[r];
                    }
                }
            } else {
                for (c, line) in turned.chunks_exact(rows).skip(column).take(width).enumerate() {
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

impl Linear {
    /// Whether the weight is multiplied as it lies, by the vectors of AVX-512.
    fn is_unpacked(n: usize, weight: usize, input: usize) -> bool {
        n <= VERY_FEW && input >= DEEP && weight >= MIDDLING && f32::available()
    }

    /// The rows of a strip of the transposed product, where that is the better one.
    fn strip(n: usize, weight: usize) -> Option<usize> {
        match n {
            0 | 1 => None,
            _ if n <= FEW => Some(n),
            _ if n <= FEW_STRIPS && weight >= LARGE => Some(STRIP),
            _ => None,
        }
    }

    /// `y = x Wᵀ + b` for some rows, by `yᵀ = W xᵀ`.
    fn few(y: &mut [f32], x: &[f32], weight: &[f32], bias: Option<&[f32]>, input: usize) {
        let (rows, out) = (x.len() / input, weight.len() / input);
        let mut turned = vec![0f32; out * rows];
        let parallel = rows * weight.len() >= PARALLEL_FROM;
        let (w, x) = (Operand::rows(weight.as_ptr(), input), Operand::rows(x.as_ptr(), input));
        // SAFETY: x is [rows, input], weight [out, input], turned [out, rows], all contiguous.
        unsafe { product((out, rows, input), turned.as_mut_ptr(), rows, false, w, x.t(), 1.0, parallel) };
        let task = |(i, y): (usize, &mut [f32])| turn_back(y, &turned, bias, i * LANES, rows, out);
        if y.len() >= PARALLEL_FROM {
            y.par_chunks_mut(LANES * out).enumerate().for_each(task);
        } else {
            y.chunks_mut(LANES * out).enumerate().for_each(task);
        }
    }

    pub(crate) fn forward(x: &[f32], weight: &[f32], bias: Option<&[f32]>, input: usize) -> Vec<f32> {
        let (n, out) = (x.len() / input, weight.len() / input);
        if Self::is_unpacked(n, weight.len(), input) {
            return unpacked::linear(Product { x, weight, bias, depth: input });
        }
        if let Some(strip) = Self::strip(n, weight.len()) {
            let mut y = vec![0f32; n * out];
            for (y, x) in y.chunks_mut(strip * out).zip(x.chunks(strip * input)) {
                Self::few(y, x, weight, bias, input);
            }
            return y;
        }
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

    /// `dx = g W` and `dW = gᵀ x`, each only where the operand is part of the graph.
    fn backward(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
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
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, input), (out, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let y = Self::forward(elements(x, xl)?, elements(w, wl)?, None, input);
        Ok((CpuStorage::F32(y), (n, out).into()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Self::backward(x, w, &grad.contiguous()?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, input), (out, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let y = Self::forward(elements(x, xl)?, elements(w, wl)?, Some(elements(b, bl)?), input);
        Ok((CpuStorage::F32(y), (n, out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = Self::backward(x, w, &grad)?;
        let db = if b.track_op() {
            let (store, layout) = grad.storage_and_layout();
            let sums = column_sums(host(&store, layout)?, b.elem_count());
            Some(Tensor::from_vec(sums, b.elem_count(), b.device())?)
        } else {
            None
        };
        Ok((dx, dw, db))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{agree, close, normal};

    #[test]
    fn agrees_with_plain_candle() {
        for (n, input, out) in [(1, 5, 3), (37, 19, 23), (130, 64, 96), (210, 7, 33), (200, 1024, 1024)] {
            let args = [normal(&[n, input]), normal(&[out, input]), normal(&[out])];
            agree(&args, |v| linear(&v[0], &v[1], Some(&v[2])), |v| plain(&v[0], &v[1], Some(&v[2])));
            agree(&args[..2], |v| linear(&v[0], &v[1], None), |v| plain(&v[0], &v[1], None));
        }
    }

    #[test]
    fn several_at_once_are_each_alone() {
        for dtype in [DType::F32, DType::BF16] {
            for (n, input, out) in [(10, 512, 600), (3, 16, 24), (97, 512, 512)] {
                let (x, other) = (normal(&[n, input]), normal(&[n, out]));
                let (a, b) = (
                    normal(&[out, input]).to_dtype(dtype).unwrap(),
                    normal(&[out + 3, input]).to_dtype(dtype).unwrap(),
                );
                let (c, short, long) = (normal(&[5, out]).to_dtype(dtype).unwrap(), normal(&[out]), normal(&[out + 3]));
                let five = normal(&[5]);
                let products = [(&x, &a, &short), (&x, &b, &long), (&other, &c, &five)];
                for (together, (x, weight, bias)) in linear_all(&products).unwrap().iter().zip(products) {
                    close(together, &linear(x, weight, Some(bias)).unwrap(), 1e-5, "together");
                }
            }
        }
    }

    #[test]
    fn takes_leading_dimensions_and_strides() {
        let args = [normal(&[7, 3, 5]), normal(&[7, 4]), normal(&[4])];
        agree(
            &args,
            |v| linear(&v[0].transpose(0, 2)?, &v[1].t()?, Some(&v[2])),
            |v| {
                let x = v[0].transpose(0, 2)?.reshape((15, 7))?;
                plain(&x, &v[1].t()?, Some(&v[2]))?.reshape((5, 3, 4))
            },
        );
    }

    #[test]
    fn leaves_frozen_weights_alone() {
        let x = candle_core::Var::from_tensor(&normal(&[4, 6])).unwrap();
        let (w, b) = (normal(&[3, 6]), normal(&[3]));
        let y = linear(&x, &w, Some(&b)).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some() && grads.get(&w).is_none() && grads.get(&b).is_none());
    }

    #[test]
    fn refuses_shapes_that_do_not_fit() {
        let (x, w) = (normal(&[4, 6]), normal(&[3, 5]));
        assert!(linear(&x, &w, None).is_err());
        assert!(linear(&normal(&[4, 5]), &w, Some(&normal(&[4]))).is_err());
    }
}
