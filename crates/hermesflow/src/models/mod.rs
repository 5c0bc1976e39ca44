//! Opening models: the embedded one, a checkpoint by its folder or its name, and what earlier iterations trained.

pub mod backbone;
pub mod embedded;
pub mod hub;
mod janus;
pub mod kind;
pub mod memory_plan;
mod showo;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hermesflow_models::ImagineOptions;
pub use hermesflow_models::Model;
use hermesflow_models::UnifiedModel;
use hermesflow_models::cost::{Costs, TrainedSides};

use self::backbone::kind;
use self::hub::{Hub, Parts};
use self::kind::{ImageTokenizer, Source};
use crate::config::{ModelSettings, Reference, RunConfig};
use crate::digest::{self, digest};
use crate::progress::Progress;
use crate::run::context::RunContext;
use crate::run::layout::RunLayout;

/// The model that a run begins with.
///
/// # Errors
/// Names the file that is missing, broken or does not fit, or the number of `model.expect` that it does not have.
pub fn open(settings: &ModelSettings, progress: &Progress) -> Result<Model> {
    kind(settings, progress)?.open(settings, progress)
}

/// Fetches what [`open`] needs, so that it finds everything on this machine.
///
/// # Errors
/// Names the checkpoint that cannot be had, or what is wrong with it.
pub fn fetch(settings: &ModelSettings, progress: &Progress) -> Result<()> {
    if settings.is_embedded() {
        return Ok(());
    }
    let (kind, hub) = (kind(settings, progress)?, Hub::from_environment()?);
    let fetch = |Source { key, name, parts }: &Source| hub.model(name, Some(*parts), progress).context(*key);
    let sources = kind.sources(settings);
    // The smallest first: what is missing is said before gigabytes are fetched.
    let small = sources.iter().filter(|source| source.parts == Parts::Tokenizer);
    small.map(fetch).collect::<Result<Vec<_>>>()?;
    let places = sources.iter().map(fetch).collect::<Result<Vec<_>>>()?;
    if let Some(further) = kind.about(&places)?.further {
        let name = settings.clip.clone().unwrap_or_else(|| further.name.clone());
        fetch(&Source { name, ..further })?;
    }
    Ok(())
}

/// Loads the image tokenizer alone.
///
/// # Errors
/// As [`open`].
pub fn image_tokenizer(settings: &ModelSettings, progress: &Progress) -> Result<Box<dyn ImageTokenizer>> {
    kind(settings, progress)?.image_tokenizer(settings, progress)
}

/// A name of what reads a run's pictures, and of the device: where it is equal, a picture has equal codes and features.
///
/// # Errors
/// When its files cannot be read.
pub fn eyes_identity(settings: &ModelSettings, progress: &Progress) -> Result<String> {
    let eyes = kind(settings, progress)?.eyes(settings, progress)?;
    // What another device computes may round to another code.
    Ok(digest([eyes.as_str(), &settings.device])[..12].to_owned())
}

/// How a run's configuration has a model generate images.
pub fn imagine_options(model: &impl UnifiedModel, config: &RunConfig) -> ImagineOptions {
    config.imagine.options(model.image_decoding())
}

/// Digests of all files of the model that plays an iteration, by what they are, such as `model.vq`: equal models have
/// equal ones.
///
/// # Errors
/// When a file is missing or cannot be read.
pub fn player_files(run: &RunContext) -> Result<Vec<(String, String)>> {
    let settings = &run.config.model;
    let first = run.layout.iteration() == 1;
    let mut found = kind(settings, &run.progress)?.files(settings, first, &run.progress)?;
    if let Some(previous) = run.layout.previous() {
        check_trained(&previous)?;
        let what = format!("the model that iteration {} trained", previous.iteration());
        found.push((what, digest::of_loaded_model(&previous.model())?));
    }
    Ok(found)
}

/// The model that plays an iteration, the current model: the one that the run begins with, or what the iteration before
/// trained.
///
/// # Errors
/// When the iteration before has not been trained.
pub fn player(run: &RunContext) -> Result<Model> {
    let settings = &run.config.model;
    let Some(previous) = run.layout.previous() else { return open(settings, &run.progress) };
    check_trained(&previous)?;
    kind(settings, &run.progress)?.open_trained(settings, &previous.model(), &run.progress)
}

/// What an iteration trained, in place of the weights of the base model.
///
/// # Errors
/// When it has not been trained, or its weights do not fit the base model.
pub fn trained(base: &Model, layout: &RunLayout) -> Result<Model> {
    check_trained(layout)?;
    reopened(base, &layout.model())
}

/// A model with the weights that were trained in a folder.
fn reopened(base: &Model, folder: &Path) -> Result<Model> {
    base.reopened(folder).context(
        "trained from another model than this run's: restore model.checkpoint, or train again in another folder",
    )
}

/// The weights that an iteration trained.
fn check_trained(layout: &RunLayout) -> Result<PathBuf> {
    let file = layout.model().join("pytorch_model.safetensors");
    ensure!(
        file.is_file(),
        "{} does not exist: iteration {} is not trained; run `hermesflow train --iteration {}` first",
        file.display(),
        layout.iteration(),
        layout.iteration()
    );
    Ok(file)
}

/// The model that an iteration is trained against (`train.reference`), given the one that plays the iteration.
///
/// # Errors
/// As [`open`].
pub fn reference(player: &Model, run: &RunContext) -> Result<Model> {
    match run.config.train.reference {
        Reference::Run if run.layout.iteration() > 1 => open(&run.config.model, &run.progress),
        Reference::Iteration | Reference::Run => Ok(player.clone()),
    }
}

/// Refuses a training that cannot be done on a model, given its costs and whether its captions can be trained.
///
/// # Errors
/// Names the key to change.
pub fn ensure_trainable(trains_captions: bool, costs: &dyn Costs, config: &RunConfig) -> Result<()> {
    costs.check_parts(config.train.parts(), config.train.trained_sides())?;
    ensure!(
        trains_captions || config.train.trained_sides() == TrainedSides::Images,
        "train.sides: the captions of {} are about CLIP features (w_clip_vit), and only its images can be trained; \
         set train.sides=gen (with any train.objective but continue_pretraining)",
        config.model.checkpoint
    );
    Ok(())
}
