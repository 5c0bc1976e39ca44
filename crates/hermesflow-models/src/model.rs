//! The two traits that a backbone implements, and the requests that they take.

use std::path::Path;

use candle_core::{Tensor, Var};
use image::RgbImage;

use crate::{MaskSchedule, Result};

/// How one token is drawn from the logits: divide by the temperature, keep the `top_k` largest, softmax, one draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The number of most likely tokens that are drawn from; 1 is greedy, 0 means the whole vocabulary.
    pub top_k: usize,
    /// The number that logits are divided by, above 0.
    pub temperature: f64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { top_k: 1, temperature: 1.0 };
}

/// A request for one reply about an image.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplyRequest {
    /// The question, without the `USER:`/`ASSISTANT:` frame.
    pub question: String,
    /// How its tokens are drawn.
    pub sampling: Sampling,
    /// The seed of the reply's random draws.
    pub seed: u64,
    /// The largest number of tokens; a reply ends here or at `<|eot|>`.
    pub max_new_tokens: usize,
}

/// An image in the form in which a model understands it.
#[derive(Debug, Clone)]
pub enum ImageView {
    /// Codes of the image tokenizer.
    Codes(Vec<u32>),
    /// Features of a vision encoder, `[patches, width]`.
    Features(Tensor),
}

/// An image that [`UnifiedModel::prepare`] cropped and scaled for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared(RgbImage);

impl Prepared {
    /// An image with the pixels that a model's [`UnifiedModel::prepare`] returned.
    pub fn new(pixels: RgbImage) -> Self {
        Self(pixels)
    }

    /// The pixels.
    pub fn pixels(&self) -> &RgbImage {
        &self.0
    }
}

/// A reply about an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The text, without `<|eot|>`.
    pub text: String,
    /// The sum of the log-probabilities (natural logarithm, temperature 1, whole vocabulary) of the reply's tokens and
    /// the closing `<|eot|>`, whatever sampling they were drawn with.
    pub log_prob: f64,
}

/// A given reply whose likelihood is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenReply {
    /// The question, without the `USER:`/`ASSISTANT:` frame.
    pub question: String,
    /// The reply as records hold texts, without the space that the model writes in front of it.
    pub reply: String,
}

/// How likely a model is to give a reply.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// The sum of the log-probabilities of the reply's tokens and the closing `<|eot|>`.
    pub log_prob: f64,
    /// The number of these tokens.
    pub tokens: usize,
}

/// A request for one image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImagineJob {
    /// The text that describes the image.
    pub prompt: String,
    /// The seed of the image's random draws.
    pub seed: u64,
    /// The codes that are given, position by position; `None` is to be generated. An empty list generates all.
    pub known: Vec<Option<u32>>,
}

/// The settings of MaskGIT parallel decoding (arXiv 2202.04200). The defaults are those of the released curation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImagineOptions {
    /// The number T of denoising steps. Default: 50.
    pub steps: usize,
    /// The scale g of classifier-free guidance, `(1+g)·cond − g·uncond`; 0 skips the unconditional pass. Default: 5.
    pub guidance: f64,
    /// The factor of the Gumbel noise that is added to the confidence, before it decays. Default: 1.
    pub temperature: f64,
    /// The number of tokens that stay masked after each step. Default: cosine.
    pub schedule: MaskSchedule,
}

impl Default for ImagineOptions {
    /// The released curation settings: 50 steps, guidance 5, temperature 1, cosine.
    fn default() -> Self {
        Self { steps: 50, guidance: 5.0, temperature: 1.0, schedule: MaskSchedule::Cosine }
    }
}

/// A model that understands images and generates them.
pub trait UnifiedModel {
    /// The side of the square images that the model encodes and generates, in pixels.
    fn resolution(&self) -> usize;

    /// The number N of tokens per image.
    fn image_tokens(&self) -> usize;

    /// The codes of square images at the model's resolution: N per image, from 0 to the size of the codebook − 1.
    ///
    /// # Errors
    /// If an image has another size.
    fn encode_images(&self, images: &[RgbImage]) -> Result<Vec<Vec<u32>>>;

    /// The images that codes stand for, at the model's resolution.
    ///
    /// # Errors
    /// If an image does not have N codes, or a code is outside the codebook.
    fn decode_images(&self, codes: &[Vec<u32>]) -> Result<Vec<RgbImage>>;

    /// The images of grids of `height`×`width` codes each, given row by row; they may be larger than the model's
    /// resolution.
    ///
    /// # Errors
    /// If a grid has another number of codes, or a code is outside the codebook.
    fn decode_grids(&self, codes: &[Vec<u32>], height: usize, width: usize) -> Result<Vec<RgbImage>>;

    /// Crops and scales an image to the part and size that the model understands. No weights are used, so images can be
    /// prepared on any thread while the model works.
    ///
    /// # Errors
    /// If the image has no pixels, or the model lacks a part that understanding needs.
    fn prepare(&self, picture: RgbImage) -> Result<Prepared>;

    /// Prepared images in the form in which the model understands them.
    ///
    /// # Errors
    /// If an image was not prepared by this model, or a tensor operation fails.
    fn understand(&self, pictures: &[Prepared]) -> Result<Vec<ImageView>>;

    /// An image in the form in which the model understands it, from its image codes alone; `None` if the model needs
    /// its pixels.
    fn view_of_codes(&self, codes: Vec<u32>) -> Option<ImageView>;

    /// Checks that a question and a reply of up to `max_new_tokens` tokens fit the model's positions, after an image.
    ///
    /// # Errors
    /// If they do not; [`UnifiedModel::reply`] would refuse them.
    fn check_question(&self, question: &str, max_new_tokens: usize) -> Result<()>;

    /// Replies to several requests about one image, whose tokens are processed once.
    ///
    /// # Errors
    /// If a request does not fit the model's positions, or logits are not finite.
    fn reply(&self, image: &ImageView, requests: &[ReplyRequest]) -> Result<Vec<Reply>>;

    /// Replies to requests about several images; the tokens of each image are processed once.
    ///
    /// # Errors
    /// As [`UnifiedModel::reply`].
    fn reply_many(&self, images: &[(&ImageView, &[ReplyRequest])]) -> Result<Vec<Vec<Reply>>> {
        images.iter().map(|(image, requests)| self.reply(image, requests)).collect()
    }

    /// The likelihoods of given replies about several images. The tokens of each image and of each question go through
    /// the model once.
    ///
    /// # Errors
    /// If an image or a text does not fit the model, or logits are not finite.
    fn score_replies(&self, images: &[(&ImageView, &[GivenReply])]) -> Result<Vec<Vec<Likelihood>>>;

    /// Whether a prompt is too long, so that [`UnifiedModel::imagine`] leaves out its end.
    ///
    /// # Errors
    /// If the tokenizer fails.
    fn cuts(&self, prompt: &str) -> Result<bool>;

    /// The codes of one image per job, with the job's known codes kept. Jobs with equal prompts share the tokens of the
    /// text.
    ///
    /// # Errors
    /// If the known codes of a job do not fit an image, or logits are not finite.
    fn imagine(&self, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Vec<u32>>>;
}

/// One caption whose log-probability given an image, `log π(caption | image)`, is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionExample {
    /// The image's codes.
    pub image: Vec<u32>,
    /// The question that the caption was sampled for.
    pub question: String,
    /// The caption, spelled as the model would write it in a reply.
    pub caption: String,
}

/// One image whose log-probability given a prompt, `log π(image | prompt)`, is asked for at some masked positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageExample {
    /// The prompt; empty for the unconditional case.
    pub prompt: String,
    /// The image's codes.
    pub image: Vec<u32>,
    /// The positions that are masked and whose true codes are scored.
    pub masked: Vec<u32>,
}

/// A model whose log-probabilities of captions and images can be differentiated.
pub trait PairModel: Sync {
    /// All trainable parameters, sorted by name.
    fn parameters(&self) -> Vec<(String, Var)>;

    /// For each example, the sum of the log-probabilities of its caption's tokens and the closing `<|eot|>`.
    ///
    /// # Shapes
    /// `[examples]`, f32
    ///
    /// # Errors
    /// If an image or a text does not fit the model.
    fn caption_log_probs(&self, examples: &[CaptionExample]) -> Result<Tensor>;

    /// For each example, the sum of the log-probabilities of the true codes at the masked positions, from one pass over
    /// the image.
    ///
    /// With `guidance` 0 these are the model's own log-probabilities (softmax over the whole vocabulary), as in the paper.
    /// With guidance g they are those of the policy that generates images under it: softmax over the image codes of
    /// `(1+g)·cond − g·uncond`, where `uncond` are the logits for the same image without its text. Gradients flow through
    /// both.
    ///
    /// # Shapes
    /// `[examples]`, f32
    ///
    /// # Errors
    /// If an image does not fit the model, a masked position lies outside of it, or the guidance is not 0 or more.
    fn image_log_probs(&self, examples: &[ImageExample], guidance: f64) -> Result<Tensor>;

    /// Writes the model's configuration files, in its published layout, into a folder of weights.
    ///
    /// # Errors
    /// If a file cannot be written; it is named.
    fn describe(&self, folder: &Path) -> Result<()>;
}
