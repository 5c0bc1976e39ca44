//! The learning rate of every step: warm-up, then constant, linear or cosine.
//!
//! The numbers are those of transformers' `get_constant_schedule_with_warmup`,
//! `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup`: step 0 of a run with
//! warm-up has learning rate 0, and the peak is reached at step `warmup_steps`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the learning rate does after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Stays at the peak.
    Constant,
    /// Falls to 0 along a straight line.
    Linear,
    /// Falls to 0 along half a cosine wave, as in the paper.
    Cosine,
}

/// The learning rate of every step of a run of known length.
///
/// The rate rises from 0 to its peak over `warmup_steps`, then follows `kind` until `steps`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Shape of the learning rate after the warm-up.
    ///
    /// Default: cosine.
    /// Source: paper, training details; released code, `lr_scheduler.scheduler`.
    pub kind: ScheduleKind,
    /// Peak learning rate, reached at the end of the warm-up.
    ///
    /// Default: 2e-5.
    /// Source: paper, training details; released code, `optimizer.params.learning_rate`.
    #[schemars(range(min = 0.0))]
    pub learning_rate: f64,
    /// Optimizer steps over which the learning rate rises from 0 to its peak. Must be fewer than `steps`.
    ///
    /// Unit: optimizer steps.
    /// Default: 300.
    /// Source: released code, `lr_scheduler.params.warmup_steps`, where it is 5000 of 3000 steps and never ends.
    #[schemars(range(max = 1_000_000_000))]
    pub warmup_steps: usize,
    /// Optimizer steps of the whole training of one iteration.
    ///
    /// Unit: optimizer steps.
    /// Default: 3000.
    /// Source: paper, training details; released code, `training.max_train_steps`.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub steps: usize,
}

impl Default for Schedule {
    /// The paper's numbers, with a warm-up that fits.
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, learning_rate: 2e-5, warmup_steps: 300, steps: 3000 }
    }
}

impl Schedule {
    /// Checks that the numbers agree. The warm-up of the released 512 configuration (5,000 steps of a 3,000-step run)
    /// would never have reached its peak.
    ///
    /// # Errors
    /// Names the setting, its value and what is expected.
    pub fn validate(&self) -> Result<()> {
        if self.steps == 0 {
            return Err(setting("schedule.steps", "must be at least 1".into()));
        }
        if self.warmup_steps >= self.steps {
            return Err(setting(
                "schedule.warmup_steps",
                format!("{} steps of warm-up do not fit into a run of {} steps", self.warmup_steps, self.steps),
            ));
        }
        if !(self.learning_rate.is_finite() && self.learning_rate >= 0.0) {
            return Err(setting("schedule.learning_rate", format!("{} is not a learning rate", self.learning_rate)));
        }
        Ok(())
    }

    /// The learning rate of step `step`, counted from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        self.learning_rate * self.factor(step)
    }

    fn factor(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps.max(1) as f64;
        }
        let span = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => self.steps.saturating_sub(step) as f64 / span,
            ScheduleKind::Cosine => {
                let progress = (step - self.warmup_steps) as f64 / span;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        }
    }
}

fn setting(key: &'static str, problem: String) -> Error {
    Error::Setting { key, problem }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn schedule(kind: ScheduleKind) -> Schedule {
        Schedule { kind, learning_rate: 2e-3, warmup_steps: 2, steps: 12 }
    }

    /// `train.lr` of the golden traces: torch 2.7.1 and transformers 4.46.3.
    #[test]
    fn cosine_matches_transformers() {
        let golden: [f32; 8] = [0.0, 1e-3, 2e-3, 0.001_951_056_5, 0.001_809_017, 0.001_587_785_2, 0.001_309_017, 1e-3];
        for (step, expected) in golden.into_iter().enumerate() {
            assert_eq!(schedule(ScheduleKind::Cosine).learning_rate(step) as f32, expected, "step {step}");
        }
    }

    #[test]
    fn linear_and_constant_by_hand() {
        let linear: Vec<f64> = [0, 1, 2, 7, 12].map(|s| schedule(ScheduleKind::Linear).learning_rate(s)).to_vec();
        assert_eq!(linear, [0.0, 1e-3, 2e-3, 1e-3, 0.0]);
        let constant: Vec<f64> = [0, 1, 2, 11].map(|s| schedule(ScheduleKind::Constant).learning_rate(s)).to_vec();
        assert_eq!(constant, [0.0, 1e-3, 2e-3, 2e-3]);
        let cold = Schedule { warmup_steps: 0, ..schedule(ScheduleKind::Cosine) };
        assert_eq!(cold.learning_rate(0), 2e-3, "without warm-up the first step has the peak");
    }

    #[test]
    fn a_warmup_longer_than_the_run_is_refused() {
        let released = Schedule { warmup_steps: 5000, steps: 3000, ..schedule(ScheduleKind::Cosine) };
        let message = released.validate().unwrap_err().to_string();
        assert!(message.contains("5000") && message.contains("3000"), "{message}");
        assert!(schedule(ScheduleKind::Cosine).validate().is_ok());
        assert!(Schedule { learning_rate: f64::NAN, ..schedule(ScheduleKind::Linear) }.validate().is_err());
    }
}
