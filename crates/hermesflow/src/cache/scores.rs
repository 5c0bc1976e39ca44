//! The scores that judges gave, kept on disk by judge, model and texts.
//!
//! A cache is a file of JSON Lines, `{"key": …, "value": …}`, which only grows. Its name tells the judge and what its
//! model was; the key is a digest of the texts. A line that a kill cut off is not read. Memory holds where the lines are.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::log::{CacheLog, Place};
use crate::files;
use crate::run::sharing::Sharing;

/// The scores of one judge.
#[derive(Debug)]
pub struct ScoreCache {
    log: CacheLog,
    /// Where the line of a key is, by the key's hash; the line has all of it.
    places: HashMap<u64, (Place, u32)>,
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
    pub fn open(path: &Path, sharing: &Sharing) -> Result<Self> {
        let mut log = CacheLog::open(path, None, sharing)?;
        let mut places = HashMap::new();
        log.each(|place, line| {
            if let (Ok(Line::<IgnoredAny> { key, .. }), Ok(length)) =
                (serde_json::from_slice(line), line.len().try_into())
            {
                places.insert(hash(&key), (place, length));
            }
        })?;
        Ok(Self { log, places })
    }

    /// The value of a key, if it is cached as a `T`.
    pub fn get<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let (place, length) = *self.places.get(&hash(key))?;
        let line = self.log.read(place, length as usize).ok()?;
        let line: Line<'_, T> = serde_json::from_slice(&line).ok()?;
        (line.key == key).then_some(line.value)
    }

    /// Keeps values on disk.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put<T: Serialize>(&mut self, entries: &[(String, T)]) -> Result<()> {
        let mut lines = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let value = serde_json::to_value(value)?;
            lines.push(json!({ "key": key, "value": value }).to_string().into_bytes());
        }
        let places = self.log.append(&lines).context("cannot keep scores")?;
        for (((key, _), line), place) in entries.iter().zip(&lines).zip(places) {
            self.places.insert(hash(key), (place, u32::try_from(line.len())?));
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let mut seen = HashSet::new();
        self.log.settle(|line| {
            let key = serde_json::from_slice(line).map(|Line::<IgnoredAny> { key, .. }| key.into_owned());
            key.is_ok_and(|key| seen.insert(key))
        })
    }
}

/// Puts in order what several processes kept, of all judges of a folder, at the end of a stage.
///
/// # Errors
/// When a file cannot be read or written, or another process is gone.
pub fn settle(folder: &Path, sharing: &Sharing) -> Result<()> {
    sharing.group.meet()?;
    sharing.group.once(|| {
        let Some(entries) = files::if_there(folder, |folder| std::fs::read_dir(folder))? else { return Ok(()) };
        let mut caches = BTreeSet::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            caches.extend(name.split_once(".rank-").map(|(cache, _)| folder.join(format!("{cache}.jsonl"))));
        }
        caches.iter().try_for_each(|cache| ScoreCache::open(cache, &sharing.alone())?.settle())
    })?;
    Ok(())
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
        let mut cache = ScoreCache::open(&path, &Sharing::default()).unwrap();
        assert_eq!(cache.get::<f64>("a"), None);
        cache.put(&[("a".to_string(), 0.1 + 0.2), ("b".to_string(), -1.0)]).unwrap();
        assert_eq!(cache.get("a"), Some(0.1 + 0.2));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let mut cache = ScoreCache::open(&path, &Sharing::default()).unwrap();
        assert_eq!((cache.get::<f64>("a"), cache.get::<f64>("b")), (Some(0.1 + 0.2), None));
        cache.put(&[("b".to_string(), -1.0)]).unwrap();
        let mut cache = ScoreCache::open(&path, &Sharing::default()).unwrap();
        assert_eq!((cache.get::<f64>("a"), cache.get::<f64>("b")), (Some(0.1 + 0.2), Some(-1.0)));
        assert_eq!(cache.get::<Vec<String>>("a"), None, "another kind of value");
    }
}
