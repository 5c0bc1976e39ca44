//! Show-o (arXiv 2408.12528): a Phi decoder over text, image and mask tokens, and a MAGVIT-v2 image tokenizer. Its CLIP
//! variant understands images by the features of a CLIP vision tower instead of image tokens.

mod affine;
mod backbone;
pub(crate) mod cache;
pub mod clip;
pub mod config;
pub mod cost;
mod files;
pub mod imagine;
pub mod log_probs;
pub mod magvit;
pub mod maskgit;
pub mod phi;
pub mod pretrain;
pub mod projector;
mod reading;
pub mod reply;
mod rotary;
mod scoring;
pub mod sequence;
mod texts;
pub mod tokenizer;
mod training;

use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use hermesflow_nn::parallel;
use hermesflow_nn::weights::Weights;
use image::RgbImage;

pub use clip::{ClipConfig, ClipVision};
pub use config::{PhiConfig, ShowoConfig};
use files::check_bits;
pub use files::{
    CheckpointConfigs, check_files, check_showo, load_magvit, read_configs, read_magvit_config, write_configs,
    write_json,
};
pub use magvit::{Magvit, MagvitConfig};
pub use phi::Phi;
pub use sequence::Frames;
pub use texts::reply_text;
pub use tokenizer::{ShowoTokenizer, SpecialIds};

use crate::backbone::other_decoding;
use crate::model::{
    CaptionExample, GivenReply, ImageExample, ImageView, ImagineJob, ImagineOptions, Likelihood, PairModel, Prepared,
    Reply, ReplyRequest, UnifiedModel,
};
use crate::{Error, Imagined, Result};

/// The files of a model that is compiled into a program.
#[derive(Debug, Clone, Copy)]
pub struct Embedded<'a> {
    /// The `config.json` of Show-o.
    pub showo_config: &'a str,
    /// The `config.json` of its Phi decoder.
    pub phi_config: &'a str,
    /// The weights of the decoder, as safetensors.
    pub showo_weights: &'a [u8],
    /// The `config.json` of the image tokenizer.
    pub vq_config: &'a str,
    /// The weights of the image tokenizer, as safetensors.
    pub vq_weights: &'a [u8],
    /// The `tokenizer.json` of the text tokenizer, without the ten added tokens.
    pub tokenizer: &'a [u8],
}

/// Show-o with its text and image tokenizers.
#[derive(Debug, Clone)]
pub struct Showo {
    config: ShowoConfig,
    phi_config: PhiConfig,
    weights: Weights,
    phi: Phi,
    tokenizer: ShowoTokenizer,
    vq: Magvit,
    frames: Frames,
    clip: Option<reading::Clip>,
}

impl Showo {
    /// Builds a model from its parts.
    ///
    /// # Errors
    /// If weights and configurations do not fit each other.
    pub fn new(
        config: ShowoConfig,
        phi_config: PhiConfig,
        weights: Weights,
        tokenizer: ShowoTokenizer,
        vq: Magvit,
    ) -> Result<Self> {
        config.validate(weights.origin())?;
        phi_config.validate(weights.origin())?;
        check_bits(&config, vq.config(), weights.origin())?;
        let phi = Phi::new(&weights, &config, &phi_config)?;
        let frames = Frames::new(&config, tokenizer.special);
        Ok(Self { config, phi_config, weights, phi, tokenizer, vq, frames, clip: None })
    }

    /// Loads a model from a Show-o folder, a folder of an image tokenizer and a `tokenizer.json`. The decoder's
    /// matrices are held as `dtype`, the image tokenizer in f32.
    ///
    /// # Errors
    /// If a file is missing, broken or does not fit the others; it is named.
    pub fn load(showo: &Path, vq: &Path, tokenizer: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let (config, phi_config) = read_configs(showo)?;
        let weights = Weights::load(showo, dtype, device)?;
        let tokenizer = ShowoTokenizer::load(tokenizer, &config)?;
        let vq = load_magvit(vq, device)?;
        Self::new(config, phi_config, weights, tokenizer, vq)
    }

    /// Loads a model from memory.
    ///
    /// # Errors
    /// If the parts do not fit each other.
    pub fn embedded(files: &Embedded, dtype: DType, device: &Device) -> Result<Self> {
        let origin = Path::new("embedded model");
        let parse = |e: serde_json::Error| Error::config(origin, e.to_string());
        let config: ShowoConfig = serde_json::from_str(files.showo_config).map_err(parse)?;
        let phi_config: PhiConfig = serde_json::from_str(files.phi_config).map_err(parse)?;
        let vq_config: MagvitConfig = serde_json::from_str(files.vq_config).map_err(parse)?;
        let weights = Weights::from_bytes(files.showo_weights, dtype, device, "embedded model")?;
        let vq_weights = Weights::from_bytes(files.vq_weights, DType::F32, device, "embedded image tokenizer")?;
        let tokenizer = ShowoTokenizer::from_bytes(files.tokenizer, &config, origin)?;
        Self::new(config, phi_config, weights, tokenizer, Magvit::new(&vq_weights, &vq_config)?)
    }

    /// A copy of the model with other weights: trainable, frozen, copied or loaded from elsewhere.
    ///
    /// # Errors
    /// If they do not fit the configuration.
    pub fn with_weights(&self, weights: Weights) -> Result<Self> {
        let phi = Phi::new(&weights, &self.config, &self.phi_config)?;
        let hidden = self.phi_config.hidden_size;
        let clip = self.clip.as_ref().map(|clip| clip.with_weights(&weights, hidden)).transpose()?;
        Ok(Self { phi, weights, clip, ..self.clone() })
    }

    /// A copy of the model with trainable copies of its weights.
    ///
    /// # Errors
    /// If a weight cannot be copied.
    pub fn trainable(&self) -> Result<Self> {
        self.with_weights(self.weights.trainable()?)
    }

    /// A copy of the model that shares its weights but keeps no graph: it changes when the original is trained.
    ///
    /// # Errors
    /// Never for a model that was loaded.
    pub fn frozen(&self) -> Result<Self> {
        self.with_weights(self.weights.frozen())
    }

    /// A copy of the model with copies of its weights: it stays as it is when the original is trained.
    ///
    /// # Errors
    /// If a weight cannot be copied.
    pub fn snapshot(&self) -> Result<Self> {
        self.with_weights(self.weights.snapshot()?)
    }

    /// The configuration of Show-o.
    pub fn config(&self) -> &ShowoConfig {
        &self.config
    }

    /// The decoder's configuration.
    pub fn phi_config(&self) -> &PhiConfig {
        &self.phi_config
    }

    /// The decoder's weights, which include the projector of the CLIP variant.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The type in which the weights' matrices are held.
    pub fn dtype(&self) -> DType {
        self.phi.dtype()
    }

    /// Whether the decoder's operators are too small to be shared between threads.
    fn is_small(&self) -> bool {
        self.weights.parameter_count() < parallel::SMALL
    }

    /// Whether batches are processed in parallel, which pays if single operators are too small to be shared between
    /// threads. A GPU is fed by one thread.
    pub(crate) fn works_apart(&self) -> bool {
        self.is_small() && self.phi.device().is_cpu()
    }

    /// The text tokenizer.
    pub fn tokenizer(&self) -> &ShowoTokenizer {
        &self.tokenizer
    }

    /// The image tokenizer.
    pub fn vq(&self) -> &Magvit {
        &self.vq
    }

    /// Writes the configurations and the weights, as `pytorch_model.safetensors`, in the published layout; matrices are
    /// written as `dtype`.
    ///
    /// # Errors
    /// If a file cannot be written; it is named.
    pub fn save(&self, folder: &Path, dtype: DType) -> Result<()> {
        write_configs(folder, &self.config, &self.phi_config)?;
        Ok(self.weights.save(&folder.join("pytorch_model.safetensors"), dtype)?)
    }

    /// Like [`PairModel::caption_log_probs`], with the number of tokens in each sum.
    ///
    /// # Errors
    /// If an image or a text does not fit the model.
    pub fn reply_log_probs(&self, examples: &[CaptionExample]) -> Result<(Tensor, Vec<usize>)> {
        log_probs::captions(self, examples)
    }

    pub(crate) fn encode_reply(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text)
    }
}

impl UnifiedModel for Showo {
    fn resolution(&self) -> usize {
        self.config.resolution(self.vq.config())
    }

    fn image_tokens(&self) -> usize {
        self.config.num_vq_tokens
    }

    fn encode_images(&self, images: &[RgbImage]) -> Result<Vec<Vec<u32>>> {
        let side = self.resolution() as u32;
        if let Some(image) = images.iter().find(|image| image.dimensions() != (side, side)) {
            let message =
                format!("an image has {}×{} pixels; scale it to {side}×{side}", image.width(), image.height());
            return Err(Error::Invalid(message));
        }
        self.vq.encode_images(images)
    }

    fn decode_images(&self, codes: &[Vec<u32>]) -> Result<Vec<RgbImage>> {
        self.vq.decode_images(codes)
    }

    fn decode_grids(&self, codes: &[Vec<u32>], height: usize, width: usize) -> Result<Vec<RgbImage>> {
        self.vq.decode_grids(codes, height, width)
    }

    fn prepare(&self, picture: RgbImage) -> Result<Prepared> {
        self.fit_to_read(picture).map(Prepared::new)
    }

    fn understand(&self, pictures: &[Prepared]) -> Result<Vec<ImageView>> {
        self.read(&pictures.iter().map(|picture| picture.pixels().clone()).collect::<Vec<_>>())
    }

    fn view_of_codes(&self, codes: Vec<u32>) -> Option<ImageView> {
        (!self.config.w_clip_vit).then_some(ImageView::Codes(codes))
    }

    fn check_question(&self, question: &str, max_new_tokens: usize) -> Result<()> {
        self.question_fits(question, max_new_tokens)
    }

    fn reply(&self, image: &ImageView, requests: &[ReplyRequest]) -> Result<Vec<Reply>> {
        Ok(self.reply_many(&[(image, requests)])?.pop().unwrap_or_default())
    }

    fn reply_many(&self, images: &[(&ImageView, &[ReplyRequest])]) -> Result<Vec<Vec<Reply>>> {
        reply::reply_many(self, images)
    }

    fn score_replies(&self, images: &[(&ImageView, &[GivenReply])]) -> Result<Vec<Vec<Likelihood>>> {
        scoring::score_replies(self, images)
    }

    fn cuts(&self, prompt: &str) -> Result<bool> {
        self.prompt_is_cut(prompt)
    }

    fn imagine(&self, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Vec<u32>>> {
        Ok(self.imagine_in_steps(jobs, options)?.into_iter().map(|image| image.codes).collect())
    }

    fn imagine_in_steps(&self, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Imagined>> {
        match options {
            ImagineOptions::Masked(options) => imagine::imagine(self, jobs, options),
            ImagineOptions::NextCode(_) => Err(other_decoding("fills in masked codes over several steps")),
        }
    }
}

impl PairModel for Showo {
    fn parameters(&self) -> Vec<(String, Var)> {
        // The projector is used only for understanding, which is not trained in a model that has one.
        let mut all = self.weights.variables();
        all.retain(|(name, _)| !projector::PROJECTOR_PARAMETERS.contains(&name.as_str()));
        all
    }

    fn caption_log_probs(&self, examples: &[CaptionExample]) -> Result<Tensor> {
        Ok(self.reply_log_probs(examples)?.0)
    }

    fn image_log_probs(&self, examples: &[ImageExample], guidance: f64) -> Result<Tensor> {
        log_probs::images(self, examples, guidance)
    }

    fn image_logits(&self, examples: &[ImageExample]) -> Result<Tensor> {
        log_probs::image_logits(self, examples)
    }

    fn describe(&self, folder: &Path) -> Result<()> {
        write_configs(folder, &self.config, &self.phi_config)
    }
}
