//! The metrics of a step: one JSON line per step, with TRL's names for each side.
//!
//! `und/` is the side of captions, `gen/` that of images. Each has `rewards/{chosen,rejected,margins,accuracies}` and
//! `logps/{chosen,rejected}` as in TRL's `DPOTrainer`, and `delta/{chosen,rejected}` = log π − log π_ref, which show
//! whether a comparison is won because the winner becomes more likely or only because the loser becomes less likely
//! (see [`crate::watch`]). Where the loss has a `kl`, `gen/kl/{conditional,unconditional}` is how far images have moved from the
//! reference's, in nats per image. TensorBoard finds the same numbers in an event file beside it ([`crate::events`]).

use std::collections::BTreeMap;
use std::path::Path;

use hermesflow_records::AppendLog;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::events::{EVENTS_FILE, EventFile, StepNumbers};
use crate::loss::{PairLogProbs, SideLoss};
use crate::{Error, Result};

/// Named numbers of one step or micro batch, ordered by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Metrics without numbers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets one number, rounded to the precision of f32 so that it is read back exactly.
    pub fn insert(&mut self, name: impl Into<String>, value: f64) {
        self.0.insert(name.into(), nine_digits(value));
    }

    /// The number of this name; `None` if there is none.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// All names and numbers, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// The mean of each number over the micro batches that report it.
    pub fn mean(parts: &[Self]) -> Self {
        let mut sums: BTreeMap<String, (f64, usize)> = BTreeMap::new();
        for (name, value) in parts.iter().flat_map(Self::iter) {
            let entry = sums.entry(name.to_owned()).or_default();
            entry.0 += value;
            entry.1 += 1;
        }
        let mut means = Self::new();
        sums.into_iter().for_each(|(name, (sum, count))| means.insert(name, sum / count as f64));
        means
    }

    /// Adds the metrics of one side of a batch under `prefix` (`und` or `gen`).
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn insert_side(&mut self, prefix: &str, log_probs: &PairLogProbs, side: &SideLoss) -> Result<()> {
        let chosen = side.rewards.win.to_vec1::<f32>()?;
        let rejected = side.rewards.lose.to_vec1::<f32>()?;
        let wins = chosen.iter().zip(&rejected).filter(|(win, lose)| win > lose).count();
        let (chosen, rejected) = (mean(&chosen), mean(&rejected));
        self.insert(format!("{prefix}/rewards/chosen"), chosen);
        self.insert(format!("{prefix}/rewards/rejected"), rejected);
        self.insert(format!("{prefix}/rewards/margins"), chosen - rejected);
        let pairs = side.loss.elem_count().max(1);
        self.insert(format!("{prefix}/rewards/accuracies"), wins as f64 / pairs as f64);
        for (name, tensor) in [
            ("logps/chosen", &log_probs.policy.win),
            ("logps/rejected", &log_probs.policy.lose),
            ("delta/chosen", &side.delta.win),
            ("delta/rejected", &side.delta.lose),
            ("loss", &side.loss),
        ] {
            self.insert(format!("{prefix}/{name}"), mean(&tensor.to_vec1::<f32>()?));
        }
        Ok(())
    }
}

/// The nearest f32 in its shortest decimal form, which JSON readers read without error.
fn nine_digits(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len().max(1) as f64
}

/// One line of the metrics file.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    /// The number of the step, from 1.
    pub step: usize,
    /// The number of epochs seen, this step included.
    pub epoch: f64,
    /// The mean loss over the step's micro batches.
    pub loss: f64,
    /// The Euclidean norm of all gradients before clipping.
    pub grad_norm: f64,
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// The objective's metrics.
    pub metrics: Metrics,
    /// Warnings about this step.
    pub warnings: Vec<String>,
}

impl StepRecord {
    /// The step and its numbers, in the order of the line.
    fn numbers(&self) -> StepNumbers<'_> {
        let own = [
            ("epoch", self.epoch),
            ("loss", self.loss),
            ("grad_norm", self.grad_norm),
            ("learning_rate", self.learning_rate),
        ];
        (self.step, own.into_iter().chain(self.metrics.iter()).collect())
    }

    fn to_line(&self) -> String {
        let mut line = Map::new();
        line.insert("step".into(), self.step.into());
        for (name, value) in self.numbers().1 {
            line.insert(name.into(), value.into());
        }
        if !self.warnings.is_empty() {
            line.insert("warnings".into(), self.warnings.clone().into());
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        text
    }

    /// Reads a line that [`MetricsFile`] wrote.
    pub fn from_line(line: &str) -> serde_json::Result<Self> {
        #[derive(serde::Deserialize)]
        struct Raw {
            step: usize,
            epoch: f64,
            loss: f64,
            grad_norm: f64,
            learning_rate: f64,
            #[serde(default)]
            warnings: Vec<String>,
            #[serde(flatten)]
            metrics: BTreeMap<String, Option<f64>>,
        }
        let Raw { step, epoch, loss, grad_norm, learning_rate, warnings, metrics } = serde_json::from_str(line)?;
        // JSON has no infinity and no NaN; both are written as null.
        let metrics = metrics.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect();
        Ok(Self { step, epoch, loss, grad_norm, learning_rate, metrics: Metrics(metrics), warnings })
    }
}

impl Serialize for Metrics {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// The first `step` lines of a metrics file that another process writes.
///
/// # Errors
/// When the file cannot be read, holds fewer lines, or one of them is no line of metrics.
pub fn read(path: &Path, step: usize) -> Result<Vec<StepRecord>> {
    Ok(first_lines(&mut AppendLog::of_lines(path)?, step)?.0)
}

/// The first `step` lines, and the offset of their end.
fn first_lines(log: &mut AppendLog, step: usize) -> Result<(Vec<StepRecord>, u64)> {
    let (mut lines, mut records, mut end) = (0, Vec::with_capacity(step), 0);
    log.each(|offset, line| {
        lines += 1;
        if lines <= step {
            records.push(StepRecord::from_line(&String::from_utf8_lossy(line)));
            end = offset + line.len() as u64 + 1;
        }
    })?;
    let path = log.path();
    if lines < step {
        return Err(Error::MetricsTooShort { path: path.into(), lines, step });
    }
    let records = records.into_iter().collect::<serde_json::Result<Vec<_>>>();
    let records = records.map_err(|source| Error::Json { path: path.into(), what: "metrics line", source })?;
    Ok((records, end))
}

/// `metrics.jsonl` of a training folder and the event file beside it, opened where a run begins or continues.
#[derive(Debug)]
pub struct MetricsFile {
    log: AppendLog,
    events: EventFile,
}

impl MetricsFile {
    /// Opens the file with exactly its first `step` lines and returns those: what a killed run wrote
    /// after its last checkpoint is cut off, so that the finished file is that of an undisturbed run.
    ///
    /// # Errors
    /// When the file cannot be read or changed, holds fewer lines, or one of them is no line of metrics.
    pub fn open(path: &Path, step: usize) -> Result<(Self, Vec<StepRecord>)> {
        let mut log = AppendLog::of_lines(path)?;
        let (records, end) = first_lines(&mut log, step)?;
        log.cut(end)?;
        let events = EventFile::open(&path.with_file_name(EVENTS_FILE), records.iter().map(StepRecord::numbers))?;
        Ok((Self { log, events }, records))
    }

    /// Appends one line, and its event.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn append(&mut self, record: &StepRecord) -> Result<()> {
        self.log.append(record.to_line().as_bytes())?;
        self.events.append(&record.numbers())
    }

    /// Brings all lines to the disk; a checkpoint must never be ahead of them.
    ///
    /// # Errors
    /// Names the file when the disk does not take it.
    pub fn sync(&mut self) -> Result<()> {
        Ok(self.log.sync()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::loss::{Pair, pair_dpo};
    use candle_core::{Device, Tensor};

    fn record(step: usize) -> StepRecord {
        let mut metrics = Metrics::new();
        metrics.insert("gen/delta/chosen", -0.1 * step as f64);
        let warnings = if step == 2 { vec!["falling".to_owned()] } else { Vec::new() };
        StepRecord { step, epoch: 0.25, loss: 1.5, grad_norm: 3.0, learning_rate: 1e-5, metrics, warnings }
    }

    #[test]
    fn a_side_reports_trl_s_numbers() {
        let row = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let log_probs = PairLogProbs {
            policy: Pair { win: row(&[-42.0, -45.0]), lose: row(&[-45.0, -40.0]) },
            reference: Pair { win: row(&[-43.0, -43.0]), lose: row(&[-44.0, -44.0]) },
        };
        let side = pair_dpo(&log_probs, 0.2, 0.0).unwrap();
        let mut metrics = Metrics::new();
        metrics.insert_side("und", &log_probs, &side).unwrap();
        let near = |name: &str, expected: f64| {
            let value = metrics.get(name).unwrap();
            assert!((value - expected).abs() < 1e-6, "{name}: {value} against {expected}");
        };
        near("und/delta/chosen", -0.5);
        near("und/delta/rejected", 1.5);
        near("und/rewards/chosen", -0.1);
        near("und/rewards/rejected", 0.3);
        near("und/rewards/margins", -0.4);
        near("und/rewards/accuracies", 0.5);
        near("und/logps/chosen", -43.5);
        near("und/logps/rejected", -42.5);
        // −log σ(.4) = .513015, −log σ(−1.2) = 1.463282
        near("und/loss", (0.513_015_25 + 1.463_282_5) / 2.0);
    }

    #[test]
    fn means_are_taken_over_the_parts_that_report() {
        let part = |values: &[(&str, f64)]| Metrics(values.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect());
        let mean = Metrics::mean(&[part(&[("a", 1.0), ("b", 4.0)]), part(&[("a", 2.0)])]);
        assert_eq!(mean, part(&[("a", 1.5), ("b", 4.0)]));
    }

    #[test]
    fn what_is_read_back_is_what_was_observed() {
        let mut metrics = Metrics::new();
        for (index, value) in [1.0 / 3.0, -1e7 / 7.0, 0.2, 1e-9 / 3.0, -123_456_789.123].into_iter().enumerate() {
            metrics.insert(index.to_string(), value);
        }
        assert_eq!(metrics.get("0"), Some(0.333_333_34));
        let mut written = StepRecord { metrics, ..record(1) };
        assert_eq!(StepRecord::from_line(&written.to_line()).unwrap(), written);
        written.metrics.insert("unlikely", f64::NEG_INFINITY);
        let read = StepRecord::from_line(&written.to_line()).unwrap();
        assert!(read.metrics.get("unlikely").unwrap().is_nan());
    }

    #[test]
    fn the_file_is_cut_to_the_checkpoint_and_grows_back_identically() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let (mut file, before) = MetricsFile::open(&path, 0).unwrap();
        assert!(before.is_empty());
        (1..=4).for_each(|step| file.append(&record(step)).unwrap());
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"step\":5,\"epo"].concat()).unwrap();

        let (mut file, before) = MetricsFile::open(&path, 2).unwrap();
        assert_eq!(before, [record(1), record(2)]);
        (3..=4).for_each(|step| file.append(&record(step)).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), whole);

        let error = MetricsFile::open(&path, 9).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl holds 4 whole lines but the checkpoint is at step 9"), "{error}");
    }
}
