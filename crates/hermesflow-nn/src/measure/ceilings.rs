//! What a device can do at most, measured at the call: the rate of a large matrix product, and of copies in memory.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};

use crate::ops::linear::linear;

/// Number of timed runs, of which the fastest counts.
const TRIES: usize = 9;

/// Seconds of the fastest of [`TRIES`] runs, until the device has finished; one run before them is not timed.
fn best(device: &Device, work: impl Fn() -> Result<Tensor>) -> Result<f64> {
    work()?;
    let mut best = f64::INFINITY;
    for _ in 0..TRIES {
        device.synchronize()?;
        let started = Instant::now();
        let kept = work()?;
        device.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64());
        drop(kept);
    }
    Ok(best)
}

/// Seconds of a large product `x Wᵀ` with `W` in `dtype` (the fastest of nine runs), and its number of multiplications and
/// additions. The quotient is about the most that this device can do.
///
/// # Shapes
/// On a CPU `x [1024, 2048]`, `W [4096, 2048]`. On a GPU, which these would not fill, both are `[8192, 8192]`.
///
/// # Errors
/// When products in this type are not supported, or memory runs out.
pub fn large_product(dtype: DType, device: &Device) -> Result<(f64, f64)> {
    let (rows, input, out) = if device.is_cpu() { (1024, 2048, 4096) } else { (8192, 8192, 8192) };
    let factor = |rows| Tensor::randn(0f32, 1.0, (rows, input), device);
    let (x, weight) = (factor(rows)?, factor(out)?.to_dtype(dtype)?);
    // On a GPU both operands have the same type; the conversion of `x` is not part of the product and is not timed.
    let x = if device.is_cpu() { x } else { x.to_dtype(dtype)? };
    let seconds = best(device, || linear(&x, &weight, None))?;
    Ok((seconds, 2.0 * (rows * input * out) as f64))
}

/// Seconds of a copy within the device's memory (the fastest of nine runs), and how many bytes it reads and writes: 512 MB on a
/// CPU, 4 GB on a GPU.
///
/// # Errors
/// When memory runs out.
pub fn copies(device: &Device) -> Result<(f64, f64)> {
    let count: usize = if device.is_cpu() { 1 << 26 } else { 1 << 29 };
    let from = Tensor::zeros(count, DType::F32, device)?;
    let seconds = if device.is_cpu() {
        // Into memory that was written before: the first touch of a page costs more than a copy.
        let to = Tensor::zeros(count, DType::F32, device)?;
        best(device, || to.slice_set(&from, 0, 0).map(|()| to.clone()))?
    } else {
        best(device, || from.copy())?
    };
    Ok((seconds, 2.0 * (count * DType::F32.size_in_bytes()) as f64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rates_are_numbers() {
        for (seconds, amount) in [large_product(DType::F32, &Device::Cpu).unwrap(), copies(&Device::Cpu).unwrap()] {
            assert!(seconds > 0.0 && seconds.is_finite() && amount > 1e8, "{amount} in {seconds} s");
        }
    }
}
