//! Products with a matrix that is packed in panels of [`WIDTH`] columns, row after row.
//!
//! A panel's rows are read once per few rows of the other operand, from the L1 or L2 cache; the other operand is not packed. A
//! row's results do not depend on the other rows.

use crate::matmul::operand::Operand;
use crate::matmul::product::product;
#[cfg(target_arch = "x86_64")]
use crate::measure::count;
#[cfg(target_arch = "x86_64")]
use crate::simd;

/// Columns of a panel.
pub(super) const WIDTH: usize = 32;
/// Rows of a product are a multiple of this.
pub(super) const STEP: usize = 4;

/// `c [rows, WIDTH] = c (if add) + a [rows, depth] panel [depth, WIDTH]`, with the rows of `a` `stride` apart and those
/// of `c` `WIDTH`.
///
/// # Safety
/// The operands are readable and `c` is writable in these shapes, `rows` is a multiple of [`STEP`], and no other thread
/// touches `c`.
pub(super) unsafe fn multiply(
    a: *const f32,
    stride: usize,
    rows: usize,
    panel: *const f32,
    depth: usize,
    c: *mut f32,
    add: bool,
) {
    debug_assert!(rows.is_multiple_of(STEP));
    #[cfg(target_arch = "x86_64")]
    if simd::avx512f() {
        return count::product((rows, WIDTH, depth), false, || {
            // SAFETY: the instruction set was just detected; the rest by the contract of this function.
            unsafe { avx512::multiply(a, stride, rows, panel, depth, c, add) }
        });
    }
    // SAFETY: by the contract of this function.
    unsafe {
        let (a, panel) = (Operand::rows(a, stride), Operand::rows(panel, WIDTH));
        product((rows, WIDTH, depth), c, WIDTH, add, a, panel, 1.0, false);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use crate::ops::conv::channels_last::panels::WIDTH;

    /// [`super::multiply`] with AVX-512.
    ///
    /// # Safety
    /// As [`super::multiply`], on a CPU with AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn multiply(
        a: *const f32,
        stride: usize,
        rows: usize,
        panel: *const f32,
        depth: usize,
        c: *mut f32,
        add: bool,
    ) {
        let mut row = 0;
        while row < rows {
            // SAFETY: the rows of this tile lie within `a` and `c`.
            unsafe {
                let (a, c) = (a.add(row * stride), c.add(row * WIDTH));
                row += match rows - row {
                    4..8 => tile::<4>(a, stride, panel, depth, c, add),
                    8..12 => tile::<8>(a, stride, panel, depth, c, add),
                    _ => tile::<12>(a, stride, panel, depth, c, add),
                };
            }
        }
    }

    /// [`multiply`] for `R` rows, whose sums stay in registers; returns `R`.
    ///
    /// # Safety
    /// As [`multiply`].
    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const R: usize>(
        a: *const f32,
        stride: usize,
        panel: *const f32,
        depth: usize,
        c: *mut f32,
        add: bool,
    ) -> usize {
        // SAFETY: by the contract of this function.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            if add {
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = [_mm512_loadu_ps(c.add(r * WIDTH)), _mm512_loadu_ps(c.add(r * WIDTH + 16))];
                }
            }
            for k in 0..depth {
                let line = panel.add(k * WIDTH);
                let (left, right) = (_mm512_loadu_ps(line), _mm512_loadu_ps(line.add(16)));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a.add(r * stride + k));
                    sums[0] = _mm512_fmadd_ps(value, left, sums[0]);
                    sums[1] = _mm512_fmadd_ps(value, right, sums[1]);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                _mm512_storeu_ps(c.add(r * WIDTH), sums[0]);
                _mm512_storeu_ps(c.add(r * WIDTH + 16), sums[1]);
            }
        }
        R
    }
}
