//! What a model is worth on the scenes world: understanding, generation, and the gap between them.
//!
//! Prompt `i` and all draws for it depend on (split, seed, i) alone, so that two models are compared on
//! the same prompts with the same draws.
//!
//! - **understanding**: the mean of (a) the share of questions about a real picture answered rightly and
//!   (b) the share of right statements in the greedy caption of it;
//! - **generation**: the share of the prompt's facts that the oracle finds in the imagined picture, the number of every
//!   thing and that nothing else is there among them;
//! - **generation by itself**: the share of questions about the imagined picture that the model answers
//!   as the prompt says;
//! - **gap**: understanding − generation.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use hermesflow_models::{ImagineJob, ImagineOptions, Reply, ReplyRequest, Sampling, UnifiedModel};
use hermesflow_records::derive_seed;
use hermesflow_scenes::oracle::{caption_facts_score, judge};
use hermesflow_scenes::{
    Category, QuestionKind, Scene, SceneQuestion, Split, parse_caption, picture_questions, questions,
};
use hermesflow_score::ChoiceMatcher;
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::statistics::Mean;
use crate::config::RunConfig;
use crate::judges::{self, Answered, Judges};
use crate::made::Origin;
use crate::models;
use crate::progress::Progress;

/// Prompts that are worked on as one batch; part of the result, as other batches round differently.
pub const BLOCK: usize = 32;
/// Questions about each real picture.
const QUESTIONS: usize = 5;

/// What is evaluated on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalSettings {
    /// Which combinations.
    pub split: Split,
    /// How many prompts.
    pub prompts: usize,
    /// Which scenes, captions and draws.
    pub seed: u64,
}

/// What the oracle says of the picture of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The share of the prompt's facts that it finds.
    pub facts: f64,
    /// All hold.
    pub all: bool,
}

/// One prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptRow {
    /// The number of the prompt.
    pub index: usize,
    /// The text of the prompt.
    pub prompt: String,
    /// What the oracle says of each fact.
    pub facts: Vec<(Category, bool)>,
    /// All facts hold and nothing else is there.
    pub all: bool,
    /// The share of its own questions that the model answers as the prompt says.
    pub by_itself: f64,
    /// Answers about the real picture.
    pub answers: Vec<(QuestionKind, bool)>,
    /// Statements of the greedy caption of the real picture: right, and all.
    pub caption: (usize, usize),
    /// The greedy caption.
    pub caption_text: String,
    /// What the oracle says of pictures drawn under other guidances than the run's, with the same draws.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub under: Vec<(f64, Verdict)>,
    /// What the oracle says of a picture that the model drew for another prompt, judged by this one; none in reports of
    /// earlier versions, or where there is no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<Verdict>,
}

impl std::fmt::Display for EvalSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} prompts of the split {} with the seed {}", self.prompts, self.split.name(), self.seed)
    }
}

fn share<T>(items: &[(T, bool)]) -> f64 {
    items.iter().filter(|(_, right)| *right).count() as f64 / items.len().max(1) as f64
}

impl PromptRow {
    /// The share of facts that the oracle finds.
    pub fn generation(&self) -> f64 {
        share(&self.facts)
    }

    /// The share of right answers.
    pub fn answered(&self) -> f64 {
        share(&self.answers)
    }

    /// The share of right statements.
    pub fn captioned(&self) -> f64 {
        self.caption.0 as f64 / self.caption.1.max(1) as f64
    }

    /// What the oracle says of the picture that was drawn under another guidance.
    pub fn drawn_under(&self, guidance: f64) -> Option<Verdict> {
        self.under.iter().find(|(under, _)| *under == guidance).map(|(_, verdict)| *verdict)
    }

    /// The mean of answers and captions.
    pub fn understanding(&self) -> f64 {
        (self.answered() + self.captioned()) / 2.0
    }

    /// Understanding − generation.
    pub fn gap(&self) -> f64 {
        self.understanding() - self.generation()
    }
}

/// A model's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// What was evaluated.
    pub model: String,
    /// On what.
    pub settings: EvalSettings,
    /// Everything that decided it, in a report that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_from: Option<Origin>,
    /// Prompt by prompt.
    pub rows: Vec<PromptRow>,
}

impl EvalReport {
    /// The mean of a number of each prompt.
    pub fn mean(&self, of: impl Fn(&PromptRow) -> f64) -> Mean {
        Mean::of(self.rows.iter().map(of))
    }

    /// Refuses to be compared with a report about other prompts.
    ///
    /// # Errors
    /// Says which prompts each is about.
    pub fn check_about(&self, settings: &EvalSettings) -> Result<()> {
        anyhow::ensure!(
            self.settings == *settings,
            "it is about other prompts: about {}, not {settings}; only the same prompts can be compared",
            self.settings
        );
        anyhow::ensure!(
            self.rows.len() == settings.prompts,
            "it holds {} of its {} prompts; make it again",
            self.rows.len(),
            settings.prompts
        );
        Ok(())
    }

    /// The mean difference from another report about the same prompts.
    ///
    /// # Errors
    /// When the reports are about other prompts.
    pub fn difference(&self, before: &Self, of: impl Fn(&PromptRow) -> f64) -> Result<Mean> {
        before.check_about(&self.settings).with_context(|| format!("the report of {}", before.model))?;
        let values = |report: &Self| report.rows.iter().map(&of).collect::<Vec<_>>();
        Ok(Mean::of_differences(&values(before), &values(self)))
    }

    /// Oracle accuracy per category, each prompt's share one number.
    pub fn categories(&self) -> Vec<(Category, Mean)> {
        let of = |row: &PromptRow, category| {
            let facts: Vec<_> = row.facts.iter().filter(|(found, _)| *found == category).copied().collect();
            (!facts.is_empty()).then(|| share(&facts))
        };
        Category::ALL
            .iter()
            .map(|&category| (category, Mean::of(self.rows.iter().filter_map(|row| of(row, category)))))
            .collect()
    }

    /// Answer accuracy per kind of question.
    pub fn kinds(&self) -> BTreeMap<QuestionKind, Mean> {
        let mut by_kind: BTreeMap<QuestionKind, Vec<f64>> = BTreeMap::new();
        for (kind, right) in self.rows.iter().flat_map(|row| &row.answers) {
            by_kind.entry(*kind).or_default().push(f64::from(u8::from(*right)));
        }
        by_kind.into_iter().map(|(kind, values)| (kind, Mean::of(values))).collect()
    }
}

/// The scene behind prompt `index`, and its caption.
pub fn prompt(settings: &EvalSettings, index: usize) -> (Scene, String) {
    let scene = hermesflow_scenes::scene(settings.split, settings.seed, index as u64);
    let caption = scene.caption(derive_seed(settings.seed, &[1, index as u64]));
    (scene, caption)
}

/// The pictures that a model imagines of some prompts.
///
/// # Errors
/// When the model fails.
pub fn pictures(
    model: &impl UnifiedModel,
    config: &RunConfig,
    settings: &EvalSettings,
    indices: &[usize],
) -> Result<Vec<RgbImage>> {
    pictures_by(model, &models::imagine_options(model, config), settings, indices)
}

/// The pictures that a model imagines of some prompts by these numbers, with the same draws whatever they are.
///
/// # Errors
/// When the model fails.
pub fn pictures_by(
    model: &impl UnifiedModel,
    options: &ImagineOptions,
    settings: &EvalSettings,
    indices: &[usize],
) -> Result<Vec<RgbImage>> {
    drawn(model, options, settings, (indices, 1))
}

/// Some pictures of each of some prompts, prompt by prompt: the first is that of [`pictures`], the others have draws of their
/// own, the same for every model.
///
/// # Errors
/// When the model fails.
pub fn several_pictures(
    model: &impl UnifiedModel,
    config: &RunConfig,
    settings: &EvalSettings,
    (indices, draws): (&[usize], usize),
) -> Result<Vec<RgbImage>> {
    drawn(model, &models::imagine_options(model, config), settings, (indices, draws))
}

fn drawn(
    model: &impl UnifiedModel,
    options: &ImagineOptions,
    settings: &EvalSettings,
    (indices, draws): (&[usize], usize),
) -> Result<Vec<RgbImage>> {
    let job = |index: usize, draw: usize| ImagineJob {
        prompt: prompt(settings, index).1,
        seed: match draw {
            0 => derive_seed(settings.seed, &[2, index as u64]),
            _ => derive_seed(settings.seed, &[2, index as u64, draw as u64]),
        },
        known: vec![],
    };
    let jobs: Vec<ImagineJob> =
        indices.iter().flat_map(|&index| (0..draws).map(move |draw| job(index, draw))).collect();
    Ok(model.decode_images(&model.imagine(&jobs, options)?)?)
}

/// The oracle's verdict on a picture of prompt `index`.
pub fn verdict(settings: &EvalSettings, index: usize, picture: &RgbImage) -> Verdict {
    let judgement = parse_caption(&prompt(settings, index).1).map(|facts| judge(picture, &facts));
    judgement.map_or(Verdict { facts: 0.0, all: false }, |it| Verdict { facts: it.fact_accuracy(), all: it.all })
}

/// The guidances under which a run's model is drawn from, beside the run's own: none at all, where there is one.
pub fn other_guidances(config: &RunConfig) -> Vec<f64> {
    if config.imagine.guidance == 0.0 { vec![] } else { vec![0.0] }
}

/// Evaluates a model block by block, its pictures under other `guidances` too; `done` are the rows of earlier blocks, `keep`
/// gets each new one.
///
/// # Errors
/// When the model fails, or `keep` does.
pub fn evaluate(
    model: &impl UnifiedModel,
    name: &str,
    (config, guidances): (&RunConfig, &[f64]),
    settings: EvalSettings,
    done: Vec<PromptRow>,
    progress: &Progress,
    mut keep: impl FnMut(&[PromptRow]) -> Result<()>,
) -> Result<EvalReport> {
    let mut rows = done;
    rows.truncate(rows.len() / BLOCK * BLOCK);
    let matcher = Judges::alone(config.judges.clone(), progress).matcher(config.answer.matcher)?;
    let task = progress.task(&format!("eval {name}"), "prompts", settings.prompts, rows.len());
    while rows.len() < settings.prompts {
        let indices: Vec<usize> = (rows.len()..settings.prompts.min(rows.len() + BLOCK)).collect();
        let block = evaluate_block(model, (config, guidances), &*matcher, &settings, &indices)?;
        keep(&block)?;
        task.advance(block.len());
        rows.extend(block);
    }
    Ok(EvalReport { model: name.to_owned(), settings, made_from: None, rows })
}

fn evaluate_block(
    model: &impl UnifiedModel,
    (config, guidances): (&RunConfig, &[f64]),
    matcher: &dyn ChoiceMatcher,
    settings: &EvalSettings,
    indices: &[usize],
) -> Result<Vec<PromptRow>> {
    let prompts: Vec<(Scene, String)> = indices.iter().map(|&index| prompt(settings, index)).collect();
    let imagined = pictures(model, config, settings, indices)?;
    let mut under = vec![Vec::new(); indices.len()];
    for &guidance in guidances {
        let options = models::imagine_options(model, config).with_guidance(guidance);
        let drawn = pictures_by(model, &options, settings, indices)?;
        for ((under, picture), &index) in under.iter_mut().zip(&drawn).zip(indices) {
            under.push((guidance, verdict(settings, index, picture)));
        }
    }
    let real: Vec<RgbImage> = prompts.iter().map(|(scene, _)| scene.render()).collect();
    let seed = |index: usize| derive_seed(settings.seed, &[3, index as u64]);
    let about_real: Vec<Vec<SceneQuestion>> = prompts
        .iter()
        .zip(indices)
        .map(|((scene, _), &index)| some(questions(&scene.facts(), seed(index)), seed(index)))
        .collect();
    let about_own: Vec<Vec<SceneQuestion>> = prompts
        .iter()
        .zip(indices)
        .map(|((_, caption), &index)| {
            parse_caption(caption).map_or(vec![], |facts| picture_questions(&facts, seed(index)))
        })
        .collect();
    let greedy = |question: String, max_new_tokens| ReplyRequest {
        question,
        sampling: Sampling::GREEDY,
        seed: 0,
        max_new_tokens,
    };
    let asked = |all: &[Vec<SceneQuestion>], captions: bool| -> Vec<Vec<ReplyRequest>> {
        let length = config.answer.max_new_tokens;
        let one = |q: &SceneQuestion| greedy(judges::prompt(&q.question, &q.choices), length);
        let caption = || greedy(config.caption.question.clone(), config.caption.max_new_tokens);
        all.iter().map(|list| captions.then(caption).into_iter().chain(list.iter().map(one)).collect()).collect()
    };
    let replies = |images: &[RgbImage], requests: &[Vec<ReplyRequest>]| -> Result<Vec<Vec<Reply>>> {
        let prepared = images.iter().map(|image| model.prepare(image.clone())).collect::<Result<Vec<_>, _>>()?;
        let views = model.understand(&prepared)?;
        let all: Vec<_> = views.iter().zip(requests.iter().map(Vec::as_slice)).collect();
        Ok(model.reply_many(&all)?)
    };
    let of_real = replies(&real, &asked(&about_real, true))?;
    let of_own = replies(&imagined, &asked(&about_own, false))?;
    let rows = indices.iter().enumerate().map(|(at, &index)| {
        let (scene, text) = &prompts[at];
        let judgement = parse_caption(text).map(|facts| judge(&imagined[at], &facts));
        let caption_text = of_real[at][0].text.trim().to_owned();
        Ok(PromptRow {
            index,
            prompt: text.clone(),
            facts: judgement.iter().flat_map(|j| &j.facts).map(|fact| (fact.category, fact.holds)).collect(),
            all: judgement.is_some_and(|judgement| judgement.all),
            by_itself: share(&judged(matcher, &about_own[at], &of_own[at])?),
            answers: judged(matcher, &about_real[at], &of_real[at][1..])?,
            caption: caption_facts_score(scene, &caption_text),
            caption_text,
            under: std::mem::take(&mut under[at]),
            other: another(at, indices.len()).map(|other| verdict(settings, index, &imagined[other])),
        })
    });
    rows.collect()
}

/// The prompt of a block whose picture is judged by a prompt that it was not drawn for; none of one alone.
fn another(at: usize, block: usize) -> Option<usize> {
    (block > 1).then_some((at + 1) % block)
}

/// Whether each reply is right, with the kind of its question.
fn judged(
    matcher: &dyn ChoiceMatcher,
    questions: &[SceneQuestion],
    replies: &[Reply],
) -> Result<Vec<(QuestionKind, bool)>> {
    let answered: Vec<Answered<'_>> = questions
        .iter()
        .zip(replies)
        .map(|(asked, reply)| Answered { reply: &reply.text, choices: &asked.choices, answer: &asked.answer })
        .collect();
    let right = judges::right(matcher, &answered)?;
    Ok(questions.iter().map(|asked| asked.kind).zip(right).collect())
}

/// Some of the questions, in an order of the seed.
fn some(mut all: Vec<SceneQuestion>, seed: u64) -> Vec<SceneQuestion> {
    let mut chosen = Vec::new();
    while chosen.len() < QUESTIONS && !all.is_empty() {
        chosen.push(all.swap_remove(derive_seed(seed, &[chosen.len() as u64]) as usize % all.len()));
    }
    chosen
}

#[cfg(all(test, embedded_next_code))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::DEMO;
    use crate::progress::Progress;

    #[test]
    fn the_first_of_several_pictures_is_the_one_that_is_measured() {
        let config = RunConfig::parse(DEMO, &[]).unwrap();
        let model = models::open(&config.model, &Progress::stderr()).unwrap();
        let settings = EvalSettings { split: Split::HeldOut, prompts: 8, seed: 0 };
        let measured = pictures(&model, &config, &settings, &[2, 5]).unwrap();
        let several = several_pictures(&model, &config, &settings, (&[2, 5], 3)).unwrap();
        assert_eq!((&several[0], &several[3]), (&measured[0], &measured[1]));
        assert!(several[1] != several[0] && several[2] != several[1], "draws of their own");
    }
}
