//! The `train` section of a run's configuration: how the model is trained on its pairs.
//!
//! The sections `loss`, `optimizer`, `schedule`, `masking` and `watch` are the settings of `hermesflow-train` themselves.

use std::fmt;

use anyhow::ensure;
use hermesflow_models::cost::TrainedSides;
use hermesflow_train::{
    AdamWSettings, LossKind, LossSettings, MaskStates, Masking, PairDpoSettings, PairWeights, Schedule, Sides,
    StatePlace, TrainerSettings, WatchSettings,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::auto::AutoNumber;
use super::model::ModelSettings;
use super::pretrain::PretrainingMix;
use super::preview::PreviewSettings;
use super::products::ProductsName;
use crate::kernels::bf16_trains_faster;

/// How the model is trained on its pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSettings {
    /// What training minimises: the paper's method, or one of its controls.
    ///
    /// Default: pair_dpo.
    /// Source: paper; the controls are this program's.
    pub objective: ObjectiveName,
    /// Model that the trained one is compared with.
    ///
    /// Default: iteration.
    /// Source: paper, self-play in iterations.
    pub reference: Reference,
    /// Sides of a pair that are trained: captions (`und`), images (`gen`) or both.
    ///
    /// Default: both.
    /// Source: paper.
    pub sides: Sides,
    /// Codes (discrete image tokens) of a generated image that the loss scores: those that the image tokenizer reads from its
    /// picture, or those that the model drew. For models that draw one code after the other the default is drawn: their image
    /// tokenizers do not give the codes back.
    ///
    /// Default: encoded.
    /// Source: released code, which re-encodes.
    pub codes: ImageCodes,
    /// Parts of the model that are trained, by what the names of their parameters begin with, such as `language_model.`.
    /// `null` trains what the backbone trains by default; models that are trained as a whole know no parts.
    ///
    /// Source: this program.
    pub parameters: Option<Vec<String>>,
    /// Pairs per micro batch.
    ///
    /// Unit: pairs.
    /// Default: 4.
    /// Source: paper, training details; released code, `training.batch_size_t2i` and `training.batch_size_mmu`.
    #[schemars(range(min = 1, max = 10_000))]
    pub batch_size: usize,
    /// Micro batches whose gradients are averaged for one optimizer step.
    ///
    /// Unit: micro batches.
    /// Default: 1.
    /// Source: released code, `training.gradient_accumulation_steps`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub accumulation: usize,
    /// Largest global norm of the gradient: a longer one is scaled down to it. `null` never scales.
    ///
    /// Default: 1.0.
    /// Source: released code, `training.max_grad_norm`.
    #[schemars(range(min = 0.0))]
    pub max_grad_norm: Option<f64>,
    /// Masks drawn for each pair of images in each step. Several are averaged before the loss, which lowers its variance and
    /// costs as many passes.
    ///
    /// Unit: masks.
    /// Default: 1.
    /// Source: paper, which draws one.
    #[schemars(range(min = 1, max = 1000))]
    pub masks_per_pair: usize,
    /// States of a partly drawn image in which pairs of images are scored. Under `visited`, an image is as likely as its codes
    /// are to be drawn in the steps in which the sampler drew them, all codes counted; otherwise, as the codes are that a random
    /// mask hides. Models that draw one code after the other have one likelihood, and no such choice.
    ///
    /// Default: random.
    /// Source: paper, which masks at random; the rest is this program's, after Mask-GRPO and LLaDA 1.5 (arXiv 2505.19223).
    pub masks: MaskStates,
    /// Guidance under which images are scored: how likely an image is to be drawn under it. 0 is the likelihood of the model
    /// alone; `auto` is `imagine.guidance`, so that what is trained is what draws. Other numbers than 0 double the passes of
    /// images.
    ///
    /// Default: 0.0.
    /// Source: paper, which scores without guidance; the rest is this program's.
    pub guidance: AutoNumber,
    /// Probability of dropping the prompt of a pair of images, for win and lose together. Under `train.guidance` none is
    /// dropped.
    ///
    /// Default: 0.1.
    /// Source: released code, `training.cond_dropout_prob`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub prompt_dropout: f64,
    /// The loss of a pair.
    pub loss: LossSettings,
    /// How much each pair counts in the loss.
    ///
    /// Default: equal.
    /// Source: paper; the rest is this program's, after work that weighs pairs by the judge's certainty.
    pub pair_weights: PairWeights,
    /// The optimizer, AdamW.
    pub optimizer: AdamWSettings,
    /// Learning rate, and number of steps.
    pub schedule: Schedule,
    /// How image tokens are masked.
    pub masking: Masking,
    /// Alarm on a falling likelihood of the winning captions and images; `null` turns it off.
    pub watch: Option<WatchSettings>,
    /// Precision of the matrix products of training. Weights, activations, gradients and optimizer are in f32 in any case.
    ///
    /// Default: auto.
    /// Source: this program; the released code trains in `training.mixed_precision: bf16`.
    pub products: ProductsName,
    /// Whether the backward pass recomputes activations instead of keeping them: the same numbers for less memory and about
    /// a seventh more time. Small models in f32 ignore it.
    ///
    /// Default: auto.
    /// Source: this program; `model.gradient_checkpointing` in the released code.
    pub recompute: Recompute,
    /// Memory that holds AdamW's moments and computes its steps: the GPU's or the computer's. On the CPU these are one.
    ///
    /// Default: auto.
    /// Source: this program.
    pub optimizer_state: OptimizerState,
    /// Optimizer steps between two checkpoints; 0 writes one at the end only.
    ///
    /// Unit: optimizer steps.
    /// Default: 500.
    /// Source: released code, `experiment.save_every`.
    #[schemars(range(max = 1_000_000_000))]
    pub checkpoint_every: usize,
    /// Number of checkpoints that are kept; older ones are removed.
    ///
    /// Unit: checkpoints.
    /// Default: 2.
    /// Source: this program.
    #[schemars(range(max = 1_000_000))]
    pub keep: usize,
    /// Pictures of fixed prompts, drawn by the sampler of `imagine` before training and at every checkpoint. `null` draws none.
    pub preview: Option<PreviewSettings>,
    /// Data of a step under `train.objective: continue_pretraining`.
    pub pretraining: PretrainingMix,
}

/// What training minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveName {
    /// Pair-DPO, the paper's method: win against lose.
    PairDpo,
    /// A control: the likelihood of the winners alone.
    SftWins,
    /// A control: the likelihood of each record's own caption and picture, without candidates and pairs. What a run's
    /// records teach a model that is simply trained on them.
    Supervised,
    /// A control of the scenes world: pretraining goes on, without pairs.
    ContinuePretraining,
}

impl ObjectiveName {
    /// Whether it reads the run's records; the world's pretraining draws its own.
    pub fn has_records(self) -> bool {
        self != Self::ContinuePretraining
    }

    /// Whether it reads pairs, for which candidates are made and judged.
    pub fn has_pairs(self) -> bool {
        matches!(self, Self::PairDpo | Self::SftWins)
    }
}

/// Which codes of a generated image the loss scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageCodes {
    /// The codes that the image tokenizer reads from its picture.
    Encoded,
    /// The codes that the model drew, stored beside its picture; re-encoded where they are missing.
    Drawn,
}

/// Whether the backward pass recomputes activations. In YAML `auto`, `true` or `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recompute {
    /// Only where training would not fit the GPU otherwise.
    Auto,
    /// Activations are recomputed.
    On,
    /// Activations are kept.
    Off,
}

impl Recompute {
    /// This choice, or `choice` where it is left open.
    pub fn or(self, choice: Self) -> Self {
        if self == Self::Auto { choice } else { self }
    }
}

impl Serialize for Recompute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::On => serializer.serialize_bool(true),
            Self::Off => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for Recompute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Recompute;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, true or false")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Recompute, E> {
                Ok(if on { Recompute::On } else { Recompute::Off })
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Recompute, E> {
                match name {
                    "auto" => Ok(Recompute::Auto),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Recompute {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Recompute".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [
            {
                "const": "auto",
                "description": "Only where training would not fit the GPU otherwise; the training folder's config.yaml \
                                says what was chosen.",
            },
            { "const": true, "description": "Activations are recomputed." },
            { "const": false, "description": "Activations are kept." },
        ] })
    }
}

/// Memory that holds AdamW's moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerState {
    /// The host's only where training would not fit the GPU otherwise, even with `train.recompute: true`.
    Auto,
    /// The memory of `model.device`.
    Device,
    /// The computer's own memory.
    Host,
    /// In shares: each of several processes holds one in the computer's own memory and updates that share of the weights.
    /// In one process as `device`.
    Shared,
}

impl OptimizerState {
    /// This choice, or `choice` where it is left open.
    pub fn or(self, choice: Self) -> Self {
        if self == Self::Auto { choice } else { self }
    }
}

/// Model that the trained one is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The model with which this iteration began.
    Iteration,
    /// The model with which the whole run began.
    Run,
}

impl Default for TrainSettings {
    /// The paper's numbers, with a warm-up that fits.
    fn default() -> Self {
        let PairDpoSettings {
            batch_size,
            sides,
            loss,
            weights,
            masks_per_pair,
            masks,
            masking,
            guidance,
            prompt_dropout,
            ..
        } = PairDpoSettings::default();
        Self {
            objective: ObjectiveName::PairDpo,
            reference: Reference::Iteration,
            sides,
            codes: ImageCodes::Encoded,
            parameters: None,
            batch_size,
            accumulation: 1,
            max_grad_norm: Some(1.0),
            masks_per_pair,
            masks,
            guidance: AutoNumber::Number(guidance),
            prompt_dropout,
            loss,
            pair_weights: weights,
            optimizer: AdamWSettings::default(),
            schedule: Schedule::default(),
            masking,
            watch: Some(WatchSettings::default()),
            products: ProductsName::Auto,
            recompute: Recompute::Auto,
            optimizer_state: OptimizerState::Auto,
            checkpoint_every: 500,
            keep: 2,
            preview: None,
            pretraining: PretrainingMix::default(),
        }
    }
}

impl TrainSettings {
    /// Chooses what was left open and does not depend on the model. On the CPU, where one memory holds everything, that is
    /// all; on a GPU the rest is chosen by what fits once the model is known. Images are `drawn` under this guidance.
    pub(super) fn resolve(&mut self, model: &ModelSettings, drawn: f64) {
        self.guidance = self.guidance.or(drawn);
        let rounds = || model.is_faster_in_bf16(bf16_trains_faster);
        self.products = self.products.resolved(model.dtype, rounds);
        if !model.names_a_gpu() {
            self.recompute = self.recompute.or(Recompute::Off);
            self.optimizer_state = self.optimizer_state.or(OptimizerState::Device);
        }
    }

    /// Checks the numbers against each other.
    ///
    /// # Errors
    /// Names the key, its value and what is expected.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        let visited = self.masks == MaskStates::Visited;
        ensure!(
            !visited || self.codes == ImageCodes::Drawn,
            "train.masks: visited looks at how the codes of an image were drawn; set train.codes=drawn, so that these are \
             trained on"
        );
        let checked = self.trainer().validate().and_then(|()| self.pair_dpo(0).validate());
        checked.map_err(|error| match error {
            hermesflow_train::Error::Setting { key, problem } => anyhow::anyhow!("train.{key}: {problem}"),
            other => other.into(),
        })
    }

    /// The parts of the model that are trained; none is what the backbone trains by default.
    pub fn parts(&self) -> &[String] {
        self.parameters.as_deref().unwrap_or_default()
    }

    /// The sides that are trained; continued pretraining has both, whatever `sides` says.
    pub fn trained_sides(&self) -> TrainedSides {
        match self.sides {
            Sides::Und if self.objective != ObjectiveName::ContinuePretraining => TrainedSides::Captions,
            Sides::Gen if self.objective != ObjectiveName::ContinuePretraining => TrainedSides::Images,
            _ => TrainedSides::Both,
        }
    }

    /// Whether the backward pass recomputes activations; a choice that is still open does not.
    pub fn recomputes(&self) -> bool {
        self.recompute == Recompute::On
    }

    /// The settings of the training loop.
    pub fn trainer(&self) -> TrainerSettings {
        TrainerSettings {
            schedule: self.schedule,
            optimizer: self.optimizer,
            optimizer_state: match self.optimizer_state {
                OptimizerState::Auto | OptimizerState::Device => StatePlace::Device,
                OptimizerState::Host => StatePlace::Host,
                OptimizerState::Shared => StatePlace::Shared,
            },
            accumulation: self.accumulation,
            max_grad_norm: self.max_grad_norm,
            watch: self.watch,
            checkpoint_every: self.checkpoint_every,
            keep_checkpoints: self.keep,
        }
    }

    /// The settings of Pair-DPO and its control, under a seed.
    pub fn pair_dpo(&self, seed: u64) -> PairDpoSettings {
        PairDpoSettings {
            seed,
            batch_size: self.batch_size,
            sides: self.sides,
            objective: match self.objective {
                ObjectiveName::SftWins | ObjectiveName::Supervised => LossKind::SftWins,
                ObjectiveName::PairDpo | ObjectiveName::ContinuePretraining => LossKind::PairDpo,
            },
            loss: self.loss,
            weights: self.pair_weights,
            masks_per_pair: self.masks_per_pair,
            masks: self.masks,
            masking: self.masking,
            prompt_dropout: if self.guidance.number() == 0.0 { self.prompt_dropout } else { 0.0 },
            guidance: self.guidance.number(),
        }
    }
}
