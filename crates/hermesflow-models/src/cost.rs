//! What a model costs before it is loaded, whichever backbone it is: bytes of memory and floating-point operations of each
//! kind of work.

use std::fmt;

use candle_core::DType;
use hermesflow_nn::ops::{self, Products};

use crate::Result;
use crate::model::ImagineOptions;

/// The sides of a training: which likelihoods it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainedSides {
    /// Of captions and of images.
    Both,
    /// Of captions alone.
    Captions,
    /// Of images alone.
    Images,
}

/// What a piece of work needs, weights aside.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Bytes of memory at the peak.
    pub bytes: u64,
    /// Floating-point operations in all.
    pub operations: f64,
}

impl Cost {
    /// The cost of this work followed by `next`: the larger peak, and the sum of operations.
    pub fn then(self, next: Self) -> Self {
        Self { bytes: self.bytes.max(next.bytes), operations: self.operations + next.operations }
    }

    /// The cost of doing this work `count` times in sequence.
    pub fn times(self, count: usize) -> Self {
        Self { operations: self.operations * count as f64, ..self }
    }
}

/// The settings of training that its memory depends on.
#[derive(Debug, Clone, Copy)]
pub struct TrainingWork<'a> {
    /// The parts that are trained, by what the names of their parameters begin with; none is what the backbone trains by
    /// default.
    pub parts: &'a [String],
    /// Pairs per micro batch.
    pub pairs: usize,
    /// Tokens per text.
    pub words: usize,
    /// Masks that are drawn per pair.
    pub masks: usize,
    /// Whether the likelihood of images is guided: each goes through the model once more, without its text.
    pub guided: bool,
    /// Micro batches per step.
    pub accumulation: usize,
    /// The precision of the matrix products.
    pub products: Products,
    /// Whether blocks keep only their inputs for the backward pass and recompute the rest.
    pub recompute: bool,
    /// Whether the sums of gradients and the optimizer's moments are in the host's memory.
    pub host_state: bool,
}

#[cfg(test)]
impl TrainingWork<'_> {
    /// Four pairs of `words` tokens a text in bf16, and nothing that saves memory.
    pub(crate) fn of_four_pairs(words: usize) -> Self {
        Self {
            parts: &[],
            pairs: 4,
            words,
            masks: 1,
            guided: false,
            accumulation: 1,
            products: Products::Bf16,
            recompute: false,
            host_state: false,
        }
    }
}

/// What training needs beside the model that it starts from, which is the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingCost {
    /// Bytes that stay on the device: the policy in f32, and the optimizer's state if it is there.
    pub held: u64,
    /// Bytes that a step needs on the device at its peak: gradients, what the graphs keep, and intermediate results.
    pub passing: u64,
    /// Bytes on the CPU that writing a checkpoint and opening the finished model take beside those.
    pub saving: u64,
    /// Bytes in the host's memory, where that is separate.
    pub host: u64,
    /// Floating-point operations of a micro batch.
    pub operations: f64,
}

impl TrainingCost {
    /// The cost of a step on weights of `weights` bytes in f32, on a GPU or not, that needs `passing` bytes at its peak and
    /// `operations` floating-point operations.
    pub(crate) fn new(work: &TrainingWork, gpu: bool, weights: u64, passing: u64, operations: f64) -> Self {
        // The sums of earlier micro batches are stored where the optimizer's state is; they are added up in pairs.
        let waiting = u64::from(work.accumulation.max(1).ilog2()) * weights;
        let (held, host) =
            if work.host_state && gpu { (weights, 3 * weights + waiting) } else { (3 * weights + waiting, 0) };
        Self { held, passing, saving: 0, host, operations }
    }
}

/// What a model does, by the weights that it reads for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Captions and answers.
    Replies,
    /// Pictures from texts, as codes and as pixels.
    Pictures,
    /// Training, which reads every weight: it takes a digest of its reference, and writes checkpoints.
    Training,
}

/// The costs of one model's work.
pub trait Costs: fmt::Debug + Send + Sync {
    /// The same model on a GPU, where matrices, keys and values are held as `dtype`.
    fn on_gpu(self: Box<Self>, dtype: DType) -> Box<dyn Costs>;

    /// The same model on the CPU with matrices held as `dtype`.
    fn on_cpu(self: Box<Self>, dtype: DType) -> Box<dyn Costs>;

    /// Whether the model runs on a GPU.
    fn is_on_gpu(&self) -> bool;

    /// The number of parameters, an image tokenizer that is a checkpoint of its own aside.
    fn parameters(&self) -> u64;

    /// The number of parameters that are trained, where parts are named by what the names of their parameters begin with; of
    /// no parts, that of what is trained by default.
    fn trained(&self, parts: &[String]) -> u64;

    /// The number of tensors that these are.
    fn trained_tensors(&self, parts: &[String]) -> usize;

    /// Refuses parts that cannot be trained.
    ///
    /// # Errors
    /// Names the first of them.
    fn check_parts(&self, parts: &[String], sides: TrainedSides) -> Result<()>;

    /// Bytes of the weights with matrices held as `dtype`, without the image tokenizer.
    fn decoder_bytes(&self, dtype: DType) -> u64;

    /// Bytes of the image tokenizer's weights.
    fn tokenizer_bytes(&self) -> u64;

    /// Bytes of the weights that are in memory while the model does something, with matrices held as `dtype`: all of them,
    /// but for those that stay in a memory-mapped file and are not read for it.
    fn in_memory(&self, task: Task, dtype: DType) -> u64 {
        let _ = task;
        self.decoder_bytes(dtype) + self.tokenizer_bytes()
    }

    /// Bytes of the copies in f32 that training makes of weights held as `dtype`, which its products do not take.
    fn widened(&self, products: Products, dtype: DType) -> u64 {
        if products.take(dtype) { 0 } else { self.decoder_bytes(DType::F32) }
    }

    /// Bytes that a trained model takes on the disk, with matrices held as `dtype` and these parts trained.
    fn written(&self, parts: &[String], products: Products, dtype: DType) -> u64 {
        let _ = (parts, products, dtype);
        self.decoder_bytes(DType::F32)
    }

    /// The side of the model's square images, in pixels.
    fn resolution(&self) -> usize;

    /// The number of tokens of an image.
    fn image_tokens(&self) -> usize;

    /// The cost of encoding `images` images.
    fn encode(&self, images: usize) -> Cost;

    /// The cost of decoding `images` images.
    fn decode(&self, images: usize) -> Cost;

    /// The cost of replies about `images` images that are processed together, and of reading these: for each image,
    /// `samples` replies of at most `length` tokens to each of `questions` questions of `words` tokens.
    fn reply(&self, images: usize, questions: usize, samples: usize, words: usize, length: usize) -> Cost;

    /// The cost of generating and decoding `images` images from prompts of `words` tokens.
    fn imagine(&self, images: usize, words: usize, options: &ImagineOptions) -> Cost;

    /// How often the decoder's weights are read to generate an image.
    fn passes(&self, options: &ImagineOptions) -> usize;

    /// The cost of a step of training, and of what stays in memory around it.
    fn train(&self, work: &TrainingWork) -> TrainingCost;
}

/// Floating-point operations per second that this machine reaches in large products with matrices held as `dtype`;
/// measured now, in about a third of a second.
///
/// # Errors
/// If a tensor cannot be allocated.
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
