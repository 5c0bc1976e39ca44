//! Products of bf16 tiles with sums in f32, by the tile registers of Intel's AMX ([`amx`]) or the same in software ([`mod@unit`]).
//!
//! The left operand is packed once, for many rows at a time, and stays in the third cache. Each task takes 128 columns or fewer
//! of the result: it packs 512 elements of the summed dimension of these columns into its core's second cache, where they serve
//! for all rows, and multiplies blocks of 32 × 32 results by pairs of left panels that fit the first cache. So every element of
//! a weight is read from memory and packed once per product; keeping packed weights would save that copy within the second
//! cache, and would take their memory twice.
//!
//! A result takes the tiles of the summed dimension in their order, whatever is computed beside it ([`TileUnit::block`]): a row
//! has the same bits alone and in any batch, and on any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use self::fill::{Side, fill};
use self::finish::Finish;
use self::tile::{DEPTH, LINES, SIDE, Tiles, WORDS};
use self::unit::{Software, TileUnit};
use super::matrix::{After, Matrix, Start};
use crate::storage::SharedPointer;

#[cfg(target_arch = "x86_64")]
mod amx;
mod fill;
mod finish;
#[cfg(test)]
mod tests;
mod tile;
mod unit;

/// Most elements of the summed dimension that are summed in a tile; the sums of several such parts are added up.
const PART: usize = 8192;
/// Most rows of the left operand that are packed at a time.
const ROWS: usize = 1024;
/// Tiles of the summed dimension per pass: a pair of left panels then takes 32 kB of the first cache.
const STEPS: usize = 16;
/// Most pairs of right panels of a task: with [`STEPS`], 128 kB of the second cache, and half a megabyte of sums.
const PAIRS: usize = 4;

/// Whether the CPU has tile registers that this process may use.
pub(crate) fn in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `out = start + lhs rhs`, followed by `after`: by the tile `registers`, or in software.
///
/// # Safety
/// As [`super::run`]; no dimension is 0, and there are registers ([`in_hardware`]) if they are to be used.
pub(super) unsafe fn run(
    registers: bool,
    out: *mut f32,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    start: Start<'_>,
    after: After<'_>,
) {
    #[cfg(target_arch = "x86_64")]
    if registers {
        // SAFETY: the CPU has the instructions, and the system allows them; by the contract of this function.
        return unsafe { run_on(amx::Amx, out, lhs, rhs, start, after) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = registers;
    // SAFETY: by the contract of this function.
    unsafe { run_on(Software, out, lhs, rhs, start, after) }
}

/// [`run`] by `unit`.
///
/// # Safety
/// As [`run`], and [`TileUnit::enter`] may be called on every thread.
unsafe fn run_on<U: TileUnit>(
    unit: U,
    out: *mut f32,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    start: Start<'_>,
    after: After<'_>,
) {
    let (m, n, k) = (lhs.rows, rhs.columns, lhs.columns);
    let depth = k.div_ceil(k.div_ceil(PART)).next_multiple_of(DEPTH);
    let high = m.div_ceil(m.div_ceil(ROWS)).next_multiple_of(SIDE);
    let mut left = Tiles::default();
    for from in (0..k).step_by(depth) {
        let part = from..(from + depth).min(k);
        let steps = part.len().div_ceil(DEPTH);
        let finish = Finish {
            out: SharedPointer(out),
            stride: n,
            start: if from == 0 { start } else { Start::Kept },
            after: if part.end == k { after } else { After::Nothing },
        };
        for row in (0..m).step_by(high) {
            let rows = row..(row + high).min(m);
            let panels = rows.len().div_ceil(LINES);
            let packed = SharedPointer(left.room(panels * steps));
            (0..panels).into_par_iter().with_min_len(2).for_each(|panel| {
                let first = rows.start + panel * LINES;
                let few = LINES.min(rows.end - first);
                // SAFETY: there is room for all panels, and each is written by one task.
                unsafe { fill(packed.at(panel * steps * WORDS), Side::Left, lhs, first, few, part.clone()) };
            });
            let work = Work { unit, left: packed, rows, rhs: rhs.t(), part: part.clone(), finish };
            // SAFETY: the left operand is packed; by the contract of this function.
            unsafe { work.run() };
        }
    }
}

/// Some rows of the result over a part of the summed dimension.
struct Work<'a, U> {
    unit: U,
    /// The rows of the left operand, packed.
    left: SharedPointer<u32>,
    rows: Range<usize>,
    /// The right operand, whose rows are the columns of the result.
    rhs: Matrix<'a>,
    part: Range<usize>,
    finish: Finish<'a>,
}

impl<U: TileUnit> Work<'_, U> {
    /// Computes all columns of the rows.
    ///
    /// # Safety
    /// As [`run_on`]; `left` holds the packed rows over the part.
    unsafe fn run(&self) {
        let (down, across) = (self.rows.len().div_ceil(SIDE), self.rhs.rows.div_ceil(SIDE));
        // Several tasks per thread, so that no thread waits long for the last one.
        let wanted = 4 * rayon::current_num_threads();
        let broad = across.div_ceil(wanted).clamp(1, PAIRS);
        let across_tasks = across.div_ceil(broad);
        let tall = down.div_ceil(wanted.div_ceil(across_tasks).min(down));
        let down_tasks = down.div_ceil(tall);
        (0..across_tasks * down_tasks).into_par_iter().for_each_init(
            || (Tiles::default(), Tiles::default()),
            |scratch, task| {
                let (right, lower) = (task % across_tasks * broad, task / across_tasks * tall);
                let blocks = (lower..(lower + tall).min(down), right..(right + broad).min(across));
                // SAFETY: by the contract of this function; no other task has these blocks.
                unsafe { self.blocks(blocks, scratch) };
            },
        );
    }

    /// Computes the blocks of a task; `scratch` has room for its right panels and its sums.
    ///
    /// # Safety
    /// As [`Self::run`]; no other thread computes these blocks.
    unsafe fn blocks(&self, (down, across): (Range<usize>, Range<usize>), (right, sums): &mut (Tiles, Tiles)) {
        let steps = self.part.len().div_ceil(DEPTH);
        let right = right.room(2 * across.len() * steps.min(STEPS));
        let sums: *mut f32 = sums.room(4 * down.len() * across.len()).cast();
        // SAFETY: by the contract of this function; there is room for the panels of a pass and for the sums of all blocks.
        unsafe {
            self.unit.enter();
            for step in (0..steps).step_by(STEPS) {
                let here = STEPS.min(steps - step);
                self.fill_right(right, across.clone(), step, here);
                for (at, low) in down.clone().enumerate() {
                    let left = self.left.at((2 * low * steps + step) * WORDS);
                    let rows = SIDE.min(self.rows.len() - low * SIDE);
                    for (beside, column) in across.clone().enumerate() {
                        let sums = sums.add((at * across.len() + beside) * SIDE * SIDE);
                        let right = right.add(2 * beside * here * WORDS);
                        let (rights, tall) = ([right, right.add(here * WORDS)], rows > LINES);
                        let lefts = [left, if tall { left.add(steps * WORDS) } else { left }];
                        self.unit.block(
                            lefts.map(|left| left.cast_const()),
                            rights.map(|right| right.cast_const()),
                            here,
                            sums,
                            step > 0,
                            tall,
                        );
                        if step + here == steps {
                            let columns = SIDE.min(self.rhs.rows - column * SIDE);
                            let block = std::slice::from_raw_parts_mut(sums, if tall { SIDE } else { LINES } * SIDE);
                            let row = self.rows.start + low * SIDE;
                            self.finish.block(block, (row, rows), (column * SIDE, columns));
                        }
                    }
                }
            }
            self.unit.leave();
        }
    }

    /// Packs `here` tiles from `step` on of the columns of a task.
    ///
    /// # Safety
    /// There is room for them at `to`.
    unsafe fn fill_right(&self, to: *mut u32, across: Range<usize>, step: usize, here: usize) {
        let from = self.part.start + step * DEPTH;
        let part = from..(from + here * DEPTH).min(self.part.end);
        for panel in 0..2 * across.len() {
            let first = (across.start * SIDE + panel * LINES).min(self.rhs.rows);
            let few = LINES.min(self.rhs.rows - first);
            // SAFETY: by the contract of this function.
            unsafe { fill(to.add(panel * here * WORDS), Side::Right, self.rhs, first, few, part.clone()) };
        }
    }
}
