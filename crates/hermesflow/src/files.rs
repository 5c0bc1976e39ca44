//! Reading and writing the files of a run.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::records_stub::*;
use anyhow::{Context, Result, ensure};
use serde::{Serialize, de::DeserializeOwned};

pub trait Identified {
    fn id(&self) -> &RecordId;
}
impl Identified for CaptionRecord {
    fn id(&self) -> &RecordId {
        &self.id
    }
}
impl Identified for AnswerRecord {
    fn id(&self) -> &RecordId {
        &self.id
    }
}

fn read<R: DeserializeOwned>(path: &Path) -> Result<Vec<R>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}
pub fn initial_data(path: &Path) -> Result<Vec<InitialRecord>> {
    let r = read(path)?;
    ensure!(!Vec::<InitialRecord>::is_empty(&r), "empty");
    Ok(r)
}
pub fn questions(path: &Path) -> Result<Vec<QuestionRecord>> {
    read(path)
}
pub fn pairs(path: &Path) -> Result<Vec<PairRecord>> {
    read(path)
}
pub fn write_records<R: Serialize>(path: &Path, records: &[R]) -> Result<()> {
    write_atomically(path, (serde_json::to_string_pretty(records)? + "\n").as_bytes())
}

/// Writes a file under a temporary name and renames it, making its folder.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        std::fs::write(&temporary, bytes)?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("{}: cannot be written", path.display()))
}

pub struct Store<R> {
    path: PathBuf,
    done: HashMap<RecordId, R>,
}
impl<R: Serialize + DeserializeOwned + Clone + Identified> Store<R> {
    pub fn open(path: &Path) -> Result<Self> {
        let mut done = HashMap::new();
        if path.is_file() {
            for r in read::<R>(path)? {
                done.insert(r.id().clone(), r);
            }
        }
        if let Ok(text) = std::fs::read_to_string(path.with_extension("jsonl")) {
            for line in text.lines() {
                if let Ok(r) = serde_json::from_str::<R>(line) {
                    done.insert(r.id().clone(), r);
                }
            }
        }
        Ok(Self { path: path.into(), done })
    }
    pub fn has(&self, id: &RecordId) -> bool {
        self.done.contains_key(id)
    }
    pub fn append(&mut self, records: Vec<R>) -> Result<()> {
        let p = self.path.with_extension("jsonl");
        if let Some(f) = p.parent() {
            std::fs::create_dir_all(f)?;
        }
        let mut f = std::fs::OpenOptions::new().append(true).create(true).open(p)?;
        for r in records {
            writeln!(f, "{}", serde_json::to_string(&r)?)?;
            self.done.insert(r.id().clone(), r);
        }
        Ok(())
    }
    pub fn finish<'a>(self, ids: impl Iterator<Item = &'a RecordId>) -> Result<Vec<R>> {
        let all: Vec<R> = ids.filter_map(|id| self.done.get(id).cloned()).collect();
        write_records(&self.path, &all)?;
        let _ = std::fs::remove_file(self.path.with_extension("jsonl"));
        Ok(all)
    }
}
pub fn captions(path: &Path) -> Result<Vec<CaptionRecord>> {
    read(path)
}
pub fn answers(path: &Path) -> Result<Vec<AnswerRecord>> {
    read(path)
}
