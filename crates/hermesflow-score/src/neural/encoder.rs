//! Sentence encoders: BERT (Devlin et al., arXiv 1810.04805) and MPNet (Song et al., arXiv 2004.09297).
//!
//! Both are post-norm transformers: `x = norm(x + attention(x))`, `x = norm(x + mlp(x))`. BERT encodes positions by an
//! embedding per position and token type; MPNet by an embedding that starts after the padding's id, and by one relative
//! bias that all layers add to their scores.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::{self, Segment};
use hermesflow_nn::sizes;
use serde::Deserialize;

use super::check_finite;
use super::folder::{Parameters, read_json};
use super::layers::{Activation, LayerNorm, Linear};
use super::packing::Packing;
use super::relative::{self, Buckets};
use crate::{Error, Result};

/// MPNet's buckets of distances. The original uses these whatever its configuration says, which is only the size of the
/// table.
const BUCKETS: Buckets = Buckets { count: 32, farthest: 128, both_ways: true };

#[derive(Debug, Clone, Deserialize)]
struct Config {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default)]
    pad_token_id: Option<u32>,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default = "thirty_two")]
    relative_attention_num_buckets: usize,
    #[serde(default, rename = "_name_or_path")]
    name: Option<String>,
}

fn two() -> usize {
    2
}

fn thirty_two() -> usize {
    32
}

/// The two architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bert,
    MpNet,
}

impl Config {
    /// The architecture, if everything in the configuration is supported.
    fn kind(&self) -> Result<Kind, String> {
        let kind = match self.model_type.as_str() {
            "bert" => Kind::Bert,
            "mpnet" => Kind::MpNet,
            other => return Err(format!("model_type {other:?}; expected a bert or mpnet model")),
        };
        if let Some(positions) = self.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(format!("position_embedding_type {positions:?} is not supported; expected \"absolute\""));
        }
        sizes::check_ranges(&[
            ("vocab_size", self.vocab_size, sizes::IDS),
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("intermediate_size", self.intermediate_size, sizes::WIDE),
            ("num_hidden_layers", self.num_hidden_layers, sizes::LAYERS),
            ("max_position_embeddings", self.max_position_embeddings, sizes::POSITIONS),
            ("type_vocab_size", self.type_vocab_size, sizes::WIDTH),
        ])?;
        let pad = self.pad_token_id.unwrap_or(0) as usize;
        sizes::check_ranges(&[("pad_token_id", pad, 0..=self.max_position_embeddings - 1)])?;
        if kind == Kind::MpNet {
            // The number of buckets is the original's, whatever the configuration says.
            let buckets = self.relative_attention_num_buckets;
            sizes::check_ranges(&[(
                "relative_attention_num_buckets",
                buckets,
                BUCKETS.count..=sizes::WIDTH.end() - 1,
            )])?;
        }
        sizes::check_positive(&[("layer_norm_eps", self.layer_norm_eps)])?;
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!("{} heads do not divide hidden_size {}", self.num_attention_heads, self.hidden_size));
        }
        Ok(kind)
    }
}

#[derive(Debug)]
struct Layer {
    projections: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    output_norm: LayerNorm,
}

impl Layer {
    fn load(parameters: &Parameters, layer: usize, kind: Kind, config: &Config) -> Result<Self> {
        let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
        let at = |name: &str| format!("encoder.layer.{layer}.{name}");
        let linear = |name: &str, shape| Linear::load(parameters, &at(name), shape, true);
        let norm = |name: &str| LayerNorm::load(parameters, &at(name), hidden, config.layer_norm_eps);
        let (projections, output, attention_norm) = match kind {
            Kind::Bert => (
                ["attention.self.query", "attention.self.key", "attention.self.value"],
                "attention.output.dense",
                "attention.output.LayerNorm",
            ),
            Kind::MpNet => (
                ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
                "attention.attn.o",
                "attention.LayerNorm",
            ),
        };
        let [q, k, v] = projections.map(|name| linear(name, [hidden, hidden]));
        Ok(Self {
            projections: Linear::side_by_side(&[q?, k?, v?])?,
            output: linear(output, [hidden, hidden])?,
            attention_norm: norm(attention_norm)?,
            up: linear("intermediate.dense", [mlp, hidden])?,
            down: linear("output.dense", [hidden, mlp])?,
            output_norm: norm("output.LayerNorm")?,
        })
    }
}

/// Which tokens attend to which, and with which bias.
enum Visibility {
    Segments(Arc<[Segment]>),
    Biased(Vec<Tensor>),
}

/// A BERT or MPNet encoder.
#[derive(Debug)]
pub struct Encoder {
    kind: Kind,
    config: Config,
    activation: Activation,
    words: Tensor,
    positions: Tensor,
    token_type: Option<Tensor>,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
    relative: Option<Tensor>,
    folder: PathBuf,
}

impl Encoder {
    /// Loads a model folder (`config.json` and weights), with or without a head after the encoder.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the model is of another kind; the file is named.
    pub fn load(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let config: Config = read_json(folder, "config.json")?;
        let fault = |message: String| Error::file(&folder.join("config.json"), message);
        let kind = config.kind().map_err(fault)?;
        let activation = Activation::named(&config.hidden_act)
            .ok_or_else(|| fault(format!("hidden_act {:?} is not supported", config.hidden_act)))?;
        let word_embeddings = "embeddings.word_embeddings.weight";
        let parameters = Parameters::load(folder, dtype, device, &["", "bert.", "mpnet.", "model."], word_embeddings)?;
        let hidden = config.hidden_size;
        let types = match kind {
            Kind::Bert => {
                let table =
                    parameters.get("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, hidden])?;
                Some(table.narrow(0, 0, 1)?)
            }
            Kind::MpNet => None,
        };
        let relative_shape = [config.relative_attention_num_buckets, config.num_attention_heads];
        let relative = match kind {
            Kind::Bert => None,
            Kind::MpNet => Some(parameters.get("encoder.relative_attention_bias.weight", &relative_shape)?),
        };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| Layer::load(&parameters, layer, kind, &config))
            .collect::<Result<_>>()?;
        Ok(Self {
            kind,
            activation,
            words: parameters.get(word_embeddings, &[config.vocab_size, hidden])?,
            positions: parameters
                .get("embeddings.position_embeddings.weight", &[config.max_position_embeddings, hidden])?,
            token_type: types,
            embedding_norm: LayerNorm::load(&parameters, "embeddings.LayerNorm", hidden, config.layer_norm_eps)?,
            layers,
            relative,
            folder: folder.to_path_buf(),
            config,
        })
    }

    /// The largest number of tokens of a sentence.
    pub fn max_tokens(&self) -> usize {
        match self.kind {
            Kind::Bert => self.config.max_position_embeddings,
            Kind::MpNet => self.config.max_position_embeddings.saturating_sub(self.padding() as usize + 1),
        }
    }

    /// The number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The size of a hidden state.
    pub fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    /// The size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    /// The names of the model: that of the folder, then that in its configuration.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let folder = self.folder.file_name().and_then(|name| name.to_str());
        folder.into_iter().chain(self.config.name.as_deref())
    }

    fn padding(&self) -> u32 {
        self.config.pad_token_id.unwrap_or(match self.kind {
            Kind::Bert => 0,
            Kind::MpNet => 1,
        })
    }

    /// The hidden states after the first `layers` layers, sentence by sentence, in the given order.
    ///
    /// # Shapes
    /// sentences of `n` ids → `[n, h]` each
    ///
    /// # Errors
    /// If a sentence is too long or an id is outside the vocabulary.
    pub fn states(&self, sentences: &[Vec<u32>], layers: usize) -> Result<Vec<Tensor>> {
        let lengths: Vec<usize> = sentences.iter().map(Vec::len).collect();
        let mut states = vec![None; sentences.len()];
        for packing in Packing::passes(&lengths) {
            let packed = self.pass(sentences, &packing, layers)?;
            for (sentence, rows) in packing.order.iter().zip(&packing.rows) {
                states[*sentence] = Some(packed.narrow(0, rows.start, rows.len())?);
            }
        }
        Ok(states.into_iter().flatten().collect())
    }

    /// The states of all sentences of one pass, `[n, h]`.
    fn pass(&self, sentences: &[Vec<u32>], packing: &Packing, layers: usize) -> Result<Tensor> {
        let (heads, hidden) = (self.config.num_attention_heads, self.config.hidden_size);
        let d = hidden / heads;
        let visibility = match &self.relative {
            None => Visibility::Segments(packing.segments().into()),
            Some(table) => Visibility::Biased(relative::biases(BUCKETS, table, packing)?),
        };
        let mut xs = self.embed(sentences, packing)?;
        for layer in self.layers.iter().take(layers) {
            let (n, _) = xs.dims2()?;
            let projected = layer.projections.forward(&xs)?.reshape((n, 3 * heads, d))?;
            let part = |number: usize| projected.narrow(1, number * heads, heads);
            let (q, k, v) = (part(0)?, part(1)?, part(2)?);
            let seen = match &visibility {
                Visibility::Segments(segments) => ops::attention(&q, &k, &v, segments, 1.0 / (d as f32).sqrt())?,
                Visibility::Biased(biases) => {
                    relative::packed_attention([&q, &k, &v], packing, biases, 1.0 / (d as f64).sqrt())?
                }
            };
            xs = layer.attention_norm.forward(&(xs + layer.output.forward(&seen)?)?)?;
            let mlp = layer.down.forward(&self.activation.forward(&layer.up.forward(&xs)?)?)?;
            xs = layer.output_norm.forward(&(xs + mlp)?)?;
        }
        check_finite("a text encoder", &xs)?;
        Ok(xs)
    }

    fn embed(&self, sentences: &[Vec<u32>], packing: &Packing) -> Result<Tensor> {
        let ids = packing.packed(|sentence| &sentences[sentence]);
        let positions: Vec<Vec<u32>> = sentences.iter().map(|sentence| self.numbered(sentence)).collect();
        let positions = packing.packed(|sentence| &positions[sentence]);
        let mut xs = ops::embedding(&self.words, &ids)?;
        if let Some(token_type) = &self.token_type {
            xs = xs.broadcast_add(token_type)?;
        }
        xs = (xs + ops::embedding(&self.positions, &positions)?)?;
        self.embedding_norm.forward(&xs)
    }

    /// The positions of a sentence's tokens. MPNet counts from after the padding's id; padding that occurs in the text
    /// itself has that id as its position.
    fn numbered(&self, sentence: &[u32]) -> Vec<u32> {
        let padding = self.padding();
        match self.kind {
            Kind::Bert => (0..sentence.len() as u32).collect(),
            Kind::MpNet => {
                let mut last = padding;
                let of = |id: &u32| {
                    last += u32::from(*id != padding);
                    if *id == padding { padding } else { last }
                };
                sentence.iter().map(of).collect()
            }
        }
    }
}
