//! The image tokenizer of a checkpoint: the published VQ-16, or the lookup-free one of a small model of this program.

use hermesflow_nn::weights::Weights;
use image::RgbImage;

use super::config::VqConfig;
use super::vq::{ROOT, Vq};
use crate::Result;
use crate::showo::Magvit;

/// What turns pictures into codes and codes into pictures.
#[derive(Debug, Clone)]
pub enum PictureTokenizer {
    /// Of the published checkpoints.
    Vq(Vq),
    /// Of small models.
    LookupFree(Magvit),
}

impl PictureTokenizer {
    /// Names and shapes of all parameters.
    ///
    /// # Errors
    /// Never for a configuration that was read.
    pub fn parameter_shapes(config: &VqConfig) -> Result<Vec<(String, Vec<usize>)>> {
        match &config.lookup_free {
            None => Vq::parameter_shapes(config),
            Some(magvit) => {
                let shapes = Magvit::parameter_shapes(magvit)?;
                Ok(shapes.into_iter().map(|(name, shape)| (rooted(&name), shape)).collect())
            }
        }
    }

    /// Takes the weights.
    ///
    /// # Errors
    /// Says what is missing or mis-shaped.
    pub fn new(weights: &Weights, config: &VqConfig) -> Result<Self> {
        let Some(magvit) = &config.lookup_free else { return Ok(Self::Vq(Vq::new(weights, config)?)) };
        let own = weights.tensors().iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(ROOT)?.trim_start_matches('.');
            Some((name.to_owned(), tensor.detach()))
        });
        let own = Weights::from_tensors(own.collect::<Vec<_>>(), weights.origin());
        Ok(Self::LookupFree(Magvit::new(&own, magvit)?))
    }

    /// Codes of square pictures of one size.
    ///
    /// # Errors
    /// When a picture has another size.
    pub fn encode_images(&self, images: &[RgbImage], side: usize) -> Result<Vec<Vec<u32>>> {
        match self {
            Self::Vq(vq) => vq.encode_images(images, side),
            Self::LookupFree(magvit) => magvit.encode_images(images),
        }
    }

    /// Pictures of codes.
    ///
    /// # Errors
    /// When the codes are not square or outside the codebook.
    pub fn decode_images(&self, codes: &[Vec<u32>]) -> Result<Vec<RgbImage>> {
        match self {
            Self::Vq(vq) => vq.decode_images(codes),
            Self::LookupFree(magvit) => magvit.decode_images(codes),
        }
    }
}

/// The name of a parameter of a lookup-free image tokenizer within a checkpoint.
pub fn rooted(name: &str) -> String {
    format!("{}.{name}", ROOT.trim_end_matches('.'))
}
