//! GELU: Hendrycks & Gimpel, "Gaussian Error Linear Units" (arXiv:1606.08415), in three forms, with their names in the
//! transformers library:
//!
//! * tanh (`gelu_new`): `x (1 + tanh u) / 2` with `u = sqrt(2/pi) (x + 0.044715 x³)`, computed as `x / (1 + e^(-2u))`;
//! * exact (`gelu`): `x (1 + erf(x / sqrt 2)) / 2`;
//! * sigmoid (`quick_gelu`): `x / (1 + e^(-1.702 x))`.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::parallel;
use crate::simd::{exp, vectorised};
use crate::storage::{elements, host, kernels_take};

/// Elements per task.
const RUN: usize = 8 * 1024;
/// `2 sqrt(2/pi)`.
const SLOPE: f32 = 1.595_769_2;
/// `2 sqrt(2/pi) · 0.044715`.
const CUBIC: f32 = 0.071_354_814;
/// The factor of `x` in the sigmoid form.
const QUICK: f32 = 1.702;

/// GELU in its tanh form, element by element.
///
/// # Shapes
/// `x [..]` -> `[..]`
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if kernels_take(&[x]) { x.contiguous()?.apply_op1(Gelu) } else { x.gelu() }
}

/// GELU in its exact form, element by element.
///
/// # Shapes
/// `x [..]` -> `[..]`
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    if kernels_take(&[x]) { x.contiguous()?.apply_op1(GeluErf) } else { x.gelu_erf() }
}

/// GELU in its sigmoid form, element by element.
///
/// # Shapes
/// `x [..]` -> `[..]`
pub fn gelu_quick(x: &Tensor) -> Result<Tensor> {
    if kernels_take(&[x]) { x.contiguous()?.apply_op1(GeluQuick) } else { quick_any_device(x) }
}

/// [`gelu_quick`] by candle's operators.
fn quick_any_device(x: &Tensor) -> Result<Tensor> {
    x / (x.affine(-f64::from(QUICK), 0.0)?.exp()? + 1.0)?
}

/// The error function to about two units in the last place, without branches.
///
/// Minimax polynomials: in `x²` up to 0.93, and of `ln(1 - erf x)` beyond.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    let near = {
        let mut r = -5.967_617e-4f32;
        for c in [4.991_194e-3, -2.676_813_5e-2, 1.128_199_3e-1, -3.761_253_4e-1, 1.283_791_7e-1] {
            r = r * s + c;
        }
        r * x + x
    };
    let far = {
        let high = -1.728_534_7e-5f32 * t + 3.831_97e-4;
        let low = -3.883_964_4e-3f32 * t + 2.425_462_2e-2;
        let mut r = high * s + low;
        for c in [-1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1] {
            r = r * t + c;
        }
        (1.0 - exp(r * t - t)).copysign(x)
    };
    if t > 0.927_734_4 { far } else { near }
}

/// `1 / sqrt 2`.
const HALF_ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// The density of the normal distribution at 0, `1 / sqrt(2 pi)`.
const DENSITY: f32 = 0.398_942_3;

/// [`gelu_tanh`] on the CPU.
struct Gelu;
/// [`gelu_erf`] on the CPU.
struct GeluErf;
/// [`gelu_quick`] on the CPU.
struct GeluQuick;

vectorised! {
    fn exact_values(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = 0.5 * x * (1.0 + erf(x * HALF_ROOT));
        }
    }

    fn exact_gradients(dx: &mut [f32], x: &[f32], grad: &[f32]) {
        for ((dx, &x), &grad) in dx.iter_mut().zip(x).zip(grad) {
            *dx = grad * (0.5 * (1.0 + erf(x * HALF_ROOT)) + x * DENSITY * exp(-0.5 * x * x));
        }
    }

    fn quick_values(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x / (1.0 + exp(-QUICK * x));
        }
    }

    fn quick_gradients(dx: &mut [f32], x: &[f32], grad: &[f32]) {
        for ((dx, &x), &grad) in dx.iter_mut().zip(x).zip(grad) {
            let gate = 1.0 / (1.0 + exp(-QUICK * x));
            *dx = grad * gate * (1.0 + QUICK * x * (1.0 - gate));
        }
    }

    fn values(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            let twice = x * (SLOPE + CUBIC * x * x);
            *y = x / (1.0 + exp(-twice));
        }
    }

    fn gradients(dx: &mut [f32], x: &[f32], grad: &[f32]) {
        for ((dx, &x), &grad) in dx.iter_mut().zip(x).zip(grad) {
            let twice = x * (SLOPE + CUBIC * x * x);
            let gate = 1.0 / (1.0 + exp(-twice));
            *dx = grad * gate * (1.0 + x * (1.0 - gate) * (SLOPE + 3.0 * CUBIC * x * x));
        }
    }
}

/// [`gelu_tanh`] of each element of the second slice, written to the first.
pub(super) fn tanh_kernel() -> fn(&mut [f32], &[f32]) {
    values
}

/// [`gelu_tanh`] of each element.
pub(super) fn tanh_forward(x: &[f32]) -> Vec<f32> {
    map(x, values)
}

/// The gradient of each element through [`gelu_tanh`].
pub(super) fn tanh_backward(x: &[f32], grad: &[f32]) -> Vec<f32> {
    map_gradients(x, grad, gradients)
}

/// Runs a kernel over all elements, in parallel where there are many.
fn forward(x: &CpuStorage, layout: &Layout, kernel: fn(&mut [f32], &[f32])) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(map(elements(x, layout)?, kernel)), layout.shape().clone()))
}

fn map(x: &[f32], kernel: fn(&mut [f32], &[f32])) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    if x.len() <= RUN {
        kernel(&mut y, x);
    } else {
        parallel::each_run(&mut y, RUN, |at, y| kernel(y, &x[at * RUN..][..y.len()]));
    }
    y
}

fn backward(x: &Tensor, grad: &Tensor, kernel: fn(&mut [f32], &[f32], &[f32])) -> Result<Option<Tensor>> {
    let grad = grad.contiguous()?;
    let ((x_store, x_layout), (g_store, g_layout)) = (x.storage_and_layout(), grad.storage_and_layout());
    let dx = map_gradients(host(&x_store, x_layout)?, host(&g_store, g_layout)?, kernel);
    Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
}

fn map_gradients(x: &[f32], grad: &[f32], kernel: fn(&mut [f32], &[f32], &[f32])) -> Vec<f32> {
    let mut dx = vec![0f32; x.len()];
    dx.par_chunks_mut(RUN)
        .zip(x.par_chunks(RUN).zip(grad.par_chunks(RUN)))
        .for_each(|(dx, (x, grad))| kernel(dx, x, grad));
    dx
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-tanh"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        forward(x, layout, values)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        backward(x, grad, gradients)
    }
}

impl CustomOp1 for GeluErf {
    fn name(&self) -> &'static str {
        "gelu-erf"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        forward(x, layout, exact_values)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        backward(x, grad, exact_gradients)
    }
}

impl CustomOp1 for GeluQuick {
    fn name(&self) -> &'static str {
        "gelu-quick"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        forward(x, layout, quick_values)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        backward(x, grad, quick_gradients)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{agree, normal};

    #[test]
    fn agrees_with_plain_candle() {
        for shape in [&[3usize, 7, 5][..], &[40_001]] {
            let x = (normal(shape) * 3.0).unwrap();
            agree(&[x], |v| gelu_tanh(&v[0]), |v| v[0].gelu());
        }
        agree(&[normal(&[9, 17])], |v| gelu_tanh(&v[0].t()?), |v| v[0].t()?.contiguous()?.gelu());
    }

    #[test]
    fn the_exact_form_agrees_with_plain_candle() {
        for shape in [&[3usize, 7, 5][..], &[40_001]] {
            let x = (normal(shape) * 3.0).unwrap();
            agree(&[x], |v| gelu_erf(&v[0]), |v| v[0].gelu_erf());
        }
        let x: Vec<f32> = (-60_000..60_000).map(|i| i as f32 * 1e-4).collect();
        let x = Tensor::new(x, &candle_core::Device::Cpu).unwrap();
        let difference = (gelu_erf(&x).unwrap() - x.gelu_erf().unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 5e-7);
    }

    #[test]
    fn the_sigmoid_form_agrees_with_plain_candle() {
        for shape in [&[3usize, 7, 5][..], &[40_001]] {
            let x = (normal(shape) * 3.0).unwrap();
            agree(&[x], |v| gelu_quick(&v[0]), |v| quick_any_device(&v[0]));
        }
        // PyTorch: x * torch.sigmoid(1.702 * x).
        let x = Tensor::new(&[-1e4f32, -2.0, -0.5, 0.0, 1.0, 1e4], &candle_core::Device::Cpu).unwrap();
        let expected = [0.0, -0.064_341_38, -0.149_611_56, 0.0, 0.845_795_75, 1e4];
        let ours = gelu_quick(&x).unwrap().to_vec1::<f32>().unwrap();
        assert!(ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{ours:?}");
    }

    #[test]
    fn is_flat_far_out() {
        let x = candle_core::Var::new(&[-1e4f32, -30.0, 0.0, 30.0, 1e4], &candle_core::Device::Cpu).unwrap();
        let near = |t: &Tensor, expected: [f32; 5]| {
            let pairs = t.to_vec1::<f32>().unwrap().into_iter().zip(expected);
            pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-20)
        };
        let y = gelu_tanh(&x).unwrap();
        assert!(near(&y, [0.0, 0.0, 0.0, 30.0, 1e4]));
        let grads = y.backward().unwrap();
        assert!(near(grads.get(&x).unwrap(), [0.0, 0.0, 0.5, 1.0, 1.0]));
    }
}
