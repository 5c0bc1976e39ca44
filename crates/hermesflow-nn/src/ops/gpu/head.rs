//! The vocabulary head with the log-probabilities of its targets, on a GPU: products in bf16, and logits in f32 for [`ROWS`] rows at
//! a time, which one kernel reads once.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::product::{self, By};
use super::rows::{log_prob, log_prob_back, narrowed};
use crate::matmul::training::Products;
use crate::measure::profile::{Part, part};
use crate::ops::affine::Affine;
use crate::ops::any_device::collect_affine;
use crate::ops::head::any_device::ROWS;
use crate::ops::node::node;

/// Whether the kernels take a head: products in bf16, input and bias in f32.
pub(crate) fn takes_head(x: &Tensor, head: &Affine, targets: &[u32], products: Products) -> bool {
    x.device().is_cuda()
        && crate::device::multiplies_bf16(x.device())
        && products == Products::Bf16
        && x.dtype() == DType::F32
        && head.bias.dtype() == DType::F32
        && !targets.is_empty()
}

/// [`crate::ops::head_log_prob`] for arguments that were checked and that [`takes_head`].
pub(crate) fn head_log_prob(x: &Tensor, head: Affine, targets: &[u32]) -> Result<Tensor> {
    let rows = Rows { x: x.detach().contiguous()?, head, targets: targets.into() };
    let (values, log_sums) = part(Part::Head, x.device(), || rows.forward())?;
    node("head-log-prob", x, values, move |grad| part(Part::Head, grad.device(), || rows.backward(&log_sums, grad)))
}

/// The operator with its input.
struct Rows {
    x: Tensor,
    head: Affine,
    targets: Arc<[u32]>,
}

impl Rows {
    /// The input [`ROWS`] rows at a time: the first row's number, the rows in bf16, and their targets.
    fn parts(&self) -> impl Iterator<Item = Result<(usize, Tensor, Tensor)>> {
        self.targets.chunks(ROWS).enumerate().map(|(part, targets)| {
            let x = narrowed(&self.x.narrow(0, part * ROWS, targets.len())?)?;
            Ok((part * ROWS, x, Tensor::new(targets, self.x.device())?))
        })
    }

    fn weight(&self) -> Result<Tensor> {
        narrowed(&self.head.weight)
    }

    fn logits(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        product::multiply(x, By::Transposed(weight), Some(&self.head.bias.detach()), DType::F32)
    }

    /// The log-probabilities, and each row's log-sum-exp.
    fn forward(&self) -> Result<(Tensor, Tensor)> {
        let weight = self.weight()?;
        let (mut found, mut sums) = (Vec::new(), Vec::new());
        for part in self.parts() {
            let (_, x, targets) = part?;
            let (of_targets, log_sums) = log_prob(&self.logits(&x, &weight)?, &targets)?;
            found.push(of_targets);
            sums.push(log_sums);
        }
        Ok((Tensor::cat(&found, 0)?, Tensor::cat(&sums, 0)?))
    }

    fn backward(&self, log_sums: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (weight, grad) = (self.weight()?, grad.contiguous()?);
        let mut back = Vec::new();
        for part in self.parts() {
            let (first, x, targets) = part?;
            let of = |all: &Tensor| all.narrow(0, first, x.dim(0)?);
            let logits = self.logits(&x, &weight)?;
            let narrow = log_prob_back(&logits, &targets, &of(log_sums)?, &of(&grad)?)?;
            drop(logits);
            collect_affine(&self.head, &narrow, &narrow, &x)?;
            back.push(product::multiply(&narrow, By::AsItLies(&weight), None, DType::F32)?);
        }
        Tensor::cat(&back, 0)
    }
}
