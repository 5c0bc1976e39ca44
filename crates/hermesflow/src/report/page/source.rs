//! Records of a stage's file, finished or still growing.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use hermesflow_records::{AppendLog, IdKey, Record, RecordId, Table};

use super::folder::there;

/// The records of a file by id.
#[derive(Debug)]
pub enum Source<R> {
    /// A finished file.
    Whole(Table<R>),
    /// The file of a stage at work: its whole lines, later ones in place of earlier ones with the same id.
    Growing(HashMap<IdKey, R>),
    /// No file.
    Missing,
}

impl<R: Record> Source<R> {
    /// Opens a stage's file, or the one that grows while the stage works.
    ///
    /// # Errors
    /// Names the file, the line and the record of what cannot be read.
    pub fn open(file: &Path) -> Result<Self> {
        match there(file) {
            None => Ok(Self::Missing),
            // Questions come several to an id; for all others, grouping changes nothing.
            Some(path) if path == file => Ok(Self::Whole(Table::grouped(&path, "")?)),
            Some(path) => {
                let mut records = HashMap::new();
                AppendLog::of_lines(&path)?.each(|_, line| {
                    if let Ok(record) = serde_json::from_slice::<R>(line) {
                        records.insert(record.id().key(), record);
                    }
                })?;
                Ok(Self::Growing(records))
            }
        }
    }

    /// All records of an id.
    ///
    /// # Errors
    /// If the file cannot be read or has changed.
    pub fn of_id(&self, id: &RecordId) -> Result<Vec<R>>
    where
        R: Clone,
    {
        Ok(match self {
            Self::Whole(table) => table.of_id(id)?,
            Self::Growing(records) => records.get(&id.key()).cloned().into_iter().collect(),
            Self::Missing => Vec::new(),
        })
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        match self {
            Self::Whole(table) => table.len(),
            Self::Growing(records) => records.len(),
            Self::Missing => 0,
        }
    }

    /// Whether the stage that makes the file is done.
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(_))
    }
}
