//! The models inside this program, and the making of their like from nothing.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hermesflow_models::janus::pretrain::{SmallSizes, small, with_special_tokens};
use hermesflow_models::janus::{Janus, JanusFiles};
use hermesflow_models::showo::config::ADDED_TOKENS;
use hermesflow_models::showo::pretrain::random_showo;
use hermesflow_models::showo::{Embedded, PhiConfig, Showo, ShowoConfig, ShowoTokenizer};
use hermesflow_models::{DType, Device, Model, Weights};

use crate::config::{BackboneName, BaseSettings, ModelSettings};

/// What makes the tokenizers of such a model from nothing, and trains its image tokenizer.
pub use hermesflow_models::showo::pretrain::{VqLossWeights, random_magvit, train_tokenizer, vq_loss};
/// The image tokenizer of such a model, and its files.
pub use hermesflow_models::showo::{Magvit, load_magvit, write_json};
/// A model of the kind of the embedded one.
pub type Small = Showo;

/// The folder of the decoder beside those of the tokenizers.
const DECODER: &str = "showo";

/// The model inside this program.
///
/// # Errors
/// When this build carries none, or the device is not there.
pub fn open(settings: &ModelSettings) -> Result<Small> {
    Ok(Small::embedded(files()?, settings.dtype.into(), &settings.device()?)?)
}

/// The files of the model inside this program.
///
/// # Errors
/// When this build carries none.
#[cfg(embedded_model)]
pub fn files() -> Result<&'static Embedded<'static>> {
    const FILES: Embedded = Embedded {
        showo_config: include_str!("../../../../assets/scenes/showo/config.json"),
        phi_config: include_str!("../../../../assets/scenes/showo/phi/config.json"),
        showo_weights: include_bytes!("../../../../assets/scenes/showo/pytorch_model.safetensors"),
        vq_config: include_str!("../../../../assets/scenes/vq/config.json"),
        vq_weights: include_bytes!("../../../../assets/scenes/vq/pytorch_model.safetensors"),
        tokenizer: include_bytes!("../../../../assets/scenes/tokenizer.json"),
    };
    Ok(&FILES)
}

/// The files of the model inside this program.
///
/// # Errors
/// When this build carries none.
#[cfg(not(embedded_model))]
pub fn files() -> Result<&'static Embedded<'static>> {
    anyhow::bail!("this build carries no embedded model (assets/scenes was empty); make one with `hermesflow pretrain`")
}

/// The small files and the weights of the model inside this program that draws one code after the other.
///
/// # Errors
/// When this build carries none.
#[cfg(embedded_next_code)]
pub fn next_code_files() -> Result<(JanusFiles, &'static [u8])> {
    macro_rules! asset {
        ($name:literal) => {
            include_bytes!(concat!("../../../../assets/scenes-next-code/", $name))
        };
    }
    let small: [(&str, &[u8]); 5] = [
        ("config.json", asset!("config.json")),
        ("preprocessor_config.json", asset!("preprocessor_config.json")),
        ("processor_config.json", asset!("processor_config.json")),
        ("tokenizer.json", asset!("tokenizer.json")),
        ("tokenizer_config.json", asset!("tokenizer_config.json")),
    ];
    let small = small.map(|(name, bytes)| (name, bytes.to_vec()));
    Ok((JanusFiles::from_memory(small, "embedded model"), asset!("pytorch_model.safetensors")))
}

/// The small files and the weights of the model inside this program that draws one code after the other.
///
/// # Errors
/// When this build carries none.
#[cfg(not(embedded_next_code))]
pub fn next_code_files() -> Result<(JanusFiles, &'static [u8])> {
    anyhow::bail!(
        "this build carries no such model (assets/scenes-next-code was empty); make one with `hermesflow pretrain`"
    )
}

/// What a new model is made of.
#[derive(Debug)]
pub struct New<'a> {
    /// The kind of the model and the sizes of its parts.
    pub sizes: &'a BaseSettings,
    /// The text tokenizer's `tokenizer.json`, and its name in errors.
    pub tokenizer: (&'a [u8], &'a Path),
    /// The number of text tokens.
    pub words: usize,
    /// The image tokenizer, and the folder of its weights.
    pub vq: (Magvit, &'a Path),
    /// The folder of the weights to begin with; random ones of this seed if there is none.
    pub weights: (Option<&'a Path>, u64),
}

/// A new model over trainable weights.
#[derive(Debug)]
pub struct Made {
    /// The model.
    pub model: Model,
    /// The same model, where it is of the kind of the embedded one.
    pub small: Option<Small>,
}

/// The folder of a new model in that of its pretraining.
pub fn folder(backbone: BackboneName) -> &'static str {
    if backbone == BackboneName::JanusPro { "model" } else { DECODER }
}

/// Whether a new model is also written as `pretrain --export` writes it, as the files of an embedded one.
pub fn is_exported(backbone: BackboneName) -> bool {
    backbone != BackboneName::JanusPro
}

/// A new model over trainable weights.
///
/// # Errors
/// When its parts do not fit each other.
pub fn new(parts: New<'_>) -> Result<Made> {
    if parts.sizes.backbone == BackboneName::JanusPro {
        return Ok(Made { model: Arc::new(next_code(&parts)?), small: None });
    }
    let New { sizes, tokenizer: (text, path), words, vq: (vq, _), weights: (folder, seed) } = parts;
    let mut config = ShowoConfig {
        class_name: "Showo".into(),
        vocab_size: 0,
        llm_vocab_size: words,
        codebook_size: 1 << vq.config().z_channels,
        num_vq_tokens: (vq.config().resolution / vq.config().downsampling()).pow(2),
        mask_token_id: None,
        w_clip_vit: false,
        llm_model_path: "phi".into(),
        max_text_len: sizes.max_text_len,
    };
    config.vocab_size = config.llm_vocab_size + ADDED_TOKENS.len() + config.codebook_size + 1;
    config.mask_token_id = Some(config.vocab_size as u32 - 1);
    let tokenizer = ShowoTokenizer::from_bytes(text, &config, path)?;
    let weights = match folder {
        Some(folder) => Weights::load(folder, DType::F32, &Device::Cpu)?,
        None => random_showo(&config, &sizes.model, seed, &Device::Cpu)?,
    };
    let small = Small::new(config, sizes.model.clone(), weights.trainable()?, tokenizer, vq)?;
    Ok(Made { model: Arc::new(small.clone()), small: Some(small) })
}

/// A new model that draws one code after the other, over the codes of the same image tokenizer.
fn next_code(parts: &New<'_>) -> Result<Janus> {
    let (folder, seed) = parts.weights;
    let eyes = parts.sizes.eyes.context("base.eyes: missing")?;
    let PhiConfig { hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, rope_theta, .. } =
        parts.sizes.model;
    let text = std::str::from_utf8(parts.tokenizer.0).with_context(|| parts.tokenizer.1.display().to_string())?;
    let (text, vocab_size) = with_special_tokens(text)?;
    let sizes = SmallSizes {
        vocab_size,
        hidden: hidden_size,
        mlp: intermediate_size,
        blocks: num_hidden_layers,
        heads: num_attention_heads,
        rope_theta,
        eyes: [eyes.width, eyes.layers, eyes.heads],
    };
    let vq = Weights::load(parts.vq.1, DType::F32, &Device::Cpu)?;
    let new = small(sizes, (parts.vq.0.config(), &vq), &text, seed)?;
    let Some(folder) = folder else { return Ok(new.trainable_from_nothing()?) };
    let begin = Janus::load(folder, DType::F32, &Device::Cpu)?;
    let (there, here) = (begin.config(), new.config());
    for (key, there, here) in [
        ("base.model", format!("{:?}", there.language), format!("{:?}", here.language)),
        ("base.eyes", format!("{:?}", there.vision), format!("{:?}", here.vision)),
        ("vq.model", format!("{:?}", there.vq), format!("{:?}", here.vq)),
    ] {
        ensure!(there == here, "{key}: the model to begin with, {}, has {there}; here it is {here}", folder.display());
    }
    Ok(begin.trainable_from_nothing()?)
}
