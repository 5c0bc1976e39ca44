//! Images as the model understands them, and the tokens before a reply: image codes or, in the CLIP variant, the
//! features of a vision tower. [`super::sequence`] describes both forms of sequences.

use std::ops::Range;

use image::RgbImage;

use super::Showo;
use super::clip::ClipVision;
use super::projector::Projector;
use super::sequence::{Packed, SYSTEM_PROMPT, conversation_text, question_text};
use crate::model::{ImageView, UnifiedModel};
use crate::preprocess::{Centre, fit_square};
use crate::{Error, Result, Weights};

/// The parts by which the CLIP variant understands images.
#[derive(Debug, Clone)]
pub(super) struct Clip {
    tower: ClipVision,
    projector: Projector,
    system: Vec<u32>,
}

impl Clip {
    /// The same tower with the projector of other weights.
    pub(super) fn with_weights(&self, weights: &Weights, hidden: usize) -> Result<Self> {
        let projector = Projector::new(weights, self.tower.config().hidden_size, hidden)?;
        Ok(Self { projector, ..self.clone() })
    }
}

impl Showo {
    /// The CLIP variant with its vision tower, which must be the one that the projector was trained on.
    ///
    /// # Errors
    /// If the model is not the CLIP variant, or the tower's features have another width than the projector expects.
    pub fn with_clip(self, tower: ClipVision) -> Result<Self> {
        if !self.config.w_clip_vit {
            let message =
                "w_clip_vit is not true: this checkpoint understands image tokens; give it no CLIP vision tower";
            return Err(Error::config(self.weights.origin(), message));
        }
        let projector = Projector::new(&self.weights, tower.config().hidden_size, self.phi_config.hidden_size)?;
        let system = self.tokenizer.encode(SYSTEM_PROMPT)?;
        Ok(Self { clip: Some(Clip { tower, projector, system }), ..self })
    }

    fn clip(&self) -> Result<&Clip> {
        self.clip.as_ref().ok_or_else(|| {
            let message = "w_clip_vit is true: this checkpoint understands CLIP features, and no CLIP vision tower \
                           was loaded; load openai/clip-vit-large-patch14-336 beside it";
            Error::config(self.weights.origin(), message)
        })
    }

    pub(super) fn fit_to_read(&self, picture: RgbImage) -> Result<RgbImage> {
        match self.config.w_clip_vit {
            true => self.clip()?.tower.square(&picture),
            false => fit_square(picture, self.resolution(), Centre::HalfToEven),
        }
    }

    pub(super) fn read(&self, pictures: &[RgbImage]) -> Result<Vec<ImageView>> {
        if self.config.w_clip_vit {
            return Ok(self.clip()?.tower.features(pictures)?.into_iter().map(ImageView::Features).collect());
        }
        Ok(self.encode_images(pictures)?.into_iter().map(ImageView::Codes).collect())
    }

    /// Appends an image's tokens, which all later ones attend to, to a packed batch; returns their rows.
    ///
    /// # Errors
    /// If the image is in the form of another kind of model.
    pub fn pack_image(&self, packed: &mut Packed, image: &ImageView) -> Result<Range<usize>> {
        match image {
            ImageView::Codes(codes) if !self.config.w_clip_vit => {
                Ok(packed.push(&self.frames.understanding_image(codes), 0, vec![], false))
            }
            ImageView::Features(features) if self.config.w_clip_vit => {
                let clip = self.clip()?;
                let before = self.frames.understanding_features(&clip.system);
                Ok(packed.push_block(&before, clip.projector.forward(features)?)?)
            }
            _ => Err(Error::Invalid(
                "the image was prepared for another kind of model; prepare it with this model".into(),
            )),
        }
    }

    /// The number of tokens of an image of `features` features.
    pub(super) fn feature_rows(&self, features: usize) -> usize {
        self.clip.as_ref().map_or(0, |clip| clip.system.len()) + 2 + features
    }

    /// The tokens between an image and the reply.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn question_ids(&self, question: &str) -> Result<Vec<u32>> {
        if self.config.w_clip_vit {
            let text = self.tokenizer.encode(&conversation_text(question))?;
            return Ok(self.frames.question_behind_features(&text));
        }
        Ok(self.frames.question(&self.tokenizer.encode(&question_text(question))?))
    }
}
