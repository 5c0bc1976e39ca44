//! Starting a Janus-Pro from nothing: configuration files, a text tokenizer with its special tokens, and random weights of
//! every tensor that a published checkpoint has.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use hermesflow_nn::weights::Weights;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Value, json};
use tokenizers::{AddedToken, Tokenizer};

use super::config::{JanusConfig, LOOKUP_FREE, SiglipConfig};
use super::files::{CONFIG, JanusFiles, PREPROCESSOR, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG};
use super::picture_tokenizer::rooted;
use super::tokenizer::{ASSISTANT, BEGIN, BEGIN_OF_IMAGE, END, END_OF_IMAGE, IMAGE_PLACEHOLDER, PAD, USER};
use super::{CODEBOOK_USED, Janus, parameter_shapes, siglip};
use crate::showo::MagvitConfig;
use crate::showo::pretrain::{normal, train_tokenizer};
use crate::{Error, Result};

/// Entries of the image tokenizer's record of which codes were used.
const CODES_REMEMBERED: usize = 65_536;
/// The special tokens, in the order in which they are added.
const SPECIAL: [&str; 8] = [BEGIN, END, PAD, IMAGE_PLACEHOLDER, USER, ASSISTANT, BEGIN_OF_IMAGE, END_OF_IMAGE];

/// `config.json` of the published models: of 1B, or of 7B, which leaves out what LLaMA has by default.
pub fn published_config(seven: bool) -> Value {
    let hidden = if seven { 4096 } else { 2048 };
    let language = match seven {
        true => json!({
            "max_position_embeddings": 16_384, "model_type": "llama", "num_hidden_layers": 30, "vocab_size": 102_400
        }),
        false => json!({
            "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 16_384, "model_type": "llama",
            "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16, "vocab_size": 102_400
        }),
    };
    config_around(language, hidden)
}

/// `config.json` of the published vision tower and image tokenizer around a language model, whose hidden size is `hidden`.
pub fn config_around(language: Value, hidden: usize) -> Value {
    json!({
        "model_type": "multi_modality",
        "language_config": language,
        "vision_config": { "cls": "CLIPVisionTower", "model_type": "vision", "params": {
            "image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1
        } },
        "aligner_config": { "cls": "MlpProjector", "model_type": "aligner", "params": {
            "depth": 2, "input_dim": 1024, "n_embed": hidden, "projector_type": "mlp_gelu"
        } },
        "gen_vision_config": { "cls": "VQ-16", "model_type": "gen_vision", "params": {
            "image_token_size": 16_384, "n_embed": 8
        } },
        "gen_aligner_config": { "cls": "MlpProjector", "model_type": "gen_aligner", "params": {
            "depth": 2, "input_dim": 8, "n_embed": hidden, "projector_type": "mlp_gelu"
        } },
        "gen_head_config": { "cls": "vision_head", "model_type": "gen_head", "params": {
            "image_token_embed": hidden, "image_token_size": 16_384, "n_embed": hidden
        } }
    })
}

/// The small files of a checkpoint: its configuration, pictures of so many tokens and this side, and its tokenizer.
pub fn files(config: &Value, image_tokens: usize, image_size: usize, tokenizer: &str) -> JanusFiles {
    let text = |value: &Value| format!("{value:#}\n").into_bytes();
    let processor =
        json!({ "image_tag": IMAGE_PLACEHOLDER, "num_image_tokens": image_tokens, "sft_format": "deepseek" });
    let preprocessor = json!({
        "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_size": image_size, "image_std": [0.5, 0.5, 0.5],
        "min_size": 14.min(image_size), "rescale_factor": 1.0 / 255.0
    });
    let settings = json!({ "bos_token": BEGIN, "eos_token": END, "pad_token": null });
    JanusFiles::from_memory(
        [
            (CONFIG, text(config)),
            (PROCESSOR, text(&processor)),
            (PREPROCESSOR, text(&preprocessor)),
            (TOKENIZER, tokenizer.as_bytes().to_vec()),
            (TOKENIZER_CONFIG, text(&settings)),
        ],
        "new Janus-Pro",
    )
}

/// Trains a byte-level BPE on lines of text and adds the special tokens; its `tokenizer.json`, and the size of the
/// vocabulary.
///
/// # Errors
/// When the trainer fails.
pub fn tokenizer(lines: &[String], vocab_size: usize) -> Result<(String, usize)> {
    let (text, _) = train_tokenizer(lines, vocab_size.saturating_sub(SPECIAL.len()))?;
    with_special_tokens(&text)
}

/// A byte-level BPE with the special tokens; its `tokenizer.json`, and the size of the vocabulary.
///
/// # Errors
/// When the text is no tokenizer.
pub fn with_special_tokens(text: &str) -> Result<(String, usize)> {
    let fault = |e: tokenizers::Error| Error::Invalid(format!("cannot add the special tokens: {e}"));
    let mut tokenizer: Tokenizer = text.parse().map_err(fault)?;
    let special = |spelling: &str| ![BEGIN_OF_IMAGE, END_OF_IMAGE].contains(&spelling);
    // As published: what frames a picture is an added token, but no special one.
    let (special, plain): (Vec<&str>, Vec<&str>) = SPECIAL.into_iter().partition(|spelling| special(spelling));
    tokenizer
        .add_special_tokens(special.into_iter().map(|spelling| AddedToken::from(spelling, true)))
        .map_err(fault)?;
    tokenizer.add_tokens(plain.into_iter().map(|spelling| AddedToken::from(spelling, false))).map_err(fault)?;
    let size = tokenizer.get_vocab_size(true);
    Ok((tokenizer.to_string(true).map_err(fault)?, size))
}

/// The sizes of a small model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SmallSizes {
    /// Text tokens, special ones included.
    pub vocab_size: usize,
    /// Width of the LLaMA.
    pub hidden: usize,
    /// Width of its feed-forward layers.
    pub mlp: usize,
    /// Blocks of the LLaMA.
    pub blocks: usize,
    /// Heads of the LLaMA.
    pub heads: usize,
    /// Base of the LLaMA's rotary frequencies.
    pub rope_theta: f64,
    /// Width, blocks and heads of the vision tower.
    pub eyes: [usize; 3],
}

/// A small model with random weights around a lookup-free image tokenizer: its vision tower has a patch for each code.
///
/// # Errors
/// When the sizes do not fit each other.
pub fn small(sizes: SmallSizes, vq: (&MagvitConfig, &Weights), tokenizer: &str, seed: u64) -> Result<Janus> {
    let SmallSizes { vocab_size, hidden, mlp, blocks, heads, rope_theta, eyes: [width, layers, eyes] } = sizes;
    let (magvit, codes) = (vq.0, 1usize << vq.0.z_channels);
    let (side, patch) = (magvit.resolution, magvit.downsampling());
    let aligner = |input: usize| {
        json!({ "cls": "MlpProjector", "params": {
            "depth": 2, "input_dim": input, "n_embed": hidden, "projector_type": "mlp_gelu"
        } })
    };
    let config = json!({
        "model_type": "multi_modality",
        "language_config": {
            "vocab_size": vocab_size, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": blocks,
            "num_attention_heads": heads, "rope_theta": rope_theta, "max_position_embeddings": 2048, "model_type": "llama",
        },
        "vision_config": { "cls": "CLIPVisionTower", "params": {
            "image_size": side, "model_name": "small", "select_feature": "same", "select_layer": -1,
            "patch_size": patch, "width": width, "layers": layers, "heads": eyes, "mlp_ratio": 4.0,
        } },
        "aligner_config": aligner(width),
        "gen_vision_config": { "cls": LOOKUP_FREE, "params": {
            "image_token_size": codes, "n_embed": CODE_WIDTH, "lookup_free": magvit
        } },
        "gen_aligner_config": aligner(CODE_WIDTH),
        "gen_head_config": { "cls": "vision_head", "params": {
            "image_token_embed": hidden, "image_token_size": codes, "n_embed": hidden
        } },
    });
    let files = files(&config, (side / patch).pow(2), side, tokenizer);
    let config = JanusConfig::read(&files)?;
    let random = random_janus(&config, seed, vq.1.tensors().values().next().map_or(&Device::Cpu, Tensor::device))?;
    let own: BTreeMap<String, &Tensor> = vq.1.tensors().iter().map(|(name, tensor)| (rooted(name), tensor)).collect();
    let tensors = random.tensors().iter().map(|(name, tensor)| {
        let tensor = own.get(name).copied().unwrap_or(tensor);
        (name.clone(), tensor.detach())
    });
    Janus::new(files, Weights::from_tensors(tensors.collect::<Vec<_>>(), "new Janus-Pro"))
}

/// Width of a code's embedding in a small model.
const CODE_WIDTH: usize = 32;

/// Names and shapes of every tensor of a published checkpoint, those that nothing reads among them.
///
/// # Errors
/// Never for a configuration that was read.
pub fn published_shapes(config: &JanusConfig) -> Result<Vec<(String, Vec<usize>)>> {
    let mut shapes = parameter_shapes(config)?;
    shapes.extend(pooling_shapes(&config.vision));
    if config.vq.lookup_free.is_none() {
        shapes.push((CODEBOOK_USED.into(), vec![CODES_REMEMBERED]));
    }
    shapes.sort();
    Ok(shapes)
}

/// The vision tower's pooling head.
fn pooling_shapes(config: &SiglipConfig) -> Vec<(String, Vec<usize>)> {
    let (width, mlp) = (config.width, config.mlp_width);
    let base = format!("{}.attn_pool", siglip::ROOT);
    let mut shapes = vec![(format!("{base}.latent"), vec![1, 1, width])];
    for (name, shape) in [
        ("q", vec![width, width]),
        ("kv", vec![2 * width, width]),
        ("proj", vec![width, width]),
        ("norm", vec![width]),
        ("mlp.fc1", vec![mlp, width]),
        ("mlp.fc2", vec![width, mlp]),
    ] {
        shapes.push((format!("{base}.{name}.bias"), vec![shape[0]]));
        shapes.push((format!("{base}.{name}.weight"), shape));
    }
    shapes
}

/// Random weights of every tensor: N(0, 0.02²) in the LLaMA, whose projections into the residual stream are scaled by
/// 1/√(2·layers), and for the vision tower's positions, N(0, 1/fan in) elsewhere, N(0, 1) for what codes are embedded by, biases
/// zero, norms one. Each tensor's numbers follow from the seed and its name's place.
///
/// # Errors
/// When a tensor cannot be made.
pub fn random_janus(config: &JanusConfig, seed: u64, device: &Device) -> Result<Weights> {
    let residual = 0.02 / (2.0 * config.language.num_hidden_layers as f64).sqrt();
    let shapes = published_shapes(config)?;
    let tensors = shapes.into_par_iter().enumerate().map(|(number, (name, shape))| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(number as u64);
        let fan_in: usize = shape[1..].iter().product();
        let deviation = match name.as_str() {
            _ if name.ends_with("_proj.weight") && name.contains(".layers.") => {
                if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") { residual } else { 0.02 }
            }
            _ if name.ends_with("embed_tokens.weight") || name.ends_with("lm_head.weight") => 0.02,
            // As in SigLIP's own code: positions as large as patches hide from a tower in training what its patches show.
            _ if name.ends_with("pos_embed") => 0.02,
            _ if name == "gen_embed.weight" || name.ends_with("quantize.embedding.weight") => 1.0,
            _ => 1.0 / (fan_in.max(1) as f64).sqrt(),
        };
        let count = shape.iter().product();
        let values = if name.ends_with(".bias") || name == CODEBOOK_USED {
            vec![0f32; count]
        } else if shape.len() == 1 {
            vec![1f32; count]
        } else {
            (0..count).map(|_| (normal(&mut random) * deviation) as f32).collect()
        };
        Ok((name, Tensor::from_vec(values, shape, device)?))
    });
    Ok(Weights::from_tensors(tensors.collect::<Result<Vec<_>>>()?, "random Janus-Pro"))
}
