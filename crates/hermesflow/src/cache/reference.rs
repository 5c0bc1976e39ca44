//! What the reference says of the captions of a run's pairs, remembered on disk: it does not depend on the step, so a
//! run that is continued need not ask again.
//!
//! A line of JSON per chunk of pairs, `{"key": …, "log_probs": [[win, lose], …]}`. The key is a digest of the
//! reference (weights, tokenizer, configurations, type, products) and of the pairs: of anything else nothing is known.
//! A line that cannot be read is not there.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hermesflow_models::showo::Showo;
use hermesflow_train::{CaptionMemory, ObjectiveError, Pair, TrainingPair};
use serde::{Deserialize, Serialize};

use crate::digest::Pieces;
use crate::files;

/// A chunk of pairs. Log-probabilities are kept in f64, which JSON writes and reads exactly.
#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    log_probs: Vec<[f64; 2]>,
}

/// The memory of one training folder.
pub struct ReferenceFile {
    path: PathBuf,
    /// Of all references and pairs that the file knows.
    known: HashMap<String, Vec<[f64; 2]>>,
    /// What tells this reference from others.
    reference: String,
    /// The chunks of this run, in order.
    asked: Vec<String>,
    /// Whether the file ends in the middle of a line.
    torn: bool,
}

impl ReferenceFile {
    /// What a file remembers of a reference; it need not be there yet.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn open(path: PathBuf, reference: &Showo) -> Result<Self> {
        let mut digest = Pieces::default();
        digest.add(env!("CARGO_PKG_VERSION").as_bytes());
        reference.each_part(|part| digest.add(part))?;
        Self::of(path, digest.text())
    }

    fn of(path: PathBuf, reference: String) -> Result<Self> {
        let bytes = read(&path)?;
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        let known = lines.map(|line| (line.key, line.log_probs)).collect();
        let torn = bytes.last().is_some_and(|byte| *byte != b'\n');
        Ok(Self { path, known, reference, asked: Vec::new(), torn })
    }

    /// Leaves in the file what this run asked, and nothing else: the same bytes, however often it was continued.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn finish(&self) -> Result<()> {
        let mut whole = Vec::new();
        for key in &self.asked {
            if let Some(log_probs) = self.known.get(key) {
                whole.extend(line(key, log_probs)?);
            }
        }
        if whole == read(&self.path)? {
            return Ok(());
        }
        files::write_atomically(&self.path, &whole)
    }

    fn key(&self, pairs: &[&TrainingPair]) -> String {
        let mut digest = Pieces::default();
        digest.add(self.reference.as_bytes());
        for pair in pairs {
            for text in [&pair.id, &pair.question, &pair.caption_win, &pair.caption_lose] {
                digest.add(text.as_bytes());
            }
            let codes: Vec<u8> = pair.image.iter().flat_map(|code| code.to_le_bytes()).collect();
            digest.add(&codes);
        }
        digest.text()
    }

    fn append(&mut self, line: &[u8]) -> Result<()> {
        let work = || {
            if let Some(folder) = self.path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            if self.torn {
                file.write_all(b"\n")?;
            }
            file.write_all(line)
        };
        work().with_context(|| format!("{}: cannot be written", self.path.display()))?;
        self.torn = false;
        Ok(())
    }
}

impl CaptionMemory for ReferenceFile {
    fn recall(&mut self, pairs: &[&TrainingPair]) -> Option<Vec<Pair<f32>>> {
        let key = self.key(pairs);
        let known = self.known.get(&key)?;
        if known.len() != pairs.len() || known.iter().flatten().any(|number| !number.is_finite()) {
            return None;
        }
        self.asked.push(key);
        Some(known.iter().map(|&[win, lose]| Pair { win: win as f32, lose: lose as f32 }).collect())
    }

    fn remember(&mut self, pairs: &[&TrainingPair], log_probs: &[Pair<f32>]) -> Result<(), ObjectiveError> {
        let key = self.key(pairs);
        let log_probs: Vec<_> = log_probs.iter().map(|pair| [f64::from(pair.win), f64::from(pair.lose)]).collect();
        self.append(&line(&key, &log_probs)?)?;
        self.known.insert(key.clone(), log_probs);
        self.asked.push(key);
        Ok(())
    }
}

fn line(key: &str, log_probs: &[[f64; 2]]) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Line { key: key.into(), log_probs: log_probs.into() })?;
    line.push(b'\n');
    Ok(line)
}

/// The bytes of a file; none if it is not there.
fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(files::if_there(path, |path| std::fs::read(path))?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pair(id: &str, win: &str, image: u32) -> TrainingPair {
        TrainingPair {
            id: id.into(),
            image: vec![image; 4],
            question: "what?".into(),
            caption: String::new(),
            caption_win: win.into(),
            caption_lose: "a dog".into(),
            image_win: vec![],
            image_lose: vec![],
        }
    }

    fn said(win: f32) -> Vec<Pair<f32>> {
        vec![Pair { win, lose: -0.1 - 0.2 }]
    }

    #[test]
    fn only_the_very_same_pairs_of_the_very_same_reference_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train/reference.jsonl");
        let open = |reference: &str| ReferenceFile::of(path.clone(), reference.into()).unwrap();
        let (first, other) = (pair("1", "a cat", 5), pair("2", "a cat", 5));
        let mut file = open("one");
        assert_eq!(file.recall(&[&first]), None);
        file.remember(&[&first], &said(-12.345_678)).unwrap();
        file.finish().unwrap();
        let mut again = open("one");
        assert_eq!(again.recall(&[&first]), Some(said(-12.345_678)), "bit for bit");
        assert_eq!(again.recall(&[&other]), None);
        assert_eq!(again.recall(&[&first, &other]), None, "in other company a number may round differently");
        assert_eq!(again.recall(&[&pair("1", "a cat!", 5)]), None);
        assert_eq!(again.recall(&[&pair("1", "a cat", 6)]), None);
        assert_eq!(open("two").recall(&[&first]), None);
    }

    #[test]
    fn torn_and_foreign_lines_cost_nothing_and_the_bytes_end_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference.jsonl");
        let pairs = [pair("1", "a cat", 5), pair("2", "a cow", 6)];
        let run = || {
            let mut file = ReferenceFile::of(path.clone(), "one".into()).unwrap();
            let mut asked = 0;
            for (at, pair) in pairs.iter().enumerate() {
                if file.recall(&[pair]).is_none() {
                    file.remember(&[pair], &said(at as f32)).unwrap();
                    asked += 1;
                }
            }
            file.finish().unwrap();
            (asked, std::fs::read(&path).unwrap())
        };
        let (asked, whole) = run();
        assert_eq!((asked, run()), (2, (0, whole.clone())), "nothing is asked twice");
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let first = whole.iter().position(|byte| *byte == b'\n').unwrap();
            let (asked, bytes) = run();
            // A line that lacks only its end is whole.
            let expected = if cut < first { 2 } else { usize::from(cut + 1 < whole.len()) };
            assert_eq!(asked, expected, "{cut}");
            assert_eq!(bytes, whole, "{cut}");
        }
        std::fs::write(&path, [&b"\xff\x00 garbage\n{\"key\": 3}\n"[..], &whole, b"[1"].concat()).unwrap();
        assert_eq!(run(), (0, whole));
    }
}
