//! The file of a stage's results: append-only JSON Lines while it works, one whole array at the end.
//!
//! A line is the unit that a kill can cost: one record, or all [`Rows`] of an id.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Error, Identified, RecordId, Result, read::parse};

/// What is made, kept and made again as a whole: a record, or [`Rows`].
pub trait Unit: Serialize + DeserializeOwned {
    /// An entry of the final file.
    type Row: Serialize + DeserializeOwned;

    /// What it is kept under.
    fn key(&self) -> &RecordId;

    /// Its entries in the final file.
    fn into_rows(self) -> Vec<Self::Row>;

    /// The units of a final file.
    fn from_rows(rows: Vec<Self::Row>) -> Vec<Self>;
}

impl<R: Identified + Serialize + DeserializeOwned> Unit for R {
    type Row = R;

    fn key(&self) -> &RecordId {
        self.id()
    }

    fn into_rows(self) -> Vec<R> {
        vec![self]
    }

    fn from_rows(rows: Vec<R>) -> Vec<Self> {
        rows
    }
}

/// All records of an id, such as the questions about a caption; there may be none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rows<R> {
    /// The id.
    pub id: RecordId,
    /// Its records, in order.
    pub rows: Vec<R>,
}

impl<R: Identified + Serialize + DeserializeOwned> Unit for Rows<R> {
    type Row = R;

    fn key(&self) -> &RecordId {
        &self.id
    }

    fn into_rows(self) -> Vec<R> {
        self.rows
    }

    fn from_rows(rows: Vec<R>) -> Vec<Self> {
        let mut units: Vec<Self> = Vec::new();
        let mut places: HashMap<RecordId, usize> = HashMap::new();
        for row in rows {
            let place = *places.entry(row.id().clone()).or_insert(units.len());
            if place == units.len() {
                units.push(Self { id: row.id().clone(), rows: Vec::new() });
            }
            units[place].rows.push(row);
        }
        units
    }
}

/// Results by record id; what was written before a kill is there again.
#[derive(Debug)]
pub struct Store<U> {
    path: PathBuf,
    working: PathBuf,
    file: Option<File>,
    units: HashMap<RecordId, U>,
}

impl<U: Unit> Store<U> {
    /// The results that the final file or its `.jsonl` holds. A last line that a kill cut off is removed.
    ///
    /// # Errors
    /// Names the file and the line of what cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let working = path.with_extension("jsonl");
        let mut units = Vec::new();
        if path.is_file() {
            let rows = parse(&fs::read(path).map_err(Error::io(path))?, path)?;
            units.extend(U::from_rows(rows.into_iter().map(|(_, row)| row).collect()));
        }
        if working.is_file() {
            let mut bytes = fs::read(&working).map_err(Error::io(&working))?;
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if whole < bytes.len() {
                let file = OpenOptions::new().write(true).open(&working).map_err(Error::io(&working))?;
                file.set_len(whole as u64).map_err(Error::io(&working))?;
                bytes.truncate(whole);
            }
            units.extend(parse::<U>(&bytes, &working)?.into_iter().map(|(_, unit)| unit));
        }
        let units = units.into_iter().map(|unit| (unit.key().clone(), unit)).collect();
        Ok(Self { path: path.into(), working, file: None, units })
    }

    /// Whether an id has its result.
    pub fn has(&self, id: &RecordId) -> bool {
        self.units.contains_key(id)
    }

    /// Adds results, in one write.
    ///
    /// # Errors
    /// Names the file that cannot be written; nothing of `units` is kept then.
    pub fn append(&mut self, units: Vec<U>) -> Result<()> {
        let mut lines = Vec::new();
        for unit in &units {
            serde_json::to_writer(&mut lines, unit).map_err(|error| Error::io(&self.working)(error.into()))?;
            lines.push(b'\n');
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                make_parent(&self.working)?;
                let open = OpenOptions::new().append(true).create(true).open(&self.working);
                none.insert(open.map_err(Error::io(&self.working))?)
            }
        };
        let before = file.metadata().map_err(Error::io(&self.working))?.len();
        if let Err(source) = file.write_all(&lines) {
            // On a full disk a part may have been written; a torn line must not end up in the middle.
            let _ = file.set_len(before);
            return Err(Error::io(&self.working)(source));
        }
        self.units.extend(units.into_iter().map(|unit| (unit.key().clone(), unit)));
        Ok(())
    }

    /// Writes the final file in the order of `ids`, removes the `.jsonl`, and returns the results.
    ///
    /// # Errors
    /// Names the file that cannot be written; the `.jsonl` is kept then.
    pub fn finish<'a>(mut self, ids: impl Iterator<Item = &'a RecordId>) -> Result<Vec<U::Row>> {
        let rows: Vec<U::Row> = ids.filter_map(|id| self.units.remove(id)).flat_map(U::into_rows).collect();
        write_records(&self.path, &rows)?;
        match fs::remove_file(&self.working) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::io(&self.working)(source)),
            _ => Ok(rows),
        }
    }
}

/// Writes records as one JSON array, a record a line.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write_records<R: Serialize>(path: &Path, records: &[R]) -> Result<()> {
    let mut file = ArrayFile::create(path)?;
    records.iter().try_for_each(|record| file.push(record))?;
    file.finish()
}

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
    pub fn finish(mut self) -> Result<()> {
        let mut close = || {
            self.file.write_all(if self.records == 0 { b"[]\n" } else { b"\n]\n" })?;
            self.file.flush()?;
            self.file.get_ref().sync_all()?;
            fs::rename(&self.temporary, &self.path)
        };
        close().map_err(Error::io(&self.path))
    }
}

impl Drop for ArrayFile {
    /// What was not finished goes; after [`ArrayFile::finish`] there is nothing of that name.
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

/// The name of a file that is not whole yet.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

fn make_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(Error::io(folder)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{AnswerRecord, QuestionRecord};

    fn id(text: &str) -> RecordId {
        RecordId::new(text).unwrap()
    }

    fn answer(id: &str, score: f64) -> AnswerRecord {
        AnswerRecord { id: RecordId::new(id).unwrap(), caption: "c".into(), question_number: 1, result: vec![score] }
    }

    #[test]
    fn a_cut_off_line_is_made_again_and_the_rest_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/results.json");
        let mut store = Store::open(&path).unwrap();
        store.append(vec![answer("b", 0.5), answer("a", 1.0)]).unwrap();
        drop(store);
        let working = path.with_extension("jsonl");
        let whole = fs::read(&working).unwrap();
        fs::write(&working, [&whole[..], b"{\"id\": \"c\", \"capt"].concat()).unwrap();

        let mut store = Store::<AnswerRecord>::open(&path).unwrap();
        assert!(store.has(&id("a")) && store.has(&id("b")) && !store.has(&id("c")));
        store.append(vec![answer("c", 0.0)]).unwrap();
        let ids: Vec<RecordId> = ["a", "b", "c"].map(id).to_vec();
        let records = store.finish(ids.iter()).unwrap();
        assert_eq!(records, [answer("a", 1.0), answer("b", 0.5), answer("c", 0.0)], "in the input's order");
        assert!(path.is_file() && !working.exists());
        assert!(Store::<AnswerRecord>::open(&path).unwrap().has(&id("c")), "the final file is enough");
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        fs::write(path.with_extension("jsonl"), "{\"id\": 1, broken\n{}\n").unwrap();
        let message = Store::<AnswerRecord>::open(&path).unwrap_err().to_string();
        assert!(message.contains("results.jsonl, line 1"), "{message}");
    }

    #[test]
    fn a_kill_at_any_byte_costs_the_last_line_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let ids = ["a", "b", "c"].map(id);
        let finish = |mut store: Store<AnswerRecord>| {
            for (number, id) in ids.iter().enumerate() {
                if !store.has(id) {
                    store.append(vec![answer(id.as_str(), number as f64)]).unwrap();
                }
            }
            let working = fs::read(path.with_extension("jsonl")).unwrap();
            store.finish(ids.iter()).unwrap();
            (working, fs::read(&path).unwrap())
        };
        let (lines, whole) = finish(Store::open(&path).unwrap());
        assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), ids.len() + 2, "a record a line");
        for length in 0..=lines.len() {
            fs::remove_file(&path).unwrap();
            fs::write(path.with_extension("jsonl"), &lines[..length]).unwrap();
            assert_eq!(finish(Store::open(&path).unwrap()), (lines.clone(), whole.clone()), "{length} bytes");
        }
        // Killed between the final file and the removal of the `.jsonl`.
        fs::write(path.with_extension("jsonl"), &lines).unwrap();
        assert_eq!(finish(Store::open(&path).unwrap()).1, whole);
        assert!(!path.with_extension("jsonl").exists());
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
            assert_eq!(crate::read::<AnswerRecord>(&path, "").unwrap(), answers);
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file");
        }
    }

    #[test]
    fn all_rows_of_an_id_are_one_unit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vqa_data.json");
        let question = |text: &str, number: usize| QuestionRecord {
            id: id(text),
            img_path: "i".into(),
            prompt: "p".into(),
            caption: "c".into(),
            element: "e".into(),
            question: format!("{text}{number}?"),
            choices: vec!["yes".into(), "no".into()],
            answer: "yes".into(),
        };
        let unit = |text: &str, count| Rows { id: id(text), rows: (0..count).map(|n| question(text, n)).collect() };
        let mut store = Store::open(&path).unwrap();
        store.append(vec![unit("b", 2), unit("none", 0)]).unwrap();
        drop(store);
        let working = path.with_extension("jsonl");
        let whole = fs::read(&working).unwrap();
        let torn = serde_json::to_string(&unit("a", 2)).unwrap();
        fs::write(&working, [&whole[..], &torn.as_bytes()[..torn.len() - 5]].concat()).unwrap();
        let mut store = Store::<Rows<QuestionRecord>>::open(&path).unwrap();
        assert!(store.has(&id("b")) && store.has(&id("none")) && !store.has(&id("a")));
        store.append(vec![unit("a", 1)]).unwrap();
        let ids = ["a", "none", "b"].map(id);
        let rows = store.finish(ids.iter()).unwrap();
        assert_eq!(rows, [question("a", 0), question("b", 0), question("b", 1)]);
        let again = Store::<Rows<QuestionRecord>>::open(&path).unwrap();
        assert_eq!(again.finish(ids.iter()).unwrap(), rows, "the final file is enough");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_names_the_file_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        std::os::unix::fs::symlink("/dev/full", path.with_extension("jsonl")).unwrap();
        let mut store = Store::open(&path).unwrap();
        let message = store.append(vec![answer("a", 1.0)]).unwrap_err().to_string();
        assert!(message.contains("results.jsonl") && message.contains("space"), "{message}");
        assert!(!store.has(&id("a")));
        // A folder in the place of the file: the temporary file goes, the message stays.
        fs::create_dir(&path).unwrap();
        let message = write_atomically(&path, b"x").unwrap_err().to_string();
        assert!(message.contains("results.json: "), "{message}");
        assert!(!folder.path().join("results.json.tmp").exists());
    }
}
