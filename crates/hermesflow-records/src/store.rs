//! The file of a stage's results: append-only JSON Lines while it works, one whole array at the end.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Identified, RecordId, Result, parse};

/// Results by record id; what was written before a kill is there again.
#[derive(Debug)]
pub struct Store<R> {
    path: PathBuf,
    working: PathBuf,
    file: Option<File>,
    records: HashMap<RecordId, R>,
}

impl<R: Serialize + DeserializeOwned + Clone + Identified> Store<R> {
    /// The results that the final file or its `.jsonl` holds. A last line that a kill cut off is removed.
    ///
    /// # Errors
    /// Names the file and the line of what cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let working = path.with_extension("jsonl");
        let mut records = HashMap::new();
        if path.is_file() {
            let text = fs::read_to_string(path).map_err(Error::io(path))?;
            records.extend(parse::<R>(&text, path)?.into_iter().map(|(_, record)| (record.id().clone(), record)));
        }
        if working.is_file() {
            let mut bytes = fs::read(&working).map_err(Error::io(&working))?;
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if whole < bytes.len() {
                let file = OpenOptions::new().write(true).open(&working).map_err(Error::io(&working))?;
                file.set_len(whole as u64).map_err(Error::io(&working))?;
                bytes.truncate(whole);
            }
            let lines = parse::<R>(&String::from_utf8_lossy(&bytes), &working)?;
            records.extend(lines.into_iter().map(|(_, record)| (record.id().clone(), record)));
        }
        Ok(Self { path: path.into(), working, file: None, records })
    }

    /// Whether a record has its result.
    pub fn has(&self, id: &RecordId) -> bool {
        self.records.contains_key(id)
    }

    /// Adds results, in one write.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn append(&mut self, records: Vec<R>) -> Result<()> {
        let mut lines = Vec::new();
        for record in &records {
            serde_json::to_writer(&mut lines, record).map_err(|error| Error::io(&self.working)(error.into()))?;
            lines.push(b'\n');
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                make_parent(&self.working)?;
                let open = OpenOptions::new().append(true).create(true).open(&self.working);
                open.map_err(Error::io(&self.working))?
            }
        };
        file.write_all(&lines).map_err(Error::io(&self.working))?;
        self.file = Some(file);
        self.records.extend(records.into_iter().map(|record| (record.id().clone(), record)));
        Ok(())
    }

    /// Writes the final file in the order of `ids`, removes the `.jsonl`, and returns the results.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn finish<'a>(self, ids: impl Iterator<Item = &'a RecordId>) -> Result<Vec<R>> {
        let records: Vec<R> = ids.filter_map(|id| self.records.get(id).cloned()).collect();
        write_records(&self.path, &records)?;
        match fs::remove_file(&self.working) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.working)(source)),
            _ => Ok(records),
        }
    }
}

/// Writes records as one JSON array, a field a line.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write_records<R: Serialize>(path: &Path, records: &[R]) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(records).map_err(|error| Error::io(path)(error.into()))?;
    bytes.push(b'\n');
    write_atomically(path, &bytes)
}

/// Writes a file under a temporary name and renames it, making its folder: a file that exists is whole.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    make_parent(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    fs::write(&temporary, bytes).map_err(Error::io(&temporary))?;
    fs::rename(&temporary, path).map_err(Error::io(path))
}

fn make_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(Error::io(folder)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::AnswerRecord;

    fn answer(id: &str, score: f64) -> AnswerRecord {
        AnswerRecord { id: id.into(), caption: "c".into(), question_number: 1, result: vec![score] }
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
        assert!(store.has(&"a".into()) && store.has(&"b".into()) && !store.has(&"c".into()));
        store.append(vec![answer("c", 0.0)]).unwrap();
        let ids: Vec<RecordId> = ["a", "b", "c"].map(RecordId::from).to_vec();
        let records = store.finish(ids.iter()).unwrap();
        assert_eq!(records, [answer("a", 1.0), answer("b", 0.5), answer("c", 0.0)], "in the input's order");
        assert!(path.is_file() && !working.exists());
        assert!(Store::<AnswerRecord>::open(&path).unwrap().has(&"c".into()), "the final file is enough");
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        fs::write(path.with_extension("jsonl"), "{\"id\": 1, broken\n{}\n").unwrap();
        let message = Store::<AnswerRecord>::open(&path).unwrap_err().to_string();
        assert!(message.contains("results.jsonl, line 1"), "{message}");
    }
}
