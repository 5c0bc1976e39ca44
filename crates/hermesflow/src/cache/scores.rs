//! Scores that are remembered on disk, by judge, model and texts.
//!
//! A cache is a file of JSON Lines, `{"key": …, "value": …}`, which only grows. Its name tells the judge and what its
//! model was; the key is a digest of the texts. A line that a kill cut off is not read. Memory holds where the lines are.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The scores of one judge.
#[derive(Debug)]
pub struct ScoreCache {
    path: PathBuf,
    /// Where the line of a key is, by the key's hash; the line has all of it.
    places: HashMap<u64, (u64, u32)>,
    reading: Option<File>,
    writing: Option<File>,
}

#[derive(Deserialize)]
struct Line<'a, T> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    value: T,
}

impl ScoreCache {
    /// The scores that a file has; it need not be there yet.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(path: PathBuf) -> Result<Self> {
        let mut cache = Self { path, places: HashMap::new(), reading: None, writing: None };
        match cache.look_through() {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| cache.path.display().to_string())
            }
            _ => Ok(cache),
        }
    }

    fn look_through(&mut self) -> std::io::Result<()> {
        let mut lines = BufReader::new(File::open(&self.path)?);
        let (mut offset, mut line) = (0, Vec::new());
        loop {
            line.clear();
            let length = lines.read_until(b'\n', &mut line)?;
            if length == 0 {
                return Ok(());
            }
            if let (Ok(Line::<IgnoredAny> { key, .. }), Ok(length)) = (serde_json::from_slice(&line), length.try_into())
            {
                self.places.insert(hash(&key), (offset, length));
            }
            offset += length as u64;
        }
    }

    /// What is known of a key.
    pub fn get<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let (offset, length) = *self.places.get(&hash(key))?;
        if self.reading.is_none() {
            self.reading = File::open(&self.path).ok();
        }
        let file = self.reading.as_mut()?;
        file.seek(SeekFrom::Start(offset)).ok()?;
        let mut line = vec![0; length as usize];
        file.read_exact(&mut line).ok()?;
        let line: Line<'_, T> = serde_json::from_slice(&line).ok()?;
        (line.key == key).then_some(line.value)
    }

    /// Remembers values, on disk.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put<T: Serialize>(&mut self, entries: &[(String, T)]) -> Result<()> {
        let (mut lines, mut lengths) = (String::new(), Vec::with_capacity(entries.len()));
        for (key, value) in entries {
            let (value, before) = (serde_json::to_value(value)?, lines.len());
            lines.push_str(&json!({ "key": key, "value": value }).to_string());
            lines.push('\n');
            lengths.push(u32::try_from(lines.len() - before)?);
        }
        let appended = self.append(lines.as_bytes());
        let mut offset = appended.with_context(|| format!("{}: cannot keep scores", self.path.display()))?;
        for ((key, _), length) in entries.iter().zip(lengths) {
            self.places.insert(hash(key), (offset, length));
            offset += u64::from(length);
        }
        Ok(())
    }

    /// Appends lines; the place of the first one.
    fn append(&mut self, lines: &[u8]) -> std::io::Result<u64> {
        let file = match &mut self.writing {
            Some(file) => file,
            none => {
                if let Some(folder) = self.path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
                // Behind a line that was cut off, a new one begins.
                if file.metadata()?.len() > 0 {
                    file.write_all(b"\n")?;
                }
                none.insert(file)
            }
        };
        let start = file.metadata()?.len();
        file.write_all(lines)?;
        Ok(start)
    }
}

fn hash(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
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
        let mut cache = ScoreCache::open(path).unwrap();
        assert_eq!((cache.get::<f64>("a"), cache.get::<f64>("b")), (Some(0.1 + 0.2), Some(-1.0)));
        assert_eq!(cache.get::<Vec<String>>("a"), None, "another kind of value");
    }
}
