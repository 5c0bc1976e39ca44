//! Opening models: the embedded one, a checkpoint by its folder or its name, and what earlier iterations trained.

pub mod backbone;
pub mod hub;
pub mod memory_plan;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hermesflow_models::{DType, UnifiedModel, Weights};
use hermesflow_train::Sides;

use self::backbone::{
    CheckpointConfigs, ClipVision, Embedded, Magvit, MagvitConfig, PhiConfig, ShowoConfig, load_magvit, read_configs,
    read_magvit_config,
};
use self::hub::{Hub, Parts};
use crate::config::{CLIP, EMBEDDED, MAGVIT, ModelSettings, ObjectiveName, PHI, Reference, RunConfig};
use crate::digest::{self, digest};
use crate::progress::Progress;
use crate::run::context::RunContext;
use crate::run::layout::RunLayout;

pub use self::backbone::{Model, reply_text};

/// The files of a checkpoint that is not embedded.
#[derive(Debug, Clone)]
pub struct Files {
    /// The folder of the decoder.
    pub showo: PathBuf,
    /// The folder of the image tokenizer.
    pub vq: PathBuf,
    /// The `tokenizer.json`.
    pub tokenizer: PathBuf,
}

impl Files {
    /// Where the files are: paths, the hub's cache, or what is downloaded now.
    ///
    /// # Errors
    /// Names the key, and what is missing where.
    pub fn find(settings: &ModelSettings, progress: &Progress) -> Result<Self> {
        let hub = Hub::from_environment()?;
        let find = |key: &str, name: &str, parts: Parts| {
            hub.model(name, Some(parts), progress).with_context(|| format!("model.{key}"))
        };
        let folder = |key: &str, name: &str| -> Result<PathBuf> {
            let folder = find(key, name, Parts::Checkpoint)?;
            ensure!(folder.is_dir(), "model.{key}: {} is not a checkpoint's folder", folder.display());
            Ok(folder)
        };
        let tokenizer = find("tokenizer", settings.tokenizer.as_deref().unwrap_or(PHI), Parts::Tokenizer)?;
        let tokenizer = if tokenizer.is_dir() { tokenizer.join("tokenizer.json") } else { tokenizer };
        ensure!(tokenizer.is_file(), "model.tokenizer: {} does not exist", tokenizer.display());
        Ok(Self {
            showo: folder("showo", &settings.showo)?,
            vq: folder("vq", settings.vq.as_deref().unwrap_or(MAGVIT))?,
            tokenizer,
        })
    }
}

/// The configurations of a checkpoint as it was published under its name, whose files need not be here; none of one that
/// is not known.
pub fn published(showo: &str, vq: &str) -> Option<CheckpointConfigs> {
    let (tokens, clip) = match Hub::known(showo)? {
        "showlab/show-o" => (256, false),
        "showlab/show-o-512x512" | "Gen-Verse/HermesFlow" => (1024, false),
        "showlab/show-o-w-clip-vit" => (256, true),
        "showlab/show-o-w-clip-vit-512x512" => (1024, true),
        _ => return None,
    };
    let vq = (Hub::known(vq)? == MAGVIT).then(MagvitConfig::default)?;
    Some(CheckpointConfigs { showo: ShowoConfig::published(tokens, clip), phi: PhiConfig::default(), vq })
}

/// The model that a run begins with.
///
/// # Errors
/// Names the file that is missing, broken or does not fit, or the number of `model.expect` that it does not have.
pub fn open(settings: &ModelSettings, progress: &Progress) -> Result<Model> {
    if settings.showo == EMBEDDED {
        let model = embedded(settings)?;
        settings.expect.check(EMBEDDED, model.config(), model.resolution())?;
        return Ok(model);
    }
    load(&Files::find(settings, progress)?, settings, progress)
}

fn load(files: &Files, settings: &ModelSettings, progress: &Progress) -> Result<Model> {
    // Before the weights are read, which takes its time.
    let (config, _) = read_configs(&files.showo)?;
    let vq = read_magvit_config(&files.vq)?;
    settings.expect.check(&settings.showo, &config, config.resolution(&vq))?;
    ensure!(
        config.w_clip_vit || settings.clip.is_none(),
        "model.clip: {} understands image tokens; remove the key",
        settings.showo
    );
    let device = settings.device()?;
    let tower = if config.w_clip_vit { Some(clip(settings, progress)?) } else { None };
    let model = Model::load(&files.showo, &files.vq, &files.tokenizer, settings.dtype.into(), &device)?;
    match tower {
        None => Ok(model),
        Some(tower) => Ok(model.with_clip(ClipVision::load(&tower, DType::F32, &device)?)?),
    }
}

/// The folder of the vision tower.
fn clip(settings: &ModelSettings, progress: &Progress) -> Result<PathBuf> {
    let name = settings.clip.as_deref().unwrap_or(CLIP);
    let folder = Hub::from_environment()?.model(name, Some(Parts::Checkpoint), progress).with_context(|| {
        format!("model.clip: {} understands pictures by CLIP features (w_clip_vit)", settings.showo)
    })?;
    ensure!(folder.is_dir(), "model.clip: {} is not a checkpoint's folder", folder.display());
    Ok(folder)
}

/// The model inside this program.
fn embedded(settings: &ModelSettings) -> Result<Model> {
    Ok(Model::embedded(embedded_files()?, settings.dtype.into(), &settings.device()?)?)
}

#[cfg(embedded_model)]
fn embedded_files() -> Result<&'static Embedded<'static>> {
    const FILES: Embedded = Embedded {
        showo_config: include_str!("../../../../assets/scenes/showo/config.json"),
        phi_config: include_str!("../../../../assets/scenes/showo/phi/config.json"),
        showo_weights: include_bytes!("../../../../assets/scenes/showo/pytorch_model.safetensors"),
        vq_config: include_str!("../../../../assets/scenes/vq/config.json"),
        vq_weights: include_bytes!("../../../../assets/scenes/vq/pytorch_model.safetensors"),
        tokenizer: include_bytes!("../../../../assets/scenes/tokenizer.json"),
    };
    Ok(&FILES)
}

#[cfg(not(embedded_model))]
fn embedded_files() -> Result<&'static Embedded<'static>> {
    anyhow::bail!("this build carries no embedded model (assets/scenes was empty); make one with `hermesflow pretrain`")
}

/// Loads the image tokenizer alone, and returns it with the side of the model's pictures in pixels.
///
/// # Errors
/// As [`open`].
pub fn image_tokenizer(settings: &ModelSettings, progress: &Progress) -> Result<(Magvit, usize)> {
    if settings.showo == EMBEDDED {
        let model = embedded(settings)?;
        return Ok((model.vq().clone(), model.resolution()));
    }
    let files = Files::find(settings, progress)?;
    let (config, _) = read_configs(&files.showo)?;
    let vq = load_magvit(&files.vq, &settings.device()?)?;
    let side = config.resolution(vq.config());
    Ok((vq, side))
}

/// A name of a run's image tokenizer and device: where it is equal, a picture has equal codes.
///
/// # Errors
/// When its files cannot be read.
pub fn image_tokenizer_identity(settings: &ModelSettings, progress: &Progress) -> Result<String> {
    let vq = match settings.showo == EMBEDDED {
        true => digest([embedded_files()?.vq_weights]),
        false => digest::of_loaded_model(&Files::find(settings, progress)?.vq)?,
    };
    // What another device computes may round to another code.
    Ok(digest([vq.as_str(), &settings.device])[..12].to_owned())
}

/// Digests of all files of the model that plays an iteration, by what they are, such as `model.showo`: equal models have
/// equal ones.
///
/// # Errors
/// When a file is missing or cannot be read.
pub fn player_files(run: &RunContext) -> Result<Vec<(String, String)>> {
    let settings = &run.config.model;
    let mut found = Vec::new();
    let mut add = |what: &str, digest: String| found.push((what.to_owned(), digest));
    if settings.showo == EMBEDDED {
        let files = embedded_files()?;
        let (vq, tokenizer) = ([files.vq_config.as_bytes(), files.vq_weights], [files.tokenizer]);
        add("model.vq", digest(vq));
        add("model.tokenizer", digest(tokenizer));
        if run.layout.iteration() == 1 {
            add(
                "model.showo",
                digest([files.showo_config.as_bytes(), files.phi_config.as_bytes(), files.showo_weights]),
            );
        }
    } else {
        let files = Files::find(settings, &run.progress)?;
        add("model.vq", digest::of_loaded_model(&files.vq)?);
        add("model.tokenizer", digest::of_file(&files.tokenizer)?);
        if run.layout.iteration() == 1 {
            add("model.showo", digest::of_loaded_model(&files.showo)?);
        }
        // The decoder's configuration may lie elsewhere.
        let (showo, phi) = read_configs(&files.showo)?;
        add("the decoder's configuration", digest([serde_json::to_string(&phi)?]));
        if showo.w_clip_vit {
            add("model.clip", digest::of_loaded_model(&clip(settings, &run.progress)?)?);
        }
    }
    if let Some(previous) = run.layout.previous() {
        check_trained(&previous)?;
        let what = format!("the model that iteration {} trained", previous.iteration());
        add(&what, digest::of_loaded_model(&previous.model())?);
    }
    Ok(found)
}

/// The model that plays an iteration, the current model: the one that the run begins with, or what the iteration before
/// trained.
///
/// # Errors
/// When the iteration before has not been trained.
pub fn player(run: &RunContext) -> Result<Model> {
    let Some(previous) = run.layout.previous() else { return open(&run.config.model, &run.progress) };
    if run.config.model.showo == EMBEDDED {
        return trained(&embedded(&run.config.model)?, &previous);
    }
    check_trained(&previous)?;
    // The base model's weights need not be read.
    let files = Files { showo: previous.model(), ..Files::find(&run.config.model, &run.progress)? };
    load(&files, &run.config.model, &run.progress)
}

/// What an iteration trained, over the base model's tokenizers.
///
/// # Errors
/// When it has not been trained, or its weights do not fit the base model.
pub fn trained(base: &Model, layout: &RunLayout) -> Result<Model> {
    let file = check_trained(layout)?;
    let weights = Weights::load(&file, base.dtype(), base.vq().device())?;
    base.with_weights(weights)
        .context("trained from another model than this run's: restore model.showo, or train again in another folder")
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

/// Refuses a training that cannot be done on this model.
///
/// # Errors
/// Names the key to change.
pub fn ensure_trainable(model: &ShowoConfig, config: &RunConfig) -> Result<()> {
    let images_only = config.train.objective != ObjectiveName::ContinuePretraining && config.train.sides == Sides::Gen;
    ensure!(
        images_only || !model.w_clip_vit,
        "train.sides: the captions of {} are about CLIP features (w_clip_vit), and only its images can be trained; \
         set train.sides=gen (with train.objective=pair_dpo or sft_wins)",
        config.model.showo
    );
    Ok(())
}
