//! The Phi-1.5 decoder with a LayerNorm per head on queries and keys (Show-o, arXiv 2408.12528 §3).
//!
//! Sequences are packed: all tokens of a batch stand in one tensor `[tokens, hidden]`, and [`Segment`]s say which keys
//! each run of queries attends to. There is no padding and no mask. Fields are named like the checkpoint's weights.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::{self, Cached, DecoderBlock, Products, Segment};
use hermesflow_nn::weights::{Scope, Weights};

use super::affine::{Affine, AffineLayer, Then, linear_all};
pub use super::cache::{KvCache, Placement};
use super::config::{PhiConfig, ShowoConfig};
use super::projector::PROJECTOR_PARAMETERS;
use super::rotary::Rotary;
use crate::Result;
use crate::decoder::Decoder;

/// Endings of names that a checkpoint may have beside the decoder's parameters.
pub(super) fn ignored(showo: &ShowoConfig) -> Vec<&'static str> {
    let projector = if showo.w_clip_vit { &PROJECTOR_PARAMETERS[..] } else { &[] };
    [&["rotary_emb.inv_freq"], projector].concat()
}

/// Names and shapes of all parameters.
pub fn parameter_shapes(showo: &ShowoConfig, phi: &PhiConfig) -> Vec<(String, Vec<usize>)> {
    let (vocab, hidden, mlp, head) = (showo.vocab_size, phi.hidden_size, phi.intermediate_size, phi.head_dim());
    let mut shapes = vec![("showo.model.embed_tokens.weight".to_string(), vec![vocab, hidden])];
    let mut pair = |name: String, shape: Vec<usize>| {
        shapes.push((format!("{name}.bias"), vec![shape[0]]));
        shapes.push((format!("{name}.weight"), shape));
    };
    for layer in 0..phi.num_hidden_layers {
        let base = format!("showo.model.layers.{layer}");
        pair(format!("{base}.input_layernorm"), vec![hidden]);
        for name in ["q_proj", "k_proj", "v_proj", "dense"] {
            pair(format!("{base}.self_attn.{name}"), vec![hidden, hidden]);
        }
        pair(format!("{base}.self_attn.q_layernorm"), vec![head]);
        pair(format!("{base}.self_attn.k_layernorm"), vec![head]);
        pair(format!("{base}.mlp.fc1"), vec![mlp, hidden]);
        pair(format!("{base}.mlp.fc2"), vec![hidden, mlp]);
    }
    pair("showo.model.final_layernorm".into(), vec![hidden]);
    pair("showo.lm_head".into(), vec![vocab, hidden]);
    shapes
}

#[derive(Debug, Clone)]
struct Block {
    input_layernorm: Affine,
    q_proj: Affine,
    k_proj: Affine,
    v_proj: Affine,
    dense: Affine,
    q_layernorm: Affine,
    k_layernorm: Affine,
    fc1: Affine,
    fc2: Affine,
}

impl Block {
    fn load(scope: &Scope, config: &PhiConfig) -> Result<Self> {
        let (hidden, mlp, head) = (config.hidden_size, config.intermediate_size, config.head_dim());
        let attention = scope.pp("self_attn");
        Ok(Self {
            input_layernorm: Affine::load(&scope.pp("input_layernorm"), &[hidden])?,
            q_proj: Affine::load(&attention.pp("q_proj"), &[hidden, hidden])?,
            k_proj: Affine::load(&attention.pp("k_proj"), &[hidden, hidden])?,
            v_proj: Affine::load(&attention.pp("v_proj"), &[hidden, hidden])?,
            dense: Affine::load(&attention.pp("dense"), &[hidden, hidden])?,
            q_layernorm: Affine::load(&attention.pp("q_layernorm"), &[head])?,
            k_layernorm: Affine::load(&attention.pp("k_layernorm"), &[head])?,
            fc1: Affine::load(&scope.pp("mlp.fc1"), &[mlp, hidden])?,
            fc2: Affine::load(&scope.pp("mlp.fc2"), &[hidden, mlp])?,
        })
    }

    /// The block as one operator.
    fn whole(&self, config: &PhiConfig, products: Products, recompute: bool) -> DecoderBlock {
        DecoderBlock {
            norm: self.input_layernorm.clone(),
            query: self.q_proj.clone(),
            key: self.k_proj.clone(),
            value: self.v_proj.clone(),
            dense: self.dense.clone(),
            query_norm: self.q_layernorm.clone(),
            key_norm: self.k_layernorm.clone(),
            up: self.fc1.clone(),
            down: self.fc2.clone(),
            heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            products,
            recompute,
        }
    }
}

/// The decoder with its token embedding and its vocabulary head.
#[derive(Debug, Clone)]
pub struct Phi {
    config: PhiConfig,
    embed_tokens: Tensor,
    blocks: Vec<Block>,
    final_layernorm: Affine,
    lm_head: Affine,
    rotary: Rotary,
    /// The precision of log-probabilities that are computed with whole blocks as operators; `None` computes operator by
    /// operator.
    whole: Option<Products>,
    /// Whether whole blocks keep only their inputs for the backward pass.
    recompute: bool,
}

impl Phi {
    /// Builds the decoder from its weights, in their type and on their device.
    ///
    /// # Errors
    /// Lists the weights that are missing, unexpected or of another shape.
    pub fn new(weights: &Weights, showo: &ShowoConfig, config: &PhiConfig) -> Result<Self> {
        weights.check(&parameter_shapes(showo, config), &ignored(showo))?;
        let root = weights.scope("showo");
        let model = root.pp("model");
        let (vocab, hidden) = (showo.vocab_size, config.hidden_size);
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| Block::load(&model.pp("layers").pp(layer), config))
            .collect::<Result<_>>()?;
        Ok(Self {
            config: config.clone(),
            embed_tokens: model.pp("embed_tokens").get("weight", &[vocab, hidden])?,
            blocks,
            final_layernorm: Affine::load(&model.pp("final_layernorm"), &[hidden])?,
            lm_head: Affine::load(&root.pp("lm_head"), &[vocab, hidden])?,
            rotary: Rotary::new(config),
            whole: None,
            recompute: false,
        })
    }

    /// The same decoder, which computes log-probabilities with each block as one operator and with these products, if
    /// they can use weights of its type. This is faster; differentiate with [`hermesflow_nn::gradients::backward`].
    pub fn whole(mut self, products: Products) -> Self {
        self.whole = products.take(self.dtype()).then_some(products);
        self
    }

    /// The same decoder, whose [`Self::whole`] blocks, if `on`, keep only their inputs for the backward pass and
    /// recompute the rest: the same numbers for less memory and more time.
    pub fn recompute(mut self, on: bool) -> Self {
        self.recompute = on;
        self
    }

    /// The precision of [`Self::whole`] blocks; `None` if the decoder runs operator by operator.
    pub fn products(&self) -> Option<Products> {
        self.whole
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        self.embed_tokens.device()
    }

    /// The type of the weights' matrices.
    pub fn dtype(&self) -> DType {
        self.embed_tokens.dtype()
    }

    /// The type of cached keys and values: that of the matrix products' results, which is f32 on the CPU.
    fn kept(&self) -> DType {
        ops::key_value_dtype(self.dtype(), self.device())
    }

    /// The embeddings of tokens.
    ///
    /// # Shapes
    /// `[tokens, hidden]`
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(ops::embedding(&self.embed_tokens, ids)?)
    }

    /// Bytes of a key/value cache per token.
    pub fn cache_bytes_per_row(&self) -> usize {
        2 * self.blocks.len() * self.config.hidden_size * self.kept().size_in_bytes()
    }

    /// An empty cache of `rows` rows.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn cache(&self, rows: usize) -> Result<KvCache> {
        let shape = (rows, self.config.num_attention_heads, self.config.head_dim());
        let empty = || Tensor::zeros(shape, self.kept(), self.device());
        let layers = (0..self.blocks.len()).map(|_| Ok((empty()?, empty()?))).collect::<candle_core::Result<_>>()?;
        Ok(KvCache { layers })
    }

    /// Runs the blocks and the final LayerNorm. `positions` has the position of each token in its sequence.
    ///
    /// With a cache, keys and values of the new tokens are stored first, and the segments' key ranges are rows of the
    /// cache; without one they are rows of `xs`.
    ///
    /// # Shapes
    /// `xs` `[tokens, hidden]` → `[tokens, hidden]`
    ///
    /// # Errors
    /// If shapes or segments do not fit.
    pub fn forward(
        &self,
        xs: Tensor,
        positions: &[u32],
        segments: &Arc<[Segment]>,
        cache: Option<(&KvCache, &Placement)>,
    ) -> Result<Tensor> {
        let (tokens, _) = xs.dims2()?;
        let (cos, sin) = self.rotary.tables(positions, xs.dtype(), self.device())?;
        let (heads, head_dim, eps) =
            (self.config.num_attention_heads, self.config.head_dim(), self.config.layer_norm_eps);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut xs = xs;
        if let (Some(products), None) = (self.whole, cache) {
            for block in &self.blocks {
                let block = block.whole(&self.config, products, self.recompute);
                xs = ops::decoder_block(&xs, &block, (&cos, &sin), segments)?;
            }
            return self.final_layernorm.norm(&xs, eps);
        }
        if !self.device().is_cpu()
            && let Some(first) = self.blocks.first()
            && ops::takes_frozen_block(&xs, &first.whole(&self.config, Products::F32, false), &cos)
        {
            return self.forward_frozen(&xs, (&cos, &sin), segments, cache);
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            let normed = block.input_layernorm.norm(&xs, eps)?;
            // Attention and MLP have the same input.
            let [q, k, v] = [&block.q_proj, &block.k_proj, &block.v_proj].map(|map| (map, &normed, Then::Nothing));
            let [q, k, v, inner] = linear_all([q, k, v, (&block.fc1, &normed, Then::GeluTanh)])?;
            let split = |x: Tensor| x.reshape((tokens, heads, head_dim));
            let q = ops::rotary(&block.q_layernorm.norm(&split(q)?, eps)?, &cos, &sin)?;
            let k = ops::rotary(&block.k_layernorm.norm(&split(k)?, eps)?, &cos, &sin)?;
            let v = split(v)?;
            let (k, v) = match cache {
                Some((cache, placement)) => cache.store(layer, &k, &v, placement)?,
                None => (k, v),
            };
            let seen = ops::attention(&q, &k, &v, segments, scale)?;
            let maps = [(&block.dense, &seen, Then::AddTo(&xs)), (&block.fc2, &inner, Then::Nothing)];
            let [with_seen, mlp] = linear_all(maps)?;
            xs = (with_seen + mlp)?;
        }
        self.final_layernorm.norm(&xs, eps)
    }

    /// [`Self::forward`] with whole blocks that are not trained, on a device that has kernels for them.
    fn forward_frozen(
        &self,
        xs: &Tensor,
        tables: (&Tensor, &Tensor),
        segments: &Arc<[Segment]>,
        cache: Option<(&KvCache, &Placement)>,
    ) -> Result<Tensor> {
        // The blocks add to this tensor in place.
        let xs = xs.copy()?;
        let rows = match cache {
            Some((_, placement)) => placement.rows(xs.dim(0)?, self.device())?,
            None => None,
        };
        for (layer, block) in self.blocks.iter().enumerate() {
            let cached = match cache {
                None => Cached::Nothing,
                Some((cache, placement)) => {
                    let (keys, values) = &cache.layers[layer];
                    match placement {
                        Placement::Behind => Cached::Behind { keys, values },
                        Placement::Rows(first) => Cached::In { keys, values, rows: None, first: *first },
                        _ => Cached::In { keys, values, rows: rows.as_ref(), first: 0 },
                    }
                }
            };
            let block = block.whole(&self.config, Products::F32, false);
            ops::frozen_block(&xs, &block, tables, segments, cached)?;
        }
        self.final_layernorm.norm(&xs, self.config.layer_norm_eps)
    }

    /// The log-probability of each row's target token, with a softmax over the vocabulary or over `columns` of it. With
    /// columns, targets are counted from the first column.
    ///
    /// # Shapes
    /// `[rows, hidden]`, one target per row → `[rows]`, f32
    ///
    /// # Errors
    /// If a target is outside the vocabulary or the columns.
    pub fn log_probs(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        columns: Option<std::ops::Range<usize>>,
    ) -> Result<Tensor> {
        let Affine { weight, bias } = &self.lm_head;
        Ok(match (self.whole, columns) {
            (Some(products), None) => ops::head_log_prob(hidden, weight, bias, targets, products)?,
            (Some(products), Some(columns)) => {
                // A copy, because the kernels of a GPU take whole tensors. Its gradients are handed on to the weight.
                let part = |of: &Tensor| of.narrow(0, columns.start, columns.len())?.copy();
                ops::head_log_prob(hidden, &part(weight)?, &part(bias)?, targets, products)?
            }
            (None, columns) => ops::log_prob(&self.logits(hidden, columns)?.to_dtype(DType::F32)?, targets)?,
        })
    }

    /// The logits of the whole vocabulary, or of the tokens in `columns`.
    ///
    /// # Shapes
    /// `[rows, hidden]` → `[rows, columns]`
    ///
    /// # Errors
    /// If the hidden states have another width, or `columns` lies outside the vocabulary.
    pub fn logits(&self, hidden: &Tensor, columns: Option<std::ops::Range<usize>>) -> Result<Tensor> {
        let Some(columns) = columns else {
            return self.lm_head.linear(hidden);
        };
        let weight = self.lm_head.weight.narrow(0, columns.start, columns.len())?;
        let bias = self.lm_head.bias.narrow(0, columns.start, columns.len())?;
        Ok(ops::linear(hidden, &weight, Some(&bias))?)
    }
}

impl Decoder for Phi {
    fn device(&self) -> &Device {
        Self::device(self)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        Self::embed(self, ids)
    }

    fn cache(&self, rows: usize) -> Result<KvCache> {
        Self::cache(self, rows)
    }

    fn forward(
        &self,
        xs: Tensor,
        positions: &[u32],
        segments: &Arc<[Segment]>,
        cache: Option<(&KvCache, &Placement)>,
    ) -> Result<Tensor> {
        Self::forward(self, xs, positions, segments, cache)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Self::logits(self, hidden, None)
    }
}
