//! AdamW in place, as `torch.optim.AdamW` computes it (Loshchilov & Hutter, arXiv:1711.05101):
//! `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`, `p ← p − lr λ p − lr m̂ / (√v̂ + ε)` with `m̂ = m / (1 − β₁ᵗ)` and
//! `v̂ = v / (1 − β₂ᵗ)`.
//!
//! The memory of the parameter and of its moments is written directly, so every tensor that shares it sees the update. On the CPU
//! a step is one pass over them, on an NVIDIA GPU one kernel. Elsewhere it is a composition of candle's operators on a slice at a
//! time, so that intermediate results stay small however large a parameter is. Of a norm only partial sums are copied to the host,
//! in one transfer.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, InplaceOp1, InplaceOp2, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use crate::device::uses_kernels;
use crate::measure::profile::{Part, part};
use crate::simd::vectorised;
use crate::storage::host;

/// The coefficients of AdamW that are the same for all steps and parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment, β₁ in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, β₂ in [0, 1).
    pub beta2: f64,
    /// ε, added to the denominator.
    pub eps: f64,
}

/// Elements per task on the CPU, and per partial sum of a norm.
pub const CHUNK: usize = 1 << 14;

/// One step of AdamW for one parameter with first moment `m` and second moment `v`, all updated in place.
///
/// `step` is the number of this step, from 1. The gradient is multiplied by `grad_scale` before anything else, which clips it.
///
/// # Errors
/// When sizes differ, a tensor is not contiguous, or the moments are not in f32.
#[allow(clippy::too_many_arguments)]
pub fn adamw_step(
    param: &Var,
    grad: &Tensor,
    m: &Var,
    v: &Var,
    lr: f64,
    weight_decay: f64,
    config: &AdamWConfig,
    step: usize,
    grad_scale: f64,
) -> Result<()> {
    let AdamWConfig { beta1, beta2, eps } = *config;
    let (correction1, correction2) = (1.0 - beta1.powi(step as i32), 1.0 - beta2.powi(step as i32));
    let update = Update {
        beta1: beta1 as f32,
        rest1: (1.0 - beta1) as f32,
        beta2: beta2 as f32,
        rest2: (1.0 - beta2) as f32,
        scale: grad_scale as f32,
        keep: (1.0 - lr * weight_decay) as f32,
        rate: (lr / correction1) as f32,
        root: correction2.sqrt() as f32,
        eps: eps as f32,
    };
    if [grad.elem_count(), m.elem_count(), v.elem_count()] != [param.elem_count(); 3] {
        bail!("adamw: a gradient or moments of another size than their parameter {:?}", param.dims());
    }
    if [param, m, v].iter().any(|var| !var.is_contiguous()) {
        bail!("adamw: a parameter or its moments are not contiguous");
    }
    part(Part::Optimizer, param.device(), || step_of(param, grad, m, v, update))
}

fn step_of(param: &Var, grad: &Tensor, m: &Var, v: &Var, update: Update) -> Result<()> {
    let fused = uses_kernels(param.device()) && param.dtype() == DType::F32 && grad.dtype() == DType::F32;
    if fused {
        let grad = grad.detach().contiguous()?;
        return m.inplace_op1(&WithFirst { second: v, param, grad: &grad, update });
    }
    #[cfg(feature = "cuda")]
    if param.device().is_cuda() && param.dtype() == DType::F32 && grad.dtype() == DType::F32 {
        let Update { beta1, rest1, beta2, rest2, scale, keep, rate, root, eps } = update;
        let numbers = [beta1, rest1, beta2, rest2, scale, keep, rate, root, eps];
        return crate::ops::gpu::adamw(param, &grad.detach().contiguous()?, m, v, numbers);
    }
    by_slices(param, grad, m, v, update)
}

/// A step as a composition of candle's operators, on any device.
fn by_slices(param: &Var, grad: &Tensor, m: &Var, v: &Var, by: Update) -> Result<()> {
    let [beta1, rest1, beta2, rest2, scale] = [by.beta1, by.rest1, by.beta2, by.rest2, by.scale].map(f64::from);
    let [keep, rate, root, eps] = [by.keep, by.rate, by.root, by.eps].map(f64::from);
    let (param, grad, m, v) = (flat(param)?, flat(grad)?, flat(m)?, flat(v)?);
    for (start, len) in slices(param.elem_count()) {
        let part = |all: &Tensor| all.narrow(0, start, len);
        let grad = (part(&grad)?.to_dtype(DType::F32)? * scale)?;
        let first = ((part(&m)? * beta1)? + (&grad * rest1)?)?;
        let second = ((part(&v)? * beta2)? + (grad.sqr()? * rest2)?)?;
        drop(grad);
        m.slice_set(&first, 0, start)?;
        v.slice_set(&second, 0, start)?;
        let change = (first * rate)?.div(&second.sqrt()?.affine(1.0 / root, eps)?)?;
        let kept = (part(&param)?.to_dtype(DType::F32)? * keep)?;
        param.slice_set(&(kept - change)?.to_dtype(param.dtype())?, 0, start)?;
    }
    Ok(())
}

/// Elements per slice: 32 MB in f32, of which a composition holds a handful at a time.
const SLICE: usize = 1 << 23;

/// Start and length of each slice of `elements` elements.
fn slices(elements: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..elements).step_by(SLICE).map(move |start| (start, SLICE.min(elements - start)))
}

/// The elements as a vector without a graph; they share the memory of a contiguous tensor.
fn flat(tensor: &Tensor) -> Result<Tensor> {
    tensor.detach().flatten_all()
}

/// The L2 norm of all gradients together, summed in f64 (partial sums in f32 outside the CPU and NVIDIA GPUs) in a fixed order.
///
/// # Errors
/// When a gradient cannot be read.
pub fn global_norm(grads: &[&Tensor]) -> Result<f64> {
    let Some(first) = grads.first() else { return Ok(0.0) };
    part(Part::Optimizer, first.device(), || norm_of(grads))
}

fn norm_of(grads: &[&Tensor]) -> Result<f64> {
    let (here, there): (Vec<&Tensor>, Vec<&Tensor>) = grads.iter().partition(|grad| uses_kernels(grad.device()));
    Ok((squares_here(&here)? + squares_there(&there)?).sqrt())
}

/// The sum of the squares, on the CPU.
fn squares_here(grads: &[&Tensor]) -> Result<f64> {
    let mut total = 0.0;
    for grad in grads {
        total += partial_squares(grad)?.iter().sum::<f64>();
    }
    Ok(total)
}

/// The sums of the squares of every [`CHUNK`] elements of a tensor on the CPU. The square of [`global_norm`] there is the sum over
/// tensors of the sum of these, both in their order.
///
/// # Errors
/// When the tensor is not on the CPU.
pub fn partial_squares(grad: &Tensor) -> Result<Vec<f64>> {
    let grad = grad.detach().to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = grad.storage_and_layout();
    let squares = |part: &[f32]| part.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
    Ok(host(&storage, layout)?.par_chunks(CHUNK).map(squares).collect())
}

/// The sum of the squares, on any other device: partial sums there, which come to the host in one transfer.
fn squares_there(grads: &[&Tensor]) -> Result<f64> {
    let mut parts = Vec::new();
    for grad in grads {
        let grad = flat(grad)?;
        #[cfg(feature = "cuda")]
        if grad.device().is_cuda() && grad.dtype() == DType::F32 {
            parts.push(crate::ops::gpu::squares(&grad)?);
            continue;
        }
        for (start, len) in slices(grad.elem_count()) {
            parts.push(
                grad.narrow(0, start, len)?.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_dtype(DType::F64)?.reshape(1)?,
            );
        }
    }
    if parts.is_empty() {
        return Ok(0.0);
    }
    Ok(Tensor::cat(&parts, 0)?.to_vec1::<f64>()?.into_iter().sum())
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = contiguous(layout)?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

fn contiguous(layout: &Layout) -> Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| candle_core::Error::RequiresContiguous { op: "adamw" }.bt())
}

fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let (start, end) = contiguous(layout)?;
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        other => bail!("adamw keeps f32, not {:?}", candle_core::backend::BackendStorage::dtype(other)),
    }
}

/// The coefficients of a step: `m ← β₁·m + (1−β₁)·g`, `v ← β₂·v + (1−β₂)·g²`, `p ← p·keep − rate·m / (√v/root + ε)`.
#[derive(Clone, Copy)]
struct Update {
    beta1: f32,
    /// `1 − β₁`, computed in f64.
    rest1: f32,
    beta2: f32,
    rest2: f32,
    /// Factor of the gradient.
    scale: f32,
    /// `1 − lr λ`.
    keep: f32,
    /// `lr / (1 − β₁ᵗ)`.
    rate: f32,
    /// `√(1 − β₂ᵗ)`.
    root: f32,
    eps: f32,
}

vectorised! {
    /// A step for some elements, in one pass, which memory traffic bounds.
    fn update(param: &mut [f32], grad: &[f32], first: &mut [f32], second: &mut [f32], by: Update) {
        let Update { beta1, rest1, beta2, rest2, scale, keep, rate, root, eps } = by;
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(first).zip(second) {
            let g = g * scale;
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * (g * g);
            *p = *p * keep - rate * *m / (v.sqrt() / root + eps);
        }
    }
}

/// candle lends one storage at a time for writing, so the three of a step are borrowed one inside the other: here the first
/// moment is held, and the second is borrowed.
struct WithFirst<'a> {
    second: &'a Var,
    param: &'a Var,
    grad: &'a Tensor,
    update: Update,
}

impl InplaceOp1 for WithFirst<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Self { second, param, grad, update } = *self;
        second.inplace_op1(&WithSecond { first: Mutex::new(slice_mut(storage, layout)?), param, grad, update })
    }
}

struct WithSecond<'a> {
    first: Mutex<&'a mut [f32]>,
    param: &'a Var,
    grad: &'a Tensor,
    update: Update,
}

impl InplaceOp1 for WithSecond<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let second = Mutex::new(slice_mut(storage, layout)?);
        self.param.inplace_op2(self.grad, &WithBoth { first: &self.first, second, update: self.update })
    }
}

struct WithBoth<'a, 'b> {
    first: &'a Mutex<&'b mut [f32]>,
    second: Mutex<&'a mut [f32]>,
    update: Update,
}

impl InplaceOp2 for WithBoth<'_, '_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (param, grad) = (slice_mut(s1, l1)?, slice(s2, l2)?);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if [grad.len(), first.len(), second.len()] != [param.len(); 3] {
            bail!("adamw: a gradient or moments of another size than their parameter of {}", param.len());
        }
        let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
        param
            .par_chunks_mut(CHUNK)
            .zip(grad.par_chunks(CHUNK))
            .zip(moments)
            .for_each(|((param, grad), (first, second))| update(param, grad, first, second, self.update));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{normal, worst};
    use candle_core::Device;

    const CONFIG: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8 };

    #[test]
    fn slices_cover_all_once() {
        for elements in [0, 1, SLICE - 1, SLICE, 2 * SLICE + 3] {
            let mut next = 0;
            for (start, len) in slices(elements) {
                assert!(start == next && (1..=SLICE).contains(&len));
                next += len;
            }
            assert_eq!(next, elements);
        }
    }

    #[test]
    fn a_step_by_slices_is_the_step() {
        // Two whole rows of a slice, and a little.
        let shape = [2, SLICE / 2 + 5];
        let (start, grad) = (normal(&shape), normal(&shape));
        let vars = || {
            let zeros = || Var::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
            [Var::from_tensor(&start).unwrap(), zeros(), zeros()]
        };
        let update = Update {
            beta1: 0.9,
            rest1: 0.1,
            beta2: 0.99,
            rest2: 0.01,
            scale: 0.5,
            keep: 0.999,
            rate: 0.01,
            root: 0.1,
            eps: 1e-8,
        };
        let (kernel, slices) = (vars(), vars());
        for _ in 0..2 {
            let [param, first, second] = &kernel;
            first.inplace_op1(&WithFirst { second, param, grad: &grad, update }).unwrap();
            by_slices(&slices[0], &grad, &slices[1], &slices[2], update).unwrap();
        }
        for (kernel, slices) in kernel.iter().zip(&slices) {
            assert!(worst(kernel, slices) < 1e-5);
        }
    }

    #[test]
    fn both_norms_agree() {
        let grads = [normal(&[3, 700]), normal(&[5]), normal(&[2, SLICE / 2 + 1])];
        let grads: Vec<&Tensor> = grads.iter().collect();
        let (here, there) = (squares_here(&grads).unwrap(), squares_there(&grads).unwrap());
        assert!((here / there - 1.0).abs() < 1e-4, "{here} and {there}");
        assert_eq!(squares_there(&[]).unwrap(), 0.0);
    }

    #[test]
    fn moments_of_another_size_are_refused() {
        let var = |size: usize| Var::zeros(size, DType::F32, &Device::Cpu).unwrap();
        let step = |grad: &Var, m: &Var, v: &Var| adamw_step(&var(3), grad, m, v, 0.1, 0.0, &CONFIG, 1, 1.0);
        assert!(step(&var(3), &var(3), &var(3)).is_ok());
        for (grad, m, v) in [(4, 3, 3), (3, 4, 3), (3, 3, 4)] {
            let message = step(&var(grad), &var(m), &var(v)).unwrap_err().to_string();
            assert!(message.contains("another size than their parameter [3]"), "{message}");
        }
    }
}
