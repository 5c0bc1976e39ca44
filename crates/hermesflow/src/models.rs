//! Opening models: the embedded one, a checkpoint folder, and what earlier iterations trained.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use hermesflow_models::showo::{Magvit, Showo, load_magvit, read_configs};
use hermesflow_models::{UnifiedModel, Weights};

use crate::config::{EMBEDDED, ModelSettings, Reference, RunConfig};
use crate::layout::RunLayout;

/// The model that a run begins with.
///
/// # Errors
/// Names the file that is missing, broken or does not fit.
pub fn open(settings: &ModelSettings) -> Result<Showo> {
    let device = settings.device()?;
    let dtype = settings.dtype.into();
    if settings.showo == EMBEDDED {
        return embedded(settings);
    }
    let (Some(vq), Some(tokenizer)) = (&settings.vq, &settings.tokenizer) else {
        bail!("model: {} needs model.vq and model.tokenizer beside it", settings.showo);
    };
    let folder = Path::new(&settings.showo);
    ensure!(folder.is_dir(), "model.showo: {} is not a folder; download the checkpoint there", folder.display());
    ensure!(vq.is_dir(), "model.vq: {} is not a folder; download the image tokenizer there", vq.display());
    ensure!(tokenizer.is_file(), "model.tokenizer: {} is not a file", tokenizer.display());
    Ok(Showo::load(folder, vq, tokenizer, dtype, &device)?)
}

/// The model inside this program.
#[cfg(embedded_model)]
fn embedded(settings: &ModelSettings) -> Result<Showo> {
    use hermesflow_models::showo::Embedded;
    const FILES: Embedded = Embedded {
        showo_config: include_str!("../../../assets/scenes/showo/config.json"),
        phi_config: include_str!("../../../assets/scenes/showo/phi/config.json"),
        showo_weights: include_bytes!("../../../assets/scenes/showo/pytorch_model.safetensors"),
        vq_config: include_str!("../../../assets/scenes/vq/config.json"),
        vq_weights: include_bytes!("../../../assets/scenes/vq/pytorch_model.safetensors"),
        tokenizer: include_bytes!("../../../assets/scenes/tokenizer.json"),
    };
    Ok(Showo::embedded(&FILES, settings.dtype.into(), &settings.device()?)?)
}

#[cfg(not(embedded_model))]
fn embedded(_settings: &ModelSettings) -> Result<Showo> {
    bail!("this build carries no embedded model (assets/scenes was empty); make one with `hermesflow pretrain`")
}

/// The model that a run begins with (0), or what one of its iterations trained.
///
/// # Errors
/// As [`open`] and [`trained`].
pub fn after(config: &RunConfig, iteration: usize) -> Result<Showo> {
    let base = open(&config.model)?;
    match iteration {
        0 => Ok(base),
        iteration => trained(&base, &RunLayout::new(config, iteration)),
    }
}

/// The image tokenizer alone, and the side of the pictures that the model reads: nothing else is loaded.
///
/// # Errors
/// As [`open`].
pub fn image_tokenizer(settings: &ModelSettings) -> Result<(Magvit, usize)> {
    if settings.showo == EMBEDDED {
        let model = embedded(settings)?;
        return Ok((model.vq().clone(), model.resolution()));
    }
    let vq = settings.vq.as_deref().context("model.vq: missing; give the image tokenizer's folder")?;
    let (config, _) = read_configs(Path::new(&settings.showo))?;
    let vq = load_magvit(vq, settings.dtype.into(), &settings.device()?)?;
    let side = config.grid_side() * vq.config().downsampling();
    Ok((vq, side))
}

/// The model that plays an iteration: the run's first one, or what the iteration before trained.
///
/// # Errors
/// When the iteration before has not been trained.
pub fn player(config: &RunConfig, layout: &RunLayout) -> Result<Showo> {
    let base = open(&config.model)?;
    match layout.previous() {
        None => Ok(base),
        Some(previous) => trained(&base, &previous),
    }
}

/// What an iteration trained, over the base model's tokenizers.
///
/// # Errors
/// When it has not been trained, or its weights do not fit the base model.
pub fn trained(base: &Showo, layout: &RunLayout) -> Result<Showo> {
    let folder = layout.model();
    let file = folder.join("pytorch_model.safetensors");
    ensure!(
        file.is_file(),
        "{} does not exist: iteration {} is not trained; run `hermesflow train --iteration {}` first",
        file.display(),
        layout.iteration(),
        layout.iteration()
    );
    with_weights_of(base, &file)
}

/// The model against which an iteration trains.
///
/// # Errors
/// As [`player`].
pub fn reference(config: &RunConfig, layout: &RunLayout) -> Result<Showo> {
    match config.train.reference {
        Reference::Iteration => player(config, layout),
        Reference::Run => open(&config.model),
    }
}

/// `base` with the weights of a file that [`Showo::save`] wrote.
fn with_weights_of(base: &Showo, file: &Path) -> Result<Showo> {
    let like = base.weights().tensors().values().next().context("a model without weights")?;
    let weights = Weights::load(file, like.dtype(), like.device())?;
    base.with_weights(weights)
        .context("trained from another model than this run's: restore model.showo, or train again in another folder")
}
