//! The settings of Pair-DPO and its controls.

use hermesflow_nn::parallel;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::draws::{MaskStates, Masking};
use crate::loss::{LossKind, LossSettings};
use crate::{Error, Result};

/// Pairs of a small model's micro batch that are computed together: enough to keep its matrix products busy.
const PART: usize = 2;

/// Which sides take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sides {
    /// Captions and images: the method.
    Both,
    /// Captions only: a control.
    Und,
    /// Images only: a control.
    Gen,
}

impl Sides {
    pub(crate) fn understanding(self) -> bool {
        self != Self::Gen
    }

    pub(crate) fn generation(self) -> bool {
        self != Self::Und
    }
}

/// How much each pair counts in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PairWeights {
    /// One, as in the paper.
    Equal,
    /// The difference of the scores of win and loser, divided by its mean over all pairs; captions and images each by their
    /// own scores. Pairs of which the judge is surer count more.
    Margin,
}

/// The settings of Pair-DPO and its controls.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PairDpoSettings {
    /// The seed of order, masks and dropout.
    pub seed: u64,
    /// Pairs per micro batch.
    pub batch_size: usize,
    /// Which sides take part.
    pub sides: Sides,
    /// The comparison, or the likelihood of the wins alone.
    pub objective: LossKind,
    /// β, the anchors and the weights of both sides.
    pub loss: LossSettings,
    /// How much each pair counts.
    pub weights: PairWeights,
    /// Mask draws per pair and step; 1 is the paper.
    pub masks_per_pair: usize,
    /// The states of a partly drawn image in which a pair is scored.
    pub masks: MaskStates,
    /// How the images of a pair are masked, unless by the states that were visited.
    pub masking: Masking,
    /// The probability that a pair's prompt is dropped, so that its images are scored in the unconditional case.
    pub prompt_dropout: f64,
    /// Guidance g: an image is as likely as it is to be drawn under it. 0 is the paper: the model's own likelihood.
    pub guidance: f64,
}

impl Default for PairDpoSettings {
    /// The paper's numbers.
    fn default() -> Self {
        Self {
            seed: 0,
            batch_size: 4,
            sides: Sides::Both,
            objective: LossKind::PairDpo,
            loss: LossSettings::default(),
            weights: PairWeights::Equal,
            masks_per_pair: 1,
            masks: MaskStates::Random,
            masking: Masking::default(),
            prompt_dropout: 0.1,
            guidance: 0.0,
        }
    }
}

impl PairDpoSettings {
    /// Pairs that are computed together when a model of so many parameters is trained: a micro batch of a small model is
    /// several parts, in parallel.
    pub(crate) fn part(&self, parameters: usize) -> usize {
        if parameters < parallel::SMALL { PART.min(self.batch_size) } else { self.batch_size }
    }

    /// The parts of a micro batch when a model of so many parameters is trained.
    pub fn parts(&self, parameters: usize) -> usize {
        self.batch_size.div_ceil(self.part(parameters).max(1))
    }

    /// Checks the ranges.
    pub fn validate(&self) -> Result<()> {
        let check = |good: bool, key, problem: String| if good { Ok(()) } else { Err(Error::Setting { key, problem }) };
        let at_least_one = |key, value: usize| check(value > 0, key, "must be at least 1".into());
        at_least_one("batch_size", self.batch_size)?;
        at_least_one("masks_per_pair", self.masks_per_pair)?;
        self.loss.validate()?;
        let nothing = self.loss.kl != 0.0 && !self.sides.generation();
        check(!nothing, "loss.kl", format!("{} is about images, which take no part; set it to 0", self.loss.kl))?;
        self.masking.validate()?;
        let own = self.masks != MaskStates::Visited || self.masking == Masking::default();
        check(own, "masking", "has no meaning under `masks: visited`, where the sampler masked; remove it".into())?;
        let guidance = self.guidance;
        check(guidance.is_finite() && guidance >= 0.0, "guidance", format!("{guidance} is not 0 or more"))?;
        let dropout = self.prompt_dropout;
        let both = self.guidance != 0.0 && dropout != 0.0;
        let problem = "an image without its prompt has no guidance; set it to 0 under guidance".into();
        check(!both, "prompt_dropout", problem)?;
        check((0.0..=1.0).contains(&dropout), "prompt_dropout", format!("{dropout} is not a probability"))
    }
}
