//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Error, Result};

/// A JSON array, a record a line, that is written record by record under a temporary name: memory need not hold it, and
/// a file that exists is whole.
#[derive(Debug)]
pub struct ArrayFile {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    records: usize,
}

impl ArrayFile {
    /// Begins a file, making its folder.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        make_parent(path)?;
        let temporary = temporary(path);
        let file = BufWriter::new(File::create(&temporary).map_err(Error::io(path))?);
        Ok(Self { path: path.into(), temporary, file, records: 0 })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn push<R: Serialize>(&mut self, record: &R) -> Result<()> {
        let before: &[u8] = if self.records == 0 { b"[\n" } else { b",\n" };
        self.records += 1;
        let written = self.file.write_all(before).map_err(serde_json::Error::io);
        let written = written.and_then(|()| serde_json::to_writer(&mut self.file, record));
        written.map_err(|error| Error::io(&self.path)(error.into()))
    }

    /// How many records it holds.
    pub fn len(&self) -> usize {
        self.records
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Closes the array, writes it through to the disk and gives it its name.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn finish(self) -> Result<()> {
        self.close()?.publish()
    }

    /// Closes the array and writes it through to the disk, under its temporary name still.
    ///
    /// # Errors
    /// Names the file that cannot be written.
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

/// An [`ArrayFile`] that is whole, but does not have its name yet.
#[derive(Debug)]
pub struct ClosedArray(ArrayFile);

impl ClosedArray {
    /// Where its bytes are.
    pub fn temporary(&self) -> &Path {
        &self.0.temporary
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn publish(self) -> Result<()> {
        fs::rename(&self.0.temporary, &self.0.path).map_err(Error::io(&self.0.path))
    }
}

impl Drop for ArrayFile {
    /// What was not published goes; after that there is nothing of that name.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes a file under a temporary name, through to the disk, and renames it, making its folder: a file that exists is
/// whole.
///
/// # Errors
/// Names the file that cannot be written.
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

/// What the names of files and folders end with that are not whole yet.
pub const TEMPORARY: &str = ".hermesflow-tmp";

/// The name of a file or folder that is not whole yet: nobody else's, and the same one when it is written again, so that
/// what a kill left behind is written over.
pub fn temporary(path: &Path) -> PathBuf {
    beside(path, TEMPORARY)
}

/// A hidden name beside that of a file or folder, which ends with what it is for.
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
        AnswerRecord { id: RecordId::new(id).unwrap(), caption: "c".into(), question_number: 1, result: vec![score] }
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
