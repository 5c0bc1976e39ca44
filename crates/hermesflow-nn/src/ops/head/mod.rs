//! The vocabulary head and the log-probabilities of its targets as one operator, for training large models:
//! `log softmax(x Wᵀ + b)[target]`.
//!
//! The logits are the largest matrix of a training step. Without a graph they exist for some rows at a time only. With one, the
//! CPU keeps them once and turns them into their own gradient in place; other devices compute them again in the backward pass.

pub(crate) mod any_device;
mod cpu;

use candle_core::{Result, Tensor, bail};

use super::affine::Affine;
use crate::device::uses_kernels;
use crate::matmul::training::Products;

/// `log softmax(x Wᵀ + b)[target]` of each row.
///
/// The backward pass runs in [`crate::gradients::backward`] only.
///
/// # Shapes
/// `x [n, h]`, `weight [v, h]`, `bias [v]`, `targets` n ids below `v` -> `[n]`
///
/// # Errors
/// When shapes or targets do not fit, or when the weight is trained and `x` has no graph: its gradient would be lost.
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
        bail!("head: the weight is trained, but the input x is not part of the graph");
    }
    let head = Affine { weight: weight.clone(), bias: bias.clone() };
    if uses_kernels(x.device()) {
        return cpu::log_prob(x, head, targets, products);
    }
    #[cfg(feature = "cuda")]
    if super::gpu::takes_head(x, &head, targets, products) {
        return super::gpu::head_log_prob(x, head, targets);
    }
    any_device::log_prob(x, head, targets, products)
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
            let map =
                |a: &[candle_core::Var]| Affine { weight: a[1].as_tensor().clone(), bias: a[2].as_tensor().clone() };
            let ours = collected(&args, |a| any_device::log_prob(&a[0], map(a), &targets, products));
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
