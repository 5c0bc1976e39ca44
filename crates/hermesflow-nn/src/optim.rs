//! AdamW in place, as `torch.optim.AdamW` computes it (arXiv 1711.05101).
//!
//! The storage of the parameter and of its moments is written directly, so every clone that shares
//! the storage sees the update.

use candle_core::{CpuStorage, DType, InplaceOp2, InplaceOp3, Layout, Result, Tensor, Var};
use rayon::prelude::*;

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
    if fused && param.is_contiguous() {
        let grad = grad.detach().contiguous()?;
        m.inplace_op2(
            &grad,
            &Moment { beta: beta1 as f32, rest: (1.0 - beta1) as f32, scale: grad_scale as f32, square: false },
        )?;
        v.inplace_op2(
            &grad,
            &Moment { beta: beta2 as f32, rest: (1.0 - beta2) as f32, scale: grad_scale as f32, square: true },
        )?;
        let update = Update {
            keep: (1.0 - lr * weight_decay) as f32,
            rate: (lr / correction1) as f32,
            root: correction2.sqrt() as f32,
            eps: eps as f32,
        };
        return param.inplace_op3(m, v, &update);
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
        let grad = grad.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let parts: Vec<f64> =
            grad.par_chunks(CHUNK).map(|part| part.iter().map(|&g| f64::from(g) * f64::from(g)).sum()).collect();
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

/// `moment ← β·moment + (1−β)·g` or `g²`.
struct Moment {
    beta: f32,
    /// `1 − β`, taken in f64.
    rest: f32,
    scale: f32,
    square: bool,
}

impl InplaceOp2 for Moment {
    fn name(&self) -> &'static str {
        "adamw-moment"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (moment, grad) = (slice_mut(s1, l1)?, slice(s2, l2)?);
        let Self { beta, rest, scale, square } = *self;
        moment.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).for_each(|(moment, grad)| {
            for (m, &g) in moment.iter_mut().zip(grad) {
                let g = g * scale;
                *m = beta * *m + rest * if square { g * g } else { g };
            }
        });
        Ok(())
    }
}

/// `p ← p·keep − rate·m / (√v/root + ε)`.
struct Update {
    keep: f32,
    rate: f32,
    root: f32,
    eps: f32,
}

impl InplaceOp3 for Update {
    fn name(&self) -> &'static str {
        "adamw-update"
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<()> {
        let (param, m, v) = (slice_mut(s1, l1)?, slice(s2, l2)?, slice(s3, l3)?);
        let Self { keep, rate, root, eps } = *self;
        param.par_chunks_mut(CHUNK).zip(m.par_chunks(CHUNK).zip(v.par_chunks(CHUNK))).for_each(|(param, (m, v))| {
            for ((p, &m), &v) in param.iter_mut().zip(m).zip(v) {
                *p = *p * keep - rate * m / (v.sqrt() / root + eps);
            }
        });
        Ok(())
    }
}
