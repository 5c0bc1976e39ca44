//! `hermesflow train`: Pair-DPO on the pairs of one iteration.

mod encode;
mod preview;
mod supervised;
mod verdicts;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use hermesflow_records::temporary;
use hermesflow_train::{Objective, Outcome, PairDpo, StepReport, Trainer};
use serde_json::json;

use super::args::stage_command;
use crate::cache::reference::ReferenceFile;
use crate::config::{ObjectiveName, Reference};
use crate::digest;
use crate::files;
use crate::made::Results;
use crate::models::{self, Model, memory_plan};
use crate::progress::{Progress, Task};
use crate::run::context::RunContext;
use crate::run::decisive;
use crate::run::folder;
use crate::run::stage;
use crate::world::pretraining::BasePretraining;
use preview::Previews;

stage_command! {
    /// Train on the pairs: the best against the worst, captions and images
    ///
    /// Reads pair_dpo_data.json, encodes those of its images whose codes are not known yet, and minimises the Pair-DPO loss
    /// against the frozen model that the iteration began with. The training folder holds config.yaml (every number,
    /// resolved), metrics.jsonl (a line per step with TRL's names under und/ and gen/), the same as an event file of TensorBoard
    /// (`tensorboard --logdir` on the run folder), reference.jsonl (what the reference says of the captions),
    /// checkpoint-{step}/ and, at the end, model/ in the published layout; with `train.preview` also pictures of fixed prompts
    /// at every checkpoint. A killed run continues from its newest checkpoint, bit for bit.
    ///
    /// Example: hermesflow train scenes train.schedule.steps=100 train.loss.anchor_gen=0
    "train", |run| {
        let player = models::player(run)?;
        models::ensure_trainable(player.trains_captions(), &*player.costs()?, &run.config)?;
        warn(run);
        train(&player, &models::reference(&player, run)?, run)?;
        Ok(run.layout.model())
    }
}

/// Says what must be known of a run's training before it begins.
pub fn warn(run: &RunContext) {
    if let Some(warning) = run.config.trains_other_than_it_draws() {
        run.progress.log(format!("WARNING: train: {warning}"));
    }
}

/// Trains `player` against `reference` on the iteration's pairs; the trained model, which is also saved.
///
/// # Errors
/// Names the record, file or setting that stands in the way.
pub fn train(player: &Model, reference: &Model, run: &RunContext) -> Result<Model> {
    let run = &RunContext { config: memory_plan::chosen(&run.config, player)?, ..run.clone() };
    if run.config.train.objective == ObjectiveName::ContinuePretraining {
        return continue_pretraining(player, run);
    }
    let path = match run.config.train.objective {
        ObjectiveName::Supervised => supervised::written(run)?,
        _ => run.layout.pairs(),
    };
    let pairs = files::pairs(&path)?;
    ensure!(!pairs.is_empty(), "{}: no pair to train on; {}", path.display(), more_pairs(run.layout.iteration()));
    let files = [
        ("the pairs".to_owned(), digest::of_file(&path)?),
        ("the pairs' pictures".to_owned(), encode::pictures_digest(&pairs, run)?),
    ];
    if let Some(model) = begin(player, run, files)? {
        return Ok(model);
    }
    let pairs = encode::encode(player, &pairs, run)?;
    let task = run.progress.task("reference", "pairs", pairs.len(), 0);
    let mut seen = 0;
    let settings = run.config.train.pair_dpo(stage::seed(run, "train", &[]));
    let products = run.config.train.products.into();
    // What is not trained is shared with the reference, where that is the same model: in whatever type it is held.
    let base = player.frozen_copy()?.for_training(products)?;
    let policy =
        base.trainable_parts(run.config.train.parts(), run.config.train.trained_sides())?.for_training(products)?;
    let policy = policy.recomputing(run.config.train.recomputes());
    let previews = run.group().once(|| Previews::of(&policy, player, run))?.flatten();
    let reference =
        if Arc::ptr_eq(player, reference) { base } else { reference.frozen_copy()?.for_training(products)? };
    let mut memory = ReferenceFile::open(&run.layout.reference(), &reference, run.group())?;
    let objective = PairDpo::remembering(policy, reference, pairs, settings, &mut memory, run.group(), |done, _| {
        task.advance(done - std::mem::replace(&mut seen, done));
    })?;
    drop(task);
    memory.finish()?;
    let trained = all_steps(objective, previews.as_ref(), run)?.into_models().0.frozen_copy()?;
    hand_over(trained, player, run)
}

/// Refuses a number of processes that cannot share out the training of a model, before hours of curation.
///
/// # Errors
/// Names the numbers that can.
pub fn ensure_shared(player: &Model, run: &RunContext) -> Result<()> {
    if run.group().is_alone() {
        return Ok(());
    }
    ensure!(
        run.config.train.objective != ObjectiveName::ContinuePretraining,
        "train.objective: continue_pretraining is done by one process, and {} were started",
        run.group().size()
    );
    let parameters = player.costs()?.trained(run.config.train.parts()) as usize;
    let parts = run.config.train.pair_dpo(0).parts(parameters) * run.config.train.accumulation;
    Ok(hermesflow_train::Error::unless_shared(run.group(), parts)?)
}

/// What gives pairs where there are none, and is not refused then.
fn more_pairs(iteration: usize) -> String {
    let more = "more images or captions per record";
    match iteration {
        1 => format!(
            "a lower pair.min_accuracy or more records give some, and so do, with another data.root, {more} \
             (imagine.images, caption.candidates)"
        ),
        _ => format!(
            "more records, {more} or a lower pair.min_accuracy give some, with another `output` and data.root; \
             iterations={} ends the run with what it has",
            iteration - 1
        ),
    }
}

/// The control without pairs: the embedded world's pretraining goes on for as many steps.
fn continue_pretraining(player: &Model, run: &RunContext) -> Result<Model> {
    if let Some(model) = begin(player, run, [])? {
        return Ok(model);
    }
    let model = player.trainable_parts(run.config.train.parts(), run.config.train.trained_sides())?;
    let previews = run.group().once(|| Previews::of(&model, player, run))?.flatten();
    let objective = BasePretraining {
        model,
        mix: run.config.train.pretraining.clone(),
        masking: run.config.train.masking,
        caption_question: run.config.caption.question.clone(),
        seed: stage::seed(run, "train", &[]),
    };
    let trained = all_steps(objective, previews.as_ref(), run)?.model.frozen_copy()?;
    hand_over(trained, player, run)
}

/// Notes what decides a training, in its folder; the model that already exists, if it is.
///
/// # Errors
/// When what is there was made from something else; names what differs.
fn begin(
    player: &Model,
    run: &RunContext,
    inputs: impl IntoIterator<Item = (String, String)>,
) -> Result<Option<Model>> {
    run.group().first(|| begin_or_find(player, run, inputs))
}

fn begin_or_find(
    player: &Model,
    run: &RunContext,
    inputs: impl IntoIterator<Item = (String, String)>,
) -> Result<Option<Model>> {
    let train = &decisive::decisive(&run.config)?["train"];
    let settings = json!({ "train": train, "caption": { "question": run.config.caption.question } });
    let mut origin = decisive::origin(&run.config, settings).with(models::player_files(run)?).with(inputs);
    if run.config.train.reference == Reference::Run {
        let first = models::player_files(&run.at(1))?;
        origin = origin.with(first.into_iter().map(|(what, digest)| (format!("{what} of the reference"), digest)));
    }
    let what = format!("the checkpoints and the model of iteration {}", run.layout.iteration());
    let note = run.layout.training_origin();
    // Whatever lies in a folder that is not a training's is somebody's.
    let files = if note.exists() { folder::trained_files(&run.layout)? } else { vec![run.layout.training()] };
    Results { what: &what, note, files, elsewhere: "another `output`" }.ensure_same_settings(&origin)?;
    if run.layout.model().join("pytorch_model.safetensors").is_file() {
        run.progress.log(format!("train: {} already exists", run.layout.model().display()));
        return models::trained(player, &run.layout).map(Some);
    }
    files::write_if_other(&run.layout.training().join("config.yaml"), run.config.to_yaml()?.as_bytes())?;
    Ok(None)
}

/// Makes all steps of an objective in the iteration's training folder, and draws previews at its checkpoints.
///
/// # Errors
/// When a step fails, or the likelihood watch stopped the run: then no model is saved, and there is no next iteration.
fn all_steps<O: Objective>(objective: O, previews: Option<&Previews<'_>>, run: &RunContext) -> Result<O> {
    let folder = run.layout.training();
    let mut trainer = Trainer::in_group(objective, run.config.train.trainer(), &folder, run.group().clone())?;
    for (checkpoint, why) in trainer.passed_over() {
        run.progress.log(format!("WARNING: train: {} cannot be read and is skipped: {why}", checkpoint.display()));
    }
    if let Some(checkpoint) = trainer.resumed_from() {
        run.progress.log(format!("train: continues from {}", checkpoint.display()));
    }
    if trainer.is_direct() {
        run.progress.log("train: gradients go from GPU to GPU, by NCCL");
    }
    let task = run.progress.task("train", "steps", run.config.train.schedule.steps, trainer.steps());
    let draw = |step| previews.map_or(Ok(()), |previews| previews.draw(step).context("train.preview"));
    draw(trainer.steps())?;
    let mut drawn = Ok(());
    let outcome = trainer.run(|report| {
        show(report, &task, &run.progress);
        if report.checkpoint.is_some() {
            drawn = draw(report.record.step);
        }
        if drawn.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    drop(task);
    drawn?;
    if let Outcome::LikelihoodFell { step } = outcome {
        bail!(
            "train: stopped after step {step} because the winning likelihood kept falling (train.watch.stop); the model \
             of that step is {}; train.watch.stop=false goes on from there, and an anchor (train.loss.anchor_und, \
             train.loss.anchor_gen) or a lower train.schedule.learning_rate, with another `output`, may keep it from falling",
            folder.join(format!("checkpoint-{step}")).display()
        );
    }
    Ok(trainer.into_objective())
}

fn show(report: &StepReport, task: &Task, progress: &Progress) {
    let metrics = &report.record.metrics;
    let mut message = format!("loss {:.4}", report.record.loss);
    for side in ["und", "gen"] {
        if let Some(accuracy) = metrics.get(&format!("{side}/rewards/accuracies")) {
            message.push_str(&format!("  {side} accuracy {accuracy:.2}"));
        }
    }
    task.message(message);
    task.advance(1);
    for fall in &report.falls {
        progress.log(format!("WARNING: {fall}"));
    }
}

/// Saves what was trained, and opens it again as the player's successor: in the type of `model.dtype`, as a run that was
/// killed right here and started again would have it.
fn hand_over(trained: Model, player: &Model, run: &RunContext) -> Result<Model> {
    run.group().once(|| save(&trained, &run.layout.model()))?;
    drop(trained);
    models::trained(player, &run.layout)
}

/// Saves a model so that its folder is whole or absent.
fn save(model: &Model, folder: &Path) -> Result<()> {
    let temporary = temporary(folder);
    if temporary.exists() {
        std::fs::remove_dir_all(&temporary).with_context(|| temporary.display().to_string())?;
    }
    std::fs::create_dir_all(&temporary).with_context(|| temporary.display().to_string())?;
    model.save_trained(&temporary)?;
    std::fs::rename(&temporary, folder).with_context(|| folder.display().to_string())
}
