//! Products of bf16 matrices with sums in f32, by the CPU's own instruction (AVX512-BF16).
//!
//! Both operands lie with the summed dimension innermost, so a tile of `ROWS × COLUMNS` results keeps one vector of
//! partial sums each and nothing is packed. A result's order of summation does not depend on what else is computed: a
//! row gives the same bits alone and in any batch.

use half::bf16;
use rayon::prelude::*;

use super::super::raw::Shared;

/// Rows of `x` in a tile, and lines of the weight.
const ROWS: usize = 6;
const COLUMNS: usize = 4;
/// Lines of the weight that a task takes: with all of the summed dimension they stay in a core's cache.
const LINES: usize = 32;
/// Elements of the summed dimension that are taken at a time, so that a tile's operands stay in the first cache.
const DEPTH: usize = 2048;

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
    (0..out.div_ceil(LINES)).into_par_iter().for_each(|block| {
        let lines = block * LINES..((block + 1) * LINES).min(out);
        for from in (0..depth).step_by(DEPTH) {
            let part = from..(from + DEPTH).min(depth);
            // SAFETY: the caller asked `available`; the block's columns of y [n, out] are this task's alone.
            unsafe { add_block(&x, weight, depth, part, lines.clone(), target, (n, out)) };
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

/// Adds the products over `part` of the summed dimension to the columns `lines` of `y [n, out]`.
///
/// # Safety
/// The CPU has the instruction, and no other thread touches these columns.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn add_block(
    x: &[bf16],
    weight: &[bf16],
    depth: usize,
    part: std::ops::Range<usize>,
    lines: std::ops::Range<usize>,
    y: Shared,
    (n, out): (usize, usize),
) {
    let length = part.len();
    let mut row = 0;
    while row < n {
        let rows = ROWS.min(n - row);
        let x = &x[row * depth + part.start..];
        let mut line = lines.start;
        while line < lines.end {
            let columns = COLUMNS.min(lines.end - line);
            let w = &weight[line * depth + part.start..];
            // SAFETY: the tile's operands lie in x and weight, its results in y, and are this task's alone.
            unsafe {
                let y = y.at(row * out + line);
                let tile = match (rows, columns) {
                    (6, 4) => tile::<6, 4>,
                    (5, 4) => tile::<5, 4>,
                    (4, 4) => tile::<4, 4>,
                    (3, 4) => tile::<3, 4>,
                    (2, 4) => tile::<2, 4>,
                    (1, 4) => tile::<1, 4>,
                    (_, 4) => unreachable!("a tile has one row at least"),
                    _ => {
                        for r in 0..rows {
                            for c in 0..columns {
                                let (x, w) = (x.as_ptr().add(r * depth), w.as_ptr().add(c * depth));
                                tile::<1, 1>(x, w, depth, length, y.add(r * out + c), out);
                            }
                        }
                        line += columns;
                        continue;
                    }
                };
                tile(x.as_ptr(), w.as_ptr(), depth, length, y, out);
            }
            line += columns;
        }
        row += rows;
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn add_block(
    _: &[bf16],
    _: &[bf16],
    _: usize,
    _: std::ops::Range<usize>,
    _: std::ops::Range<usize>,
    _: Shared,
    _: (usize, usize),
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
            for (c, sum) in sums.iter().enumerate() {
                *y.add(r * out + c) += _mm512_reduce_add_ps(*sum);
            }
        }
    }
}
