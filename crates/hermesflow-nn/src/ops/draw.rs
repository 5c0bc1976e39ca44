//! Draws from the softmax of rows of logits on the device that holds the rows, so that a GPU's logits need not be copied to the
//! host.
//!
//! A draw inverts the cumulative distribution in two steps: the sums of runs of a row choose a run, and the run's elements choose
//! the element. Cumulative sums are products with a triangular matrix of ones.

use candle_core::{D, DType, Device, Result, Tensor, bail};

/// [`draw_rows`] from the guided logits `(1 + guidance) cond - guidance uncond` (classifier-free guidance).
///
/// # Shapes
/// `cond` and `uncond` `[n, v]` in f32, n marks -> n elements with their probabilities
///
/// # Errors
/// When shapes do not fit, or `v` is 0 or above 2^24.
pub fn draw_guided(cond: &Tensor, uncond: &Tensor, guidance: f64, marks: &[f32]) -> Result<Vec<(u32, f32)>> {
    #[cfg(feature = "cuda")]
    if on_gpu(cond) {
        return by_kernel(cond, Some(uncond), guidance, marks);
    }
    draw_rows(&((cond * (1.0 + guidance))? - (uncond * guidance)?)?, marks)
}

/// Whether a kernel draws from these logits.
#[cfg(feature = "cuda")]
fn on_gpu(logits: &Tensor) -> bool {
    let columns = logits.dims().last().copied().unwrap_or(0);
    logits.device().is_cuda() && logits.dtype() == DType::F32 && columns <= super::gpu::DRAWN && logits.elem_count() > 0
}

#[cfg(feature = "cuda")]
fn by_kernel(cond: &Tensor, uncond: Option<&Tensor>, guidance: f64, marks: &[f32]) -> Result<Vec<(u32, f32)>> {
    let (cond, uncond) = (cond.contiguous()?, uncond.map(Tensor::contiguous).transpose()?);
    super::gpu::draw(&cond, uncond.as_ref(), guidance as f32, marks)
}

/// Draws one element of each row's softmax and gives it with its probability.
///
/// `marks` are the uniform random numbers in `[0, 1)`: the element is the first whose cumulative probability exceeds the row's
/// mark. An element of probability 0 is never drawn. The probability is NaN if a logit of the row is.
///
/// # Shapes
/// `logits [n, v]` in f32, n marks -> n elements with their probabilities
///
/// # Errors
/// When there are not as many marks as rows, or `v` is 0 or above 2^24.
pub fn draw_rows(logits: &Tensor, marks: &[f32]) -> Result<Vec<(u32, f32)>> {
    let (n, v) = logits.dims2()?;
    if marks.len() != n || v == 0 || v > 1 << 24 {
        bail!("draws: {} marks for logits {:?}", marks.len(), logits.dims());
    }
    if n == 0 {
        return Ok(Vec::new());
    }
    #[cfg(feature = "cuda")]
    if on_gpu(logits) {
        return by_kernel(logits, None, 0.0, marks);
    }
    let device = logits.device();
    let run = run_of(v);
    let runs = v / run;
    let weights = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.reshape((n, runs, run))?;
    let sums = weights.sum(D::Minus1)?;
    let total = sums.sum_keepdim(D::Minus1)?;
    let marks = (Tensor::from_slice(marks, (n, 1), device)? * &total)?;
    let (first, before) = pick(&sums, &marks)?;
    // The chosen run of each row, as a row of all runs.
    let offsets: Vec<u32> = (0..n as u32).map(|row| row * runs as u32).collect();
    let at = (first.to_dtype(DType::U32)?.squeeze(1)? + Tensor::new(offsets, device)?)?;
    let weights = weights.reshape((n * runs, run))?.index_select(&at, 0)?;
    let (second, _) = pick(&weights, &(marks - before)?)?;
    let chosen = weights.gather(&second.to_dtype(DType::U32)?.contiguous()?, 1)?;
    let code = ((first * run as f64)? + second)?;
    // Element numbers up to 2^24 are exact in f32, so that one tensor is copied to the host.
    let both = Tensor::cat(&[code, (chosen / total)?], 1)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(both.chunks_exact(2).map(|pair| (pair[0] as u32, pair[1])).collect())
}

/// The length of a run: the largest divisor of `v` up to its square root.
fn run_of(v: usize) -> usize {
    (1..=v.isqrt()).rev().find(|run| v.is_multiple_of(*run)).unwrap_or(1)
}

/// The first element whose cumulative weight exceeds the row's mark or reaches the sum of the row, and the sum before it.
///
/// # Shapes
/// `weights [n, w]`, `marks [n, 1]` -> `[n, 1]`, `[n, 1]`, both in f32
fn pick(weights: &Tensor, marks: &Tensor) -> Result<(Tensor, Tensor)> {
    let width = weights.dim(1)?;
    let up_to = weights.matmul(&triangle(width, weights.device())?)?;
    let all = up_to.narrow(1, width - 1, 1)?;
    let passed = (up_to.broadcast_le(marks)? * up_to.broadcast_lt(&all)?)?.to_dtype(DType::F32)?;
    // The weights before the element are those that were passed.
    Ok((passed.sum_keepdim(1)?, (passed * weights)?.sum_keepdim(1)?))
}

/// An upper triangular matrix of ones, `[width, width]`.
fn triangle(width: usize, device: &Device) -> Result<Tensor> {
    let ones = (0..width).flat_map(|row| (0..width).map(move |column| if row <= column { 1f32 } else { 0.0 }));
    Tensor::from_vec(ones.collect::<Vec<_>>(), (width, width), device)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::normal_of;

    /// The same in f64, one element after another.
    fn plain(row: &[f32], mark: f32) -> (usize, f64) {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = row.iter().map(|x| f64::from(x - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let exceeds = |weight: &f64| {
            sum += weight;
            sum > f64::from(mark) * total
        };
        let at = weights.iter().position(exceeds).unwrap_or(row.len() - 1);
        (at, weights[at] / total)
    }

    #[test]
    fn draws_are_those_of_the_distribution_function() {
        for (n, v) in [(40, 8192), (200, 16), (30, 15), (30, 13), (3, 1)] {
            let logits = (normal_of(v as u64, &[n, v]) * 3.0).unwrap();
            let marks: Vec<f32> = (0..n).map(|row| (row as f32 * 0.618_034).fract()).collect();
            let rows = logits.to_vec2::<f32>().unwrap();
            let mut neighbours = 0;
            for ((row, mark), (code, probability)) in rows.iter().zip(&marks).zip(draw_rows(&logits, &marks).unwrap()) {
                let (expected, exact) = plain(row, *mark);
                // Where the mark lies on the edge of two, either may come.
                if code as usize != expected {
                    neighbours += 1;
                    assert!((code as usize).abs_diff(expected) == 1, "{code} for {expected} of {v}");
                    continue;
                }
                assert!((f64::from(probability) - exact).abs() < 1e-5 * (1.0 + exact), "{probability} for {exact}");
            }
            assert!(neighbours <= 1, "{neighbours} of {n} draws from {v} are others");
        }
    }

    #[test]
    fn what_has_no_weight_is_never_drawn() {
        let row = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
        let marks = [0.0, 0.3, 0.5, 0.999_999_94];
        let logits = Tensor::new(&[row; 4], &Device::Cpu).unwrap();
        let codes: Vec<u32> = draw_rows(&logits, &marks).unwrap().into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, [1, 1, 3, 3]);
        assert!(draw_rows(&logits, &marks[1..]).is_err());
    }
}
