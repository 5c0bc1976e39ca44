//! Replays recorded numbers with this build and compares the results.
//!
//! A case is a folder: a model case (`case.json`, `trace.safetensors` and checkpoints in the published layout), a
//! checkpoint with `logits.safetensors`, `rules/`, `image/`, `tokenizer/`, or the model of a judge of texts. All
//! expected numbers are read from the folder.

mod case;
pub mod check;
mod janus;
pub mod logits;
pub mod model;
pub mod others;
mod pair_dpo;
mod pairs;
mod questions;
mod rules;
mod scorers;
mod trace;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

pub use check::{Check, Report, Verdict};

/// The result of a replay.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a case could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing or malformed.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The numbers of a case contradict each other: what is wrong.
    #[error("{0}")]
    Case(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] hermesflow_models::Error),
    /// Weights could not be loaded.
    #[error(transparent)]
    Weights(#[from] hermesflow_nn::weights::Error),
    /// A judge could not be loaded or run.
    #[error(transparent)]
    Score(#[from] hermesflow_score::Error),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] hermesflow_train::Error),
}

impl Error {
    pub(crate) fn file(path: &Path, message: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_path_buf(), message: message.to_string() }
    }
}

/// The kinds of cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Logits,
    Pairs,
    Questions,
    Image,
    Tokenizer,
    Scorer,
}

fn kinds(folder: &Path) -> Vec<Kind> {
    let has = |name: &str| folder.join(name).is_file();
    let mut kinds = Vec::new();
    if has("case.json") && has("trace.safetensors") {
        kinds.push(Kind::Model);
    }
    if has(logits::FILE) {
        kinds.push(Kind::Logits);
    }
    if has("pairs.json") {
        kinds.push(Kind::Pairs);
    }
    if has("questions.json") {
        kinds.push(Kind::Questions);
    }
    if has("cases.json") {
        kinds.push(Kind::Image);
    }
    if has("expected.json") {
        kinds.push(if has("config.json") { Kind::Scorer } else { Kind::Tokenizer });
    }
    kinds
}

/// Replays a case folder, or every case below a folder in the order of names, on a device; `on_case` is called before
/// each.
///
/// A case that cannot be replayed gives a failed check that says why. The tolerances are those of the CPU on every
/// device: models and products are in f32, and a GPU only adds in another order. With `dtype` bf16, model cases are
/// replayed with their matrices in bf16, within tolerances of their own; everything else stays in f32.
///
/// # Errors
/// If the folder cannot be read.
pub fn verify(path: &Path, device: &Device, dtype: DType, mut on_case: impl FnMut(&Path)) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    walk(path, &mut |folder, kind| {
        on_case(folder);
        let name =
            folder.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned());
        let mut report = Report::new(name);
        let outcome = match kind {
            Kind::Model => model_case(folder, device, dtype, &mut report),
            Kind::Logits => logits::replay(folder, device, &mut report),
            Kind::Pairs => rules::replay(folder, &mut report),
            Kind::Questions => questions::replay(folder, &mut report),
            Kind::Image => others::images(folder, &mut report),
            Kind::Tokenizer => others::tokenizer(folder, &mut report),
            Kind::Scorer => scorers::replay(folder, device, &mut report),
        };
        if let Err(error) = outcome {
            report.fail("replay", error.to_string());
        }
        checks.append(&mut report.checks);
    })?;
    Ok(checks)
}

/// Replays a model case by the backbone that its `case.json` names; Show-o's name none.
fn model_case(folder: &Path, device: &Device, dtype: DType, report: &mut Report) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Named {
        #[serde(default)]
        backbone: Option<String>,
    }
    let named: Named = others::read(&folder.join("case.json"))?;
    match named.backbone.as_deref() {
        None | Some("showo") => model::replay(folder, device, dtype, report),
        Some("janus") => janus::replay(folder, device, dtype, report),
        Some(other) => {
            report.skip("model", format!("backbone {other:?} is not known to this build"));
            Ok(())
        }
    }
}

fn walk(folder: &Path, on_case: &mut impl FnMut(&Path, Kind)) -> Result<()> {
    let kinds = kinds(folder);
    if !kinds.is_empty() {
        kinds.into_iter().for_each(|kind| on_case(folder, kind));
        return Ok(());
    }
    let entries = std::fs::read_dir(folder).map_err(|e| Error::file(folder, e))?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders.iter().try_for_each(|below| walk(below, on_case))
}
