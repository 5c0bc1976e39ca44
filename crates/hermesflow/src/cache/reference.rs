//! The reference model's log-probabilities of a run's captions, kept on disk: they do not depend on the step, so a run
//! that is continued does not compute them again.
//!
//! A line of JSON per chunk of pairs, `{"key": …, "log_probs": [[win, lose], …]}`. The key is a digest of the
//! reference (weights, tokenizer, configurations, type, products) and of the pairs: of anything else nothing is known.
//! A line that cannot be read is not there.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use hermesflow_group::Group;
use hermesflow_models::Model;
use hermesflow_records::AppendLog;
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
    log: AppendLog,
    /// Log-probabilities by key, of all references and pairs in the file.
    known: HashMap<String, Vec<[f64; 2]>>,
    /// What tells this reference from others.
    reference: String,
    /// The chunks of this run, in order.
    asked: Vec<String>,
    /// Whether new ones are kept here, or by another process.
    writes: bool,
}

impl ReferenceFile {
    /// What a file remembers of a reference; it need not be there yet.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn open(path: &Path, reference: &Model, group: &Group) -> Result<Self> {
        let mut digest = Pieces::default();
        digest.add(env!("CARGO_PKG_VERSION").as_bytes());
        reference.see_parts(&mut |part| digest.add(part))?;
        Ok(Self { writes: group.is_writer(), ..Self::of(path, digest.text())? })
    }

    fn of(path: &Path, reference: String) -> Result<Self> {
        let (mut log, mut known) = (AppendLog::of_lines(path)?, HashMap::new());
        log.each(|_, line| {
            if let Ok(line) = serde_json::from_slice::<Line>(line) {
                known.insert(line.key, line.log_probs);
            }
        })?;
        Ok(Self { log, known, reference, asked: Vec::new(), writes: true })
    }

    /// Leaves in the file what this run asked for, and nothing else: the same bytes, however often it was continued.
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
        if self.writes { files::write_if_other(self.log.path(), &whole) } else { Ok(()) }
    }

    fn usable(&self, key: &str, pairs: &[&TrainingPair]) -> Option<&[[f64; 2]]> {
        let known = self.known.get(key)?;
        let is_usable = known.len() == pairs.len() && known.iter().flatten().all(|number| number.is_finite());
        is_usable.then_some(known)
    }

    fn key(&self, pairs: &[&TrainingPair]) -> String {
        let mut digest = Pieces::default();
        digest.add(self.reference.as_bytes());
        for pair in pairs {
            for text in [&pair.id, &pair.question, &pair.caption_win, &pair.caption_lose] {
                digest.add(text.as_bytes());
            }
            digest.add(&pair.image.identity());
        }
        digest.text()
    }
}

impl CaptionMemory for ReferenceFile {
    fn recall(&mut self, pairs: &[&TrainingPair]) -> Option<Vec<Pair<f32>>> {
        let key = self.key(pairs);
        let known = self.usable(&key, pairs)?;
        let known = known.iter().map(|&[win, lose]| Pair { win: win as f32, lose: lose as f32 }).collect();
        self.asked.push(key);
        Some(known)
    }

    fn knows(&self, pairs: &[&TrainingPair]) -> bool {
        self.usable(&self.key(pairs), pairs).is_some()
    }

    fn remember(&mut self, pairs: &[&TrainingPair], log_probs: &[Pair<f32>]) -> Result<(), ObjectiveError> {
        let key = self.key(pairs);
        let log_probs: Vec<_> = log_probs.iter().map(|pair| [f64::from(pair.win), f64::from(pair.lose)]).collect();
        if self.writes {
            self.log.append(&line(&key, &log_probs)?)?;
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pair(id: &str, win: &str, image: u32) -> TrainingPair {
        TrainingPair {
            id: id.into(),
            image: vec![image; 4].into(),
            question: "what?".into(),
            caption: String::new(),
            caption_win: win.into(),
            caption_lose: "a dog".into(),
            image_win: vec![],
            image_lose: vec![],
            margins: None,
            steps: None,
        }
    }

    fn said(win: f32) -> Vec<Pair<f32>> {
        vec![Pair { win, lose: -0.1 - 0.2 }]
    }

    #[test]
    fn only_the_very_same_pairs_of_the_very_same_reference_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train/reference.jsonl");
        let open = |reference: &str| ReferenceFile::of(&path, reference.into()).unwrap();
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
            let mut file = ReferenceFile::of(&path, "one".into()).unwrap();
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
            assert_eq!(asked, if cut <= first { 2 } else { 1 }, "{cut}");
            assert_eq!(bytes, whole, "{cut}");
        }
        std::fs::write(&path, [&b"\xff\x00 garbage\n{\"key\": 3}\n"[..], &whole, b"[1"].concat()).unwrap();
        assert_eq!(run(), (0, whole));
    }
}
