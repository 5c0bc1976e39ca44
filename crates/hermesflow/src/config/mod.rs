//! One YAML file = one run: every number in it, resolved and validated once.
//!
//! Keys that a file leaves out have the defaults below, which are those of the paper and its released
//! code; `key=value` arguments override single keys. The resolved configuration is saved as
//! `config.yaml` beside the outputs, and that file is a complete run in itself. Files of the original
//! are read too (`original`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hermesflow_models::{ImagineOptions, MaskSchedule, Sampling};
use hermesflow_scenes::Split;
use serde::{Deserialize, Serialize};

mod bounds;
mod expect;
mod judges;
mod model;
mod original;
pub mod overrides;
mod presets;
mod sources;
mod train;
pub mod yaml;

pub use expect::Expect;
pub use judges::{AskSettings, Filter, JudgeSettings, Matcher, Similarity, Writer};
pub use model::{CLIP, DTypeName, EMBEDDED, MAGVIT, ModelSettings, PHI};
pub use presets::{PRESETS, preset, read};
pub use sources::Sources;
pub use train::{Checkpointing, ImageCodes, ObjectiveName, OptimizerState, Reference, TrainSettings};

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The seed behind every random number: captions, images, training.
    pub seed: u64,
    /// How often the loop goes round.
    pub iterations: usize,
    /// The run folder: the resolved configuration, the training folders, the report.
    pub output: PathBuf,
    /// Where the records are.
    pub data: DataSettings,
    /// The model that the run begins with.
    pub model: ModelSettings,
    /// How images are captioned.
    pub caption: CaptionSettings,
    /// How captions are imagined.
    pub imagine: ImagineSettings,
    /// Where the questions come from.
    pub ask: AskSettings,
    /// The judges' models.
    pub judges: JudgeSettings,
    /// How questions are answered.
    pub answer: AnswerSettings,
    /// How pairs are chosen.
    pub pair: PairSettings,
    /// How the model is trained on them.
    pub train: TrainSettings,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            iterations: 3,
            output: "runs/journeydb".into(),
            data: DataSettings::default(),
            model: ModelSettings::default(),
            caption: CaptionSettings::default(),
            imagine: ImagineSettings::default(),
            ask: AskSettings::default(),
            judges: JudgeSettings::default(),
            answer: AnswerSettings::default(),
            pair: PairSettings::default(),
            train: TrainSettings::default(),
        }
    }
}

/// Where the records are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// The folder that holds `initial_data.json`, and everything that curation makes.
    pub root: PathBuf,
    /// Make the records from the scenes world, where `initial_data.json` does not exist yet.
    pub scenes: Option<ScenesSettings>,
    /// Every iteration takes its own records (the next block of the scenes stream, or
    /// `initial_data_iter{n}.json`); otherwise the first ones serve all iterations.
    pub fresh: bool,
    /// Records may name images outside `root`, by an absolute path or by `..`.
    pub allow_outside: bool,
    /// Records that are worked on as one batch. Part of the result: other batches round differently.
    pub chunk: usize,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self { root: "datasets/journeydb".into(), scenes: None, fresh: false, allow_outside: false, chunk: 8 }
    }
}

/// Records from the scenes world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenesSettings {
    /// How many, per iteration.
    pub records: usize,
    /// Which combinations they are drawn from.
    #[serde(default = "train_split")]
    pub split: Split,
}

fn train_split() -> Split {
    Split::Train
}

/// How images are captioned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptionSettings {
    /// What the model is asked; training uses the same words.
    pub question: String,
    /// One caption is sampled under each of these.
    pub candidates: Vec<SamplingSettings>,
    /// A caption ends after this many tokens.
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

/// How the tokens of one candidate are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingSettings {
    /// Only the likeliest `top_k` tokens; 1 is greedy, 0 is all.
    pub top_k: usize,
    /// Logits are divided by it.
    pub temperature: f64,
}

impl From<SamplingSettings> for Sampling {
    fn from(settings: SamplingSettings) -> Self {
        Self { top_k: settings.top_k, temperature: settings.temperature }
    }
}

/// How captions are imagined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagineSettings {
    /// Images per caption.
    pub images: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance g in `(1+g)·cond − g·uncond`; 0 is none.
    pub guidance: f64,
    /// The noise on the confidence, before it decays.
    pub temperature: f64,
    /// How many tokens stay masked after each step: cosine, linear, pow2 (any exponent) or sigmoid.
    pub schedule: MaskSchedule,
}

impl Default for ImagineSettings {
    fn default() -> Self {
        let ImagineOptions { steps, guidance, temperature, schedule } = ImagineOptions::default();
        Self { images: 16, steps, guidance, temperature, schedule }
    }
}

impl From<ImagineSettings> for ImagineOptions {
    fn from(settings: ImagineSettings) -> Self {
        let ImagineSettings { steps, guidance, temperature, schedule, images: _ } = settings;
        Self { steps, guidance, temperature, schedule }
    }
}

/// How questions are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnswerSettings {
    /// How a free reply is matched to a choice.
    pub matcher: Matcher,
    /// What a right answer counts.
    pub score: AnswerScore,
    /// A reply ends after this many tokens.
    pub max_new_tokens: usize,
}

impl Default for AnswerSettings {
    fn default() -> Self {
        Self { matcher: Matcher::Auto, score: AnswerScore::Accuracy, max_new_tokens: 100 }
    }
}

/// What a right answer counts in the score of an image; a wrong one counts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerScore {
    /// One: the score is the share of right answers, as in the paper.
    Accuracy,
    /// The probability that the model gave it: of two images that are answered rightly, the clearer one is better.
    Confidence,
}

/// How pairs are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PairSettings {
    /// How near a caption is to the true one.
    pub similarity: Similarity,
    /// The best image of a record must answer more than this share of its questions.
    pub min_accuracy: f64,
    /// Who judges the images.
    pub judge: ImageJudge,
}

/// Who judges the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageJudge {
    /// The model itself, by its answers: the method.
    #[serde(rename = "self")]
    Itself,
    /// The scenes world's oracle, from the pixels: a control.
    Oracle,
}

impl Default for PairSettings {
    fn default() -> Self {
        Self { similarity: Similarity::Auto, min_accuracy: 0.6, judge: ImageJudge::Itself }
    }
}

/// The keys whose value on the command line is a text or a path and is not read as YAML.
pub fn texts() -> Vec<&'static str> {
    TEXTS.into_iter().chain(judges::model_keys().into_iter().map(|key| key.name)).collect()
}

/// Those of [`texts`] that do not name a judge's model.
const TEXTS: [&str; 9] = [
    "output",
    "data.root",
    "model.showo",
    "model.vq",
    "model.tokenizer",
    "model.clip",
    "model.device",
    "caption.question",
    "ask.file",
];

impl RunConfig {
    /// Reads a YAML file, ours or the original's, or one of those inside this program by its name; applies `key=value`
    /// overrides and validates the result.
    ///
    /// What of an original's file is not followed is said on stderr. The file may be given as the original's scripts
    /// take it, `config=FILE`.
    ///
    /// # Errors
    /// Names the key, what is expected, and the line of the file or the argument that it came from.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let path = match path.to_str().and_then(|argument| argument.strip_prefix("config=")) {
            Some(named) if !path.exists() => Path::new(named),
            _ => path,
        };
        let text = presets::read(path)?;
        let named = path.display().to_string();
        let (config, warnings) = Self::explained(Some(named), &text, overrides)?;
        for warning in warnings {
            note!("{}", original::wrapped(&format!("WARNING: {}: {warning}", path.display())));
        }
        Ok(config)
    }

    /// As [`RunConfig::load`], from text.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn parse(yaml: &str, overrides: &[String]) -> Result<Self> {
        Ok(Self::explained(None, yaml, overrides)?.0)
    }

    fn explained(file: Option<String>, text: &str, overrides: &[String]) -> Result<(Self, Vec<String>)> {
        Self::read(text, overrides).map_err(|error| {
            let mut defaults = serde_yaml_ng::to_value(Self::default()).unwrap_or_default();
            // A section that is not there unless it is asked for.
            let scenes = ScenesSettings { records: 1, split: train_split() };
            defaults["data"]["scenes"] = serde_yaml_ng::to_value(scenes).unwrap_or_default();
            Sources { file, text, overrides, defaults: &defaults }.explain(&error)
        })
    }

    /// The configuration, and what its user must be told.
    fn read(yaml: &str, overrides: &[String]) -> Result<(Self, Vec<String>)> {
        let mut tree = overrides::tree(yaml)?;
        let mut warnings = Vec::new();
        if original::is_original(&tree) {
            (tree, warnings) = original::translate(tree, overrides)?;
        } else {
            for argument in overrides {
                overrides::apply(&mut tree, argument, &texts())?;
            }
        }
        let mut config: Self = overrides::read(&tree)?;
        config.resolve_judges();
        config.model.resolve();
        config.train.resolve(&config.model);
        config.validate()?;
        Ok((config, warnings))
    }

    /// Checks the numbers against each other.
    ///
    /// # Errors
    /// Names the key and what is expected.
    pub fn validate(&self) -> Result<()> {
        ensure!(self.iterations > 0, "iterations: must be at least 1");
        ensure!(self.data.chunk > 0, "data.chunk: must be at least 1");
        if let Some(scenes) = self.data.scenes {
            ensure!(scenes.records > 0, "data.scenes.records: must be at least 1");
        }
        self.model.validate()?;
        ensure!(self.caption.candidates.len() >= 2, "caption.candidates: a pair needs at least 2");
        for (number, candidate) in self.caption.candidates.iter().enumerate() {
            let temperature = candidate.temperature;
            let good = temperature.is_finite() && temperature > 0.0;
            ensure!(good, "caption.candidates[{number}].temperature: {temperature} is not above 0");
        }
        ensure!(self.caption.max_new_tokens > 0, "caption.max_new_tokens: must be at least 1");
        ensure!(self.imagine.images >= 2, "imagine.images: a pair needs at least 2");
        ensure!(self.imagine.steps > 0, "imagine.steps: must be at least 1");
        for (key, value) in [("guidance", self.imagine.guidance), ("temperature", self.imagine.temperature)] {
            ensure!(value.is_finite() && value >= 0.0, "imagine.{key}: {value} is not 0 or more");
        }
        ensure!(self.answer.max_new_tokens > 0, "answer.max_new_tokens: must be at least 1");
        let least = self.pair.min_accuracy;
        ensure!((0.0..=1.0).contains(&least), "pair.min_accuracy: {least} is not between 0 and 1");
        if self.ask.writer == Writer::File {
            ensure!(self.ask.file.is_some(), "ask.file: `ask.writer: file` needs the questions' file here");
        }
        self.judges.validate()?;
        bounds::check(self)?;
        let named = |error| train::with_our_key(error);
        self.train.trainer().validate().map_err(named)?;
        self.train.pair_dpo(self.seed).validate().map_err(named)
    }

    /// Names the judges that were left open: those inside this program for the embedded model, the original's for all
    /// others.
    fn resolve_judges(&mut self) {
        let embedded = self.model.showo == EMBEDDED;
        self.pair.similarity = self.pair.similarity.resolved(embedded);
        self.answer.matcher = self.answer.matcher.resolved(embedded);
        self.ask.writer = self.ask.writer.resolved(embedded);
        self.ask.filter = self.ask.filter.resolved(self.ask.writer);
    }

    /// The resolved configuration as YAML.
    ///
    /// # Errors
    /// Never for a configuration that was read.
    pub fn to_yaml(&self) -> Result<String> {
        serde_yaml_ng::to_string(self).context("cannot write the configuration as YAML")
    }
}

#[cfg(test)]
mod tests;
