//! What can go wrong while training.

use std::path::{Path, PathBuf};

/// The result of anything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while training.
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

    /// An objective from another crate failed.
    #[error("the objective failed at step {step}, micro batch {micro}: {source}")]
    Objective {
        /// The step, from 0.
        step: usize,
        /// The micro batch of the step, from 0.
        micro: usize,
        /// What the objective said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// What the reference said of captions could not be remembered.
    #[error("the reference's captions: {0}")]
    Memory(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A JSON file of a training folder could not be understood.
    #[error("{}: not a {what}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What it should have been.
        what: &'static str,
        /// What the parser said.
        source: serde_json::Error,
    },

    /// A setting is outside its range or disagrees with another one.
    #[error("setting `{key}`: {problem}")]
    Setting {
        /// The key as the configuration spells it.
        key: &'static str,
        /// What is wrong, with the value.
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

    /// The loss or the gradient norm became infinite or NaN; the parameters were not touched.
    #[error(
        "{what} is {value} at step {step}; the last checkpoint is intact (a lower learning rate or `max_grad_norm`, with \
         another output folder, may help)"
    )]
    NotFinite {
        /// "the loss" or "the gradient norm".
        what: &'static str,
        /// Its value.
        value: f64,
        /// The step, from 1.
        step: usize,
    },

    /// A trainable parameter took no part in a step: its graph is cut somewhere.
    #[error("parameter {name} received no gradient: an operator on its way to the loss has no backward pass")]
    NoGradient {
        /// The parameter.
        name: String,
    },

    /// Two trainable parameters carry the same name.
    #[error("two trainable parameters are named {name}")]
    DuplicateParameter {
        /// The name.
        name: String,
    },

    /// A checkpoint's tensors do not fit the model or the optimizer.
    #[error("{}: tensor {name}: {problem}", path.display())]
    CheckpointTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What is wrong, with the shapes.
        problem: String,
    },

    /// A run cannot continue from a checkpoint written under other settings.
    #[error(
        "{} was written under other settings, so the run cannot continue from it ({differences}); \
         restore the settings or choose another output folder",
        path.display()
    )]
    OtherSettings {
        /// The checkpoint.
        path: PathBuf,
        /// The keys that differ with both values.
        differences: String,
    },

    /// No checkpoint of a folder can be read.
    #[error("{0}; no checkpoint of this folder can be read: remove them to train from the beginning")]
    NoCheckpoint(Box<Self>),

    /// The metrics file ends before the checkpoint's step.
    #[error(
        "{} holds {lines} whole lines but the checkpoint is at step {step}; restore the file, or remove the \
         training folder to start again",
        path.display()
    )]
    MetricsTooShort {
        /// The metrics file.
        path: PathBuf,
        /// Whole lines in it.
        lines: usize,
        /// Steps that the checkpoint has made.
        step: usize,
    },
}

impl Error {
    /// For `map_err`: an I/O error with its path.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { path, source }
    }
}
