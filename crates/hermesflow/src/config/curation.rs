//! The sections of a run's configuration that make pairs: `caption`, `imagine`, `answer` and `pair`.

use hermesflow_models::{ImageDecoding, ImagineOptions, MaskSchedule, MaskedOptions, NextCodeOptions, Sampling};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::judges::{Matcher, Similarity};

/// How images are captioned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CaptionSettings {
    /// Question under which the model captions an image, and under which captions are trained.
    ///
    /// Default: Give a caption for this image.
    /// Source: released code.
    pub question: String,
    /// Sampling settings of the captions of an image: one caption for each entry.
    ///
    /// Default: ten entries, greedy and top_k 2, 3, 4 × temperature 0.1, 0.7, 2.0.
    /// Source: paper and released code.
    #[schemars(length(min = 2, max = 1000))]
    pub candidates: Vec<SamplingSettings>,
    /// Longest caption; sampling stops there.
    ///
    /// Unit: tokens.
    /// Default: 100.
    /// Source: released code, `max_new_tokens`.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_new_tokens: usize,
}

impl Default for CaptionSettings {
    /// Greedy, then top-k 2, 3, 4 × temperature 0.1, 0.7, 2.0.
    fn default() -> Self {
        let mut candidates = vec![SamplingSettings { top_k: 1, temperature: 1.0 }];
        for top_k in [2, 3, 4] {
            candidates.extend([0.1, 0.7, 2.0].map(|temperature| SamplingSettings { top_k, temperature }));
        }
        Self { question: "Give a caption for this image.".into(), candidates, max_new_tokens: 100 }
    }
}

/// How the tokens of one caption are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplingSettings {
    /// Number of the likeliest tokens that are sampled from; 1 is greedy, 0 is all.
    ///
    /// Unit: tokens.
    /// Source: paper and released code.
    pub top_k: usize,
    /// Temperature by which the logits are divided; above 0.
    ///
    /// Source: paper and released code.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
}

impl From<SamplingSettings> for Sampling {
    fn from(settings: SamplingSettings) -> Self {
        Self { top_k: settings.top_k, temperature: settings.temperature }
    }
}

/// How images are generated from captions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImagineSettings {
    /// Images generated from each caption.
    ///
    /// Unit: images.
    /// Default: 16.
    /// Source: paper.
    #[schemars(range(min = 2, max = 10_000))]
    pub images: usize,
    /// Denoising steps of an image: each predicts all masked tokens and keeps the surest. Models that draw one code after the
    /// other have none.
    ///
    /// Unit: denoising steps.
    /// Default: 50.
    /// Source: released code, `generation_timesteps`.
    #[schemars(range(min = 1, max = 10_000))]
    pub steps: usize,
    /// Scale g of classifier-free guidance in `(1 + g) · conditional − g · unconditional` logits; 0 turns it off. For models
    /// that draw one code after the other the default is 4, which their makers write as a weight of 5.
    ///
    /// Default: 5.0.
    /// Source: released code, `guidance_scale`.
    #[schemars(range(min = 0.0))]
    pub guidance: f64,
    /// Scale of the noise on a token's confidence at the first step, from which it decays. For models that draw one code after
    /// the other: the number above 0 that logits are divided by before a code is drawn.
    ///
    /// Default: 1.0.
    /// Source: released code, `training.generation_temperature`.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Share of an image's tokens that stays masked after each step. Models that draw one code after the other have none.
    ///
    /// Default: cosine.
    /// Source: released code, `mask_schedule.schedule` or `training.mask_schedule`.
    pub schedule: MaskSchedule,
    /// Memory that the keys and values of images drawn together may take, for models that draw one code after the other; one
    /// image is always drawn. It decides how many are drawn as one batch. `null` is 8.
    ///
    /// Unit: GB.
    /// Source: this program.
    #[schemars(range(min = 0.0, max = 100_000.0))]
    pub cache: Option<f64>,
}

/// `imagine.cache` where it is not given.
const CACHE: f64 = 8.0;

impl Default for ImagineSettings {
    fn default() -> Self {
        let MaskedOptions { steps, guidance, temperature, schedule } = MaskedOptions::default();
        Self { images: 16, steps, guidance, temperature, schedule, cache: None }
    }
}

impl ImagineSettings {
    /// The settings of a model that generates images in this way.
    pub fn options(&self, decoding: ImageDecoding) -> ImagineOptions {
        let Self { steps, guidance, temperature, schedule, cache, images: _ } = *self;
        match decoding {
            ImageDecoding::Masked => MaskedOptions { steps, guidance, temperature, schedule }.into(),
            ImageDecoding::NextCode => {
                NextCodeOptions { guidance, temperature, cache_bytes: (cache.unwrap_or(CACHE) * 1e9) as usize }.into()
            }
        }
    }
}

/// How the model answers questions about its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AnswerSettings {
    /// Judge that decides which choice a free reply means.
    ///
    /// Default: auto.
    /// Source: released code, which has sbert.
    pub matcher: Matcher,
    /// What a question adds to the score of an image.
    ///
    /// Default: accuracy.
    /// Source: paper.
    pub score: AnswerScore,
    /// Longest reply; sampling stops there.
    ///
    /// Unit: tokens.
    /// Default: 100.
    /// Source: released code, `max_new_tokens`.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_new_tokens: usize,
    /// Whether the likelihood of the record's caption given each image is a second judge: images are then ranked by both, and
    /// the sums of their ranks are compared. The best image's score must be the higher one, too.
    ///
    /// Default: false.
    /// Source: this program.
    pub caption_likelihood: bool,
}

impl Default for AnswerSettings {
    fn default() -> Self {
        Self { matcher: Matcher::Auto, score: AnswerScore::Accuracy, max_new_tokens: 100, caption_likelihood: false }
    }
}

/// What a question adds to the score of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnswerScore {
    /// One for a right answer: the score is the share of right answers, as in the paper.
    Accuracy,
    /// For a right answer, the probability that the model gave it, so that of two images with equal answers the clearer one
    /// wins.
    Confidence,
    /// The probability of the right choice among all choices, from the likelihood of each choice as a reply: nothing is
    /// written, and no matcher is asked.
    Probability,
}

/// How pairs are chosen from captions and images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PairSettings {
    /// Judge of captions: how similar a caption is to the true one.
    ///
    /// Default: auto.
    /// Source: paper, which has bert.
    pub similarity: Similarity,
    /// Share of right answers that the best image of a record must exceed, or the record gives no pair.
    ///
    /// Default: 0.6.
    /// Source: paper.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_accuracy: f64,
    /// How often a record that gave no pair, because its captions or images tie or no image is good enough, is tried again
    /// within the iteration: captioned and imagined with other draws. The candidates of all tries compete together. `hermesflow
    /// run` does so; with the same records in every iteration (`data.fresh: false`), in the first one.
    ///
    /// Unit: tries.
    /// Default: 0.
    /// Source: this program, after Internal Gap (arXiv 2507.16663), which tries such records in later iterations.
    #[schemars(range(max = 100))]
    pub retries: usize,
    /// Images of each record that are drawn from altered captions: two words exchanged, one replaced, or a part left out. One of
    /// them is the rejected image of a pair where the judge tells it apart from the best image of the caption itself
    /// (`pair.altered_margin`), else the worst image of the caption is. `hermesflow run` draws them; with the same records in
    /// every iteration (`data.fresh: false`), in the first one.
    ///
    /// Unit: images.
    /// Default: 0.
    /// Source: this program, after OSPO.
    #[schemars(range(max = 10_000))]
    pub altered: usize,
    /// How much lower than the best image of a caption an image of an altered caption must score to be told apart from it.
    ///
    /// Default: 0.5.
    /// Source: OSPO, where the answer yes must be as much likelier than no.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub altered_margin: f64,
    /// Judge of images.
    ///
    /// Default: self.
    /// Source: paper; the oracle is this program's control.
    pub judge: ImageJudge,
}

/// Judge of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageJudge {
    /// The model itself, by its answers to questions: the paper's method.
    #[serde(rename = "self")]
    Itself,
    /// A control: the scenes world's oracle, which reads the pixels.
    Oracle,
}

impl Default for PairSettings {
    fn default() -> Self {
        Self {
            similarity: Similarity::Auto,
            min_accuracy: 0.6,
            retries: 0,
            altered: 0,
            altered_margin: 0.5,
            judge: ImageJudge::Itself,
        }
    }
}
