//! Errors of training.

use std::path::{Path, PathBuf};

use hermesflow_group::Group;

/// The result of training.
pub type Result<T> = std::result::Result<T, Error>;

/// Why training failed or cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),

    /// The model failed.
    #[error(transparent)]
    Model(#[from] hermesflow_models::Error),

    /// A checkpoint's weights cannot be read.
    #[error(transparent)]
    Weights(#[from] hermesflow_nn::weights::Error),

    /// A file that grows while a training runs cannot be read or written.
    #[error(transparent)]
    Records(#[from] hermesflow_records::Error),

    /// An objective from another crate failed.
    #[error("the objective failed at step {step}, micro batch {micro} (from 0): {source}")]
    Objective {
        /// The step, from 1.
        step: usize,
        /// The micro batch of the step, from 0.
        micro: usize,
        /// The objective's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The reference's log-probabilities of captions could not be stored.
    #[error("the reference's log-probabilities of captions cannot be stored: {0}")]
    Memory(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// The stored features of a pair's own image could not be read.
    #[error("the stored features of an image cannot be read: {0}")]
    Features(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// A JSON file of a training folder is malformed.
    #[error("{}: not a {what}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the file should be.
        what: &'static str,
        /// The parser's error.
        source: serde_json::Error,
    },

    /// Processes that train together have lost each other.
    #[error(transparent)]
    Group(#[from] hermesflow_group::Error),

    /// The GPUs of several processes cannot exchange numbers.
    #[cfg(feature = "nccl")]
    #[error(transparent)]
    Peers(#[from] hermesflow_nn::device::peers::Error),

    /// The parts of a step cannot be shared out evenly.
    #[error(
        "{processes} processes cannot share the {parts} {} of a training step evenly: {} can; smaller micro batches, and more \
         of them (train.batch_size, train.accumulation), give more parts of a step of the same pairs",
        if *.parts == 1 { "part" } else { "parts" }, numbers(.good)
    )]
    Processes {
        /// How many processes train together.
        processes: usize,
        /// The parts of a step: micro batches, or parts of these where the model is small.
        parts: usize,
        /// The numbers of processes that can.
        good: Vec<usize>,
    },

    /// An objective that only one process can train.
    #[error("this objective is trained by one process, and {processes} were started")]
    NotShared {
        /// How many processes were started.
        processes: usize,
    },

    /// A setting is outside its range or disagrees with another one.
    #[error("setting `{key}`: {problem}")]
    Setting {
        /// The key as configurations spell it.
        key: &'static str,
        /// What is wrong: the value and its range.
        problem: String,
    },

    /// A training pair cannot be used.
    #[error("training pair {id}: {problem}")]
    TrainingPair {
        /// The pair's record id.
        id: String,
        /// What is wrong.
        problem: String,
    },

    /// The loss or the norm of the gradient became infinite or NaN; no parameter was changed by that step.
    #[error(
        "{what} is {value} at step {step}; the last checkpoint is intact (a lower learning rate or `max_grad_norm`, with \
         another output folder, may help)"
    )]
    NotFinite {
        /// "the loss" or "the gradient norm".
        what: &'static str,
        /// The value.
        value: f64,
        /// The step, from 1.
        step: usize,
    },

    /// A trainable parameter received no gradient in a step, because an operator between it and the loss has no
    /// backward pass.
    #[error("parameter {name} received no gradient: an operator on its way to the loss has no backward pass")]
    NoGradient {
        /// The parameter's name.
        name: String,
    },

    /// Two trainable parameters have the same name.
    #[error("two trainable parameters are named {name}")]
    DuplicateParameter {
        /// The name.
        name: String,
    },

    /// A tensor of a checkpoint is missing, unexpected, or of another type or shape than the model's.
    #[error("{}: tensor {name}: {problem}", path.display())]
    CheckpointTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What is wrong, with types and shapes.
        problem: String,
    },

    /// A run cannot be resumed from a checkpoint that was written with other settings.
    #[error(
        "{} was written under other settings, so the run cannot continue from it ({differences}); \
         restore the settings or choose another output folder",
        path.display()
    )]
    OtherSettings {
        /// The folder of the checkpoint.
        path: PathBuf,
        /// The keys that differ, with both values.
        differences: String,
    },

    /// None of a folder's checkpoints can be read; the error of the newest.
    #[error("{0}; no checkpoint of this folder can be read: remove them to train from the beginning")]
    NoCheckpoint(Box<Self>),

    /// The metrics file has fewer lines than the checkpoint has steps.
    #[error(
        "{} holds {lines} whole lines but the checkpoint is at step {step}; restore the file, or remove the \
         training folder to start again",
        path.display()
    )]
    MetricsTooShort {
        /// The metrics file.
        path: PathBuf,
        /// The number of complete lines in it.
        lines: usize,
        /// The number of steps that the checkpoint has made.
        step: usize,
    },
}

impl Error {
    /// An error unless a group can share out the parts of a step.
    pub fn unless_shared(group: &Group, parts: usize) -> Result<()> {
        match group.divides(parts) {
            true => Ok(()),
            false => Err(Self::Processes { processes: group.size(), parts, good: Group::that_divide(parts) }),
        }
    }

    /// A function for `map_err` that adds the path to an I/O error.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { path, source }
    }
}

/// Numbers in words: `1`, `1 or 2`, `1, 2 or 4`.
fn numbers(all: &[usize]) -> String {
    let words: Vec<String> = all.iter().map(usize::to_string).collect();
    match words.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} or {last}", before.join(", ")),
        _ => words.concat(),
    }
}
