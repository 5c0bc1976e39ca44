//! The curves of a run's training, from the metrics of its steps.

use std::collections::BTreeMap;

use anyhow::Result;
use hermesflow_records::AppendLog;
use hermesflow_train::trainer::METRICS_FILE;
use serde_json::{Map, Value};

use super::charts::{Chart, Line};
use super::folder::RunFolder;

/// A chart of one run: its title, how to read it, and its lines by names and metrics.
type Plan = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// The charts of one run, in order.
const ONE_RUN: [Plan; 9] = [
    (
        "Loss",
        "What training minimises; lower is better. Its parts are those of captions and of images.",
        &[("loss", "loss"), ("captions", "und/loss"), ("images", "gen/loss")],
    ),
    (
        "Margins",
        "How much more the trained model prefers the winners than its reference does; above 0 is what training is after.",
        &[("captions", "und/rewards/margins"), ("images", "gen/rewards/margins")],
    ),
    (
        "Accuracies",
        "Share of pairs in a step whose winner gained more than its loser; 0.5 is chance.",
        &[("captions", "und/rewards/accuracies"), ("images", "gen/rewards/accuracies")],
    ),
    (
        "Rewards of captions",
        "Rewards of the winning and the losing captions. Both falling means that the model unlearns writing, too.",
        &[("winners", "und/rewards/chosen"), ("losers", "und/rewards/rejected")],
    ),
    (
        "Rewards of images",
        "Rewards of the winning and the losing images.",
        &[("winners", "gen/rewards/chosen"), ("losers", "gen/rewards/rejected")],
    ),
    (
        "Captions: log-probability against the reference",
        "log π − log π_ref of winners and losers. Winners below 0 have become less likely: an anchor (train.loss.anchor_und) holds them.",
        &[("winners", "und/delta/chosen"), ("losers", "und/delta/rejected")],
    ),
    (
        "Images: log-probability against the reference",
        "log π − log π_ref of winners and losers. Winners below 0 have become less likely: an anchor (train.loss.anchor_gen) holds them.",
        &[("winners", "gen/delta/chosen"), ("losers", "gen/delta/rejected")],
    ),
    ("Gradient norm", "Before clipping. Sudden peaks ask for a lower learning rate.", &[("norm", "grad_norm")]),
    ("Learning rate", "The schedule as it was followed.", &[("rate", "learning_rate")]),
];

/// The metrics in which several runs are compared: title, how to read it, metric.
const SEVERAL_RUNS: [(&str, &str, &str); 6] = [
    ("Loss", "Lower is better, between runs with the same loss.", "loss"),
    ("Margins of captions", "Above 0: winners are preferred more than by the reference.", "und/rewards/margins"),
    ("Margins of images", "Above 0: winners are preferred more than by the reference.", "gen/rewards/margins"),
    ("Accuracies of captions", "Share of pairs whose winner gained more; 0.5 is chance.", "und/rewards/accuracies"),
    ("Accuracies of images", "Share of pairs whose winner gained more; 0.5 is chance.", "gen/rewards/accuracies"),
    (
        "Winning images against the reference",
        "log π − log π_ref; below 0: they have become less likely.",
        "gen/delta/chosen",
    ),
];

/// The metrics of all steps of a run, iterations one after another.
#[derive(Debug, Default)]
pub struct Training {
    /// By name, the numbers of steps and their values.
    curves: BTreeMap<String, Vec<(f64, f64)>>,
    /// The iterations that have metrics, with the steps made in each.
    pub steps: Vec<(usize, usize)>,
    /// Warnings that were noted with steps: iteration, step and text.
    pub warnings: Vec<(usize, usize, String)>,
}

impl Training {
    /// Reads the metrics of a run; a line that a kill left unfinished is not read.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn read(run: &RunFolder) -> Result<Self> {
        let (mut found, mut before) = (Self::default(), 0);
        for iteration in 1..=run.config.iterations {
            let mut last = 0;
            AppendLog::of_lines(&run.at(iteration).training().join(METRICS_FILE))?.each(|_, line| {
                let Ok(line) = serde_json::from_slice::<Map<String, Value>>(line) else { return };
                let Some(step) = line.get("step").and_then(Value::as_u64) else { return };
                last = step as usize;
                for (name, value) in &line {
                    if let Some(value) = value.as_f64().filter(|_| name != "step") {
                        found.curves.entry(name.clone()).or_default().push(((before + last) as f64, value));
                    }
                }
                let said = line.get("warnings").and_then(Value::as_array).into_iter().flatten();
                found.warnings.extend(said.filter_map(|text| Some((iteration, last, text.as_str()?.to_owned()))));
            })?;
            if last > 0 {
                found.steps.push((iteration, last));
            }
            before += last;
        }
        Ok(found)
    }

    fn line(&self, name: &str, metric: &str) -> Line {
        let points = self.curves.get(metric).cloned().unwrap_or_default();
        Line { name: name.into(), points, intervals: Vec::new() }
    }

    /// The charts of one run.
    ///
    /// # Errors
    /// When a chart cannot be drawn.
    pub fn charts(&self) -> Result<Vec<Chart>> {
        let mut charts = Vec::new();
        for (title, note, lines) in ONE_RUN {
            let lines: Vec<Line> = lines.iter().map(|(name, metric)| self.line(name, metric)).collect();
            charts.extend(Chart::draw(title, note, "step", &lines)?);
        }
        Ok(charts)
    }
}

/// The charts in which several runs are compared.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn compared(runs: &[(String, &Training)]) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    for (title, note, metric) in SEVERAL_RUNS {
        let lines: Vec<Line> = runs.iter().map(|(name, training)| training.line(name, metric)).collect();
        charts.extend(Chart::draw(title, note, "step", &lines)?);
    }
    Ok(charts)
}
