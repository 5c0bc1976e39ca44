//! The three products of an affine map in training, on slices: forward, and the gradients of its input and weight.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};

use super::packed::{self, Matrix, Values};
use crate::gradients;
use crate::measure::{Part, on_host};
use crate::ops::linear::Linear;
use crate::storage::{Operand, column_sums, cpu, product};

/// How the matrix products of training are computed. Everything else is in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// In f32.
    #[default]
    F32,
    /// Of operands rounded to bf16, with sums in f32.
    Bf16,
}

/// A weight's elements where it lies.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Values<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, not strides {:?}", layout.stride());
    };
    match storage {
        CpuStorage::F32(values) => Ok(Values::Wide(&values[start..end])),
        CpuStorage::BF16(values) => Ok(Values::Brain(&values[start..end])),
        _ => bail!("expected a tensor in f32 or bf16"),
    }
}

impl Products {
    /// The type of their operands.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Whether these products take weights of this type.
    pub fn take(self, dtype: DType) -> bool {
        matches!((self, dtype), (_, DType::F32) | (Self::Bf16, DType::BF16))
    }

    /// `x Wᵀ + b`.
    pub(crate) fn affine(self, x: &[f32], weight: &Tensor, bias: &Tensor) -> Result<Vec<f32>> {
        on_host(Part::Products, || self.affine_of(x, weight, bias))
    }

    fn affine_of(self, x: &[f32], weight: &Tensor, bias: &Tensor) -> Result<Vec<f32>> {
        let (_, input) = weight.dims2()?;
        let ((w, w_layout), (b, b_layout)) = (weight.storage_and_layout(), bias.storage_and_layout());
        let bias = crate::storage::host(&b, b_layout)?;
        Ok(match (self, values(cpu(&w)?, w_layout)?) {
            (Self::F32, Values::Wide(weight)) => Linear::forward(x, weight, Some(bias), input),
            (Self::F32, Values::Brain(_)) => bail!("products in f32 of a weight in bf16"),
            (Self::Bf16, weight) => {
                packed::multiply(Matrix::wide(x, input), Matrix::new(weight, input).t(), Some(bias))
            }
        })
    }

    /// `dx = g W`, added to `sum` where there is one.
    pub(crate) fn input_gradient(self, grad: &[f32], weight: &Tensor, sum: Option<Vec<f32>>) -> Result<Vec<f32>> {
        on_host(Part::Products, || self.input_gradient_of(grad, weight, sum))
    }

    fn input_gradient_of(self, grad: &[f32], weight: &Tensor, sum: Option<Vec<f32>>) -> Result<Vec<f32>> {
        let (out, input) = weight.dims2()?;
        let (w, layout) = weight.storage_and_layout();
        match (self, values(cpu(&w)?, layout)?) {
            (Self::F32, Values::Wide(weight)) => {
                let (g, w) = (Operand::rows(grad.as_ptr(), out), Operand::rows(weight.as_ptr(), input));
                // SAFETY: g is [n, out], w [out, input].
                Ok(unsafe { wide((grad.len() / out, input, out), g, w, sum) })
            }
            (Self::F32, Values::Brain(_)) => bail!("products in f32 of a weight in bf16"),
            (Self::Bf16, weight) => {
                let (g, w) = (Matrix::wide(grad, out), Matrix::new(weight, input));
                Ok(match sum {
                    None => packed::multiply(g, w, None),
                    Some(mut sum) => {
                        packed::add(&mut sum, g, w);
                        sum
                    }
                })
            }
        }
    }

    /// Adds `dW = gᵀ x` and `db = Σ g` to the gradients that are being collected.
    pub(crate) fn weight_gradients(self, grad: &[f32], x: &[f32], weight: &Tensor, bias: &Tensor) -> Result<()> {
        on_host(Part::Products, || self.weight_gradients_of(grad, x, weight, bias))
    }

    fn weight_gradients_of(self, grad: &[f32], x: &[f32], weight: &Tensor, bias: &Tensor) -> Result<()> {
        let (out, input) = weight.dims2()?;
        let n = x.len() / input.max(1);
        let (g, by) = (Matrix::wide(grad, out).t(), Matrix::wide(x, input));
        let (g_wide, x_wide) = (Operand::rows(grad.as_ptr(), out).t(), Operand::rows(x.as_ptr(), input));
        let (size, parallel) = ((out, input, n), true);
        gradients::add(
            weight,
            || match self {
                Self::Bf16 => packed::multiply(g, by, None),
                // SAFETY: g is [n, out], x [n, input].
                Self::F32 => unsafe { wide(size, g_wide, x_wide, None) },
            },
            |sum| match self {
                Self::Bf16 => packed::add(sum, g, by),
                // SAFETY: as above, and the sum is [out, input].
                Self::F32 => unsafe { product(size, sum.as_mut_ptr(), input, true, g_wide, x_wide, 1.0, parallel) },
            },
        )?;
        if bias.track_op() {
            gradients::add_vector(bias, &column_sums(grad, out))?;
        }
        Ok(())
    }
}

/// `lhs rhs` in f32, added to `sum` where there is one.
///
/// # Safety
/// The operands can be read in the given sizes.
unsafe fn wide(size: (usize, usize, usize), lhs: Operand, rhs: Operand, sum: Option<Vec<f32>>) -> Vec<f32> {
    let (m, n, _) = size;
    let (kept, mut out) = (sum.is_some(), sum.unwrap_or_else(|| Vec::with_capacity(m * n)));
    assert!(!kept || out.len() == m * n);
    // SAFETY: by the contract of this function; the product writes all of [m, n] without reading it, or adds to it.
    unsafe {
        product(size, out.as_mut_ptr(), n, kept, lhs, rhs, 1.0, true);
        out.set_len(m * n);
    }
    out
}
