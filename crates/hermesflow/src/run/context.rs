//! What every step of a run is given: its settings, its files, where its progress is shown, and who does it together.

use anyhow::Result;
use hermesflow_group::Group;

use super::layout::RunLayout;
use super::sharing::Sharing;
use crate::config::RunConfig;
use crate::progress::Progress;

/// One iteration of a run.
#[derive(Debug, Clone)]
pub struct RunContext {
    /// Every setting of the run, resolved and checked.
    pub config: RunConfig,
    /// Where the files of this iteration are.
    pub layout: RunLayout,
    /// Where progress and the log go.
    pub progress: Progress,
    /// The processes that do it together, and which piece of work this one is at.
    pub sharing: Sharing,
}

impl RunContext {
    /// An iteration of a run, counted from 1, done by all processes of this job.
    pub fn new(config: RunConfig, iteration: usize, progress: Progress) -> Self {
        let layout = RunLayout::new(&config, iteration);
        Self { config, layout, progress, sharing: Sharing::of(Group::world()) }
    }

    /// Another iteration of the same run, counted from 1.
    pub fn at(&self, iteration: usize) -> Self {
        let layout = RunLayout::new(&self.config, iteration);
        Self { layout, ..self.clone() }
    }

    /// The processes that do this run together.
    pub fn group(&self) -> &Group {
        &self.sharing.group
    }

    /// Work that the writer does on its own, as in a run of one process, while the others wait; they get `None`.
    ///
    /// # Errors
    /// What `work` says, or that another process is gone.
    pub fn once<T>(&self, work: impl FnOnce(&Self) -> Result<T>) -> Result<Option<T>> {
        self.group().once(|| work(&Self { sharing: self.sharing.alone(), ..self.clone() }))
    }
}
