//! Everything that can go wrong while a model is loaded or used.

use std::path::PathBuf;

/// The result of a model operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A model could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A configuration file is not what it should be.
    #[error("{path}: {message}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Weights could not be loaded.
    #[error(transparent)]
    Weights(#[from] hermesflow_nn::weights::Error),
    /// An image could not be read.
    #[error("{path}: not a readable image ({message}); replace the file or remove its record")]
    Image {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        message: String,
    },
    /// The tokenizer could not be loaded or used.
    #[error("{path}: {message}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The model's logits are no numbers to draw from.
    #[error(
        "{0}: the model's logits are not all finite numbers; its weights, or settings such as imagine.guidance, \
         a temperature or model.dtype, lead beyond what can be computed with"
    )]
    NotFinite(&'static str),
    /// A request that the model cannot serve.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::Config`] about `path`.
    pub fn config(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Config { path: path.into(), message: message.into() }
    }
}
