//! LLaMA (Touvron et al., arXiv 2302.13971 and 2307.09288): RMS norms before each part, rotary positions, gated SiLU,
//! and keys and values that several query heads may share (Ainslie et al., arXiv 2305.13245).
//!
//! Weights are in full precision (safetensors, read by `llama_files.rs`) or quantised (GGUF, read by `gguf.rs`). A
//! prompt is processed once; all beams share its cached rows and what they have in common after it ([`Regions`]).

use std::sync::Arc;

use candle_core::quantized::QMatMul;
use candle_core::{DType, Device, Module, Tensor};
use hermesflow_nn::ops::{self, Segment};
use hermesflow_nn::sizes;

use super::TextTokenizer;
use super::beam::{BeamSearch, Regions};
use super::check_finite;
use super::first_largest;
use super::layers::{Linear, RmsNorm};
use crate::Result;

/// Tokens that memory is reserved for when a model is loaded: a prompt and five replies of 512 each.
const CACHE_ROWS: usize = 6 * 512;

/// The sizes of a model, from either kind of file.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    pub vocab: usize,
    pub hidden: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub head: usize,
    pub rope_theta: f64,
    /// Whether neighbouring dimensions are rotated together, as in GGUF files; otherwise a dimension and the one half a
    /// head further.
    pub interleaved: bool,
    pub bos: u32,
    pub eos: Vec<u32>,
}

impl Sizes {
    /// Checks the numbers that both kinds of files have.
    pub fn check(&self) -> Result<(), String> {
        sizes::check_ranges(&[
            ("the number of heads", self.heads, sizes::WIDTH),
            ("the size of a head", self.head, 2..=1 << 12),
        ])?;
        if !self.head.is_multiple_of(2) {
            return Err(format!("the size of a head, {}, is odd", self.head));
        }
        sizes::check_positive(&[("the base of the rotary frequencies", self.rope_theta)])?;
        match self.eos.iter().chain([&self.bos]).find(|id| **id as usize >= self.vocab) {
            Some(id) => {
                Err(format!("the id {id} that begins or ends a text is beyond the {} of the vocabulary", self.vocab))
            }
            None => Ok(()),
        }
    }

    /// Bytes of the keys and values of [`CACHE_ROWS`] tokens in `blocks` decoder blocks, held as `dtype`.
    pub fn cache_bytes(&self, blocks: usize, dtype: DType) -> u64 {
        (2 * blocks * CACHE_ROWS * self.key_heads * self.head * dtype.size_in_bytes()) as u64
    }
}

/// A weight matrix, in full precision or quantised.
#[derive(Debug)]
pub(super) enum Projection {
    Whole(Linear),
    Quantised(QMatMul),
}

impl Projection {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Whole(linear) => linear.forward(xs),
            Self::Quantised(matrix) => Ok(matrix.forward(&xs.contiguous()?)?),
        }
    }
}

/// The embedding table.
#[derive(Debug)]
pub(super) enum Table {
    Whole(Tensor),
    Quantised(QMatMul),
}

#[derive(Debug)]
pub(super) struct Block {
    pub input_norm: RmsNorm,
    pub q: Projection,
    pub k: Projection,
    pub v: Projection,
    pub o: Projection,
    pub attention_norm: RmsNorm,
    pub gate: Projection,
    pub up: Projection,
    pub down: Projection,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The ids after the prompt, the closing one included.
    pub ids: Vec<u32>,
    /// The sum of the log-probabilities divided by the number of ids.
    pub score: f64,
}

/// A LLaMA decoder.
#[derive(Debug)]
pub struct Llama {
    pub(super) sizes: Sizes,
    pub(super) table: Table,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: RmsNorm,
    pub(super) head: Projection,
    pub(super) dtype: DType,
    pub(super) device: Device,
}

/// The cached keys and values of each block, `[rows, key heads, d]`.
struct Cache(Vec<(Tensor, Tensor)>);

impl Cache {
    /// Stores new keys and values in their rows.
    fn store(&self, block: usize, new: [&Tensor; 2], rows: &[usize]) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.0[block];
        let consecutive = rows.windows(2).all(|pair| pair[1] == pair[0] + 1);
        for (cache, new) in [keys, values].into_iter().zip(new) {
            let new = new.contiguous()?;
            match rows.first() {
                Some(first) if consecutive => cache.slice_set(&new, 0, *first)?,
                _ => {
                    for (token, row) in rows.iter().enumerate() {
                        cache.slice_set(&new.narrow(0, token, 1)?, 0, *row)?;
                    }
                }
            }
        }
        Ok((keys.clone(), values.clone()))
    }
}

impl Llama {
    /// The ids of a text, which start with the model's first id whether or not the tokenizer adds it.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn framed(&self, tokenizer: &TextTokenizer, text: &str) -> Result<Vec<u32>> {
        let mut ids = tokenizer.ids([text])?.remove(0);
        if ids.first() != Some(&self.sizes.bos) {
            ids.insert(0, self.sizes.bos);
        }
        Ok(ids)
    }

    /// The size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.sizes.vocab
    }

    /// Generates by always taking the most likely id: at most `most` ids, the closing one included.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn greedy(&self, prompt: &[u32], most: usize) -> Result<Vec<u32>> {
        let cache = self.cache(prompt.len() + most)?;
        let mut logits = self.read(prompt, &cache)?;
        let mut said = Vec::new();
        while said.len() < most {
            let id = first_largest(&logits.flatten_all()?.to_vec1::<f32>()?).unwrap_or(0) as u32;
            said.push(id);
            if self.sizes.eos.contains(&id) || said.len() == most {
                break;
            }
            let row = prompt.len() + said.len() - 1;
            let segments = vec![Segment::causal(0..1, 0..row + 1)];
            logits = self.logits(&self.forward(&[id], &[row], segments, &cache, &[row])?)?;
        }
        Ok(said)
    }

    /// Generates by beam search with `width` beams: at most `most` ids, the closing one included.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn beam(&self, prompt: &[u32], width: usize, most: usize) -> Result<Generated> {
        let (width, start) = (width.max(1), prompt.len());
        let cache = self.cache(start + width * most)?;
        let first = log_softmax(&self.read(prompt, &cache)?)?;
        let mut log_probabilities: Vec<Vec<f32>> = first.into_iter().cycle().take(width).collect();
        let (mut search, mut regions) = (BeamSearch::new(width, &self.sizes.eos), Regions::new(width));
        for column in 0..most {
            let next = search.advance(&log_probabilities);
            if search.is_done() || column + 1 == most {
                break;
            }
            regions.advance(next.iter().map(|(parent, _)| *parent), column);
            let (mut rows, mut segments) = (Vec::with_capacity(width), Vec::with_capacity(width));
            for (beam, mut runs) in regions.rows(start, most).enumerate() {
                let own = runs.pop().unwrap_or(0..0);
                rows.push(own.end - 1);
                let segment = Segment::block(beam..beam + 1, own).seeing(0..start);
                segments.push(runs.into_iter().fold(segment, Segment::seeing));
            }
            let ids: Vec<u32> = next.iter().map(|(_, id)| *id).collect();
            let states = self.forward(&ids, &vec![start + column; ids.len()], segments, &cache, &rows)?;
            log_probabilities = log_softmax(&self.logits(&states)?)?;
        }
        let (ids, score) = search.finish(most);
        Ok(Generated { ids, score })
    }

    fn cache(&self, rows: usize) -> Result<Cache> {
        let shape = (rows, self.sizes.key_heads, self.sizes.head);
        let empty = || Tensor::zeros(shape, self.dtype, &self.device);
        let blocks: candle_core::Result<_> = self.blocks.iter().map(|_| Ok((empty()?, empty()?))).collect();
        Ok(Cache(blocks?))
    }

    /// Processes a prompt into the first rows of a cache; returns the logits after its last token, `[1, v]`.
    fn read(&self, prompt: &[u32], cache: &Cache) -> Result<Tensor> {
        let rows: Vec<usize> = (0..prompt.len()).collect();
        let segments = vec![Segment::causal(0..rows.len(), 0..rows.len())];
        let states = self.forward(prompt, &rows, segments, cache, &rows)?;
        self.logits(&states.narrow(0, prompt.len().saturating_sub(1), 1)?)
    }

    /// The logits after every token of a text, which is processed at once.
    ///
    /// # Shapes
    /// `n` ids → `[n, v]`
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn all_logits(&self, ids: &[u32]) -> Result<Tensor> {
        let rows: Vec<usize> = (0..ids.len()).collect();
        let segments = vec![Segment::causal(0..ids.len(), 0..ids.len())];
        self.logits(&self.forward(ids, &rows, segments, &self.cache(ids.len())?, &rows)?)
    }

    /// `[n, h]` → `[n, v]`.
    fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let logits = self.head.forward(states)?.to_dtype(DType::F32)?;
        check_finite("llama", &logits)?;
        Ok(logits)
    }

    /// Processes ids at given positions, with their keys and values in given rows of the cache.
    ///
    /// # Shapes
    /// `n` ids → `[n, h]`
    fn forward(
        &self,
        ids: &[u32],
        positions: &[usize],
        segments: Vec<Segment>,
        cache: &Cache,
        rows: &[usize],
    ) -> Result<Tensor> {
        let Sizes { heads, key_heads, head, .. } = self.sizes;
        let (cos, sin) = self.angles(positions)?;
        let (n, scale) = (ids.len(), 1.0 / (head as f32).sqrt());
        let segments: Arc<[Segment]> = segments.into();
        let mut xs = self.embed(ids)?;
        for (number, block) in self.blocks.iter().enumerate() {
            let normed = block.input_norm.forward(&xs)?;
            let split = |projection: &Projection, heads: usize| -> Result<Tensor> {
                Ok(projection.forward(&normed)?.reshape((n, heads, head))?)
            };
            let q = ops::rotary(&self.halves(split(&block.q, heads)?)?, &cos, &sin)?;
            let k = ops::rotary(&self.halves(split(&block.k, key_heads)?)?, &cos, &sin)?;
            let (k, v) = cache.store(number, [&k, &split(&block.v, key_heads)?], rows)?;
            xs = (xs + block.o.forward(&ops::grouped_attention(&q, &k, &v, &segments, scale)?)?)?;
            let normed = block.attention_norm.forward(&xs)?;
            let inner = (block.gate.forward(&normed)?.silu()? * block.up.forward(&normed)?)?;
            xs = (xs + block.down.forward(&inner)?)?;
        }
        self.norm.forward(&xs)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        match &self.table {
            Table::Whole(table) => Ok(ops::embedding(table, ids)?),
            Table::Quantised(table) => Ok(table.embedding(&Tensor::new(ids, &self.device)?)?.to_dtype(self.dtype)?),
        }
    }

    /// Reorders a head's dimensions so that those rotated together are half a head apart, as the rotary operator
    /// expects. Attention scores do not depend on the order of dimensions.
    fn halves(&self, xs: Tensor) -> Result<Tensor> {
        if !self.sizes.interleaved {
            return Ok(xs);
        }
        let (n, heads, d) = xs.dims3()?;
        Ok(xs.reshape((n, heads, d / 2, 2))?.transpose(2, 3)?.reshape((n, heads, d))?)
    }

    /// The cosines and sines of positions, `[n, d / 2]`.
    fn angles(&self, positions: &[usize]) -> Result<(Tensor, Tensor)> {
        let half = self.sizes.head / 2;
        let frequency = |i: usize| self.sizes.rope_theta.powf(-(2.0 * i as f64) / self.sizes.head as f64) as f32;
        let rows: Vec<u32> = positions.iter().map(|at| *at as u32).collect();
        let (cos, sin) = ops::rotary_angles(&rows, &(0..half).map(frequency).collect::<Vec<_>>());
        let table = |values: Vec<f32>| -> Result<Tensor> {
            Ok(Tensor::from_vec(values, (positions.len(), half), &self.device)?.to_dtype(self.dtype)?)
        };
        Ok((table(cos)?, table(sin)?))
    }
}

/// The rows of logits as log-probabilities.
fn log_softmax(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    let mut rows = logits.to_vec2::<f32>()?;
    for row in &mut rows {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
        let total = sum.ln() as f32;
        row.iter_mut().for_each(|x| *x = *x - most - total);
    }
    Ok(rows)
}
