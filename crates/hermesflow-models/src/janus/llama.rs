//! LLaMA (arXiv 2302.13971, 2307.09288): RMSNorm before each layer, rotary positions, grouped key and value heads and a
//! gated feed-forward layer, over packed sequences without padding or masks. Weight paths mirror the checkpoint's names.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::{self, LlamaBlock, Products, Segment};
use hermesflow_nn::weights::{Scope, Weights};

use super::config::LlamaConfig;
use super::layers::{Linear, rooted};
use crate::decoder::Decoder;
use crate::showo::cache::{KvCache, Placement};
use crate::{Error, Result};

/// What the names of its parameters begin with.
pub(super) const ROOT: &str = "language_model";

/// Names and shapes of all parameters.
pub fn parameter_shapes(config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    let (vocab, hidden, mlp) = (config.vocab_size, config.hidden_size, config.intermediate_size);
    let keys = config.key_heads() * config.head_size();
    let mut shapes = vec![(format!("{ROOT}.model.embed_tokens.weight"), vec![vocab, hidden])];
    for layer in 0..config.num_hidden_layers {
        let base = format!("{ROOT}.model.layers.{layer}");
        let matrices = [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", mlp, hidden),
            ("mlp.up_proj", mlp, hidden),
            ("mlp.down_proj", hidden, mlp),
        ];
        shapes.extend(matrices.map(|(name, out, input)| (format!("{base}.{name}.weight"), vec![out, input])));
        shapes.extend(
            ["input_layernorm", "post_attention_layernorm"].map(|name| (format!("{base}.{name}.weight"), vec![hidden])),
        );
    }
    shapes.push((format!("{ROOT}.model.norm.weight"), vec![hidden]));
    shapes.push((format!("{ROOT}.lm_head.weight"), vec![vocab, hidden]));
    shapes
}

#[derive(Debug, Clone)]
struct Block {
    input_layernorm: Tensor,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: Tensor,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Block {
    fn load(scope: &Scope, config: &LlamaConfig) -> Result<Self> {
        let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
        let keys = config.key_heads() * config.head_size();
        let (attention, layer) = (scope.pp("self_attn"), scope.pp("mlp"));
        Ok(Self {
            input_layernorm: scope.pp("input_layernorm").get("weight", &[hidden])?,
            q_proj: Linear::without_bias(&attention.pp("q_proj"), (hidden, hidden))?,
            k_proj: Linear::without_bias(&attention.pp("k_proj"), (keys, hidden))?,
            v_proj: Linear::without_bias(&attention.pp("v_proj"), (keys, hidden))?,
            o_proj: Linear::without_bias(&attention.pp("o_proj"), (hidden, hidden))?,
            post_attention_layernorm: scope.pp("post_attention_layernorm").get("weight", &[hidden])?,
            gate_proj: Linear::without_bias(&layer.pp("gate_proj"), (mlp, hidden))?,
            up_proj: Linear::without_bias(&layer.pp("up_proj"), (mlp, hidden))?,
            down_proj: Linear::without_bias(&layer.pp("down_proj"), (hidden, mlp))?,
        })
    }
}

impl Block {
    /// As one operator.
    fn whole(&self, config: &LlamaConfig, products: Products, recompute: bool) -> LlamaBlock {
        LlamaBlock {
            input_norm: self.input_layernorm.clone(),
            query: self.q_proj.weight.clone(),
            key: self.k_proj.weight.clone(),
            value: self.v_proj.weight.clone(),
            output: self.o_proj.weight.clone(),
            post_norm: self.post_attention_layernorm.clone(),
            gate: self.gate_proj.weight.clone(),
            up: self.up_proj.weight.clone(),
            down: self.down_proj.weight.clone(),
            heads: config.num_attention_heads,
            key_heads: config.key_heads(),
            eps: config.rms_norm_eps,
            products,
            recompute,
        }
    }

    /// Whether any of its weights is trained.
    fn is_trained(&self) -> bool {
        let maps = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj, &self.gate_proj, &self.up_proj];
        let norms = [&self.input_layernorm, &self.post_attention_layernorm, &self.down_proj.weight];
        maps.iter().map(|map| &map.weight).chain(norms).any(Tensor::track_op)
    }
}

/// The decoder with its embedding and its vocabulary head.
#[derive(Debug, Clone)]
pub struct Llama {
    config: LlamaConfig,
    embed_tokens: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    lm_head: Linear,
    inverse_frequencies: Vec<f32>,
    /// Zeros, as many as any layer has outputs: its maps have no biases, the operators take them.
    no_bias: Tensor,
    /// How likelihoods are computed by whole blocks; none is operator by operator.
    whole: Option<Products>,
    /// Whether whole blocks keep their inputs only.
    recompute: bool,
}

impl Llama {
    /// Takes the weights; their dtype and device are the model's.
    ///
    /// # Errors
    /// Says what is missing or mis-shaped.
    pub fn new(weights: &Weights, config: &LlamaConfig) -> Result<Self> {
        let root = weights.scope(ROOT);
        let model = root.pp("model");
        let (vocab, hidden, head) = (config.vocab_size, config.hidden_size, config.head_size());
        let blocks = (0..config.num_hidden_layers).map(|layer| Block::load(&model.pp("layers").pp(layer), config));
        let embed_tokens = model.pp("embed_tokens").get("weight", &[vocab, hidden])?;
        let widest = vocab.max(hidden).max(config.intermediate_size);
        let frequency = |i: usize| config.rope_theta.powf(-2.0 * i as f64 / head as f64) as f32;
        Ok(Self {
            no_bias: Tensor::zeros(widest, DType::F32, embed_tokens.device())?,
            whole: None,
            recompute: false,
            embed_tokens,
            blocks: blocks.collect::<Result<_>>()?,
            norm: model.pp("norm").get("weight", &[hidden])?,
            lm_head: Linear::without_bias(&root.pp("lm_head"), (vocab, hidden))?,
            inverse_frequencies: (0..head / 2).map(frequency).collect(),
            config: config.clone(),
        })
    }

    /// The type of the weights' matrices.
    pub fn dtype(&self) -> DType {
        self.embed_tokens.dtype()
    }

    /// The type in which keys and values are kept.
    fn kept(&self) -> DType {
        ops::key_value_dtype(self.dtype(), self.device())
    }

    /// The type in which keys and values of pictures are kept while they are drawn.
    fn kept_of_drawings(&self) -> DType {
        ops::own_key_value_dtype(self.dtype(), self.device(), self.config.head_size())
    }

    /// Bytes of a cache per row.
    pub fn cache_bytes_per_row(&self) -> usize {
        self.bytes_per_row(self.kept())
    }

    /// Bytes of [`Self::drawing_cache`] per row.
    pub fn drawing_bytes_per_row(&self) -> usize {
        self.bytes_per_row(self.kept_of_drawings())
    }

    fn bytes_per_row(&self, kept: DType) -> usize {
        2 * self.blocks.len() * self.config.key_heads() * self.config.head_size() * kept.size_in_bytes()
    }

    /// An empty cache of `rows` rows for pictures that are drawn code by code, each of which sees its own rows.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn drawing_cache(&self, rows: usize) -> Result<KvCache> {
        self.empty_cache(rows, self.kept_of_drawings())
    }

    fn empty_cache(&self, rows: usize, kept: DType) -> Result<KvCache> {
        let shape = (rows, self.config.key_heads(), self.config.head_size());
        let empty = || Tensor::zeros(shape, kept, self.device());
        let layers = (0..self.blocks.len()).map(|_| Ok((empty()?, empty()?))).collect::<candle_core::Result<_>>()?;
        Ok(KvCache { layers })
    }

    /// The log-probability of each row's target over the whole vocabulary.
    ///
    /// # Shapes
    /// `[rows, hidden]`, one target per row → `[rows]`, f32
    ///
    /// # Errors
    /// When a target is outside the vocabulary.
    pub fn log_probs(&self, hidden: &Tensor, targets: &[u32]) -> Result<Tensor> {
        Ok(match self.whole {
            Some(products) => {
                let weight = &self.lm_head.weight;
                let (hidden, no_bias) =
                    (rooted(hidden.clone(), weight.track_op())?, self.no_bias.narrow(0, 0, weight.dim(0)?)?);
                ops::head_log_prob(&hidden, weight, &no_bias, targets, products)?
            }
            None => ops::log_prob(&self.logits(hidden)?, targets)?,
        })
    }

    /// The same model, whose likelihoods are computed by whole blocks with these products, where they take its weights:
    /// faster, and their gradients come from [`hermesflow_nn::gradients::backward`] only.
    pub fn whole(mut self, products: Products) -> Self {
        self.whole = products.take(self.dtype()).then_some(products);
        self
    }

    /// The products of [`Self::whole`] blocks, where likelihoods are computed by those.
    pub fn products(&self) -> Option<Products> {
        self.whole
    }

    /// The same model, whose [`Self::whole`] blocks keep for the backward pass their inputs only, if `on`, and compute the
    /// rest again: the same numbers for less memory and more time.
    pub fn recompute(mut self, on: bool) -> Self {
        self.recompute = on;
        self
    }

    /// Several maps, each of its own input, in one go.
    fn all<const N: usize>(&self, maps: [(&Linear, &Tensor); N]) -> Result<[Tensor; N]> {
        let bias = |(map, _): (&Linear, &Tensor)| self.no_bias.narrow(0, 0, map.weight.dim(0)?);
        let biases = maps.iter().map(|map| bias(*map)).collect::<candle_core::Result<Vec<_>>>()?;
        let maps = maps.iter().zip(&biases);
        let maps: Vec<_> = maps.map(|((map, xs), bias)| ((*xs, &map.weight, bias), ops::Then::Nothing)).collect();
        let results = ops::linear_all(&maps)?;
        results.try_into().map_err(|_| Error::Invalid("as many results as maps".into()))
    }

    /// [`Decoder::forward`] by whole blocks, without a cache.
    fn forward_whole(
        &self,
        xs: Tensor,
        tables: (&Tensor, &Tensor),
        segments: &Arc<[Segment]>,
        products: Products,
    ) -> Result<Tensor> {
        let mut xs = xs;
        for block in &self.blocks {
            xs = rooted(xs, block.is_trained())?;
            xs = ops::llama_block(&xs, &block.whole(&self.config, products, self.recompute), tables, segments)?;
        }
        Ok(ops::rms_norm(&xs, &self.norm, self.config.rms_norm_eps)?)
    }

    /// Cosines and sines of positions, `[positions, head / 2]` each.
    fn rotary_tables(&self, positions: &[u32]) -> Result<(Tensor, Tensor)> {
        let half = self.inverse_frequencies.len();
        let (cos, sin) = ops::rotary_angles(positions, &self.inverse_frequencies);
        let table = |values: Vec<f32>| Tensor::from_vec(values, (positions.len(), half), self.device());
        Ok((table(cos)?, table(sin)?))
    }
}

impl Decoder for Llama {
    fn device(&self) -> &Device {
        self.embed_tokens.device()
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(ops::embedding(&self.embed_tokens, ids)?)
    }

    fn cache(&self, rows: usize) -> Result<KvCache> {
        self.empty_cache(rows, self.kept())
    }

    fn forward(
        &self,
        xs: Tensor,
        positions: &[u32],
        segments: &Arc<[Segment]>,
        cache: Option<(&KvCache, &Placement)>,
    ) -> Result<Tensor> {
        let (tokens, _) = xs.dims2()?;
        let LlamaConfig { num_attention_heads: heads, rms_norm_eps: eps, .. } = self.config;
        let (key_heads, head) = (self.config.key_heads(), self.config.head_size());
        let scale = 1.0 / (head as f32).sqrt();
        let (cos, sin) = self.rotary_tables(positions)?;
        if let (Some(products), None) = (self.whole, cache) {
            return self.forward_whole(xs, (&cos, &sin), segments, products);
        }
        let mut xs = xs;
        for (layer, block) in self.blocks.iter().enumerate() {
            let normed = ops::rms_norm(&xs, &block.input_layernorm, eps)?;
            let [q, k, v] = self.all([&block.q_proj, &block.k_proj, &block.v_proj].map(|map| (map, &normed)))?;
            let split = |x: Tensor, heads: usize| x.reshape((tokens, heads, head));
            let q = ops::rotary(&split(q, heads)?, &cos, &sin)?;
            let k = ops::rotary(&split(k, key_heads)?, &cos, &sin)?;
            let v = split(v, key_heads)?;
            let (k, v) = match cache {
                Some((cache, placement)) => cache.store(layer, &k, &v, placement)?,
                None => (k, v),
            };
            let seen = ops::grouped_attention(&q, &k, &v, segments, scale)?;
            let [seen] = self.all([(&block.o_proj, &seen)])?;
            xs = (xs + seen)?;
            let normed = ops::rms_norm(&xs, &block.post_attention_layernorm, eps)?;
            let [gate, up] = self.all([&block.gate_proj, &block.up_proj].map(|map| (map, &normed)))?;
            let [inner] = self.all([(&block.down_proj, &ops::swiglu(&gate, &up)?)])?;
            xs = (xs + inner)?;
        }
        Ok(ops::rms_norm(&xs, &self.norm, eps)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.lm_head.forward(hidden)
    }
}
