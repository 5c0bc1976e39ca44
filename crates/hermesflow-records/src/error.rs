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
    #[error("{}, line {line}{}: {message}; mend or remove this record", path.display(), of_record(.id))]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The record, if its id could be read.
        id: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// Two records share an id.
    #[error("{}, line {line}: the id {id} is there twice; remove one of the two records", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The line of the second one, from 1.
        line: usize,
        /// The id.
        id: String,
    },
    /// A file holds no record.
    #[error("{}: holds no record; give it at least one", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The result of reading or writing records.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.into(), source }
    }
}

fn of_record(id: &Option<String>) -> String {
    id.as_ref().map_or_else(String::new, |id| format!(", record {id}"))
}
