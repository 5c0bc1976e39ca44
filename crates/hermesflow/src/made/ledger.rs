//! A digest per record of what its result was made from.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use hermesflow_records::{IdKey, InitialRecord, RecordId, Table};
use serde::{Deserialize, Serialize};

use crate::files;

/// Records that are looked up at a time.
const TOGETHER: usize = 256;

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    id: RecordId,
    made_from: String,
}

/// What the results of a stage were made from, record by record: JSON Lines that grow while the stage works, in the
/// records' order when it is done.
///
/// A result is noted after it is stored. Killed in between, it is made once more.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    noted: HashMap<IdKey, u128>,
    file: Option<File>,
}

impl Ledger {
    /// What a file notes; it need not be there yet. A line that was cut off is not read.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(path: PathBuf) -> Result<Self> {
        let bytes = files::if_there(&path, |path| fs::read(path))?.unwrap_or_default();
        let mut ledger = Self { path, noted: HashMap::new(), file: None };
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        lines.for_each(|line| ledger.take(line.id.key(), &line.made_from));
        Ok(ledger)
    }

    fn take(&mut self, key: IdKey, made_from: &str) {
        match number(made_from) {
            Some(number) => self.noted.insert(key, number),
            None => self.noted.remove(&key),
        };
    }

    /// Whether a record's result was made from this.
    pub fn fits(&self, id: &RecordId, made_from: &str) -> bool {
        number(made_from).is_some_and(|made_from| self.noted.get(&id.key()) == Some(&made_from))
    }

    /// Notes what results were made from.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn note<'a>(&mut self, results: impl Iterator<Item = (&'a RecordId, String)>) -> Result<()> {
        let mut lines = Vec::new();
        for (id, made_from) in results {
            self.take(id.key(), &made_from);
            line(&mut lines, id.clone(), made_from)?;
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.append(&lines).with_context(|| self.path.display().to_string())
    }

    /// Strikes what is noted of records whose results are about to be made anew: killed meanwhile, these are not taken
    /// for what was there before.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn strike<'a>(&mut self, ids: impl Iterator<Item = &'a RecordId>) -> Result<()> {
        self.note(ids.map(|id| (id, String::new())))
    }

    fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                self.path.parent().map_or(Ok(()), fs::create_dir_all)?;
                let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
                // Behind a line that was cut off, a new one begins.
                if file.metadata()?.len() > 0 {
                    file.write_all(b"\n")?;
                }
                none.insert(file)
            }
        };
        file.write_all(lines)
    }

    /// Leaves in the file what is noted of these records, in their order: the same bytes, however often the stage was
    /// continued.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn finish(self, records: &Table<InitialRecord>, has_result: impl Fn(IdKey) -> bool) -> Result<()> {
        let mut whole = Vec::new();
        for chunk in records.chunks(TOGETHER) {
            for record in records.read(chunk)?.into_iter().filter(|record| has_result(record.id.key())) {
                if let Some(made_from) = self.noted.get(&record.id.key()) {
                    line(&mut whole, record.id, format!("{made_from:032x}"))?;
                }
            }
        }
        drop(self.file);
        let there = || fs::read(&self.path).unwrap_or_default();
        if whole == there() { Ok(()) } else { files::write_atomically(&self.path, &whole) }
    }
}

fn line(lines: &mut Vec<u8>, id: RecordId, made_from: String) -> Result<()> {
    serde_json::to_writer(&mut *lines, &Line { id, made_from })?;
    lines.push(b'\n');
    Ok(())
}

fn number(digest: &str) -> Option<u128> {
    u128::from_str_radix(digest, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::digest;

    #[test]
    fn what_was_noted_is_known_again_and_the_bytes_end_the_same_after_any_cut() {
        let folder = tempfile::tempdir().unwrap();
        let (data, path) = (folder.path().join("data.json"), folder.path().join("x/ledger.jsonl"));
        let record = |id: &str| format!("{{\"id\": {id}, \"img_path\": \"\", \"prompt\": \"\", \"caption\": \"\"}}\n");
        fs::write(&data, ["\"a\"", "7", "\"c\""].map(record).concat()).unwrap();
        let records = Table::<InitialRecord>::open(&data, "").unwrap();
        let ids: Vec<RecordId> = records.read(0..3).unwrap().into_iter().map(|record| record.id).collect();
        let made = |id: &RecordId| digest([id.as_str(), "picture"]);
        let run = || {
            let mut ledger = Ledger::open(path.clone()).unwrap();
            for id in ids.iter().rev() {
                if !ledger.fits(id, &made(id)) {
                    ledger.note([(id, made(id))].into_iter()).unwrap();
                }
            }
            ledger.finish(&records, |_| true).unwrap();
            fs::read(&path).unwrap()
        };
        let whole = run();
        assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 3);
        let ledger = Ledger::open(path.clone()).unwrap();
        assert!(ledger.fits(&ids[1], &made(&ids[1])) && !ledger.fits(&ids[1], &made(&ids[0])));
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(run(), whole, "{cut}");
        }
        Ledger::open(path.clone()).unwrap().finish(&records, |key| key == ids[1].key()).unwrap();
        assert_eq!(fs::read(&path).unwrap().iter().filter(|byte| **byte == b'\n').count(), 1, "of results alone");
        Ledger::open(path.clone()).unwrap().strike(ids.iter()).unwrap();
        assert!(!Ledger::open(path).unwrap().fits(&ids[1], &made(&ids[1])), "what was struck stays so");
    }
}
