//! The two traits that curation and training know a backbone by, and the requests that they take.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Tensor, Var};
use image::RgbImage;

use crate::{Imagined, MaskSchedule, Result};

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

/// Features are equal if they are one tensor, or clones of it: their numbers are not compared.
impl PartialEq for ImageView {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Codes(a), Self::Codes(b)) => a == b,
            (Self::Features(a), Self::Features(b)) => a.id() == b.id(),
            _ => false,
        }
    }
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

/// How a backbone generates the codes of an image, which decides what its sampling settings mean and at which positions an
/// image's log-probability is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageDecoding {
    /// All masked positions are predicted at once and filled in over several steps. An image is scored at masked positions.
    Masked,
    /// One code after the other, each from the softmax over the codes before it. An image's log-probability is exact.
    NextCode,
}

/// The settings of MaskGIT parallel decoding (arXiv 2202.04200). The defaults are those of the released curation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskedOptions {
    /// The number T of denoising steps. Default: 50.
    pub steps: usize,
    /// The scale g of classifier-free guidance, `(1+g)·cond − g·uncond`; 0 skips the unconditional pass. Default: 5.
    pub guidance: f64,
    /// The factor of the Gumbel noise that is added to the confidence, before it decays. Default: 1.
    pub temperature: f64,
    /// The number of tokens that stay masked after each step. Default: cosine.
    pub schedule: MaskSchedule,
}

impl Default for MaskedOptions {
    /// The released curation settings: 50 steps, guidance 5, temperature 1, cosine.
    fn default() -> Self {
        Self { steps: 50, guidance: 5.0, temperature: 1.0, schedule: MaskSchedule::Cosine }
    }
}

/// The settings of drawing one code after the other. The defaults are those that Janus-Pro was published with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NextCodeOptions {
    /// The scale g of classifier-free guidance, `(1+g)·cond − g·uncond`; 0 skips the unconditional row. Default: 4.
    pub guidance: f64,
    /// The number that guided logits are divided by before the softmax, above 0. Default: 1.
    pub temperature: f64,
    /// Bytes that the keys and values of images drawn together may take; one image is always drawn. Default: 2 GiB.
    pub cache_bytes: usize,
}

impl Default for NextCodeOptions {
    /// The published settings: guidance 4 (often written as a weight of 5), temperature 1.
    fn default() -> Self {
        Self { guidance: 4.0, temperature: 1.0, cache_bytes: 2 << 30 }
    }
}

/// The settings of generating images, in the terms of the backbone that generates them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ImagineOptions {
    /// For [`ImageDecoding::Masked`].
    Masked(MaskedOptions),
    /// For [`ImageDecoding::NextCode`].
    NextCode(NextCodeOptions),
}

impl ImagineOptions {
    /// The scale g of classifier-free guidance, `(1+g)·cond − g·uncond`.
    pub fn guidance(&self) -> f64 {
        match self {
            Self::Masked(options) => options.guidance,
            Self::NextCode(options) => options.guidance,
        }
    }

    /// The same settings under another guidance.
    #[must_use]
    pub fn with_guidance(self, guidance: f64) -> Self {
        match self {
            Self::Masked(options) => Self::Masked(MaskedOptions { guidance, ..options }),
            Self::NextCode(options) => Self::NextCode(NextCodeOptions { guidance, ..options }),
        }
    }
}

impl From<MaskedOptions> for ImagineOptions {
    fn from(options: MaskedOptions) -> Self {
        Self::Masked(options)
    }
}

impl From<NextCodeOptions> for ImagineOptions {
    fn from(options: NextCodeOptions) -> Self {
        Self::NextCode(options)
    }
}

/// A model that understands images and generates them.
pub trait UnifiedModel {
    /// The side of the square images that the model encodes and generates, in pixels.
    fn resolution(&self) -> usize;

    /// The number N of tokens per image.
    fn image_tokens(&self) -> usize;

    /// How the model generates images, and with it the kind of [`ImagineOptions`] that it takes.
    fn image_decoding(&self) -> ImageDecoding {
        ImageDecoding::Masked
    }

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

    /// Rows and columns of the features by which the model understands an image, if it does and if these depend on nothing
    /// that is trained, so that they can be kept; `None` otherwise.
    fn kept_features(&self) -> Option<(usize, usize)> {
        None
    }

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
    /// If the known codes of a job do not fit an image, the options are those of another kind of backbone, or logits are
    /// not finite.
    fn imagine(&self, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Vec<u32>>>;

    /// The same images, with the steps in which their codes were drawn.
    ///
    /// # Errors
    /// As [`UnifiedModel::imagine`].
    fn imagine_in_steps(&self, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Imagined>> {
        let codes = self.imagine(jobs, options)?;
        Ok(codes.into_iter().map(|codes| Imagined { codes, steps: None }).collect())
    }
}

/// One caption whose log-probability given an image, `log π(caption | image)`, is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionExample {
    /// The image as the model understands it. Examples about one image of features share one tensor.
    pub image: ImageView,
    /// The question that the caption was sampled for.
    pub question: String,
    /// The caption as records hold it; the model adds what it writes around a reply.
    pub caption: String,
}

/// The positions of an image whose codes are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scored {
    /// These positions are masked, and their true codes are scored from one pass over the image.
    Masked(Vec<u32>),
    /// The positions `masked` are masked, and of their true codes only those of `settled` are scored: a state that a sampler
    /// visited, and what it settled in it.
    Settled {
        /// All masked positions.
        masked: Vec<u32>,
        /// Those of them that are scored.
        settled: Vec<u32>,
    },
    /// Every position, each given the codes before it.
    All,
}

/// One image whose log-probability given a prompt, `log π(image | prompt)`, is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageExample {
    /// The prompt.
    pub prompt: String,
    /// Whether the prompt is dropped: the image is scored in the unconditional case, in the form that the backbone has
    /// for it.
    pub unconditional: bool,
    /// The image's codes.
    pub codes: Vec<u32>,
    /// Which of them are scored.
    pub scored: Scored,
}

/// A model whose log-probabilities of captions and images can be differentiated.
pub trait PairModel: Sync {
    /// All trainable parameters, sorted by name.
    fn parameters(&self) -> Vec<(String, Var)>;

    /// Whether images are scored at all positions ([`Scored::All`]) and not at masked ones.
    fn scores_all(&self) -> bool {
        false
    }

    /// For each example, the sum of the log-probabilities of its caption's tokens and the token that closes a reply.
    ///
    /// # Shapes
    /// `[examples]`, f32
    ///
    /// # Errors
    /// If an image or a text does not fit the model.
    fn caption_log_probs(&self, examples: &[CaptionExample]) -> Result<Tensor>;

    /// For each example, the sum of the log-probabilities of the true codes at the scored positions, from one pass over
    /// the image.
    ///
    /// With `guidance` 0 these are the model's own log-probabilities, as in the paper. With guidance g they are those of
    /// the policy that generates images under it: softmax over the image codes of `(1+g)·cond − g·uncond`, where `uncond`
    /// are the logits for the same image in the unconditional case. Gradients flow through both.
    ///
    /// # Shapes
    /// `[examples]`, f32
    ///
    /// # Errors
    /// If an image does not fit the model, the scored positions are of another kind of model or outside of the image, or
    /// the guidance is not 0 or more.
    fn image_log_probs(&self, examples: &[ImageExample], guidance: f64) -> Result<Tensor>;

    /// The logits of all image codes at the scored positions, without guidance: examples in order, and the positions of each
    /// in the order in which it lists them. Gradients flow.
    ///
    /// # Shapes
    /// `[scored positions, codebook]`, f32
    ///
    /// # Errors
    /// If an image does not fit the model, or the scored positions are of another kind of model or outside of the image.
    fn image_logits(&self, examples: &[ImageExample]) -> Result<Tensor>;

    /// Writes into a folder whatever makes a loadable checkpoint of the trained parameters, which lie there as
    /// `pytorch_model.safetensors`: the configuration files in the published layout and, in a model of which only a part
    /// is trained, the weights that are not.
    ///
    /// # Errors
    /// If a file cannot be written; it is named.
    fn describe(&self, folder: &Path) -> Result<()>;
}

impl<M: UnifiedModel + ?Sized> UnifiedModel for Arc<M> {
    fn resolution(&self) -> usize {
        (**self).resolution()
    }

    fn image_tokens(&self) -> usize {
        (**self).image_tokens()
    }

    fn image_decoding(&self) -> ImageDecoding {
        (**self).image_decoding()
    }

    fn encode_images(&self, images: &[RgbImage]) -> Result<Vec<Vec<u32>>> {
        (**self).encode_images(images)
    }

    fn decode_images(&self, codes: &[Vec<u32>]) -> Result<Vec<RgbImage>> {
        (**self).decode_images(codes)
    }

    fn decode_grids(&self, codes: &[Vec<u32>], height: usize, width: usize) -> Result<Vec<RgbImage>> {
        (**self).decode_grids(codes, height, width)
    }

    fn prepare(&self, picture: RgbImage) -> Result<Prepared> {
        (**self).prepare(picture)
    }

    fn understand(&self, pictures: &[Prepared]) -> Result<Vec<ImageView>> {
        (**self).understand(pictures)
    }

    fn kept_features(&self) -> Option<(usize, usize)> {
        (**self).kept_features()
    }

    fn view_of_codes(&self, codes: Vec<u32>) -> Option<ImageView> {
        (**self).view_of_codes(codes)
    }

    fn check_question(&self, question: &str, max_new_tokens: usize) -> Result<()> {
        (**self).check_question(question, max_new_tokens)
    }

    fn reply(&self, image: &ImageView, requests: &[ReplyRequest]) -> Result<Vec<Reply>> {
        (**self).reply(image, requests)
    }

    fn reply_many(&self, images: &[(&ImageView, &[ReplyRequest])]) -> Result<Vec<Vec<Reply>>> {
        (**self).reply_many(images)
    }

    fn score_replies(&self, images: &[(&ImageView, &[GivenReply])]) -> Result<Vec<Vec<Likelihood>>> {
        (**self).score_replies(images)
    }

    fn cuts(&self, prompt: &str) -> Result<bool> {
        (**self).cuts(prompt)
    }

    fn imagine(&self, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Vec<u32>>> {
        (**self).imagine(jobs, options)
    }

    fn imagine_in_steps(&self, jobs: &[ImagineJob], options: &ImagineOptions) -> Result<Vec<Imagined>> {
        (**self).imagine_in_steps(jobs, options)
    }
}

impl<M: PairModel + Send + ?Sized> PairModel for Arc<M> {
    fn parameters(&self) -> Vec<(String, Var)> {
        (**self).parameters()
    }

    fn scores_all(&self) -> bool {
        (**self).scores_all()
    }

    fn caption_log_probs(&self, examples: &[CaptionExample]) -> Result<Tensor> {
        (**self).caption_log_probs(examples)
    }

    fn image_log_probs(&self, examples: &[ImageExample], guidance: f64) -> Result<Tensor> {
        (**self).image_log_probs(examples, guidance)
    }

    fn image_logits(&self, examples: &[ImageExample]) -> Result<Tensor> {
        (**self).image_logits(examples)
    }

    fn describe(&self, folder: &Path) -> Result<()> {
        (**self).describe(folder)
    }
}
