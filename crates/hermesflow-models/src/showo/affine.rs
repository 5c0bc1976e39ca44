//! Loading and applying a weight with its bias.

use candle_core::Tensor;
use hermesflow_nn::ops;
use hermesflow_nn::weights::Scope;

pub(super) use hermesflow_nn::ops::{Affine, Then};

use crate::{Error, Result};

/// What the models do with an [`Affine`]: an affine map, or the parameters of a LayerNorm.
pub(super) trait AffineLayer: Sized {
    /// Loads `weight`, of this shape, and `bias`, which has the first of its dimensions.
    fn load(scope: &Scope, shape: &[usize]) -> Result<Self>;

    /// Applies the affine map: `[rows, in]` → `[rows, out]`.
    fn linear(&self, xs: &Tensor) -> Result<Tensor>;

    /// Applies the LayerNorm along the last dimension.
    fn norm(&self, xs: &Tensor, eps: f64) -> Result<Tensor>;
}

impl AffineLayer for Affine {
    fn load(scope: &Scope, shape: &[usize]) -> Result<Self> {
        Ok(Self { weight: scope.get("weight", shape)?, bias: scope.get("bias", &shape[..1])? })
    }

    fn linear(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(xs, &self.weight, Some(&self.bias))?)
    }

    fn norm(&self, xs: &Tensor, eps: f64) -> Result<Tensor> {
        Ok(ops::layer_norm(xs, &self.weight, &self.bias, eps)?)
    }
}

/// Applies several affine maps, each to its own input and with what follows it, in one call.
pub(super) fn linear_all<const N: usize>(maps: [(&Affine, &Tensor, Then<'_>); N]) -> Result<[Tensor; N]> {
    let results = ops::linear_all(&maps.map(|(map, xs, then)| ((xs, &map.weight, &map.bias), then)))?;
    results.try_into().map_err(|_| Error::Invalid(format!("not {N} results of {N} affine maps")))
}
