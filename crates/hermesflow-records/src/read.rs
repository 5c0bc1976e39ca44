//! Reading records: a JSON array or JSON Lines; and, as the Python scripts write them, a bare run of `{…},`
//! objects or an array with a trailing comma.

use std::collections::HashSet;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Identified, Result};

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
    let mut seen = HashSet::new();
    for (line, record) in &records {
        if !seen.insert(record.id()) {
            return Err(Error::Duplicate { path: path.into(), line: *line, id: record.id().to_string() });
        }
    }
    if records.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(records.into_iter().map(|(_, record)| record).collect())
}

fn read_lines<R: DeserializeOwned>(path: &Path, remedy: &'static str) -> Result<Vec<(usize, R)>> {
    match std::fs::read(path) {
        Ok(bytes) => parse(&String::from_utf8_lossy(&bytes), path),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::Missing { path: path.into(), remedy })
        }
        Err(source) => Err(Error::io(path)(source)),
    }
}

/// Records with the line on which each begins; `path` is named in errors.
///
/// # Errors
/// Names the line and the record of what cannot be read.
pub fn parse<R: DeserializeOwned>(text: &str, path: &Path) -> Result<Vec<(usize, R)>> {
    let text = text.trim_start_matches('\u{feff}');
    let broken = |at: usize, id: Option<String>, message: String| Error::Broken {
        path: path.into(),
        line: line_of(text, at),
        id,
        message,
    };
    let mut at = blank(text, 0);
    let array = text[at..].starts_with('[');
    at += usize::from(array);
    let mut records = Vec::new();
    loop {
        at = blank(text, at);
        if at == text.len() {
            if array {
                return Err(broken(at, None, "the array is not closed: the file is cut off".into()));
            }
            return Ok(records);
        }
        if array && text[at..].starts_with(']') {
            let end = blank(text, at + 1);
            if end < text.len() {
                return Err(broken(end, None, "something follows the closed array".into()));
            }
            return Ok(records);
        }
        let mut stream = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        let value = match stream.next() {
            Some(Ok(value)) => value,
            Some(Err(error)) => {
                if error.is_eof() {
                    return Err(broken(at, None, "not JSON: the record is cut off".into()));
                }
                let line = line_of(text, at) + error.line().saturating_sub(1);
                let message = format!("not JSON ({})", without_place(&error.to_string()));
                return Err(Error::Broken { path: path.into(), line, id: None, message });
            }
            None => return Ok(records),
        };
        let id = value.get("id").map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
        if !value.is_object() {
            return Err(broken(at, None, "not a record of the form {\"id\": …}".into()));
        }
        let record = serde_json::from_value(value).map_err(|error| broken(at, id, error.to_string()))?;
        records.push((line_of(text, at), record));
        at += stream.byte_offset();
        let comma = blank(text, at);
        at = if text[comma..].starts_with(',') { comma + 1 } else { at };
    }
}

/// The next place that is no white space.
fn blank(text: &str, at: usize) -> usize {
    text.len() - text[at..].trim_start().len()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
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
        let records = parse::<InitialRecord>(text, Path::new("data.json"))?;
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
    fn ids_are_written_back_as_they_were() {
        let records = parse::<InitialRecord>(&format!("{}{}", record("7"), record("\"7x\"")), Path::new("")).unwrap();
        let written: Vec<_> = records.iter().map(|(_, record)| serde_json::to_string(&record.id).unwrap()).collect();
        assert_eq!(written, ["7", "\"7x\""]);
    }

    #[test]
    fn what_is_broken_is_named() {
        let (a, b) = (record("1"), record("2"));
        for (text, parts) in [
            (format!("[{a},\n{b}"), vec!["line 4", "cut off"]),
            (format!("{a}\n{{\"id\": 2, \"img_path\""), vec!["data.json, line 3", "not JSON"]),
            (format!("{a}\n{{\"id\": 2}}"), vec!["line 3", "record 2", "img_path"]),
            (format!("[{a}] x"), vec!["line 2", "follows"]),
            ("[1, 2]".to_string(), vec!["line 1", "not a record"]),
            (record("\"../x\""), vec!["separator"]),
            (record("1.5"), vec!["id"]),
        ] {
            let message = ids(&text).unwrap_err().to_string();
            parts.iter().for_each(|part| assert!(message.contains(part), "{part}: {message}"));
        }
    }
}
