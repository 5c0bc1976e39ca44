//! Normalisation by the root of the mean square: Zhang & Sennrich (arXiv:1910.07467).

use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::measure::profile::{Part, part};
use crate::parallel;
use crate::simd::{LANES, add_to, sum_by, sum_lanes, vectorised};
use crate::storage::{elements, host, kernels_take};

/// Rows of one task; fixed, so that the sums over rows have one order.
const ROWS: usize = 64;
/// About as many elements has a task of the forward pass, in whole rows.
const RUN: usize = 8 * 1024;

/// `weight · x / sqrt(mean(x²) + eps)` over the last dimension, computed in f32.
///
/// # Shapes
/// `x [.., d]`, `weight [d]` -> `[.., d]`
///
/// # Errors
/// When the weight has another size than the rows.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let d = x.dim(D::Minus1)?;
    if weight.dims() != [d] {
        bail!("rms_norm: weight {:?} on x {:?}", weight.dims(), x.dims());
    }
    part(Part::Norms, x.device(), || {
        if kernels_take(&[x, weight]) {
            x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32 })
        } else {
            plain(x, weight, eps)
        }
    })
}

/// The same by candle's operators.
fn plain(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&deviation)?.to_dtype(dtype)?.broadcast_mul(&weight.to_dtype(dtype)?)
}

struct RmsNorm {
    eps: f32,
}

/// The reciprocal of the root of a row's mean square.
#[inline(always)]
fn scale_of(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_by(x, |v| v * v) / x.len() as f32 + eps).sqrt()
}

vectorised! {
    fn values(y: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
        let d = weight.len();
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let scale = scale_of(x, eps);
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * scale * w;
            }
        }
    }

    /// With `n = x scale` and `a = g weight`: `dx = scale (a - n mean(a n))`, `dweight = sum g n`.
    fn gradients(dx: &mut [f32], dw: &mut [f32], x: &[f32], weight: &[f32], grad: &[f32], eps: f32) {
        let d = weight.len();
        for ((dx, x), grad) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(grad.chunks_exact(d)) {
            let scale = scale_of(x, eps);
            let mut products = [0f32; LANES];
            let whole = d - d % LANES;
            for start in (0..whole).step_by(LANES) {
                let (x, w, g) = (&x[start..][..LANES], &weight[start..][..LANES], &grad[start..][..LANES]);
                let dw = &mut dw[start..][..LANES];
                for i in 0..LANES {
                    let n = x[i] * scale;
                    products[i] += g[i] * w[i] * n;
                    dw[i] += g[i] * n;
                }
            }
            let mut product = sum_lanes(products);
            for i in whole..d {
                let n = x[i] * scale;
                product += grad[i] * weight[i] * n;
                dw[i] += grad[i] * n;
            }
            let product = product / d as f32;
            for (((dx, &x), &w), &g) in dx.iter_mut().zip(x).zip(weight).zip(grad) {
                *dx = scale * (g * w - x * scale * product);
            }
        }
    }
}

/// Normalised rows of `weight.len()`.
pub(super) fn forward(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let run = (RUN / weight.len().max(1)).max(1) * weight.len();
    let mut y = vec![0f32; x.len()];
    if x.len() <= run {
        values(&mut y, x, weight, eps);
    } else {
        parallel::each_run(&mut y, run, |at, y| values(y, &x[at * run..][..y.len()], weight, eps));
    }
    y
}

/// The gradients of the rows and of the weight.
pub(super) fn backward(x: &[f32], weight: &[f32], grad: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let d = weight.len();
    let run = ROWS * d;
    let mut dx = vec![0f32; x.len()];
    let partial: Vec<Vec<f32>> = dx
        .par_chunks_mut(run)
        .zip(x.par_chunks(run).zip(grad.par_chunks(run)))
        .map(|(dx, (x, grad))| {
            let mut dw = vec![0f32; d];
            gradients(dx, &mut dw, x, weight, grad, eps);
            dw
        })
        .collect();
    let mut dw = vec![0f32; d];
    partial.iter().for_each(|part| add_to(&mut dw, part));
    (dx, dw)
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (elements(x, xl)?, elements(w, wl)?);
        Ok((CpuStorage::F32(forward(x, weight, self.eps)), xl.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (x_store, x_layout) = x.storage_and_layout();
        let (w_store, w_layout) = weight.storage_and_layout();
        let (g_store, g_layout) = grad.storage_and_layout();
        let (data, w, g) = (host(&x_store, x_layout)?, host(&w_store, w_layout)?, host(&g_store, g_layout)?);
        let (dx, dw) = backward(data, w, g, self.eps);
        let d = dw.len();
        let dw = weight.track_op().then(|| Tensor::from_vec(dw, d, x.device())).transpose()?;
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), dw))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{agree, close, normal};

    #[test]
    fn agrees_with_plain_candle() {
        for shape in [&[1usize, 5][..], &[7, 3, 33], &[201, 64]] {
            let d = shape[shape.len() - 1];
            let args = [((normal(shape) * 2.0).unwrap() + 3.0).unwrap(), normal(&[d])];
            agree(&args, |v| rms_norm(&v[0], &v[1], 1e-5), |v| plain(&v[0], &v[1], 1e-5));
        }
    }

    #[test]
    fn one_row_by_hand() {
        let x = Tensor::new(&[[3f32, -4.0]], &candle_core::Device::Cpu).unwrap();
        let weight = Tensor::new(&[2f32, 1.0], &candle_core::Device::Cpu).unwrap();
        // The mean square is 12.5; with 0.5 more it is 13.
        let expected = Tensor::new(&[[6f32 / 13f32.sqrt(), -4.0 / 13f32.sqrt()]], x.device()).unwrap();
        close(&rms_norm(&x, &weight, 0.5).unwrap(), &expected, 1e-6, "values");
    }

    #[test]
    fn refuses_a_weight_of_another_size() {
        assert!(rms_norm(&normal(&[4, 6]), &normal(&[5]), 1e-5).is_err());
    }

    #[test]
    fn sums_over_rows_do_not_depend_on_the_threads() {
        let args = [normal(&[999, 40]), normal(&[40])];
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let vars = args.each_ref().map(|t| candle_core::Var::from_tensor(t).unwrap());
            let y = pool.install(|| rms_norm(&vars[0], &vars[1], 1e-5)).unwrap();
            let grads = pool.install(|| y.sqr().unwrap().backward()).unwrap();
            vars.map(|v| grads.get(&v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        assert_eq!(run(1), run(5));
    }
}
