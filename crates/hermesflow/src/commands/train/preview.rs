//! Pictures of fixed prompts before training and at its checkpoints (`train.preview`).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use hermesflow_models::{ImagineJob, UnifiedModel};
use hermesflow_records::{derive_seed, temporary};
use hermesflow_scenes::Split;
use hermesflow_train::events::{self, EVENTS_FILE, EventPicture};

use super::verdicts::Verdicts;
use crate::config::PreviewSettings;
use crate::files;
use crate::models::{self, Model};
use crate::run::context::RunContext;
use crate::run::pictures::png;
use crate::run::preview::{PreviewFolder, PreviewPlan, picture};
use crate::world::evaluate::{EvalSettings, prompt};

/// Pictures that are drawn as one batch.
const TOGETHER: usize = 32;

/// Draws the pictures of a training.
pub struct Previews<'a> {
    /// Shares the weights of the model that is trained.
    model: Model,
    plan: PreviewPlan,
    folder: PreviewFolder,
    run: &'a RunContext,
    verdicts: Option<Verdicts<'a>>,
}

impl<'a> Previews<'a> {
    /// Previews of `policy`, which is about to be trained from `player`; none where nobody asked.
    ///
    /// # Errors
    /// When no prompt or question is to be had, or what an earlier plan drew cannot be removed.
    pub fn of(policy: &Model, player: &'a Model, run: &'a RunContext) -> Result<Option<Self>> {
        let Some(settings) = &run.config.train.preview else { return Ok(None) };
        let plan = PreviewPlan {
            prompts: prompts(settings, run)?,
            guidances: settings.all_guidances(run.config.imagine.guidance),
            steps: run.config.imagine.steps,
            images: settings.images,
            seed: run.config.seed,
        };
        let folder = PreviewFolder::of(&run.layout);
        if folder.plan().ok().flatten().is_some_and(|there| there != plan) {
            // Pictures by two plans cannot be compared.
            for step in folder.steps() {
                std::fs::remove_dir_all(folder.step(step)).with_context(|| folder.step(step).display().to_string())?;
            }
        }
        files::write_if_other(&folder.plan_file(), (serde_json::to_string_pretty(&plan)? + "\n").as_bytes())?;
        let verdicts = if settings.judge { Some(Verdicts::of(player, &plan, run)?) } else { None };
        Ok(Some(Self { model: policy.frozen_copy()?, plan, folder, run, verdicts }))
    }

    /// Draws what the model makes of the prompts after a step, unless it was drawn before.
    ///
    /// # Errors
    /// When the model fails, or a file cannot be written.
    pub fn draw(&self, step: usize) -> Result<()> {
        let folder = self.folder.step(step);
        if !folder.is_dir() {
            let unfinished = temporary(&folder);
            let named = || unfinished.display().to_string();
            if unfinished.exists() {
                std::fs::remove_dir_all(&unfinished).with_context(named)?;
            }
            std::fs::create_dir_all(&unfinished).with_context(named)?;
            for guidance in 0..self.plan.guidances.len() {
                self.draw_under(guidance, &unfinished)?;
            }
            std::fs::rename(&unfinished, &folder).with_context(|| folder.display().to_string())?;
        }
        if let Some(verdicts) = &self.verdicts {
            verdicts.look(step, &self.plan, &self.folder)?;
        }
        self.write_events()
    }

    fn draw_under(&self, guidance: usize, folder: &Path) -> Result<()> {
        let options = models::imagine_options(&self.model, &self.run.config);
        let options = options.with_guidance(self.plan.guidances[guidance]);
        let all: Vec<(usize, usize)> =
            (0..self.plan.prompts.len()).flat_map(|at| (0..self.plan.images).map(move |number| (at, number))).collect();
        for part in all.chunks(TOGETHER) {
            let job = |&(at, number): &(usize, usize)| ImagineJob {
                prompt: self.plan.prompts[at].clone(),
                seed: derive_seed(self.plan.seed, &[2, at as u64, number as u64]),
                known: vec![],
            };
            let codes = self.model.imagine(&part.iter().map(job).collect::<Vec<_>>(), &options)?;
            for (&(at, number), drawn) in part.iter().zip(self.model.decode_images(&codes)?) {
                let file = picture(folder, at, guidance, number);
                std::fs::write(&file, png(&drawn)?).with_context(|| file.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Writes the pictures of all steps as an event file of TensorBoard, which shows it as the run `preview`.
    fn write_events(&self) -> Result<()> {
        let steps: Vec<(usize, Vec<EventPicture>)> =
            self.folder.steps().into_iter().map(|step| Ok((step, self.of_step(step)?))).collect::<Result<_>>()?;
        let whole = events::pictures(steps.iter().map(|(step, pictures)| (*step, pictures.as_slice())));
        files::write_if_other(&self.folder.plan_file().with_file_name(EVENTS_FILE), &whole)
    }

    fn of_step(&self, step: usize) -> Result<Vec<EventPicture>> {
        let folder = self.folder.step(step);
        let side = self.model.resolution() as u32;
        let mut pictures = Vec::new();
        for (at, text) in self.plan.prompts.iter().enumerate() {
            for (guidance, scale) in self.plan.guidances.iter().enumerate() {
                for number in 0..self.plan.images {
                    let file = picture(&folder, at, guidance, number);
                    let png = std::fs::read(&file).with_context(|| file.display().to_string())?;
                    let tag = format!("{at:02} {text}/guidance {scale}/{number}");
                    pictures.push(EventPicture { tag, size: (side, side), png });
                }
            }
        }
        Ok(pictures)
    }
}

/// The prompts to draw.
fn prompts(settings: &PreviewSettings, run: &RunContext) -> Result<Vec<String>> {
    if !settings.prompts.is_empty() {
        return Ok(settings.prompts.clone());
    }
    if run.config.data.scenes.is_some() {
        let heldout = EvalSettings { split: Split::HeldOut, prompts: settings.count, seed: 0 };
        return Ok((0..settings.count).map(|index| prompt(&heldout, index).1).collect());
    }
    // The same ones in every iteration.
    let first = run.at(1).layout.initial_data();
    ensure!(first.is_file(), "train.preview.prompts: there are no records to take captions of; list some prompts");
    let records = files::initial_data(&first)?;
    let some = records.read(0..settings.count.min(records.len()))?;
    Ok(some.into_iter().map(|record| record.caption).collect())
}
