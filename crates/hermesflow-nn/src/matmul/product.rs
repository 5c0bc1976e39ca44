//! The product of two matrices in f32 that may lie in memory in any way.

use super::operand::{Operand, gemm};
use super::packed;

/// `out [m, n] = out (if accumulate) + scale * lhs [m, k] rhs [k, n]`, with the rows of `out` `stride` apart; on all threads
/// if `parallel`.
///
/// A large product of contiguous matrices runs in [`packed`] ([`super::packs_f32`]), any other in `gemm`.
///
/// # Safety
/// Both operands are readable and `out` is writable in the given shapes, and no other thread touches `out`.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn product(
    (m, n, k): (usize, usize, usize),
    out: *mut f32,
    stride: usize,
    accumulate: bool,
    lhs: Operand,
    rhs: Operand,
    scale: f32,
    parallel: bool,
) {
    let contiguous = parallel && scale == 1.0 && stride == n;
    // SAFETY: by the contract of this function, of a contiguous `out`.
    if contiguous && unsafe { packed::multiply_f32((m, n, k), out, accumulate, lhs, rhs) } {
        return;
    }
    // SAFETY: by the contract of this function.
    unsafe { gemm((m, n, k), out, stride, accumulate, lhs, rhs, scale, parallel) }
}
