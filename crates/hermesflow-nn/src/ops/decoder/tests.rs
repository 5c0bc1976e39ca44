#![allow(clippy::unwrap_used)]
use super::*;
use crate::matmul::training::Products;
use crate::ops;
use crate::ops::affine::Affine;
use crate::testing::{collected, kernels_run, normal_of, worst};
use candle_core::Var;

const HEADS: usize = 3;
const WIDTH: usize = 48;
const EPS: f64 = 1e-5;

/// The input and the weights of a block, in the order of [`block`].
fn args(n: usize) -> Vec<Tensor> {
    let seed = std::cell::Cell::new(1000 * n as u64);
    let normal = |shape: &[usize]| {
        seed.set(seed.get() + 1);
        normal_of(seed.get(), shape)
    };
    let mut args = vec![normal(&[n, WIDTH])];
    let d = WIDTH / HEADS;
    let affine = |out: usize, input: usize| (normal(&[out, input]) * 0.2).unwrap();
    let norm = |d: usize| ((normal(&[d]) * 0.3).unwrap() + 1.0).unwrap();
    for (weight, bias) in [
        (norm(WIDTH), WIDTH),
        (affine(WIDTH, WIDTH), WIDTH),
        (affine(WIDTH, WIDTH), WIDTH),
        (affine(WIDTH, WIDTH), WIDTH),
        (affine(WIDTH, WIDTH), WIDTH),
        (norm(d), d),
        (norm(d), d),
        (affine(2 * WIDTH, WIDTH), 2 * WIDTH),
        (affine(WIDTH, 2 * WIDTH), WIDTH),
    ] {
        args.extend([weight, normal(&[bias])]);
    }
    args
}

fn block(args: &[Var], products: Products) -> DecoderBlock {
    let map =
        |at: usize| Affine { weight: args[2 * at + 1].as_tensor().clone(), bias: args[2 * at + 2].as_tensor().clone() };
    DecoderBlock {
        norm: map(0),
        query: map(1),
        key: map(2),
        value: map(3),
        dense: map(4),
        query_norm: map(5),
        key_norm: map(6),
        up: map(7),
        down: map(8),
        heads: HEADS,
        eps: EPS,
        products,
        recompute: false,
    }
}

/// The same, operator by operator.
fn plain(args: &[Var], (cos, sin): (&Tensor, &Tensor), segments: &Arc<[Segment]>) -> Result<Tensor> {
    let (x, n, d) = (args[0].as_tensor(), args[0].dim(0)?, WIDTH / HEADS);
    let block = block(args, Products::F32);
    let norm = |map: &Affine, x: &Tensor| ops::layer_norm(x, &map.weight, &map.bias, EPS);
    let affine = |map: &Affine, x: &Tensor| ops::linear(x, &map.weight, Some(&map.bias));
    let normed = norm(&block.norm, x)?;
    let split = |map: &Affine| affine(map, &normed)?.reshape((n, HEADS, d));
    let query = ops::rotary(&norm(&block.query_norm, &split(&block.query)?)?, cos, sin)?;
    let key = ops::rotary(&norm(&block.key_norm, &split(&block.key)?)?, cos, sin)?;
    let seen = ops::attention(&query, &key, &split(&block.value)?, segments, 1.0 / (d as f32).sqrt())?;
    let mlp = affine(&block.down, &ops::gelu_tanh(&affine(&block.up, &normed)?)?)?;
    (x + affine(&block.dense, &seen)?)? + mlp
}

fn setting(n: usize) -> (Tensor, Tensor, Arc<[Segment]>) {
    let first = n / 3;
    let segments = [Segment::block(0..first, 0..first), Segment::causal(first..n, first..n).seeing(0..first)];
    (normal_of(n as u64, &[n, 4]), normal_of(1 + n as u64, &[n, 4]), segments.into())
}

/// A way to compute a block.
type Form = fn(&Tensor, &DecoderBlock, (&Tensor, &Tensor), &Arc<[Segment]>) -> Result<Tensor>;

#[test]
fn agrees_with_the_operators_it_is_made_of() {
    for n in [3, 250] {
        let (args, (cos, sin, segments)) = (args(n), setting(n));
        let plain = collected(&args, |args| plain(args, (&cos, &sin), &segments));
        // A composition's attention has its operands in bf16, too.
        let rounding = if kernels_run("attention in f32 between products in bf16") { 5e-2 } else { 2e-1 };
        for (products, tolerance) in [(Products::F32, 2e-5), (Products::Bf16, rounding)] {
            let form = |args: &[Var]| decoder_block(&args[0], &block(args, products), (&cos, &sin), &segments);
            let ours = collected(&args, form);
            for (at, (ours, plain)) in ours.iter().zip(&plain).enumerate() {
                let worst = worst(ours, plain);
                assert!(worst < tolerance, "{products:?} {n}: {worst} in {at} (values, input, weights in order)");
            }
        }
    }
}

#[test]
fn the_composition_agrees_with_the_kernels() {
    for n in [3, 250] {
        let (args, (cos, sin, segments)) = (args(n), setting(n));
        // With operands in bf16 the composition's attention is, too; the kernels' is in f32.
        for (products, tolerance) in [(Products::F32, 2e-5), (Products::Bf16, 2e-1)] {
            let ours = collected(&args, |a| any_device::block(&a[0], &block(a, products), (&cos, &sin), &segments));
            let kernels = collected(&args, |a| decoder_block(&a[0], &block(a, products), (&cos, &sin), &segments));
            for (at, (ours, kernels)) in ours.iter().zip(&kernels).enumerate() {
                let worst = worst(ours, kernels);
                assert!(worst < tolerance, "{products:?} {n}: {worst} in {at} (values, input, weights in order)");
            }
        }
    }
}

#[test]
fn what_is_computed_again_gives_the_same_gradients() {
    let (args, (cos, sin, segments)) = (args(70), setting(70));
    for products in [Products::F32, Products::Bf16] {
        let again = |args: &[Var]| DecoderBlock { recompute: true, ..block(args, products) };
        let forms: [Form; 2] = [decoder_block, any_device::block];
        for form in forms {
            let kept = collected(&args, |a| form(&a[0], &block(a, products), (&cos, &sin), &segments));
            let again = collected(&args, |a| form(&a[0], &again(a), (&cos, &sin), &segments));
            for (kept, again) in kept.iter().zip(&again) {
                assert_eq!(worst(kept, again), 0.0, "{products:?}");
            }
        }
    }
}

#[test]
fn weights_that_stand_twice_get_the_sum_of_their_gradients() {
    let (args, (cos, sin, segments)) = (args(9), setting(9));
    let once = |args: &[Var]| decoder_block(&args[0], &block(args, Products::F32), (&cos, &sin), &segments);
    let sum = |args: &[Var]| once(args)? + once(args)?;
    let (one, two) = (collected(&args, once), collected(&args, sum));
    for (one, two) in one.iter().zip(&two).skip(1) {
        assert!(worst(two, &(one * 2.0).unwrap()) < 1e-5);
    }
}

#[test]
fn a_cut_is_an_error() {
    let (args, (cos, sin, segments)) = (args(4), setting(4));
    let vars: Vec<Var> = args.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let y = decoder_block(&vars[0], &block(&vars, Products::F32), (&cos, &sin), &segments).unwrap();
    assert!(y.sum_all().unwrap().backward().is_err(), "nobody collects");
    assert!(decoder_block(&args[0], &block(&vars, Products::F32), (&cos, &sin), &segments).is_err());
}

#[test]
fn without_a_graph_the_values_are_the_same() {
    let (args, (cos, sin, segments)) = (args(40), setting(40));
    let vars: Vec<Var> = args.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let mut frozen = block(&vars, Products::Bf16);
    let trained = decoder_block(&vars[0], &frozen, (&cos, &sin), &segments).unwrap();
    let half = |map: &mut Affine| {
        map.weight = map.weight.detach().to_dtype(candle_core::DType::BF16).unwrap();
        map.bias = map.bias.detach();
    };
    [&mut frozen.query, &mut frozen.key, &mut frozen.value, &mut frozen.dense, &mut frozen.up, &mut frozen.down]
        .into_iter()
        .for_each(half);
    let held = decoder_block(&args[0], &frozen, (&cos, &sin), &segments).unwrap();
    assert_eq!(worst(&held, &trained), 0.0, "a weight held in bf16 is the one that is rounded to it");
}
