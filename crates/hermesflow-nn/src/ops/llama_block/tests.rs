#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{collected, normal_of, worst};
use candle_core::Var;

const HEADS: usize = 4;
const WIDTH: usize = 48;
const EPS: f64 = 1e-5;

/// The input and the weights of a block, in the order of [`LlamaBlock`]'s fields.
fn args(n: usize, key_heads: usize) -> Vec<Tensor> {
    let seed = std::cell::Cell::new((1000 * n + key_heads) as u64);
    let normal = |shape: &[usize]| {
        seed.set(seed.get() + 1);
        normal_of(seed.get(), shape)
    };
    let matrix = |out: usize, input: usize| (normal(&[out, input]) * 0.2).unwrap();
    let norm = || ((normal(&[WIDTH]) * 0.3).unwrap() + 1.0).unwrap();
    let keys = key_heads * WIDTH / HEADS;
    vec![
        normal(&[n, WIDTH]),
        norm(),
        matrix(WIDTH, WIDTH),
        matrix(keys, WIDTH),
        matrix(keys, WIDTH),
        matrix(WIDTH, WIDTH),
        norm(),
        matrix(80, WIDTH),
        matrix(80, WIDTH),
        matrix(WIDTH, 80),
    ]
}

fn block(args: &[Var], key_heads: usize, products: Products) -> LlamaBlock {
    let weight = |at: usize| args[at].as_tensor().clone();
    LlamaBlock {
        input_norm: weight(1),
        query: weight(2),
        key: weight(3),
        value: weight(4),
        output: weight(5),
        post_norm: weight(6),
        gate: weight(7),
        up: weight(8),
        down: weight(9),
        heads: HEADS,
        key_heads,
        eps: EPS,
        products,
        recompute: false,
    }
}

fn setting(n: usize) -> (Tensor, Tensor, Arc<[Segment]>) {
    let (first, half) = (n / 3, WIDTH / HEADS / 2);
    let segments = [Segment::causal(0..first, 0..first), Segment::causal(first..n, first..n).seeing(0..first)];
    (normal_of(n as u64, &[n, half]), normal_of(1 + n as u64, &[n, half]), segments.into())
}

#[test]
fn agrees_with_the_operators_it_is_made_of() {
    for (n, key_heads) in [(3, 4), (250, 4), (250, 2), (40, 1)] {
        let (args, (cos, sin, segments)) = (args(n, key_heads), setting(n));
        let plain = collected(&args, |args| {
            composed(&args[0], &block(args, key_heads, Products::F32), (&cos, &sin), &segments)
        });
        for (products, tolerance) in [(Products::F32, 2e-5), (Products::Bf16, 8e-2)] {
            let ours = collected(&args, |args| {
                llama_block(&args[0], &block(args, key_heads, products), (&cos, &sin), &segments)
            });
            for (at, (ours, plain)) in ours.iter().zip(&plain).enumerate() {
                let worst = worst(ours, plain);
                assert!(worst < tolerance, "{products:?} {n} {key_heads}: {worst} in {at} (values, then gradients)");
            }
        }
    }
}

#[test]
fn computing_again_gives_the_same_bits() {
    let (args, (cos, sin, segments)) = (args(70, 2), setting(70));
    for products in [Products::F32, Products::Bf16] {
        let form = |recompute| {
            collected(&args, |args| {
                let block = LlamaBlock { recompute, ..block(args, 2, products) };
                llama_block(&args[0], &block, (&cos, &sin), &segments)
            })
        };
        for (kept, again) in form(false).iter().zip(form(true)) {
            assert_eq!(worst(&again, kept), 0.0, "{products:?}");
        }
    }
}

#[test]
fn values_do_not_depend_on_whether_a_backward_pass_follows() {
    let (args, (cos, sin, segments)) = (args(70, 2), setting(70));
    let vars: Vec<Var> = args.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let mut frozen = block(&vars, 2, Products::F32);
    let trained = llama_block(&vars[0], &frozen, (&cos, &sin), &segments).unwrap();
    for (weight, values) in [
        (&mut frozen.input_norm, &args[1]),
        (&mut frozen.query, &args[2]),
        (&mut frozen.key, &args[3]),
        (&mut frozen.value, &args[4]),
        (&mut frozen.output, &args[5]),
        (&mut frozen.post_norm, &args[6]),
        (&mut frozen.gate, &args[7]),
        (&mut frozen.up, &args[8]),
        (&mut frozen.down, &args[9]),
    ] {
        *weight = values.clone();
    }
    let alone = llama_block(&args[0], &frozen, (&cos, &sin), &segments).unwrap();
    assert_eq!(worst(&alone, &trained.detach()), 0.0);
    assert!(!alone.track_op());
}

#[test]
fn gradients_that_would_be_lost_are_errors() {
    let (args, (cos, sin, segments)) = (args(9, 4), setting(9));
    let vars: Vec<Var> = args.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let block = block(&vars, 4, Products::F32);
    assert!(llama_block(&args[0], &block, (&cos, &sin), &segments).is_err(), "what it is applied to has no graph");
    if uses_kernels(args[0].device()) {
        let y = llama_block(&vars[0], &block, (&cos, &sin), &segments).unwrap().sum_all().unwrap();
        assert!(y.backward().unwrap_err().to_string().contains("gradients::backward"));
    }
    let odd = LlamaBlock { key_heads: 3, ..block };
    assert!(llama_block(&vars[0], &odd, (&cos, &sin), &segments).is_err());
}
