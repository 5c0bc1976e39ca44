//! Operands of products in f32 that may lie in memory in any way, and their product by the `gemm` crate.

use crate::measure::count;

/// A matrix in f32: where it starts, and how far apart its rows and its columns are, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub(crate) start: *const f32,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl Operand {
    /// A row-major matrix whose rows begin `stride` elements apart.
    pub(crate) fn rows(start: *const f32, stride: usize) -> Self {
        Self { start, row: stride, column: 1 }
    }

    /// The transposed matrix, of the same elements.
    pub(crate) fn t(self) -> Self {
        Self { start: self.start, row: self.column, column: self.row }
    }
}

/// `out [m, n] = out (if accumulate) + scale * lhs [m, k] rhs [k, n]` by the `gemm` crate, with the rows of `out` `stride`
/// apart; on all threads if `parallel`.
///
/// # Safety
/// Both operands are readable and `out` is writable in the given shapes, and no other thread touches `out`.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn gemm(
    (m, n, k): (usize, usize, usize),
    out: *mut f32,
    stride: usize,
    accumulate: bool,
    lhs: Operand,
    rhs: Operand,
    scale: f32,
    parallel: bool,
) {
    let parallelism = match parallel {
        true => gemm::Parallelism::Rayon(rayon::current_num_threads()),
        false => gemm::Parallelism::None,
    };
    // SAFETY: by the contract of this function.
    count::product((m, n, k), parallel, || unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            stride as isize,
            accumulate,
            lhs.start,
            lhs.column as isize,
            lhs.row as isize,
            rhs.start,
            rhs.column as isize,
            rhs.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    });
}
