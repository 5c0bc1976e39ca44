//! The two traits between the method and a backbone.

use std::path::Path;

use candle_core::{Tensor, Var};
use image::RgbImage;

use crate::{MaskSchedule, Result};

/// How one token is drawn from the logits: temperature, then top-k, then softmax, then one draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Only the `top_k` most likely tokens are drawn from; 1 is greedy, 0 is the whole vocabulary.
    pub top_k: usize,
    /// Logits are divided by this first.
    pub temperature: f64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { top_k: 1, temperature: 1.0 };
}

/// One reply to write about an image.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplyRequest {
    /// The question, without the `USER:`/`ASSISTANT:` frame.
    pub question: String,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The seed of this reply's draws.
    pub seed: u64,
    /// The reply ends at `<|eot|>` or after this many tokens.
    pub max_new_tokens: usize,
}

/// An image as a model reads it to understand it.
#[derive(Debug, Clone)]
pub enum ImageView {
    /// The codes of its image tokenizer.
    Codes(Vec<u32>),
    /// Features of a vision encoder, `[patches, width]`.
    Features(Tensor),
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The text.
    pub text: String,
    /// The sum of the log-probabilities of its tokens and the closing `<|eot|>`, whatever it was drawn under.
    pub log_prob: f64,
}

/// One image to make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImagineJob {
    /// The text to imagine.
    pub prompt: String,
    /// The seed of this image's draws.
    pub seed: u64,
    /// The codes that stay as they are, position by position; `None` is to be made. Empty: all N are.
    pub known: Vec<Option<u32>>,
}

/// The settings of MaskGIT parallel decoding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImagineOptions {
    /// Denoising steps T.
    pub steps: usize,
    /// Classifier-free guidance g in `(1+g)·cond − g·uncond`; 0 runs no unconditional pass.
    pub guidance: f64,
    /// The scale of the Gumbel noise on the confidence, before it decays.
    pub temperature: f64,
    /// How many tokens stay masked after each step.
    pub schedule: MaskSchedule,
}

impl Default for ImagineOptions {
    /// The released curation settings: 50 steps, guidance 5, temperature 1, cosine.
    fn default() -> Self {
        Self { steps: 50, guidance: 5.0, temperature: 1.0, schedule: MaskSchedule::Cosine }
    }
}

/// A model that understands and makes images.
pub trait UnifiedModel {
    /// The side of the square images that the model encodes and makes, in pixels.
    fn resolution(&self) -> usize;

    /// Tokens per image (N).
    fn image_tokens(&self) -> usize;

    /// Image codes (0 … codebook−1, N per image) of square images at the model's resolution.
    fn encode_images(&self, images: &[RgbImage]) -> Result<Vec<Vec<u32>>>;

    /// The pictures that codes stand for.
    fn decode_images(&self, codes: &[Vec<u32>]) -> Result<Vec<RgbImage>>;

    /// The pictures of `height`×`width` codes each, row by row: larger than the model itself makes them.
    fn decode_grids(&self, codes: &[Vec<u32>], height: usize, width: usize) -> Result<Vec<RgbImage>>;

    /// The part of a picture that replies read, at the size at which they do: what need be kept of it.
    fn fit(&self, picture: RgbImage) -> Result<RgbImage>;

    /// Whether replies read a picture's codes, not its features.
    fn reads_codes(&self) -> bool;

    /// Pictures of any size as replies read them.
    fn read_images(&self, pictures: &[RgbImage]) -> Result<Vec<ImageView>>;

    /// Whether a question with a reply of so many tokens at most fits the model's positions, behind an image.
    ///
    /// # Errors
    /// When it does not: [`UnifiedModel::reply`] would refuse it.
    fn check_question(&self, question: &str, max_new_tokens: usize) -> Result<()>;

    /// Replies to several requests about one image, whose prefix is computed once.
    fn reply(&self, image: &ImageView, requests: &[ReplyRequest]) -> Result<Vec<Reply>>;

    /// Replies to requests about several images, each image's prefix computed once.
    fn reply_many(&self, images: &[(&ImageView, &[ReplyRequest])]) -> Result<Vec<Vec<Reply>>> {
        images.iter().map(|(image, requests)| self.reply(image, requests)).collect()
    }

    /// Whether a prompt is too long to be imagined as a whole: [`UnifiedModel::imagine`] leaves its end out.
    fn cuts(&self, prompt: &str) -> Result<bool>;

    /// The codes of one image per job, its known ones kept; jobs with the same prompt share its text prefix.
    fn imagine(&self, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Vec<u32>>>;
}

/// `log π(caption | image)` of one caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionExample {
    /// The image's codes.
    pub image: Vec<u32>,
    /// The question that the caption was sampled under.
    pub question: String,
    /// The caption.
    pub caption: String,
}

/// `log π(image | prompt)` at the masked positions of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageExample {
    /// The prompt; empty for the unconditional case.
    pub prompt: String,
    /// The image's codes.
    pub image: Vec<u32>,
    /// The positions that are masked, and whose true tokens are scored.
    pub masked: Vec<u32>,
}

/// A model whose log-probabilities of captions and images can be differentiated.
pub trait PairModel: Sync {
    /// All trainable parameters, sorted by name.
    fn parameters(&self) -> Vec<(String, Var)>;

    /// Sum of the log-probabilities of the caption's tokens and the closing `<|eot|>`.
    ///
    /// # Shapes
    /// `[examples]`, f32.
    fn caption_log_probs(&self, examples: &[CaptionExample]) -> Result<Tensor>;

    /// Sum of the log-probabilities (softmax over the whole vocabulary) of the true tokens at the
    /// masked positions, all seen in one pass.
    ///
    /// # Shapes
    /// `[examples]`, f32.
    fn image_log_probs(&self, examples: &[ImageExample]) -> Result<Tensor>;

    /// Writes the configuration files of its published layout, which stand beside the weights.
    fn describe(&self, folder: &Path) -> Result<()>;
}
