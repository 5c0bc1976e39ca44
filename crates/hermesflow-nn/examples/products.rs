//! The speed of matrix products `x Wᵀ + b` per type of the weight, in GFLOP/s (best and median of alternating rounds):
//! `cargo run --release -p hermesflow-nn --example products`.

use std::hint::black_box;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use hermesflow_nn::ops;

/// The allocator of the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 9;
const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn main() -> Result<()> {
    println!(
        "{:>6} {:>6} {:>6}   {}",
        "rows",
        "in",
        "out",
        TYPES.map(|dtype| format!("{dtype:?} best, median")).join("   ")
    );
    for (input, out) in [(512, 512), (512, 2048), (2048, 2048), (2048, 8192), (8192, 2048), (2048, 58_498)] {
        for rows in [1, 10, 80, 387, 2052] {
            if rows * input * out > 50_000_000_000 {
                continue;
            }
            let x = Tensor::randn(0f32, 1.0, (rows, input), &Device::Cpu)?;
            let bias = Tensor::randn(0f32, 1.0, out, &Device::Cpu)?;
            let wide = Tensor::randn(0f32, 0.02, (out, input), &Device::Cpu)?;
            let weights = TYPES.map(|dtype| wide.to_dtype(dtype));
            let mut times = [const { Vec::new() }; 3];
            let operations = 2.0 * (rows * input * out) as f64;
            // Short products many times, so that a clock can tell.
            let often = (1e9 / operations).ceil().min(200.0) as usize;
            for _ in 0..ROUNDS {
                for (times, weight) in times.iter_mut().zip(&weights) {
                    let weight = weight.as_ref().map_err(|e| candle_core::Error::Msg(e.to_string()))?;
                    let started = Instant::now();
                    for _ in 0..often {
                        black_box(ops::linear(&x, weight, Some(&bias))?);
                    }
                    times.push(started.elapsed().as_secs_f64() / often as f64);
                }
            }
            let rates = times.map(|mut times| {
                times.sort_by(f64::total_cmp);
                format!("{:>8.0} {:>8.0}", operations / times[0] / 1e9, operations / times[ROUNDS / 2] / 1e9)
            });
            println!("{rows:>6} {input:>6} {out:>6}   {}", rates.join("   "));
        }
    }
    Ok(())
}
