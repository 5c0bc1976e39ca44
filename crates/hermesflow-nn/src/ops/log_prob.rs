//! The log-probability of a target under a row of logits, `log softmax(x)[target] = x[target] - ln Σ e^x`.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::parallel;
use crate::simd::{exp, max, max_and_sum_exp, sum_by, vectorised};
use crate::storage::{elements, host, kernels_take};

/// `log softmax(logits)[target]` of each row, in f32. The softmax is never held; the backward pass writes
/// `(onehot - softmax) g` directly.
///
/// # Shapes
/// `logits [n, v]`, `targets` n ids below `v` -> `[n]`
///
/// # Errors
/// When the targets do not fit the logits.
pub fn log_prob(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (n, v) = logits.dims2()?;
    if targets.len() != n {
        bail!("log_prob: {} targets for logits {:?}", targets.len(), logits.dims());
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= v) {
        bail!("log_prob: target {target} in a vocabulary of {v}");
    }
    let logits = logits.to_dtype(DType::F32)?;
    if kernels_take(&[&logits]) {
        logits.contiguous()?.apply_op1(LogProb { targets: targets.into(), normalizers: OnceLock::new() })
    } else {
        any_device(&logits, targets)
    }
}

/// `ln Σ e^x` of a row. Runs of 1024 terms are summed in f32 and the runs in f64: a whole vocabulary is too long for one sum in
/// f32.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    const RUN: usize = 1024;
    let highest = largest(x);
    let sum: f64 = x.chunks(RUN).map(|run| f64::from(sum_exp(run, highest))).sum();
    f64::from(highest) + sum.ln()
}

/// Turns a row of logits, divided by the temperature, into probabilities.
pub fn soften_row(row: &mut [f32], temperature: f32) {
    soften(row, temperature);
}

vectorised! {
    fn soften(row: &mut [f32], temperature: f32) {
        row.iter_mut().for_each(|x| *x /= temperature);
        let largest = max(row);
        row.iter_mut().for_each(|x| *x = exp(*x - largest));
        // A sum for each lane is short enough for f32, at tens of thousands of elements.
        let sum = sum_by(row, |x| x);
        row.iter_mut().for_each(|x| *x /= sum);
    }
}

/// Whether a row holds neither NaN nor infinity.
pub fn all_finite(row: &[f32]) -> bool {
    // Without a branch per element, so that it becomes vector instructions.
    row.iter().fold(true, |good, value| good & value.is_finite())
}

/// Calls `work` with each item and the row of its number, on the CPU and in parallel.
///
/// # Shapes
/// `rows [n, v]` in f32, n items
///
/// # Errors
/// When there are not as many items as rows, or the rows cannot be read.
pub fn for_each_row<T: Send>(rows: &Tensor, items: Vec<T>, work: impl Fn(T, &[f32]) + Sync + Send) -> Result<()> {
    let (n, v) = rows.dims2()?;
    if items.len() != n || v == 0 {
        bail!("for_each_row: {} items for {:?}", items.len(), rows.dims());
    }
    let rows = rows.to_device(&Device::Cpu)?.contiguous()?;
    let (store, layout) = rows.storage_and_layout();
    let values = host(&store, layout)?;
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    parallel::each(n, |row| {
        let item = items[row].lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(item) = item {
            work(item, &values[row * v..][..v]);
        }
    });
    Ok(())
}

/// [`log_prob`] by candle's operators.
fn any_device(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let chosen = shifted.gather(&targets, D::Minus1)?;
    (chosen - shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?.squeeze(1)
}

/// The operator on the CPU.
struct LogProb {
    targets: Arc<[u32]>,
    /// Each row's log-sum-exp, from the forward pass.
    normalizers: OnceLock<Vec<f32>>,
}

vectorised! {
    fn largest(x: &[f32]) -> f32 {
        max(x)
    }

    fn sum_exp(x: &[f32], highest: f32) -> f32 {
        sum_by(x, |x| exp(x - highest))
    }

    /// Replaces logits by `-grad · softmax`.
    fn gradients(x: &mut [f32], normalizer: f32, grad: f32) {
        for x in x.iter_mut() {
            *x = -grad * exp(*x - normalizer);
        }
    }
}

/// The log-probability of each row's target, and each row's log-sum-exp, of `logits [n, v]`.
pub(super) fn of_targets(logits: &[f32], v: usize, targets: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let normalizers: Vec<f32> = logits
        .par_chunks_exact(v)
        .map(|row| {
            let (largest, sum) = max_and_sum_exp(row);
            largest + sum.ln()
        })
        .collect();
    let rows = logits.chunks_exact(v).zip(targets).zip(&normalizers);
    (rows.map(|((row, &target), normalizer)| row[target as usize] - normalizer).collect(), normalizers)
}

/// Replaces `logits [n, v]` by their gradients, from the gradients of the log-probabilities and the log-sum-exps that
/// [`of_targets`] gave.
pub(super) fn to_gradients(logits: &mut [f32], v: usize, targets: &[u32], normalizers: &[f32], grad: &[f32]) {
    logits.par_chunks_exact_mut(v).enumerate().for_each(|(row, logits)| {
        gradients(logits, normalizers[row], grad[row]);
        logits[targets[row] as usize] += grad[row];
    });
}

impl CustomOp1 for LogProb {
    fn name(&self) -> &'static str {
        "log-prob"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, v) = layout.shape().dims2()?;
        let x = elements(x, layout)?;
        let (y, normalizers) = of_targets(x, v, &self.targets);
        self.normalizers.get_or_init(|| normalizers);
        Ok((CpuStorage::F32(y), n.into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(normalizers) = self.normalizers.get() else {
            bail!("log_prob: the backward pass ran before the forward pass");
        };
        let (_, v) = x.dims2()?;
        let grad = grad.contiguous()?;
        let ((x_store, x_layout), (g_store, g_layout)) = (x.storage_and_layout(), grad.storage_and_layout());
        let (data, grad) = (host(&x_store, x_layout)?, host(&g_store, g_layout)?);
        let mut dx = data.to_vec();
        to_gradients(&mut dx, v, &self.targets, normalizers, grad);
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{agree, close, normal};

    #[test]
    fn the_log_of_a_sum_is_that_in_f64() {
        let x = normal(&[58_498]).to_vec1::<f32>().unwrap();
        let exact = x.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&x) - exact).abs() < 1e-7);
    }

    #[test]
    fn agrees_with_plain_candle() {
        for (n, v) in [(1, 3), (19, 1001), (5, 16)] {
            let targets: Vec<u32> = (0..n as u32).map(|i| (i * 37 + 2) % v as u32).collect();
            let logits = (normal(&[n, v]) * 4.0).unwrap();
            agree(&[logits], |x| log_prob(&x[0], &targets), |x| any_device(&x[0], &targets));
        }
    }

    #[test]
    fn half_precision_logits_are_widened() {
        let logits = normal(&[6, 40]).to_dtype(DType::BF16).unwrap();
        let targets = [0, 7, 39, 1, 2, 3];
        let wide = logits.to_dtype(DType::F32).unwrap();
        close(&log_prob(&logits, &targets).unwrap(), &any_device(&wide, &targets).unwrap(), 1e-5, "values");
    }

    #[test]
    fn stands_far_logits_and_refuses_far_targets() {
        let logits = Tensor::new(&[[3e4f32, -3e4, 0.0]], &candle_core::Device::Cpu).unwrap();
        assert_eq!(log_prob(&logits, &[0]).unwrap().to_vec1::<f32>().unwrap(), [0.0]);
        assert_eq!(log_prob(&logits, &[1]).unwrap().to_vec1::<f32>().unwrap(), [-6e4]);
        assert!(log_prob(&logits, &[3]).is_err());
        assert!(log_prob(&logits, &[0, 1]).is_err());
    }
}
