//! A backward pass whose large gradients are summed where they are made.
//!
//! candle adds every gradient that an operator returns to a tensor of zeros or to what is there, in new memory each
//! time. For the weights of a large model that is a good part of a step. Operators that hold their weights themselves
//! ([`crate::ops::decoder_block`], [`crate::ops::head_log_prob`]) put the gradients here instead, and
//! [`backward`] hands them out with the others. Outside of it such an operator's backward pass is an error: a gradient
//! that nobody collects would be a cut.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId, bail};

use crate::simd::add_to;

/// A gradient so far: numbers on the host from the kernels for the CPU, a tensor from the compositions for any device.
enum Sum {
    Values(Vec<f32>),
    Tensor(Tensor),
}

impl Sum {
    /// As a tensor of a weight's shape on its device.
    fn tensor(self, weight: &Tensor) -> Result<Tensor> {
        match self {
            Self::Values(values) => Tensor::from_vec(values, weight.shape(), weight.device()),
            Self::Tensor(tensor) => Ok(tensor),
        }
    }
}

/// Sums by tensor, with the tensors.
type Sums = HashMap<TensorId, (Tensor, Sum)>;

thread_local! {
    /// The sums of the pass that runs on this thread.
    static CURRENT: RefCell<Option<Sums>> = const { RefCell::new(None) };
}

/// The gradients of a scalar by all variables behind it.
///
/// # Errors
/// As [`Tensor::backward`].
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let before = CURRENT.replace(Some(Sums::new()));
    let found = loss.backward();
    let sums = CURRENT.replace(before).unwrap_or_default();
    let mut found = found?;
    for (id, (tensor, sum)) in sums {
        let sum = sum.tensor(&tensor)?;
        let sum = match found.get_id(id) {
            Some(other) => (sum + other.detach())?,
            None => sum,
        };
        found.insert_id(id, sum);
    }
    Ok(found)
}

/// Whether a pass that collects runs on this thread.
pub(crate) fn collecting() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// Hands a weight's sum so far to `sum`, if the weight is trained, and keeps what comes back.
fn update(weight: &Tensor, sum: impl FnOnce(Option<Sum>) -> Result<Sum>) -> Result<()> {
    if !weight.track_op() {
        return Ok(());
    }
    if !collecting() {
        bail!("the gradients of this model are collected by hermesflow_nn::gradients::backward");
    }
    // The sum is taken out meanwhile: threads that wait for one another may do each other's work.
    let before = CURRENT.with_borrow_mut(|sums| sums.as_mut().and_then(|sums| sums.remove(&weight.id())));
    let sum = sum(before.map(|(_, sum)| sum))?;
    CURRENT.with_borrow_mut(|sums| {
        if let Some(sums) = sums {
            sums.insert(weight.id(), (weight.clone(), sum));
        }
    });
    Ok(())
}

/// Adds to a weight's gradient, if it is trained: `first` makes it, `more` adds to it.
///
/// # Errors
/// Outside of [`backward`].
pub(crate) fn add(weight: &Tensor, first: impl FnOnce() -> Vec<f32>, more: impl FnOnce(&mut [f32])) -> Result<()> {
    update(weight, |sum| match sum {
        None => Ok(Sum::Values(first())),
        Some(Sum::Values(mut sum)) => {
            more(&mut sum);
            Ok(Sum::Values(sum))
        }
        Some(Sum::Tensor(_)) => bail!("a weight's gradients come from the CPU's kernels and from compositions"),
    })
}

/// As [`add`], of a gradient that is there already.
pub(crate) fn add_vector(weight: &Tensor, gradient: &[f32]) -> Result<()> {
    add(weight, || gradient.to_vec(), |sum| add_to(sum, gradient))
}

/// As [`add`], by tensors: `sum` gets the gradient so far, which is nobody else's, and gives the new one.
///
/// # Errors
/// Outside of [`backward`].
pub(crate) fn add_tensor(weight: &Tensor, sum: impl FnOnce(Option<Tensor>) -> Result<Tensor>) -> Result<()> {
    update(weight, |before| sum(before.map(|sum| sum.tensor(weight)).transpose()?).map(Sum::Tensor))
}
