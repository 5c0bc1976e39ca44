//! The projector of the CLIP variant of Show-o (arXiv 2408.12528 §4): from the features of a vision tower to embeddings of
//! the decoder.

use candle_core::Tensor;
use hermesflow_nn::ops;
use hermesflow_nn::weights::Weights;

use super::affine::{Affine, AffineLayer};
use crate::Result;

/// The names of the projector's parameters in a Show-o checkpoint.
pub const PROJECTOR_PARAMETERS: [&str; 4] =
    ["mm_projector.0.weight", "mm_projector.0.bias", "mm_projector.2.weight", "mm_projector.2.bias"];

/// Two affine maps with a GELU between them, from the tower's features to the decoder's embeddings: `mm_projector` of a
/// Show-o checkpoint.
#[derive(Debug, Clone)]
pub struct Projector {
    first: Affine,
    second: Affine,
}

impl Projector {
    /// Builds the projector from features of `width` numbers to embeddings of `hidden` numbers.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(weights: &Weights, width: usize, hidden: usize) -> Result<Self> {
        let root = weights.scope("mm_projector");
        Ok(Self {
            first: Affine::load(&root.pp(0), &[hidden, width])?,
            second: Affine::load(&root.pp(2), &[hidden, hidden])?,
        })
    }

    /// The embeddings of features.
    ///
    /// # Shapes
    /// `[patches, width]` → `[patches, hidden]`
    ///
    /// # Errors
    /// If the features have another width.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.second.linear(&ops::gelu_erf(&self.first.linear(features)?)?)
    }
}
