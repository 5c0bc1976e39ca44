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

    /// Half the width of the 95 % interval.
    pub fn half_width(&self) -> f64 {
        1.96 * self.error
    }
}

impl std::fmt::Display for Mean {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Interval { mean: self.mean, half_width: self.half_width(), count: self.count }.fmt(f)
    }
}

/// A mean with half the width of its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Half the width.
    pub half_width: f64,
    /// Numbers that it is the mean of.
    pub count: usize,
}

/// Student's t: the 97.5 % quantile for 1, 2, … degrees of freedom.
const STUDENT: [f64; 15] =
    [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131];

impl Interval {
    /// The interval of a figure that was measured once per seed, each time with another training and other prompts: of one
    /// measurement its own over its prompts, else that of the means, whose spread holds the trainings' and the prompts'.
    pub fn over(seeds: impl IntoIterator<Item = Mean>) -> Self {
        let seeds: Vec<Mean> = seeds.into_iter().filter(|mean| mean.count > 0).collect();
        let count = seeds.iter().map(|mean| mean.count).sum();
        if let [one] = seeds[..] {
            return Self { mean: one.mean, half_width: one.half_width(), count };
        }
        let Mean { mean, error, .. } = Mean::of(seeds.iter().map(|seed| seed.mean));
        let quantile = STUDENT.get(seeds.len().saturating_sub(2)).copied().unwrap_or(1.96);
        Self { mean, half_width: quantile * error, count }
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.count == 0 {
            return f.write_str("–");
        }
        // What rounds to zero has no sign.
        let mean = if self.mean.abs() < 0.0005 { 0.0 } else { self.mean };
        if f.sign_plus() {
            write!(f, "{mean:+.3} ± {:.3}", self.half_width)
        } else {
            write!(f, "{mean:.3} ± {:.3}", self.half_width)
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
        assert_eq!(format!("{:+}", Interval::over([])), "–");
        assert_eq!(Mean::of([-0.0]).to_string(), "0.000 ± 0.000");
        assert_eq!(format!("{:+}", Mean::of([-0.0004])), "+0.000 ± 0.000");
        assert_eq!(Mean::of([-0.0006]).to_string(), "-0.001 ± 0.000");
    }

    #[test]
    fn seeds_differ_by_their_trainings_too() {
        let seed = |mean: f64| Mean { mean, error: 0.001, count: 100 };
        let one = Interval::over([seed(0.5)]);
        assert_eq!((one.mean, one.half_width, one.count), (0.5, 1.96 * 0.001, 100));
        // Means .1, .2, .3: standard error .1/√3; t = 4.303 for two degrees of freedom.
        let three = Interval::over([seed(0.1), seed(0.2), seed(0.3), Mean::of([])]);
        assert!((three.mean - 0.2).abs() < 1e-12 && three.count == 300);
        assert!((three.half_width - 4.303 * 0.1 / 3f64.sqrt()).abs() < 1e-9, "{three}");
        let five = Interval::over([1.0, 2.0, 3.0, 4.0, 5.0].map(seed)); // variance 2.5, standard error √.5
        assert!((five.half_width - 2.776 * 0.5f64.sqrt()).abs() < 1e-9, "{five}");
        assert!(STUDENT.windows(2).all(|two| two[0] > two[1]));
    }

    #[test]
    fn pairing_takes_out_what_prompts_share() {
        let difference = Mean::of_differences(&[0.0, 0.5, 1.0], &[0.25, 0.75, 1.25]);
        assert_eq!((difference.mean, difference.error), (0.25, 0.0));
        assert_eq!(format!("{difference:+}"), "+0.250 ± 0.000");
    }
}
