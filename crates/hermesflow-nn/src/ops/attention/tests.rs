//! Attention against a softmax under a dense mask.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use candle_core::{D, DType, Device, Var};

use std::ops::Range;

use super::*;
use crate::testing::{agree, close, kernels_run, normal};

/// The whole score matrix with a mask: an account of `Segment` of its own.
fn dense(q: &Tensor, k: &Tensor, v: &Tensor, segments: &[Segment], scale: f32) -> Result<Tensor> {
    let ((tq, heads, d), tk) = (q.dims3()?, k.dim(0)?);
    let mut mask = vec![f32::NEG_INFINITY; tq * tk];
    for segment in segments {
        for (i, query) in segment.queries.clone().enumerate() {
            let hidden = if segment.causal { segment.queries.len() - 1 - i } else { 0 };
            let own = segment.own.start..segment.own.end - hidden;
            segment.sees.iter().cloned().chain([own]).flatten().for_each(|key| mask[query * tk + key] = 0.0);
        }
    }
    let mask = Tensor::from_vec(mask, (tq, tk), q.device())?;
    let by_head = |x: &Tensor| x.transpose(0, 1)?.contiguous();
    let scores = (by_head(q)?.matmul(&by_head(k)?.t()?)? * f64::from(scale))?.broadcast_add(&mask)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&by_head(v)?)?.transpose(0, 1)?.reshape((tq, heads * d))
}

/// All four fields in one line.
fn segment(queries: Range<usize>, sees: &[Range<usize>], own: Range<usize>, causal: bool) -> Segment {
    Segment { queries, sees: sees.to_vec(), own, causal }
}

/// The patterns of use: (tq, tk, segments).
fn patterns() -> Vec<(usize, usize, Vec<Segment>)> {
    vec![
        // Causal texts of odd lengths, one longer than a block.
        (
            180,
            180,
            vec![
                segment(0..5, &[], 0..5, true),
                segment(5..146, &[], 5..146, true),
                segment(146..180, &[], 146..180, true),
            ],
        ),
        // A prompt, its image block, and three replies that share both.
        (
            120,
            120,
            vec![
                segment(0..7, &[], 0..7, true),
                segment(7..71, &[0..7], 7..71, false),
                segment(71..90, &[0..71], 71..90, true),
                segment(90..91, &[0..71], 90..91, true),
                segment(91..120, &[0..71], 91..120, true),
            ],
        ),
        // Cached decoding: the new queries are the last of their own keys; out of order.
        (
            9,
            83,
            vec![
                segment(4..9, &[0..30, 33..40], 60..83, true),
                segment(0..1, &[0..30], 40..49, true),
                segment(1..4, &[0..30], 49..60, true),
            ],
        ),
        // One query per segment on one prefix, and an image block that sees two ranges.
        (
            73,
            100,
            vec![
                segment(0..1, &[0..27], 27..28, true),
                segment(1..2, &[0..27], 28..29, false),
                segment(2..73, &[0..3, 10..13], 29..100, false),
            ],
        ),
    ]
}

#[test]
fn agrees_with_a_dense_mask() {
    for (tq, tk, segments) in patterns() {
        let segments: Arc<[Segment]> = segments.into();
        for (heads, d) in [(1, 3), (3, 10), (4, 32)] {
            let args = [normal(&[tq, heads, d]), normal(&[tk, heads, d]), normal(&[tk, heads, d])];
            let scale = 1.3 / (d as f32).sqrt();
            agree(
                &args,
                |x| attention(&x[0], &x[1], &x[2], &segments, scale),
                |x| dense(&x[0], &x[1], &x[2], &segments, scale),
            );
            agree(
                &args,
                |x| grouped::attention(&x[0], &x[1], &x[2], &segments, scale),
                |x| dense(&x[0], &x[1], &x[2], &segments, scale),
            );
        }
    }
}

/// Replies about one image, one of which has no question and one of which is longer: together, and bit for bit alone.
#[test]
fn single_queries_on_the_same_keys_go_together() {
    let (heads, d, block) = (4, 72, 301);
    let segments: Vec<Segment> = (0..21)
        .map(|i| {
            let own = 400 + 10 * i..404 + 10 * i + i % 5;
            let question = if i == 7 { 310..310 } else { 310..317 + i % 3 };
            segment(i..i + 1, &[0..block, question], own, true)
        })
        .collect();
    let (q, k, v) = (normal(&[21, heads, d]), normal(&[620, heads, d]), normal(&[620, heads, d]));
    let together = attention(&q, &k, &v, &segments.clone().into(), 0.2).unwrap();
    close(&together, &dense(&q, &k, &v, &segments, 0.2).unwrap(), 1e-5, "values");
    let bit_for_bit = kernels_run("a query of the same bits alone");
    for (i, one) in segments.into_iter().enumerate() {
        let alone = [Segment { queries: 0..1, ..one }].into();
        let alone = attention(&q.narrow(0, i, 1).unwrap(), &k, &v, &alone, 0.2).unwrap();
        let row = together.narrow(0, i, 1).unwrap();
        if bit_for_bit {
            assert_eq!(alone.to_vec2::<f32>().unwrap(), row.to_vec2::<f32>().unwrap(), "{i}");
        } else {
            close(&alone, &row, 1e-5, "alone");
        }
    }
}

/// Pictures that are drawn: each query sees a prompt and its own keys, some of them few.
fn drawn(pictures: usize) -> Vec<Segment> {
    let prompts = [0..5, 5..5, 5..17];
    let own = |at: usize| 20 + 200 * at..20 + 200 * at + [150, 97, 95, 199][at % 4];
    (0..pictures).map(|at| segment(at..at + 1, &[prompts[at % 3].clone()], own(at), true)).collect()
}

#[test]
fn single_queries_on_many_keys_of_their_own_are_attention() {
    let segments = drawn(9);
    for (heads, d) in [(3, 32), (8, 64), (2, 96), (5, 128)] {
        let (q, k, v) = (normal(&[9, heads, d]), normal(&[1820, heads, d]), normal(&[1820, heads, d]));
        let all = segments.clone().into();
        let run = |q: &Tensor, k: &Tensor, v: &Tensor, all: &Arc<[Segment]>| attention(q, k, v, all, 0.2).unwrap();
        close(&run(&q, &k, &v, &all), &dense(&q, &k, &v, &segments, 0.2).unwrap(), 1e-5, "f32");
        let narrow = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
        let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
        let (k, v) = (narrow(&k), narrow(&v));
        let together = match kernels_run("keys and values in bf16 under queries in f32") {
            true => run(&q, &k, &v, &all),
            false => continue,
        };
        close(&together, &dense(&q, &wide(&k), &wide(&v), &segments, 0.2).unwrap(), 1e-5, "bf16");
        for (i, one) in segments.iter().enumerate() {
            let alone = [Segment { queries: 0..1, ..one.clone() }].into();
            let alone = run(&q.narrow(0, i, 1).unwrap(), &k, &v, &alone).to_vec2::<f32>().unwrap();
            assert_eq!(alone, together.narrow(0, i, 1).unwrap().to_vec2::<f32>().unwrap(), "{i}");
        }
        // Several queries of a segment read the same keys widened.
        let block = [segment(0..9, &[0..5], 5..40, true)];
        let y = run(&q, &k, &v, &block.clone().into());
        close(&y, &dense(&q, &wide(&k), &wide(&v), &block, 0.2).unwrap(), 1e-5, "a block");
    }
}

#[test]
fn takes_slices_of_one_projection() {
    let (t, heads, d) = (70, 2, 6);
    let segments: Arc<[Segment]> = [segment(0..t, &[], 0..t, true)].into();
    let part = |x: &Tensor, i: usize| x.reshape((t, 3 * heads, d))?.narrow(1, i * heads, heads);
    agree(
        &[normal(&[t, 3 * heads * d])],
        |x| attention(&part(&x[0], 0)?, &part(&x[0], 1)?, &part(&x[0], 2)?, &segments, 0.4),
        |x| dense(&part(&x[0], 0)?, &part(&x[0], 1)?, &part(&x[0], 2)?, &segments, 0.4),
    );
}

#[test]
fn cached_decoding_is_the_full_pass() {
    let (t, prefix, heads, d) = (50, 20, 2, 8);
    let (q, k, v) = (normal(&[t, heads, d]), normal(&[t, heads, d]), normal(&[t, heads, d]));
    let full = [segment(0..t, &[], 0..t, true)].into();
    let full = attention(&q, &k, &v, &full, 0.3).unwrap();
    for end in prefix + 1..=t {
        let step = [segment(0..1, &[0..prefix], prefix..end, true)].into();
        let q = q.narrow(0, end - 1, 1).unwrap();
        let one = attention(&q, &k, &v, &step, 0.3).unwrap();
        close(&one, &full.narrow(0, end - 1, 1).unwrap(), 1e-6, "step");
    }
}

#[test]
fn unseen_keys_change_nothing() {
    let (q, k, v) = (normal(&[4, 2, 8]), normal(&[9, 2, 8]), normal(&[9, 2, 8]));
    let segments: Arc<[Segment]> = [segment(0..4, &[0..2], 3..7, true)].into();
    let before = attention(&q, &k, &v, &segments, 0.3).unwrap();
    let mut rows = v.to_vec3::<f32>().unwrap();
    for row in [2, 7, 8] {
        rows[row] = vec![vec![f32::NAN; 8]; 2];
    }
    let after = attention(&q, &k, &Tensor::new(rows, &Device::Cpu).unwrap(), &segments, 0.3).unwrap();
    assert_eq!(before.to_vec2::<f32>().unwrap(), after.to_vec2::<f32>().unwrap());
}

#[test]
fn a_query_without_keys_gets_zeros() {
    let (q, k) = (normal(&[2, 1, 4]), normal(&[1, 1, 4]));
    let segments: Arc<[Segment]> = [segment(0..1, &[], 0..0, false), segment(1..2, &[], 0..1, false)].into();
    for form in [attention, grouped::attention] {
        let y = form(&q, &k, &k, &segments, 1.0).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(y, [vec![0.0; 4], k.flatten_all().unwrap().to_vec1::<f32>().unwrap()]);
    }
}

#[test]
fn gradients_do_not_depend_on_the_threads() {
    let (tq, tk, segments) = patterns().swap_remove(1);
    let segments: Arc<[Segment]> = segments.into();
    let args = [normal(&[tq, 4, 16]), normal(&[tk, 4, 16]), normal(&[tk, 4, 16])];
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let x = args.each_ref().map(|t| Var::from_tensor(t).unwrap());
        let grads = pool.install(|| {
            let y = attention(&x[0], &x[1], &x[2], &segments, 0.25).unwrap();
            y.sqr().unwrap().backward().unwrap()
        });
        x.map(|x| grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    assert_eq!(run(1), run(7));
}

#[test]
fn half_precision_runs_in_groups() {
    let (q, k, v) = (normal(&[6, 2, 8]), normal(&[6, 2, 8]), normal(&[6, 2, 8]));
    let segments: Arc<[Segment]> = [segment(0..6, &[], 0..6, true)].into();
    let narrow = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
    let y = attention(&narrow(&q), &narrow(&k), &narrow(&v), &segments, 0.3).unwrap();
    assert_eq!(y.dtype(), DType::BF16);
    let wide = attention(&q, &k, &v, &segments, 0.3).unwrap();
    close(&y.to_dtype(DType::F32).unwrap(), &wide, 0.02, "values");
}

#[test]
fn refuses_segments_that_do_not_fit() {
    let x = normal(&[6, 2, 8]);
    for (segments, words) in [
        (vec![segment(0..5, &[], 0..5, true)], "5 of 6"),
        (vec![segment(0..4, &[], 0..5, true), segment(3..6, &[], 0..5, true)], "expected queries from 4"),
        (vec![segment(0..6, &[5..7], 0..6, true)], "5..7"),
        (vec![segment(0..6, &[], 1..6, true)], "1..6"),
    ] {
        let error = attention(&x, &x, &x, &segments.into(), 1.0).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
