//! What a model costs before it is loaded: bytes in memory and floating-point operations of each kind of work, from the
//! configurations alone.
//!
//! Memory is weights, key/value cache, and the activations that are alive at once; the counts of the latter follow the
//! order in which [`super::phi`] and [`super::magvit`] make and drop them. Operations are two per weight and row, and
//! the attention's products. What training takes is counted in [`training`].

pub mod training;

use candle_core::DType;
use hermesflow_nn::ops;

use super::config::{PhiConfig, ShowoConfig};
use super::imagine;
use super::magvit::{self, Magvit, MagvitConfig};
use super::phi;
use super::reply;
use crate::Result;
use crate::model::ImagineOptions;

/// Bytes of an activation, and of one in 16 bits.
const F32: u64 = 4;
const BF16: u64 = 2;
/// Full-resolution feature maps that are alive at once in a residual block of the image tokenizer.
const FEATURE_MAPS: u64 = 5;
/// Feature maps' worth of a GPU's convolution, which unfolds the neighbours of each pixel.
const UNFOLDED: u64 = 9;

/// What some work needs at its peak, weights aside, and in all.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Bytes at the peak.
    pub bytes: u64,
    /// Floating-point operations.
    pub operations: f64,
}

impl Cost {
    /// One after the other.
    pub fn then(self, next: Self) -> Self {
        Self { bytes: self.bytes.max(next.bytes), operations: self.operations + next.operations }
    }

    /// So many times.
    pub fn times(self, count: usize) -> Self {
        Self { operations: self.operations * count as f64, ..self }
    }
}

/// The sizes that decide what a model costs.
#[derive(Debug, Clone)]
pub struct Sizes {
    showo: ShowoConfig,
    phi: PhiConfig,
    magvit: Vec<(String, Vec<usize>)>,
    vq: MagvitConfig,
    /// Numbers in matrices, and in vectors.
    matrices: u64,
    vectors: u64,
    /// Whether a GPU runs it: by kernels if its matrices are in bf16, else by compositions.
    gpu: bool,
    /// The type of keys and values that are kept.
    kept: DType,
}

impl Sizes {
    /// Of a model with these configurations.
    ///
    /// # Errors
    /// Never for validated configurations.
    pub fn new(showo: &ShowoConfig, phi: &PhiConfig, vq: &MagvitConfig) -> Result<Self> {
        let (mut matrices, mut vectors) = (0, 0);
        for (_, shape) in phi::parameter_shapes(showo, phi) {
            let count = shape.iter().product::<usize>() as u64;
            *(if shape.len() > 1 { &mut matrices } else { &mut vectors }) += count;
        }
        let magvit = Magvit::parameter_shapes(vq)?;
        Ok(Self {
            showo: showo.clone(),
            phi: phi.clone(),
            magvit,
            vq: vq.clone(),
            matrices,
            vectors,
            gpu: false,
            kept: DType::F32,
        })
    }

    /// The same model on a GPU, its matrices held as `dtype`, which is the type of keys and values there.
    pub fn on_gpu(self, dtype: DType) -> Self {
        Self { gpu: true, kept: dtype, ..self }
    }

    /// Whether a GPU runs it.
    pub fn is_on_gpu(&self) -> bool {
        self.gpu
    }

    /// Numbers in the decoder.
    pub fn parameters(&self) -> u64 {
        self.matrices + self.vectors
    }

    /// Bytes of the decoder with its matrices held as `dtype`.
    pub fn decoder_bytes(&self, dtype: DType) -> u64 {
        self.matrices * dtype.size_in_bytes() as u64 + self.vectors * F32
    }

    /// Bytes of the image tokenizer.
    pub fn tokenizer_bytes(&self) -> u64 {
        self.magvit.iter().map(|(_, shape)| shape.iter().product::<usize>() as u64 * F32).sum()
    }

    fn hidden(&self) -> u64 {
        self.phi.hidden_size as u64
    }

    fn mlp(&self) -> u64 {
        self.phi.intermediate_size as u64
    }

    fn blocks(&self) -> u64 {
        self.phi.num_hidden_layers as u64
    }

    /// The side of its pictures in pixels.
    pub fn resolution(&self) -> usize {
        self.showo.resolution(&self.vq)
    }

    /// Bytes of a key/value cache per row.
    fn cache_row(&self) -> u64 {
        2 * self.blocks() * self.hidden() * self.kept.size_in_bytes() as u64
    }

    /// Operations of the decoder for one row that sees `keys` keys, head aside.
    fn row(&self, keys: f64) -> f64 {
        let block = 4 * self.hidden() * self.hidden() + 2 * self.hidden() * self.mlp();
        self.blocks() as f64 * (2.0 * block as f64 + 4.0 * keys * self.hidden() as f64)
    }

    /// Operations of the head for one row, over `columns` of the vocabulary.
    fn head(&self, columns: usize) -> f64 {
        2.0 * self.hidden() as f64 * columns as f64
    }

    /// Whether a GPU's kernels run it, which take matrices in bf16.
    fn by_gpu_kernels(&self) -> bool {
        self.gpu && self.kept == DType::BF16
    }

    /// Bytes of a pass of the decoder over `rows` rows that see as many keys at most: the residual stream, its norm,
    /// queries, keys and values before and after their norms, or the two halves of the MLP; in a GPU's compositions the
    /// scores, too.
    fn pass(&self, rows: u64) -> u64 {
        if self.by_gpu_kernels() {
            // The embeddings and the stream in f32, all else in bf16.
            let (hidden, mlp) = (self.hidden(), self.mlp());
            return rows * (2 * hidden * F32 + (7 * hidden).max(hidden + mlp) * BF16);
        }
        let attention = 10 * self.hidden();
        let mlp = 4 * self.hidden() + 2 * self.mlp();
        let scores = if self.gpu { self.scores(rows, rows) } else { 0 };
        rows * attention.max(mlp) * F32 + 3 * scores
    }

    /// Bytes of the scores of `rows` queries and `keys` keys that a GPU has at a time.
    fn scores(&self, rows: u64, keys: u64) -> u64 {
        (rows * keys * self.phi.num_attention_heads as u64).min(ops::SCORES_AT_ONCE as u64) * F32
    }

    /// Encoding (or decoding) `images` pictures.
    fn convolutions(&self, part: &str, images: usize) -> Cost {
        let side = self.resolution() as u64;
        let levels = self.vq.encoder().channels.len() as u32;
        let pixels = |name: &str| {
            // Each level below the first has half the side; the middle and what is at its ends the lowest.
            let level = match name.split('.').collect::<Vec<_>>()[..] {
                [_, "down" | "up", level, ..] => level.parse().unwrap_or(0),
                ["encoder", "conv_in", ..] | ["decoder", "conv_out", ..] => 0,
                _ => levels - 1,
            };
            ((side >> level) * (side >> level)) as f64
        };
        let of = self.magvit.iter().filter(|(name, shape)| name.starts_with(part) && shape.len() == 4);
        let operations: f64 = of.map(|(name, shape)| 2.0 * shape.iter().product::<usize>() as f64 * pixels(name)).sum();
        let batch = magvit::batch((side * side) as usize).min(images.max(1)) as u64;
        let widest = if part == "encoder" { self.vq.encoder() } else { self.vq.decoder() };
        // The second level may be as heavy: half the pixels a side, and twice the channels or more.
        let map = |level: usize| widest.channels[level] as u64 * (side >> level) * (side >> level);
        let heaviest = (0..widest.channels.len()).map(map).max().unwrap_or(0);
        let maps = if self.gpu { FEATURE_MAPS + UNFOLDED } else { FEATURE_MAPS };
        Cost { bytes: batch * maps * heaviest * F32, operations: operations * images as f64 }
    }

    /// Encoding `images` pictures.
    pub fn encode(&self, images: usize) -> Cost {
        self.convolutions("encoder", images)
    }

    /// Decoding `images` pictures.
    pub fn decode(&self, images: usize) -> Cost {
        self.convolutions("decoder", images)
    }

    /// Replies about `images` pictures that come together, and their codes: to `questions` questions of `words` tokens about
    /// each, `samples` replies to each question of at most `length` tokens.
    pub fn reply(&self, images: usize, questions: usize, samples: usize, words: usize, length: usize) -> Cost {
        self.replies(images, questions, samples, words, length).then(self.encode(images))
    }

    /// As [`Self::reply`], of pictures whose codes are known.
    fn replies(&self, images: usize, questions: usize, samples: usize, words: usize, length: usize) -> Cost {
        let block = self.showo.num_vq_tokens + 3;
        let replies = questions * samples;
        let rows = block + questions * words + replies * length;
        let together = reply::images_together(images, replies, rows, (self.cache_row() as usize, self.gpu)) as u64;
        let prefix = (block + questions * words) as u64;
        let vocabulary = self.showo.vocab_size;
        let logits = together * replies as u64 * vocabulary as u64 * 2 * F32;
        let embedded = together * prefix * self.phi.hidden_size as u64 * F32;
        let pass = self.pass((together * prefix).min((reply::PASS + block) as u64));
        let bytes = together * rows as u64 * self.cache_row() + (embedded + pass).max(logits);
        let keys = block as f64 / 2.0;
        let operations = prefix as f64 * self.row(keys)
            + (replies * length) as f64 * (self.row(block as f64 + words as f64) + self.head(vocabulary));
        Cost { bytes, operations: operations * images as f64 }
    }

    /// `images` images of texts of `words` tokens, and their pictures.
    pub fn imagine(&self, images: usize, words: usize, options: &ImagineOptions) -> Cost {
        self.codes(images, words, options).then(self.decode(images))
    }

    /// As [`Self::imagine`], without the pictures.
    fn codes(&self, images: usize, words: usize, options: &ImagineOptions) -> Cost {
        let together = imagine::batch(&self.showo, options, self.gpu).min(images.max(1)) as u64;
        let passes = if options.guidance == 0.0 { 1 } else { 2 };
        let tokens = self.showo.num_vq_tokens;
        let rows = passes * (tokens + 2) as u64;
        let codebook = self.showo.codebook_size;
        // All positions are masked at first: their rows, their logits, and a copy of these.
        let logits = passes * tokens as u64 * (self.hidden() + 2 * codebook as u64) * F32;
        let bytes = together * self.pass(rows).max(2 * rows * self.hidden() * F32 + logits);
        // Half of the positions are masked on average, and only theirs go through the head.
        let pass = (tokens + 2) as f64 * self.row((tokens + words) as f64) + tokens as f64 / 2.0 * self.head(codebook);
        let operations = (images * options.steps) as f64 * passes as f64 * pass;
        Cost { bytes, operations }
    }
}

/// Floating-point operations per second that this machine reaches in large products with matrices held as `dtype`,
/// measured now in about a third of a second.
///
/// # Errors
/// When a tensor cannot be made.
pub fn speed(dtype: DType, device: &candle_core::Device) -> Result<f64> {
    const SIDE: usize = 1024;
    let ones = candle_core::Tensor::ones((SIDE, SIDE), DType::F32, device)?;
    let weight = ones.to_dtype(dtype)?;
    let started = std::time::Instant::now();
    let mut best = f64::INFINITY;
    while started.elapsed().as_secs_f64() < 0.3 {
        let once = std::time::Instant::now();
        ops::linear(&ones, &weight, None)?;
        best = best.min(once.elapsed().as_secs_f64());
    }
    Ok(2.0 * (SIDE * SIDE * SIDE) as f64 / best)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::training::{Work, tests::published};
    use super::*;
    use hermesflow_nn::ops::Products;

    /// What `hermesflow bench` measured of the published size at 512² in bf16 on an NVIDIA H200 (`benches/gpu_session.py`), in
    /// gigabytes, and what is counted of the same work.
    #[test]
    fn memory_on_a_gpu_is_as_it_was_measured() {
        let sizes = published(1024).on_gpu(DType::BF16);
        let options = ImagineOptions { steps: 4, guidance: 5.0, ..ImagineOptions::default() };
        let work = Work {
            pairs: 4,
            words: 20,
            masks: 1,
            accumulation: 1,
            products: Products::Bf16,
            checkpointing: false,
            host_state: false,
        };
        let train = sizes.train(&work);
        let weights = sizes.decoder_bytes(DType::BF16) + sizes.tokenizer_bytes();
        for (stage, measured, counted) in [
            ("caption", 3.76, sizes.replies(1, 1, 10, 20, 100).bytes),
            ("answer", 4.71, sizes.replies(16, 8, 1, 20, 20).bytes),
            ("imagine", 6.01, sizes.codes(16, 20, &options).bytes),
            ("encode", 5.33, sizes.encode(1).bytes),
            ("decode", 5.33, sizes.decode(1).bytes),
            ("train", 38.02, train.held + train.passing),
        ] {
            let counted = (weights + counted) as f64 / 1e9;
            println!("{stage}: {counted:.2} GB counted, {measured} GB measured");
            assert!(
                (counted / measured - 1.0).abs() < 0.15,
                "{stage}: {counted:.2} GB counted, {measured} GB measured"
            );
        }
    }
}
