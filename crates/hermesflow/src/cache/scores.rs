//! The scores that judges gave, kept on disk by judge, model and texts.
//!
//! A cache is a file of JSON Lines, `{"key": …, "value": …}`, which only grows. Its name tells the judge and what its
//! model was; the key is a digest of the texts. A line that a kill cut off is not read. Memory holds where the lines are.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::{Context, Result};
use hermesflow_records::AppendLog;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The scores of one judge.
#[derive(Debug)]
pub struct ScoreCache {
    log: AppendLog,
    /// Where the line of a key is, by the key's hash; the line has all of it.
    places: HashMap<u64, (u64, u32)>,
}

#[derive(Deserialize)]
struct Line<'a, T> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    value: T,
}

impl ScoreCache {
    /// Opens the file of the scores; it need not exist yet.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let mut log = AppendLog::of_lines(path)?;
        let mut places = HashMap::new();
        log.each(|offset, line| {
            if let (Ok(Line::<IgnoredAny> { key, .. }), Ok(length)) =
                (serde_json::from_slice(line), line.len().try_into())
            {
                places.insert(hash(&key), (offset, length));
            }
        })?;
        Ok(Self { log, places })
    }

    /// The value of a key, if it is cached as a `T`.
    pub fn get<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let (offset, length) = *self.places.get(&hash(key))?;
        let line = self.log.read(offset, length as usize).ok()?;
        let line: Line<'_, T> = serde_json::from_slice(&line).ok()?;
        (line.key == key).then_some(line.value)
    }

    /// Keeps values on disk.
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
        let mut offset = self.log.append(lines.as_bytes()).context("cannot keep scores")?;
        for ((key, _), length) in entries.iter().zip(lengths) {
            self.places.insert(hash(key), (offset, length));
            offset += u64::from(length);
        }
        Ok(())
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
        let mut cache = ScoreCache::open(&path).unwrap();
        assert_eq!(cache.get::<f64>("a"), None);
        cache.put(&[("a".to_string(), 0.1 + 0.2), ("b".to_string(), -1.0)]).unwrap();
        assert_eq!(cache.get("a"), Some(0.1 + 0.2));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let mut cache = ScoreCache::open(&path).unwrap();
        assert_eq!((cache.get::<f64>("a"), cache.get::<f64>("b")), (Some(0.1 + 0.2), None));
        cache.put(&[("b".to_string(), -1.0)]).unwrap();
        let mut cache = ScoreCache::open(&path).unwrap();
        assert_eq!((cache.get::<f64>("a"), cache.get::<f64>("b")), (Some(0.1 + 0.2), Some(-1.0)));
        assert_eq!(cache.get::<Vec<String>>("a"), None, "another kind of value");
    }
}
