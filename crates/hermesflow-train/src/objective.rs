//! What a training minimises: its parameters, and the losses of micro batches, as a whole or in parts that several processes
//! share out.

use std::path::Path;

use candle_core::{Tensor, Var};
use serde_json::Value;

use crate::Result;
use crate::metrics::Metrics;

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

    /// How several processes share the micro batches out; `None` if one process alone can train this objective.
    fn sharing(&mut self) -> Option<&mut dyn Sharing> {
        None
    }

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

/// An objective whose micro batches have parts that different processes can compute. In [`Objective::micro_batch`] the
/// losses are those of the parts, in their order.
pub trait Sharing {
    /// The number of parts of a micro batch, at least 1.
    fn parts(&self) -> usize;

    /// The losses of some parts of a micro batch, counted from 0, in the order of `parts`.
    ///
    /// # Errors
    /// If a loss cannot be computed.
    fn losses(&mut self, at: Position, parts: &[usize]) -> std::result::Result<Vec<PartLoss>, ObjectiveError>;

    /// The metrics of a micro batch, from what was noted of each of its parts.
    ///
    /// # Errors
    /// If what was noted is not of this objective.
    fn metrics(&self, notes: &[Vec<f32>]) -> std::result::Result<Metrics, ObjectiveError>;
}

/// A part of a micro batch's loss.
#[derive(Debug, Clone)]
pub struct PartLoss {
    /// The part's summand of the micro batch's loss, a scalar.
    pub loss: Tensor,
    /// The numbers that the metrics follow from.
    pub note: Vec<f32>,
}
