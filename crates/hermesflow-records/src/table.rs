//! A file of records on disk, of which memory holds only the places of the records.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::read::{Place, Scan};
use crate::{Error, IdKey, Identified, Record, RecordId, Result};

/// After this many entries, the number of further ones is estimated, because a list that grows by doubling leaves as
/// much unused memory as it needs.
pub(crate) const FEW: usize = 256;

/// The records of a file, read when they are needed, in entries of one record or of all consecutive records of one id.
/// An entry takes 28 bytes of memory.
///
/// The whole file is checked when it is opened, so that errors are reported before any work is done.
#[derive(Debug)]
pub struct Table<R> {
    path: PathBuf,
    file: Mutex<Parts>,
    entries: Vec<Span>,
    /// The indices of the entries, sorted by key and then by index.
    by_key: Vec<u32>,
    records: PhantomData<fn() -> R>,
}

/// The place of an entry.
#[derive(Debug, Clone, Copy)]
struct Span {
    key: IdKey,
    offset: u64,
    length: u32,
    line: u32,
}

impl Span {
    /// # Errors
    /// For a record of 4 GB or beyond 4 billion lines.
    fn new(key: IdKey, place: Place, path: &Path) -> Result<Self> {
        let fit =
            |number: usize| u32::try_from(number).map_err(|_| Error::io(path)(io::ErrorKind::FileTooLarge.into()));
        Ok(Self { key, offset: place.offset, length: fit(place.length)?, line: fit(place.line)? })
    }

    /// Adds a record that follows the entry, if the length stays within bounds.
    fn extend(&mut self, place: Place) -> bool {
        let length = u32::try_from(place.offset + place.length as u64 - self.offset);
        self.length = length.unwrap_or(self.length);
        length.is_ok()
    }
}

impl<R: Record> Table<R> {
    /// A table with one entry per record; there may be none. `remedy` says how to make the file if it is missing.
    ///
    /// # Errors
    /// If the file is missing or a record cannot be read; the file, the line and the record are named.
    pub fn open(path: &Path, remedy: &'static str) -> Result<Self> {
        Self::of(path, remedy, |_, _| false)
    }

    /// Like [`Table::open`], but consecutive records of one id form one entry.
    ///
    /// # Errors
    /// As [`Table::open`].
    pub fn grouped(path: &Path, remedy: &'static str) -> Result<Self> {
        Self::of(path, remedy, |last, key| last == key)
    }

    /// Like [`Table::open`], for a file with at least one record, in which every id occurs once.
    ///
    /// # Errors
    /// As [`Table::open`], and if the file is empty or an id occurs twice.
    pub fn unique(path: &Path, remedy: &'static str) -> Result<Self> {
        let table = Self::open(path, remedy)?;
        if table.is_empty() {
            return Err(Error::Empty { path: path.into(), remedy });
        }
        let same = |pair: &&[u32]| table.entry(pair[0]).key == table.entry(pair[1]).key;
        // Of several duplicates the first in the file.
        let twice = table.by_key.windows(2).filter(same).min_by_key(|pair| pair[1]).map(|pair| [pair[0], pair[1]]);
        let Some(twice) = twice else { return Ok(table) };
        let [first, second] = twice.map(|number| table.entry(number).line as usize);
        let mut records = Vec::new();
        table.read_entry(table.entry(twice[1]), &mut records)?;
        let id = records.first().map_or_else(String::new, |record| record.id().to_string());
        Err(Error::Duplicate { path: path.into(), first, second, id })
    }

    fn of(path: &Path, remedy: &'static str, together: impl Fn(IdKey, IdKey) -> bool) -> Result<Self> {
        let mut scan = Scan::open(path, remedy)?;
        let mut entries: Vec<Span> = Vec::new();
        while let Some((place, outline)) = scan.next::<R::Outline>()? {
            let key = outline.id().key();
            let last = entries.last_mut().filter(|last| together(last.key, key));
            if !last.is_some_and(|last| last.extend(place)) {
                if entries.len() == FEW {
                    entries.reserve_exact(scan.expected(FEW));
                }
                entries.push(Span::new(key, place, path)?);
            }
        }
        entries.shrink_to_fit();
        let file = Mutex::new(Parts::of(scan.into_file()).map_err(Error::io(path))?);
        let mut table = Self { path: path.into(), file, entries, by_key: Vec::new(), records: PhantomData };
        table.sort();
        Ok(table)
    }

    fn sort(&mut self) {
        self.by_key = (0..self.entries.len() as u32).collect();
        self.by_key.sort_unstable_by_key(|number| (self.entries[*number as usize].key, *number));
    }

    fn entry(&self, number: u32) -> &Span {
        &self.entries[number as usize]
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The keys of the entries, in the order of the file.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = IdKey> {
        self.entries.iter().map(|entry| entry.key)
    }

    /// Removes the entries with unwanted keys; later ones move up.
    pub fn retain(&mut self, wanted: impl Fn(IdKey) -> bool) {
        self.entries.retain(|entry| wanted(entry.key));
        self.sort();
    }

    /// The indices of the entries in chunks of `size`; the last chunk may be shorter.
    pub fn chunks(&self, size: usize) -> impl Iterator<Item = Range<usize>> {
        let end = self.len();
        (0..end).step_by(size.max(1)).map(move |start| start..end.min(start + size.max(1)))
    }

    /// The records of the entries with these indices.
    ///
    /// # Errors
    /// If the file cannot be read or has changed.
    pub fn read(&self, numbers: Range<usize>) -> Result<Vec<R>> {
        let mut records = Vec::with_capacity(numbers.len());
        self.entries[numbers].iter().try_for_each(|entry| self.read_entry(entry, &mut records))?;
        Ok(records)
    }

    /// The indices of the entries with a key.
    fn numbers(&self, key: IdKey) -> impl Iterator<Item = u32> {
        let start = self.by_key.partition_point(|number| self.entry(*number).key < key);
        self.by_key[start..].iter().copied().take_while(move |number| self.entry(*number).key == key)
    }

    /// Whether there is a record of an id.
    pub fn has(&self, key: IdKey) -> bool {
        self.numbers(key).next().is_some()
    }

    /// All records of an id, in the order of the file.
    ///
    /// # Errors
    /// As [`Table::read`].
    pub fn of_id(&self, id: &RecordId) -> Result<Vec<R>> {
        let mut records = Vec::new();
        self.numbers(id.key()).try_for_each(|number| self.read_entry(self.entry(number), &mut records))?;
        records.retain(|record: &R| record.id() == id);
        Ok(records)
    }

    fn read_entry(&self, entry: &Span, records: &mut Vec<R>) -> Result<()> {
        let changed = || Error::Changed { path: self.path.clone(), line: entry.line as usize };
        let read = self.file.lock().unwrap_or_else(PoisonError::into_inner).read(entry.offset, entry.length as usize);
        let text = String::from_utf8(read.map_err(Error::io(&self.path))?).map_err(|_| changed())?;
        let mut scan = Scan::part(text, entry.line as usize, &self.path);
        let before = records.len();
        while let Some((_, record)) = scan.next::<R>().map_err(|_| changed())? {
            if record.id().key() != entry.key {
                return Err(changed());
            }
            records.push(record);
        }
        if records.len() == before { Err(changed()) } else { Ok(()) }
    }
}

/// Reads parts of a file; consecutive ones come from one buffer.
#[derive(Debug)]
pub(crate) struct Parts {
    file: BufReader<File>,
    at: u64,
}

impl Parts {
    pub fn of(mut file: File) -> io::Result<Self> {
        file.rewind()?;
        Ok(Self { file: BufReader::new(file), at: 0 })
    }

    pub fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.file.seek_relative(offset.wrapping_sub(self.at).cast_signed())?;
        let mut bytes = vec![0; length];
        self.file.read_exact(&mut bytes)?;
        self.at = offset + length as u64;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::AnswerRecord;

    fn answer(id: &str, number: usize) -> String {
        format!("{{\"id\": \"{id}\", \"caption\": \"\", \"question_number\": {number}, \"result\": []}}")
    }

    /// A file of records with these ids and their places as numbers.
    fn file(ids: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.json");
        let records: Vec<String> = ids.split_whitespace().enumerate().map(|(at, id)| answer(id, at)).collect();
        std::fs::write(&path, format!("[\n{}\n]\n", records.join(",\n"))).unwrap();
        (folder, path)
    }

    fn numbers(records: &[AnswerRecord]) -> Vec<usize> {
        records.iter().map(|record| record.question_number).collect()
    }

    fn id(text: &str) -> RecordId {
        RecordId::new(text).unwrap()
    }

    #[test]
    fn records_are_found_by_number_and_by_id() {
        let (_folder, path) = file("d b a c");
        let mut table = Table::<AnswerRecord>::unique(&path, "").unwrap();
        assert_eq!(numbers(&table.read(1..3).unwrap()), [1, 2]);
        assert_eq!(numbers(&table.of_id(&id("a")).unwrap()), [2]);
        assert!(table.of_id(&id("e")).unwrap().is_empty() && !table.has(id("e").key()));
        assert_eq!(table.chunks(3).collect::<Vec<_>>(), [0..3, 3..4]);
        table.retain(|key| key != id("b").key());
        assert_eq!((table.len(), table.has(id("b").key()), table.has(id("c").key())), (3, false, true));
        assert_eq!(numbers(&table.read(0..3).unwrap()), [0, 2, 3]);
        assert_eq!(table.keys().collect::<Vec<_>>(), ["d", "a", "c"].map(|one| id(one).key()));
    }

    #[test]
    fn records_of_one_id_are_read_together_wherever_they_stand() {
        let (_folder, path) = file("a a b a c c c");
        let table = Table::<AnswerRecord>::grouped(&path, "").unwrap();
        assert_eq!(table.len(), 4);
        assert_eq!(numbers(&table.of_id(&id("a")).unwrap()), [0, 1, 3]);
        assert_eq!(numbers(&table.of_id(&id("c")).unwrap()), [4, 5, 6]);
        assert_eq!(numbers(&table.read(0..2).unwrap()), [0, 1, 2]);
    }

    #[test]
    fn missing_empty_and_doubled_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let said = |path: &Path| Table::<AnswerRecord>::unique(path, "make it").unwrap_err().to_string();
        let path = folder.path().join("data.json");
        assert!(said(&path).contains("data.json: does not exist; make it"), "{}", said(&path));
        std::fs::write(&path, "[]").unwrap();
        assert!(said(&path).contains("data.json: contains no record; make it"), "{}", said(&path));
        assert!(Table::<AnswerRecord>::open(&path, "").unwrap().is_empty());
        let (_folder, path) = file("2 1 7 1 2 1");
        assert!(said(&path).contains("data.json, lines 3 and 5: the id 1 occurs twice"), "{}", said(&path));
        assert_eq!(numbers(&Table::<AnswerRecord>::open(&path, "").unwrap().of_id(&id("1")).unwrap()), [1, 3, 5]);
    }

    #[test]
    fn what_is_broken_is_said_before_anything_is_read() {
        let (_folder, path) = file("1 2 3");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("number\": 2", "number\": \"two\"")).unwrap();
        let message = Table::<AnswerRecord>::open(&path, "").unwrap_err().to_string();
        assert!(message.contains("data.json, line 4, record 3: invalid type: string \"two\""), "{message}");
    }

    #[test]
    fn a_file_that_changed_is_not_misread() {
        let (_folder, path) = file("1 2 3");
        let table = Table::<AnswerRecord>::open(&path, "").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        // Replaced by renaming, as this program does: the opened file can still be read.
        let other = path.with_extension("other");
        std::fs::write(&other, "[]").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(numbers(&table.read(0..1).unwrap()), [0]);
        std::fs::write(&path, &text).unwrap();
        let table = Table::<AnswerRecord>::open(&path, "").unwrap();
        for edited in [text.replace("\"2\"", "\"4\""), text.replacen('{', "{ ", 1), text[..60].to_owned()] {
            std::fs::write(&path, edited).unwrap();
            let message = table.read(1..2).unwrap_err().to_string();
            assert!(message.contains("data.json, line 3: changed") || message.contains("end of file"), "{message}");
        }
    }
}
