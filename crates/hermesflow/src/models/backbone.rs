//! Which backbones there are, and which one a checkpoint is. A backbone is a file beside this one and a line of [`ALL`];
//! nothing else of the program names one, but for its settings.

use std::path::Path;

use anyhow::{Context, Result, bail};
use hermesflow_models::{Weights, foreign};
use serde_json::Value;

use super::hub::{Hub, Parts};
use super::janus::JanusPro;
use super::kind::{Kind, RandomModel, SmallFile};
use super::showo::ShowO;
use crate::config::{BackboneName, ModelSettings};
use crate::progress::Progress;

/// Every kind of model.
const ALL: [&dyn Kind; 2] = [&ShowO, &JanusPro];

/// The kind of this name; the first one where it was left open.
fn of(name: BackboneName) -> &'static dyn Kind {
    ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(ALL[0])
}

/// The kind of model that is meant where none is named.
pub fn usual() -> BackboneName {
    ALL[0].name()
}

/// A kind of model by its name.
///
/// # Errors
/// Lists the names.
pub fn named(text: &str) -> Result<BackboneName> {
    let names: Vec<String> = ALL.iter().map(|kind| kind.name().to_string()).collect();
    let found = ALL.into_iter().find(|kind| kind.name().to_string() == text);
    found.map(Kind::name).with_context(|| format!("{text:?} is none of {}", names.join(", ")))
}

/// The kind of model that some settings name; the usual one where it is not known yet.
pub fn expected(settings: &ModelSettings) -> &'static dyn Kind {
    of(settings.backbone)
}

/// The kind of model of some settings.
///
/// # Errors
/// When the checkpoint turned out to be of another kind than what its settings were read for.
pub fn kind(settings: &ModelSettings, progress: &Progress) -> Result<&'static dyn Kind> {
    if settings.backbone != BackboneName::Auto || settings.is_embedded() {
        return Ok(of(settings.backbone));
    }
    // It was not here when the settings were read, and may be fetched now.
    let name = &settings.checkpoint;
    let parts = if Hub::known(name).is_some() { None } else { Some(Parts::Checkpoint) };
    let folder = Hub::from_environment()?.model(name, parts, progress).context("model.checkpoint")?;
    match kind_of(&folder) {
        Some(kind) if kind.name() == usual() => Ok(kind),
        Some(kind) => {
            let backbone = kind.name();
            bail!(
                "model.backbone: {name} is a {backbone}, which was not known when the settings were read; run this again"
            )
        }
        None => Ok(of(usual())), // which says what is wrong
    }
}

/// Of which kind a model is, where that can be known without fetching it.
pub fn find(settings: &ModelSettings) -> Option<BackboneName> {
    let hub = Hub::from_environment().ok()?;
    if let Some(folder) = hub.present(&settings.checkpoint, None).ok().flatten() {
        return kind_of(&folder).map(Kind::name);
    }
    ALL.into_iter().find(|kind| kind.publishes(&settings.checkpoint)).map(Kind::name)
}

/// The kind of a checkpoint, by its `config.json`.
fn kind_of(folder: &Path) -> Option<&'static dyn Kind> {
    let text = foreign::text(std::fs::read(folder.join("config.json")).ok()?).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    ALL.into_iter().find(|kind| kind.has(&config))
}

/// Writes a checkpoint of a kind with random weights.
///
/// # Errors
/// Names the argument that this kind has no use for, or the file that cannot be written.
pub fn random(backbone: BackboneName, wanted: &RandomModel, folder: &Path) -> Result<()> {
    of(backbone).random(wanted, folder)
}

/// The small files that belong to the weights of a checkpoint's folder, which fit each other.
///
/// # Errors
/// When they do not, or the folder is no checkpoint of any kind.
pub fn small_files(folder: &Path, weights: &Weights) -> Result<Vec<SmallFile>> {
    let path = folder.join("config.json");
    let text = foreign::text(std::fs::read(&path).with_context(|| path.display().to_string())?);
    let text = text.map_err(|what| anyhow::anyhow!("{}: {what}", path.display()))?;
    let config: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    for kind in ALL {
        if let Some(files) = kind.small_files(folder, &config, weights)? {
            return Ok(files);
        }
    }
    bail!("{}: is of no kind of model that this program knows", path.display())
}
