//! What happens to a block of sums while it is still in the first cache: the start and what follows are added, and it is written
//! to the result.

use super::super::matrix::{After, Start};
use super::tile::SIDE;
use crate::simd::vectorised;
use crate::storage::SharedPointer;

/// Where results go, and what they begin and end with.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    pub(super) out: SharedPointer<f32>,
    /// The distance of two rows of the result.
    pub(super) stride: usize,
    pub(super) start: Start<'a>,
    pub(super) after: After<'a>,
}

vectorised! {
    /// Adds the same row to every row of a block.
    fn add_row(block: &mut [f32], row: &[f32]) {
        for line in block.chunks_exact_mut(SIDE) {
            line.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }

    /// Adds `rows` rows of a matrix, `stride` apart, to those of a block.
    ///
    /// `from` must be readable there.
    fn add_rows(block: &mut [f32], from: *const f32, stride: usize, rows: usize, columns: usize) {
        for (row, line) in block.chunks_exact_mut(SIDE).enumerate().take(rows) {
            // SAFETY: the rows can be read, as the caller promises.
            let from = unsafe { std::slice::from_raw_parts(from.add(row * stride), columns) };
            line.iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
        }
    }

    /// Writes the first `rows` rows and `columns` columns of a block to rows that are `stride` apart.
    ///
    /// `to` must be writable there.
    fn write(block: &[f32], to: *mut f32, stride: usize, rows: usize, columns: usize) {
        for (row, line) in block.chunks_exact(SIDE).enumerate().take(rows) {
            // SAFETY: the rows can be written, as the caller promises; columns is at most SIDE.
            unsafe { to.add(row * stride).copy_from_nonoverlapping(line.as_ptr(), columns.min(SIDE)) };
        }
    }
}

impl Finish<'_> {
    /// Finishes the block of the result at (`row`, `column`), of which `rows` and `columns` lie in the result.
    ///
    /// # Safety
    /// That part of the result is writable, and readable for [`Start::Kept`], and no other thread touches it.
    pub(super) unsafe fn block(self, sums: &mut [f32], (row, rows): (usize, usize), (column, columns): (usize, usize)) {
        // SAFETY: the result has this place, by the contract of this function.
        let out = unsafe { self.out.at(row * self.stride + column) };
        match self.start {
            Start::Zero => {}
            Start::Bias(bias) => add_row(sums, &bias[column..column + columns]),
            Start::Kept => add_rows(sums, out, self.stride, rows, columns),
        }
        let mut mapped = [0f32; SIDE * SIDE];
        let finished: &[f32] = match self.after {
            After::Nothing => sums,
            After::Map(map) => {
                map(&mut mapped, sums);
                &mapped
            }
            After::Add(more) => {
                let from = more[row * self.stride + column..].as_ptr();
                add_rows(sums, from, self.stride, rows, columns);
                sums
            }
        };
        write(finished, out, self.stride, rows, columns);
    }
}
