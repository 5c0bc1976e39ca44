//! The `train` section of a run's configuration.

use hermesflow_models::device::DeviceName;
use hermesflow_models::{MaskSchedule, Products};
use hermesflow_train::{
    AdamWSettings, LossKind, Masking, PairDpoSettings, Schedule, ScheduleKind, Sides, StatePlace, TrainerSettings,
    WatchSettings,
};
use serde::{Deserialize, Serialize};

use super::{DTypeName, ModelSettings};
use crate::world::pretraining::PretrainingMix;

/// How the model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSettings {
    /// The method, or one of its controls.
    pub objective: ObjectiveName,
    /// Which sides of a pair take part.
    pub sides: Sides,
    /// What an imagined image is to the loss.
    pub codes: ImageCodes,
    /// How matrix products are computed. Weights, activations, gradients and the optimizer are in f32 either way.
    pub products: ProductsName,
    /// Whether the decoder's blocks keep their inputs only for the backward pass and compute the rest again: the same
    /// numbers for less memory and a seventh more time. Small models in f32 run operator by operator and stay as they are.
    /// `auto`: where a step would not fit the GPU without it; what was chosen stands in the training folder's config.yaml.
    pub checkpointing: Checkpointing,
    /// Where AdamW's moments lie: on the model's `device`, or on the `host`, where its steps are computed then. On the CPU
    /// these are one. `auto`: on the host where a step would not fit the GPU otherwise, even with `checkpointing`.
    pub optimizer_state: OptimizerState,
    /// The strength of the comparison.
    pub beta: f64,
    /// The captions' anchor λ; 0 is the paper.
    pub anchor_und: f64,
    /// The images' anchor λ; 0 is the paper.
    pub anchor_gen: f64,
    /// The weight of the captions' loss; 1 is the paper.
    pub weight_und: f64,
    /// The weight of the images' loss; 1 is the paper.
    pub weight_gen: f64,
    /// Mask draws per pair and step; 1 is the paper.
    pub masks_per_pair: usize,
    /// The share of an image that is masked at a time: cosine (the paper), linear, pow2 or sigmoid.
    pub mask_schedule: MaskSchedule,
    /// The least share; 0 is the paper.
    pub min_masking_rate: f64,
    /// How often one rectangle of an image is masked instead of scattered tokens; 0 is the paper.
    pub mask_contiguous_region_prob: f64,
    /// How often a pair's text is left away.
    pub prompt_dropout: f64,
    /// Its peak.
    pub learning_rate: f64,
    /// What it does after the warm-up.
    pub schedule: ScheduleKind,
    /// Steps until the peak.
    pub warmup_steps: usize,
    /// Steps of one iteration.
    pub steps: usize,
    /// Pairs per micro batch.
    pub batch_size: usize,
    /// Micro batches per step.
    pub accumulation: usize,
    /// The gradient is scaled down to this norm; none leaves it alone.
    pub max_grad_norm: Option<f64>,
    /// AdamW.
    pub beta1: f64,
    /// AdamW.
    pub beta2: f64,
    /// AdamW.
    pub eps: f64,
    /// On matrices only.
    pub weight_decay: f64,
    /// Steps between checkpoints; 0 writes one at the end.
    pub checkpoint_every: usize,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// What the model is compared with.
    pub reference: Reference,
    /// The alarm on a falling likelihood of the wins; none is silent.
    pub watch: Option<WatchSettings>,
    /// `objective: continue_pretraining`: what a step sees.
    pub pretraining: PretrainingMix,
}

/// What training minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveName {
    /// Win against lose: the method.
    PairDpo,
    /// The likelihood of the wins alone: a control.
    SftWins,
    /// Pretraining goes on, no pairs: a control of the scenes world.
    ContinuePretraining,
}

/// What an imagined image is to the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageCodes {
    /// The codes that the image tokenizer reads from its picture, as released.
    Encoded,
    /// The codes that the model drew, which lie beside its picture; read from pictures without them.
    Drawn,
}

/// How the matrix products of training are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProductsName {
    /// As the model's are (`model.dtype`): `bf16` for that type, where the device multiplies it; what was chosen stands in
    /// config.yaml.
    Auto,
    /// In f32.
    F32,
    /// Of operands rounded to bf16, with sums in f32.
    Bf16,
}

impl ProductsName {
    /// With nothing left open.
    fn resolved(self, model: DTypeName, multiplies_bf16: impl Fn() -> bool) -> Self {
        match self {
            Self::Auto if model == DTypeName::BF16 && multiplies_bf16() => Self::Bf16,
            Self::Auto => Self::F32,
            chosen => chosen,
        }
    }
}

impl From<ProductsName> for Products {
    fn from(name: ProductsName) -> Self {
        match name {
            ProductsName::Auto | ProductsName::F32 => Self::F32,
            ProductsName::Bf16 => Self::Bf16,
        }
    }
}

/// Whether blocks keep their inputs only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Checkpointing {
    /// Where training does not fit a GPU without.
    Auto,
    /// They do.
    On,
    /// They keep what they computed.
    Off,
}

/// [`Checkpointing`] as it stands in YAML.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Chosen(bool),
    Other(serde_yaml_ng::Value),
}

impl Checkpointing {
    /// Itself, or `choice` where it is left open.
    pub fn or(self, choice: Self) -> Self {
        if self == Self::Auto { choice } else { self }
    }
}

impl TryFrom<Written> for Checkpointing {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Chosen(true) => Ok(Self::On),
            Written::Chosen(false) => Ok(Self::Off),
            Written::Other(name) if name == "auto" => Ok(Self::Auto),
            Written::Other(_) => Err("checkpointing is auto, true or false".into()),
        }
    }
}

impl From<Checkpointing> for Written {
    fn from(checkpointing: Checkpointing) -> Self {
        match checkpointing {
            Checkpointing::Auto => Self::Other("auto".into()),
            Checkpointing::On => Self::Chosen(true),
            Checkpointing::Off => Self::Chosen(false),
        }
    }
}

/// Where AdamW's moments lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerState {
    /// On the host where training does not fit a GPU otherwise.
    Auto,
    /// Beside the model.
    Device,
    /// In the computer's memory.
    Host,
}

impl OptimizerState {
    /// Itself, or `choice` where it is left open.
    pub fn or(self, choice: Self) -> Self {
        if self == Self::Auto { choice } else { self }
    }
}

/// What the model is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The model as it stood when this iteration began.
    Iteration,
    /// The model as it stood when the whole run began.
    Run,
}

impl Default for TrainSettings {
    /// The paper's numbers, with a warm-up that fits.
    fn default() -> Self {
        let AdamWSettings { beta1, beta2, eps, weight_decay } = AdamWSettings::default();
        let Masking { mask_schedule, min_masking_rate, mask_contiguous_region_prob } = Masking::default();
        let PairDpoSettings { batch_size, sides, beta, masks_per_pair, prompt_dropout, .. } =
            PairDpoSettings::default();
        Self {
            objective: ObjectiveName::PairDpo,
            sides,
            codes: ImageCodes::Encoded,
            products: ProductsName::Auto,
            checkpointing: Checkpointing::Auto,
            optimizer_state: OptimizerState::Auto,
            beta,
            anchor_und: 0.0,
            anchor_gen: 0.0,
            weight_und: 1.0,
            weight_gen: 1.0,
            masks_per_pair,
            mask_schedule,
            min_masking_rate,
            mask_contiguous_region_prob,
            prompt_dropout,
            learning_rate: 2e-5,
            schedule: ScheduleKind::Cosine,
            warmup_steps: 300,
            steps: 3000,
            batch_size,
            accumulation: 1,
            max_grad_norm: Some(1.0),
            beta1,
            beta2,
            eps,
            weight_decay,
            checkpoint_every: 500,
            keep: 2,
            reference: Reference::Iteration,
            watch: Some(WatchSettings::default()),
            pretraining: PretrainingMix::default(),
        }
    }
}

/// An error about a setting of training under its key here.
pub(super) fn with_our_key(error: hermesflow_train::Error) -> anyhow::Error {
    match error {
        hermesflow_train::Error::Setting { key, problem } => {
            let ours = match key {
                "total_steps" => "steps",
                "lambda_und" => "anchor_und",
                "lambda_gen" => "anchor_gen",
                same => same,
            };
            anyhow::anyhow!("train.{ours}: {problem}")
        }
        other => other.into(),
    }
}

impl TrainSettings {
    /// Names what was left open and does not depend on the model: on the CPU, where one memory holds everything, that is
    /// all; on a GPU what fits is chosen when the model is known ([`crate::models::memory_plan`]).
    pub(super) fn resolve(&mut self, model: &ModelSettings) {
        let rounds = || model.device_name().is_ok_and(DeviceName::multiplies_bf16);
        self.products = self.products.resolved(model.dtype, rounds);
        if !model.names_a_gpu() {
            self.checkpointing = self.checkpointing.or(Checkpointing::Off);
            self.optimizer_state = self.optimizer_state.or(OptimizerState::Device);
        }
    }

    /// Whether blocks keep their inputs only; what is still open is not done.
    pub fn checkpoints(&self) -> bool {
        self.checkpointing == Checkpointing::On
    }

    /// The loop's settings.
    pub fn trainer(&self) -> TrainerSettings {
        TrainerSettings {
            schedule: Schedule {
                kind: self.schedule,
                learning_rate: self.learning_rate,
                warmup_steps: self.warmup_steps,
                total_steps: self.steps,
            },
            optimizer: AdamWSettings {
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                weight_decay: self.weight_decay,
            },
            optimizer_state: match self.optimizer_state {
                OptimizerState::Auto | OptimizerState::Device => StatePlace::Device,
                OptimizerState::Host => StatePlace::Host,
            },
            accumulation: self.accumulation,
            max_grad_norm: self.max_grad_norm,
            watch: self.watch,
            checkpoint_every: self.checkpoint_every,
            keep_checkpoints: self.keep,
        }
    }

    /// The loss's settings.
    pub fn pair_dpo(&self, seed: u64) -> PairDpoSettings {
        PairDpoSettings {
            seed,
            batch_size: self.batch_size,
            sides: self.sides,
            objective: match self.objective {
                ObjectiveName::SftWins => LossKind::SftWins,
                ObjectiveName::PairDpo | ObjectiveName::ContinuePretraining => LossKind::PairDpo,
            },
            beta: self.beta,
            lambda_und: self.anchor_und,
            lambda_gen: self.anchor_gen,
            weight_und: self.weight_und,
            weight_gen: self.weight_gen,
            masks_per_pair: self.masks_per_pair,
            masking: self.masking(),
            prompt_dropout: self.prompt_dropout,
        }
    }

    /// How images are masked.
    pub fn masking(&self) -> Masking {
        Masking {
            mask_schedule: self.mask_schedule,
            min_masking_rate: self.min_masking_rate,
            mask_contiguous_region_prob: self.mask_contiguous_region_prob,
        }
    }
}
