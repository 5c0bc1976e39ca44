//! The packed product with AVX-512: of pairs of bf16 elements (AVX512-BF16), and of f32 elements.

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{Matrix, Start};
use super::pack::{mask, pack_lines};
use crate::storage::SharedPointer;

/// Rows of a tile. Its 24 vectors of sums leave registers for two vectors of the right operand and one of the left.
const ROWS: usize = 12;
/// Columns of a tile.
const COLUMNS: usize = 32;
/// Most lanes of the summed dimension per pass.
const DEPTH: usize = 768;
/// Lanes of the left operand that a task keeps while the right one streams by: a quarter of a core's L2 cache.
const BLOCK: usize = 64 << 10;
/// Lanes of each operand that are packed at a time: an eighth of the L3 cache.
const PACKED: usize = 1 << 20;

/// The sixteen lanes of a vector, aligned as one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Vector(#[allow(dead_code)] [u32; 16]);

/// A packed operand: panels of `WIDTH` lines each, stored lane by lane. Only what was packed may be read.
struct PackedOperand(Vec<Vector>);

impl PackedOperand {
    /// Room for `lines` in panels of `WIDTH`, over `lanes` of the summed dimension.
    fn new<const WIDTH: usize>(lines: usize, lanes: usize) -> Self {
        Self(Vec::with_capacity((lines.next_multiple_of(WIDTH) * lanes).div_ceil(16)))
    }

    /// Packs `lines` of a matrix over the columns `part`, its summed dimension.
    ///
    /// # Safety
    /// The CPU has the instructions, and the allocation has room.
    unsafe fn fill<const WIDTH: usize>(&mut self, matrix: Matrix<'_>, lines: Range<usize>, part: Range<usize>) {
        let (to, lanes) = (SharedPointer(self.0.as_mut_ptr().cast::<u32>()), part.len().div_ceil(matrix.in_a_lane()));
        (0..lines.len().div_ceil(WIDTH)).into_par_iter().with_min_len(4).for_each(|panel| {
            let first = lines.start + panel * WIDTH;
            let few = WIDTH.min(lines.end - first);
            // SAFETY: by the contract of this function; each panel is written by one task.
            unsafe { pack_lines::<WIDTH>(to.at(panel * WIDTH * lanes), matrix, first, few, part.clone()) };
        });
    }

    fn start(&self) -> SharedPointer<u32> {
        SharedPointer(self.0.as_ptr().cast_mut().cast())
    }
}

/// `out = start + lhs rhs`.
///
/// # Safety
/// As [`super::run`]; the CPU has AVX512-BF16, and no dimension is 0.
pub(super) unsafe fn run(out: *mut f32, lhs: Matrix<'_>, rhs: Matrix<'_>, start: Start<'_>) {
    let (m, n, k) = (lhs.rows, rhs.columns, lhs.columns);
    let each = lhs.in_a_lane();
    assert_eq!(each, rhs.in_a_lane());
    let all = k.div_ceil(each);
    let lanes = all.div_ceil(all.div_ceil(DEPTH));
    let depth = lanes * each;
    let most = |width: usize, lines: usize| (PACKED / lanes / width * width).min(lines.next_multiple_of(width));
    let (high, wide) = (most(ROWS, m), most(COLUMNS, n));
    let (mut left, mut right) = (PackedOperand::new::<ROWS>(high, lanes), PackedOperand::new::<COLUMNS>(wide, lanes));
    let out = SharedPointer(out);
    for column in (0..n).step_by(wide) {
        let columns = column..(column + wide).min(n);
        for from in (0..k).step_by(depth) {
            let part = from..(from + depth).min(k);
            let start = if from == 0 { start } else { Start::Kept };
            // SAFETY: the CPU has the instructions by the contract; there is room for `wide` columns and `high` rows.
            unsafe { right.fill::<COLUMNS>(rhs.t(), columns.clone(), part.clone()) };
            for row in (0..m).step_by(high) {
                let rows = row..(row + high).min(m);
                // SAFETY: as above; both are packed, and out is [m, n] by the contract of this function.
                unsafe {
                    left.fill::<ROWS>(lhs, rows.clone(), part.clone());
                    let lanes = part.len().div_ceil(each);
                    match each {
                        1 => tasks::<true>(out, n, &left, &right, rows, columns.clone(), lanes, start),
                        _ => tasks::<false>(out, n, &left, &right, rows, columns.clone(), lanes, start),
                    }
                }
            }
        }
    }
}

/// Computes all tiles of the packed rows and columns; lanes hold f32 elements if `AS_F32`, else pairs of bf16.
///
/// # Safety
/// As [`run`]; the operands are packed.
#[allow(clippy::too_many_arguments)]
unsafe fn tasks<const AS_F32: bool>(
    out: SharedPointer<f32>,
    stride: usize,
    left: &PackedOperand,
    right: &PackedOperand,
    rows: Range<usize>,
    columns: Range<usize>,
    lanes: usize,
    start: Start<'_>,
) {
    let (down, across) = (rows.len().div_ceil(ROWS), columns.len().div_ceil(COLUMNS));
    let tall = (BLOCK / lanes / ROWS).clamp(1, down);
    let down_tasks = down.div_ceil(tall);
    // Several tasks per thread, so that no thread waits long for the last one.
    let across_tasks = (8 * rayon::current_num_threads()).div_ceil(down_tasks).min(across);
    let broad = across.div_ceil(across_tasks);
    let (left, right) = (left.start(), right.start());
    (0..down_tasks * across.div_ceil(broad)).into_par_iter().for_each(|task| {
        let (down_from, across_from) = (task % down_tasks * tall, task / down_tasks * broad);
        let block = Block {
            down: down_from..(down_from + tall).min(down),
            across: across_from..(across_from + broad).min(across),
            rows: rows.clone(),
            columns: columns.clone(),
            lanes,
            stride,
        };
        // SAFETY: by the contract of this function; no other task has these tiles.
        unsafe { block.run::<AS_F32>(out, left, right, start) }
    });
}

/// The tiles of a task.
struct Block {
    /// Panels of the left and of the right operand.
    down: Range<usize>,
    across: Range<usize>,
    /// The rows and columns of the result that are packed.
    rows: Range<usize>,
    columns: Range<usize>,
    lanes: usize,
    /// The distance of two rows of the result.
    stride: usize,
}

impl Block {
    /// Computes the tiles of a task.
    ///
    /// # Safety
    /// As [`run`]; `left` and `right` are the packed operands, and no other thread touches these tiles of `out`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run<const AS_F32: bool>(
        &self,
        out: SharedPointer<f32>,
        left: SharedPointer<u32>,
        right: SharedPointer<u32>,
        start: Start<'_>,
    ) {
        for panel in self.across.clone() {
            let column = self.columns.start + panel * COLUMNS;
            let few = COLUMNS.min(self.columns.end - column);
            let masks = [mask(few), mask(few.saturating_sub(16))];
            for strip in self.down.clone() {
                let row = self.rows.start + strip * ROWS;
                let rows = ROWS.min(self.rows.end - row);
                // SAFETY: the panels are packed; masks keep to the part of the tile that lies in the result.
                unsafe {
                    let (a, b) = (left.at(strip * ROWS * self.lanes), right.at(panel * COLUMNS * self.lanes));
                    let sums = tile::<AS_F32>(a, b, self.lanes);
                    for (r, sums) in sums.iter().enumerate().take(rows) {
                        let y = out.at((row + r) * self.stride + column);
                        for (half, &sum) in sums.iter().enumerate() {
                            let (y, mask) = (y.wrapping_add(16 * half), masks[half]);
                            let sum = match start {
                                Start::Zero => sum,
                                Start::Bias(bias) => {
                                    let bias = bias.as_ptr().wrapping_add(column + 16 * half);
                                    _mm512_add_ps(_mm512_maskz_loadu_ps(mask, bias), sum)
                                }
                                Start::Kept => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum),
                            };
                            _mm512_mask_storeu_ps(y, mask, sum);
                        }
                    }
                }
            }
        }
    }
}

/// The product of a left and a right panel.
///
/// # Safety
/// The CPU has the instructions, and both panels hold `lanes` lanes, aligned.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const AS_F32: bool>(mut a: *const u32, mut b: *const u32, lanes: usize) -> [[__m512; 2]; ROWS] {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for _ in 0..lanes {
        // SAFETY: by the contract of this function.
        unsafe {
            let columns = [_mm512_load_si512(b.cast()), _mm512_load_si512(b.add(16).cast())];
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = _mm512_set1_epi32(*a.add(r) as i32);
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = match AS_F32 {
                        true => _mm512_fmadd_ps(_mm512_castsi512_ps(row), _mm512_castsi512_ps(column), *sum),
                        false => _mm512_dpbf16_ps(*sum, bits(row), bits(column)),
                    };
                }
            }
            a = a.add(ROWS);
            b = b.add(COLUMNS);
        }
    }
    sums
}

/// The same bits as a vector of bf16 pairs.
#[inline]
fn bits(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of bits.
    unsafe { std::mem::transmute(pairs) }
}
