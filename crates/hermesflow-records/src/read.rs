//! Reading records: a JSON array or JSON Lines; and, as the Python scripts write them, a bare run of `{…},`
//! objects or an array with a trailing comma.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Identified, Result};

/// Messages show no more characters of an id than this; a valid one has no more.
const SHOWN: usize = 200;

/// Reads all records of a file, in order. `remedy` says what makes the file where it is missing.
///
/// # Errors
/// Names the file, the line and the record of what cannot be read.
pub fn read<R: DeserializeOwned>(path: &Path, remedy: &'static str) -> Result<Vec<R>> {
    Ok(read_lines(path, remedy)?.into_iter().map(|(_, record)| record).collect())
}

/// As [`read`], of a file in which every id is there once, and at least one is.
///
/// # Errors
/// As [`read`], and for an empty file or an id that is there twice.
pub fn read_unique<R: DeserializeOwned + Identified>(path: &Path, remedy: &'static str) -> Result<Vec<R>> {
    let records = read_lines::<R>(path, remedy)?;
    if records.is_empty() {
        return Err(Error::Empty { path: path.into(), remedy });
    }
    let mut lines = HashMap::new();
    for (second, record) in &records {
        if let Some(first) = lines.insert(record.id(), *second) {
            let id = record.id().to_string();
            return Err(Error::Duplicate { path: path.into(), first, second: *second, id });
        }
    }
    Ok(records.into_iter().map(|(_, record)| record).collect())
}

fn read_lines<R: DeserializeOwned>(path: &Path, remedy: &'static str) -> Result<Vec<(usize, R)>> {
    match std::fs::read(path) {
        Ok(bytes) => parse(&bytes, path),
        Err(source) if source.kind() == ErrorKind::NotFound => Err(Error::Missing { path: path.into(), remedy }),
        Err(source) => Err(Error::io(path)(source)),
    }
}

/// Records with the line on which each begins; `path` is named in errors.
///
/// # Errors
/// Names the line and the record of what cannot be read.
pub fn parse<R: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<Vec<(usize, R)>> {
    let mut records = Vec::new();
    let broken = |line, record: String, message: String| Error::Broken { path: path.into(), line, record, message };
    let number = |records: &Vec<_>| format!("number {}", records.len() + 1);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        // How many ids came before; a caption might hold one, but only this message depends on it.
        let message = "not UTF-8: save the file in that encoding".to_string();
        broken(before.matches('\n').count() + 1, format!("number {}", before.matches("\"id\"").count().max(1)), message)
    })?;
    let mut place = Place { text: text.trim_start_matches('\u{feff}'), line: 1 };
    place.blank();
    let array = place.take('[');
    loop {
        place.blank();
        if place.text.is_empty() {
            if array {
                return Err(broken(
                    place.line,
                    number(&records),
                    "the array is not closed: the file is cut off".into(),
                ));
            }
            return Ok(records);
        }
        if array && place.take(']') {
            place.blank();
            if !place.text.is_empty() {
                return Err(broken(place.line, number(&records), "something follows the closed array".into()));
            }
            return Ok(records);
        }
        let mut stream = serde_json::Deserializer::from_str(place.text).into_iter::<Value>();
        let value = match stream.next() {
            Some(Ok(value)) => value,
            Some(Err(error)) if !error.is_eof() => {
                let line = place.line + error.line().saturating_sub(1);
                return Err(broken(
                    line,
                    number(&records),
                    format!("not JSON ({})", without_place(&error.to_string())),
                ));
            }
            _ => return Err(broken(place.line, number(&records), "not JSON: the record is cut off".into())),
        };
        let length = stream.byte_offset();
        let id = value.get("id").map(|id| shortened(id.as_str().map_or_else(|| id.to_string(), str::to_owned)));
        let record = id.unwrap_or_else(|| number(&records));
        if !value.is_object() {
            return Err(broken(place.line, record, "not a record of the form {\"id\": …}".into()));
        }
        let parsed = serde_json::from_value(value).map_err(|error| broken(place.line, record, error.to_string()))?;
        records.push((place.line, parsed));
        place.skip(length);
        place.blank();
        place.take(',');
    }
}

/// Where the reader is: what is left of the text, and the line on which it begins.
struct Place<'a> {
    text: &'a str,
    line: usize,
}

impl Place<'_> {
    fn skip(&mut self, bytes: usize) {
        let (passed, left) = self.text.split_at(bytes);
        self.line += passed.matches('\n').count();
        self.text = left;
    }

    /// Skips white space.
    fn blank(&mut self) {
        self.skip(self.text.len() - self.text.trim_start().len());
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.text.starts_with(wanted);
        if found {
            self.skip(wanted.len_utf8());
        }
        found
    }
}

/// A name as messages show it: the beginning of one that is too long to be an id.
fn shortened(name: String) -> String {
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name,
    }
}

/// serde_json's message without its place, which counts from the record's beginning.
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

    fn ids(text: &str) -> Result<Vec<String>> {
        let records = parse::<InitialRecord>(text.as_bytes(), Path::new("data.json"))?;
        Ok(records.into_iter().map(|(_, record)| record.id.to_string()).collect())
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
            assert_eq!(ids(&text).unwrap(), ["1", "b"], "{text}");
        }
        assert!(ids(" \n").unwrap().is_empty() && ids("[]").unwrap().is_empty());
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
            let message = ids(&text).unwrap_err().to_string();
            parts.iter().for_each(|part| assert!(message.contains(part), "{part}: {message}"));
        }
    }

    #[test]
    fn what_is_not_utf_8_is_named() {
        let text = [record("1").as_bytes(), b"\n{\"id\": 2, \"caption\": \"\xff\"}"].concat();
        let message = parse::<InitialRecord>(&text, Path::new("data.json")).unwrap_err().to_string();
        assert!(message.contains("data.json, line 3, record number 2: not UTF-8"), "{message}");
    }

    #[test]
    fn missing_empty_and_doubled_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.json");
        let said = || read_unique::<InitialRecord>(&path, "make it").unwrap_err().to_string();
        assert!(said().contains("data.json: does not exist; make it"), "{}", said());
        std::fs::write(&path, "[]").unwrap();
        assert!(said().contains("data.json: holds no record; make it"), "{}", said());
        assert!(read::<InitialRecord>(&path, "").unwrap().is_empty());
        std::fs::write(&path, [record("1"), record("2"), record("\"1\"")].join("\n")).unwrap();
        assert!(said().contains("data.json, lines 1 and 5: the id 1 is there twice"), "{}", said());
    }

    /// Lines are counted once: a file of many records takes a moment, not minutes.
    #[test]
    fn many_records_are_read_in_a_moment() {
        let text: String = (0..100_000).map(|id| record(&id.to_string()) + ",\n").collect();
        let clock = std::time::Instant::now();
        let records = parse::<InitialRecord>(text.as_bytes(), Path::new("")).unwrap();
        assert_eq!(records.last().unwrap().0, 2 * 100_000 - 1);
        assert!(clock.elapsed().as_secs() < 10, "{:?}", clock.elapsed());
    }
}
