//! Errors of loading and using a model.

use std::path::PathBuf;

/// The result of a model operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be loaded or used.
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
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A configuration file is malformed or contradicts itself or the weights.
    #[error("{path}: {message}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A file of weights could not be loaded.
    #[error(transparent)]
    Weights(#[from] hermesflow_nn::weights::Error),
    /// An image could not be read.
    #[error("{path}: not a readable image ({message}); replace the file or remove its record")]
    Image {
        /// The file.
        path: PathBuf,
        /// The decoder's message.
        message: String,
    },
    /// The tokenizer could not be loaded or used.
    #[error("{path}: {message}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The model computed NaN or infinite logits; the text names what was being generated.
    #[error(
        "{0}: the model's logits are not all finite numbers; its weights are broken, or a setting such as \
         imagine.guidance, a temperature or model.dtype makes them overflow"
    )]
    NotFinite(&'static str),
    /// A request that the model cannot serve: what is wrong, and what to do.
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
