//! Scores that are remembered on disk, by judge, model and texts.
//!
//! A cache is a file of JSON Lines, `{"key": …, "value": …}`, which only grows. Its name tells the judge and what its
//! model was; the key is a digest of the texts. A line that a kill cut off is not read.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The scores of one judge.
#[derive(Debug)]
pub struct ScoreCache {
    path: PathBuf,
    known: HashMap<String, Value>,
    file: Option<File>,
}

impl ScoreCache {
    /// The scores that a file has; it need not be there yet.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(path: PathBuf) -> Result<Self> {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let entry = |line: &[u8]| {
            let mut line: Value = serde_json::from_slice(line).ok()?;
            Some((line.get("key")?.as_str()?.to_owned(), line.get_mut("value")?.take()))
        };
        let known = bytes.split(|byte| *byte == b'\n').filter_map(entry).collect();
        Ok(Self { path, known, file: None })
    }

    /// What is known of a key.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        T::deserialize(self.known.get(key)?).ok()
    }

    /// Remembers values, on disk first.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put<T: Serialize>(&mut self, entries: &[(String, T)]) -> Result<()> {
        let mut lines = String::new();
        let mut values = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let value = serde_json::to_value(value)?;
            lines.push_str(&json!({ "key": key, "value": value }).to_string());
            lines.push('\n');
            values.push((key.clone(), value));
        }
        let path = self.path.clone();
        self.append(lines.as_bytes()).with_context(|| format!("{}: cannot keep scores", path.display()))?;
        self.known.extend(values);
        Ok(())
    }

    fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if self.file.is_none() {
            if let Some(folder) = self.path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            // Behind a line that was cut off, a new one begins.
            if file.metadata()?.len() > 0 {
                file.write_all(b"\n")?;
            }
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.write_all(lines),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_put_is_there_again_and_a_torn_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores/bert.jsonl");
        let mut cache = ScoreCache::open(path.clone()).unwrap();
        assert_eq!(cache.get::<f64>("a"), None);
        cache.put(&[("a".to_string(), 0.1 + 0.2), ("b".to_string(), -1.0)]).unwrap();
        assert_eq!(cache.get("a"), Some(0.1 + 0.2));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let mut cache = ScoreCache::open(path.clone()).unwrap();
        assert_eq!((cache.get::<f64>("a"), cache.get::<f64>("b")), (Some(0.1 + 0.2), None));
        cache.put(&[("b".to_string(), -1.0)]).unwrap();
        let cache = ScoreCache::open(path).unwrap();
        assert_eq!((cache.get::<f64>("a"), cache.get::<f64>("b")), (Some(0.1 + 0.2), Some(-1.0)));
        assert_eq!(cache.get::<Vec<String>>("a"), None, "another kind of value");
    }
}
