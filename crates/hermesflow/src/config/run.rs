//! The configuration of a run: its sections, and what they must agree on.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hermesflow_train::Sides;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::curation::{AnswerScore, AnswerSettings, CaptionSettings, ImageJudge, ImagineSettings, PairSettings};
use super::data::DataSettings;
use super::judges::{AskSettings, JudgeSettings, ModelKey, Writer, each_once};
use super::meaning;
use super::model::{BackboneName, DTypeName, ModelSettings};
use super::products::ProductsName;
use super::train::TrainSettings;

/// Everything that decides a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "HermesFlow run")]
pub struct RunConfig {
    /// Seed of every random number: captions, images, order of pairs, masks.
    ///
    /// Default: 0.
    /// Source: released code, `training.seed`.
    pub seed: u64,
    /// Iterations of the loop; each one makes new pairs with the model that the one before trained.
    ///
    /// Unit: iterations.
    /// Default: 3.
    /// Source: paper.
    #[schemars(range(min = 1, max = 10_000))]
    pub iterations: usize,
    /// Run folder: receives the resolved configuration, the training folders and the report.
    ///
    /// Default: runs/journeydb.
    /// Source: released code, `experiment.output_dir`.
    pub output: PathBuf,
    /// Where the records are, and how many are worked on at a time.
    pub data: DataSettings,
    /// The model that the run begins with.
    pub model: ModelSettings,
    /// How images are captioned.
    pub caption: CaptionSettings,
    /// How images are generated from captions.
    pub imagine: ImagineSettings,
    /// Where the questions about images come from.
    pub ask: AskSettings,
    /// The models of the judges.
    pub judges: JudgeSettings,
    /// How the model answers questions about its images.
    pub answer: AnswerSettings,
    /// How pairs are chosen from captions and images.
    pub pair: PairSettings,
    /// How the model is trained on its pairs.
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

impl RunConfig {
    /// Chooses the backbone where it was left open; `found` is the kind of the checkpoint, where it is known.
    pub(super) fn resolve_backbone(&mut self, found: Option<BackboneName>) {
        self.model.resolve_backbone(found);
    }

    /// Chooses what was left open and can be chosen without opening the model or a device.
    pub(super) fn resolve(&mut self) {
        let embedded = self.model.is_embedded();
        self.pair.similarity = self.pair.similarity.resolved(embedded);
        self.answer.matcher = self.answer.matcher.resolved(embedded);
        self.ask.writer = self.ask.writer.resolved(embedded);
        self.ask.filter = self.ask.filter.resolved(self.ask.writer);
        self.model.resolve();
        self.train.resolve(&self.model, self.imagine.guidance);
    }

    /// Checks what the ranges of single keys do not say.
    ///
    /// # Errors
    /// Names the key, its value and what is expected.
    pub(super) fn validate(&self) -> Result<()> {
        self.model.validate()?;
        for (number, candidate) in self.caption.candidates.iter().enumerate() {
            let temperature = candidate.temperature;
            ensure!(temperature > 0.0, "caption.candidates[{number}].temperature: {temperature} is not above 0");
        }
        if self.ask.writer == Writer::File {
            ensure!(self.ask.file.is_some(), "ask.file: `ask.writer: file` needs the questions' file here");
        }
        self.judges.validate()?;
        self.train.validate()
    }

    /// What must be known of a training on images that are drawn under guidance and scored without it.
    pub fn trains_other_than_it_draws(&self) -> Option<String> {
        let (drawn, train) = (self.imagine.guidance, &self.train);
        let images = train.sides != Sides::Und && train.objective.has_pairs();
        (images && drawn != 0.0 && train.guidance.number() == 0.0).then(|| {
            format!(
                "images are drawn under guidance {drawn} (imagine.guidance) and trained without it (train.guidance: 0, as in \
                 the paper): that sharpens the model as guidance does, and under guidance it may draw worse pictures than \
                 before; train.guidance=auto trains what draws"
            )
        })
    }

    /// Whether anything is multiplied in bf16.
    pub fn multiplies_bf16(&self) -> bool {
        self.model.dtype == DTypeName::BF16 || self.train.products == ProductsName::Bf16
    }

    /// The resolved configuration as YAML, without the keys that have no meaning for its backbone.
    ///
    /// # Errors
    /// Never for a configuration that was read.
    pub fn to_yaml(&self) -> Result<String> {
        let write = || -> Result<String> {
            let mut tree = serde_yaml_ng::to_value(self)?;
            meaning::strip(&mut tree, self.model.backbone);
            Ok(serde_yaml_ng::to_string(&tree)?)
        };
        write().context("cannot write the configuration as YAML")
    }

    /// The keys of the models of the judges that this run asks, each once.
    pub fn judge_models(&self) -> Vec<ModelKey> {
        let matcher = self.answer.matcher.model().filter(|_| self.answer.score != AnswerScore::Probability);
        let of_images = [matcher, self.ask.writer.model(), self.ask.filter.model()];
        let of_images = of_images.into_iter().filter(|_| self.pair.judge == ImageJudge::Itself);
        each_once([self.pair.similarity.model()].into_iter().chain(of_images))
    }
}
