//! The folder of a run: its saved configuration, and whether it may be continued with the configuration of now.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hermesflow_train::checkpoint;

use super::decisive::decisive;
use super::layout::RunLayout;
use crate::config::RunConfig;
use crate::files;
use crate::made;

/// The first line of a saved configuration: what has it may be written over.
const SAVED: &str = "# The whole configuration of this run, as hermesflow resolved it.\n";

/// Saves the resolved configuration in the run folder, which [`check`] has seen.
///
/// # Errors
/// Names the file that cannot be written.
pub fn save_config(config: &RunConfig) -> Result<()> {
    let path = RunLayout::new(config, 1).config();
    files::write_atomically(&path, (SAVED.to_owned() + &config.to_yaml()?).as_bytes())
}

/// Refuses a run folder that is none, or whose training has begun under another configuration.
///
/// What each stage made is bound by its own notes, and what was never made binds nothing. But a training follows from all
/// of a run: once one has begun, another configuration would do hours of work only to be refused by it.
///
/// # Errors
/// Names what differs, or the file that is not a run's.
pub fn check(config: &RunConfig) -> Result<()> {
    let path = RunLayout::new(config, 1).config();
    if !path.exists() {
        return Ok(());
    }
    let there = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let saved = RunConfig::parse(&there, &[]).ok();
    let is_as_saved = |saved: &RunConfig| saved.to_yaml().is_ok_and(|text| text == there);
    ensure!(
        there.starts_with(SAVED) || saved.as_ref().is_some_and(is_as_saved),
        "{}: would be overwritten, and is not the configuration of an earlier run; choose another `output`, or move it \
         away",
        path.display()
    );
    let begun = (1..=config.iterations).any(|iteration| has_begun(&RunLayout::new(config, iteration)));
    let differing = match saved.filter(|_| begun) {
        Some(saved) => made::differences(&decisive(&saved)?, &decisive(config)?),
        None => Vec::new(),
    };
    ensure!(
        differing.is_empty(),
        "{}: this folder holds a run with different settings ({}) whose training has begun; restore these, or choose \
         another `output` and, where curation differs or there are several iterations, another `data.root`",
        path.display(),
        differing.join("; ")
    );
    Ok(())
}

/// The files that a training leaves: its model and its checkpoints.
///
/// # Errors
/// Names the training folder when it cannot be read.
pub fn trained_files(layout: &RunLayout) -> Result<Vec<PathBuf>> {
    let checkpoints = checkpoint::list(&layout.training())?.into_iter().map(|(_, path)| path);
    Ok(std::iter::once(layout.model()).chain(checkpoints).collect())
}

/// Whether an iteration's training has left anything.
pub fn has_begun(layout: &RunLayout) -> bool {
    trained_files(layout).is_ok_and(|files| files.iter().any(|path| path.exists()))
}
