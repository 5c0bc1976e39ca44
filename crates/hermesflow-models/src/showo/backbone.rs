//! Show-o as a program holds any backbone.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::Products;
use hermesflow_nn::weights::Weights;
use image::RgbImage;

use super::Showo;
use super::cost::Sizes;
use super::texts::reply_text;
use super::training::whole;
use crate::backbone::{Backbone, Model};
use crate::cost::{Costs, TrainedSides};
use crate::model::CaptionExample;
use crate::{Error, Result};

/// The file of the weights in a folder of a trained model.
const WEIGHTS: &str = "pytorch_model.safetensors";

impl Backbone for Showo {
    fn device(&self) -> &Device {
        self.phi.device()
    }

    fn dtype(&self) -> DType {
        self.dtype()
    }

    fn codebook(&self) -> usize {
        self.config.codebook_size
    }

    fn encode_at_any_size(&self, images: &[RgbImage]) -> Result<Vec<Vec<u32>>> {
        self.vq.encode_images(images)
    }

    fn trains_captions(&self) -> bool {
        !self.config.w_clip_vit
    }

    fn weights(&self) -> &Weights {
        &self.weights
    }

    fn costs(&self) -> Result<Box<dyn Costs>> {
        let sizes = Sizes::new(&self.config, &self.phi_config, self.vq.config())?;
        Ok(Box::new(if self.phi.device().is_cpu() { sizes } else { sizes.on_gpu(self.dtype()) }))
    }

    fn check_caption(&self, question: &str, caption: &str) -> Result<()> {
        self.check_caption(question, caption)
    }

    fn spelled(&self, caption: &str) -> String {
        reply_text(caption)
    }

    fn caption_log_probs_counted(&self, examples: &[CaptionExample]) -> Result<(Tensor, Vec<usize>)> {
        self.reply_log_probs(examples)
    }

    /// All likelihoods depend on all parameters.
    fn trainable_parts(&self, parts: &[String], _: TrainedSides) -> Result<Model> {
        whole(parts)?;
        Ok(Arc::new(self.trainable()?))
    }

    fn frozen_copy(&self) -> Result<Model> {
        Ok(Arc::new(self.frozen()?))
    }

    fn for_training(&self, products: Products) -> Result<Model> {
        Ok(Arc::new(self.training(products)?))
    }

    fn recomputing(&self, on: bool) -> Model {
        Arc::new(self.recompute(on))
    }

    fn reopened(&self, folder: &Path) -> Result<Model> {
        let weights = Weights::load(&folder.join(WEIGHTS), self.dtype(), self.vq.device())?;
        Ok(Arc::new(self.with_weights(weights)?))
    }

    fn save_trained(&self, folder: &Path) -> Result<()> {
        let phi = folder.join("phi");
        std::fs::create_dir_all(&phi).map_err(|source| Error::io(&phi, source))?;
        self.save(folder, DType::F32)
    }

    fn see_parts(&self, see: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.each_part(see)
    }
}
