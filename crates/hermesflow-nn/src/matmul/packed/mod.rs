//! Large products of packed matrices, with sums in f32: `x Wᵀ`, `g W` and `gᵀ x`, of elements that are rounded to bf16 or
//! of f32 as they are.
//!
//! The operands are packed while they are rounded, so that they may lie either way and be f32 or bf16: a lane of 32 bits
//! holds a number in f32, or two neighbours along the summed dimension in bf16, as AVX512-BF16 takes them. Packed parts of
//! both stay in the third cache, the left rows of a task in the second. Without the instruction the same rounded elements
//! are multiplied in f32 by the library's product, which f32 has anyway ([`crate::storage::product`] chooses).
//!
//! A result's order of summation follows from the summed dimension alone: not from the threads, nor from the other rows.

use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::storage::{Operand, product};

#[cfg(target_arch = "x86_64")]
mod kernel;
#[cfg(test)]
mod tests;

/// The elements of an operand.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    /// Rounded when they are packed, unless the matrix is [`exact`](Matrix::exact).
    Wide(&'a [f32]),
    /// As they are.
    Brain(&'a [bf16]),
}

impl Values<'_> {
    fn len(self) -> usize {
        match self {
            Self::Wide(values) => values.len(),
            Self::Brain(values) => values.len(),
        }
    }

    /// Rounded, in f32.
    fn rounded(self) -> Vec<f32> {
        let mut wide = vec![0f32; self.len()];
        match self {
            Self::Wide(values) => super::unpacked::narrow(values).convert_to_f32_slice(&mut wide),
            Self::Brain(values) => values.convert_to_f32_slice(&mut wide),
        }
        wide
    }
}

/// An operand: a row-major matrix, or one transposed.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: Values<'a>,
    rows: usize,
    columns: usize,
    /// Whether `values` hold it column by column.
    turned: bool,
    /// Whether elements in f32 are multiplied as they are; those of both operands are, or of none.
    exact: bool,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` elements each.
    pub(crate) fn new(values: Values<'a>, columns: usize) -> Self {
        let rows = values.len() / columns.max(1);
        debug_assert_eq!(values.len(), rows * columns);
        Self { values, rows, columns, turned: false, exact: false }
    }

    /// Rows of f32.
    pub(crate) fn wide(values: &'a [f32], columns: usize) -> Self {
        Self::new(Values::Wide(values), columns)
    }

    /// The same elements, transposed.
    pub(crate) fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, turned: !self.turned, ..self }
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
enum Start<'a> {
    Zero,
    /// The same row everywhere.
    Bias(&'a [f32]),
    /// What is there.
    Kept,
}

/// `lhs [m, k] rhs [k, n] + bias [n]` -> `[m, n]`.
pub(crate) fn multiply(lhs: Matrix<'_>, rhs: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let length = lhs.rows * rhs.columns;
    let mut out = Vec::with_capacity(length);
    // SAFETY: the allocation holds [m, n], and all of it is written from this start.
    unsafe {
        run(out.as_mut_ptr(), lhs, rhs, bias.map_or(Start::Zero, Start::Bias));
        out.set_len(length);
    }
    out
}

/// `out [m, n] += lhs [m, k] rhs [k, n]`.
pub(crate) fn add(out: &mut [f32], lhs: Matrix<'_>, rhs: Matrix<'_>) {
    assert_eq!(out.len(), lhs.rows * rhs.columns);
    // SAFETY: out is [m, n].
    unsafe { run(out.as_mut_ptr(), lhs, rhs, Start::Kept) }
}

/// The least of each dimension from which [`exact`] is faster than the library's product.
const LARGE: usize = 768;

/// `out [m, n] = out (if accumulate) + lhs [m, k] rhs [k, n]` in f32, all contiguous, if the product is large and this CPU
/// has the kernel; whether it was done.
///
/// # Safety
/// Both operands are readable and `out` is writable in the given shapes, and no other thread touches `out`.
pub(crate) unsafe fn exact(
    (m, n, k): (usize, usize, usize),
    out: *mut f32,
    accumulate: bool,
    lhs: Operand,
    rhs: Operand,
) -> bool {
    if m.min(n).min(k) < LARGE || !super::half_weight::multiplies_bf16() {
        return false;
    }
    let matrix = |operand: Operand, rows: usize, columns: usize| {
        // SAFETY: by the contract of this function, for a contiguous operand.
        let values = || Values::Wide(unsafe { std::slice::from_raw_parts(operand.start, rows * columns) });
        let matrix = match (operand.row, operand.column) {
            (row, 1) if row == columns => Matrix::new(values(), columns),
            (1, column) if column == rows => Matrix::new(values(), rows).t(),
            _ => return None,
        };
        Some(Matrix { exact: true, ..matrix })
    };
    let (Some(lhs), Some(rhs)) = (matrix(lhs, m, k), matrix(rhs, k, n)) else { return false };
    // SAFETY: by the contract of this function.
    unsafe { run(out, lhs, rhs, if accumulate { Start::Kept } else { Start::Zero }) };
    true
}

/// # Safety
/// `out` is `[m, n]`, and holds numbers if they are [`Start::Kept`]; no other thread touches it.
unsafe fn run(out: *mut f32, lhs: Matrix<'_>, rhs: Matrix<'_>, start: Start<'_>) {
    assert_eq!(lhs.columns, rhs.rows);
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), rhs.columns);
    }
    let length = lhs.rows * rhs.columns;
    #[cfg(target_arch = "x86_64")]
    if super::half_weight::multiplies_bf16() && length > 0 && lhs.columns > 0 {
        return crate::measure::product((lhs.rows, rhs.columns, lhs.columns), true, || {
            // SAFETY: the CPU has the instructions; by the contract of this function.
            unsafe { kernel::run(out, lhs, rhs, start) }
        });
    }
    // SAFETY: by the contract of this function.
    unsafe {
        match start {
            Start::Zero => (0..length).for_each(|at| out.add(at).write(0.0)),
            Start::Bias(bias) => (0..length).for_each(|at| out.add(at).write(bias[at % bias.len()])),
            Start::Kept => {}
        }
        plain(out, lhs, rhs);
    }
}

/// `out += lhs rhs` of the rounded elements by the product in f32.
///
/// # Safety
/// `out` is `[m, n]`, and no other thread touches it.
unsafe fn plain(out: *mut f32, lhs: Matrix<'_>, rhs: Matrix<'_>) {
    let (left, right) = (lhs.values.rounded(), rhs.values.rounded());
    let operand = |values: &[f32], matrix: Matrix<'_>| match matrix.turned {
        false => Operand::rows(values.as_ptr(), matrix.columns),
        true => Operand::rows(values.as_ptr(), matrix.rows).t(),
    };
    let (size, stride) = ((lhs.rows, rhs.columns, lhs.columns), rhs.columns);
    // SAFETY: the operands have their matrices' shapes; by the contract of this function.
    unsafe { product(size, out, stride, true, operand(&left, lhs), operand(&right, rhs), 1.0, true) }
}
