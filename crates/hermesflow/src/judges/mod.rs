//! The judges of texts and images that a configuration names: where each of them is loaded.
//!
//! A judge with weights is fetched and loaded when it is asked something new. What it answered is stored on disk
//! ([`crate::cache::scores`]), so a stage that runs again loads nothing.
//!
//! To add a judge: its code in `hermesflow-score`; its name, and for one with weights its key and default model, in
//! [`crate::config`]'s `judges.rs`; and its line in one of the functions here.

mod probability;
mod remembered;
mod replies;
mod scenes;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hermesflow_models::device::DeviceName;
use hermesflow_models::{DType, Device};
use hermesflow_score::neural::{Bert, BertScore, LlamaWriter, SentenceBert, UnifiedQa};
use hermesflow_score::template::TemplateWriter;
use hermesflow_score::{CaptionSimilarity, ChoiceMatcher, Lexical, QuestionFilter, QuestionWriter};

pub use hermesflow_score::choice::{alike, prompt};
pub use probability::{Posed, probabilities};
pub use replies::{Answered, meant, right};
pub use scenes::oracle;

use crate::cache::scores::{self, ScoreCache};
use crate::config::{AnswerScore, Filter, ImageJudge, JudgeSettings, Matcher, RunConfig, Similarity, Writer};
use crate::digest::{self, digest};
use crate::models::hub::{Hub, Parts};
use crate::progress::Progress;
use crate::run::context::RunContext;
use crate::run::sharing::Sharing;
use remembered::Remembered;
use scenes::SceneWriter;

/// Opens the judges of a run.
#[derive(Debug, Clone)]
pub struct Judges {
    settings: JudgeSettings,
    /// The device of judges with weights, which is opened when one of them is loaded.
    device: DeviceName,
    seed: u64,
    /// The folder of stored scores; `None` stores nothing.
    scores: Option<PathBuf>,
    /// Who asks them together.
    sharing: Sharing,
    progress: Progress,
}

impl Judges {
    /// The judges of a run, whose scores are stored in its data root.
    ///
    /// # Errors
    /// If `model.device` names no device.
    pub fn of_run(run: &RunContext) -> Result<Self> {
        let (settings, device) = (run.config.judges.clone(), run.config.model.device_name()?);
        let scores = Some(run.layout.scores());
        let (sharing, progress) = (run.sharing.clone(), run.progress.clone());
        Ok(Self { settings, device, seed: run.config.seed, scores, sharing, progress })
    }

    /// Judges on the CPU that store nothing.
    pub fn alone(settings: JudgeSettings, progress: &Progress) -> Self {
        let sharing = Sharing::default();
        Self { settings, device: DeviceName::Cpu, seed: 0, scores: None, sharing, progress: progress.clone() }
    }

    /// Puts in order what several processes stored, at the end of a stage; no judge may be asked anything new afterwards.
    ///
    /// # Errors
    /// When a file cannot be written, or another process is gone.
    pub fn settle(&self) -> Result<()> {
        self.scores.as_ref().map_or(Ok(()), |folder| scores::settle(folder, &self.sharing))
    }

    /// Fetches the models of all judges that a run asks, so that a missing one is noticed before hours of work.
    ///
    /// # Errors
    /// If a model is missing; says how to get it.
    pub fn fetch(&self, config: &RunConfig) -> Result<()> {
        self.similarity(config.pair.similarity)?;
        if config.pair.judge == ImageJudge::Itself {
            self.writer(config.ask.writer)?;
            self.filter(config.ask.filter)?;
            if config.answer.score != AnswerScore::Probability {
                self.matcher(config.answer.matcher)?;
            }
        }
        Ok(())
    }

    /// The judge that scores captions against the true one.
    ///
    /// # Errors
    /// If its model is missing; says how to get it.
    pub fn similarity(&self, judge: Similarity) -> Result<Box<dyn CaptionSimilarity>> {
        let JudgeSettings { bert, sbert, bertscore, bertscore_layer, bertscore_baseline, .. } = &self.settings;
        Ok(match judge {
            Similarity::Auto | Similarity::Lexical => Box::new(Lexical),
            Similarity::Bert => {
                Box::new(self.with_weights("bert", bert, "", |files, device| Ok(Bert::load(files, device)?))?)
            }
            Similarity::Sbert => {
                Box::new(self.with_weights("sbert", sbert, "", |files, device| Ok(SentenceBert::load(files, device)?))?)
            }
            Similarity::Bertscore => {
                let named = bertscore.split('@').next().unwrap_or(bertscore);
                let layer = bertscore_layer.or_else(|| BertScore::customary_layer(named));
                let baseline = *bertscore_baseline;
                let load = move |files: &Path, device: &Device| {
                    let judge = BertScore::load(files, layer, device).context(
                        "judges.bertscore_layer: set it for a model that BERTScore's authors chose none for",
                    )?;
                    Ok(judge.rescaled(baseline.unwrap_or(0.0)))
                };
                Box::new(self.with_weights("bertscore", bertscore, &format!("{layer:?} {baseline:?}"), load)?)
            }
        })
    }

    /// The judge that finds the choice which a reply means.
    ///
    /// # Errors
    /// As [`Judges::similarity`].
    pub fn matcher(&self, judge: Matcher) -> Result<Box<dyn ChoiceMatcher>> {
        Ok(match judge {
            Matcher::Auto | Matcher::Lexical => Box::new(Lexical),
            Matcher::Sbert => {
                let load = |files: &Path, device: &Device| Ok(SentenceBert::load(files, device)?);
                Box::new(self.with_weights("sbert-choice", &self.settings.sbert, "", load)?)
            }
        })
    }

    /// The key of a matcher's model and a digest of its files; `None` for a matcher without weights.
    ///
    /// # Errors
    /// As [`Judges::similarity`].
    pub fn matcher_files(&self, judge: Matcher) -> Result<Option<(String, String)>> {
        let Some(key) = judge.model() else { return Ok(None) };
        let found = Hub::from_environment()?.model((key.get)(&self.settings), Some(Parts::Text), &self.progress)?;
        Ok(Some((key.name.to_owned(), digest::of_loaded_model(&found)?)))
    }

    /// The writer of questions; `None` where a file holds them.
    ///
    /// # Errors
    /// As [`Judges::similarity`].
    pub fn writer(&self, writer: Writer) -> Result<Option<Box<dyn QuestionWriter>>> {
        Ok(match writer {
            Writer::Auto | Writer::File => None,
            Writer::Scenes => Some(Box::new(SceneWriter { seed: self.seed })),
            Writer::Template => Some(Box::new(TemplateWriter)),
            Writer::Llama => {
                let beams = self.settings.beams;
                let load = move |files: &Path, device: &Device| {
                    Ok(LlamaWriter::load(files, DType::F32, device)?.with_beams(beams))
                };
                Some(Box::new(self.with_weights("llama", &self.settings.llama, &beams.to_string(), load)?))
            }
        })
    }

    /// The filter of questions; `None` where all are kept.
    ///
    /// # Errors
    /// As [`Judges::similarity`].
    pub fn filter(&self, filter: Filter) -> Result<Option<Box<dyn QuestionFilter>>> {
        Ok(match filter {
            Filter::Auto | Filter::None => None,
            Filter::Unifiedqa => {
                let load = |files: &Path, device: &Device| Ok(UnifiedQa::load(files, device)?);
                Some(Box::new(self.with_weights("unifiedqa", &self.settings.unifiedqa, "", load)?))
            }
        })
    }

    /// A judge with the weights of `model`, and the scores that it gave before. `judge` names its file of scores and
    /// appears in messages; `settings` are those that decide its scores beside the model.
    fn with_weights<J>(
        &self,
        judge: &'static str,
        model: &str,
        settings: &str,
        load: impl Fn(&Path, &Device) -> Result<J> + 'static,
    ) -> Result<Remembered<J>> {
        let found = Hub::from_environment()?.model(model, Some(Parts::Text), &self.progress)?;
        let cache = match &self.scores {
            None => None,
            Some(folder) => {
                // The device counts, because another one rounds differently.
                let identity = digest([digest::of_loaded_model(&found)?.as_str(), settings, &self.device.to_string()]);
                Some(ScoreCache::open(&folder.join(format!("{judge}-{}.jsonl", &identity[..12])), &self.sharing)?)
            }
        };
        let (device, progress, model) = (self.device, self.progress.clone(), model.to_owned());
        let load = move || {
            progress.log(format!("{judge}: loading {model}"));
            load(&found, &device.open()?).with_context(|| format!("the judge {judge}"))
        };
        Ok(Remembered::new(judge, cache, load))
    }
}
