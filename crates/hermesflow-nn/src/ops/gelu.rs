//! GELU, the tanh form (`gelu_new`): Hendrycks & Gimpel, "Gaussian Error
//! Linear Units" (arXiv:1606.08415).
//!
//! With `u = sqrt(2/pi) (x + 0.044715 x³)`, `x (1 + tanh u) / 2` is written as
//! `x / (1 + e^(-2u))`.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::raw::{elements, fused, host};
use super::simd::{exp, vectorised};

/// Elements of one task.
const RUN: usize = 16 * 1024;
/// `2 sqrt(2/pi)` and that times 0.044715.
const SLOPE: f32 = 1.595_769_2;
const CUBIC: f32 = 0.071_354_814;

/// GELU in its tanh form, element by element.
///
/// # Shapes
/// `x [..]` -> `[..]`
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if fused(&[x]) { x.contiguous()?.apply_op1(Gelu) } else { x.gelu() }
}

struct Gelu;

vectorised! {
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

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-tanh"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(x, layout)?;
        let mut y = vec![0f32; x.len()];
        if x.len() <= RUN {
            values(&mut y, x);
        } else {
            y.par_chunks_mut(RUN).zip(x.par_chunks(RUN)).for_each(|(y, x)| values(y, x));
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let ((x_store, x_layout), (g_store, g_layout)) = (x.storage_and_layout(), grad.storage_and_layout());
        let (data, grad) = (host(&x_store, x_layout)?, host(&g_store, g_layout)?);
        let mut dx = vec![0f32; data.len()];
        dx.par_chunks_mut(RUN)
            .zip(data.par_chunks(RUN).zip(grad.par_chunks(RUN)))
            .for_each(|(dx, (x, grad))| gradients(dx, x, grad));
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::{agree, normal};
    use super::*;

    #[test]
    fn agrees_with_plain_candle() {
        for shape in [&[3usize, 7, 5][..], &[40_001]] {
            let x = (normal(shape) * 3.0).unwrap();
            agree(&[x], |v| gelu_tanh(&v[0]), |v| v[0].gelu());
        }
        agree(&[normal(&[9, 17])], |v| gelu_tanh(&v[0].t()?), |v| v[0].t()?.contiguous()?.gelu());
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
