//! Records as others publish them, turned into a data root: JSON, JSON Lines, Parquet, WebDataset shards, JourneyDB's
//! annotation.
//!
//! Sources are read record by record ([`sources`], [`json`], [`parquet`], [`shards`]), what a record calls its id,
//! image, caption and prompt is looked up ([`fields`]), and a few records at a time are checked and written
//! (`importer.rs`). Memory holds one such handful, and eight bytes per id.

mod fields;
mod importer;
mod json;
mod meter;
mod parquet;
mod pictures;
mod shards;
mod sources;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Map, Value};

pub use fields::Names;
pub use importer::{ImportSettings, import};

/// A record of a source, before anything is known of its form.
#[derive(Debug)]
pub struct Entry {
    /// Where it is.
    pub place: Place,
    /// What is text, numbers and lists.
    pub fields: Map<String, Value>,
    /// Files and binary columns inside the source, by the name of their column or extension.
    pub blobs: Vec<(String, Vec<u8>)>,
}

/// Where a record is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The source.
    pub file: Arc<Path>,
    /// Where in it.
    pub at: At,
}

/// Where in a source a record is.
#[derive(Debug, Clone)]
pub enum At {
    /// A record of a file of text.
    Record {
        /// The number of the record, from 1.
        number: usize,
        /// The line on which the record begins, from 1.
        line: usize,
    },
    /// A row, by its number from 1.
    Row(u64),
    /// The name that the files of the record share.
    Key(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match &self.at {
            At::Record { number, line } if number == line => write!(f, "{file}, line {line}"),
            At::Record { number, line } => write!(f, "{file}, record {number} (line {line})"),
            At::Row(row) => write!(f, "{file}, row {row}"),
            At::Key(key) => write!(f, "{file}, {key}"),
        }
    }
}

/// Why a record is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// What is there is not JSON, or no record.
    NotARecord,
    /// A source breaks off, or is broken from there on.
    CutOff,
    /// Nothing under the caption's names.
    NoCaption,
    /// Nothing under the image's names.
    NoImage,
    /// A web address instead of a file.
    Url,
    /// A shard's files of one record stand apart.
    NotAdjacent,
    /// A path, but no file.
    MissingImage,
    /// No picture, or a broken one.
    BrokenImage,
    /// The named id is not there.
    NoId,
    /// The id can name no folder.
    BadId,
    /// An earlier record has this id.
    DuplicateId,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotARecord => "not a record",
            Self::CutOff => "file cut off or broken",
            Self::NoCaption => "no caption",
            Self::NoImage => "no image",
            Self::NotAdjacent => "files not adjacent in a shard",
            Self::Url => "image is a web address",
            Self::MissingImage => "image file missing",
            Self::BrokenImage => "image unreadable",
            Self::NoId => "no id",
            Self::BadId => "unusable id",
            Self::DuplicateId => "id there twice",
        })
    }
}

/// A record that is skipped.
#[derive(Debug)]
pub struct Broken {
    /// Where it is.
    pub place: Place,
    /// Why.
    pub reason: Reason,
    /// More about it.
    pub detail: String,
}

impl Broken {
    fn new(place: &Place, reason: Reason, detail: impl Into<String>) -> Self {
        Self { place: place.clone(), reason, detail: detail.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

/// Takes one record of a source, and says whether more are wanted.
type Take<'a> = dyn FnMut(Result<Entry, Broken>) -> Result<ControlFlow<()>> + 'a;

/// Counts by reason, as one line: "2 no caption; 1 image unreadable".
fn counted(skipped: &BTreeMap<Reason, usize>) -> String {
    skipped.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join("; ")
}
