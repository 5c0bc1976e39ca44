//! Products of bf16 matrices with sums in f32, by the CPU's own instruction (AVX512-BF16).
//!
//! Both operands lie with the summed dimension innermost, so a tile of `ROWS × COLUMNS` results keeps one vector of
//! partial sums each and nothing is packed. A result's order of summation does not depend on what else is computed: a
//! row gives the same bits alone and in any batch.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::super::raw::Shared;

/// Rows of `x` in a tile, and lines of the weight.
const ROWS: usize = 6;
const COLUMNS: usize = 4;
/// Rows of `x` that are worked on together: with a part of the summed dimension they stay in a core's second cache,
/// while the weight passes by once for all of them.
const BLOCK: usize = 16 * ROWS;
/// Elements of the summed dimension that are taken at a time: a tile's operands stay in the first cache, and summing a
/// vector's lanes at the end costs little.
const DEPTH: usize = 2048;
/// Lines of the weight that a task takes at least.
const LINES: usize = 8 * COLUMNS;

/// Whether this CPU has the instruction, and nobody has forbidden it.
pub(super) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        super::super::simd::allowed("bf16")
            && std::arch::is_x86_feature_detected!("avx512bf16")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512f")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `y = x Wᵀ + b` of `x [n, depth]` in f32, which is rounded to bf16, and `weight [out, depth]`.
///
/// Only where [`available`].
pub(super) fn linear(x: &[f32], weight: &[bf16], bias: Option<&[f32]>, depth: usize) -> Vec<f32> {
    let (n, out) = (x.len() / depth.max(1), weight.len() / depth.max(1));
    let mut y = match bias {
        Some(bias) => bias.repeat(n),
        None => vec![0f32; n * out],
    };
    let x = narrow(x);
    let target = Shared(y.as_mut_ptr());
    // Several tasks a thread, so that none waits long for the last one.
    let lines = out.div_ceil(8 * rayon::current_num_threads()).next_multiple_of(COLUMNS).max(LINES);
    (0..out.div_ceil(lines)).into_par_iter().for_each(|task| {
        let lines = task * lines..((task + 1) * lines).min(out);
        for from in (0..depth).step_by(DEPTH) {
            let part = from..(from + DEPTH).min(depth);
            for first in (0..n).step_by(BLOCK) {
                let rows = first..(first + BLOCK).min(n);
                // SAFETY: the caller asked `available`; the task's columns of y [n, out] are its alone.
                unsafe { add_block(&x, weight, depth, part.clone(), rows, lines.clone(), target, out) };
            }
        }
    });
    y
}

/// Rounded to the nearest bf16.
fn narrow(x: &[f32]) -> Vec<bf16> {
    use half::slice::HalfFloatSliceExt;
    const RUN: usize = 1 << 14;
    let mut rounded = vec![bf16::ZERO; x.len()];
    rounded.par_chunks_mut(RUN).zip(x.par_chunks(RUN)).for_each(|(to, from)| to.convert_from_f32_slice(from));
    rounded
}

/// Adds the products over `part` of the summed dimension to the rows and columns `lines` of `y [.., out]`.
///
/// # Safety
/// The CPU has the instruction, and no other thread touches these columns.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(clippy::too_many_arguments)]
unsafe fn add_block(
    x: &[bf16],
    weight: &[bf16],
    depth: usize,
    part: Range<usize>,
    rows: Range<usize>,
    lines: Range<usize>,
    y: Shared,
    out: usize,
) {
    let length = part.len();
    for line in lines.clone().step_by(COLUMNS) {
        let columns = COLUMNS.min(lines.end - line);
        let w = weight[line * depth + part.start..].as_ptr();
        for row in rows.clone().step_by(ROWS) {
            let x = x[row * depth + part.start..].as_ptr();
            // SAFETY: the tile's operands lie in x and weight, its results in y, and are this task's alone.
            unsafe {
                let y = y.at(row * out + line);
                match (ROWS.min(rows.end - row), columns) {
                    (6, 4) => tile::<6, 4>(x, w, depth, length, y, out),
                    (5, 4) => tile::<5, 4>(x, w, depth, length, y, out),
                    (4, 4) => tile::<4, 4>(x, w, depth, length, y, out),
                    (3, 4) => tile::<3, 4>(x, w, depth, length, y, out),
                    (2, 4) => tile::<2, 4>(x, w, depth, length, y, out),
                    (1, 4) => tile::<1, 4>(x, w, depth, length, y, out),
                    (rows, columns) => {
                        for (r, c) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                            tile::<1, 1>(x.add(r * depth), w.add(c * depth), depth, length, y.add(r * out + c), out);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[allow(clippy::too_many_arguments)]
unsafe fn add_block(
    _: &[bf16],
    _: &[bf16],
    _: usize,
    _: Range<usize>,
    _: Range<usize>,
    _: Range<usize>,
    _: Shared,
    _: usize,
) {
    unreachable!("the instruction is x86's")
}

/// `y[r][c] += Σ x[r][i]·w[c][i]` over `length` elements; rows of `x` and lines of `w` are `depth` apart, rows of `y`
/// `out`.
///
/// # Safety
/// The CPU has the instruction; all that is named can be read, and `y` written.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const R: usize, const C: usize>(
    x: *const bf16,
    w: *const bf16,
    depth: usize,
    length: usize,
    y: *mut f32,
    out: usize,
) {
    use std::arch::x86_64::*;
    const WIDE: usize = 32;
    // SAFETY: by the contract of this function; what is left behind the last whole vector is read under a mask.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); C]; R];
        let mut at = 0;
        while at + WIDE <= length {
            let mut lines = [_mm512_setzero_si512(); C];
            for (c, line) in lines.iter_mut().enumerate() {
                *line = _mm512_loadu_si512(w.add(c * depth + at).cast());
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let row: __m512bh = std::mem::transmute(_mm512_loadu_si512(x.add(r * depth + at).cast()));
                for (sum, line) in sums.iter_mut().zip(lines) {
                    *sum = _mm512_dpbf16_ps(*sum, row, std::mem::transmute::<__m512i, __m512bh>(line));
                }
            }
            at += WIDE;
        }
        if at < length {
            let mask = (1u32 << (length - at)) - 1;
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = _mm512_maskz_loadu_epi16(mask, x.add(r * depth + at).cast());
                for (c, sum) in sums.iter_mut().enumerate() {
                    let line = _mm512_maskz_loadu_epi16(mask, w.add(c * depth + at).cast());
                    *sum = _mm512_dpbf16_ps(
                        *sum,
                        std::mem::transmute::<__m512i, __m512bh>(row),
                        std::mem::transmute::<__m512i, __m512bh>(line),
                    );
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let y = y.add(r * out);
            if let &[a, b, c, d] = &sums[..] {
                _mm_storeu_ps(y, _mm_add_ps(_mm_loadu_ps(y), lane_sums(a, b, c, d)));
            } else {
                sums.iter().enumerate().for_each(|(c, sum)| *y.add(c) += _mm512_reduce_add_ps(*sum));
            }
        }
    }
}

/// The sums over the lanes of four vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn lane_sums(
    a: std::arch::x86_64::__m512,
    b: std::arch::x86_64::__m512,
    c: std::arch::x86_64::__m512,
    d: std::arch::x86_64::__m512,
) -> std::arch::x86_64::__m128 {
    use std::arch::x86_64::*;
    let pairs = |a, b| _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    let (ab, cd) = (pairs(a, b), pairs(c, d));
    // a, b, c, d in each of the four quarters.
    let quarters =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    let halves = _mm256_add_ps(
        _mm512_castps512_ps256(quarters),
        _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(quarters))),
    );
    _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
}
