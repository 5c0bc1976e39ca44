//! What a model costs before it is loaded: bytes of memory and floating-point operations of each kind of work, computed
//! from the configurations alone.
//!
//! Memory is the weights, the key/value cache, and the activations that exist at the same time. The counts of
//! activations follow the order in which [`super::phi`] and [`super::magvit`] allocate and free them. Operations are
//! two per weight and row, plus the products of attention. The costs of training are in [`training`].

pub mod training;

use candle_core::DType;
use hermesflow_nn::ops;

use super::config::{PhiConfig, ShowoConfig};
use super::imagine;
use super::magvit::{self, Magvit, MagvitConfig};
use super::phi;
use super::reply;
use super::training::whole;
use crate::Result;
use crate::cost::{Cost, Costs, TrainedSides, TrainingCost, TrainingWork};
use crate::model::{ImagineOptions, MaskedOptions};

/// Bytes of an activation in f32, and in 16 bits.
const F32: u64 = 4;
const BF16: u64 = 2;
/// Full-resolution feature maps that exist at the same time in a residual block of the image tokenizer.
const FEATURE_MAPS: u64 = 5;
/// Feature maps' worth of memory of a GPU's convolution, which copies the neighbours of each pixel.
const UNFOLDED: u64 = 9;

/// The sizes of a model that decide its costs.
#[derive(Debug, Clone)]
pub struct Sizes {
    showo: ShowoConfig,
    phi: PhiConfig,
    magvit: Vec<(String, Vec<usize>)>,
    vq: MagvitConfig,
    /// Numbers in matrices, and in vectors.
    matrices: u64,
    vectors: u64,
    /// Whether the model runs on a GPU: by kernels if its matrices are in bf16, else by compositions of operators.
    gpu: bool,
    /// The type of cached keys and values.
    kept: DType,
}

impl Sizes {
    /// The sizes of a model with these configurations.
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

    /// The same model on a GPU, where matrices, keys and values are held as `dtype`.
    pub fn on_gpu(self, dtype: DType) -> Self {
        Self { gpu: true, kept: dtype, ..self }
    }

    /// Whether the model runs on a GPU.
    pub fn is_on_gpu(&self) -> bool {
        self.gpu
    }

    /// The number of parameters of the decoder.
    pub fn parameters(&self) -> u64 {
        self.matrices + self.vectors
    }

    /// Bytes of the decoder's weights with its matrices held as `dtype`.
    pub fn decoder_bytes(&self, dtype: DType) -> u64 {
        self.matrices * dtype.size_in_bytes() as u64 + self.vectors * F32
    }

    /// Bytes of the image tokenizer's weights.
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

    /// The side of the model's square images, in pixels.
    pub fn resolution(&self) -> usize {
        self.showo.resolution(&self.vq)
    }

    /// Bytes of the key/value cache per token.
    fn cache_row(&self) -> u64 {
        2 * self.blocks() * self.hidden() * self.kept.size_in_bytes() as u64
    }

    /// Operations of the decoder for one token that attends to `keys` keys, without the vocabulary head.
    fn row(&self, keys: f64) -> f64 {
        let block = 4 * self.hidden() * self.hidden() + 2 * self.hidden() * self.mlp();
        self.blocks() as f64 * (2.0 * block as f64 + 4.0 * keys * self.hidden() as f64)
    }

    /// Operations of the vocabulary head for one token, over `columns` of the vocabulary.
    fn head(&self, columns: usize) -> f64 {
        2.0 * self.hidden() as f64 * columns as f64
    }

    /// Whether a GPU's kernels run the model, which needs matrices in bf16.
    fn by_gpu_kernels(&self) -> bool {
        self.gpu && self.kept == DType::BF16
    }

    /// Bytes of a pass of the decoder over `rows` tokens that attend to at most as many keys: the residual stream, its
    /// norm, queries, keys and values before and after their norms, or the two halves of the MLP; and attention's
    /// scores where a GPU runs compositions of operators.
    fn pass(&self, rows: u64) -> u64 {
        if self.by_gpu_kernels() {
            // Embeddings and residual stream in f32, everything else in bf16.
            let (hidden, mlp) = (self.hidden(), self.mlp());
            return rows * (2 * hidden * F32 + (7 * hidden).max(hidden + mlp) * BF16);
        }
        let attention = 10 * self.hidden();
        let mlp = 4 * self.hidden() + 2 * self.mlp();
        let scores = if self.gpu { self.scores(rows, rows) } else { 0 };
        rows * attention.max(mlp) * F32 + 3 * scores
    }

    /// Bytes of the attention scores of `rows` queries and `keys` keys that a GPU holds at a time.
    fn scores(&self, rows: u64, keys: u64) -> u64 {
        (rows * keys * self.phi.num_attention_heads as u64).min(ops::SCORES_AT_ONCE as u64) * F32
    }

    /// The cost of encoding (or decoding) `images` images.
    fn convolutions(&self, part: &str, images: usize) -> Cost {
        let side = self.resolution() as u64;
        let levels = self.vq.encoder().channels.len() as u32;
        let pixels = |name: &str| {
            // Each level has half the side of the one before; the middle blocks have that of the last level.
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
        // The second level can need more: it has half the side but twice the channels or more.
        let map = |level: usize| widest.channels[level] as u64 * (side >> level) * (side >> level);
        let heaviest = (0..widest.channels.len()).map(map).max().unwrap_or(0);
        let maps = if self.gpu { FEATURE_MAPS + UNFOLDED } else { FEATURE_MAPS };
        Cost { bytes: batch * maps * heaviest * F32, operations: operations * images as f64 }
    }

    /// The cost of encoding `images` images.
    pub fn encode(&self, images: usize) -> Cost {
        self.convolutions("encoder", images)
    }

    /// The cost of decoding `images` images.
    pub fn decode(&self, images: usize) -> Cost {
        self.convolutions("decoder", images)
    }

    /// The cost of replies about `images` images that are processed together, and of encoding these: for each image,
    /// `samples` replies of at most `length` tokens to each of `questions` questions of `words` tokens.
    pub fn reply(&self, images: usize, questions: usize, samples: usize, words: usize, length: usize) -> Cost {
        self.replies(images, questions, samples, words, length).then(self.encode(images))
    }

    /// Like [`Self::reply`], for images that are encoded already.
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

    /// The cost of generating and decoding `images` images from prompts of `words` tokens.
    pub fn imagine(&self, images: usize, words: usize, options: &MaskedOptions) -> Cost {
        self.codes(images, words, options).then(self.decode(images))
    }

    /// Like [`Self::imagine`], without decoding.
    fn codes(&self, images: usize, words: usize, options: &MaskedOptions) -> Cost {
        let together = imagine::batch(&self.showo, options, self.gpu).min(images.max(1)) as u64;
        let passes = if options.guidance == 0.0 { 1 } else { 2 };
        let tokens = self.showo.num_vq_tokens;
        let rows = passes * (tokens + 2) as u64;
        let codebook = self.showo.codebook_size;
        // At first all positions are masked: their hidden states, their logits, and a copy of these.
        let logits = passes * tokens as u64 * (self.hidden() + 2 * codebook as u64) * F32;
        let bytes = together * self.pass(rows).max(2 * rows * self.hidden() * F32 + logits);
        // On average half of the positions are masked, and only these go through the head.
        let pass = (tokens + 2) as f64 * self.row((tokens + words) as f64) + tokens as f64 / 2.0 * self.head(codebook);
        let operations = (images * options.steps) as f64 * passes as f64 * pass;
        Cost { bytes, operations }
    }
}

impl Costs for Sizes {
    fn on_gpu(self: Box<Self>, dtype: DType) -> Box<dyn Costs> {
        Box::new(Sizes::on_gpu(*self, dtype))
    }

    fn on_cpu(self: Box<Self>, _dtype: DType) -> Box<dyn Costs> {
        self // keys and values stay in f32 there
    }

    fn is_on_gpu(&self) -> bool {
        self.gpu
    }

    fn parameters(&self) -> u64 {
        self.parameters()
    }

    fn trained(&self, _: &[String]) -> u64 {
        self.parameters() // it is trained as a whole
    }

    fn check_parts(&self, parts: &[String], _: TrainedSides) -> Result<()> {
        whole(parts)
    }

    fn trained_tensors(&self, _: &[String]) -> usize {
        phi::parameter_shapes(&self.showo, &self.phi).len()
    }

    fn decoder_bytes(&self, dtype: DType) -> u64 {
        self.decoder_bytes(dtype)
    }

    fn tokenizer_bytes(&self) -> u64 {
        self.tokenizer_bytes()
    }

    fn resolution(&self) -> usize {
        self.resolution()
    }

    fn image_tokens(&self) -> usize {
        self.showo.num_vq_tokens
    }

    fn encode(&self, images: usize) -> Cost {
        self.encode(images)
    }

    fn decode(&self, images: usize) -> Cost {
        self.decode(images)
    }

    fn reply(&self, images: usize, questions: usize, samples: usize, words: usize, length: usize) -> Cost {
        self.reply(images, questions, samples, words, length)
    }

    fn imagine(&self, images: usize, words: usize, options: &ImagineOptions) -> Cost {
        match options {
            ImagineOptions::Masked(options) => self.imagine(images, words, options),
            ImagineOptions::NextCode(_) => Cost::default(), // refused by the model
        }
    }

    fn passes(&self, options: &ImagineOptions) -> usize {
        match options {
            ImagineOptions::Masked(options) => options.steps,
            ImagineOptions::NextCode(_) => 0,
        }
    }

    fn train(&self, work: &TrainingWork) -> TrainingCost {
        self.train(work)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::training::tests::published;
    use super::*;

    /// What `hermesflow bench` measured of the published size at 512² in bf16 on an NVIDIA H200 (`benches/gpu_session.py`), in
    /// gigabytes, and what is counted of the same work.
    #[test]
    fn memory_on_a_gpu_is_as_it_was_measured() {
        let sizes = published(1024).on_gpu(DType::BF16);
        let options = MaskedOptions { steps: 4, guidance: 5.0, ..MaskedOptions::default() };
        let work = TrainingWork::of_four_pairs(20);
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
