//! Janus-Pro (arXiv 2501.17811): one LLaMA that reads pictures through SigLIP and an aligner, and makes them one code after
//! the other through an embedding, an aligner and a head of their own; a VQ decoder turns the codes into pixels.

mod backbone;
pub mod config;
pub mod conversation;
pub mod cost;
pub mod files;
pub mod hand;
pub mod imagine;
mod layers;
pub mod llama;
mod log_probs;
pub mod picture_tokenizer;
pub mod pictures;
pub mod pretrain;
mod reply;
pub mod siglip;
mod texts;
pub mod tokenizer;
mod training;
mod unified;
pub mod vq;

use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::parallel;
use hermesflow_nn::weights::{self, FileFormat, Weights};
use image::RgbImage;

pub use self::config::JanusConfig;
pub use self::conversation::Conversation;
pub use self::files::JanusFiles;
pub use self::hand::Hand;
pub use self::imagine::{DrawOptions, Drawing};
pub use self::llama::Llama;
pub use self::log_probs::{AboutPicture, OfCodes};
pub use self::siglip::Siglip;
pub use self::tokenizer::JanusTokenizer;
pub use self::training::TRAINED;
pub use self::vq::Vq;

use self::layers::Aligner;
use self::picture_tokenizer::PictureTokenizer;
use crate::decoder::Decoder;
use crate::showo::sequence::Packed;
use crate::{Error, Result};

/// Pictures that go through the vision tower at once on a GPU. On the CPU each goes alone: it is large enough to keep the
/// products busy, and its features then depend on no other picture, in whatever company it is read again.
const BATCH: usize = 8;

/// Pictures that go through the vision tower at once.
fn together(on_gpu: bool) -> usize {
    if on_gpu { BATCH } else { 1 }
}
/// The image tokenizer's record of which codes were used; never read.
const CODEBOOK_USED: &str = "gen_vision_model.quantize.codebook_used";

/// Janus-Pro with its text tokenizer, its vision tower and its image tokenizer.
#[derive(Debug, Clone)]
pub struct Janus {
    files: JanusFiles,
    config: JanusConfig,
    weights: Weights,
    conversation: Conversation,
    tower: Siglip,
    aligner: Aligner,
    llama: Llama,
    hand: Hand,
    vq: PictureTokenizer,
}

impl Janus {
    /// Loads a published folder as it was downloaded; matrices are held as `dtype`, those of the image tokenizer in f32.
    ///
    /// # Errors
    /// Names the file that is missing, broken or does not fit, or the type that the model cannot compute in.
    pub fn load(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Self::check_type(dtype)?;
        let files = JanusFiles::read(folder)?;
        let config = JanusConfig::read(&files)?;
        // The headers first: weights that do not fit need not be read.
        check_entries(folder, &config)?;
        Self::new(files, Self::weights_as(folder, dtype, device)?)
    }

    /// Loads a model from memory: its small files, and the bytes of its weights as safetensors; as [`Janus::load`].
    ///
    /// # Errors
    /// As [`Janus::load`].
    pub fn embedded(files: JanusFiles, weights: &[u8], dtype: DType, device: &Device) -> Result<Self> {
        Self::check_type(dtype)?;
        let held = |name: &str| held(name, dtype);
        Self::new(files, Weights::from_bytes_by_name(weights, held, device, "embedded model")?)
    }

    fn check_type(dtype: DType) -> Result<()> {
        if matches!(dtype, DType::F32 | DType::BF16) {
            return Ok(());
        }
        let message = format!("Janus-Pro computes in f32 or bf16, not in {dtype:?}, which its numbers overflow");
        Err(Error::Invalid(message))
    }

    /// The weights of a file or a folder, with matrices in the types in which a model of this `dtype` holds them.
    fn weights_as(path: &Path, dtype: DType, device: &Device) -> Result<Weights> {
        Ok(Weights::load_by_name(path, |name| held(name, dtype), device)?)
    }

    /// Puts a model together.
    ///
    /// # Errors
    /// When weights and configurations do not fit each other.
    pub fn new(files: JanusFiles, weights: Weights) -> Result<Self> {
        let config = JanusConfig::read(&files)?;
        let found = weights.tensors().iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()));
        check(weights.origin(), found, &config)?;
        let tokenizer = tokenizer(&files, &config)?;
        Ok(Self {
            conversation: Conversation::new(&config, tokenizer),
            tower: Siglip::new(&weights, &config.vision)?,
            aligner: Aligner::load(&weights.scope("aligner"), &config.aligner)?,
            llama: Llama::new(&weights, &config.language)?,
            hand: Hand::new(&weights, &config)?,
            vq: PictureTokenizer::new(&weights, &config.vq)?,
            files,
            config,
            weights,
        })
    }

    /// The same model with other weights (trainable, frozen, a snapshot, or loaded from elsewhere).
    ///
    /// # Errors
    /// When they do not fit the configuration.
    pub fn with_weights(&self, weights: Weights) -> Result<Self> {
        Ok(Self {
            tower: Siglip::new(&weights, &self.config.vision)?,
            aligner: Aligner::load(&weights.scope("aligner"), &self.config.aligner)?,
            llama: Llama::new(&weights, &self.config.language)?,
            hand: Hand::new(&weights, &self.config)?,
            vq: PictureTokenizer::new(&weights, &self.config.vq)?,
            weights,
            ..self.clone()
        })
    }

    /// The configuration.
    pub fn config(&self) -> &JanusConfig {
        &self.config
    }

    /// The small files of its checkpoint.
    pub fn files(&self) -> &JanusFiles {
        &self.files
    }

    /// The weights, those that nothing reads among them.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The type in which the weights' matrices are held.
    pub fn dtype(&self) -> DType {
        self.llama.dtype()
    }

    /// Builds the ids of sequences.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// The vision tower.
    pub fn tower(&self) -> &Siglip {
        &self.tower
    }

    /// The decoder.
    pub fn llama(&self) -> &Llama {
        &self.llama
    }

    /// The image tokenizer of the published checkpoints.
    ///
    /// # Errors
    /// When this model has another one.
    pub fn vq(&self) -> Result<&Vq> {
        match &self.vq {
            PictureTokenizer::Vq(vq) => Ok(vq),
            PictureTokenizer::LookupFree(_) => {
                Err(Error::Invalid("the image tokenizer of this model is no VQ-16".into()))
            }
        }
    }

    /// Features of the vision tower as the LLaMA sees them.
    ///
    /// # Shapes
    /// `[rows, width]` → `[rows, hidden]`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn align(&self, features: &Tensor) -> Result<Tensor> {
        self.aligner.forward(&features.to_device(self.llama.device())?)
    }

    /// The features of pictures of any size.
    ///
    /// # Shapes
    /// `[patches, width]` for each picture
    ///
    /// # Errors
    /// When a picture has no pixels.
    pub fn features(&self, pictures: &[RgbImage]) -> Result<Vec<Tensor>> {
        let chunks: Vec<&[RgbImage]> = pictures.chunks(together(!self.llama.device().is_cpu())).collect();
        let features = parallel::map(self.works_apart(), &chunks, |chunk| -> Result<Vec<Tensor>> {
            let fit = |picture| pictures::fit(picture, &self.config.preprocessor);
            let squares = chunk.iter().map(fit).collect::<Result<Vec<_>>>()?;
            let pixels = pictures::pixels(&squares, &self.config.preprocessor, self.llama.device())?;
            let features = self.tower.forward(&pixels)?;
            (0..chunk.len()).map(|picture| Ok(features.get(picture)?)).collect()
        });
        Ok(features.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    /// Packs what stands before a question: the ids up to `<begin_of_image>`, a picture's aligned features and
    /// `<end_of_image>`; returns its rows.
    ///
    /// # Shapes
    /// `aligned` `[patches, hidden]`
    ///
    /// # Errors
    /// When the features are not those of one picture of this model.
    pub fn pack_picture(&self, packed: &mut Packed, before: &[u32], aligned: Tensor) -> Result<Range<usize>> {
        let (rows, tokens) = (aligned.dims2()?.0, self.config.image_tokens);
        if rows != tokens {
            let message = format!("a picture has {tokens} features, this one {rows}: another kind of model read it");
            return Err(Error::Invalid(message));
        }
        let end = self.conversation.tokenizer().special.end_of_image;
        let ids = [before, &vec![0; tokens], &[end]].concat();
        let range = packed.push(&ids, 0, vec![], true);
        packed.give(range.start + before.len(), aligned);
        Ok(range)
    }

    /// Whether pieces of work are done side by side, as its operators are too small to be shared between threads.
    fn works_apart(&self) -> bool {
        self.weights.parameter_count() < parallel::SMALL && self.llama.device().is_cpu()
    }

    /// Writes a folder in the published layout: the small files as they came, and every tensor that came with them, floats as
    /// `dtype` or else as they are held. Returns the weight files.
    ///
    /// # Errors
    /// When the folder has weights already, or a file cannot be written; the file is named.
    pub fn save(&self, folder: &Path, format: FileFormat, dtype: Option<DType>) -> Result<Vec<PathBuf>> {
        self.files.write(folder)?;
        Ok(self.weights.save_as(folder, format, dtype)?)
    }
}

/// Checks the files of a checkpoint against each other by their headers; no weights are read.
///
/// # Errors
/// Names the file that is missing, broken or does not fit.
pub fn check_files(folder: &Path) -> Result<JanusConfig> {
    let files = JanusFiles::read(folder)?;
    let config = JanusConfig::read(&files)?;
    tokenizer(&files, &config)?;
    check_entries(folder, &config)?;
    Ok(config)
}

fn tokenizer(files: &JanusFiles, config: &JanusConfig) -> Result<JanusTokenizer> {
    let path = files.path(files::TOKENIZER);
    let bytes = files.bytes(files::TOKENIZER).ok_or_else(|| Error::config(&path, "the file is missing"))?;
    JanusTokenizer::from_bytes(bytes, config.language.vocab_size, config.add_bos, &path)
}

fn check_entries(folder: &Path, config: &JanusConfig) -> Result<()> {
    let entries = weights::tensor_infos(folder)?;
    check(folder, entries.into_iter().map(|entry| (entry.name, entry.shape)), config)
}

/// Names and shapes of all parameters that are used.
///
/// # Errors
/// Never for a configuration that was read.
pub fn parameter_shapes(config: &JanusConfig) -> Result<Vec<(String, Vec<usize>)>> {
    let mut shapes = llama::parameter_shapes(&config.language);
    shapes.extend(Siglip::parameter_shapes(&config.vision));
    shapes.extend(Aligner::parameter_shapes("aligner", &config.aligner));
    shapes.extend(Hand::parameter_shapes(config));
    shapes.extend(PictureTokenizer::parameter_shapes(&config.vq)?);
    Ok(shapes)
}

/// Whether a checkpoint may have a tensor of this name that nothing reads.
fn is_unused(name: &str) -> bool {
    name.starts_with("vision_model.vision_tower.attn_pool.")
        || name == CODEBOOK_USED
        || (name.starts_with(llama::ROOT) && name.ends_with("rotary_emb.inv_freq"))
}

/// The type in which the matrices of a name are held in a model of this type; none as the file has them.
fn held(name: &str, dtype: DType) -> Option<DType> {
    match name {
        _ if is_unused(name) => None,
        _ if name.starts_with(vq::ROOT) || name.ends_with("pos_embed") => Some(DType::F32),
        _ => Some(dtype),
    }
}

/// Accounts for every tensor.
fn check(origin: &Path, found: impl Iterator<Item = (String, Vec<usize>)>, config: &JanusConfig) -> Result<()> {
    let found: Vec<_> = found.filter(|(name, _)| !is_unused(name)).collect();
    let embed = found.iter().find(|(name, _)| name == "gen_embed.weight").map(|(_, shape)| shape.as_slice());
    if let Some(&[rows, _]) = embed
        && rows != config.vq.codes
    {
        let message = format!("gen_embed has {rows} rows, but image_token_size is {}", config.vq.codes);
        return Err(Error::config(origin, message));
    }
    Ok(weights::check(origin, &found, &parameter_shapes(config)?, &[])?)
}
