//! T5 (Raffel et al., arXiv 1910.10683), with the feed-forward layer of the first version (ReLU) or the later one
//! (gated GELU).
//!
//! Norms come before each part, there are no biases, and attention scores are not scaled. The relative bias of the
//! first layer serves all layers of its stack. With tied embeddings the head's input is multiplied by `d_model^-½`.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::{self, Segment};
use hermesflow_nn::sizes;
use serde::Deserialize;

use super::check_finite;
use super::first_largest;
use super::folder::{Parameters, read_json};
use super::layers::{Activation, Linear, RmsNorm};
use super::packing::Packing;
use super::relative::{self, Buckets};
use crate::{Error, Result};

#[derive(Debug, Clone, Deserialize)]
struct Config {
    model_type: String,
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_heads: usize,
    num_layers: usize,
    #[serde(default)]
    num_decoder_layers: Option<usize>,
    #[serde(default = "relu")]
    feed_forward_proj: String,
    #[serde(default = "small")]
    layer_norm_epsilon: f64,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "farthest")]
    relative_attention_max_distance: usize,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default)]
    decoder_start_token_id: u32,
    #[serde(default = "end")]
    eos_token_id: u32,
}

fn relu() -> String {
    "relu".into()
}
fn small() -> f64 {
    1e-6
}
fn buckets() -> usize {
    32
}
fn farthest() -> usize {
    128
}
fn yes() -> bool {
    true
}
fn end() -> u32 {
    1
}

impl Config {
    /// Checks the numbers before anything is computed from them.
    fn check(&self) -> Result<(), String> {
        let decoder = self.num_decoder_layers.unwrap_or(self.num_layers);
        sizes::check_ranges(&[
            ("vocab_size", self.vocab_size, sizes::IDS),
            ("d_model", self.d_model, sizes::WIDTH),
            ("d_kv", self.d_kv, sizes::WIDTH),
            ("d_ff", self.d_ff, sizes::WIDE),
            ("num_heads", self.num_heads, sizes::WIDTH),
            ("num_layers", self.num_layers, sizes::LAYERS),
            ("num_decoder_layers", decoder, sizes::LAYERS),
            // In the encoder, half of the buckets are for each side, and half of these are single distances.
            ("relative_attention_num_buckets", self.relative_attention_num_buckets, 4..=1 << 12),
        ])?;
        let (last, exact) = (self.vocab_size - 1, self.relative_attention_num_buckets / 2);
        sizes::check_ranges(&[
            ("relative_attention_max_distance", self.relative_attention_max_distance, exact + 1..=1 << 22),
            ("decoder_start_token_id", self.decoder_start_token_id as usize, 0..=last),
            ("eos_token_id", self.eos_token_id as usize, 0..=last),
        ])?;
        sizes::check_positive(&[("layer_norm_epsilon", self.layer_norm_epsilon)])
    }
}

#[derive(Debug)]
struct Attention {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
}

#[derive(Debug)]
struct FeedForward {
    norm: RmsNorm,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
}

#[derive(Debug)]
struct Block {
    own: Attention,
    /// The decoder's attention to the encoder.
    across: Option<Attention>,
    feed_forward: FeedForward,
}

#[derive(Debug)]
struct Stack {
    blocks: Vec<Block>,
    relative: Tensor,
    final_norm: RmsNorm,
}

impl Stack {
    fn load(parameters: &Parameters, config: &Config, name: &str, blocks: usize, gated: bool) -> Result<Self> {
        let (model, inner, mlp) = (config.d_model, config.num_heads * config.d_kv, config.d_ff);
        let linear = |name: String, shape| Linear::load(parameters, &name, shape, false);
        let norm = |name: String| -> Result<RmsNorm> {
            Ok(RmsNorm::new(parameters.get(&format!("{name}.weight"), &[model])?, config.layer_norm_epsilon))
        };
        let attention = |layer: String, kind: &str| -> Result<Attention> {
            Ok(Attention {
                norm: norm(format!("{layer}.layer_norm"))?,
                q: linear(format!("{layer}.{kind}.q"), [inner, model])?,
                k: linear(format!("{layer}.{kind}.k"), [inner, model])?,
                v: linear(format!("{layer}.{kind}.v"), [inner, model])?,
                o: linear(format!("{layer}.{kind}.o"), [model, inner])?,
            })
        };
        let feed_forward = |layer: String| -> Result<FeedForward> {
            let dense = format!("{layer}.DenseReluDense");
            let (gate, up) = match gated {
                true => (Some(linear(format!("{dense}.wi_0"), [mlp, model])?), "wi_1"),
                false => (None, "wi"),
            };
            Ok(FeedForward {
                norm: norm(format!("{layer}.layer_norm"))?,
                gate,
                up: linear(format!("{dense}.{up}"), [mlp, model])?,
                down: linear(format!("{dense}.wo"), [model, mlp])?,
            })
        };
        let decoder = name == "decoder";
        let block = |number: usize| -> Result<Block> {
            let layer = |at: usize| format!("{name}.block.{number}.layer.{at}");
            Ok(Block {
                own: attention(layer(0), "SelfAttention")?,
                across: decoder.then(|| attention(layer(1), "EncDecAttention")).transpose()?,
                feed_forward: feed_forward(layer(1 + usize::from(decoder)))?,
            })
        };
        let bias = format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        Ok(Self {
            blocks: (0..blocks).map(block).collect::<Result<_>>()?,
            relative: parameters.get(&bias, &[config.relative_attention_num_buckets, config.num_heads])?,
            final_norm: norm(format!("{name}.final_layer_norm"))?,
        })
    }
}

/// What the decoder keeps while it answers some questions.
#[derive(Debug)]
pub(super) struct Decoding {
    /// The decoder's own keys and values of each block, `[b, tokens, heads, d]`.
    own: Vec<Option<(Tensor, Tensor)>>,
    /// The encoder's keys and values of each block, `[n, heads, d]`.
    across: Vec<(Tensor, Tensor)>,
    /// The rows of the encoder that each question attends to.
    sees: Vec<Range<usize>>,
    tokens: usize,
}

impl Decoding {
    /// Continues with some of the questions only.
    fn retain(&mut self, questions: &[u32]) -> Result<()> {
        self.sees = questions.iter().map(|question| self.sees[*question as usize].clone()).collect();
        for (k, v) in self.own.iter_mut().flatten() {
            let index = Tensor::new(questions, k.device())?;
            (*k, *v) = (k.index_select(&index, 0)?, v.index_select(&index, 0)?);
        }
        Ok(())
    }
}

/// A T5 encoder and decoder.
#[derive(Debug)]
pub struct T5 {
    config: Config,
    activation: Activation,
    shared: Tensor,
    encoder: Stack,
    decoder: Stack,
    head: Linear,
}

impl T5 {
    /// Loads a model folder (`config.json` and weights) with weights held as `dtype`. Use f32: f16 overflows in T5's
    /// larger models.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the model is of another kind; the file is named.
    pub fn load(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let config: Config = read_json(folder, "config.json")?;
        let fault = |message: String| Error::file(&folder.join("config.json"), message);
        if config.model_type != "t5" {
            return Err(fault(format!("model_type {:?}; expected a t5 model", config.model_type)));
        }
        config.check().map_err(fault)?;
        let (gated, name) = match config.feed_forward_proj.strip_prefix("gated-") {
            // T5's gated gelu is the tanh approximation.
            Some("gelu") => (true, "gelu_new"),
            Some(name) => (true, name),
            None => (false, config.feed_forward_proj.as_str()),
        };
        let activation = Activation::named(name)
            .ok_or_else(|| fault(format!("feed_forward_proj {:?} is not supported", config.feed_forward_proj)))?;
        let parameters = Parameters::load(folder, dtype, device, &[""], "")?;
        let table = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
        let table = table.into_iter().find(|name| parameters.has(name)).unwrap_or(table[0]);
        let shape = [config.vocab_size, config.d_model];
        let shared = parameters.get(table, &shape)?;
        let head = match config.tie_word_embeddings {
            true => Linear::new(shared.clone()),
            false => Linear::load(&parameters, "lm_head", shape, false)?,
        };
        let decoder_layers = config.num_decoder_layers.unwrap_or(config.num_layers);
        Ok(Self {
            activation,
            encoder: Stack::load(&parameters, &config, "encoder", config.num_layers, gated)?,
            decoder: Stack::load(&parameters, &config, "decoder", decoder_layers, gated)?,
            shared,
            head,
            config,
        })
    }

    /// The size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    /// The id that starts a reply; it is an input of the decoder and no part of the reply.
    pub fn start(&self) -> u32 {
        self.config.decoder_start_token_id
    }

    /// The greedy replies to texts, which are processed together: at most `most` ids each, the closing one included.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn generate(&self, texts: &[Vec<u32>], most: usize) -> Result<Vec<Vec<u32>>> {
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let mut replies = vec![Vec::new(); texts.len()];
        for packing in Packing::passes(&lengths) {
            let mut decoding = self.encode(texts, &packing)?;
            let mut going = packing.order.clone();
            let mut last = vec![self.start(); going.len()];
            for _ in 0..most {
                let logits = self.decode(&mut decoding, &last)?.to_vec2::<f32>()?;
                let said: Vec<u32> = logits.iter().map(|row| first_largest(row).unwrap_or(0) as u32).collect();
                said.iter().zip(&going).for_each(|(id, text)| replies[*text].push(*id));
                let on: Vec<u32> =
                    (0..going.len() as u32).filter(|at| said[*at as usize] != self.config.eos_token_id).collect();
                if on.is_empty() {
                    break;
                }
                last = on.iter().map(|at| said[*at as usize]).collect();
                if on.len() < going.len() {
                    going = on.iter().map(|at| going[*at as usize]).collect();
                    decoding.retain(&on)?;
                }
            }
        }
        Ok(replies)
    }

    /// The logits of each reply's first id; all texts are processed together.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn first_logits(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let mut first = vec![Vec::new(); texts.len()];
        for packing in Packing::passes(&lengths) {
            let mut decoding = self.encode(texts, &packing)?;
            let logits = self.decode(&mut decoding, &vec![self.start(); packing.order.len()])?.to_vec2::<f32>()?;
            packing.order.iter().zip(logits).for_each(|(text, logits)| first[*text] = logits);
        }
        Ok(first)
    }

    /// Encodes the texts of one pass and computes the keys and values that the decoder attends to.
    pub(super) fn encode(&self, texts: &[Vec<u32>], packing: &Packing) -> Result<Decoding> {
        let ids = packing.packed(|text| &texts[text]);
        let biases = relative::biases(self.buckets(true), &self.encoder.relative, packing)?;
        let mut xs = ops::embedding(&self.shared, &ids)?;
        for block in &self.encoder.blocks {
            let normed = block.own.norm.forward(&xs)?;
            let [q, k, v] = self.projected(&block.own, &normed)?;
            let seen = relative::packed_attention([&q, &k, &v], packing, &biases, 1.0)?;
            xs = (xs + block.own.o.forward(&seen)?)?;
            xs = self.fed_forward(&block.feed_forward, xs)?;
        }
        let states = self.encoder.final_norm.forward(&xs)?;
        let across = self.decoder.blocks.iter().filter_map(|block| block.across.as_ref());
        let across = across
            .map(|attention| {
                Ok((self.heads(attention.k.forward(&states)?)?, self.heads(attention.v.forward(&states)?)?))
            })
            .collect::<Result<_>>()?;
        let own = vec![None; self.decoder.blocks.len()];
        Ok(Decoding { own, across, sees: packing.rows.clone(), tokens: 0 })
    }

    /// Feeds the next ids of the questions, equally many each, one question after another.
    ///
    /// # Shapes
    /// `b · new` ids → `[b · new, v]`
    pub(super) fn decode(&self, decoding: &mut Decoding, ids: &[u32]) -> Result<Tensor> {
        let (questions, heads, d) = (decoding.sees.len(), self.config.num_heads, self.config.d_kv);
        let new = ids.len() / questions.max(1);
        let tokens = decoding.tokens + new;
        let bias = self.buckets(false).bias(&self.decoder.relative, decoding.tokens..tokens, tokens, true)?;
        let rows = decoding.sees.iter().enumerate();
        let segments: Arc<[Segment]> =
            rows.map(|(question, sees)| Segment::block(question * new..(question + 1) * new, sees.clone())).collect();
        let mut xs = ops::embedding(&self.shared, ids)?;
        let looks = self.decoder.blocks.iter().zip(&mut decoding.own).zip(&decoding.across);
        for ((block, own), (across_k, across_v)) in looks {
            let normed = block.own.norm.forward(&xs)?;
            let [q, k, v] = self.projected(&block.own, &normed)?;
            let by_question = |x: Tensor| x.reshape((questions, new, heads, d));
            let (mut k, mut v) = (by_question(k)?, by_question(v)?);
            if let Some((earlier_k, earlier_v)) = own.as_ref() {
                (k, v) = (Tensor::cat(&[earlier_k, &k], 1)?, Tensor::cat(&[earlier_v, &v], 1)?);
            }
            let seen = relative::attention(&by_question(q)?, &k, &v, &bias, 1.0)?;
            *own = Some((k, v));
            xs = (xs + block.own.o.forward(&seen.reshape((questions * new, heads * d))?)?)?;
            if let Some(across) = &block.across {
                let q = self.heads(across.q.forward(&across.norm.forward(&xs)?)?)?;
                let seen = ops::attention(&q, across_k, across_v, &segments, 1.0)?;
                xs = (xs + across.o.forward(&seen)?)?;
            }
            xs = self.fed_forward(&block.feed_forward, xs)?;
        }
        decoding.tokens = tokens;
        let mut xs = self.decoder.final_norm.forward(&xs)?;
        if self.config.tie_word_embeddings {
            xs = (xs * (self.config.d_model as f64).powf(-0.5))?;
        }
        let logits = self.head.forward(&xs)?.to_dtype(DType::F32)?;
        check_finite("t5", &logits)?;
        Ok(logits)
    }

    fn buckets(&self, both_ways: bool) -> Buckets {
        let Config { relative_attention_num_buckets, relative_attention_max_distance, .. } = self.config;
        Buckets { count: relative_attention_num_buckets, farthest: relative_attention_max_distance, both_ways }
    }

    /// `[n, heads d]` → `[n, heads, d]`.
    fn heads(&self, xs: Tensor) -> Result<Tensor> {
        Ok(xs.reshape(((), self.config.num_heads, self.config.d_kv))?)
    }

    fn projected(&self, attention: &Attention, xs: &Tensor) -> Result<[Tensor; 3]> {
        let part = |linear: &Linear| self.heads(linear.forward(xs)?);
        Ok([part(&attention.q)?, part(&attention.k)?, part(&attention.v)?])
    }

    fn fed_forward(&self, layer: &FeedForward, xs: Tensor) -> Result<Tensor> {
        let normed = layer.norm.forward(&xs)?;
        let up = layer.up.forward(&normed)?;
        let inner = match &layer.gate {
            Some(gate) => (self.activation.forward(&gate.forward(&normed)?)? * up)?,
            None => self.activation.forward(&up)?,
        };
        Ok((xs + layer.down.forward(&inner)?)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cached_decoding_is_the_full_pass() {
        for case in ["t5-relu", "t5-gated-gelu"] {
            let folder =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../hermesflow-verify/tests/golden/scorers").join(case);
            let model = T5::load(&folder, DType::F32, &Device::Cpu).unwrap();
            let texts = [vec![76, 10, 30, 5, 1], vec![9, 1], vec![20, 21, 22, 1]];
            let packing = Packing::passes(&texts.each_ref().map(Vec::len)).remove(0);
            // Forty tokens reach buckets of more than one distance.
            let said = |text: u32| (0..40).map(|at| (7 * at + 11 * text) % 151).collect::<Vec<u32>>();
            let said: Vec<Vec<u32>> = (0..3).map(said).collect();
            let whole = model.decode(&mut model.encode(&texts, &packing).unwrap(), &said.concat()).unwrap();
            let whole = whole.reshape((3, 40, 151)).unwrap();
            let mut decoding = model.encode(&texts, &packing).unwrap();
            let mut at = 0;
            for new in [1, 3, 1, 30, 5] {
                let ids: Vec<u32> = said.iter().flat_map(|ids| &ids[at..at + new]).copied().collect();
                let step = model.decode(&mut decoding, &ids).unwrap().reshape((3, new, 151)).unwrap();
                let full = whole.narrow(1, at, new).unwrap();
                let off = (step - full).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                let largest = whole.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(off < 2e-5 * largest, "{case}: {off} of {largest}");
                at += new;
            }
        }
    }
}
