#![allow(clippy::unwrap_used)]
use candle_core::{Tensor, Var};

use super::*;
use crate::testing::{close, normal};

const SAME: Padding = Padding { top: 1, bottom: 1, left: 1, right: 1 };
const DOWN: Padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };
const NONE: Padding = Padding { top: 0, bottom: 0, left: 0, right: 0 };

/// `(batch, channels, height, width, outputs)`: odd sizes, several blocks, channels that fill no vector.
const SHAPES: [(usize, usize, usize, usize, usize); 5] =
    [(2, 5, 9, 7, 4), (1, 32, 16, 16, 64), (3, 20, 37, 33, 33), (1, 64, 1, 40, 3), (1, 3, 20, 21, 40)];

fn together(x: &Tensor, w: &Tensor, bias: &Tensor, stride: usize, pad: Padding, around: Around) -> (Tensor, Tensor) {
    let ours = norm_conv2d(&channels_last(x).unwrap(), w, bias, stride, pad, around).unwrap();
    assert!(is_channels_last(ours.layout()) || ours.layout().is_contiguous());
    (ours, norm_conv2d(x, w, bias, stride, pad, around).unwrap())
}

#[test]
fn values_are_those_of_the_operators_one_after_another() {
    for (b, c, h, w, o) in SHAPES {
        for (k, stride, pad) in [(3, 1, SAME), (3, 1, NONE), (3, 2, DOWN), (1, 1, NONE)] {
            if h + pad.top + pad.bottom < k {
                continue;
            }
            let (x, bias) = (normal(&[b, c, h, w]), normal(&[o]));
            let weight = (normal(&[o, c, k, k]) / ((c * k * k) as f64).sqrt()).unwrap();
            let (scale, shift) = (normal(&[c]), normal(&[c]));
            for (silu, upsample) in [(false, false), (true, false), (true, true)] {
                let groups = if c % 4 == 0 { 4 } else { 1 };
                let norm = NormBefore { weight: &scale, bias: &shift, groups, eps: 1e-6, silu };
                let around = Around { norm: Some(norm), upsample, residual: None };
                let (ours, plain) = together(&x, &weight, &bias, stride, pad, around);
                close(&ours, &plain, 1e-5, "with a norm");
                let residual = normal(plain.dims());
                let around = Around { norm: None, upsample, residual: Some(&residual) };
                let (ours, plain) = together(&x, &weight, &bias, stride, pad, around);
                close(&ours, &plain, 1e-5, "with a residual");
            }
        }
    }
}

#[test]
fn a_norm_alone_is_the_plain_one() {
    for (b, c, h, w, _) in SHAPES {
        let (x, scale, shift) = (normal(&[b, c, h, w]), normal(&[c]), normal(&[c]));
        for silu in [false, true] {
            let norm = NormBefore { weight: &scale, bias: &shift, groups: 1, eps: 1e-6, silu };
            let ours = norm_before(&channels_last(&x).unwrap(), norm).unwrap();
            close(&ours, &norm_before(&x, norm).unwrap(), 1e-5, "norm");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let (x, weight, bias) = (normal(&[2, 24, 16, 19]), normal(&[70, 24, 3, 3]), normal(&[70]));
    let x = channels_last(&x).unwrap();
    let (scale, shift) = (normal(&[24]), normal(&[24]));
    let norm = NormBefore { weight: &scale, bias: &shift, groups: 4, eps: 1e-6, silu: true };
    let around = Around { norm: Some(norm), ..Around::default() };
    for (stride, pad) in [(1, SAME), (2, DOWN)] {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let y = pool.install(|| norm_conv2d(&x, &weight, &bias, stride, pad, around)).unwrap();
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(with(1), with(2));
        assert_eq!(with(1), with(5));
    }
}

#[test]
fn what_wants_a_gradient_gets_one() {
    let (x, weight, bias) = (normal(&[1, 16, 8, 8]), normal(&[16, 16, 3, 3]), normal(&[16]));
    let weight = Var::from_tensor(&weight).unwrap();
    let gradient = |x: &Tensor| {
        let y = norm_conv2d(x, &weight, &bias, 1, SAME, Around::default()).unwrap();
        y.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(&weight).unwrap().clone()
    };
    close(&gradient(&channels_last(&x).unwrap()), &gradient(&x), 0.0, "gradient");
}
