//! Layers that several models share.

use candle_core::{D, DType, Tensor};
use hermesflow_nn::ops;

use super::folder::Parameters;
use crate::Result;

/// An affine map `y = x Wᵀ + b`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads `name.weight`, `[out, in]`, and `name.bias` if the map has one.
    pub fn load(parameters: &Parameters, name: &str, shape: [usize; 2], bias: bool) -> Result<Self> {
        let weight = parameters.get(&format!("{name}.weight"), &shape)?;
        let bias = bias.then(|| parameters.get(&format!("{name}.bias"), &shape[..1])).transpose()?;
        Ok(Self { weight, bias })
    }

    /// A map without a bias.
    pub fn new(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }

    /// Joins maps of the same input into one, whose output is theirs side by side.
    pub fn side_by_side(parts: &[Self]) -> Result<Self> {
        let weights: Vec<&Tensor> = parts.iter().map(|part| &part.weight).collect();
        let biases: Vec<&Tensor> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        let bias = (biases.len() == parts.len()).then(|| Tensor::cat(&biases, 0)).transpose()?;
        Ok(Self { weight: Tensor::cat(&weights, 0)?, bias })
    }

    /// `[.., in]` → `[.., out]`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(xs, &self.weight, self.bias.as_ref())?)
    }
}

/// Layer normalisation with weight and bias.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub fn load(parameters: &Parameters, name: &str, size: usize, eps: f64) -> Result<Self> {
        let part = |part| parameters.get(&format!("{name}.{part}"), &[size]);
        Ok(Self { weight: part("weight")?, bias: part("bias")?, eps })
    }

    /// `[.., h]` → `[.., h]`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(xs, &self.weight, &self.bias, self.eps)?)
    }
}

/// Root mean square normalisation (Zhang & Sennrich, arXiv 1910.07467).
#[derive(Debug, Clone)]
pub(super) struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// `[.., h]` → `[.., h]`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let wide = xs.to_dtype(DType::F32)?;
        let deviation = (wide.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        Ok(wide.broadcast_div(&deviation)?.to_dtype(xs.dtype())?.broadcast_mul(&self.weight)?)
    }
}

/// The activation functions that configurations name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    GeluErf,
    GeluTanh,
    Relu,
    Silu,
}

impl Activation {
    /// The activation of this name in a configuration.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "gelu" => Some(Self::GeluErf),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            "silu" | "swish" => Some(Self::Silu),
            _ => None,
        }
    }

    pub fn forward(self, xs: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::GeluErf => ops::gelu_erf(xs)?,
            Self::GeluTanh => ops::gelu_tanh(xs)?,
            Self::Relu => xs.relu()?,
            Self::Silu => xs.silu()?,
        })
    }
}
