//! The vocabulary head on the CPU, on slices in f32.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::matmul::training::Products;
use crate::ops::affine::Affine;
use crate::ops::log_prob::{of_targets, to_gradients};
use crate::storage::{elements, host};

/// Rows at a time: their product occupies the whole CPU, and their logits over a large vocabulary take a tenth of a gigabyte.
/// The same number whether a backward pass follows or not, because rounding of products in f32 depends on their number of rows.
const ROWS: usize = 512;

/// [`super::head_log_prob`] for arguments that were checked.
pub(super) fn log_prob(x: &Tensor, map: Affine, targets: &[u32], products: Products) -> Result<Tensor> {
    let saved = x.track_op().then(Mutex::default);
    x.contiguous()?.apply_op1(Head { map, targets: targets.into(), products, saved })
}

/// The operator with its weight, bias and targets.
struct Head {
    map: Affine,
    targets: Arc<[u32]>,
    products: Products,
    /// What the forward pass leaves for the backward pass; `None` where none follows.
    saved: Option<Mutex<Option<Saved>>>,
}

/// What the backward pass needs besides `x`.
struct Saved {
    /// `[n, v]`
    logits: Vec<f32>,
    /// Each row's log-sum-exp, `[n]`.
    normalizers: Vec<f32>,
}

impl Head {
    /// The log-probabilities of some rows' targets, and what the backward pass needs.
    fn rows(&self, x: &[f32], targets: &[u32]) -> Result<(Vec<f32>, Saved)> {
        let logits = self.products.affine(x, &self.map.weight, &self.map.bias)?;
        let (y, normalizers) = of_targets(&logits, self.map.weight.dim(0)?, targets);
        Ok((y, Saved { logits, normalizers }))
    }

    /// [`Self::rows`] for all rows, [`ROWS`] at a time; what the backward pass needs is empty unless `keep`.
    fn all_rows(&self, x: &[f32], width: usize, keep: bool) -> Result<(Vec<f32>, Saved)> {
        if x.len() <= ROWS * width {
            return self.rows(x, &self.targets);
        }
        let mut all = Vec::with_capacity(self.targets.len());
        let logits = if keep { self.targets.len() * self.map.weight.dim(0)? } else { 0 };
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
            bail!("head: the backward pass runs once, after the forward pass");
        };
        let grad = grad.contiguous()?;
        let ((xs, x_layout), (gs, g_layout)) = (x.storage_and_layout(), grad.storage_and_layout());
        let (data, grad) = (host(&xs, x_layout)?, host(&gs, g_layout)?);
        to_gradients(&mut logits, self.map.weight.dim(0)?, &self.targets, &normalizers, grad);
        self.products.weight_gradients(&logits, data, &self.map.weight, &self.map.bias)?;
        let dx = self.products.input_gradient(&logits, &self.map.weight, None)?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
