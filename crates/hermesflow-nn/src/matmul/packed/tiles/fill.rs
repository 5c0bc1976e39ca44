//! Packing into tiles: with AVX-512 where the CPU has it, else element by element, with the same results.

use std::ops::Range;

use half::bf16;

use super::super::matrix::{Matrix, Values};
#[cfg(target_arch = "x86_64")]
use super::super::pack;
use super::tile::{DEPTH, LANES, LINES, WORDS};
#[cfg(target_arch = "x86_64")]
use crate::simd;

/// Which operand a tile is of, and with it the order of its lanes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Line by line.
    Left,
    /// Lane by lane, each lane of all lines together.
    Right,
}

/// Packs a panel of 16 lines (rows of `matrix`), rounded to bf16, over the columns `part`, its summed dimension, as tiles one
/// after the other. The panel has `few` lines from `first` on; further lines, and what is missing of the last tile, are zeros.
///
/// # Safety
/// The matrix holds the lines and the part; `to` has room for `part.len()` / 32 tiles, rounded up.
pub(super) unsafe fn fill(to: *mut u32, side: Side, matrix: Matrix<'_>, first: usize, few: usize, part: Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    if simd::bf16() {
        // SAFETY: the instructions were just detected; by the contract of this function.
        return unsafe {
            match side {
                Side::Left => pack::pack_rows(to, matrix, first, few, part),
                Side::Right => pack::pack_columns(to, matrix, first, few, part),
            }
        };
    }
    // SAFETY: by the contract of this function.
    unsafe { plainly(to, side, matrix, first, few, part) }
}

/// [`fill`] on any CPU.
///
/// # Safety
/// As [`fill`].
pub(super) unsafe fn plainly(
    to: *mut u32,
    side: Side,
    matrix: Matrix<'_>,
    first: usize,
    few: usize,
    part: Range<usize>,
) {
    let bits = |line: usize, at: usize| {
        let place = if matrix.transposed { at * matrix.rows + line } else { line * matrix.columns + at };
        match matrix.values {
            Values::F32(values) => bf16::from_f32(values[place]).to_bits(),
            Values::Bf16(values) => values[place].to_bits(),
        }
    };
    for tile in 0..part.len().div_ceil(DEPTH) {
        for line in 0..LINES {
            for lane in 0..LANES {
                let at = part.start + tile * DEPTH + 2 * lane;
                let element = |at: usize| if line < few && at < part.end { bits(first + line, at) } else { 0 };
                let word = u32::from(element(at)) | u32::from(element(at + 1)) << 16;
                let place = if side == Side::Left { line * LANES + lane } else { lane * LINES + line };
                // SAFETY: by the contract of this function.
                unsafe { to.add(tile * WORDS + place).write(word) };
            }
        }
    }
}
