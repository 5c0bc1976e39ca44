//! The projector of the CLIP variant of Show-o (arXiv 2408.12528 §4): from the features of a vision tower to embeddings of
//! the decoder.

use candle_core::Tensor;
use hermesflow_nn::ops;
use hermesflow_nn::weights::Weights;

use super::affine::Affine;
use crate::Result;

/// The projector's parameters in a Show-o checkpoint.
pub const PROJECTOR_PARAMETERS: [&str; 4] =
    ["mm_projector.0.weight", "mm_projector.0.bias", "mm_projector.2.weight", "mm_projector.2.bias"];

/// Two layers from the tower's features to the decoder's embeddings: `mm_projector` of a Show-o checkpoint.
#[derive(Debug, Clone)]
pub struct Projector {
    first: Affine,
    second: Affine,
}

impl Projector {
    /// Takes the weights: from features of `width` to embeddings of `hidden`.
    ///
    /// # Errors
    /// Says what is missing or mis-shaped.
    pub fn new(weights: &Weights, width: usize, hidden: usize) -> Result<Self> {
        let root = weights.scope("mm_projector");
        Ok(Self {
            first: Affine::load(&root.pp(0), &[hidden, width])?,
            second: Affine::load(&root.pp(2), &[hidden, hidden])?,
        })
    }

    /// Embeddings of features.
    ///
    /// # Shapes
    /// `[patches, width]` → `[patches, hidden]`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.second.linear(&ops::gelu_erf(&self.first.linear(features)?)?)
    }
}
