//! The operands of packed products.

use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::matmul::unpacked;

/// The elements of an operand.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    /// In f32: rounded to bf16 when they are packed, unless [`Matrix::as_f32`].
    F32(&'a [f32]),
    /// In bf16: packed as they are.
    Bf16(&'a [bf16]),
}

impl Values<'_> {
    fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// The elements rounded to bf16, in f32.
    pub(super) fn rounded(self) -> Vec<f32> {
        let mut wide = vec![0f32; self.len()];
        match self {
            Self::F32(values) => unpacked::rounded(values).convert_to_f32_slice(&mut wide),
            Self::Bf16(values) => values.convert_to_f32_slice(&mut wide),
        }
        wide
    }
}

/// An operand: a contiguous matrix, row-major or transposed.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(super) values: Values<'a>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Whether `values` hold the matrix column by column.
    pub(super) transposed: bool,
    /// Whether f32 elements are multiplied in f32 instead of rounded to bf16; the same for both operands of a product.
    pub(super) as_f32: bool,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix of `columns` columns.
    pub(crate) fn new(values: Values<'a>, columns: usize) -> Self {
        let rows = values.len() / columns.max(1);
        debug_assert_eq!(values.len(), rows * columns);
        Self { values, rows, columns, transposed: false, as_f32: false }
    }

    /// A row-major matrix of `columns` columns in f32.
    pub(crate) fn f32(values: &'a [f32], columns: usize) -> Self {
        Self::new(Values::F32(values), columns)
    }

    /// The transposed matrix, of the same elements.
    pub(crate) fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, transposed: !self.transposed, ..self }
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// Nothing: the result need not be initialised.
    Zero,
    /// The same row of biases in every row of the result.
    Bias(&'a [f32]),
    /// The present values of the result.
    Kept,
}

/// What is done to each result once its sum is complete.
#[derive(Clone, Copy)]
pub(crate) enum After<'a> {
    /// Nothing.
    Nothing,
    /// A function of the results, element by element, such as an activation: of the second slice, written to the first.
    Map(fn(&mut [f32], &[f32])),
    /// A matrix of the result's shape is added, such as a residual.
    Add(&'a [f32]),
}
