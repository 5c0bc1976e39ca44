//! The kernels for NVIDIA GPUs beside the CPU's: `cargo test --release -p hermesflow-nn --features cuda --test gpu`, where a GPU is
//! at hand; elsewhere every test says that it was left out.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use hermesflow_nn::device::DeviceName;
use hermesflow_nn::gradients;
use hermesflow_nn::ops::{self, Affine, Cached, DecoderBlock, Products, Segment};
use hermesflow_nn::optim::{AdamWConfig, adamw_step, global_norm};
use rand::{Rng, SeedableRng};

const EPS: f64 = 1e-5;

fn gpu() -> Option<Device> {
    let device = DeviceName::Cuda(0).open();
    if let Err(error) = &device {
        eprintln!("left out: {error}");
    }
    device.ok()
}

/// Numbers of mean 0 and variance 1, on the CPU.
fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut one = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| one()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// `‖a - b‖ / ‖b‖`; what is no number is infinitely far.
fn apart(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let square = |x: f32| f64::from(x) * f64::from(x);
    let (difference, size) = a.iter().zip(&b).fold((0.0, 0.0), |(d, s), (a, b)| (d + square(a - b), s + square(*b)));
    let far = (difference / size.max(1e-12)).sqrt();
    if far.is_nan() { f64::INFINITY } else { far }
}

struct Sizes {
    heads: usize,
    d: usize,
    inner: usize,
}

impl Sizes {
    fn width(&self) -> usize {
        self.heads * self.d
    }

    /// Weights and biases of a block, in the order of [`block`].
    fn weights(&self) -> Vec<Tensor> {
        let (width, inner, d) = (self.width(), self.inner, self.d);
        let affine =
            |seed: u64, out: usize, input: usize| (normal(seed, &[out, input]) / (input as f64).sqrt()).unwrap();
        let norm = |seed: u64, d: usize| ((normal(seed, &[d]) * 0.3).unwrap() + 1.0).unwrap();
        let matrices = [
            (norm(1, width), width),
            (affine(2, width, width), width),
            (affine(3, width, width), width),
            (affine(4, width, width), width),
            (affine(5, width, width), width),
            (norm(6, d), d),
            (norm(7, d), d),
            (affine(8, inner, width), inner),
            (affine(9, width, inner), width),
        ];
        let bias = |(seed, (weight, width)): (u64, (Tensor, usize))| [weight, (normal(seed, &[width]) * 0.3).unwrap()];
        (20..).zip(matrices).flat_map(bias).collect()
    }

    fn block(&self, weights: &[Tensor], products: Products) -> DecoderBlock {
        let map = |at: usize| Affine { weight: weights[2 * at].clone(), bias: weights[2 * at + 1].clone() };
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
            heads: self.heads,
            eps: EPS,
            products,
            recompute: false,
        }
    }

    fn tables(&self, positions: impl Iterator<Item = usize>) -> (Tensor, Tensor) {
        let half = self.d / 4;
        let angles: Vec<f32> = positions
            .flat_map(|position| (0..half).map(move |i| position as f32 * 100f32.powf(-(i as f32) / half as f32)))
            .collect();
        let angles = Tensor::from_vec(angles.clone(), (angles.len() / half, half), &Device::Cpu).unwrap();
        (angles.cos().unwrap(), angles.sin().unwrap())
    }
}

const SIZES: [Sizes; 4] = [
    Sizes { heads: 3, d: 16, inner: 96 },
    Sizes { heads: 4, d: 32, inner: 256 },
    Sizes { heads: 5, d: 64, inner: 640 },
    Sizes { heads: 2, d: 128, inner: 512 },
];

fn to(device: &Device, tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|tensor| tensor.to_device(device).unwrap()).collect()
}

/// A text that two pictures and a reply see, the reply a picture too, and a text of its own.
fn segments() -> (Arc<[Segment]>, usize) {
    let segments = [
        Segment::causal(0..70, 0..70),
        Segment::block(70..329, 70..329).seeing(0..70),
        Segment::block(329..400, 329..400).seeing(0..70),
        Segment::causal(400..433, 400..433).seeing(70..329).seeing(0..3),
        Segment::causal(433..434, 433..434),
    ];
    (segments.into(), 434)
}

#[test]
fn a_trained_block_and_its_gradients_are_those_of_f32() {
    let Some(device) = gpu() else { return };
    let (segments, n) = segments();
    for sizes in SIZES {
        let (x, grad) = (normal(100, &[n, sizes.width()]), normal(101, &[n, sizes.width()]));
        let tables = sizes.tables(0..n);
        let run = |device: &Device, products: Products, recompute: bool| -> Vec<Tensor> {
            let vars: Vec<Var> = [std::slice::from_ref(&x), sizes.weights().as_slice()]
                .concat()
                .iter()
                .map(|tensor| Var::from_tensor(&tensor.to_device(device).unwrap()).unwrap())
                .collect();
            let weights: Vec<Tensor> = vars[1..].iter().map(|var| var.as_tensor().clone()).collect();
            let block = DecoderBlock { recompute, ..sizes.block(&weights, products) };
            let (cos, sin) = (tables.0.to_device(device).unwrap(), tables.1.to_device(device).unwrap());
            let y = ops::decoder_block(vars[0].as_tensor(), &block, (&cos, &sin), &segments).unwrap();
            let found =
                gradients::backward(&(&y * &grad.to_device(device).unwrap()).unwrap().sum_all().unwrap()).unwrap();
            let change = (y.detach() - vars[0].as_detached_tensor()).unwrap();
            [change].into_iter().chain(vars.iter().map(|var| found.get(var).unwrap().clone())).collect()
        };
        let expected = run(&Device::Cpu, Products::F32, false);
        let ours = run(&device, Products::Bf16, false);
        let errors: Vec<f64> = ours.iter().zip(&expected).map(|(ours, expected)| apart(ours, expected)).collect();
        eprintln!("heads of {}: {errors:.4?}", sizes.d);
        assert!(errors[0] < 1e-2, "values {errors:?}");
        assert!(errors.iter().all(|error| *error < 3e-2), "gradients {errors:?}");
        for (again, recompute) in
            [(run(&device, Products::Bf16, false), false), (run(&device, Products::Bf16, true), true)]
        {
            for (ours, again) in ours.iter().zip(&again) {
                assert_eq!(values(ours), values(again), "the same bits, recompute {recompute}");
            }
        }
        let plain = run(&device, Products::F32, false);
        let errors: Vec<f64> = plain.iter().zip(&expected).map(|(ours, expected)| apart(ours, expected)).collect();
        assert!(errors.iter().all(|error| *error < 1e-4), "in f32 {errors:?}");
    }
}

#[test]
fn a_frozen_block_gives_the_same_however_its_keys_are_kept() {
    let Some(device) = gpu() else { return };
    let (segments, n) = segments();
    for sizes in SIZES {
        let x = normal(200, &[n, sizes.width()]);
        let weights = sizes.weights();
        let (cos, sin) = sizes.tables(0..n);
        let block = sizes.block(&weights, Products::F32);
        let expected = (ops::decoder_block(&x, &block, (&cos, &sin), &segments).unwrap() - &x).unwrap();
        let narrow = |tensor: &Tensor| match tensor.rank() {
            2 => tensor.to_dtype(DType::BF16).unwrap(),
            _ => tensor.clone(),
        };
        let there: Vec<Tensor> = to(&device, &weights.iter().map(narrow).collect::<Vec<_>>());
        let block = sizes.block(&there, Products::F32);
        let (x, cos, sin) =
            (x.to_device(&device).unwrap(), cos.to_device(&device).unwrap(), sin.to_device(&device).unwrap());
        assert!(ops::takes_frozen_block(&x, &block, &cos));
        let run = |rows: std::ops::Range<usize>, segments: Vec<Segment>, cached: Cached| -> Tensor {
            let part = |all: &Tensor| all.narrow(0, rows.start, rows.len()).unwrap().contiguous().unwrap();
            let y = part(&x).copy().unwrap();
            ops::frozen_block(&y, &block, (&part(&cos), &part(&sin)), &segments.into(), cached).unwrap();
            (y - part(&x)).unwrap().to_device(&Device::Cpu).unwrap()
        };
        let near = |ours: &Tensor, rows: std::ops::Range<usize>, what: &str| {
            let error = apart(ours, &expected.narrow(0, rows.start, rows.len()).unwrap());
            eprintln!("heads of {}, {what}: {error:.4}", sizes.d);
            assert!(error < 1e-2, "{what}: {error}");
        };
        let whole = run(0..n, segments.to_vec(), Cached::Nothing);
        near(&whole, 0..n, "whole");
        let cache = || {
            let empty = || Tensor::zeros((n + 30, sizes.heads, sizes.d), DType::BF16, &device).unwrap();
            (empty(), empty())
        };
        // The text first, then the pictures, then the reply a few tokens at a time and the last ones one by one, in rows apart.
        let (keys, values_of) = cache();
        let first = |first| Cached::In { keys: &keys, values: &values_of, rows: None, first };
        near(&run(0..70, vec![segments[0].clone()], first(0)), 0..70, "text");
        let behind = |segment: &Segment, start: usize| Segment {
            queries: segment.queries.start - start..segment.queries.end - start,
            ..segment.clone()
        };
        let pictures: Vec<Segment> = segments[1..3].iter().map(|segment| behind(segment, 70)).collect();
        let before = (keys.narrow(0, 0, 70).unwrap(), values_of.narrow(0, 0, 70).unwrap());
        let kept = Cached::Behind { keys: &before.0, values: &before.1 };
        near(&run(70..400, pictures.clone(), kept), 70..400, "pictures behind the cache");
        near(&run(70..400, pictures, first(70)), 70..400, "pictures in the cache");
        let reply = &segments[3];
        let some = Segment { queries: 0..20, own: 400..420, ..reply.clone() };
        near(&run(400..420, vec![some], first(400)), 400..420, "a part of a reply");
        for token in 420..433 {
            // Row 400 + 2 (token - 400) - 20 for what comes one by one: not where it would stand anyway.
            let row = |token: usize| (n + token - 420) as u32;
            let rows = Tensor::new(&[row(token)], &device).unwrap();
            let mut segment = Segment { queries: 0..1, own: 400..420, ..reply.clone() };
            segment.sees.push(400..420);
            segment.own = row(420) as usize..row(token) as usize + 1;
            let cached = Cached::In { keys: &keys, values: &values_of, rows: Some(&rows), first: 0 };
            near(&run(token..token + 1, vec![segment], cached), token..token + 1, "a token");
        }
    }
}

#[test]
fn many_replies_at_once_are_as_each_alone() {
    let Some(device) = gpu() else { return };
    let sizes = &SIZES[2];
    let narrow =
        |tensor: &Tensor| if tensor.rank() == 2 { tensor.to_dtype(DType::BF16).unwrap() } else { tensor.clone() };
    let weights: Vec<Tensor> = to(&device, &sizes.weights().iter().map(narrow).collect::<Vec<_>>());
    let block = sizes.block(&weights, Products::F32);
    let rows = |seed: u64, n: usize| {
        let x = normal(seed, &[n, sizes.heads, sizes.d]).to_dtype(DType::BF16).unwrap();
        x.to_device(&device).unwrap()
    };
    let (keys, values_of) = (rows(300, 900), rows(301, 900));
    // Three pictures with questions, nine replies of different lengths.
    let pictures = [0..250, 250..253, 260..600];
    let replies: Vec<Segment> = (0..9)
        .map(|at| Segment {
            queries: at..at + 1,
            sees: vec![pictures[at / 3].clone(), 600 + 20 * (at / 3)..600 + 20 * (at / 3) + 5],
            own: 700 + 20 * at..700 + 20 * at + at + 1,
            causal: true,
        })
        .collect();
    let x = normal(302, &[9, sizes.width()]).to_device(&device).unwrap();
    let (cos, sin) = sizes.tables(300..309);
    let (cos, sin) = (cos.to_device(&device).unwrap(), sin.to_device(&device).unwrap());
    let run = |which: std::ops::Range<usize>| {
        let part = |all: &Tensor| all.narrow(0, which.start, which.len()).unwrap().contiguous().unwrap();
        let (y, keys, values_of) = (part(&x).copy().unwrap(), keys.copy().unwrap(), values_of.copy().unwrap());
        let segments = replies[which.clone()].iter().map(|segment| Segment {
            queries: segment.queries.start - which.start..segment.queries.end - which.start,
            ..segment.clone()
        });
        let last: Vec<u32> = replies[which.clone()].iter().map(|segment| segment.own.end as u32 - 1).collect();
        let rows = Tensor::new(last, &device).unwrap();
        let cached = Cached::In { keys: &keys, values: &values_of, rows: Some(&rows), first: 0 };
        ops::frozen_block(&y, &block, (&part(&cos), &part(&sin)), &segments.collect(), cached).unwrap();
        values(&y)
    };
    let together = run(0..9);
    for (at, ours) in together.chunks(sizes.width()).enumerate() {
        let alone = run(at..at + 1);
        let ours = Tensor::new(ours, &Device::Cpu).unwrap();
        let error = apart(&ours, &Tensor::new(alone, &Device::Cpu).unwrap());
        assert!(error < 3e-3, "reply {at}: {error}");
    }
}

#[test]
fn the_likeliest_columns_are_those_of_the_host() {
    let Some(device) = gpu() else { return };
    for (n, v) in [(1, 9), (10, 58_498), (40, 3000)] {
        // Many equal ones.
        let logits = ((normal(400 + v as u64, &[n, v]) * 4.0).unwrap().round().unwrap() / 2.0).unwrap();
        let (here, there) =
            (ops::likeliest(&logits, 5).unwrap(), ops::likeliest(&logits.to_device(&device).unwrap(), 5).unwrap());
        for (here, there) in here.iter().zip(&there) {
            assert_eq!(here.columns, there.columns);
            assert!((here.log_sum - there.log_sum).abs() < 1e-4 * here.log_sum.abs().max(1.0));
        }
    }
    let broken = Tensor::new(&[[0f32, f32::NAN, 1.0]], &device).unwrap();
    assert!(!ops::likeliest(&broken, 1).unwrap()[0].log_sum.is_finite(), "NaN is no logit");
}

#[test]
fn drawn_codes_are_those_of_the_host() {
    let Some(device) = gpu() else { return };
    let logits = (normal(500, &[3000, 8192]) * 3.0).unwrap();
    let marks: Vec<f32> = (0..3000).map(|row| (row as f32 * 0.618_034).fract()).collect();
    let here = ops::draw_rows(&logits, &marks).unwrap();
    let there = ops::draw_rows(&logits.to_device(&device).unwrap(), &marks).unwrap();
    let others = |here: &[(u32, f32)], there: &[(u32, f32)]| {
        let same = |(a, b): &(&(u32, f32), &(u32, f32))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5 * (1.0 + b.1);
        here.iter().zip(there).filter(|pair| !same(pair)).count()
    };
    // A mark may lie on the edge of two codes.
    assert!(others(&here, &there) <= 6, "{} of 3000 draws are others", others(&here, &there));
    let uncond = normal(501, &[3000, 8192]);
    let here = ops::draw_guided(&logits, &uncond, 2.0, &marks).unwrap();
    let there = ops::draw_guided(&logits.to_device(&device).unwrap(), &uncond.to_device(&device).unwrap(), 2.0, &marks)
        .unwrap();
    assert!(others(&here, &there) <= 6, "{} of 3000 guided draws are others", others(&here, &there));
    let hidden =
        Tensor::new(&[[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]; 4], &device).unwrap();
    let drawn = ops::draw_rows(&hidden, &[0.0, 0.3, 0.5, 0.999_999_94]).unwrap();
    assert_eq!(
        drawn.iter().map(|(code, _)| *code).collect::<Vec<_>>(),
        [1, 1, 3, 3],
        "what has no weight is never drawn"
    );
    let broken = Tensor::new(&[[0f32, f32::NAN]], &device).unwrap();
    assert!(ops::draw_rows(&broken, &[0.5]).unwrap()[0].1.is_nan(), "NaN is no logit");
}

#[test]
fn steps_of_adamw_and_norms_are_those_of_the_host() {
    let Some(device) = gpu() else { return };
    let config = AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    let (param, grad) = (normal(600, &[1001, 77]), normal(601, &[1001, 77]));
    let run = |device: &Device| {
        let [param, first, second] = [param.clone(), param.zeros_like().unwrap(), param.zeros_like().unwrap()]
            .map(|tensor| Var::from_tensor(&tensor.to_device(device).unwrap()).unwrap());
        let grad = grad.to_device(device).unwrap();
        for step in 1..4 {
            adamw_step(&param, &grad, &first, &second, 1e-2, 0.01, &config, step, 0.5).unwrap();
        }
        let norm = global_norm(&[&grad, param.as_tensor()]).unwrap();
        (param.as_detached_tensor(), second.as_detached_tensor(), norm)
    };
    let (here, there) = (run(&Device::Cpu), run(&device));
    assert!(apart(&there.0, &here.0) < 1e-6 && apart(&there.1, &here.1) < 1e-6);
    assert!((here.2 - there.2).abs() < 1e-6 * here.2, "{} {}", here.2, there.2);
}

#[test]
fn the_head_and_its_gradients_are_those_of_f32() {
    let Some(device) = gpu() else { return };
    // More rows than go through at a time, an odd vocabulary.
    for (n, h, v) in [(1500, 64, 999), (3, 128, 5000)] {
        let targets: Vec<u32> = (0..n as u32).map(|row| row * 37 % v as u32).collect();
        let args = [normal(700, &[n, h]), (normal(701, &[v, h]) * 0.2).unwrap(), normal(702, &[v])];
        let grad = normal(703, &[n]);
        let run = |device: &Device, products: Products| -> Vec<Tensor> {
            let vars: Vec<Var> =
                args.iter().map(|tensor| Var::from_tensor(&tensor.to_device(device).unwrap()).unwrap()).collect();
            let y = ops::head_log_prob(&vars[0], &vars[1], &vars[2], &targets, products).unwrap();
            let found =
                gradients::backward(&(&y * &grad.to_device(device).unwrap()).unwrap().sum_all().unwrap()).unwrap();
            [y.detach()].into_iter().chain(vars.iter().map(|var| found.get(var).unwrap().clone())).collect()
        };
        let (expected, ours) = (run(&Device::Cpu, Products::F32), run(&device, Products::Bf16));
        let errors: Vec<f64> = ours.iter().zip(&expected).map(|(ours, expected)| apart(ours, expected)).collect();
        eprintln!("head: {errors:.4?}");
        assert!(errors[0] < 3e-3 && errors.iter().all(|error| *error < 2e-2), "{errors:?}");
    }
}
