//! The file of a stage's results: JSON Lines that are appended while the stage works, and one JSON array at the end.
//!
//! If the program is killed, at most the last line is lost.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use crate::read::{Scan, only};
use crate::table::{FEW, Parts};
use crate::whole::ArrayFile;
use crate::{AppendLog, Error, IdKey, Identified, Record, Result, of_process};

/// The results of a stage, by record id. Results written before the program was killed are kept. Memory holds only
/// their places.
#[derive(Debug)]
pub struct Store<R> {
    path: PathBuf,
    working: AppendLog,
    places: HashMap<IdKey, Kept>,
    records: PhantomData<fn(R)>,
}

/// The place of a result.
#[derive(Debug, Clone, Copy)]
struct Kept {
    source: Source,
    length: u32,
    offset: u64,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Final,
    Working,
}

impl<R: Record> Store<R> {
    /// Opens the results in the final file and in the `.jsonl` beside it, of which there may be neither. An incomplete
    /// last line is removed, and what several processes left in logs of their own is taken over.
    ///
    /// # Errors
    /// If a file cannot be read; the file and the line are named.
    pub fn open(path: &Path) -> Result<Self> {
        let working = AppendLog::of_lines(&path.with_extension("jsonl"))?;
        let mut store = Self { path: path.into(), working, places: HashMap::new(), records: PhantomData };
        if path.is_file() {
            store.look_through(Source::Final, 0)?;
        }
        if store.working.path().is_file() {
            store.working.mend()?;
        }
        store.working.take_over()?;
        if store.working.path().is_file() {
            store.look_through(Source::Working, 0)?;
        }
        Ok(store)
    }

    /// Begins to append to the log of one of several processes. Results that are in it already are of an earlier run and
    /// must have been taken over.
    ///
    /// # Errors
    /// If the log is there and cannot be read.
    pub fn append_as(&mut self, rank: usize) -> Result<()> {
        self.working = AppendLog::of_lines(&of_process(&self.path.with_extension("jsonl"), rank))?;
        Ok(())
    }

    /// Takes over what all processes have appended to logs of their own, when none does so any longer.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn collect(&mut self) -> Result<()> {
        self.working = AppendLog::of_lines(&self.path.with_extension("jsonl"))?;
        let before = self.working.whole();
        if self.working.take_over()? {
            // What was there before is known, or was forgotten.
            self.look_through(Source::Working, before)?;
        }
        Ok(())
    }

    fn source(&self, source: Source) -> &Path {
        match source {
            Source::Final => &self.path,
            Source::Working => self.working.path(),
        }
    }

    /// Notes the places of a file's results, from an offset on.
    fn look_through(&mut self, source: Source, from: u64) -> Result<()> {
        let path = self.source(source).to_owned();
        let mut scan = Scan::new(File::open(&path).map_err(Error::io(&path))?, &path);
        while let Some((place, outline)) = scan.next::<R::Outline>()? {
            if self.places.len() == FEW {
                self.places.reserve(scan.expected(FEW));
            }
            if place.offset < from {
                continue;
            }
            let kept = Kept { source, length: bounded(place.length, &path)?, offset: place.offset };
            self.places.insert(outline.id().key(), kept);
        }
        Ok(())
    }

    /// Whether there is a result of an id.
    pub fn has(&self, key: IdKey) -> bool {
        self.places.contains_key(&key)
    }

    /// Drops the result of an id: unless a new one is appended, the final file has none.
    pub fn forget(&mut self, key: IdKey) {
        self.places.remove(&key);
    }

    /// Adds results in one write.
    ///
    /// # Errors
    /// If the file cannot be written, in which case none of `records` is kept; the file is named.
    pub fn append(&mut self, records: &[R]) -> Result<()> {
        let (mut lines, mut lengths) = (Vec::new(), Vec::with_capacity(records.len()));
        for record in records {
            let start = lines.len();
            serde_json::to_writer(&mut lines, record).map_err(|error| Error::io(self.working.path())(error.into()))?;
            lengths.push(bounded(lines.len() - start, self.working.path())?);
            lines.push(b'\n');
        }
        let mut offset = self.working.append(&lines)?;
        for (record, length) in records.iter().zip(lengths) {
            self.places.insert(record.id().key(), Kept { source: Source::Working, length, offset });
            offset += u64::from(length) + 1;
        }
        Ok(())
    }

    /// Writes the final file, with results in the order of `keys`, and removes the `.jsonl`; returns the number of
    /// results.
    ///
    /// # Errors
    /// If the file cannot be written, in which case the `.jsonl` stays; the file is named.
    pub fn finish(mut self, keys: impl Iterator<Item = IdKey>) -> Result<usize> {
        let mut file = ArrayFile::create(&self.path)?;
        let (mut whole, mut working) = (None, None);
        for key in keys {
            let Some(kept) = self.places.remove(&key) else { continue };
            let path = self.source(kept.source);
            let parts = match kept.source {
                Source::Final => &mut whole,
                Source::Working => &mut working,
            };
            let read = || {
                let parts = match parts {
                    Some(parts) => parts,
                    none => none.insert(Parts::of(File::open(path)?)?),
                };
                parts.read(kept.offset, kept.length as usize)
            };
            let bytes = read().map_err(Error::io(path))?;
            // Serialised again instead of copied, so that all records have the same form.
            let record = std::str::from_utf8(&bytes).ok().and_then(only::<R>);
            let record = record.ok_or_else(|| Error::io(path)(ErrorKind::InvalidData.into()))?;
            file.push(&record)?;
        }
        drop((whole, working));
        let records = file.len();
        file.finish()?;
        match fs::remove_file(self.working.path()) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::io(self.working.path())(source)),
            _ => Ok(records),
        }
    }
}

fn bounded(length: usize, path: &Path) -> Result<u32> {
    u32::try_from(length).map_err(|_| Error::io(path)(ErrorKind::FileTooLarge.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::AnswerRecord;
    use crate::RecordId;
    use crate::read;

    fn key(text: &str) -> IdKey {
        RecordId::new(text).unwrap().key()
    }

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
    fn a_cut_off_line_is_made_again_and_the_rest_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/results.json");
        let mut store = Store::open(&path).unwrap();
        store.append(&[answer("b", 0.5), answer("a", 1.0)]).unwrap();
        drop(store);
        let working = path.with_extension("jsonl");
        let whole = fs::read(&working).unwrap();
        fs::write(&working, [&whole[..], b"{\"id\": \"c\", \"capt"].concat()).unwrap();

        let mut store = Store::<AnswerRecord>::open(&path).unwrap();
        assert!(store.has(key("a")) && store.has(key("b")) && !store.has(key("c")));
        store.append(&[answer("c", 0.0)]).unwrap();
        assert_eq!(store.finish(["a", "b", "c", "d"].map(key).into_iter()).unwrap(), 3);
        let records = [answer("a", 1.0), answer("b", 0.5), answer("c", 0.0)];
        assert_eq!(read::<AnswerRecord>(&path, "").unwrap(), records, "in the input's order");
        assert!(path.is_file() && !working.exists());
        assert!(Store::<AnswerRecord>::open(&path).unwrap().has(key("c")), "the final file is enough");
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
        let ids = ["a", "b", "c"];
        let finish = |mut store: Store<AnswerRecord>| {
            for (number, id) in ids.iter().enumerate() {
                if !store.has(key(id)) {
                    store.append(&[answer(id, number as f64)]).unwrap();
                }
            }
            let working = fs::read(path.with_extension("jsonl")).unwrap();
            store.finish(ids.map(key).into_iter()).unwrap();
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
    fn what_was_forgotten_is_not_in_the_end_unless_it_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let mut store = Store::open(&path).unwrap();
        store.append(&[answer("a", 0.0), answer("b", 0.0), answer("c", 0.0)]).unwrap();
        ["a", "b"].iter().for_each(|id| store.forget(key(id)));
        assert!(!store.has(key("a")) && store.has(key("c")));
        store.append(&[answer("b", 1.0)]).unwrap();
        assert_eq!(store.finish(["a", "b", "c"].map(key).into_iter()).unwrap(), 2);
        assert_eq!(read::<AnswerRecord>(&path, "").unwrap(), [answer("b", 1.0), answer("c", 0.0)]);
    }

    #[test]
    fn several_processes_write_one_file_and_anyone_continues_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let ids = ["a", "b", "c", "d", "e"];
        let open = || Store::<AnswerRecord>::open(&path).unwrap();
        open().append(&[answer("a", 0.5), answer("d", 9.0)]).unwrap();
        let mut members: Vec<_> = (0..3).map(|_| open()).collect();
        for (rank, (member, id)) in members.iter_mut().zip(["c", "b", "e"]).enumerate() {
            member.forget(key("d"));
            member.append_as(rank).unwrap();
            member.append(&[answer(id, rank as f64)]).unwrap();
        }
        // Killed in the middle of a line, and continued by one process.
        let log = of_process(&path.with_extension("jsonl"), 1);
        let lines = fs::read(&log).unwrap();
        fs::write(&log, [&lines[..], b"{\"id\": \"d\", \"capt"].concat()).unwrap();
        let mut first = members.remove(0);
        first.collect().unwrap();
        assert!(
            ["a", "b", "c", "e"].iter().all(|id| first.has(key(id))) && !first.has(key("d")),
            "what was forgotten stays so"
        );
        drop(first);
        let mut alone = open();
        alone.append(&[answer("d", 4.0)]).unwrap();
        assert_eq!(alone.finish(ids.map(key).into_iter()).unwrap(), 5);
        let said: Vec<f64> = read::<AnswerRecord>(&path, "").unwrap().iter().map(|one| one.result[0]).collect();
        assert_eq!(said, [0.5, 1.0, 0.0, 4.0, 2.0]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "all logs are gone");
    }

    #[test]
    fn results_of_any_form_are_written_in_one_and_the_last_of_an_id_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let pretty = serde_json::to_string_pretty(&[answer("a", 0.0), answer("b", 0.0), answer("x", 0.0)]).unwrap();
        fs::write(&path, pretty).unwrap();
        let lines =
            [answer("c", 1.0), answer("b", 1.0), answer("c", 0.0)].map(|one| serde_json::to_string(&one).unwrap());
        fs::write(path.with_extension("jsonl"), lines.join("\n") + "\n").unwrap();
        let store = Store::<AnswerRecord>::open(&path).unwrap();
        assert_eq!(store.finish(["c", "b", "a"].map(key).into_iter()).unwrap(), 3);
        let expected =
            [answer("c", 0.0), answer("b", 1.0), answer("a", 0.0)].map(|one| serde_json::to_string(&one).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("[\n{}\n]\n", expected.join(",\n")));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_names_the_file_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        std::os::unix::fs::symlink("/dev/full", path.with_extension("jsonl")).unwrap();
        let mut store = Store::open(&path).unwrap();
        let message = store.append(&[answer("a", 1.0)]).unwrap_err().to_string();
        assert!(message.contains("results.jsonl") && message.contains("space"), "{message}");
        assert!(!store.has(key("a")));
    }
}
