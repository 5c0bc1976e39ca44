//! What a replay reports, and how tensors are compared: by value, never by cosine.

use candle_core::{DType, Tensor};
use serde::Serialize;

use crate::{Error, Result};

/// How one comparison ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Within its tolerance.
    Passed,
    /// Outside, or not comparable.
    Failed,
    /// Nothing in this build can replay it; never counts as passed.
    Skipped,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// The case folder's name.
    pub case: String,
    /// What is compared.
    pub what: String,
    /// The largest error; for exact comparisons, how many values differ.
    pub largest_error: f64,
    /// The largest that is allowed.
    pub tolerance: f64,
    /// Within it or not.
    pub verdict: Verdict,
    /// Where it went wrong, or what was left out.
    pub note: String,
}

/// The checks of one case.
#[derive(Debug, Clone)]
pub struct Report {
    case: String,
    /// In the order they were made.
    pub checks: Vec<Check>,
}

impl Report {
    /// No checks yet.
    pub fn new(case: impl Into<String>) -> Self {
        Self { case: case.into(), checks: Vec::new() }
    }

    /// A comparison by its largest error; an error that is no number fails.
    pub fn within(&mut self, what: impl Into<String>, largest_error: f64, tolerance: f64) {
        let verdict = if largest_error <= tolerance { Verdict::Passed } else { Verdict::Failed };
        self.push(what, largest_error, tolerance, verdict, String::new());
    }

    /// A comparison that must be exact: how many values differ.
    pub fn equal<T: PartialEq>(&mut self, what: impl Into<String>, ours: &[T], recorded: &[T]) {
        let differing = ours.iter().zip(recorded).filter(|(a, b)| a != b).count() + ours.len().abs_diff(recorded.len());
        self.within(what, differing as f64, 0.0);
    }

    /// Two tensors, value by value; shapes that differ fail.
    pub fn close(&mut self, what: impl Into<String>, ours: &Tensor, recorded: &Tensor, tolerance: f64) -> Result<()> {
        if ours.dims() != recorded.dims() {
            let note = format!("shape {:?}, recorded {:?}", ours.dims(), recorded.dims());
            self.push(what, f64::NAN, tolerance, Verdict::Failed, note);
            return Ok(());
        }
        self.within(what, largest_difference(ours, recorded)?, tolerance);
        Ok(())
    }

    /// A failure that is no number.
    pub fn fail(&mut self, what: impl Into<String>, note: impl Into<String>) {
        self.push(what, f64::NAN, 0.0, Verdict::Failed, note.into());
    }

    /// Something that this build cannot replay.
    pub fn skip(&mut self, what: impl Into<String>, note: impl Into<String>) {
        self.push(what, 0.0, 0.0, Verdict::Skipped, note.into());
    }

    fn push(&mut self, what: impl Into<String>, largest_error: f64, tolerance: f64, verdict: Verdict, note: String) {
        let case = self.case.clone();
        self.checks.push(Check { case, what: what.into(), largest_error, tolerance, verdict, note });
    }
}

/// All values of a tensor as f32.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}

/// The largest absolute difference; NaN if any value is.
pub fn largest_difference(ours: &Tensor, recorded: &Tensor) -> Result<f64> {
    Ok(largest(values(ours)?.into_iter().zip(values(recorded)?).map(|(a, b)| f64::from(a) - f64::from(b))))
}

/// The largest absolute number; NaN if any is.
pub fn largest(differences: impl Iterator<Item = f64>) -> f64 {
    differences
        .map(f64::abs)
        .fold(0.0, |most, next| if most.is_nan() || next.is_nan() { f64::NAN } else { most.max(next) })
}

/// Rows of integers.
pub fn integers(tensor: &Tensor) -> Result<Vec<Vec<i64>>> {
    let wide = tensor.dims().last().copied().unwrap_or(1).max(1);
    let flat = tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
    Ok(flat.chunks(wide).map(<[i64]>::to_vec).collect())
}

/// Token ids: integers that are not negative.
pub fn ids(tensor: &Tensor, what: &str) -> Result<Vec<Vec<u32>>> {
    let narrow = |id: i64| u32::try_from(id).map_err(|_| Error::Case(format!("{what} holds the id {id}")));
    integers(tensor)?.into_iter().map(|row| row.into_iter().map(narrow).collect()).collect()
}
