//! The layers that several parts of Janus-Pro are made of.

use candle_core::{Tensor, Var};
use hermesflow_nn::ops;
use hermesflow_nn::weights::Scope;

use super::config::AlignerConfig;
use crate::Result;

/// `x Wᵀ + b`; the LLaMA's have no bias.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight [out, in]` and `bias [out]`.
    pub(super) fn load(scope: &Scope, (out, input): (usize, usize)) -> Result<Self> {
        Ok(Self { weight: scope.get("weight", &[out, input])?, bias: Some(scope.get("bias", &[out])?) })
    }

    /// Takes `weight [out, in]` alone.
    pub(super) fn without_bias(scope: &Scope, (out, input): (usize, usize)) -> Result<Self> {
        Ok(Self { weight: scope.get("weight", &[out, input])?, bias: None })
    }

    /// `[.., in]` → `[.., out]`
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(xs, &self.weight, self.bias.as_ref())?)
    }
}

/// What a layer is applied to, with a graph if the layer's weight is trained: an operator that collects the gradients of its
/// weights itself needs one to begin in, also where nothing below is trained.
pub(super) fn rooted(xs: Tensor, is_trained: bool) -> Result<Tensor> {
    Ok(if is_trained && !xs.track_op() { Var::from_tensor(&xs)?.into_inner() } else { xs })
}

/// Layer normalisation with weight and bias.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    const EPS: f64 = 1e-6;

    pub(super) fn load(scope: &Scope, width: usize) -> Result<Self> {
        Ok(Self { weight: scope.get("weight", &[width])?, bias: scope.get("bias", &[width])? })
    }

    /// `[.., width]` → the same
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(xs, &self.weight, &self.bias, Self::EPS)?)
    }
}

/// Linear layers with GELU between: `aligner.*` and `gen_aligner.*`.
#[derive(Debug, Clone)]
pub(super) struct Aligner {
    layers: Vec<Linear>,
}

impl Aligner {
    /// Names and shapes of all parameters below `name`.
    pub(super) fn parameter_shapes(name: &str, config: &AlignerConfig) -> Vec<(String, Vec<usize>)> {
        let shapes = Self::sizes(config).flat_map(|(at, (out, input))| {
            let base = format!("{name}.layers.{at}");
            [(format!("{base}.weight"), vec![out, input]), (format!("{base}.bias"), vec![out])]
        });
        shapes.collect()
    }

    /// The number of each layer in the checkpoint, where activations are counted too, and its sizes.
    fn sizes(config: &AlignerConfig) -> impl Iterator<Item = (usize, (usize, usize))> + '_ {
        let input = |layer| if layer == 0 { config.input } else { config.output };
        (0..config.depth).map(move |layer| (2 * layer, (config.output, input(layer))))
    }

    pub(super) fn load(scope: &Scope, config: &AlignerConfig) -> Result<Self> {
        let layers = scope.pp("layers");
        let layers = Self::sizes(config).map(|(at, sizes)| Linear::load(&layers.pp(at), sizes));
        Ok(Self { layers: layers.collect::<Result<_>>()? })
    }

    /// `[rows, input]` → `[rows, output]`
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.clone();
        for (number, layer) in self.layers.iter().enumerate() {
            if number > 0 {
                xs = ops::gelu_erf(&xs)?;
            }
            xs = layer.forward(&xs)?;
        }
        Ok(xs)
    }
}
