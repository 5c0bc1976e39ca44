//! A weight with its bias, loaded together.

use candle_core::Tensor;
use hermesflow_nn::ops;
use hermesflow_nn::weights::Scope;

use crate::{Error, Result};

/// A weight and a bias: an affine map, or the parameters of a LayerNorm.
#[derive(Debug, Clone)]
pub(super) struct Affine {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

impl Affine {
    pub(super) fn load(scope: &Scope, shape: &[usize]) -> Result<Self> {
        Ok(Self { weight: scope.get("weight", shape)?, bias: scope.get("bias", &shape[..1])? })
    }

    pub(super) fn linear(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(xs, &self.weight, Some(&self.bias))?)
    }

    /// Applies several maps, each to its own input, in one call.
    pub(super) fn all<const N: usize>(maps: [(&Self, &Tensor); N]) -> Result<[Tensor; N]> {
        let results = ops::linear_all(&maps.map(|(map, xs)| (xs, &map.weight, &map.bias)))?;
        results.try_into().map_err(|_| Error::Invalid(format!("not {N} results of {N} affine maps")))
    }

    pub(super) fn norm(&self, xs: &Tensor, eps: f64) -> Result<Tensor> {
        Ok(ops::layer_norm(xs, &self.weight, &self.bias, eps)?)
    }

    pub(super) fn pair(&self) -> ops::Affine {
        ops::Affine { weight: self.weight.clone(), bias: self.bias.clone() }
    }
}
