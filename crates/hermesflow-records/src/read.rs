//! Reading records: a JSON array or JSON Lines and, as the Python scripts write them, a sequence of `{…},` objects or
//! an array with a trailing comma. Records are read one at a time, whatever the size of the file.

use std::fs::File;
use std::io::{Empty, ErrorKind, Read, empty};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Deserializer, Value};

use crate::{Error, Result};

/// The number of characters of an id that messages show; a valid id has no more.
const SHOWN: usize = 200;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 18;

/// Reads all records of a file, in order. `remedy` says how to make the file if it is missing.
///
/// # Errors
/// If the file is missing or a record cannot be read; the file, the line and the record are named.
pub fn read<R: DeserializeOwned>(path: &Path, remedy: &'static str) -> Result<Vec<R>> {
    let mut scan = Scan::open(path, remedy)?;
    let mut records = Vec::new();
    while let Some((_, record)) = scan.next()? {
        records.push(record);
    }
    Ok(records)
}

/// The place of a record in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The line on which the record begins, from 1.
    pub line: usize,
    /// The number of bytes before the record.
    pub offset: u64,
    /// The number of bytes of the record.
    pub length: usize,
}

/// Reads the records of a file one after another; only a piece of the file is in memory.
pub(crate) struct Scan<'p, F> {
    path: &'p Path,
    file: F,
    piece: usize,
    ended: bool,
    /// The text read so far; the unparsed part begins at `at`.
    text: String,
    at: usize,
    /// Bytes after the text that are not (yet) a character.
    tail: Vec<u8>,
    offset: u64,
    line: usize,
    records: usize,
    begun: bool,
    array: bool,
}

impl<'p> Scan<'p, File> {
    /// A scan of the file `path`; `remedy` says how to make the file if it is missing.
    ///
    /// # Errors
    /// Names the file when it cannot be opened.
    pub fn open(path: &'p Path, remedy: &'static str) -> Result<Self> {
        match File::open(path) {
            Ok(file) => Ok(Self::new(file, path)),
            Err(source) if source.kind() == ErrorKind::NotFound => Err(Error::Missing { path: path.into(), remedy }),
            Err(source) => Err(Error::io(path)(source)),
        }
    }

    /// An estimate, at most a million, of how many records follow the `count` ones read so far.
    pub fn expected(&self, count: usize) -> usize {
        let bytes = self.file.metadata().map_or(0, |metadata| metadata.len());
        let left = bytes.saturating_sub(self.offset) as f64 / self.offset.max(1) as f64 * count as f64;
        (left * 1.05).min(1e6) as usize
    }
}

impl<'p> Scan<'p, Empty> {
    /// A scan of a part of the file `path` that begins on `line`.
    pub fn part(text: String, line: usize, path: &'p Path) -> Self {
        Self { text, line, ended: true, ..Self::new(empty(), path) }
    }
}

impl<'p, F: Read> Scan<'p, F> {
    /// A scan of `file`; `path` is named in errors.
    pub fn new(file: F, path: &'p Path) -> Self {
        Self {
            path,
            file,
            piece: PIECE,
            ended: false,
            text: String::new(),
            at: 0,
            tail: Vec::new(),
            offset: 0,
            line: 1,
            records: 0,
            begun: false,
            array: false,
        }
    }

    /// The next record and its place; `None` after the last one.
    ///
    /// # Errors
    /// Names the line and the record of what cannot be read.
    pub fn next<R: DeserializeOwned>(&mut self) -> Result<Option<(Place, R)>> {
        if !self.begun {
            self.begun = true;
            self.pass_all(|character| character == '\u{feff}')?;
            self.blank()?;
            self.array = self.take('[');
        }
        self.blank()?;
        if self.rest().is_empty() {
            return match self.array {
                true => Err(self.broken("the array is not closed: the file is cut off")),
                false => Ok(None),
            };
        }
        if self.array && self.take(']') {
            self.blank()?;
            self.array = false;
            return match self.rest().is_empty() {
                true => Ok(None),
                false => Err(self.broken("something follows the closed array")),
            };
        }
        let (record, length) = loop {
            match element(self.rest()) {
                Ok(element) => break element,
                Err(Fault::CutOff) if self.fill()? => {}
                Err(Fault::CutOff) => return Err(self.broken("not JSON: the record is cut off")),
                Err(Fault::NotJson { line, message }) => {
                    self.line += line;
                    return Err(self.broken(format!("not JSON ({message})")));
                }
                Err(Fault::NoRecord { id, message }) => {
                    let record = id.unwrap_or_else(|| self.number());
                    return Err(Error::Broken { path: self.path.into(), line: self.line, record, message });
                }
            }
        };
        let place = Place { line: self.line, offset: self.offset, length };
        self.pass(length);
        self.records += 1;
        self.blank()?;
        self.take(',');
        Ok(Some((place, record)))
    }

    /// The file.
    pub fn into_file(self) -> F {
        self.file
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    /// Reads another piece; returns whether there was more.
    fn fill(&mut self) -> Result<bool> {
        self.text.drain(..std::mem::take(&mut self.at));
        let before = self.text.len();
        while !self.ended && self.text.len() == before {
            // The pieces grow with the record, so that a long record is not parsed once per piece.
            let wanted = self.piece.max(before);
            let read = self.file.by_ref().take(wanted as u64).read_to_end(&mut self.tail);
            self.ended = read.map_err(Error::io(self.path))? < wanted;
            let good = match std::str::from_utf8(&self.tail) {
                Ok(text) => {
                    self.text.push_str(text);
                    text.len()
                }
                Err(error) => {
                    // An incomplete character may be completed by the next piece; anything else is not UTF-8.
                    self.ended |= error.error_len().is_some();
                    let good = error.valid_up_to();
                    self.text.push_str(std::str::from_utf8(&self.tail[..good]).unwrap_or_default());
                    good
                }
            };
            self.tail.drain(..good);
        }
        if self.text.len() == before && !self.tail.is_empty() {
            self.line += lines(&self.text);
            return Err(self.broken("not UTF-8: save the file in that encoding"));
        }
        Ok(self.text.len() > before)
    }

    fn pass(&mut self, bytes: usize) {
        self.line += lines(&self.rest()[..bytes]);
        self.at += bytes;
        self.offset += bytes as u64;
    }

    fn pass_all(&mut self, unwanted: impl Fn(char) -> bool) -> Result<()> {
        loop {
            let rest = self.rest();
            self.pass(rest.len() - rest.trim_start_matches(&unwanted).len());
            if !self.rest().is_empty() || !self.fill()? {
                return Ok(());
            }
        }
    }

    /// Skips white space.
    fn blank(&mut self) -> Result<()> {
        self.pass_all(char::is_whitespace)
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.rest().starts_with(wanted);
        if found {
            self.pass(wanted.len_utf8());
        }
        found
    }

    /// The next record's number, for messages about a record without an id.
    fn number(&self) -> String {
        format!("number {}", self.records + 1)
    }

    fn broken(&self, message: impl Into<String>) -> Error {
        Error::Broken { path: self.path.into(), line: self.line, record: self.number(), message: message.into() }
    }
}

/// The record that is the whole of a text; `None` if it is none.
pub(crate) fn only<R: DeserializeOwned>(text: &str) -> Option<R> {
    element(text).ok().filter(|(_, length)| *length == text.len()).map(|(record, _)| record)
}

/// Why a text does not begin with a record.
enum Fault {
    /// The text ends before the record does.
    CutOff,
    /// The text is not JSON; the error is this many lines below the first one.
    NotJson { line: usize, message: String },
    /// The text is JSON but not a record.
    NoRecord { id: Option<String>, message: String },
}

/// The record that a text begins with, and its length in bytes.
fn element<R: DeserializeOwned>(text: &str) -> std::result::Result<(R, usize), Fault> {
    if text.starts_with('{') {
        let mut stream = Deserializer::from_str(text).into_iter();
        if let Some(Ok(record)) = stream.next() {
            return Ok((record, stream.byte_offset()));
        }
    }
    // Parsed as any JSON for the error message; of a repeated name the second counts.
    let mut stream = Deserializer::from_str(text).into_iter::<Value>();
    let value = match stream.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) if !error.is_eof() => {
            let message = without_place(&error.to_string()).to_owned();
            return Err(Fault::NotJson { line: error.line().saturating_sub(1), message });
        }
        _ => return Err(Fault::CutOff),
    };
    let id = value.get("id").map(|id| shortened(id.as_str().map_or_else(|| id.to_string(), str::to_owned)));
    if !value.is_object() {
        return Err(Fault::NoRecord { id, message: "not a record of the form {\"id\": …}".into() });
    }
    match serde_json::from_value(value) {
        Ok(record) => Ok((record, stream.byte_offset())),
        Err(error) => Err(Fault::NoRecord { id, message: error.to_string() }),
    }
}

fn lines(text: &str) -> usize {
    // Sums of bytes are vectorised.
    let breaks = |part: &[u8]| usize::from(part.iter().map(|byte| u8::from(*byte == b'\n')).sum::<u8>());
    text.as_bytes().chunks(255).map(breaks).sum()
}

/// A name for messages; one that is too long to be an id is shortened.
fn shortened(name: String) -> String {
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name,
    }
}

/// serde_json's message without its place, which is counted from the beginning of the record.
fn without_place(message: &str) -> &str {
    message.find(" at line ").map_or(message, |at| &message[..at])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::InitialRecord;

    fn record(id: &str) -> String {
        format!("{{\"id\": {id}, \"img_path\": \"i\", \"prompt\": \"p\",\n \"caption\": \"c, [d]\"}}")
    }

    fn scan(text: &[u8], piece: usize) -> Result<Vec<(Place, String)>> {
        let mut scan = Scan { piece, ..Scan::new(text, Path::new("data.json")) };
        let mut found = Vec::new();
        while let Some((place, record)) = scan.next::<InitialRecord>()? {
            found.push((place, record.id.to_string()));
        }
        Ok(found)
    }

    /// The ids, or what is wrong, however the text comes.
    fn ids(text: &[u8]) -> std::result::Result<Vec<String>, String> {
        let whole = scan(text, PIECE).map_err(|error| error.to_string());
        for piece in [1, 2, 7, 30] {
            assert_eq!(scan(text, piece).map_err(|error| error.to_string()), whole, "pieces of {piece} bytes");
        }
        for (place, id) in whole.iter().flatten() {
            let record = &text[place.offset as usize..][..place.length];
            assert_eq!(only::<InitialRecord>(std::str::from_utf8(record).unwrap()).unwrap().id.as_str(), id);
            assert_eq!(lines(std::str::from_utf8(&text[..place.offset as usize]).unwrap()) + 1, place.line);
        }
        Ok(whole?.into_iter().map(|(_, id)| id).collect())
    }

    #[test]
    fn every_form_is_read() {
        let (a, b) = (record("1"), record("\"b\""));
        for text in [
            format!("[{a},\n{b}]\n"),
            format!("[{a}, {b},\n]"),
            format!("{a}\n{b}\n"),
            format!("{a},\n{b},\n"),
            format!("\u{feff}  {a}{b}"),
        ] {
            assert_eq!(ids(text.as_bytes()).unwrap(), ["1", "b"], "{text}");
        }
        assert!(ids(b" \n").unwrap().is_empty() && ids(b"[]").unwrap().is_empty());
    }

    #[test]
    fn what_is_broken_is_named() {
        let (a, b) = (record("1"), record("2"));
        for (text, parts) in [
            (format!("[{a},\n{b}"), vec!["line 4", "cut off"]),
            (format!("{a}\n{{\"id\": 2, \"img_path\""), vec!["data.json, line 3, record number 2", "cut off"]),
            (format!("{a}\n{{\"id\": 2}}"), vec!["line 3", "record 2", "img_path"]),
            (format!("{a}\n{{\"id\": 2,\n x}}"), vec!["line 4, record number 2", "not JSON"]),
            (format!("{a},,{b}"), vec!["line 2, record number 2", "not JSON"]),
            (format!("[{a}] x"), vec!["line 2", "follows"]),
            ("[1, 2]".to_string(), vec!["line 1", "not a record"]),
            (record("\"../x\""), vec!["separator"]),
            (record("1.5"), vec!["id"]),
        ] {
            let message = ids(text.as_bytes()).unwrap_err();
            parts.iter().for_each(|part| assert!(message.contains(part), "{part}: {message}"));
        }
    }

    #[test]
    fn what_is_not_utf_8_is_named() {
        let text = [record("1").as_bytes(), b"\n{\"id\": 2, \"caption\": \"\xff\"}"].concat();
        let message = ids(&text).unwrap_err();
        assert!(message.contains("data.json, line 3, record number 2: not UTF-8"), "{message}");
    }

    #[test]
    fn a_name_that_is_there_twice_and_names_of_others_are_read_over() {
        let text = "{\"id\": 1, \"id\": \"ü\", \"x\": [{}], \"img_path\": \"i\", \"prompt\": \"\", \"caption\": \"\"}";
        assert_eq!(ids(text.as_bytes()).unwrap(), ["ü"]);
    }

    #[test]
    fn all_is_read_and_a_missing_file_says_what_makes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.json");
        let message = read::<InitialRecord>(&path, "make it").unwrap_err().to_string();
        assert!(message.contains("data.json: does not exist; make it"), "{message}");
        std::fs::write(&path, [record("1"), record("1")].join("\n")).unwrap();
        assert_eq!(read::<InitialRecord>(&path, "").unwrap().len(), 2);
    }

    /// Lines are counted once: a file of many records takes a moment, not minutes.
    #[test]
    fn many_records_are_read_in_a_moment() {
        let text: String = (0..100_000).map(|id| record(&id.to_string()) + ",\n").collect();
        let clock = std::time::Instant::now();
        let records = scan(text.as_bytes(), PIECE).unwrap();
        assert_eq!(records.last().unwrap().0.line, 2 * 100_000 - 1);
        assert!(clock.elapsed().as_secs() < 10, "{:?}", clock.elapsed());
    }
}
