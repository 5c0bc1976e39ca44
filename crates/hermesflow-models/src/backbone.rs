//! A backbone as a program holds it, whichever one it is: what opening, training and saving it asks beside the two traits
//! of [`crate::model`].

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::Products;
use hermesflow_nn::weights::Weights;
use image::RgbImage;

use crate::cost::{Costs, TrainedSides};
use crate::model::{CaptionExample, PairModel, UnifiedModel};
use crate::{Error, Result};

/// Any backbone; clones share its weights.
pub type Model = Arc<dyn Backbone>;

/// A unified multimodal model that curates and is trained.
pub trait Backbone: UnifiedModel + PairModel + Send + Sync + fmt::Debug {
    /// Where the weights are.
    fn device(&self) -> &Device;

    /// The type in which the matrices of the decoder are held.
    fn dtype(&self) -> DType;

    /// The number of codes of the image tokenizer.
    fn codebook(&self) -> usize;

    /// The codes of square images of one size, which may be another than the model's resolution where the image tokenizer
    /// takes it.
    ///
    /// # Errors
    /// If the image tokenizer does not take that size.
    fn encode_at_any_size(&self, images: &[RgbImage]) -> Result<Vec<Vec<u32>>> {
        self.encode_images(images)
    }

    /// Whether the likelihood of captions can be trained.
    fn trains_captions(&self) -> bool {
        true
    }

    /// All weights but those of an image tokenizer that is a checkpoint of its own.
    fn weights(&self) -> &Weights;

    /// What the model's passes cost, on the device where it is.
    ///
    /// # Errors
    /// Never for a model that was loaded.
    fn costs(&self) -> Result<Box<dyn Costs>>;

    /// Checks that a caption, with an image and the question before it, fits the model's positions.
    ///
    /// # Errors
    /// If it does not, or the tokenizer fails.
    fn check_caption(&self, question: &str, caption: &str) -> Result<()>;

    /// A caption spelled as the model would write it, which is the same to the model as the caption as records hold it.
    fn spelled(&self, caption: &str) -> String {
        caption.trim().to_owned()
    }

    /// Like [`PairModel::caption_log_probs`], with the number of tokens in each sum.
    ///
    /// # Errors
    /// As [`PairModel::caption_log_probs`].
    fn caption_log_probs_counted(&self, examples: &[CaptionExample]) -> Result<(Tensor, Vec<usize>)>;

    /// A copy of the model with trainable copies of the parameters whose names begin with one of `parts`; without parts,
    /// of those that the backbone trains by default. Of these, those are trained on which a likelihood of these sides
    /// depends. What is not trained is shared.
    ///
    /// # Errors
    /// If a part is the beginning of no name that can be trained, if nothing is left to train, or a weight cannot be copied.
    fn trainable_parts(&self, parts: &[String], sides: TrainedSides) -> Result<Model>;

    /// A copy of the model that shares its weights but keeps no graph: it changes when the original is trained.
    ///
    /// # Errors
    /// Never for a model that was loaded.
    fn frozen_copy(&self) -> Result<Model>;

    /// A copy of the model that computes log-probabilities as Pair-DPO needs them, for the policy as well as for the
    /// reference: with matrix products of this precision.
    ///
    /// # Errors
    /// If a weight cannot be converted.
    fn for_training(&self, products: Products) -> Result<Model>;

    /// A copy of the model whose blocks, if `on`, keep only their inputs for the backward pass and recompute the rest.
    fn recomputing(&self, on: bool) -> Model;

    /// The model with the weights of a folder that [`Backbone::save_trained`] wrote, in the types in which this one holds
    /// its own.
    ///
    /// # Errors
    /// If they are missing, broken or those of another model.
    fn reopened(&self, folder: &Path) -> Result<Model>;

    /// Writes the model into a folder, in its published layout with one file of weights, `pytorch_model.safetensors`: what
    /// was trained in f32, and the rest as it is held.
    ///
    /// # Errors
    /// If a file cannot be written; it is named.
    fn save_trained(&self, folder: &Path) -> Result<()>;

    /// Passes everything that decides the model's log-probabilities to `see`, piece by piece, to be hashed.
    ///
    /// # Errors
    /// If a weight cannot be read.
    fn see_parts(&self, see: &mut dyn FnMut(&[u8])) -> Result<()>;
}

/// Refuses settings of generating images that are another kind of backbone's.
pub(crate) fn other_decoding(wanted: &str) -> Error {
    Error::Invalid(format!("the settings of generating images are those of another kind of model; this one {wanted}"))
}
