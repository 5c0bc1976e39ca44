//! Benchmarks of images: prompts, the pictures that a model makes of them, and what it answers about these.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use hermesflow_models::{GivenReply, ImageView, ImagineJob, ImagineOptions, ReplyRequest, Sampling, UnifiedModel};
use hermesflow_records::derive_seed;
use hermesflow_score::ChoiceMatcher;
use image::RgbImage;

use super::{Asked, Benchmark, Prompt, Row, dpg, yes_no};
use crate::files;
use crate::judges::{self, Answered};
use crate::run::pictures::png;
use crate::run::stage::text_number;

/// What draws and judges the pictures of a benchmark.
pub struct Artist<'a, M> {
    /// Which benchmark.
    pub benchmark: Benchmark,
    /// The model, which also answers.
    pub model: &'a M,
    /// The sampler; its guidance is that of each row.
    pub options: ImagineOptions,
    /// Pictures of each prompt.
    pub samples: usize,
    /// The seed of all draws.
    pub seed: u64,
    /// Longest reply, in tokens.
    pub max_new_tokens: usize,
    /// What finds the choice that a reply means.
    pub matcher: &'a dyn ChoiceMatcher,
}

impl<M: UnifiedModel> Artist<'_, M> {
    /// Draws a prompt under a guidance, saves its pictures under `folder` in GenEval's layout, and judges them.
    ///
    /// # Errors
    /// When the model fails, or a file cannot be written.
    pub fn row(&self, prompt: &Prompt, number: usize, guidance: f64, folder: &Path) -> Result<Row> {
        let job = |sample: usize| ImagineJob {
            prompt: prompt.text.clone(),
            seed: derive_seed(self.seed, &[text_number("benchmark"), text_number(&prompt.id), sample as u64]),
            known: vec![],
        };
        let options = self.options.with_guidance(guidance);
        let codes = self.model.imagine(&(0..self.samples).map(job).collect::<Vec<_>>(), &options)?;
        let pictures = self.model.decode_images(&codes)?;
        save(prompt, &pictures, &folder.join(format!("{number:05}")))?;
        let prepared = pictures.into_iter().map(|it| self.model.prepare(it)).collect::<Result<Vec<_>, _>>()?;
        let views = self.model.understand(&prepared)?;
        let (scores, said) = match self.benchmark {
            Benchmark::Geneval => (self.by_probability(prompt, &views)?, Vec::new()),
            _ => self.by_replies(prompt, &views)?,
        };
        let (item, category) = (prompt.id.clone(), prompt.category.clone());
        Ok(Row { unit: item.clone(), item, category, guidance: Some(guidance), scores, said })
    }

    /// Mean and product of the probabilities of the right choices, each a mean over the pictures.
    fn by_probability(&self, prompt: &Prompt, views: &[ImageView]) -> Result<BTreeMap<String, f64>> {
        let mut scores = BTreeMap::from([("mean".to_owned(), 0.0), ("product".to_owned(), 0.0)]);
        for found in probabilities(self.model, views, &prompt.questions)? {
            let (mean, product) = soft(&found);
            *scores.entry("mean".into()).or_default() += mean / self.samples as f64;
            *scores.entry("product".into()).or_default() += product / self.samples as f64;
        }
        Ok(scores)
    }

    /// The share of right answers, and how many were right and asked of each kind.
    fn by_replies(&self, prompt: &Prompt, views: &[ImageView]) -> Result<(BTreeMap<String, f64>, Vec<String>)> {
        let questions = &prompt.questions;
        let request = |asked: &Asked| ReplyRequest {
            question: judges::prompt(&asked.question, &asked.choices),
            sampling: Sampling::GREEDY,
            seed: 0,
            max_new_tokens: self.max_new_tokens,
        };
        let requests: Vec<ReplyRequest> = questions.iter().map(request).collect();
        let asked: Vec<(&ImageView, &[ReplyRequest])> = views.iter().map(|view| (view, requests.as_slice())).collect();
        let (mut scores, mut said) = (BTreeMap::new(), Vec::new());
        for replies in self.model.reply_many(&asked)? {
            let right = match self.benchmark {
                Benchmark::Dpg => {
                    let yes: Vec<bool> = replies.iter().map(|reply| yes_no::mme(&reply.text) == Some(true)).collect();
                    dpg::counted(questions, &yes)
                }
                _ => {
                    let answered: Vec<Answered<'_>> = questions
                        .iter()
                        .zip(&replies)
                        .map(|(Asked { choices, answer, .. }, reply)| Answered { reply: &reply.text, choices, answer })
                        .collect();
                    judges::right(self.matcher, &answered)?
                }
            };
            let count = |right: bool| f64::from(u8::from(right)) / self.samples as f64;
            for (asked, right) in questions.iter().zip(&right) {
                *scores.entry(format!("right: {}", asked.kind)).or_default() += count(*right);
                *scores.entry(format!("asked: {}", asked.kind)).or_default() += count(true);
            }
            let share = right.iter().filter(|right| **right).count() as f64 / questions.len() as f64;
            *scores.entry("all".to_owned()).or_default() += share / self.samples as f64;
            said.push(replies.iter().map(|reply| reply.text.trim()).collect::<Vec<_>>().join(" | "));
        }
        Ok((scores, said))
    }
}

/// Soft-TIFA: the mean and the product of the probabilities of right answers.
pub fn soft(probabilities: &[f64]) -> (f64, f64) {
    (probabilities.iter().sum::<f64>() / probabilities.len().max(1) as f64, probabilities.iter().product())
}

/// About each picture, the probability of the right choice of every question among its choices, by the likelihood of each
/// choice as a reply.
///
/// # Errors
/// When the model fails, or a question is too long for it.
pub fn probabilities(model: &impl UnifiedModel, views: &[ImageView], questions: &[Asked]) -> Result<Vec<Vec<f64>>> {
    let given: Vec<GivenReply> = questions
        .iter()
        .flat_map(|asked| {
            let question = judges::prompt(&asked.question, &asked.choices);
            asked.choices.iter().map(move |choice| GivenReply { question: question.clone(), reply: choice.clone() })
        })
        .collect();
    let asked: Vec<(&ImageView, &[GivenReply])> = views.iter().map(|view| (view, given.as_slice())).collect();
    let of_picture = |found: Vec<hermesflow_models::Likelihood>| {
        let mut rest = found.as_slice();
        let of_question = |asked: &Asked| {
            let (own, behind) = rest.split_at(asked.choices.len());
            rest = behind;
            let logs: Vec<f64> = own.iter().map(|one| one.log_prob).collect();
            asked.choices.iter().position(|choice| *choice == asked.answer).map_or(0.0, |right| share(&logs, right))
        };
        questions.iter().map(of_question).collect()
    };
    Ok(model.score_replies(&asked)?.into_iter().map(of_picture).collect())
}

/// The share of one of several log-probabilities (softmax).
fn share(logs: &[f64], of: usize) -> f64 {
    let highest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (logs[of] - highest).exp() / logs.iter().map(|log| (log - highest).exp()).sum::<f64>()
}

/// Saves pictures as `samples/{k:05}.png`, and the prompt's line as `metadata.jsonl`.
fn save(prompt: &Prompt, pictures: &[RgbImage], folder: &Path) -> Result<()> {
    for (number, picture) in pictures.iter().enumerate() {
        files::write_if_other(&folder.join(format!("samples/{number:05}.png")), &png(picture)?)?;
    }
    match &prompt.metadata {
        Some(metadata) => files::write_if_other(&folder.join("metadata.jsonl"), metadata.to_string().as_bytes()),
        None => Ok(()),
    }
    .with_context(|| prompt.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_worked_by_hand() {
        let (mean, product) = soft(&[0.5, 1.0, 0.25]);
        assert!((mean - 1.75 / 3.0).abs() < 1e-12 && (product - 0.125).abs() < 1e-12);
        // e^0 and e^ln 3: a quarter and three quarters.
        assert!((share(&[0.0, 3f64.ln()], 1) - 0.75).abs() < 1e-12);
        assert!((share(&[-1000.0, -1000.0], 0) - 0.5).abs() < 1e-12);
    }
}
