//! A digest per record of what its result was made from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use hermesflow_records::{AppendLog, IdKey, InitialRecord, RecordId, Table, of_process};
use serde::{Deserialize, Serialize};

use crate::files;

/// Number of records that are read at a time.
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
    log: AppendLog,
    noted: HashMap<IdKey, u128>,
}

impl Ledger {
    /// Opens the file of the notes, which need not exist yet, and takes over what several processes noted in logs of their
    /// own.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let mut ledger = Self { path: path.into(), log: AppendLog::of_lines(path)?, noted: HashMap::new() };
        ledger.log.take_over()?;
        ledger.read()?;
        Ok(ledger)
    }

    fn read(&mut self) -> Result<()> {
        let noted = &mut self.noted;
        self.log.each(|_, line| {
            if let Ok(line) = serde_json::from_slice::<Line>(line) {
                take(noted, line.id.key(), &line.made_from);
            }
        })?;
        Ok(())
    }

    /// Begins to note in the log of one of several processes, which is empty.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn append_as(&mut self, rank: usize) -> Result<()> {
        self.log = AppendLog::of_lines(&of_process(&self.path, rank))?;
        Ok(())
    }

    /// Takes over what all processes have noted in logs of their own, when none does so any longer.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn collect(&mut self) -> Result<()> {
        self.log = AppendLog::of_lines(&self.path)?;
        if self.log.take_over()? {
            self.read()?;
        }
        Ok(())
    }

    /// Whether a record's result was made from this.
    pub fn was_made_from(&self, id: &RecordId, made_from: &str) -> bool {
        number(made_from).is_some_and(|made_from| self.noted.get(&id.key()) == Some(&made_from))
    }

    /// Notes what results were made from.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn note<'a>(&mut self, results: impl Iterator<Item = (&'a RecordId, String)>) -> Result<()> {
        let mut lines = Vec::new();
        for (id, made_from) in results {
            take(&mut self.noted, id.key(), &made_from);
            line(&mut lines, id.clone(), made_from)?;
        }
        if !lines.is_empty() {
            self.log.append(&lines)?;
        }
        Ok(())
    }

    /// Strikes what is noted of records whose results are about to be made anew: killed meanwhile, these are not taken
    /// for what was there before.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn strike<'a>(&mut self, ids: impl Iterator<Item = &'a RecordId>) -> Result<()> {
        self.note(ids.map(|id| (id, String::new())))
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
        files::write_if_other(&self.path, &whole)
    }
}

fn take(noted: &mut HashMap<IdKey, u128>, key: IdKey, made_from: &str) {
    match number(made_from) {
        Some(number) => noted.insert(key, number),
        None => noted.remove(&key),
    };
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
    use std::fs;

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
            let mut ledger = Ledger::open(&path).unwrap();
            for id in ids.iter().rev() {
                if !ledger.was_made_from(id, &made(id)) {
                    ledger.note([(id, made(id))].into_iter()).unwrap();
                }
            }
            ledger.finish(&records, |_| true).unwrap();
            fs::read(&path).unwrap()
        };
        let whole = run();
        assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 3);
        let ledger = Ledger::open(&path).unwrap();
        assert!(ledger.was_made_from(&ids[1], &made(&ids[1])) && !ledger.was_made_from(&ids[1], &made(&ids[0])));
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(run(), whole, "{cut}");
        }
        Ledger::open(&path).unwrap().finish(&records, |key| key == ids[1].key()).unwrap();
        assert_eq!(fs::read(&path).unwrap().iter().filter(|byte| **byte == b'\n').count(), 1, "of results alone");
        Ledger::open(&path).unwrap().strike(ids.iter()).unwrap();
        assert!(!Ledger::open(&path).unwrap().was_made_from(&ids[1], &made(&ids[1])), "what was struck stays so");
    }
}
