//! A backward pass that sums the gradients of large weights in place.
//!
//! candle adds every gradient that an operator returns to zeros or to the sum so far, in new memory each time. For the weights of
//! a large model that is a good part of a training step. Operators that hold their weights themselves
//! ([`crate::ops::decoder_block`], [`crate::ops::head_log_prob`]) add to the sums of this module instead, and [`backward`] returns
//! those together with candle's gradients. In any other backward pass these operators fail, because gradients that nobody collects
//! would be lost.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId, bail};

use crate::simd::add_to;

/// The sum of a gradient so far: values in memory from the CPU's kernels, a tensor from any other device.
enum Sum {
    Values(Vec<f32>),
    Tensor(Tensor),
}

impl Sum {
    /// The sum as a tensor of the weight's shape on the weight's device.
    fn tensor(self, weight: &Tensor) -> Result<Tensor> {
        match self {
            Self::Values(values) => Tensor::from_vec(values, weight.shape(), weight.device()),
            Self::Tensor(tensor) => Ok(tensor),
        }
    }
}

/// Weights with their sums, by the weights' ids.
type Sums = HashMap<TensorId, (Tensor, Sum)>;

thread_local! {
    /// The sums of the backward pass that runs on this thread.
    static CURRENT: RefCell<Option<Sums>> = const { RefCell::new(None) };
}

/// The gradients of a scalar with respect to all variables that it was computed from. A weight that an operator holds may
/// itself be computed from variables (some rows of one, say): its gradient is then propagated to these.
///
/// # Errors
/// When an operator on the way has no backward pass, or one fails.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let before = CURRENT.replace(Some(Sums::new()));
    let found = loss.backward();
    let sums = CURRENT.replace(before).unwrap_or_default();
    let mut found = found?;
    for (id, (tensor, sum)) in sums {
        let sum = sum.tensor(&tensor)?;
        if tensor.is_variable() {
            add_to_store(&mut found, id, sum)?;
            continue;
        }
        // Its gradients are those of Σ tensor · sum, the sum being a constant. What is computed from several variables, or
        // from one by other operators, is the same.
        let behind = (&tensor * sum.detach())?.sum_all()?.backward()?;
        for id in behind.get_ids().copied().collect::<Vec<_>>() {
            if let Some(gradient) = behind.get_id(id) {
                add_to_store(&mut found, id, gradient.clone())?;
            }
        }
    }
    Ok(found)
}

/// Adds a gradient to those of a store.
fn add_to_store(store: &mut GradStore, id: TensorId, gradient: Tensor) -> Result<()> {
    let sum = match store.get_id(id) {
        Some(other) => (gradient + other.detach())?,
        None => gradient,
    };
    store.insert_id(id, sum);
    Ok(())
}

/// Whether [`backward`] runs on this thread.
pub(crate) fn collecting() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// Replaces a weight's sum by what `sum` makes of it; does nothing if the weight is not trained.
fn update(weight: &Tensor, sum: impl FnOnce(Option<Sum>) -> Result<Sum>) -> Result<()> {
    if !weight.track_op() {
        return Ok(());
    }
    if !collecting() {
        bail!("gradients of this model are lost outside hermesflow_nn::gradients::backward; use that backward pass");
    }
    // The sum is taken out meanwhile: a thread of the pool that waits may run another task, which comes here as well.
    let before = CURRENT.with_borrow_mut(|sums| sums.as_mut().and_then(|sums| sums.remove(&weight.id())));
    let sum = sum(before.map(|(_, sum)| sum))?;
    CURRENT.with_borrow_mut(|sums| {
        if let Some(sums) = sums {
            sums.insert(weight.id(), (weight.clone(), sum));
        }
    });
    Ok(())
}

/// Adds to the gradient of a weight, if that is trained: `first` computes the first term, `more` adds a further one in place.
///
/// # Errors
/// Outside [`backward`].
pub(crate) fn add(weight: &Tensor, first: impl FnOnce() -> Vec<f32>, more: impl FnOnce(&mut [f32])) -> Result<()> {
    update(weight, |sum| match sum {
        None => Ok(Sum::Values(first())),
        Some(Sum::Values(mut sum)) => {
            more(&mut sum);
            Ok(Sum::Values(sum))
        }
        Some(Sum::Tensor(_)) => bail!("a weight has gradients both from the CPU's kernels and from another device"),
    })
}

/// [`add`] for a gradient that is already computed.
pub(crate) fn add_vector(weight: &Tensor, gradient: &[f32]) -> Result<()> {
    add(weight, || gradient.to_vec(), |sum| add_to(sum, gradient))
}

/// [`add`] for tensors: `sum` gets the gradient so far, which no other tensor shares, and returns the new one.
///
/// # Errors
/// Outside [`backward`].
pub(crate) fn add_tensor(weight: &Tensor, sum: impl FnOnce(Option<Tensor>) -> Result<Tensor>) -> Result<()> {
    update(weight, |before| sum(before.map(|sum| sum.tensor(weight)).transpose()?).map(Sum::Tensor))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Var;

    use super::*;
    use crate::ops;
    use crate::ops::Products;
    use crate::testing::{normal, worst};

    /// Some rows of a head, whose gradients are collected, hand them on to the whole.
    #[test]
    fn a_part_of_a_weight_hands_its_gradient_on() {
        let [x, weight, bias] =
            [normal(&[4, 8]), normal(&[10, 8]), normal(&[10])].map(|t| Var::from_tensor(&t).unwrap());
        let part = |of: &Var| of.narrow(0, 3, 5).unwrap();
        let targets = [0, 4, 2, 2];
        let ours = ops::head_log_prob(&x, &part(&weight), &part(&bias), &targets, Products::F32).unwrap();
        let ours = backward(&ours.sum_all().unwrap()).unwrap();
        let logits = ops::linear(&x, &part(&weight), Some(&part(&bias))).unwrap();
        let plain = ops::log_prob(&logits, &targets).unwrap().sum_all().unwrap().backward().unwrap();
        for variable in [&x, &weight, &bias] {
            let (ours, plain) = (ours.get(variable).unwrap(), plain.get(variable).unwrap());
            assert!(worst(ours, plain) < 1e-5);
        }
        // And adds to what the whole has got elsewhere.
        let both = ops::head_log_prob(&x, &part(&weight), &part(&bias), &targets, Products::F32).unwrap();
        let whole = ops::head_log_prob(&x, &weight, &bias, &[9, 0, 1, 5], Products::F32).unwrap();
        let sum = backward(&(both.sum_all().unwrap() + whole.sum_all().unwrap()).unwrap()).unwrap();
        let whole = ops::head_log_prob(&x, &weight, &bias, &[9, 0, 1, 5], Products::F32).unwrap();
        let whole = backward(&whole.sum_all().unwrap()).unwrap();
        for variable in [&x, &weight, &bias] {
            let expected = (whole.get(variable).unwrap() + ours.get(variable).unwrap()).unwrap();
            assert!(worst(sum.get(variable).unwrap(), &expected) < 1e-5);
        }
    }
}
