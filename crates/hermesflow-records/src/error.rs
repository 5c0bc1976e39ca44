//! What can go wrong with records, said with the file, the place and the remedy.

use std::path::{Path, PathBuf};

/// Records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing.
    #[error("{}: does not exist; {remedy}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What makes it.
        remedy: &'static str,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not JSON, or a record is not what it should be.
    #[error("{}, line {line}, record {record}: {message}; mend or remove this record", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The record: its id, or `number n` (from 1) where that cannot be read.
        record: String,
        /// What is wrong.
        message: String,
    },
    /// Two records share an id.
    #[error("{}, lines {first} and {second}: the id {id} is there twice; remove one of the two records", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The line of the first one, from 1.
        first: usize,
        /// The line of the second one.
        second: usize,
        /// The id.
        id: String,
    },
    /// A file is not what it was when it was looked through.
    #[error("{}, line {line}: changed while it was in use; run the command again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The line of the record that is not what it was, from 1.
        line: usize,
    },
    /// A file holds no record.
    #[error("{}: holds no record; {remedy}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What makes it.
        remedy: &'static str,
    },
}

/// The result of reading or writing records.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.into(), source }
    }
}
