//! A weight with its bias.

use candle_core::Tensor;

/// The weight and bias of an affine map `x Wᵀ + b`, or of a normalisation.
#[derive(Debug, Clone)]
pub struct Affine {
    /// `[out, in]` of a map, `[d]` of a normalisation.
    pub weight: Tensor,
    /// `[out]` of a map, `[d]` of a normalisation.
    pub bias: Tensor,
}
