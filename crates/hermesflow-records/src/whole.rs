//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Error, Result};

/// A JSON array with one record per line. It is written record by record under a temporary name and renamed when it is
/// whole, so memory need not hold it.
#[derive(Debug)]
pub struct ArrayFile {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    records: usize,
}

impl ArrayFile {
    /// Starts a file and makes its folder if need be.
    ///
    /// # Errors
    /// If the file cannot be created; it is named.
    pub fn create(path: &Path) -> Result<Self> {
        make_parent(path)?;
        let temporary = temporary(path);
        let file = BufWriter::new(File::create(&temporary).map_err(Error::io(path))?);
        Ok(Self { path: path.into(), temporary, file, records: 0 })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// If the file cannot be written; it is named.
    pub fn push<R: Serialize>(&mut self, record: &R) -> Result<()> {
        let before: &[u8] = if self.records == 0 { b"[\n" } else { b",\n" };
        self.records += 1;
        let written = self.file.write_all(before).map_err(serde_json::Error::io);
        let written = written.and_then(|()| serde_json::to_writer(&mut self.file, record));
        written.map_err(|error| Error::io(&self.path)(error.into()))
    }

    /// The number of records so far.
    pub fn len(&self) -> usize {
        self.records
    }

    /// Whether there is no record yet.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Closes the array, flushes it to disk and gives the file its name.
    ///
    /// # Errors
    /// If the file cannot be written; it is named.
    pub fn finish(self) -> Result<()> {
        self.close()?.publish()
    }

    /// Closes the array and flushes it to disk, still under the temporary name.
    ///
    /// # Errors
    /// If the file cannot be written; it is named.
    pub fn close(mut self) -> Result<ClosedArray> {
        let mut close = || {
            self.file.write_all(if self.records == 0 { b"[]\n" } else { b"\n]\n" })?;
            self.file.flush()?;
            self.file.get_ref().sync_all()
        };
        close().map_err(Error::io(&self.path))?;
        Ok(ClosedArray(self))
    }
}

/// An [`ArrayFile`] that is complete but does not have its final name yet.
#[derive(Debug)]
pub struct ClosedArray(ArrayFile);

impl ClosedArray {
    /// The path under which the bytes are.
    pub fn temporary(&self) -> &Path {
        &self.0.temporary
    }

    /// Gives the file its final name.
    ///
    /// # Errors
    /// If the file cannot be renamed; it is named.
    pub fn publish(self) -> Result<()> {
        fs::rename(&self.0.temporary, &self.0.path).map_err(Error::io(&self.0.path))
    }
}

impl Drop for ArrayFile {
    /// Removes the temporary file if it was not published.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes a file under a temporary name, flushes it to disk and renames it; makes its folder if need be.
///
/// # Errors
/// If the file cannot be written; it is named.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    make_parent(path)?;
    let temporary = temporary(path);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        Error::io(path)(source)
    })
}

/// The ending of the names of files and folders that are not complete yet.
pub const TEMPORARY: &str = ".hermesflow-tmp";

/// The name of an incomplete file or folder. It is the same every time, so that what a killed program left is
/// overwritten.
pub fn temporary(path: &Path) -> PathBuf {
    beside(path, TEMPORARY)
}

/// A hidden name beside a file or folder: a dot, its name, and an ending.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(ending);
    path.with_file_name(name)
}

pub(crate) fn make_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(Error::io(folder)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::AnswerRecord;
    use crate::RecordId;
    use crate::read;

    fn answer(id: &str, score: f64) -> AnswerRecord {
        AnswerRecord {
            id: RecordId::new(id).unwrap(),
            caption: "c".into(),
            question_number: 1,
            result: vec![score],
            caption_log_prob: None,
        }
    }

    #[test]
    fn an_array_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/answers.json");
        let mut file = ArrayFile::create(&path).unwrap();
        file.push(&answer("a", 0.5)).unwrap();
        assert!(!path.exists() && !file.is_empty());
        drop(file);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "what was begun is gone");
        for count in 0..3 {
            let answers: Vec<_> = (0..count).map(|number| answer(&format!("{number}"), 1.0)).collect();
            let mut file = ArrayFile::create(&path).unwrap();
            answers.iter().for_each(|answer| file.push(answer).unwrap());
            assert_eq!(file.len(), count);
            file.finish().unwrap();
            assert_eq!(read::<AnswerRecord>(&path, "").unwrap(), answers);
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file");
        }
    }

    #[test]
    fn a_file_that_cannot_get_its_name_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        fs::create_dir(&path).unwrap();
        let message = write_atomically(&path, b"x").unwrap_err().to_string();
        assert!(message.contains("results.json: "), "{message}");
        assert!(!temporary(&path).exists());
        fs::write(folder.path().join("results.json.tmp"), "mine").unwrap();
        fs::remove_dir(&path).unwrap();
        write_atomically(&path, b"x").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("results.json.tmp")).unwrap(), "mine");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
