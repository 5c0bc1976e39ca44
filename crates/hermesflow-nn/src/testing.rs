//! What the tests of operators share: random tensors, and the comparison of an operator with the same computation by candle's basic
//! operators.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};

static SEED: AtomicU64 = AtomicU64::new(1);

/// Independent numbers of mean 0 and variance 1.
pub(crate) fn normal(shape: &[usize]) -> Tensor {
    normal_of(SEED.fetch_add(1, Ordering::Relaxed), shape)
}

/// [`normal`] with a seed, so that the numbers do not depend on what other tests drew: for tests that rounding decides.
pub(crate) fn normal_of(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let n = shape.iter().product();
    let one = |rng: &mut rand_chacha::ChaCha8Rng| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
    let data: Vec<f32> = (0..n).map(|_| one(&mut rng)).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Both forms give the same values within 1e-5 and the same gradients within
/// 1e-4 (relative to the size of the numbers), and every argument gets one.
pub(crate) fn agree(
    args: &[Tensor],
    fused: impl Fn(&[Var]) -> Result<Tensor>,
    plain: impl Fn(&[Var]) -> Result<Tensor>,
) {
    let vars: Vec<Var> = args.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let (ours, theirs) = (fused(&vars).unwrap(), plain(&vars).unwrap());
    assert_eq!(ours.dims(), theirs.dims());
    close(&ours, &theirs, 1e-5, "values");
    let weights = normal(ours.dims());
    let backward = |y: &Tensor| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let (ours, theirs) = (backward(&ours), backward(&theirs));
    for (i, var) in vars.iter().enumerate() {
        let ours = ours.get(var).unwrap_or_else(|| panic!("argument {i} has no gradient"));
        close(ours, theirs.get(var).unwrap(), 1e-4, &format!("gradient {i}"));
    }
}

/// Whether the CPU's kernels run. Under `HERMESFLOW_CPU=plain` they do not, and a test leaves out what only they promise.
pub(crate) fn kernels_run(promise: &str) -> bool {
    if super::simd::plain() {
        eprintln!("left out without the CPU's kernels: {promise}");
    }
    !super::simd::plain()
}

/// Largest difference within `tolerance * (1 + largest value)`.
pub(crate) fn close(ours: &Tensor, theirs: &Tensor, tolerance: f32, what: &str) {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (ours, theirs) = (flat(ours), flat(theirs));
    let size = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        let ok = (a - b).abs() <= tolerance * (1.0 + size);
        assert!(ok, "{what}: element {i} is {a}, plain candle says {b}");
    }
}

/// The values of an operator and then the gradients of all its arguments, summed with fixed weights; every argument
/// must get one.
pub(crate) fn collected(args: &[Tensor], form: impl Fn(&[Var]) -> Result<Tensor>) -> Vec<Tensor> {
    let vars: Vec<Var> = args.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let y = form(&vars).unwrap();
    let count = y.elem_count();
    let weights: Vec<f32> = (0..count).map(|at| ((at * 7 % 23) as f32 - 11.0) / 11.0).collect();
    let weights = Tensor::from_vec(weights, y.shape(), y.device()).unwrap();
    let found = crate::gradients::backward(&(&y * weights).unwrap().sum_all().unwrap()).unwrap();
    let gradient =
        |(at, var): (usize, &Var)| found.get(var).unwrap_or_else(|| panic!("argument {at} has no gradient")).detach();
    std::iter::once(y.detach()).chain(vars.iter().enumerate().map(gradient)).collect()
}

/// The largest difference, relative to the largest number.
pub(crate) fn worst(ours: &Tensor, plain: &Tensor) -> f32 {
    assert_eq!(ours.dims(), plain.dims());
    let largest = |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    largest(&(ours - plain).unwrap()) / largest(plain).max(1e-3)
}
