//! The one training loop: Pair-DPO, its controls and pretraining are [`Objective`]s in it.
//!
//! A step: the mean gradient over the micro batches, clipped by its global norm; AdamW at the
//! schedule's learning rate; a line of metrics; every so often a checkpoint. The loop keeps no state
//! but the step number and the optimizer, so a run that continues from a checkpoint is, byte for byte,
//! the run that was never killed.

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

/// The file of a training folder that holds one JSON line per step.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// Which micro batch of a run is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The step, from 0.
    pub step: usize,
    /// The micro batch of the step, from 0.
    pub micro: usize,
    /// Micro batches per step.
    pub micros: usize,
}

impl Position {
    /// The run-wide number of this micro batch.
    pub fn number(self) -> u64 {
        self.step as u64 * self.micros as u64 + self.micro as u64
    }

    /// The run-wide number of the `index`-th example of this micro batch, if each holds `batch_size`.
    ///
    /// Draw data and random numbers by it, and 1 micro batch of 4 sees what 4 micro batches of 1 see.
    pub fn example(self, index: usize, batch_size: usize) -> u64 {
        self.number() * batch_size as u64 + index as u64
    }
}

/// What a micro batch gives.
#[derive(Debug, Clone)]
pub struct Step {
    /// The mean loss over the micro batch in summands, each a scalar with a graph of its own; they are
    /// differentiated side by side.
    pub losses: Vec<Tensor>,
    /// What there is to report.
    pub metrics: Metrics,
}

impl Step {
    /// The whole loss.
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
    fn micro_batch(&mut self, at: Position) -> std::result::Result<Step, ObjectiveError>;

    /// Epochs of the data that are over when `at` is reached.
    fn epoch(&self, at: Position) -> f64;

    /// Everything that decides this objective's numbers (settings, seed, a digest of its data): a run
    /// continues only under the same.
    fn settings(&self) -> Value;

    /// Writes the model's configuration into a checkpoint, so that the folder can be opened as a model.
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

    /// What decides the numbers of a run: not where the optimizer's state lies, nor how often and how many checkpoints
    /// are written.
    fn decisive(&self, objective: Value) -> Value {
        json!({
            "schedule": self.schedule,
            "optimizer": self.optimizer,
            "accumulation": self.accumulation,
            "max_grad_norm": self.max_grad_norm,
            // Whether a run stops there leaves its steps as they are.
            "watch": self.watch.map(|watch| WatchSettings { stop: false, ..watch }),
            "objective": objective,
        })
    }
}

/// What a step tells the caller.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// The line that was written.
    pub record: StepRecord,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// Sides whose winning likelihood keeps falling.
    pub falls: Vec<LikelihoodFalls>,
    /// The checkpoint that was written after this step.
    pub checkpoint: Option<PathBuf>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All steps are made.
    Finished,
    /// The likelihood watch stopped it after this many steps, with a checkpoint.
    LikelihoodFell {
        /// Steps made.
        step: usize,
    },
    /// The callback interrupted it after this many steps; no checkpoint was written for that.
    Interrupted {
        /// Steps made.
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
    /// Restores parameters and optimizer from it. Those that cannot be read go: the steps to them are made again.
    fn load(folder: &Path, optimizer: &mut AdamW, decisive: &Value) -> Result<Self> {
        let mut found = Self::default();
        let mut newest = None;
        for (_, path) in checkpoint::list(folder)?.into_iter().rev() {
            match checkpoint::load(&path, optimizer, decisive) {
                Ok(state) => {
                    found.passed_over.iter().try_for_each(|(path, _)| checkpoint::discard(path))?;
                    return Ok(Self { resumed: Some(path), step: state.step, ..found });
                }
                // Of other settings, and not broken.
                Err(error @ Error::OtherSettings { .. }) => return Err(error),
                Err(error) => {
                    found.passed_over.push((path, error.to_string()));
                    newest.get_or_insert(error);
                }
            }
        }
        // Without one that can be read the parameters are not what the run began with any more.
        newest.map_or(Ok(found), |error| Err(Error::NoCheckpoint(Box::new(error))))
    }
}

/// A run in a training folder.
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
    /// A run in `folder`: from the folder's newest checkpoint that can be read if it has any, else from the beginning.
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

    /// Newer checkpoints than the one that this run continues from, which could not be read, and why.
    pub fn passed_over(&self) -> &[(PathBuf, String)] {
        &self.passed_over
    }

    /// The checkpoint that this run continues from.
    pub fn resumed_from(&self) -> Option<&Path> {
        self.resumed.as_deref()
    }

    /// Steps made.
    pub fn steps(&self) -> usize {
        self.optimizer.steps()
    }

    /// The objective.
    pub fn objective(&self) -> &O {
        &self.objective
    }

    /// The objective, its parameters as they are now.
    pub fn into_objective(self) -> O {
        self.objective
    }

    /// Makes the remaining steps and tells `on_step` of each; it may break the run off.
    pub fn run(&mut self, mut on_step: impl FnMut(&StepReport) -> ControlFlow<()>) -> Result<Outcome> {
        while self.steps() < self.settings.schedule.total_steps && !self.stopped {
            let report = self.step()?;
            if on_step(&report).is_break() {
                return Ok(Outcome::Interrupted { step: self.steps() });
            }
        }
        let ended = self.stopped && self.steps() < self.settings.schedule.total_steps;
        Ok(if ended { Outcome::LikelihoodFell { step: self.steps() } } else { Outcome::Finished })
    }

    /// Makes one step, with its metrics and, if it is due, its checkpoint.
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
        // PyTorch's clip_grad_norm_: its 1e-6 included.
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
        Ok(StepReport { record, total_steps: self.settings.schedule.total_steps, falls, checkpoint })
    }

    fn checkpoint_is_due(&self) -> bool {
        let (step, every) = (self.steps(), self.settings.checkpoint_every);
        step == self.settings.schedule.total_steps || self.stopped || (every > 0 && step.is_multiple_of(every))
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
