//! What can be wrong with weights.

use std::path::PathBuf;

/// Why weights cannot be loaded, matched to a model, or saved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or file has no weights.
    #[error(
        "{0}: no weights found; expected one of pytorch_model.safetensors, model.safetensors, \
             diffusion_pytorch_model.safetensors, pytorch_model.bin, or a sharded index of one of them"
    )]
    NotFound(PathBuf),
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a readable set of tensors.
    #[error("{path}: not a readable weight file ({message}); download or export it again")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// The file is a placeholder for the real one, such as a Git LFS pointer.
    #[error("{path}: {what}")]
    StandsIn {
        /// The file.
        path: PathBuf,
        /// What the file is, and what to do.
        what: &'static str,
    },
    /// A tensor holds NaN, infinity, or a number that the wanted type cannot hold.
    #[error("{path}: {tensor}: {message}")]
    Values {
        /// The file.
        path: PathBuf,
        /// The name of the tensor.
        tensor: String,
        /// What the tensor holds, and what to do.
        message: String,
    },
    /// Names or shapes of the tensors are not those that the configuration asks for.
    #[error(
        "{path}: the weights do not fit their configuration: {message}; \
             use the config.json that belongs to this checkpoint"
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What is missing, unexpected or mis-shaped.
        message: String,
    },
    /// The folder to write into already has weights.
    #[error("{0}: weights are there already; write into a new folder")]
    Occupied(PathBuf),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
