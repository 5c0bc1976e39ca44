//! LayerNorm, `(x - mean) / sqrt(variance + eps) · weight + bias` of each row: Ba, Kiros & Hinton (arXiv:1607.06450).

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::any_device;
use super::by_rows;
use super::node::node3;
use crate::measure::profile::{Part, part};
use crate::parallel;
use crate::simd::{LANES, add_to, sum_by, sum_lanes, vectorised};
use crate::storage::{elements, host, kernels_take};

/// Rows per task: a fixed number, so that sums over rows have one order whatever the threads.
const ROWS: usize = 64;
/// About as many elements has a task of the forward pass, in whole rows.
const RUN: usize = 8 * 1024;

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension.
///
/// # Shapes
/// `x [.., d]`, `weight [d]`, `bias [d]` -> `[.., d]`
///
/// # Errors
/// When shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let d = x.dim(D::Minus1)?;
    if weight.dims() != [d] || bias.dims() != [d] {
        bail!("layer_norm: weight {:?} and bias {:?} on x {:?}", weight.dims(), bias.dims(), x.dims());
    }
    part(Part::Norms, x.device(), || {
        if kernels_take(&[x, weight, bias]) {
            x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm { eps: eps as f32 })
        } else {
            let [given_x, given_weight, given_bias] = [x, weight, bias].map(Tensor::detach);
            match by_rows::layer_norm(&given_x, &given_weight, &given_bias, eps) {
                Some(values) => with_gradients([x, weight, bias], values?, eps),
                None => any_device_form(x, weight, bias, eps),
            }
        }
    })
}

/// [`layer_norm`] by candle's operators.
fn any_device_form(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(candle_core::DType::F32)?;
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&deviation)?.to_dtype(dtype)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// `values` that a kernel computed, put into the graph with their backward pass. A kernel rounds differently from
/// [`any_device_form`], and a trained model must give the same numbers as one that is not trained.
fn with_gradients(args: [&Tensor; 3], values: Tensor, eps: f64) -> Result<Tensor> {
    let [x, weight, _] = args.map(Tensor::detach);
    node3("layer-norm", args, values, move |grad| {
        let d = weight.dim(D::Minus1)?;
        let over_rows = |x: &Tensor| x.reshape(((), d))?.sum(0);
        let (centred, scale) = any_device::centred(&x, eps)?;
        let normed = centred.broadcast_mul(&scale)?;
        let by_weight = grad.broadcast_mul(&weight)?;
        let along = (&by_weight * &normed)?.mean_keepdim(D::Minus1)?;
        let level = by_weight.broadcast_sub(&by_weight.mean_keepdim(D::Minus1)?)?;
        let dx = (level - normed.broadcast_mul(&along)?)?.broadcast_mul(&scale)?;
        Ok([Some(dx), Some(over_rows(&(grad * &normed)?)?), Some(over_rows(grad)?)])
    })
}

/// The operator on the CPU.
struct LayerNorm {
    eps: f32,
}

/// Mean and `1 / sqrt(variance + eps)` of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let mean = sum_by(x, |v| v) / x.len() as f32;
    let variance = sum_by(x, |v| (v - mean) * (v - mean)) / x.len() as f32;
    (mean, 1.0 / (variance + eps).sqrt())
}

vectorised! {
    fn values(y: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
        let d = weight.len();
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let (mean, scale) = moments(x, eps);
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (x - mean) * scale * w + b;
            }
        }
    }

    /// With `n = (x - mean) scale` and `a = g weight`:
    /// `dx = scale (a - mean(a) - n mean(a n))`, `dweight = sum g n`, `dbias = sum g`.
    fn gradients(dx: &mut [f32], dw: &mut [f32], db: &mut [f32], x: &[f32], weight: &[f32], grad: &[f32], eps: f32) {
        let d = weight.len();
        for ((dx, x), grad) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(grad.chunks_exact(d)) {
            let (mean, scale) = moments(x, eps);
            let (mut sums, mut products) = ([0f32; LANES], [0f32; LANES]);
            let whole = d - d % LANES;
            for start in (0..whole).step_by(LANES) {
                let (x, w, g) = (&x[start..][..LANES], &weight[start..][..LANES], &grad[start..][..LANES]);
                let (dw, db) = (&mut dw[start..][..LANES], &mut db[start..][..LANES]);
                for i in 0..LANES {
                    let n = (x[i] - mean) * scale;
                    let a = g[i] * w[i];
                    sums[i] += a;
                    products[i] += a * n;
                    dw[i] += g[i] * n;
                    db[i] += g[i];
                }
            }
            let (mut sum, mut product) = (sum_lanes(sums), sum_lanes(products));
            for i in whole..d {
                let n = (x[i] - mean) * scale;
                let a = grad[i] * weight[i];
                sum += a;
                product += a * n;
                dw[i] += grad[i] * n;
                db[i] += grad[i];
            }
            let (sum, product) = (sum / d as f32, product / d as f32);
            for (((dx, &x), &w), &g) in dx.iter_mut().zip(x).zip(weight).zip(grad) {
                *dx = scale * (g * w - sum - (x - mean) * scale * product);
            }
        }
    }
}

/// The normalised rows of `x [.., weight.len()]`.
pub(super) fn forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let run = (RUN / weight.len().max(1)).max(1) * weight.len();
    let mut y = vec![0f32; x.len()];
    if x.len() <= run {
        values(&mut y, x, weight, bias, eps);
    } else {
        parallel::each_run(&mut y, run, |at, y| values(y, &x[at * run..][..y.len()], weight, bias, eps));
    }
    y
}

/// The gradient of `x`, and the gradient of the weight followed by that of the bias in one vector of `2 d`.
pub(super) fn backward(x: &[f32], weight: &[f32], grad: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let d = weight.len();
    let run = ROWS * d;
    let mut dx = vec![0f32; x.len()];
    let partial: Vec<Vec<f32>> = dx
        .par_chunks_mut(run)
        .zip(x.par_chunks(run).zip(grad.par_chunks(run)))
        .map(|(dx, (x, grad))| {
            let mut sums = vec![0f32; 2 * d];
            let (dw, db) = sums.split_at_mut(d);
            gradients(dx, dw, db, x, weight, grad, eps);
            sums
        })
        .collect();
    let mut sums = vec![0f32; 2 * d];
    partial.iter().for_each(|part| add_to(&mut sums, part));
    (dx, sums)
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (elements(x, layout)?, elements(weight, weight_layout)?, elements(bias, bias_layout)?);
        Ok((CpuStorage::F32(forward(x, weight, bias, self.eps)), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (x_store, x_layout) = x.storage_and_layout();
        let (w_store, w_layout) = weight.storage_and_layout();
        let (g_store, g_layout) = grad.storage_and_layout();
        let (data, g) = (host(&x_store, x_layout)?, host(&g_store, g_layout)?);
        let w = host(&w_store, w_layout)?;
        let d = w.len();
        let (dx, mut sums) = backward(data, w, g, self.eps);
        let db = sums.split_off(d);
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            weight.track_op().then(|| Tensor::from_vec(sums, d, x.device())).transpose()?,
            bias.track_op().then(|| Tensor::from_vec(db, d, x.device())).transpose()?,
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{agree, normal};

    #[test]
    fn agrees_with_plain_candle() {
        for shape in [&[1usize, 5][..], &[7, 3, 33], &[201, 64]] {
            let d = shape[shape.len() - 1];
            let args = [((normal(shape) * 2.0).unwrap() + 3.0).unwrap(), normal(&[d]), normal(&[d])];
            agree(&args, |v| layer_norm(&v[0], &v[1], &v[2], 1e-5), |v| any_device_form(&v[0], &v[1], &v[2], 1e-5));
        }
    }

    #[test]
    fn values_that_a_kernel_gave_have_the_gradients_of_plain_candle() {
        for shape in [&[1usize, 5][..], &[7, 3, 33]] {
            let d = shape[shape.len() - 1];
            let args = [((normal(shape) * 2.0).unwrap() + 3.0).unwrap(), normal(&[d]), normal(&[d])];
            let values = |v: &[candle_core::Var]| any_device_form(&v[0].detach(), &v[1].detach(), &v[2].detach(), 1e-5);
            agree(
                &args,
                |v| with_gradients([&v[0], &v[1], &v[2]], values(v)?, 1e-5),
                |v| any_device_form(&v[0], &v[1], &v[2], 1e-5),
            );
        }
    }

    #[test]
    fn refuses_a_weight_of_another_size() {
        let (x, w) = (normal(&[4, 6]), normal(&[5]));
        assert!(layer_norm(&x, &w, &w, 1e-5).is_err());
    }

    #[test]
    fn sums_over_rows_do_not_depend_on_the_threads() {
        let args = [normal(&[999, 40]), normal(&[40]), normal(&[40])];
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let vars = args.each_ref().map(|t| candle_core::Var::from_tensor(t).unwrap());
            let y = pool.install(|| layer_norm(&vars[0], &vars[1], &vars[2], 1e-5)).unwrap();
            let grads = pool.install(|| y.sqr().unwrap().backward()).unwrap();
            vars.map(|v| grads.get(&v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        assert_eq!(run(1), run(5));
    }
}
