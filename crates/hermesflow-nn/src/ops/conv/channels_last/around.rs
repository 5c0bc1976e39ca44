//! What is computed together with a convolution.

use candle_core::Tensor;

/// A GroupNorm over `c` channels, optionally followed by SiLU.
#[derive(Debug, Clone, Copy)]
pub struct NormBefore<'a> {
    /// Weight, `[c]`.
    pub weight: &'a Tensor,
    /// Bias, `[c]`.
    pub bias: &'a Tensor,
    /// Number of groups of channels, a divisor of `c`.
    pub groups: usize,
    /// Epsilon, added to the variance.
    pub eps: f64,
    /// Whether SiLU, `z / (1 + e^-z)`, follows.
    pub silu: bool,
}

/// What happens to the input before a convolution and to its output. By default nothing does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Around<'a> {
    /// Normalisation of the input.
    pub norm: Option<NormBefore<'a>>,
    /// Whether the input, after its normalisation, is doubled in height and width (nearest neighbour).
    pub upsample: bool,
    /// A tensor of the output's shape that is added to it.
    pub residual: Option<&'a Tensor>,
}
