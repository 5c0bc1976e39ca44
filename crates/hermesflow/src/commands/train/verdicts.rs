//! Whether the pictures of a training get worse (`train.preview.judge`): the model that it began with answers questions about
//! those of every checkpoint, as it did about those of before.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hermesflow_models::UnifiedModel;
use hermesflow_models::preprocess::load_square;
use hermesflow_records::QuestionRecord;
use hermesflow_score::Question;
use serde::{Deserialize, Serialize};

use crate::config::Writer;
use crate::digest::digest;
use crate::files;
use crate::judges::{Judges, Posed, probabilities};
use crate::models::Model;
use crate::run::context::RunContext;
use crate::run::preview::{PreviewFolder, PreviewPlan, picture};
use crate::world::statistics::Mean;

/// The judge of a training's pictures.
pub struct Verdicts<'a> {
    judge: &'a Model,
    run: &'a RunContext,
    /// The questions about each prompt; about some there may be none.
    questions: Vec<Vec<Question>>,
}

/// What was found of the pictures of a step.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Found {
    /// A digest of the questions.
    questions: String,
    /// For each guidance, how surely the questions about each prompt that has some are answered rightly.
    scores: Vec<Vec<f64>>,
}

impl<'a> Verdicts<'a> {
    /// A judge that begins with the model of before training.
    ///
    /// # Errors
    /// When there is no question about any prompt.
    pub fn of(judge: &'a Model, plan: &PreviewPlan, run: &'a RunContext) -> Result<Self> {
        let questions = questions(&plan.prompts, run).context("train.preview.judge")?;
        ensure!(
            questions.iter().any(|asked| !asked.is_empty()),
            "train.preview.judge: there is no question about any prompt of train.preview; list prompts that ask.writer writes \
             questions about, or captions of records"
        );
        Ok(Self { judge, run, questions })
    }

    /// Looks at the pictures of a step, and says when they are worse than those of before training.
    ///
    /// # Errors
    /// When a picture cannot be read, or the model fails.
    pub fn look(&self, step: usize, plan: &PreviewPlan, folder: &PreviewFolder) -> Result<()> {
        let now = self.found(step, plan, folder)?;
        if step == 0 || !folder.step(0).is_dir() {
            return Ok(());
        }
        let before = self.found(0, plan, folder)?;
        for ((guidance, before), now) in plan.guidances.iter().zip(&before.scores).zip(&now.scores) {
            let change = Mean::of_differences(before, now);
            if is_worse(change) {
                self.run.progress.log(format!(
                    "WARNING: train: after step {step}, the pictures of {} prompts drawn under guidance {guidance} are worse than \
                     before training: {change:+} (how surely the model of before answers questions about them rightly)",
                    change.count
                ));
            }
        }
        Ok(())
    }

    /// What is known or found of the pictures of a step.
    fn found(&self, step: usize, plan: &PreviewPlan, folder: &PreviewFolder) -> Result<Found> {
        let all = self.questions.iter().flatten().flat_map(|asked| {
            [&asked.question, &asked.answer].into_iter().chain(&asked.choices).map(String::as_str).collect::<Vec<_>>()
        });
        let questions = digest(plan.prompts.iter().map(String::as_str).chain(all));
        let file = folder.step(step).join("verdicts.json");
        let text = files::if_there(&file, |file| std::fs::read_to_string(file))?;
        let known: Option<Found> = text.and_then(|text| serde_json::from_str(&text).ok());
        if let Some(known) = known.filter(|known| known.questions == questions) {
            return Ok(known);
        }
        let scores = (0..plan.guidances.len()).map(|guidance| self.scores(&folder.step(step), guidance, plan));
        let found = Found { questions, scores: scores.collect::<Result<_>>()? };
        files::write_atomically(&file, (serde_json::to_string(&found)? + "\n").as_bytes())?;
        Ok(found)
    }

    fn scores(&self, folder: &Path, guidance: usize, plan: &PreviewPlan) -> Result<Vec<f64>> {
        let asked = self.questions.iter().enumerate().filter(|(_, asked)| !asked.is_empty());
        let of = |(prompt, asked): (usize, &Vec<Question>)| -> Result<f64> {
            let path = |number| -> PathBuf { picture(folder, prompt, guidance, number) };
            let side = self.judge.resolution();
            let prepare = |number| Ok(self.judge.prepare(load_square(&path(number), side)?)?);
            let prepared = (0..plan.images).map(prepare).collect::<Result<Vec<_>>>()?;
            let posed: Vec<Posed<'_>> = asked
                .iter()
                .map(|Question { question, choices, answer, .. }| Posed { question, choices, answer })
                .collect();
            let found = probabilities(self.judge, &posed, &self.judge.understand(&prepared)?)?;
            Ok(Mean::of(found.into_iter().flatten()).mean)
        };
        asked.map(of).collect()
    }
}

/// Whether a change over prompts is a loss beyond chance: its 95 % interval is below zero.
fn is_worse(change: Mean) -> bool {
    change.count > 1 && change.mean + change.half_width() < 0.0
}

/// The questions about each prompt: by the run's writer, or those of records with that caption.
fn questions(prompts: &[String], run: &RunContext) -> Result<Vec<Vec<Question>>> {
    let writer = run.config.ask.writer;
    if matches!(writer, Writer::Scenes | Writer::Template)
        && let Some(writer) = Judges::of_run(run)?.writer(writer)?
    {
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        return Ok(writer.write(&prompts)?);
    }
    let first = run.at(1).layout;
    let (known, records) = (files::questions(&first.questions())?, files::initial_data(&first.initial_data())?);
    let mut found = vec![Vec::new(); prompts.len()];
    for chunk in records.chunks(run.config.data.chunk) {
        for record in records.read(chunk)?.into_iter().filter(|record| prompts.contains(&record.caption)) {
            for QuestionRecord { element, question, choices, answer, .. } in known.of_id(&record.id)? {
                let asked = Question { element, question, choices, answer };
                for (_, found) in prompts.iter().zip(&mut found).filter(|(prompt, _)| **prompt == record.caption) {
                    if !found.contains(&asked) {
                        found.push(asked.clone());
                    }
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worse_is_what_chance_does_not_explain() {
        let change = |before: &[f64], now: &[f64]| Mean::of_differences(before, now);
        assert!(is_worse(change(&[0.8, 0.7, 0.9, 0.8], &[0.5, 0.5, 0.6, 0.5])));
        assert!(!is_worse(change(&[0.8, 0.7, 0.9, 0.8], &[0.1, 0.9, 1.0, 0.9])), "one picture alone");
        assert!(!is_worse(change(&[0.5, 0.5, 0.6, 0.5], &[0.8, 0.7, 0.9, 0.8])));
        assert!(!is_worse(change(&[0.8], &[0.1])), "of one prompt nothing is known");
        assert!(!is_worse(change(&[0.8, 0.7], &[0.8, 0.7])));
    }
}
