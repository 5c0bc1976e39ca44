//! The judges of texts and images that a configuration names.
//!
//! A judge with weights is fetched and loaded when it is asked something that it has not been asked before; what it
//! said is remembered on disk ([`crate::cache::scores`]), so a stage that runs again loads nothing.

mod remembered;
mod scenes;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hermesflow_models::DType;
use hermesflow_models::device::DeviceName;
use hermesflow_score::neural::{Bert, BertScore, LlamaWriter, SentenceBert, UnifiedQa};
use hermesflow_score::template::TemplateWriter;
use hermesflow_score::{CaptionSimilarity, ChoiceMatcher, Choosing, Lexical, QuestionFilter, QuestionWriter};

use hermesflow_score::choice::equal;
pub use hermesflow_score::choice::{alike, prompt};
pub use scenes::oracle;

use crate::cache::scores::ScoreCache;
use crate::config::{Filter, ImageJudge, JudgeSettings, Matcher, RunConfig, Similarity, Writer};
use crate::digest::{self, digest};
use crate::models::hub::{Hub, Parts};
use crate::progress::Progress;
use crate::run::layout::RunLayout;
use remembered::Remembered;
use scenes::SceneWriter;

/// Where judges come from.
#[derive(Debug, Clone)]
pub struct Judges {
    settings: JudgeSettings,
    /// Opened by a judge with weights, when it is asked.
    device: DeviceName,
    seed: u64,
    /// The folder of what they said; none remembers nothing.
    scores: Option<PathBuf>,
    progress: Progress,
}

impl Judges {
    /// The judges of a run; what they say is kept in its data root.
    ///
    /// # Errors
    /// When the device has no such name.
    pub fn of_run(config: &RunConfig, layout: &RunLayout, progress: &Progress) -> Result<Self> {
        let (settings, device) = (config.judges.clone(), config.model.device_name()?);
        let scores = Some(layout.scores());
        Ok(Self { settings, device, seed: config.seed, scores, progress: progress.clone() })
    }

    /// Judges on the CPU that remember nothing.
    pub fn alone(settings: JudgeSettings, progress: &Progress) -> Self {
        Self { settings, device: DeviceName::Cpu, seed: 0, scores: None, progress: progress.clone() }
    }

    /// Fetches the models of all judges that a run asks, so that none is missed hours later.
    ///
    /// # Errors
    /// What to fetch, if a model is missing.
    pub fn fetch(&self, config: &RunConfig) -> Result<()> {
        self.similarity(config.pair.similarity)?;
        if config.pair.judge == ImageJudge::Itself {
            self.writer(config.ask.writer)?;
            self.filter(config.ask.filter)?;
            self.matcher(config.answer.matcher)?;
        }
        Ok(())
    }

    /// The judge of captions.
    ///
    /// # Errors
    /// What to fetch, if its model is missing.
    pub fn similarity(&self, judge: Similarity) -> Result<Box<dyn CaptionSimilarity>> {
        let JudgeSettings { bert, sbert, bertscore, bertscore_layer, bertscore_baseline, .. } = &self.settings;
        let device = self.device;
        Ok(match judge {
            Similarity::Auto | Similarity::Lexical => Box::new(Lexical),
            Similarity::Bert => {
                self.remembered("bert", bert, "", move |path| Ok(Bert::load(path, &device.open()?)?)).map(Box::new)?
            }
            Similarity::Sbert => self
                .remembered("sbert", sbert, "", move |path| Ok(SentenceBert::load(path, &device.open()?)?))
                .map(Box::new)?,
            Similarity::Bertscore => {
                let named = bertscore.split('@').next().unwrap_or(bertscore);
                let layer = bertscore_layer.or_else(|| BertScore::customary_layer(named));
                let baseline = *bertscore_baseline;
                let load = move |path: &Path| {
                    let judge = BertScore::load(path, layer, &device.open()?)
                        .context("judges.bertscore_layer names the layer where none is customary")?;
                    Ok(judge.rescaled(baseline.unwrap_or(0.0)))
                };
                Box::new(self.remembered("bertscore", bertscore, &format!("{layer:?} {baseline:?}"), load)?)
            }
        })
    }

    /// The judge of replies.
    ///
    /// # Errors
    /// As [`Judges::similarity`].
    pub fn matcher(&self, judge: Matcher) -> Result<Box<dyn ChoiceMatcher>> {
        let device = self.device;
        Ok(match judge {
            Matcher::Auto | Matcher::Lexical => Box::new(Lexical),
            Matcher::Sbert => {
                let load = move |path: &Path| Ok(SentenceBert::load(path, &device.open()?)?);
                Box::new(self.remembered("sbert-choice", &self.settings.sbert, "", load)?)
            }
        })
    }

    /// What tells the judge of replies from others, where it has files: a digest of these, by what they are.
    ///
    /// # Errors
    /// As [`Judges::similarity`].
    pub fn matcher_files(&self, judge: Matcher) -> Result<Option<(String, String)>> {
        if judge != Matcher::Sbert {
            return Ok(None);
        }
        let found = Hub::from_environment()?.model(&self.settings.sbert, Some(Parts::Text), &self.progress)?;
        Ok(Some(("judges.sbert".to_owned(), digest::of_loaded_model(&found)?)))
    }

    /// Who writes questions; nobody, where they are given in a file.
    ///
    /// # Errors
    /// As [`Judges::similarity`].
    pub fn writer(&self, writer: Writer) -> Result<Option<Box<dyn QuestionWriter>>> {
        let (device, beams) = (self.device, self.settings.beams);
        Ok(match writer {
            Writer::Auto | Writer::File => None,
            Writer::Scenes => Some(Box::new(SceneWriter { seed: self.seed })),
            Writer::Template => Some(Box::new(TemplateWriter)),
            Writer::Llama => {
                let load =
                    move |path: &Path| Ok(LlamaWriter::load(path, DType::F32, &device.open()?)?.with_beams(beams));
                Some(Box::new(self.remembered("llama", &self.settings.llama, &beams.to_string(), load)?))
            }
        })
    }

    /// Who keeps questions; nobody, where all are kept.
    ///
    /// # Errors
    /// As [`Judges::similarity`].
    pub fn filter(&self, filter: Filter) -> Result<Option<Box<dyn QuestionFilter>>> {
        let device = self.device;
        Ok(match filter {
            Filter::Auto | Filter::None => None,
            Filter::Unifiedqa => {
                let load = move |path: &Path| Ok(UnifiedQa::load(path, &device.open()?)?);
                Some(Box::new(self.remembered("unifiedqa", &self.settings.unifiedqa, "", load)?))
            }
        })
    }

    /// A judge over the model of this name, with what it said before; `settings` decide what it says, too.
    fn remembered<J>(
        &self,
        judge: &'static str,
        model: &str,
        settings: &str,
        load: impl Fn(&Path) -> Result<J> + 'static,
    ) -> Result<Remembered<J>> {
        let found = Hub::from_environment()?.model(model, Some(Parts::Text), &self.progress)?;
        let cache = match &self.scores {
            None => None,
            Some(folder) => {
                // Another device rounds otherwise.
                let identity = digest([digest::of_loaded_model(&found)?.as_str(), settings, &self.device.to_string()]);
                Some(ScoreCache::open(folder.join(format!("{judge}-{}.jsonl", &identity[..12])))?)
            }
        };
        let (progress, model) = (self.progress.clone(), model.to_owned());
        let load = move || {
            progress.log(format!("{judge}: loading {model}"));
            load(&found).with_context(|| format!("the judge {judge}"))
        };
        Ok(Remembered::new(judge, cache, load))
    }
}

/// A reply to a question with choices, and what would be right.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// What was replied.
    pub reply: &'a str,
    /// The choices.
    pub choices: &'a [String],
    /// The right one.
    pub answer: &'a str,
}

/// The number of the choice that each reply means. One that equals a choice is that choice; the judge is asked of the others.
///
/// # Errors
/// When the judge fails.
pub fn meant(matcher: &dyn ChoiceMatcher, replies: &[Choosing<'_>]) -> Result<Vec<Option<usize>>> {
    let said: Vec<Option<usize>> = replies.iter().map(|one| equal(one.reply, one.choices)).collect();
    let others: Vec<_> = replies.iter().zip(&said).filter_map(|(one, said)| said.is_none().then_some(*one)).collect();
    let judged = if others.is_empty() { Vec::new() } else { matcher.choose(&others)? };
    let mut judged = judged.into_iter();
    Ok(said.into_iter().map(|said| said.or_else(|| judged.next().flatten())).collect())
}

/// Whether each reply means the right choice.
///
/// # Errors
/// When the judge fails.
pub fn right(matcher: &dyn ChoiceMatcher, answered: &[Answered<'_>]) -> Result<Vec<bool>> {
    let replies: Vec<_> = answered.iter().map(|Answered { reply, choices, .. }| Choosing { reply, choices }).collect();
    let meant = meant(matcher, &replies)?;
    let is_right = |(one, meant): (&Answered<'_>, Option<usize>)| meant.is_some_and(|at| one.choices[at] == one.answer);
    Ok(answered.iter().zip(meant).map(is_right).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Means the first choice, whatever is replied.
    struct First;

    impl ChoiceMatcher for First {
        fn choose(&self, replies: &[Choosing<'_>]) -> hermesflow_score::Result<Vec<Option<usize>>> {
            Ok(vec![Some(0); replies.len()])
        }
    }

    #[test]
    fn no_judge_is_asked_about_a_reply_that_is_a_choice() {
        let choices = ["a cat", "the cat", "dog"].map(String::from);
        let answered = |reply, answer| Answered { reply, choices: &choices, answer };
        let all = [
            answered("the cat", "the cat"),
            answered("a bird", "a cat"),
            answered("dog", "a cat"),
            answered("a bird", "dog"),
            answered(" Dog", "dog"),
        ];
        assert_eq!(right(&First, &all).unwrap_or_default(), [true, true, false, false, true]);
    }
}
