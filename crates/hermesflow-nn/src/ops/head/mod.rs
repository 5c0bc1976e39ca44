//! The vocabulary head and the log-probabilities of its targets as one operator, for training large models.
//!
//! The logits are the largest matrix of a step. Without a graph some rows at a time are enough; with one they are kept
//! once, and become their own gradient in place.

mod any_device;

use std::sync::{Arc, Mutex, PoisonError};

pub use self::any_device::ROWS as HEAD_ROWS_ON_A_GPU;

use super::decoder::Pair;
use super::log_prob::{of_targets, to_gradients};
use crate::matmul::training::Products;
use crate::storage::{elements, host, on_cpu};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// Rows at a time: their product fills the CPU, their logits are a tenth of a gigabyte. The same ones whether a backward
/// pass follows or not, as products in f32 round by how many rows they have.
const ROWS: usize = 512;

/// `log softmax(x Wᵀ + b)[target]` of each row.
///
/// Its backward pass runs in [`crate::gradients::backward`] only.
///
/// # Shapes
/// `x [n, h]`, `weight [v, h]`, `bias [v]`, `targets` n of them -> `[n]`
///
/// # Errors
/// When the weight is trained and `x` has no graph: its gradient would be lost.
pub fn head_log_prob(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    targets: &[u32],
    products: Products,
) -> Result<Tensor> {
    let ((n, h), (v, input)) = (x.dims2()?, weight.dims2()?);
    if targets.len() != n || input != h || bias.dims() != [v] {
        bail!(
            "head: {} targets for x {:?}, weight {:?}, bias {:?}",
            targets.len(),
            x.dims(),
            weight.dims(),
            bias.dims()
        );
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= v) {
        bail!("head: target {target} in a vocabulary of {v}");
    }
    if weight.track_op() && !x.track_op() {
        bail!("head: its weight is trained, what it is applied to is not");
    }
    if !on_cpu(x.device()) {
        let head = Pair { weight: weight.clone(), bias: bias.clone() };
        #[cfg(feature = "cuda")]
        if super::gpu::takes_head(x, &head, targets, products) {
            return super::gpu::head_log_prob(x, head, targets);
        }
        return any_device::log_prob(x, head, targets, products);
    }
    let saved = x.track_op().then(Mutex::default);
    let (weight, bias) = (weight.clone(), bias.clone());
    x.contiguous()?.apply_op1(Head { weight, bias, targets: targets.into(), products, saved })
}

struct Head {
    weight: Tensor,
    bias: Tensor,
    targets: Arc<[u32]>,
    products: Products,
    /// From forward to backward, where there will be one.
    saved: Option<Mutex<Option<Saved>>>,
}

/// What the backward pass needs beside `x`.
struct Saved {
    logits: Vec<f32>,
    /// Each row's log-sum-exp.
    normalizers: Vec<f32>,
}

impl Head {
    /// The log-probabilities of rows' targets, and what the backward pass needs.
    fn rows(&self, x: &[f32], targets: &[u32]) -> Result<(Vec<f32>, Saved)> {
        let logits = self.products.affine(x, &self.weight, &self.bias)?;
        let (y, normalizers) = of_targets(&logits, self.weight.dim(0)?, targets);
        Ok((y, Saved { logits, normalizers }))
    }

    /// The same of all rows, some at a time; what the backward pass needs only if it is wanted.
    fn all_rows(&self, x: &[f32], width: usize, keep: bool) -> Result<(Vec<f32>, Saved)> {
        if x.len() <= ROWS * width {
            return self.rows(x, &self.targets);
        }
        let mut all = Vec::with_capacity(self.targets.len());
        let logits = if keep { self.targets.len() * self.weight.dim(0)? } else { 0 };
        let mut saved = Saved { logits: Vec::with_capacity(logits), normalizers: Vec::new() };
        for (x, targets) in x.chunks((ROWS * width).max(1)).zip(self.targets.chunks(ROWS)) {
            let (y, part) = self.rows(x, targets)?;
            all.extend(y);
            if keep {
                saved.logits.extend(part.logits);
                saved.normalizers.extend(part.normalizers);
            }
        }
        Ok((all, saved))
    }
}

impl CustomOp1 for Head {
    fn name(&self) -> &'static str {
        "head-log-prob"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, h) = layout.shape().dims2()?;
        let (y, kept) = self.all_rows(elements(x, layout)?, h, self.saved.is_some())?;
        if let Some(saved) = &self.saved {
            *saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
        Ok((CpuStorage::F32(y), n.into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let saved = self.saved.as_ref().and_then(|saved| saved.lock().unwrap_or_else(PoisonError::into_inner).take());
        let Some(Saved { mut logits, normalizers }) = saved else {
            bail!("head: backward before forward, or twice");
        };
        let grad = grad.contiguous()?;
        let ((xs, x_layout), (gs, g_layout)) = (x.storage_and_layout(), grad.storage_and_layout());
        let (data, grad) = (host(&xs, x_layout)?, host(&gs, g_layout)?);
        to_gradients(&mut logits, self.weight.dim(0)?, &self.targets, &normalizers, grad);
        self.products.weight_gradients(&logits, data, &self.weight, &self.bias)?;
        let dx = self.products.input_gradient(&logits, &self.weight, None)?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ops;
    use crate::testing::{collected, normal, worst};

    #[test]
    fn agrees_with_the_operators_it_is_made_of() {
        for (n, h, v) in [(1, 8, 5), (70, 40, 900)] {
            let targets: Vec<u32> = (0..n as u32).map(|row| row * 37 % v as u32).collect();
            let args = [normal(&[n, h]), normal(&[v, h]), normal(&[v])];
            for (products, tolerance) in [(Products::F32, 1e-5), (Products::Bf16, 3e-2)] {
                let ours = collected(&args, |a| head_log_prob(&a[0], &a[1], &a[2], &targets, products));
                let plain = collected(&args, |a| ops::log_prob(&ops::linear(&a[0], &a[1], Some(&a[2]))?, &targets));
                for (at, (ours, plain)) in ours.iter().zip(&plain).enumerate() {
                    let worst = worst(ours, plain);
                    assert!(worst < tolerance, "{products:?} {n}: {worst} in {at} (values, then gradients)");
                }
            }
            let alone = head_log_prob(&args[0], &args[1], &args[2], &targets, Products::F32).unwrap();
            let plain = ops::log_prob(&ops::linear(&args[0], &args[1], Some(&args[2])).unwrap(), &targets).unwrap();
            assert!(worst(&alone, &plain) < 1e-5);
        }
    }

    #[test]
    fn the_composition_agrees_with_the_kernels() {
        let (n, h, v) = (1100, 24, 90);
        let targets: Vec<u32> = (0..n as u32).map(|row| row * 37 % v as u32).collect();
        let args = [normal(&[n, h]), normal(&[v, h]), normal(&[v])];
        for (products, tolerance) in [(Products::F32, 1e-4), (Products::Bf16, 3e-2)] {
            let kernels = collected(&args, |a| head_log_prob(&a[0], &a[1], &a[2], &targets, products));
            let pair =
                |a: &[candle_core::Var]| Pair { weight: a[1].as_tensor().clone(), bias: a[2].as_tensor().clone() };
            let ours = collected(&args, |a| any_device::log_prob(&a[0], pair(a), &targets, products));
            for (at, (ours, kernels)) in ours.iter().zip(&kernels).enumerate() {
                let worst = worst(ours, kernels);
                assert!(worst < tolerance, "{products:?}: {worst} in {at} (values, then gradients)");
            }
        }
    }

    #[test]
    fn values_do_not_depend_on_whether_a_backward_pass_follows() {
        let (n, h, v) = (1300, 40, 900);
        let targets: Vec<u32> = (0..n as u32).map(|row| row * 37 % v as u32).collect();
        let args = [normal(&[n, h]), normal(&[v, h]), normal(&[v])];
        let trained = args.clone().map(|t| candle_core::Var::from_tensor(&t).unwrap());
        for products in [Products::F32, Products::Bf16] {
            let alone = head_log_prob(&args[0], &args[1], &args[2], &targets, products).unwrap();
            let trained = head_log_prob(&trained[0], &trained[1], &trained[2], &targets, products).unwrap();
            assert_eq!(worst(&alone, &trained.detach()), 0.0, "{products:?}");
        }
    }

    #[test]
    fn a_gradient_that_nobody_collects_is_an_error() {
        let args = [normal(&[3, 8]), normal(&[5, 8]), normal(&[5])].map(|t| candle_core::Var::from_tensor(&t).unwrap());
        let y = head_log_prob(&args[0], &args[1], &args[2], &[0, 1, 2], Products::F32).unwrap().sum_all().unwrap();
        assert!(y.backward().unwrap_err().to_string().contains("gradients::backward"));
        assert!(head_log_prob(&args[0].detach(), &args[1], &args[2], &[0, 1, 2], Products::F32).is_err());
        assert!(head_log_prob(&args[0], &args[1], &args[2], &[0, 1, 5], Products::F32).is_err());
    }
}
