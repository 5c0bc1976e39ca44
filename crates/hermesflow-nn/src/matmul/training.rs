//! The three matrix products of an affine map in training, on slices in memory: forward, and the gradients of its input and of
//! its weight.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};

use super::choice;
use super::f32_weight::{self, bias_gradient};
use super::operand::Operand;
use super::packed::{self, After, Engine, Matrix, Values};
use super::product::product;
use crate::gradients;
use crate::measure::profile::{Part, on_host};
use crate::storage::{cpu, host};

/// The type of the operands of training's matrix products; everything else in training is f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// Operands, sums and results in f32.
    #[default]
    F32,
    /// Operands rounded to bf16, sums and results in f32.
    Bf16,
}

/// What multiplies training's operands in bf16.
fn engine() -> Engine {
    choice::current().training.engine()
}

/// The elements of a contiguous weight in f32 or bf16.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Values<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, not strides {:?}", layout.stride());
    };
    match storage {
        CpuStorage::F32(values) => Ok(Values::F32(&values[start..end])),
        CpuStorage::BF16(values) => Ok(Values::Bf16(&values[start..end])),
        _ => bail!("expected a tensor in f32 or bf16"),
    }
}

impl Products {
    /// The type of the operands.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Whether the products take a weight held in `dtype`; any other weight must be widened to f32 first.
    pub fn take(self, dtype: DType) -> bool {
        matches!((self, dtype), (_, DType::F32) | (Self::Bf16, DType::BF16))
    }

    /// `x Wᵀ + b` on the CPU.
    ///
    /// # Shapes
    /// `x [n, in]`, `weight [out, in]`, `bias [out]` -> `[n, out]`
    pub(crate) fn affine(self, x: &[f32], weight: &Tensor, bias: &Tensor) -> Result<Vec<f32>> {
        on_host(Part::Products, || self.affine_of(x, weight, bias))
    }

    fn affine_of(self, x: &[f32], weight: &Tensor, bias: &Tensor) -> Result<Vec<f32>> {
        let (_, input) = weight.dims2()?;
        let ((w, w_layout), (b, b_layout)) = (weight.storage_and_layout(), bias.storage_and_layout());
        let bias = host(&b, b_layout)?;
        Ok(match (self, values(cpu(&w)?, w_layout)?) {
            (Self::F32, Values::F32(weight)) => f32_weight::forward(x, weight, Some(bias), input),
            (Self::F32, Values::Bf16(_)) => bail!("products in f32 of a weight in bf16"),
            (Self::Bf16, weight) => {
                let (x, weight) = (Matrix::f32(x, input), Matrix::new(weight, input).t());
                packed::multiply(engine(), x, weight, Some(bias), After::Nothing)
            }
        })
    }

    /// The gradient of the input of an affine map, `dx = g W`, added to `sum` if that is given.
    ///
    /// # Shapes
    /// `grad [n, out]`, `weight [out, in]`, `sum [n, in]` -> `[n, in]`
    pub(crate) fn input_gradient(self, grad: &[f32], weight: &Tensor, sum: Option<Vec<f32>>) -> Result<Vec<f32>> {
        on_host(Part::Products, || self.input_gradient_of(grad, weight, sum))
    }

    fn input_gradient_of(self, grad: &[f32], weight: &Tensor, sum: Option<Vec<f32>>) -> Result<Vec<f32>> {
        let (out, input) = weight.dims2()?;
        let (w, layout) = weight.storage_and_layout();
        match (self, values(cpu(&w)?, layout)?) {
            (Self::F32, Values::F32(weight)) => {
                let (g, w) = (Operand::rows(grad.as_ptr(), out), Operand::rows(weight.as_ptr(), input));
                // SAFETY: g is [n, out], w [out, input].
                Ok(unsafe { f32_product((grad.len() / out, input, out), g, w, sum) })
            }
            (Self::F32, Values::Bf16(_)) => bail!("products in f32 of a weight in bf16"),
            (Self::Bf16, weight) => {
                let (g, w) = (Matrix::f32(grad, out), Matrix::new(weight, input));
                Ok(match sum {
                    None => packed::multiply(engine(), g, w, None, After::Nothing),
                    Some(mut sum) => {
                        packed::add(engine(), &mut sum, g, w);
                        sum
                    }
                })
            }
        }
    }

    /// Adds the gradients of a weight and a bias, `dW = gᵀ x` and `db = Σ g`, to those that [`gradients`] collects.
    ///
    /// # Shapes
    /// `grad [n, out]`, `x [n, in]`, `weight [out, in]`, `bias [out]`
    ///
    /// # Errors
    /// When nothing collects them.
    pub(crate) fn weight_gradients(self, grad: &[f32], x: &[f32], weight: &Tensor, bias: &Tensor) -> Result<()> {
        on_host(Part::Products, || self.weight_gradients_of(grad, x, weight, bias))
    }

    fn weight_gradients_of(self, grad: &[f32], x: &[f32], weight: &Tensor, bias: &Tensor) -> Result<()> {
        let (out, input) = weight.dims2()?;
        let n = x.len() / input.max(1);
        let (g, by) = (Matrix::f32(grad, out).t(), Matrix::f32(x, input));
        let (g_f32, x_f32) = (Operand::rows(grad.as_ptr(), out).t(), Operand::rows(x.as_ptr(), input));
        let (size, parallel) = ((out, input, n), true);
        gradients::add(
            weight,
            || match self {
                Self::Bf16 => packed::multiply(engine(), g, by, None, After::Nothing),
                // SAFETY: g is [n, out], x [n, input].
                Self::F32 => unsafe { f32_product(size, g_f32, x_f32, None) },
            },
            |sum| match self {
                Self::Bf16 => packed::add(engine(), sum, g, by),
                // SAFETY: as above, and the sum is [out, input].
                Self::F32 => unsafe { product(size, sum.as_mut_ptr(), input, true, g_f32, x_f32, 1.0, parallel) },
            },
        )?;
        if bias.track_op() {
            gradients::add_vector(bias, &bias_gradient(grad, out))?;
        }
        Ok(())
    }
}

/// `lhs rhs` in f32, added to `sum` if that is given.
///
/// # Safety
/// The operands can be read in the given sizes.
unsafe fn f32_product(size: (usize, usize, usize), lhs: Operand, rhs: Operand, sum: Option<Vec<f32>>) -> Vec<f32> {
    let (m, n, _) = size;
    let (accumulate, mut out) = (sum.is_some(), sum.unwrap_or_else(|| Vec::with_capacity(m * n)));
    assert!(!accumulate || out.len() == m * n);
    // SAFETY: by the contract of this function; the product writes all of [m, n] without reading it, or adds to it.
    unsafe {
        product(size, out.as_mut_ptr(), n, accumulate, lhs, rhs, 1.0, true);
        out.set_len(m * n);
    }
    out
}
