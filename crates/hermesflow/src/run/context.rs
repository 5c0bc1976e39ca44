//! What every step of a run is given: its settings, its files and where its progress is shown.

use super::layout::RunLayout;
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
}

impl RunContext {
    /// An iteration of a run, counted from 1.
    pub fn new(config: RunConfig, iteration: usize, progress: Progress) -> Self {
        let layout = RunLayout::new(&config, iteration);
        Self { config, layout, progress }
    }

    /// Another iteration of the same run, counted from 1.
    pub fn at(&self, iteration: usize) -> Self {
        Self::new(self.config.clone(), iteration, self.progress.clone())
    }
}
