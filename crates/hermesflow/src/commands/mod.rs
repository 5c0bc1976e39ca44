//! One file per command: what it takes (`Args`), what it does (`run`), and the function behind it, which
//! the commands `run` and `demo` call too.

pub mod answer;
pub mod ask;
pub mod caption;
pub mod controls;
pub mod demo;
pub mod eval;
pub mod fetch;
pub mod imagine;
pub mod import;
pub mod judge;
pub mod pair;
pub mod pretrain;
pub mod random_model;
pub mod run;
pub mod scenes;
pub mod train;
pub mod verify;

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::config::RunConfig;
use crate::layout::RunLayout;
use crate::progress::Progress;

/// What every command that reads a run's configuration takes.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArgs {
    /// The run's YAML file, such as configs/scenes.yaml
    pub config: PathBuf,

    /// Single keys to change, such as train.steps=100 imagine.images=4
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,

    /// The seed of every random number (the same as seed=N)
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl ConfigArgs {
    /// The validated configuration.
    ///
    /// # Errors
    /// Names the file, the key and what is expected.
    pub fn load(&self) -> Result<RunConfig> {
        let mut overrides = self.overrides.clone();
        overrides.extend(self.seed.map(|seed| format!("seed={seed}")));
        RunConfig::load(&self.config, &overrides)
    }
}

/// What one stage of one iteration takes.
#[derive(Debug, Clone, clap::Args)]
pub struct StageArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Which iteration, from 1; later ones play with the model that the one before trained
    #[arg(long, value_name = "N", default_value_t = 1)]
    iteration: usize,
}

impl StageArgs {
    /// The configuration, the iteration's files, and where progress goes.
    ///
    /// # Errors
    /// As [`ConfigArgs::load`].
    pub fn open(&self) -> Result<(RunConfig, RunLayout, Progress)> {
        let config = self.config.load()?;
        ensure!(self.iteration >= 1, "--iteration: iterations count from 1");
        let layout = RunLayout::new(&config, self.iteration);
        Ok((config, layout, Progress::stderr()))
    }
}
