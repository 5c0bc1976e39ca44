//! Tables as benchmarks come: CSV and TSV with quoted cells, and pictures in them as base64.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use csv::{Position, Reader, ReaderBuilder, StringRecord};
use hermesflow_models::preprocess;
use image::RgbImage;

/// A table that is read row by row.
pub struct Table {
    path: PathBuf,
    reader: Reader<File>,
    header: StringRecord,
    remedy: &'static str,
}

/// A row, and where it is.
pub struct Row {
    path: PathBuf,
    cells: StringRecord,
    /// Where the row begins in the file.
    pub position: Position,
}

impl Row {
    /// A cell; empty where the row has none there.
    pub fn cell(&self, at: usize) -> &str {
        self.cells.get(at).unwrap_or_default()
    }

    /// The file and the line, for messages.
    pub fn place(&self) -> String {
        format!("{}, line {}", self.path.display(), self.position.line())
    }
}

impl Table {
    /// Opens a table with a header whose cells are apart by `delimiter`. `remedy` says which file to give.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn open(path: &Path, delimiter: u8, remedy: &'static str) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("{}: cannot be read; {remedy}", path.display()))?;
        let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(file);
        let header = reader.headers().with_context(|| format!("{}: {remedy}", path.display()))?.clone();
        Ok(Self { path: path.into(), reader, header, remedy })
    }

    /// The numbers of columns that must be there.
    ///
    /// # Errors
    /// Names the column that is missing, and those that are there.
    pub fn columns<const N: usize>(&self, names: &[&str; N]) -> Result<[usize; N]> {
        let mut found = [0; N];
        for (at, name) in names.iter().enumerate() {
            found[at] = self.column(name).with_context(|| {
                let there: Vec<&str> = self.header.iter().collect();
                format!("{}: has no column {name}, but {}; {}", self.path.display(), there.join(", "), self.remedy)
            })?;
        }
        Ok(found)
    }

    /// The number of a column that may be missing.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.header.iter().position(|found| found.trim_start_matches('\u{feff}') == name)
    }

    /// The next row; none after the last.
    ///
    /// # Errors
    /// Names the line of a row that has not as many cells as the header, or is no text.
    pub fn next(&mut self) -> Result<Option<Row>> {
        let (mut cells, position) = (StringRecord::new(), self.reader.position().clone());
        let line = position.line();
        let there = self.reader.read_record(&mut cells).map_err(|error| {
            let line = error.position().map_or(line, Position::line);
            let what = match error.kind() {
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                    format!("has {len} cells, and the header {expected_len}")
                }
                _ => error.to_string(),
            };
            anyhow!("{}, line {line}: {what}; {}", self.path.display(), self.remedy)
        })?;
        let position = cells.position().cloned().unwrap_or(position);
        Ok(there.then_some(Row { path: self.path.clone(), cells, position }))
    }

    /// The row at a position where one was found before.
    ///
    /// # Errors
    /// When the file cannot be read, or has changed.
    pub fn at(&mut self, position: &Position) -> Result<Row> {
        self.reader.seek(position.clone()).with_context(|| self.path.display().to_string())?;
        self.next()?.with_context(|| format!("{}: changed while it was read", self.path.display()))
    }
}

/// The picture that a cell holds as base64. `place` is named in errors.
///
/// # Errors
/// When it is no base64, or no picture.
pub fn picture(cell: &str, place: &str) -> Result<RgbImage> {
    let Ok(bytes) = BASE64_STANDARD.decode(cell.trim()) else {
        bail!("{place}: the cell `image` is not a picture in base64")
    };
    Ok(preprocess::decode(&bytes, Path::new(place))?.to_rgb8())
}
