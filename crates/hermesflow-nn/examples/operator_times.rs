//! Times the fused operators against candle's plain ones, alternating in one
//! run, and prints medians:
//! `cargo run --release -p hermesflow-nn --example operator_times [part of a name]`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use hermesflow_nn::ops::{self, Segment};

/// The allocator of the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 15;

fn main() -> Result<()> {
    println!("milliseconds, median of {ROUNDS} alternating rounds; forward, then forward and backward");
    println!("{:38} {:>9} {:>9} {:>6} | {:>9} {:>9} {:>6}", "", "fused", "candle", "ratio", "fused", "candle", "ratio");
    for (name, n, h) in [("scenes", 3200, 256), ("show-o", 387, 2048)] {
        dense(name, n, h)?;
    }
    for (name, count, length, heads, d) in
        [("40 causal x 80", 40, 80, 8, 32), ("60 causal x 30", 60, 30, 8, 32), ("1 causal x 387", 1, 387, 32, 64)]
    {
        causal(name, count, length, heads, d)?;
    }
    for replies in [1, 8, 20] {
        decoding(replies, 100, 8, 32)?;
    }
    logits("log_prob 1000 x 1500", 1000, 1500)?;
    logits("log_prob 128 x 58498", 128, 58_498)
}

/// The operators that work token by token.
fn dense(name: &str, n: usize, h: usize) -> Result<()> {
    let (x, wide) = (var(&[n, h])?, var(&[n, 4 * h])?);
    let (w, b, up) = (var(&[h])?, var(&[h])?, var(&[4 * h, h])?);
    let up_bias = var(&[4 * h])?;
    compare(
        &format!("{name}: linear {n} x {h} -> {}", 4 * h),
        || ops::linear(&x, &up, Some(&up_bias)),
        || x.matmul(&up.t()?)?.broadcast_add(&up_bias),
    )?;
    let one = x.narrow(0, 0, 1)?.detach();
    let few = x.narrow(0, 0, 20)?.detach();
    for (rows, x) in [(1, one), (20, few)] {
        compare(
            &format!("{name}: linear {rows} x {h} -> {}", 4 * h),
            || ops::linear(&x, &up, Some(&up_bias)),
            || x.matmul(&up.t()?)?.broadcast_add(&up_bias),
        )?;
    }
    compare(
        &format!("{name}: layer_norm {n} x {h}"),
        || ops::layer_norm(&x, &w, &b, 1e-5),
        || {
            let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
            x.broadcast_div(&deviation)?.broadcast_mul(&w)?.broadcast_add(&b)
        },
    )?;
    compare(&format!("{name}: gelu {n} x {}", 4 * h), || ops::gelu_tanh(&wide), || wide.gelu())?;
    let (heads, half) = (h / 32, 8);
    let (cos, sin) = (random(&[n, half])?, random(&[n, half])?);
    let heads_of = x.reshape((n, heads, 32))?;
    compare(
        &format!("{name}: rotary {n} x {heads} x 32"),
        || ops::rotary(&heads_of, &cos, &sin),
        || {
            let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
            let (a, b) = (heads_of.narrow(2, 0, half)?, heads_of.narrow(2, half, half)?);
            let rest = heads_of.narrow(2, 2 * half, 32 - 2 * half)?;
            let rotated = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let other = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
            Tensor::cat(&[rotated, other, rest], D::Minus1)
        },
    )?;
    let ids: Vec<u32> = (0..n as u32).map(|i| (i * 7919) % 1500).collect();
    let index = Tensor::new(&ids[..], &Device::Cpu)?;
    let table = var(&[1500, h])?;
    compare(
        &format!("{name}: embedding {n} of 1500 x {h}"),
        || ops::embedding(&table, &ids),
        || table.index_select(&index, 0),
    )
}

/// Training: equal causal sequences, so that candle's batch has no padding.
fn causal(name: &str, count: usize, length: usize, heads: usize, d: usize) -> Result<()> {
    let n = count * length;
    let (q, k, v) = (var(&[n, heads, d])?, var(&[n, heads, d])?, var(&[n, heads, d])?);
    let segments: Arc<[Segment]> = (0..count)
        .map(|i| {
            let tokens = i * length..(i + 1) * length;
            Segment::causal(tokens.clone(), tokens)
        })
        .collect();
    let scale = 1.0 / (d as f64).sqrt();
    let mask: Vec<f32> =
        (0..length * length).map(|i| if i % length <= i / length { 0.0 } else { f32::NEG_INFINITY }).collect();
    let mask = Tensor::from_vec(mask, (length, length), &Device::Cpu)?;
    let split = |x: &Tensor| x.reshape((count, length, heads, d))?.transpose(1, 2)?.contiguous();
    compare(
        &format!("attention {name}, {heads} x {d}"),
        || ops::attention(&q, &k, &v, &segments, scale as f32),
        || {
            let scores = (split(&q)?.matmul(&split(&k)?.t()?)? * scale)?.broadcast_add(&mask)?;
            let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
            let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
            weights.matmul(&split(&v)?)?.transpose(1, 2)?.reshape((n, heads * d))
        },
    )
}

/// A decoding step: one new token in each reply, all on one prefix. candle's
/// form is a batch whose cache holds the prefix once for each reply.
fn decoding(replies: usize, prefix: usize, heads: usize, d: usize) -> Result<()> {
    let own = 16;
    let keys = prefix + own;
    let q = random(&[replies, heads, d])?;
    let (k, v) = (random(&[prefix + replies * own, heads, d])?, random(&[prefix + replies * own, heads, d])?);
    let segments: Arc<[Segment]> = (0..replies)
        .map(|i| {
            let own = prefix + i * own..prefix + (i + 1) * own;
            Segment::causal(i..i + 1, own).seeing(0..prefix)
        })
        .collect();
    let (q4, k4) = (random(&[replies, heads, 1, d])?, random(&[replies, heads, keys, d])?);
    compare(
        &format!("decoding {replies} on {prefix}, {heads} x {d}"),
        || ops::attention(&q, &k, &v, &segments, 0.2),
        || {
            let scores = (q4.matmul(&k4.t()?)? * 0.2)?;
            let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
            weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.matmul(&k4)
        },
    )
}

fn logits(name: &str, n: usize, v: usize) -> Result<()> {
    let x = var(&[n, v])?;
    let targets: Vec<u32> = (0..n).map(|i| ((i * 7919) % v) as u32).collect();
    let index = Tensor::new(&targets[..], &Device::Cpu)?.unsqueeze(1)?;
    compare(
        name,
        || ops::log_prob(&x, &targets),
        || {
            let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
            x.gather(&index, D::Minus1)? - x.exp()?.sum_keepdim(D::Minus1)?.log()?
        },
    )
}

/// Alternates the two forms and prints the medians; a form without variables
/// is timed forward only.
fn compare(name: &str, fused: impl Fn() -> Result<Tensor>, plain: impl Fn() -> Result<Tensor>) -> Result<()> {
    if std::env::args().nth(1).is_some_and(|wanted| !name.contains(&wanted)) {
        return Ok(());
    }
    let forms: [&dyn Fn() -> Result<Tensor>; 2] = [&fused, &plain];
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS + 2 {
        for (i, form) in forms.iter().enumerate() {
            let start = Instant::now();
            let y = form()?;
            times[i].push(start.elapsed().as_secs_f64() * 1e3);
            if y.track_op() {
                let weights = y.zeros_like()?;
                let start = Instant::now();
                black_box((form()? * &weights)?.sum_all()?.backward()?);
                times[2 + i].push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    let [a, b, c, d] = times.map(|mut times| {
        times.drain(..times.len().min(2)); // the first rounds warm up
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    });
    print!("{name:38}");
    for (pair, end) in [((a, b), " |"), ((c, d), "\n")] {
        match pair {
            (Some(fused), Some(plain)) => print!(" {fused:9.3} {plain:9.3} {:6.2}{end}", fused / plain),
            _ => print!("{end}"),
        }
    }
    Ok(())
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?.to_dtype(DType::F32)
}

fn var(shape: &[usize]) -> Result<Var> {
    Var::from_tensor(&random(shape)?)
}
