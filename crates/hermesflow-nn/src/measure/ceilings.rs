//! What a device can do at most, measured now: the rate of a large product, and of copies.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};

use crate::ops;

/// How often each is tried; the best counts.
const TRIES: usize = 9;

/// The best seconds of several tries, the device's work included; a first one is not counted.
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

/// Seconds of `x Wᵀ` with `W` in this type, the best of nine, and its multiplications and additions: about what this
/// device can do. On a CPU `x [1024, 2048]`, `W [4096, 2048]`; on a GPU, which such a product does not fill, 8192 each.
///
/// # Errors
/// When the type has no product.
pub fn large_product(dtype: DType, device: &Device) -> Result<(f64, f64)> {
    let (rows, input, out) = if device.is_cpu() { (1024, 2048, 4096) } else { (8192, 8192, 8192) };
    let factor = |rows| Tensor::randn(0f32, 1.0, (rows, input), device);
    let (x, weight) = (factor(rows)?, factor(out)?.to_dtype(dtype)?);
    // On a GPU products are of operands in one type; narrowing one is not part of a product.
    let x = if device.is_cpu() { x } else { x.to_dtype(dtype)? };
    let seconds = best(device, || ops::linear(&x, &weight, None))?;
    Ok((seconds, 2.0 * (rows * input * out) as f64))
}

/// Seconds of a copy within the device's memory, the best of nine, and the bytes that it reads and writes.
///
/// # Errors
/// When memory runs out.
pub fn copies(device: &Device) -> Result<(f64, f64)> {
    let count: usize = if device.is_cpu() { 1 << 26 } else { 1 << 29 };
    let from = Tensor::zeros(count, DType::F32, device)?;
    let seconds = if device.is_cpu() {
        // Into memory that is there: the first touch of a page is no copy.
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
