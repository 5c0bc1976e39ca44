//! Errors of reading and writing records. Each names the file, the place in it and what to do.

use std::path::{Path, PathBuf};

/// Why records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file does not exist.
    #[error("{}: does not exist; {remedy}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// How to make the file.
        remedy: &'static str,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file is not JSON, or a record lacks a field or has one of another type.
    #[error("{}, line {line}, record {record}: {message}; correct or remove this record", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The record's id, or `number n` (from 1) if it has no readable id.
        record: String,
        /// What is wrong.
        message: String,
    },
    /// Two records share an id.
    #[error("{}, lines {first} and {second}: the id {id} occurs twice; remove one of the two records", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The line of the first of them, from 1.
        first: usize,
        /// The line of the second one, from 1.
        second: usize,
        /// The id.
        id: String,
    },
    /// A file was changed between the time when it was indexed and when a record was read.
    #[error("{}, line {line}: changed while it was in use; run the command again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The line of the record that changed, from 1.
        line: usize,
    },
    /// A file contains no record.
    #[error("{}: contains no record; {remedy}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// How to make the file.
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
