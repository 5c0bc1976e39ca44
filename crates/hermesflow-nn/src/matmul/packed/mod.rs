//! Large products of packed matrices, with sums in f32: `x Wᵀ`, `g W` and `gᵀ x`, of elements rounded to bf16, or of f32
//! elements as they are.
//!
//! Operands are rounded while they are packed, so they may be row-major or transposed, in f32 or bf16. A lane of 32 bits holds
//! one f32 element, or two bf16 elements that are neighbours along the summed dimension, as AVX512-BF16 multiplies them.
//! Packed parts of both operands stay in the L3 cache, the left rows of a task in L2. On a CPU without the instruction the same
//! rounded elements are multiplied in f32 by the `gemm` crate, on one with AMX by its tiles ([`tiles`]); an [`Engine`] says which.
//!
//! The order in which a result is summed follows from the size of the summed dimension alone, not from the threads nor from
//! the other rows.

use rayon::prelude::*;

use self::matrix::Start;
use super::operand::{Operand, gemm};
use super::packs_f32;
use crate::measure::count;
use crate::simd::{self, add_to};

#[cfg(target_arch = "x86_64")]
mod kernel;
mod matrix;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(test)]
mod tests;
pub(crate) mod tiles;

pub(crate) use self::matrix::{After, Matrix, Values};

/// What multiplies packed operands in bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// [`tiles`] by AMX; on a CPU without it, as [`Engine::Tiles`].
    Amx,
    /// [`tiles`] in software.
    Tiles,
    /// AVX512-BF16; on a CPU without it, as [`Engine::Rounded`].
    Vectors,
    /// Elements rounded to bf16 and multiplied in f32 by the `gemm` crate.
    Rounded,
}

/// `lhs [m, k] rhs [k, n] + bias [n]`, followed by `after` -> `[m, n]`.
pub(crate) fn multiply(
    engine: Engine,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    bias: Option<&[f32]>,
    after: After<'_>,
) -> Vec<f32> {
    let length = lhs.rows * rhs.columns;
    let mut out = Vec::with_capacity(length);
    // SAFETY: the allocation holds [m, n], and all of it is written from this start.
    unsafe {
        run(engine, out.as_mut_ptr(), lhs, rhs, bias.map_or(Start::Zero, Start::Bias), after);
        out.set_len(length);
    }
    out
}

/// `out [m, n] += lhs [m, k] rhs [k, n]`.
pub(crate) fn add(engine: Engine, out: &mut [f32], lhs: Matrix<'_>, rhs: Matrix<'_>) {
    assert_eq!(out.len(), lhs.rows * rhs.columns);
    // SAFETY: out is [m, n].
    unsafe { run(engine, out.as_mut_ptr(), lhs, rhs, Start::Kept, After::Nothing) }
}

/// `out [m, n] = out (if accumulate) + lhs [m, k] rhs [k, n]` in f32, if [`packs_f32`] and both operands are contiguous (row-major
/// or transposed). Returns whether the product was computed; if not, `out` is unchanged.
///
/// # Safety
/// Both operands are readable and `out` is writable in the given shapes and contiguous, and no other thread touches `out`.
pub(crate) unsafe fn multiply_f32(
    (m, n, k): (usize, usize, usize),
    out: *mut f32,
    accumulate: bool,
    lhs: Operand,
    rhs: Operand,
) -> bool {
    if !packs_f32((m, n, k)) {
        return false;
    }
    let matrix = |operand: Operand, rows: usize, columns: usize| {
        // SAFETY: by the contract of this function, for a contiguous operand.
        let values = || Values::F32(unsafe { std::slice::from_raw_parts(operand.start, rows * columns) });
        let matrix = match (operand.row, operand.column) {
            (row, 1) if row == columns => Matrix::new(values(), columns),
            (1, column) if column == rows => Matrix::new(values(), rows).t(),
            _ => return None,
        };
        Some(Matrix { as_f32: true, ..matrix })
    };
    let (Some(lhs), Some(rhs)) = (matrix(lhs, m, k), matrix(rhs, k, n)) else { return false };
    let start = if accumulate { Start::Kept } else { Start::Zero };
    // SAFETY: by the contract of this function.
    unsafe { run(Engine::Vectors, out, lhs, rhs, start, After::Nothing) };
    true
}

/// `out = start + lhs rhs`, followed by `after`. Operands in f32 that are not rounded are for [`Engine::Vectors`] alone.
///
/// # Safety
/// `out` is `[m, n]`, initialised if the start is [`Start::Kept`]; no other thread touches it.
unsafe fn run(engine: Engine, out: *mut f32, lhs: Matrix<'_>, rhs: Matrix<'_>, start: Start<'_>, after: After<'_>) {
    assert_eq!(lhs.columns, rhs.rows);
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), rhs.columns);
    }
    let length = lhs.rows * rhs.columns;
    if let After::Add(more) = after {
        assert_eq!(more.len(), length);
    }
    let (size, whole) = ((lhs.rows, rhs.columns, lhs.columns), length > 0 && lhs.columns > 0);
    if whole && matches!(engine, Engine::Amx | Engine::Tiles) {
        assert!(!lhs.as_f32 && !rhs.as_f32);
        let registers = engine == Engine::Amx && tiles::in_hardware();
        // SAFETY: by the contract of this function; the registers are used where they are.
        return count::product(size, true, || unsafe { tiles::run(registers, out, lhs, rhs, start, after) });
    }
    #[cfg(target_arch = "x86_64")]
    if whole && engine == Engine::Vectors && simd::bf16() {
        count::product(size, true, || {
            // SAFETY: the CPU has the instructions; by the contract of this function.
            unsafe { kernel::run(out, lhs, rhs, start) }
        });
        // SAFETY: the kernel has written all of it.
        return unsafe { apply(after, std::slice::from_raw_parts_mut(out, length)) };
    }
    // SAFETY: by the contract of this function.
    unsafe {
        match start {
            Start::Zero => (0..length).for_each(|at| out.add(at).write(0.0)),
            Start::Bias(bias) => (0..length).for_each(|at| out.add(at).write(bias[at % bias.len()])),
            Start::Kept => {}
        }
        add_rounded(out, lhs, rhs);
        apply(after, std::slice::from_raw_parts_mut(out, length));
    }
}

/// Does what follows a product, in a pass of its own.
fn apply(after: After<'_>, out: &mut [f32]) {
    const RUN: usize = 16 << 10;
    match after {
        After::Nothing => {}
        After::Map(map) => out.par_chunks_mut(RUN).for_each(|out| {
            let sums = out.to_vec();
            map(out, &sums);
        }),
        After::Add(more) => out.par_chunks_mut(RUN).zip(more.par_chunks(RUN)).for_each(|(out, more)| add_to(out, more)),
    }
}

/// `out += lhs rhs` of elements rounded to bf16, multiplied in f32 by `gemm`.
///
/// # Safety
/// `out` is `[m, n]`, and no other thread touches it.
unsafe fn add_rounded(out: *mut f32, lhs: Matrix<'_>, rhs: Matrix<'_>) {
    let (left, right) = (lhs.values.rounded(), rhs.values.rounded());
    let operand = |values: &[f32], matrix: Matrix<'_>| match matrix.transposed {
        false => Operand::rows(values.as_ptr(), matrix.columns),
        true => Operand::rows(values.as_ptr(), matrix.rows).t(),
    };
    let (size, stride) = ((lhs.rows, rhs.columns, lhs.columns), rhs.columns);
    // SAFETY: the operands have their matrices' shapes; by the contract of this function.
    unsafe { gemm(size, out, stride, true, operand(&left, lhs), operand(&right, rhs), 1.0, true) }
}
