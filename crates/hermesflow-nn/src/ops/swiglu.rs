//! The gate of a SwiGLU feed-forward layer (Shazeer, arXiv:2002.05202): `silu(gate) · up`, with
//! `silu(x) = x / (1 + e^(-x))`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::parallel;
use crate::simd::{exp, vectorised};
use crate::storage::{elements, host, kernels_take};

/// Elements of one task.
const RUN: usize = 8 * 1024;

/// `silu(gate) · up`, element by element.
///
/// # Shapes
/// `gate [..]`, `up [..]` of the same shape -> `[..]`
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("swiglu: gate {:?}, up {:?}", gate.dims(), up.dims());
    }
    if kernels_take(&[gate, up]) { gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu) } else { gate.silu()? * up }
}

struct SwiGlu;

vectorised! {
    fn values(y: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate / (1.0 + exp(-gate)) * up;
        }
    }

    /// `dup = g silu(gate)`; with `s` the sigmoid, `dgate = g up s (1 + gate (1 - s))`.
    fn gradients(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], grad: &[f32]) {
        let inputs = gate.iter().zip(up).zip(grad);
        for ((d_gate, d_up), ((&gate, &up), &grad)) in d_gate.iter_mut().zip(d_up).zip(inputs) {
            let sigmoid = 1.0 / (1.0 + exp(-gate));
            *d_up = grad * gate * sigmoid;
            *d_gate = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
        }
    }
}

/// [`swiglu`] of elements.
pub(super) fn forward(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut y = vec![0f32; gate.len()];
    if gate.len() <= RUN {
        values(&mut y, gate, up);
    } else {
        parallel::each_run(&mut y, RUN, |at, y| {
            let here = at * RUN..at * RUN + y.len();
            values(y, &gate[here.clone()], &up[here]);
        });
    }
    y
}

/// The gradients of `gate` and `up`.
pub(super) fn backward(gate: &[f32], up: &[f32], grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut d_gate, mut d_up) = (vec![0f32; gate.len()], vec![0f32; gate.len()]);
    let inputs = gate.par_chunks(RUN).zip(up.par_chunks(RUN)).zip(grad.par_chunks(RUN));
    d_gate
        .par_chunks_mut(RUN)
        .zip(d_up.par_chunks_mut(RUN))
        .zip(inputs)
        .for_each(|((d_gate, d_up), ((gate, up), grad))| gradients(d_gate, d_up, gate, up, grad));
    (d_gate, d_up)
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(forward(elements(gate, gl)?, elements(up, ul)?)), gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (gate_store, gate_layout) = gate.storage_and_layout();
        let (up_store, up_layout) = up.storage_and_layout();
        let (g_store, g_layout) = grad.storage_and_layout();
        let (d_gate, d_up) =
            backward(host(&gate_store, gate_layout)?, host(&up_store, up_layout)?, host(&g_store, g_layout)?);
        let tensor = |values| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((Some(tensor(d_gate)?), Some(tensor(d_up)?)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{agree, close, normal};

    #[test]
    fn agrees_with_plain_candle() {
        for shape in [&[3usize, 7, 5][..], &[40_001]] {
            let args = [(normal(shape) * 3.0).unwrap(), normal(shape)];
            agree(&args, |v| swiglu(&v[0], &v[1]), |v| v[0].silu()? * v[1].as_tensor());
        }
    }

    #[test]
    fn is_flat_far_out_and_refuses_other_shapes() {
        let gate = Tensor::new(&[-1e4f32, 0.0, 1e4], &candle_core::Device::Cpu).unwrap();
        let up = Tensor::new(&[2f32, 2.0, 2.0], gate.device()).unwrap();
        let expected = Tensor::new(&[0f32, 0.0, 2e4], gate.device()).unwrap();
        close(&swiglu(&gate, &up).unwrap(), &expected, 1e-6, "values");
        assert!(swiglu(&gate, &normal(&[4])).is_err());
    }
}
