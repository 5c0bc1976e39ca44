//! The likelihood watch: warns when the likelihood of the winners keeps falling.
//!
//! The loss without an anchor can win every comparison by making both sides less likely: accuracies look perfect while
//! δ_win = log π(win) − log π_ref(win) falls without end and generated images deteriorate. The watch compares the mean
//! of δ_win over a window of steps with a threshold and with the window before, because the number of a single step
//! depends on which masks were drawn.

use std::collections::{BTreeMap, VecDeque};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::metrics::Metrics;

/// The names of the watched metrics: δ_win of both sides.
pub const WATCHED: [&str; 2] = ["und/delta/chosen", "gen/delta/chosen"];

/// Alarm on a falling likelihood of the winning captions and images.
///
/// Speaks when the mean of δ_win = log π(win) − log π_ref(win) over a window of steps is below `threshold` and below the
/// mean of the window before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WatchSettings {
    /// Length of a window over which δ_win is averaged.
    ///
    /// Unit: optimizer steps.
    /// Default: 20.
    /// Source: this program.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub window: usize,
    /// Mean δ_win of a window at or above which there is no alarm. −3 means that a winner has become about twenty times
    /// less likely than under the reference.
    ///
    /// Unit: nats.
    /// Default: -3.0.
    /// Source: this program.
    pub threshold: f64,
    /// Whether training stops at the first alarm, with a checkpoint; otherwise the alarm is only logged.
    ///
    /// Default: false.
    /// Source: this program.
    pub stop: bool,
}

impl Default for WatchSettings {
    /// Windows of 20 steps, a threshold of −3 nats (the win has become twenty times less likely than
    /// under the reference), no stop.
    fn default() -> Self {
        Self { window: 20, threshold: -3.0, stop: false }
    }
}

/// The report that the likelihood of the winners of one side keeps falling.
#[derive(Debug, Clone, PartialEq)]
pub struct LikelihoodFalls {
    /// The name of the metric: `und/delta/chosen` or `gen/delta/chosen`.
    pub metric: &'static str,
    /// The number of steps of a window.
    pub window: usize,
    /// The mean of the metric over the last window, in nats.
    pub mean: f64,
    /// The mean over the window before, in nats.
    pub before: f64,
}

impl std::fmt::Display for LikelihoodFalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { metric, window, mean, before } = self;
        write!(
            f,
            "the winning likelihood keeps falling: {metric} is {mean:.2} nats over the last {window} steps, \
             after {before:.2}; raise the anchor or lower the learning rate"
        )
    }
}

/// Watches the steps of one run.
#[derive(Debug, Clone)]
pub struct LikelihoodWatch {
    settings: WatchSettings,
    recent: BTreeMap<&'static str, Recent>,
}

#[derive(Debug, Clone, Default)]
struct Recent {
    values: VecDeque<f64>,
    quiet: usize,
}

impl LikelihoodWatch {
    /// A watch that has seen no step.
    pub fn new(settings: WatchSettings) -> Self {
        Self { settings, recent: BTreeMap::new() }
    }

    /// Takes in the metrics of one step and returns the sides whose winning likelihood keeps falling. A side is
    /// reported again only after another window.
    pub fn observe(&mut self, metrics: &Metrics) -> Vec<LikelihoodFalls> {
        let window = self.settings.window.max(1);
        let mut events = Vec::new();
        for metric in WATCHED {
            let Some(value) = metrics.get(metric) else { continue };
            let recent = self.recent.entry(metric).or_default();
            recent.values.push_back(value);
            recent.quiet = recent.quiet.saturating_sub(1);
            if recent.values.len() > 2 * window {
                recent.values.pop_front();
            }
            if recent.values.len() < 2 * window || recent.quiet > 0 {
                continue;
            }
            let sum_from = |skip: usize| recent.values.iter().skip(skip).take(window).sum::<f64>();
            let (before, mean) = (sum_from(0) / window as f64, sum_from(window) / window as f64);
            if mean < self.settings.threshold && mean < before {
                recent.quiet = window;
                events.push(LikelihoodFalls { metric, window, mean, before });
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(settings: WatchSettings, values: impl Iterator<Item = f64>) -> Vec<(usize, LikelihoodFalls)> {
        let mut watch = LikelihoodWatch::new(settings);
        let mut events = Vec::new();
        for (step, value) in values.enumerate() {
            let mut metrics = Metrics::new();
            metrics.insert("gen/delta/chosen", value);
            events.extend(watch.observe(&metrics).into_iter().map(|event| (step, event)));
        }
        events
    }

    #[test]
    fn a_falling_run_is_reported_once_per_window() {
        let settings = WatchSettings { window: 5, threshold: -3.0, stop: false };
        let events = events(settings, (0..30).map(|step| -0.5 * step as f64));
        let steps: Vec<usize> = events.iter().map(|(step, _)| *step).collect();
        // Two windows end at step 9: means of steps 5..=9 and 0..=4 are −3.5 and −1.
        assert_eq!(steps, [9, 14, 19, 24, 29]);
        assert_eq!(events[0].1, LikelihoodFalls { metric: "gen/delta/chosen", window: 5, mean: -3.5, before: -1.0 });
        assert!(events[0].1.to_string().contains("gen/delta/chosen is -3.50 nats"));
    }

    #[test]
    fn rising_low_steady_and_noisy_runs_are_left_alone() {
        let settings = WatchSettings { window: 5, threshold: -3.0, stop: false };
        assert!(events(settings, (0..30).map(|step| 0.2 * f64::from(step))).is_empty());
        assert!(events(settings, (0..30).map(|step| -10.0 + 0.1 * f64::from(step))).is_empty(), "low, but rising");
        assert!(events(settings, (0..30).map(|step| -0.05 * f64::from(step))).is_empty(), "falling, but not far");
        let noisy = (0..30).map(|step| if step % 5 == 0 { -12.0 } else { 1.0 });
        assert!(events(settings, noisy).is_empty(), "one bad mask is not a trend");
    }
}
