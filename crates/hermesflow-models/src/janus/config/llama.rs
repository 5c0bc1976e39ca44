//! `language_config`: the sizes of the LLaMA inside. Absent keys have LLaMA's defaults, as transformers leaves them out.

use hermesflow_nn::sizes;
use serde::Deserialize;
use serde_json::Value;

/// The sizes of a LLaMA decoder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct LlamaConfig {
    /// Token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; absent: as many as query heads.
    pub num_key_value_heads: Option<usize>,
    /// Positions of a sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Width of a head where the file says it; only hidden size / heads.
    pub head_dim: Option<usize>,
    /// The activation of the feed-forward layers; only `silu`.
    pub hidden_act: String,
    /// Whether projections of attention have biases; only false.
    pub attention_bias: bool,
    /// Whether feed-forward layers have biases; only false.
    pub mlp_bias: bool,
    /// Whether head and embedding are one matrix; only false.
    pub tie_word_embeddings: bool,
    /// Stretching of positions; only none.
    pub rope_scaling: Option<Value>,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            head_dim: None,
            hidden_act: "silu".into(),
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: false,
            rope_scaling: None,
        }
    }
}

impl LlamaConfig {
    /// Key and value heads.
    pub fn key_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of one head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    /// Checks the numbers against each other.
    ///
    /// # Errors
    /// Says which key has which value, and what it must be.
    pub fn validate(&self) -> Result<(), String> {
        sizes::check_ranges(&[
            ("language_config.vocab_size", self.vocab_size, sizes::IDS),
            ("language_config.hidden_size", self.hidden_size, sizes::WIDTH),
            ("language_config.intermediate_size", self.intermediate_size, sizes::WIDE),
            ("language_config.num_hidden_layers", self.num_hidden_layers, sizes::LAYERS),
            ("language_config.num_attention_heads", self.num_attention_heads, sizes::WIDTH),
            ("language_config.num_key_value_heads", self.key_heads(), sizes::WIDTH),
            ("language_config.max_position_embeddings", self.max_position_embeddings, sizes::POSITIONS),
        ])?;
        sizes::check_positive(&[
            ("language_config.rms_norm_eps", self.rms_norm_eps),
            ("language_config.rope_theta", self.rope_theta),
        ])?;
        let (hidden, heads, key_heads) = (self.hidden_size, self.num_attention_heads, self.key_heads());
        if !hidden.is_multiple_of(heads) || !self.head_size().is_multiple_of(2) {
            return Err(format!(
                "language_config.hidden_size {hidden} does not divide into {heads} heads of an even size"
            ));
        }
        if !heads.is_multiple_of(key_heads) {
            return Err(format!(
                "language_config.num_attention_heads {heads} is no multiple of num_key_value_heads {key_heads}"
            ));
        }
        if let Some(size) = self.head_dim.filter(|size| *size != self.head_size()) {
            return Err(format!(
                "language_config.head_dim {size} is not hidden_size / num_attention_heads = {}",
                self.head_size()
            ));
        }
        if self.hidden_act != "silu" {
            return Err(format!("language_config.hidden_act {:?} is not silu", self.hidden_act));
        }
        let others = [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("tie_word_embeddings", self.tie_word_embeddings),
            ("rope_scaling", self.rope_scaling.is_some()),
        ];
        match others.iter().find(|(_, set)| *set) {
            Some((key, _)) => Err(format!("language_config.{key} is set; Janus-Pro has none")),
            None => Ok(()),
        }
    }
}
