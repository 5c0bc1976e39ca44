//! The training loop, in which Pair-DPO, its controls and pretraining are [`Objective`]s.
//!
//! In a step, the gradients of the micro batches are averaged and clipped by their global norm; AdamW updates the
//! parameters with the schedule's learning rate; a line of metrics is written and, every so often, a checkpoint. The
//! loop keeps no other state than the step number and the optimizer, so a run resumed from a checkpoint writes the same
//! bytes as one that was never interrupted.
//!
//! Several processes ([`Trainer::in_group`]) make the same steps together: each takes its share of a step's parts, all have
//! the same parameters, and the writer alone writes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use hermesflow_group::Group;
use hermesflow_nn::{gradients, parallel};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::checkpoint::{self, State};
use crate::gradients::Gradients;
use crate::metrics::{self, Metrics, MetricsFile, StepRecord};
pub use crate::objective::{Objective, ObjectiveError, PartLoss, Position, Sharing, Step};
use crate::optimizer::{AdamW, AdamWSettings};
use crate::place::StatePlace;
use crate::schedule::Schedule;
use crate::watch::{LikelihoodFalls, LikelihoodWatch, WatchSettings};
use crate::{Error, Result};

/// The name of the metrics file in a training folder; it has one JSON line per step.
pub const METRICS_FILE: &str = "metrics.jsonl";

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

    /// What the writer found; the other processes load the same.
    fn agreed(
        found: Option<Self>,
        folder: &Path,
        optimizer: &mut AdamW,
        decisive: &Value,
        group: &Group,
    ) -> Result<Self> {
        let step = found.as_ref().map_or(0, |found| if found.resumed.is_some() { found.step as u64 } else { 0 });
        let steps = group.gather(&step.to_le_bytes())?;
        if let Some(found) = found {
            return Ok(found);
        }
        let step =
            steps.first().and_then(|bytes| bytes.as_slice().try_into().ok()).map_or(0, u64::from_le_bytes) as usize;
        if step == 0 {
            return Ok(Self::default());
        }
        let path = checkpoint::path(folder, step);
        checkpoint::load(&path, optimizer, decisive)?;
        Ok(Self { resumed: Some(path), step, passed_over: Vec::new() })
    }
}

/// A training run in a folder.
pub struct Trainer<O> {
    group: Group,
    objective: O,
    settings: TrainerSettings,
    decisive: Value,
    optimizer: AdamW,
    /// Where the writer writes the steps.
    metrics: Option<MetricsFile>,
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
        Self::in_group(objective, settings, folder, Group::alone())
    }

    /// Like [`Self::new`], in one of the processes of a group, all of which have the same objective, settings and folder.
    ///
    /// # Errors
    /// As [`Self::new`], and if the group cannot share out the parts of a step.
    pub fn in_group(mut objective: O, settings: TrainerSettings, folder: &Path, group: Group) -> Result<Self> {
        settings.validate()?;
        shared_parts(&mut objective, &settings, &group)?;
        let (place, decisive) = (settings.optimizer_state, settings.decisive(objective.settings()));
        let mut optimizer = AdamW::in_group(objective.parameters(), settings.optimizer, place, group.clone())?;
        let newest = group.once(|| {
            std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
            let newest = Newest::load(folder, &mut optimizer, &decisive)?;
            if newest.resumed.is_some() {
                // A run that was killed right after its last checkpoint must leave the same files.
                checkpoint::keep_last(folder, settings.keep_checkpoints)?;
            }
            Ok::<_, Error>(newest)
        })?;
        let Newest { resumed, step, passed_over } = Newest::agreed(newest, folder, &mut optimizer, &decisive, &group)?;
        let file = folder.join(METRICS_FILE);
        let (metrics, before) = match group.once(|| MetricsFile::open(&file, step))? {
            Some((metrics, before)) => (Some(metrics), before),
            None => (None, metrics::read(&file, step)?),
        };
        let mut watch = settings.watch.map(LikelihoodWatch::new);
        let mut stopped = false;
        for record in &before {
            let fell = watch.as_mut().is_some_and(|watch| !watch.observe(&record.metrics).is_empty());
            stopped |= fell && settings.watch.is_some_and(|watch| watch.stop);
        }
        let folder = folder.to_path_buf();
        Ok(Self {
            group,
            objective,
            settings,
            decisive,
            optimizer,
            metrics,
            watch,
            stopped,
            folder,
            resumed,
            passed_over,
        })
    }

    /// Whether the gradients of several processes go from GPU to GPU.
    pub fn is_direct(&self) -> bool {
        self.optimizer.is_direct()
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
        let (values, parts) = match self.group.is_alone() {
            true => self.all_parts(&mut sums)?,
            false => self.shared_parts(&mut sums)?,
        };
        let loss = values.iter().fold(0.0, |loss, value| loss + f64::from(*value) / micros as f64);
        let sums = sums.sum()?;
        let grad_norm = sums.norm(self.optimizer.parameters())? / micros as f64;
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
        if let Some(metrics) = &mut self.metrics {
            metrics.append(&record)?;
        }
        let checkpoint = if self.checkpoint_is_due() { Some(self.save()?) } else { None };
        Ok(StepReport { record, total_steps: self.settings.schedule.steps, falls, checkpoint })
    }

    /// Adds the gradients of all micro batches; their losses part by part, and their metrics.
    fn all_parts(&mut self, sums: &mut Gradients) -> Result<(Vec<f32>, Vec<Metrics>)> {
        let (step, micros) = (self.steps(), self.settings.accumulation);
        let (mut values, mut metrics) = (Vec::new(), Vec::with_capacity(micros));
        for micro in 0..micros {
            let at = Position { step, micro, micros };
            let part = self.objective.micro_batch(at).map_err(|source| objective_error(at, source))?;
            values.extend(self.backward(part.losses, sums)?);
            metrics.push(part.metrics);
        }
        Ok((values, metrics))
    }

    /// As [`Self::all_parts`], but this process computes its share: part `i` of the step is of process `i mod n`, so that
    /// neighbours in the tree of the sums are of neighbours.
    fn shared_parts(&mut self, sums: &mut Gradients) -> Result<(Vec<f32>, Vec<Metrics>)> {
        let (step, micros, group) = (self.steps(), self.settings.accumulation, self.group.clone());
        let per_micro = shared_parts(&mut self.objective, &self.settings, &group)?;
        let mine: Vec<usize> = (group.rank()..micros * per_micro).step_by(group.size()).collect();
        let mut noted = Vec::new();
        for mine in mine.chunk_by(|a, b| a / per_micro == b / per_micro) {
            let at = Position { step, micro: mine[0] / per_micro, micros };
            let parts: Vec<usize> = mine.iter().map(|part| part % per_micro).collect();
            let Some(sharing) = self.objective.sharing() else { continue };
            let losses = sharing.losses(at, &parts).map_err(|source| objective_error(at, source))?;
            let (losses, notes): (Vec<Tensor>, Vec<Vec<f32>>) =
                losses.into_iter().map(|one| (one.loss, one.note)).unzip();
            let values = self.backward(losses, sums)?;
            noted.extend(values.into_iter().zip(notes).map(|(value, note)| [vec![value], note].concat()));
        }
        let mut all = noted_by_all(&group, &noted)?.into_iter();
        let (mut values, mut metrics) = (Vec::new(), Vec::with_capacity(micros));
        for micro in 0..micros {
            let at = Position { step, micro, micros };
            let notes: Vec<Vec<f32>> = all.by_ref().take(per_micro).collect();
            values.extend(notes.iter().filter_map(|note| note.first()));
            let notes: Vec<Vec<f32>> = notes.iter().map(|note| note.iter().skip(1).copied().collect()).collect();
            let Some(sharing) = self.objective.sharing() else { continue };
            metrics.push(sharing.metrics(&notes).map_err(|source| objective_error(at, source))?);
        }
        Ok((values, metrics))
    }

    /// Adds the gradients of some losses, which are returned as numbers.
    fn backward(&self, losses: Vec<Tensor>, sums: &mut Gradients) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(losses.len());
        for loss in &losses {
            let value = loss.to_dtype(DType::F32)?.to_scalar::<f32>()?;
            finite("the loss", value.into(), self.steps())?;
            values.push(value);
        }
        for found in parallel::map(true, &losses, gradients::backward) {
            sums.add(self.optimizer.parameters(), &found?)?;
        }
        Ok(values)
    }

    fn checkpoint_is_due(&self) -> bool {
        let (step, every) = (self.steps(), self.settings.checkpoint_every);
        step == self.settings.schedule.steps || self.stopped || (every > 0 && step.is_multiple_of(every))
    }

    fn save(&mut self) -> Result<PathBuf> {
        let (step, moments) = (self.steps(), self.optimizer.state()?);
        let next = Position { step, micro: 0, micros: self.settings.accumulation }.number();
        self.group.once(|| {
            self.metrics.as_mut().map_or(Ok(()), MetricsFile::sync)?;
            let state = State::new(step, next, self.decisive.clone());
            checkpoint::save(&self.folder, &self.optimizer, &moments, &state, |folder| {
                let at = Position { step: step.saturating_sub(1), micro: 0, micros: self.settings.accumulation };
                self.objective.describe(folder).map_err(|source| objective_error(at, source))
            })?;
            checkpoint::keep_last(&self.folder, self.settings.keep_checkpoints)
        })?;
        Ok(checkpoint::path(&self.folder, step))
    }
}

/// The number of parts of a micro batch, which the processes of a group can share out evenly.
fn shared_parts(objective: &mut impl Objective, settings: &TrainerSettings, group: &Group) -> Result<usize> {
    let processes = group.size();
    if group.is_alone() {
        return Ok(1);
    }
    let per_micro = objective.sharing().ok_or(Error::NotShared { processes })?.parts().max(1);
    Error::unless_shared(group, settings.accumulation * per_micro)?;
    Ok(per_micro)
}

/// What every process noted of its parts, in the order of the parts.
fn noted_by_all(group: &Group, mine: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
    let mut bytes = Vec::new();
    for note in mine {
        bytes.extend_from_slice(&(note.len() as u32).to_le_bytes());
        note.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
    }
    let all = group.gather(&bytes)?;
    let of_process = |bytes: &Vec<u8>| -> Vec<Vec<f32>> {
        let mut words = bytes.as_chunks::<4>().0.iter().copied();
        let mut notes = Vec::new();
        while let Some(length) = words.next().map(u32::from_le_bytes) {
            notes.push(words.by_ref().take(length as usize).map(f32::from_le_bytes).collect());
        }
        notes
    };
    let mut all: Vec<_> = all.iter().map(|bytes| of_process(bytes).into_iter()).collect();
    let count = mine.len() * group.size();
    Ok((0..count).filter_map(|part| all[part % group.size()].next()).collect())
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
