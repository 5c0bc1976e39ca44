//! The report of a replay, and the comparison of tensors: always value by value, never by cosine.

use candle_core::{DType, Tensor};
use serde::Serialize;

use crate::{Error, Result};

/// How a comparison ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The error is within its tolerance.
    Passed,
    /// The error is outside of its tolerance, or the values cannot be compared.
    Failed,
    /// This build cannot replay the comparison; it never counts as passed.
    Skipped,
}

/// One comparison of recorded values with values computed now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// The name of the case's folder.
    pub case: String,
    /// What is compared.
    pub what: String,
    /// The largest absolute error, or for exact comparisons the number of values that differ.
    pub largest_error: f64,
    /// The largest error that passes.
    pub tolerance: f64,
    /// How the comparison ended.
    pub verdict: Verdict,
    /// What went wrong or what was left out; empty otherwise.
    pub note: String,
}

/// The checks of one case.
#[derive(Debug, Clone)]
pub struct Report {
    case: String,
    /// The checks, in the order in which they were made.
    pub checks: Vec<Check>,
}

impl Report {
    /// A report without checks.
    pub fn new(case: impl Into<String>) -> Self {
        Self { case: case.into(), checks: Vec::new() }
    }

    /// Adds a comparison by its largest error. An error that is NaN fails.
    pub fn within(&mut self, what: impl Into<String>, largest_error: f64, tolerance: f64) {
        let verdict = if largest_error <= tolerance { Verdict::Passed } else { Verdict::Failed };
        self.push(what, largest_error, tolerance, verdict, String::new());
    }

    /// Adds a comparison that must be exact; its error is the number of values that differ.
    pub fn equal<T: PartialEq>(&mut self, what: impl Into<String>, ours: &[T], recorded: &[T]) {
        let differing = ours.iter().zip(recorded).filter(|(a, b)| a != b).count() + ours.len().abs_diff(recorded.len());
        self.within(what, differing as f64, 0.0);
    }

    /// Adds a comparison of two tensors, value by value. Different shapes fail.
    ///
    /// # Errors
    /// If the tensors cannot be read.
    pub fn close(&mut self, what: impl Into<String>, ours: &Tensor, recorded: &Tensor, tolerance: f64) -> Result<()> {
        if ours.dims() != recorded.dims() {
            let note = format!("shape {:?}, recorded {:?}", ours.dims(), recorded.dims());
            self.push(what, f64::NAN, tolerance, Verdict::Failed, note);
            return Ok(());
        }
        self.within(what, largest_difference(ours, recorded)?, tolerance);
        Ok(())
    }

    /// Adds a failure that has no error as a number.
    pub fn fail(&mut self, what: impl Into<String>, note: impl Into<String>) {
        self.push(what, f64::NAN, 0.0, Verdict::Failed, note.into());
    }

    /// Adds something that this build cannot replay.
    pub fn skip(&mut self, what: impl Into<String>, note: impl Into<String>) {
        self.push(what, 0.0, 0.0, Verdict::Skipped, note.into());
    }

    fn push(&mut self, what: impl Into<String>, largest_error: f64, tolerance: f64, verdict: Verdict, note: String) {
        let case = self.case.clone();
        self.checks.push(Check { case, what: what.into(), largest_error, tolerance, verdict, note });
    }
}

/// All values of a tensor as f32, in row-major order.
///
/// # Errors
/// If the tensor cannot be read.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}

/// The largest absolute difference of two tensors; NaN if any value is NaN.
///
/// # Errors
/// If a tensor cannot be read.
pub fn largest_difference(ours: &Tensor, recorded: &Tensor) -> Result<f64> {
    Ok(largest(values(ours)?.into_iter().zip(values(recorded)?).map(|(a, b)| f64::from(a) - f64::from(b))))
}

/// The largest absolute value; NaN if any value is NaN, 0 if there is none.
pub fn largest(differences: impl Iterator<Item = f64>) -> f64 {
    differences
        .map(f64::abs)
        .fold(0.0, |most, next| if most.is_nan() || next.is_nan() { f64::NAN } else { most.max(next) })
}

/// The rows (along the last dimension) of a tensor of integers.
///
/// # Errors
/// If the tensor cannot be read.
pub fn integers(tensor: &Tensor) -> Result<Vec<Vec<i64>>> {
    let wide = tensor.dims().last().copied().unwrap_or(1).max(1);
    let flat = tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
    Ok(flat.chunks(wide).map(<[i64]>::to_vec).collect())
}

/// The rows of a tensor of token ids; `what` is named in errors.
///
/// # Errors
/// If an id is negative or too large.
pub fn ids(tensor: &Tensor, what: &str) -> Result<Vec<Vec<u32>>> {
    let narrow = |id: i64| u32::try_from(id).map_err(|_| Error::Case(format!("{what} holds the id {id}")));
    integers(tensor)?.into_iter().map(|row| row.into_iter().map(narrow).collect()).collect()
}
