//! Means with their standard errors, and paired differences.
//!
//! A prompt is the unit: its share of right facts is one number, so that facts of one prompt, which
//! are not independent, do not count as several. Intervals are mean ± 1.96 standard errors.

use serde::{Deserialize, Serialize};

/// A mean over prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// The standard error of the mean.
    pub error: f64,
    /// Prompts.
    pub count: usize,
}

impl Mean {
    /// The mean of some numbers; with none, zero with an error of zero, which is shown as a dash.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let count = values.len();
        let n = count.max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let error = if count > 1 { (square / (n - 1.0) / n).sqrt() } else { 0.0 };
        Self { mean, error, count }
    }

    /// The mean difference `after − before` of numbers about the same prompts.
    pub fn of_differences(before: &[f64], after: &[f64]) -> Self {
        Self::of(before.iter().zip(after).map(|(before, after)| after - before))
    }

    /// One mean of means over different prompts, each weighing as many as it has.
    pub fn pooled(means: impl IntoIterator<Item = Self>) -> Self {
        let means: Vec<Self> = means.into_iter().collect();
        let count: usize = means.iter().map(|mean| mean.count).sum();
        let weight = |mean: &Self| mean.count as f64 / count.max(1) as f64;
        Self {
            mean: means.iter().map(|mean| weight(mean) * mean.mean).sum(),
            error: means.iter().map(|mean| (weight(mean) * mean.error).powi(2)).sum::<f64>().sqrt(),
            count,
        }
    }

    /// Half the width of the 95 % interval.
    pub fn half_width(&self) -> f64 {
        1.96 * self.error
    }
}

impl std::fmt::Display for Mean {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.count == 0 {
            return f.write_str("–");
        }
        // What rounds to zero has no sign.
        let mean = if self.mean.abs() < 0.0005 { 0.0 } else { self.mean };
        if f.sign_plus() {
            write!(f, "{mean:+.3} ± {:.3}", self.half_width())
        } else {
            write!(f, "{mean:.3} ± {:.3}", self.half_width())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_error_by_hand() {
        // Mean 2, squares 1 + 0 + 1 = 2, variance 1, error √(1/3).
        let mean = Mean::of([1.0, 2.0, 3.0]);
        assert_eq!((mean.mean, mean.count), (2.0, 3));
        assert!((mean.error - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Mean::of([]).mean, 0.0);
    }

    #[test]
    fn nothing_has_no_mean_and_zero_no_sign() {
        assert_eq!(Mean::of([]).to_string(), "–");
        assert_eq!(format!("{:+}", Mean::pooled([])), "–");
        assert_eq!(Mean::of([-0.0]).to_string(), "0.000 ± 0.000");
        assert_eq!(format!("{:+}", Mean::of([-0.0004])), "+0.000 ± 0.000");
        assert_eq!(Mean::of([-0.0006]).to_string(), "-0.001 ± 0.000");
    }

    #[test]
    fn means_pool_by_their_counts() {
        let (a, b) = (Mean { mean: 1.0, error: 0.3, count: 100 }, Mean { mean: 2.0, error: 0.4, count: 300 });
        let pooled = Mean::pooled([a, b]);
        assert_eq!((pooled.mean, pooled.count), (1.75, 400));
        // √((0.25·0.3)² + (0.75·0.4)²)
        assert!((pooled.error - (0.075f64.powi(2) + 0.3f64.powi(2)).sqrt()).abs() < 1e-12);
        assert_eq!(Mean::pooled([]).mean, 0.0);
    }

    #[test]
    fn pairing_takes_out_what_prompts_share() {
        let difference = Mean::of_differences(&[0.0, 0.5, 1.0], &[0.25, 0.75, 1.25]);
        assert_eq!((difference.mean, difference.error), (0.25, 0.0));
        assert_eq!(format!("{difference:+}"), "+0.250 ± 0.000");
    }
}
