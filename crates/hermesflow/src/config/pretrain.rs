//! The configuration of a pretraining: how the embedded model of the scenes world is made from nothing.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use hermesflow_models::showo::{MagvitConfig, PhiConfig};
use hermesflow_train::{AdamWSettings, Error, Schedule, ScheduleKind, TrainerSettings};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::BackboneName;
use super::products::ProductsName;

/// Everything that decides a pretraining.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "HermesFlow pretraining")]
pub struct PretrainConfig {
    /// Seed of every random number: weights, scenes, masks.
    pub seed: u64,
    /// Folder of the results: the tokenizers, the model, checkpoints.
    pub output: PathBuf,
    /// The text tokenizer.
    pub tokenizer: TokenizerSettings,
    /// The image tokenizer.
    pub vq: VqSettings,
    /// The base model.
    pub base: BaseSettings,
    /// Optimizer steps between two checkpoints of any stage; 0 writes one at the end only.
    ///
    /// Unit: optimizer steps.
    #[schemars(range(max = 1_000_000_000))]
    pub checkpoint_every: usize,
}

/// How the text tokenizer is trained.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizerSettings {
    /// Tokens of the vocabulary.
    ///
    /// Unit: tokens.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub vocab_size: usize,
    /// Lines of text about scenes that the tokenizer is trained on.
    ///
    /// Unit: lines.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub lines: usize,
}

/// How the image tokenizer is trained.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VqSettings {
    /// Sizes of the image tokenizer, MAGVIT-v2; the keys are those of its `config.json`.
    pub model: MagvitConfig,
    /// Weight of the commitment loss, which pulls the encoder's outputs to ±1.
    #[schemars(range(min = 0.0))]
    pub commitment: f64,
    /// Weight of the entropy loss, which makes the bits of codes equally likely.
    #[schemars(range(min = 0.0))]
    pub entropy: f64,
    /// Weight that pixels unlike the background have in the reconstruction loss beyond that of the background.
    #[schemars(range(min = 0.0))]
    pub salience: f64,
    /// Steps without a quantizer, and again as many over which it is blended in.
    ///
    /// Unit: optimizer steps.
    #[schemars(range(max = 1_000_000_000))]
    pub harden_steps: usize,
    /// Pictures per step.
    ///
    /// Unit: pictures.
    #[schemars(range(min = 1, max = 10_000))]
    pub batch_size: usize,
    /// Optimizer steps of the whole training.
    ///
    /// Unit: optimizer steps.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub steps: usize,
    /// Peak learning rate; half a cosine wave follows.
    #[schemars(range(min = 0.0))]
    pub learning_rate: f64,
    /// Optimizer steps over which the learning rate rises from 0 to its peak.
    ///
    /// Unit: optimizer steps.
    #[schemars(range(max = 1_000_000_000))]
    pub warmup_steps: usize,
    /// Decoupled weight decay of AdamW, on matrices only.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight_decay: f64,
    /// Largest global norm of the gradient; a longer one is scaled down to it.
    #[schemars(range(min = 0.0))]
    pub max_grad_norm: f64,
}

/// How the base model is trained.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BaseSettings {
    /// Kind of the model; `auto` is that of the embedded one.
    ///
    /// Default: auto.
    /// Source: this program.
    #[serde(default = "auto", skip_serializing_if = "is_auto")]
    pub backbone: BackboneName,
    /// Sizes of the decoder; the keys are those of Phi's `config.json`. A LLaMA has the width, the width of feed-forward layers,
    /// the blocks, the heads and `rope_theta`; the others are refused where they say what it does not do.
    pub model: PhiConfig,
    /// Sizes of the vision tower of a model that reads images by features.
    ///
    /// Source: this program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eyes: Option<EyesSettings>,
    /// Longest text before an image.
    ///
    /// Unit: tokens.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_text_len: usize,
    /// Question under which captions are trained.
    pub caption_question: String,
    /// Precision of the matrix products of training. Everything else is in f32 in any case.
    ///
    /// Default: f32.
    /// Source: this program.
    #[serde(default = "in_f32")]
    pub products: ProductsName,
    /// Stages of the training, one after the other.
    pub stages: Vec<StageSettings>,
}

/// Sizes of a vision tower, which has one patch for each image token.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EyesSettings {
    /// Width of the residual stream.
    ///
    /// Unit: numbers.
    #[schemars(range(min = 1, max = 100_000))]
    pub width: usize,
    /// Blocks.
    ///
    /// Unit: blocks.
    #[schemars(range(min = 1, max = 1000))]
    pub layers: usize,
    /// Attention heads.
    ///
    /// Unit: heads.
    #[schemars(range(min = 1, max = 1000))]
    pub heads: usize,
}

/// The default of `base.backbone`.
fn auto() -> BackboneName {
    BackboneName::Auto
}

fn is_auto(name: &BackboneName) -> bool {
    *name == BackboneName::Auto
}

/// The default of `base.products`.
fn in_f32() -> ProductsName {
    ProductsName::F32
}

/// One stage of the base model's training: it begins with the weights of the stage before and a fresh optimizer.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageSettings {
    /// Data of a step.
    pub mix: PretrainingMix,
    /// Optimizer steps of the stage.
    ///
    /// Unit: optimizer steps.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub steps: usize,
    /// Peak learning rate of the stage; half a cosine wave follows.
    #[schemars(range(min = 0.0))]
    pub learning_rate: f64,
    /// Optimizer steps over which the learning rate rises from 0 to its peak.
    ///
    /// Unit: optimizer steps.
    #[schemars(range(max = 1_000_000_000))]
    pub warmup_steps: usize,
    /// Decoupled weight decay of AdamW, on matrices only.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight_decay: f64,
    /// Largest global norm of the gradient; a longer one is scaled down to it.
    #[schemars(range(min = 0.0))]
    pub max_grad_norm: f64,
}

/// Data of one step of pretraining the base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PretrainingMix {
    /// Scenes per micro batch whose captions and answers are trained.
    ///
    /// Unit: scenes.
    /// Default: 12.
    /// Source: this program.
    #[schemars(range(max = 10_000))]
    pub understanding: usize,
    /// Questions about each of these scenes.
    ///
    /// Unit: questions.
    /// Default: 2.
    /// Source: this program.
    #[schemars(range(max = 10_000))]
    pub questions: usize,
    /// Whether the questions include how many single shapes and how many shapes in all there are, as those about generated
    /// images do.
    ///
    /// Default: false.
    /// Source: this program.
    pub count_all: bool,
    /// Scenes per micro batch whose images are trained.
    ///
    /// Unit: scenes.
    /// Default: 24.
    /// Source: this program.
    #[schemars(range(max = 10_000))]
    pub generation: usize,
    /// Weight of the loss of captions and answers; that of images has weight 1.
    ///
    /// Default: 0.5.
    /// Source: this program.
    #[schemars(range(min = 0.0))]
    pub understanding_weight: f64,
    /// Probability of dropping the text of an image, so that classifier-free guidance has an unconditional model.
    ///
    /// Default: 0.1.
    /// Source: Show-o, `training.cond_dropout_prob`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub prompt_dropout: f64,
    /// Probability that the text of an image is careless alt text, often wrong, as on the web. Texts of captions and answers
    /// are always right.
    ///
    /// Default: 0.0.
    /// Source: this program.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub alt_text: f64,
    /// Probability that a caption to be learned describes one group of shapes only.
    ///
    /// Default: 0.0.
    /// Source: this program.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub short_captions: f64,
}

impl Default for PretrainingMix {
    fn default() -> Self {
        Self {
            understanding: 12,
            questions: 2,
            count_all: false,
            generation: 24,
            understanding_weight: 0.5,
            prompt_dropout: 0.1,
            alt_text: 0.0,
            short_captions: 0.0,
        }
    }
}

impl PretrainConfig {
    /// Checks what the ranges of single keys do not say.
    ///
    /// # Errors
    /// Names the key, its value and what is expected.
    pub(super) fn validate(&self) -> Result<()> {
        ensure!(!self.base.stages.is_empty(), "base.stages: 0 stages train nothing; give at least one");
        let reads_features = self.base.backbone == BackboneName::JanusPro;
        ensure!(
            self.base.eyes.is_some() == reads_features,
            "base.eyes: {}",
            if reads_features {
                "missing; this kind of model reads images by features"
            } else {
                "this kind of model has none"
            }
        );
        if reads_features {
            check_llama(&self.base.model)?;
        }
        check("vq", self.vq.trainer(self.checkpoint_every))?;
        for (number, stage) in self.base.stages.iter().enumerate() {
            check(&format!("base.stages[{number}]"), stage.trainer(self.checkpoint_every))?;
        }
        Ok(())
    }
}

/// Refuses sizes of a decoder that a LLaMA does not follow.
fn check_llama(model: &PhiConfig) -> Result<()> {
    let usual = PhiConfig::default();
    let follows = [
        // It rotates whole heads, which may be said.
        ("partial_rotary_factor", [usual.partial_rotary_factor, 1.0].contains(&model.partial_rotary_factor)),
        ("layer_norm_eps", model.layer_norm_eps == usual.layer_norm_eps),
        ("hidden_act", model.hidden_act == usual.hidden_act),
        ("num_key_value_heads", model.num_key_value_heads.is_none()),
        ("max_position_embeddings", model.max_position_embeddings == usual.max_position_embeddings),
    ];
    match follows.into_iter().find(|(_, follows)| !follows) {
        Some((key, _)) => bail!("base.model.{key}: has no meaning for base.backbone=janus-pro; remove the key"),
        None => Ok(()),
    }
}

/// Checks the settings of a training loop, which stand flat in a section of the file.
fn check(section: &str, settings: TrainerSettings) -> Result<()> {
    settings.validate().map_err(|error| match error {
        Error::Setting { key, problem } => {
            let name = key.rsplit('.').next().unwrap_or(key);
            anyhow::anyhow!("{section}.{name}: {problem}")
        }
        other => other.into(),
    })
}

/// The settings of the training loop of a pretraining.
fn trainer(schedule: Schedule, weight_decay: f64, max_grad_norm: f64, checkpoint_every: usize) -> TrainerSettings {
    TrainerSettings {
        optimizer: AdamWSettings { weight_decay, beta2: 0.98, ..AdamWSettings::default() },
        max_grad_norm: Some(max_grad_norm),
        watch: None,
        checkpoint_every,
        ..TrainerSettings::new(schedule)
    }
}

impl VqSettings {
    /// The settings of the training loop.
    pub fn trainer(&self, checkpoint_every: usize) -> TrainerSettings {
        let Self { learning_rate, warmup_steps, steps, .. } = *self;
        let schedule = Schedule { kind: ScheduleKind::Cosine, learning_rate, warmup_steps, steps };
        trainer(schedule, self.weight_decay, self.max_grad_norm, checkpoint_every)
    }
}

impl StageSettings {
    /// The settings of the training loop.
    pub fn trainer(&self, checkpoint_every: usize) -> TrainerSettings {
        let Self { learning_rate, warmup_steps, steps, .. } = *self;
        let schedule = Schedule { kind: ScheduleKind::Cosine, learning_rate, warmup_steps, steps };
        trainer(schedule, self.weight_decay, self.max_grad_norm, checkpoint_every)
    }
}
