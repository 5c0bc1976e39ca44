//! The training loop, in which Pair-DPO, its controls and pretraining are [`Objective`]s.
//!
//! In a step, the gradients of the micro batches are averaged and clipped by their global norm; AdamW updates the
//! parameters with the schedule's learning rate; a line of metrics is written and, every so often, a checkpoint. The
//! loop keeps no other state than the step number and the optimizer, so a run resumed from a checkpoint writes the same
//! bytes as one that was never interrupted.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor, Var};
use hermesflow_nn::{gradients, parallel};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::checkpoint::{self, State};
use crate::metrics::{Metrics, MetricsFile, StepRecord};
use crate::optimizer::{AdamW, AdamWSettings, StatePlace};
use crate::schedule::Schedule;
use crate::watch::{LikelihoodFalls, LikelihoodWatch, WatchSettings};
use crate::{Error, Result};

/// The name of the metrics file in a training folder; it has one JSON line per step.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// A micro batch of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The step, from 0.
    pub step: usize,
    /// The micro batch of the step, from 0.
    pub micro: usize,
    /// The number of micro batches per step.
    pub micros: usize,
}

impl Position {
    /// The number of this micro batch in the whole run, from 0.
    pub fn number(self) -> u64 {
        self.step as u64 * self.micros as u64 + self.micro as u64
    }

    /// The number in the whole run, from 0, of the `index`-th example of this micro batch, if each has `batch_size`
    /// examples.
    ///
    /// An objective that draws data and random numbers by it sees the same with 1 micro batch of 4 as with 4 micro
    /// batches of 1.
    pub fn example(self, index: usize, batch_size: usize) -> u64 {
        self.number() * batch_size as u64 + index as u64
    }
}

/// The loss and the metrics of a micro batch.
#[derive(Debug, Clone)]
pub struct Step {
    /// The mean loss over the micro batch, as a sum of scalars with separate graphs, which are differentiated in
    /// parallel.
    pub losses: Vec<Tensor>,
    /// The metrics to report.
    pub metrics: Metrics,
}

impl Step {
    /// The whole loss, a scalar.
    ///
    /// # Errors
    /// If there is no loss, or a tensor operation fails.
    pub fn loss(&self) -> Result<Tensor> {
        Ok(Tensor::stack(&self.losses, 0)?.sum_all()?)
    }
}

/// The error of an objective of any crate.
pub type ObjectiveError = Box<dyn std::error::Error + Send + Sync>;

/// Something to minimise.
pub trait Objective {
    /// The trainable parameters with their names. Each must receive a gradient in every step.
    fn parameters(&self) -> Vec<(String, Var)>;

    /// The loss of one micro batch. All randomness must follow from the seed and the position.
    ///
    /// # Errors
    /// If the loss cannot be computed.
    fn micro_batch(&mut self, at: Position) -> std::result::Result<Step, ObjectiveError>;

    /// The number of epochs of the data that are complete when `at` is reached.
    fn epoch(&self, at: Position) -> f64;

    /// Everything that decides the objective's numbers: settings, seed, a digest of its data. A run can only be resumed
    /// with the same.
    fn settings(&self) -> Value;

    /// Writes the model's configuration into a checkpoint, so that the folder can be loaded as a model. By default
    /// nothing is written.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn describe(&self, folder: &Path) -> std::result::Result<(), ObjectiveError> {
        let _ = folder;
        Ok(())
    }
}

/// The settings of the loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerSettings {
    /// The learning rate of every step, and the number of steps.
    pub schedule: Schedule,
    /// AdamW's other numbers.
    pub optimizer: AdamWSettings,
    /// Where its moments lie.
    #[serde(default)]
    pub optimizer_state: StatePlace,
    /// Micro batches per step.
    pub accumulation: usize,
    /// The gradient is scaled down to this norm.
    pub max_grad_norm: Option<f64>,
    /// The alarm on a falling winning likelihood.
    pub watch: Option<WatchSettings>,
    /// Steps between checkpoints; 0 writes one at the end only.
    pub checkpoint_every: usize,
    /// How many checkpoints are kept, at least 1.
    pub keep_checkpoints: usize,
}

impl TrainerSettings {
    /// A loop over `schedule` with everything else as usual: AdamW's defaults, no accumulation, no
    /// clipping, the alarm on, a checkpoint at the end.
    pub fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            optimizer: AdamWSettings::default(),
            optimizer_state: StatePlace::Device,
            accumulation: 1,
            max_grad_norm: None,
            watch: Some(WatchSettings::default()),
            checkpoint_every: 0,
            keep_checkpoints: 2,
        }
    }

    /// Checks that the numbers agree.
    pub fn validate(&self) -> Result<()> {
        let setting = |key, problem: String| Err(Error::Setting { key, problem });
        self.schedule.validate()?;
        self.optimizer.validate()?;
        if self.accumulation == 0 {
            return setting("accumulation", "must be at least 1".into());
        }
        if let Some(norm) = self.max_grad_norm.filter(|norm| !(norm.is_finite() && *norm > 0.0)) {
            return setting("max_grad_norm", format!("{norm} is not above 0"));
        }
        if self.watch.is_some_and(|watch| watch.window == 0) {
            return setting("watch.window", "must be at least 1".into());
        }
        Ok(())
    }

    /// The settings that decide the numbers of a run. Where the optimizer's state is, and how often and how many
    /// checkpoints are written, do not.
    fn decisive(&self, objective: Value) -> Value {
        json!({
            "schedule": self.schedule,
            "optimizer": self.optimizer,
            "accumulation": self.accumulation,
            "max_grad_norm": self.max_grad_norm,
            // Whether a run stops at an alarm does not change its steps.
            "watch": self.watch.map(|watch| WatchSettings { stop: false, ..watch }),
            "objective": objective,
        })
    }
}

/// What the loop reports after a step.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// The line of the metrics file.
    pub record: StepRecord,
    /// The number of steps of the whole run.
    pub total_steps: usize,
    /// The sides whose winning likelihood keeps falling.
    pub falls: Vec<LikelihoodFalls>,
    /// The checkpoint written after this step, if any.
    pub checkpoint: Option<PathBuf>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All steps were made.
    Finished,
    /// The likelihood watch stopped the run, with a checkpoint.
    LikelihoodFell {
        /// The number of steps made.
        step: usize,
    },
    /// The caller stopped the run; no checkpoint was written for that.
    Interrupted {
        /// The number of steps made.
        step: usize,
    },
}

/// The newest checkpoint that can be read.
#[derive(Default)]
struct Newest {
    resumed: Option<PathBuf>,
    step: usize,
    passed_over: Vec<(PathBuf, String)>,
}

impl Newest {
    /// Restores parameters and optimizer from the newest readable checkpoint. Newer, unreadable ones are removed, and
    /// their steps are made again.
    fn load(folder: &Path, optimizer: &mut AdamW, decisive: &Value) -> Result<Self> {
        let mut found = Self::default();
        let mut newest = None;
        for (_, path) in checkpoint::list(folder)?.into_iter().rev() {
            match checkpoint::load(&path, optimizer, decisive) {
                Ok(state) => {
                    found.passed_over.iter().try_for_each(|(path, _)| checkpoint::discard(path))?;
                    return Ok(Self { resumed: Some(path), step: state.step, ..found });
                }
                // The checkpoint is readable but was made with other settings.
                Err(error @ Error::OtherSettings { .. }) => return Err(error),
                Err(error) => {
                    found.passed_over.push((path, error.to_string()));
                    newest.get_or_insert(error);
                }
            }
        }
        // Failed attempts may have changed the parameters, so the run cannot start from the beginning either.
        newest.map_or(Ok(found), |error| Err(Error::NoCheckpoint(Box::new(error))))
    }
}

/// A training run in a folder.
pub struct Trainer<O> {
    objective: O,
    settings: TrainerSettings,
    decisive: Value,
    optimizer: AdamW,
    metrics: MetricsFile,
    watch: Option<LikelihoodWatch>,
    stopped: bool,
    folder: PathBuf,
    resumed: Option<PathBuf>,
    passed_over: Vec<(PathBuf, String)>,
}

impl<O: Objective> Trainer<O> {
    /// A run in `folder`, which is made if need be. It continues from the folder's newest readable checkpoint if there
    /// is one.
    ///
    /// # Errors
    /// If a setting is out of range, the folder cannot be written, its checkpoints were made with other settings, or
    /// none of them can be read.
    pub fn new(objective: O, settings: TrainerSettings, folder: &Path) -> Result<Self> {
        settings.validate()?;
        std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let mut optimizer = AdamW::with_state(objective.parameters(), settings.optimizer, settings.optimizer_state)?;
        let decisive = settings.decisive(objective.settings());
        let Newest { resumed, step, passed_over } = Newest::load(folder, &mut optimizer, &decisive)?;
        if resumed.is_some() {
            // A run that was killed right after its last checkpoint must leave the same files.
            checkpoint::keep_last(folder, settings.keep_checkpoints)?;
        }
        let (metrics, before) = MetricsFile::open(&folder.join(METRICS_FILE), step)?;
        let mut watch = settings.watch.map(LikelihoodWatch::new);
        let mut stopped = false;
        for record in &before {
            let fell = watch.as_mut().is_some_and(|watch| !watch.observe(&record.metrics).is_empty());
            stopped |= fell && settings.watch.is_some_and(|watch| watch.stop);
        }
        let folder = folder.to_path_buf();
        Ok(Self { objective, settings, decisive, optimizer, metrics, watch, stopped, folder, resumed, passed_over })
    }

    /// Newer checkpoints than the one that this run continues from, which could not be read, each with the reason.
    pub fn passed_over(&self) -> &[(PathBuf, String)] {
        &self.passed_over
    }

    /// The checkpoint that this run continues from; `None` if it starts from the beginning.
    pub fn resumed_from(&self) -> Option<&Path> {
        self.resumed.as_deref()
    }

    /// The number of steps made.
    pub fn steps(&self) -> usize {
        self.optimizer.steps()
    }

    /// The objective.
    pub fn objective(&self) -> &O {
        &self.objective
    }

    /// The objective, with its parameters as they are now.
    pub fn into_objective(self) -> O {
        self.objective
    }

    /// Makes the remaining steps and calls `on_step` after each, which can stop the run.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn run(&mut self, mut on_step: impl FnMut(&StepReport) -> ControlFlow<()>) -> Result<Outcome> {
        while self.steps() < self.settings.schedule.steps && !self.stopped {
            let report = self.step()?;
            if on_step(&report).is_break() {
                return Ok(Outcome::Interrupted { step: self.steps() });
            }
        }
        let ended = self.stopped && self.steps() < self.settings.schedule.steps;
        Ok(if ended { Outcome::LikelihoodFell { step: self.steps() } } else { Outcome::Finished })
    }

    /// Makes one step and writes its metrics and, if it is due, its checkpoint.
    ///
    /// # Errors
    /// If the objective fails, the loss or the gradient is not finite, a parameter has no gradient, or a file cannot be
    /// written.
    pub fn step(&mut self) -> Result<StepReport> {
        let (step, micros) = (self.steps(), self.settings.accumulation);
        let mut sums = self.optimizer.gradients();
        let (mut loss, mut parts) = (0.0, Vec::with_capacity(micros));
        for micro in 0..micros {
            let at = Position { step, micro, micros };
            let part = self.objective.micro_batch(at).map_err(|source| objective_error(at, source))?;
            for summand in &part.losses {
                let value = f64::from(summand.to_dtype(DType::F32)?.to_scalar::<f32>()?);
                finite("the loss", value, step)?;
                loss += value / micros as f64;
            }
            let found = parallel::map(true, &part.losses, gradients::backward);
            for found in found {
                sums.add(self.optimizer.parameters(), &found?)?;
            }
            parts.push(part.metrics);
        }
        let grad_norm = sums.norm()? / micros as f64;
        finite("the gradient norm", grad_norm, step)?;
        // As PyTorch's clip_grad_norm_, including its 1e-6.
        let clip = self.settings.max_grad_norm.map_or(1.0, |limit| (limit / (grad_norm + 1e-6)).min(1.0));
        let learning_rate = self.settings.schedule.learning_rate(step);
        self.optimizer.step(&sums, learning_rate, clip / micros as f64)?;

        let metrics = Metrics::mean(&parts);
        let falls = self.watch.as_mut().map(|watch| watch.observe(&metrics)).unwrap_or_default();
        self.stopped |= !falls.is_empty() && self.settings.watch.is_some_and(|watch| watch.stop);
        let warnings = falls.iter().map(LikelihoodFalls::to_string).collect();
        let epoch = self.objective.epoch(Position { step: step + 1, micro: 0, micros });
        let record = StepRecord { step: step + 1, epoch, loss, grad_norm, learning_rate, metrics, warnings };
        self.metrics.append(&record)?;
        let checkpoint = if self.checkpoint_is_due() { Some(self.save()?) } else { None };
        Ok(StepReport { record, total_steps: self.settings.schedule.steps, falls, checkpoint })
    }

    fn checkpoint_is_due(&self) -> bool {
        let (step, every) = (self.steps(), self.settings.checkpoint_every);
        step == self.settings.schedule.steps || self.stopped || (every > 0 && step.is_multiple_of(every))
    }

    fn save(&mut self) -> Result<PathBuf> {
        self.metrics.sync()?;
        let step = self.steps();
        let next = Position { step, micro: 0, micros: self.settings.accumulation }.number();
        let state = State::new(step, next, self.decisive.clone());
        let path = checkpoint::save(&self.folder, &self.optimizer, &state, |folder| {
            let at = Position { step: step.saturating_sub(1), micro: 0, micros: self.settings.accumulation };
            self.objective.describe(folder).map_err(|source| objective_error(at, source))
        })?;
        checkpoint::keep_last(&self.folder, self.settings.keep_checkpoints)?;
        Ok(path)
    }
}

fn objective_error(at: Position, source: ObjectiveError) -> Error {
    match source.downcast::<Error>() {
        Ok(ours) => *ours,
        Err(source) => Error::Objective { step: at.step + 1, micro: at.micro, source },
    }
}

fn finite(what: &'static str, value: f64, step: usize) -> Result<()> {
    if value.is_finite() { Ok(()) } else { Err(Error::NotFinite { what, value, step: step + 1 }) }
}
