//! A block of a transformer on the CPU as one operator on slices in f32, with its own backward pass.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::storage::{elements, host};

/// The forward and the backward pass of a block, on rows of `width` numbers that lie one after the other. For tensors on any
/// device there is [`super::node::Passes`].
pub(crate) trait HostPasses: Send + Sync + 'static {
    /// What the backward pass needs besides the input.
    type Saved: Send + 'static;

    /// Computes what the backward pass needs, without the values.
    fn inner(&self, x: &[f32], width: usize) -> Result<Self::Saved>;

    /// Computes the values, and what the backward pass needs.
    fn forward(&self, x: &[f32], width: usize) -> Result<(Vec<f32>, Self::Saved)>;

    /// The gradient of the input from that of the values; those of the weights are collected.
    fn backward(&self, x: &[f32], saved: Self::Saved, grad: &[f32], width: usize) -> Result<Vec<f32>>;
}

/// The values that `passes` compute from `x [n, width]`, as one operator of its graph. With `recompute` only the input is kept
/// for the backward pass, which computes the rest again.
///
/// # Errors
/// When a pass fails, or the backward pass runs twice.
pub(crate) fn host_block<P: HostPasses>(name: &'static str, x: &Tensor, passes: P, recompute: bool) -> Result<Tensor> {
    let saved = (x.track_op() && !recompute).then(Mutex::default);
    x.contiguous()?.apply_op1(HostBlock { name, passes, recompute, saved })
}

struct HostBlock<P: HostPasses> {
    name: &'static str,
    passes: P,
    recompute: bool,
    /// What the forward pass leaves for the backward pass; `None` where none follows or everything is computed again.
    saved: Option<Mutex<Option<P::Saved>>>,
}

impl<P: HostPasses> CustomOp1 for HostBlock<P> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        let (y, kept) = self.passes.forward(elements(x, layout)?, width)?;
        if let Some(saved) = &self.saved {
            *saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, width) = x.dims2()?;
        let grad = grad.contiguous()?;
        let ((xs, x_layout), (gs, g_layout)) = (x.storage_and_layout(), grad.storage_and_layout());
        let (x_rows, grad_rows) = (host(&xs, x_layout)?, host(&gs, g_layout)?);
        let saved = self.saved.as_ref().and_then(|saved| saved.lock().unwrap_or_else(PoisonError::into_inner).take());
        let saved = match saved {
            Some(saved) => saved,
            None if self.recompute => self.passes.inner(x_rows, width)?,
            None => bail!("{}: the backward pass runs once, after the forward pass", self.name),
        };
        let dx = self.passes.backward(x_rows, saved, grad_rows, width)?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
