//! AdamW in place, as `torch.optim.AdamW` computes it (arXiv 1711.05101).
//!
//! The storage of the parameter and of its moments is written directly, so every clone that shares
//! the storage sees the update.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, InplaceOp2, Layout, Result, Tensor, Var};
use rayon::prelude::*;

use crate::ops::raw::host;
use crate::ops::simd::vectorised;

/// The numbers of AdamW that do not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
}

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// One step of one parameter; `step` counts from 1, `grad_scale` multiplies the gradient first.
///
/// # Errors
/// When shapes differ or the moments are not f32.
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
    let fused = param.device().is_cpu() && param.dtype() == DType::F32 && grad.dtype() == DType::F32;
    if fused && [param, m, v].iter().all(|var| var.is_contiguous()) {
        let grad = grad.detach().contiguous()?;
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
        return m.inplace_op1(&WithFirst { second: v, param, grad: &grad, update });
    }
    let grad = (grad.detach().to_dtype(DType::F32)? * grad_scale)?;
    m.set(&((m.as_detached_tensor() * beta1)? + (&grad * (1.0 - beta1))?)?)?;
    v.set(&((v.as_detached_tensor() * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?)?;
    let denominator = ((v.as_detached_tensor().sqrt()? * (1.0 / correction2.sqrt()))? + eps)?;
    let update = (m.as_detached_tensor() * (lr / correction1))?.div(&denominator)?;
    let kept = (param.as_detached_tensor().to_dtype(DType::F32)? * (1.0 - lr * weight_decay))?;
    param.set(&(kept - update)?.to_dtype(param.dtype())?)
}

/// The norm of all gradients together, in f64 and in a fixed order.
///
/// # Errors
/// When a gradient cannot be read.
pub fn global_norm(grads: &[&Tensor]) -> Result<f64> {
    let mut total = 0.0;
    for grad in grads {
        let grad = grad.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let (storage, layout) = grad.storage_and_layout();
        let parts: Vec<f64> = host(&storage, layout)?
            .par_chunks(CHUNK)
            .map(|part| part.iter().map(|&g| f64::from(g) * f64::from(g)).sum())
            .collect();
        total += parts.iter().sum::<f64>();
    }
    Ok(total.sqrt())
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
        other => candle_core::bail!("adamw keeps f32, not {:?}", candle_core::backend::BackendStorage::dtype(other)),
    }
}

/// The numbers of a step: `m ← β₁·m + (1−β₁)·g`, `v ← β₂·v + (1−β₂)·g²`, `p ← p·keep − rate·m / (√v/root + ε)`.
#[derive(Clone, Copy)]
struct Update {
    beta1: f32,
    /// `1 − β₁`, taken in f64.
    rest1: f32,
    beta2: f32,
    rest2: f32,
    /// Of the gradient.
    scale: f32,
    keep: f32,
    rate: f32,
    root: f32,
    eps: f32,
}

vectorised! {
    /// One pass over everything: what takes the time is memory.
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

/// candle lends one storage at a time to write to; three are borrowed one inside the other.
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
            candle_core::bail!("adamw: a gradient or moments of another size than their parameter of {}", param.len());
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
