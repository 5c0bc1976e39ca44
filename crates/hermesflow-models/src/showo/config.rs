//! The configuration files of a Show-o checkpoint, from which every size is taken.

use std::path::{Path, PathBuf};

use hermesflow_nn::{foreign, sizes};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use super::magvit::MagvitConfig;
use crate::{Error, Result};

/// The largest number of tokens of an image.
const MOST_TOKENS: usize = 1 << 14;
/// The tokens that Show-o adds after the text vocabulary, in the order of their ids.
pub const ADDED_TOKENS: [&str; 10] =
    ["[PAD]", "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>"];

/// The `config.json` of class `Showo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShowoConfig {
    /// The Python class that wrote the file.
    #[serde(rename = "_class_name", default = "showo_class")]
    pub class_name: String,
    /// The size of the whole vocabulary: text tokens, added tokens, image tokens and the mask token.
    pub vocab_size: usize,
    /// The number of text tokens, without the added ones.
    pub llm_vocab_size: usize,
    /// The number of image tokens.
    pub codebook_size: usize,
    /// The number N of tokens per image.
    pub num_vq_tokens: usize,
    /// The id of the mask token. Default: the last id of the vocabulary.
    #[serde(default)]
    pub mask_token_id: Option<u32>,
    /// Whether the model understands images by CLIP features instead of image tokens. Default: false.
    #[serde(default)]
    pub w_clip_vit: bool,
    /// Where the Phi configuration is: a path relative to this file, or a name on the hub. Default:
    /// `microsoft/phi-1_5`.
    #[serde(default = "phi_name")]
    pub llm_model_path: String,
    /// The largest number of tokens of the text part of an image's sequence, `<|t2i|>` included; longer texts are cut.
    /// Default: 129.
    #[serde(default = "text_length", skip_serializing_if = "is_text_length")]
    pub max_text_len: usize,
}

fn showo_class() -> String {
    "Showo".into()
}

pub(super) fn phi_name() -> String {
    "microsoft/phi-1_5".into()
}

fn text_length() -> usize {
    129
}

fn is_text_length(length: &usize) -> bool {
    *length == text_length()
}

impl ShowoConfig {
    /// The published configuration with `num_vq_tokens` tokens per image; with `clip`, that of the CLIP variant.
    pub fn published(num_vq_tokens: usize, clip: bool) -> Self {
        Self {
            class_name: showo_class(),
            vocab_size: 58_498,
            llm_vocab_size: 50_295,
            codebook_size: 8192,
            num_vq_tokens,
            mask_token_id: None,
            w_clip_vit: clip,
            llm_model_path: phi_name(),
            max_text_len: text_length(),
        }
    }

    /// The token id of image code 0.
    pub fn image_offset(&self) -> u32 {
        (self.llm_vocab_size + ADDED_TOKENS.len()) as u32
    }

    /// The token id of the mask.
    pub fn mask_token(&self) -> u32 {
        self.mask_token_id.unwrap_or(self.vocab_size as u32 - 1)
    }

    /// The token id of one of [`ADDED_TOKENS`]; `None` for another name.
    pub fn added_token(&self, name: &str) -> Option<u32> {
        ADDED_TOKENS.iter().position(|token| *token == name).map(|at| (self.llm_vocab_size + at) as u32)
    }

    /// The side of an image in codes.
    pub fn grid_side(&self) -> usize {
        self.num_vq_tokens.isqrt()
    }

    /// The side of the model's square images in pixels, with the image tokenizer `vq`.
    pub fn resolution(&self, vq: &MagvitConfig) -> usize {
        self.grid_side() * vq.downsampling()
    }

    /// Checks the numbers against each other; `path` is named in errors.
    ///
    /// # Errors
    /// Says which number is out of range or contradicts another.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let sized = sizes::check_ranges(&[
            ("vocab_size", self.vocab_size, sizes::IDS),
            ("llm_vocab_size", self.llm_vocab_size, sizes::IDS),
            ("codebook_size", self.codebook_size, sizes::IDS),
            ("num_vq_tokens", self.num_vq_tokens, 1..=MOST_TOKENS),
            ("max_text_len", self.max_text_len, sizes::POSITIONS),
        ]);
        sized.map_err(|message| Error::config(path, message))?;
        if self.grid_side().pow(2) != self.num_vq_tokens {
            let message = format!("num_vq_tokens is {}; it must be the square of a side", self.num_vq_tokens);
            return Err(Error::config(path, message));
        }
        let needed = self.llm_vocab_size + ADDED_TOKENS.len() + self.codebook_size + 1;
        if self.vocab_size < needed {
            let message = format!(
                "vocab_size is {}, but {} text, {} added, {} image tokens and the mask need {needed}",
                self.vocab_size,
                self.llm_vocab_size,
                ADDED_TOKENS.len(),
                self.codebook_size
            );
            return Err(Error::config(path, message));
        }
        if self.mask_token() as usize >= self.vocab_size {
            return Err(Error::config(
                path,
                format!("mask_token_id is {}; it must be below vocab_size", self.mask_token()),
            ));
        }
        Ok(())
    }
}

/// The `config.json` of the Phi decoder in Show-o. Absent keys have the values of Phi-1.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PhiConfig {
    /// The width of the residual stream. Default: 2048.
    #[serde(default = "d2048")]
    pub hidden_size: usize,
    /// The width of the MLP. Default: 8192.
    #[serde(default = "d8192")]
    pub intermediate_size: usize,
    /// The number of blocks. Default: 24.
    #[serde(default = "d24")]
    pub num_hidden_layers: usize,
    /// The number of attention heads. Default: 32.
    #[serde(default = "d32")]
    pub num_attention_heads: usize,
    /// Must be absent or equal to the number of attention heads.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// The epsilon of every LayerNorm. Default: 1e-5.
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    /// The base of the rotary frequencies. Default: 10,000.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// The share of each head's dimensions that is rotated. Default: 0.5.
    #[serde(default = "half")]
    pub partial_rotary_factor: f64,
    /// The activation of the MLP; only `gelu_new` is accepted.
    #[serde(default = "gelu_new")]
    pub hidden_act: String,
    /// The largest number of tokens of a sequence. Default: 2048.
    #[serde(default = "d2048", skip_serializing_if = "is_2048")]
    pub max_position_embeddings: usize,
}

fn d2048() -> usize {
    2048
}
fn is_2048(positions: &usize) -> bool {
    *positions == d2048()
}
fn d8192() -> usize {
    8192
}
fn d24() -> usize {
    24
}
fn d32() -> usize {
    32
}
fn eps() -> f64 {
    1e-5
}
fn theta() -> f64 {
    10_000.0
}
fn half() -> f64 {
    0.5
}
fn gelu_new() -> String {
    "gelu_new".into()
}

impl Default for PhiConfig {
    /// The configuration of Phi-1.5.
    fn default() -> Self {
        Self {
            hidden_size: d2048(),
            intermediate_size: d8192(),
            num_hidden_layers: d24(),
            num_attention_heads: d32(),
            num_key_value_heads: None,
            layer_norm_eps: eps(),
            rope_theta: theta(),
            partial_rotary_factor: half(),
            hidden_act: gelu_new(),
            max_position_embeddings: d2048(),
        }
    }
}

impl PhiConfig {
    /// The width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The number of rotated dimensions of each head.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim() as f64 * self.partial_rotary_factor) as usize
    }

    /// Checks the numbers against each other; `path` is named in errors.
    ///
    /// # Errors
    /// Says which number is out of range or contradicts another.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let sized = sizes::check_ranges(&[
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("intermediate_size", self.intermediate_size, sizes::WIDE),
            ("num_hidden_layers", self.num_hidden_layers, sizes::LAYERS),
        ]);
        let named = [("layer_norm_eps", self.layer_norm_eps), ("rope_theta", self.rope_theta)];
        sized.and_then(|()| sizes::check_positive(&named)).map_err(|message| Error::config(path, message))?;
        let heads = self.num_attention_heads;
        if heads == 0 || !self.hidden_size.is_multiple_of(heads) {
            let message = format!("hidden_size {} is not a multiple of {heads} heads", self.hidden_size);
            return Err(Error::config(path, message));
        }
        if self.num_key_value_heads.is_some_and(|kv| kv != heads) {
            return Err(Error::config(path, "grouped key/value heads are not part of Show-o; remove the key"));
        }
        let factor = self.partial_rotary_factor;
        if !(factor > 0.0 && factor <= 1.0 && self.rotary_dim() > 0) {
            let message = format!(
                "partial_rotary_factor is {factor}; it must rotate some of a head's {} dimensions",
                self.head_dim()
            );
            return Err(Error::config(path, message));
        }
        if !self.rotary_dim().is_multiple_of(2) {
            return Err(Error::config(
                path,
                format!(
                    "partial_rotary_factor rotates {} dimensions of a head; their number must be even",
                    self.rotary_dim()
                ),
            ));
        }
        if self.hidden_act != "gelu_new" {
            return Err(Error::config(
                path,
                format!("hidden_act is {:?}; only gelu_new is supported", self.hidden_act),
            ));
        }
        Ok(())
    }
}

/// Reads a JSON configuration file.
///
/// # Errors
/// If the file is missing or malformed; it is named.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    if let Some(what) = foreign::stands_in(&bytes) {
        return Err(Error::config(path, what));
    }
    let text = foreign::text(bytes).map_err(|what| Error::config(path, what))?;
    serde_json::from_str(&text).map_err(|e| Error::config(path, e.to_string()))
}

/// Reads the Phi configuration that a Show-o configuration points to. `microsoft/phi-1_5` needs no file.
///
/// # Errors
/// If the path leads nowhere and is no known name.
pub fn read_phi_config(showo_folder: &Path, config: &ShowoConfig) -> Result<PhiConfig> {
    let named = Path::new(&config.llm_model_path);
    let candidates: [PathBuf; 2] = [showo_folder.join(named), named.to_path_buf()];
    for folder in candidates {
        let file = if folder.is_dir() { folder.join("config.json") } else { folder };
        if file.is_file() {
            let phi: PhiConfig = read_json(&file)?;
            phi.validate(&file)?;
            return Ok(phi);
        }
    }
    if config.llm_model_path == phi_name() {
        return Ok(PhiConfig::default());
    }
    Err(Error::config(
        showo_folder.join("config.json"),
        format!(
            "llm_model_path is {:?}; it must be a folder with a config.json, or {:?}",
            config.llm_model_path,
            phi_name()
        ),
    ))
}
