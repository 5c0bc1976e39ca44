//! Weights held in 16 bits (bf16 or f16) under activations in f32, on the CPU: half the memory of a model in f32, and half the
//! traffic, which bounds the speed of decoding. A CPU with AVX512-BF16 multiplies activations rounded to bf16; any other widens
//! the weight to f32, block by block in the cache.
//!
//! For frozen weights only: there is no backward pass, and asking for one is an error.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::operand::Operand;
use super::packed::{self, After, Engine, Matrix, Values};
use super::product::product;
use super::unpacked::{self, Product};
use super::{Kernel, cpu_kernel};
use crate::device::uses_kernels;
use crate::storage::{SharedPointer, cpu, elements, host};

/// Whether a tensor is in 16 bits on a device that uses these kernels.
pub(crate) fn is_half(weight: &Tensor) -> bool {
    uses_kernels(weight.device()) && matches!(weight.dtype(), DType::BF16 | DType::F16)
}

/// `x Wᵀ + b`.
///
/// # Shapes
/// `x [n, in]` and `bias [out]` in f32, `weight [out, in]` in 16 bits, all contiguous -> `[n, out]` in f32
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => x.apply_op3(weight, bias, HalfLinear),
        None => x.apply_op2(weight, HalfLinear),
    }
}

/// Several `x Wᵀ + b` with contiguous bf16 weights, whose [`super::kernel`] is [`Kernel::Unpacked`], in one go. An `x` that is
/// in several of them is rounded to bf16 once.
pub(crate) fn linear_all(products: &[(&Tensor, &Tensor, &Tensor)]) -> Result<Vec<Tensor>> {
    let mut rounded_x: Vec<(&Tensor, Vec<bf16>)> = Vec::new();
    for (x, _, _) in products {
        if !rounded_x.iter().any(|(known, _)| known.id() == x.id()) {
            let (store, layout) = x.storage_and_layout();
            rounded_x.push((x, unpacked::rounded(host(&store, layout)?)));
        }
    }
    let stores: Vec<_> = products.iter().map(|(_, w, b)| [w, b].map(|tensor| tensor.storage_and_layout())).collect();
    let mut prepared = Vec::with_capacity(products.len());
    for ((x, _, _), [(w, wl), (b, bl)]) in products.iter().zip(&stores) {
        let (Some((_, x)), Half::Bf16(weight)) =
            (rounded_x.iter().find(|(known, _)| known.id() == x.id()), Half::new(cpu(w)?, wl)?)
        else {
            bail!("expected a weight in bf16");
        };
        prepared.push(Product { x, weight, bias: Some(host(b, bl)?), depth: wl.dims()[1] });
    }
    let results = unpacked::linear_all(&prepared).into_iter().zip(products);
    results.map(|(y, (x, weight, _))| Tensor::from_vec(y, (x.dims()[0], weight.dims()[0]), x.device())).collect()
}

/// `x Wᵀ + b` by packed operands, and what follows it, without a graph.
///
/// # Shapes
/// `x [n, in]` and `bias [out]` in f32, `weight [out, in]` in bf16, all contiguous -> `[n, out]` in f32
pub(crate) fn packed_linear(
    engine: Engine,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    after: After<'_>,
) -> Result<Tensor> {
    let [(xs, xl), (ws, wl), (bs, bl)] = [x, weight, bias].map(|tensor| tensor.storage_and_layout());
    let Half::Bf16(values) = Half::new(cpu(&ws)?, wl)? else { bail!("expected a weight in bf16") };
    let ((n, input), (out, _)) = (x.dims2()?, weight.dims2()?);
    let weight = Matrix::new(Values::Bf16(values), input);
    let y = packed::multiply(engine, Matrix::f32(host(&xs, xl)?, input), weight.t(), Some(host(&bs, bl)?), after);
    Tensor::from_vec(y, (n, out), x.device())
}

/// The numbered rows of a 16-bit matrix, in f32.
///
/// # Shapes
/// `x [n, h]`, `rows` m of them -> `[m, h]`
pub(crate) fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    x.apply_op1(HalfRows { rows: rows.into() })
}

/// The elements of a contiguous 16-bit tensor.
#[derive(Clone, Copy)]
enum Half<'a> {
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> Half<'a> {
    /// The elements of a storage.
    ///
    /// # Errors
    /// When the tensor is not contiguous or not in 16 bits.
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, not strides {:?}", layout.stride());
        };
        Ok(match storage {
            CpuStorage::BF16(values) => Self::Bf16(&values[start..end]),
            CpuStorage::F16(values) => Self::F16(&values[start..end]),
            _ => bail!("expected a tensor in 16 bits"),
        })
    }

    fn dtype(self) -> DType {
        match self {
            Self::Bf16(_) => DType::BF16,
            Self::F16(_) => DType::F16,
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Bf16(values) => values.len(),
            Self::F16(values) => values.len(),
        }
    }

    /// Writes the elements from `from` on into `to`, in f32.
    fn widen(self, from: usize, to: &mut [f32]) {
        match self {
            Self::Bf16(values) => values[from..from + to.len()].convert_to_f32_slice(to),
            Self::F16(values) => values[from..from + to.len()].convert_to_f32_slice(to),
        }
    }
}

/// `x Wᵀ` with a weight in bf16, by a kernel that takes one.
///
/// # Shapes
/// `x [n, input]`, `weight [out, input]` -> `[n, out]`
pub(crate) fn bf16_linear_by(kernel: Kernel, x: &[f32], weight: &[bf16], input: usize) -> Result<Vec<f32>> {
    HalfLinear::by(kernel, x, Half::Bf16(weight), None, input)
}

struct HalfLinear;

impl HalfLinear {
    /// `x Wᵀ + b` with `input` columns of `x` and of the weight.
    fn forward(x: &[f32], weight: Half<'_>, bias: Option<&[f32]>, input: usize) -> Result<Vec<f32>> {
        let kernel = cpu_kernel(x.len() / input.max(1), weight.dtype(), weight.len(), input);
        Self::by(kernel, x, weight, bias, input)
    }

    /// [`Self::forward`] by a kernel.
    fn by(kernel: Kernel, x: &[f32], weight: Half<'_>, bias: Option<&[f32]>, input: usize) -> Result<Vec<f32>> {
        let (n, out) = (x.len() / input.max(1), weight.len() / input.max(1));
        let (block, transposed) = match (kernel, weight) {
            (Kernel::Unpacked, Half::Bf16(weight)) => {
                let x = &unpacked::rounded(x);
                return Ok(unpacked::linear(Product { x, weight, bias, depth: input }));
            }
            (Kernel::Packed { engine }, Half::Bf16(weight)) => {
                let weight = Matrix::new(Values::Bf16(weight), input);
                return Ok(packed::multiply(engine, Matrix::f32(x, input), weight.t(), bias, After::Nothing));
            }
            (Kernel::Widened { block, transposed }, _) => (block, transposed),
            (kernel, _) => bail!("{kernel:?} does not take a weight in {:?}", weight.dtype()),
        };
        let mut y = vec![0f32; n * out];
        let target = SharedPointer(y.as_mut_ptr());
        let lines = (block / input.max(1)).clamp(1, out.max(1));
        (0..out.div_ceil(lines)).into_par_iter().for_each_init(Vec::new, |scratch, block| {
            let (first, lines) = (block * lines, lines.min(out - block * lines));
            scratch.resize(lines * input + if transposed { lines * n } else { 0 }, 0f32);
            let (wide, block) = scratch.split_at_mut(lines * input);
            weight.widen(first * input, wide);
            let (w, x) = (Operand::rows(wide.as_ptr(), input), Operand::rows(x.as_ptr(), input));
            if transposed {
                // SAFETY: w is [lines, input], x [n, input], block [lines, n], all contiguous.
                unsafe { product((lines, n, input), block.as_mut_ptr(), n, false, w, x.t(), 1.0, false) };
            }
            for row in 0..n {
                // SAFETY: the columns first .. first + lines of y [n, out] are this task's alone.
                let y = unsafe { std::slice::from_raw_parts_mut(target.at(row * out + first), lines) };
                match bias {
                    Some(bias) => y.copy_from_slice(&bias[first..first + lines]),
                    None => y.fill(0.0),
                }
                if transposed {
                    y.iter_mut().enumerate().for_each(|(line, y)| *y += block[line * n + row]);
                }
            }
            if !transposed {
                // SAFETY: x is [n, input], w [lines, input]; the columns of y are this task's alone.
                unsafe { product((n, lines, input), target.at(first), out, true, x, w.t(), 1.0, false) };
            }
        });
        Ok(y)
    }
}

impl CustomOp2 for HalfLinear {
    fn name(&self) -> &'static str {
        "linear with a 16-bit weight"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, input), (out, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let y = Self::forward(elements(x, xl)?, Half::new(w, wl)?, None, input)?;
        Ok((CpuStorage::F32(y), (n, out).into()))
    }
}

impl CustomOp3 for HalfLinear {
    fn name(&self) -> &'static str {
        "linear with a 16-bit weight"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, input), (out, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let y = Self::forward(elements(x, xl)?, Half::new(w, wl)?, Some(elements(b, bl)?), input)?;
        Ok((CpuStorage::F32(y), (n, out).into()))
    }
}

struct HalfRows {
    rows: Box<[u32]>,
}

impl CustomOp1 for HalfRows {
    fn name(&self) -> &'static str {
        "rows of a 16-bit matrix"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, h) = layout.shape().dims2()?;
        let x = Half::new(x, layout)?;
        let mut out = vec![0f32; self.rows.len() * h];
        for (&row, out) in self.rows.iter().zip(out.chunks_exact_mut(h.max(1))) {
            x.widen(row as usize * h, out);
        }
        Ok((CpuStorage::F32(out), (self.rows.len(), h).into()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::matmul::choice::{self, Bf16Kernel};
    use crate::ops;
    use crate::testing::{kernels_run, normal};
    use candle_core::{DType, Tensor, Var};

    fn rounded(x: &Tensor, dtype: DType) -> Tensor {
        x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()
    }

    #[test]
    fn a_row_is_the_same_in_any_batch() {
        let (x, w) = (normal(&[17, 300]), normal(&[45, 300]).to_dtype(DType::BF16).unwrap());
        let together = ops::linear(&x, &w, None).unwrap();
        let chosen = choice::current().weight(17, 45 * 300);
        let bit_for_bit = chosen != Bf16Kernel::Widened && kernels_run("a row of the same bits in any batch");
        for row in 0..17 {
            let alone = ops::linear(&x.narrow(0, row, 1).unwrap(), &w, None).unwrap();
            let distance = distance(&together.narrow(0, row, 1).unwrap(), &alone);
            assert!(distance <= if bit_for_bit { 0.0 } else { 1e-4 }, "{row}: {distance}");
        }
    }

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn agrees_with_the_widened_weight() {
        for dtype in [DType::BF16, DType::F16] {
            for (n, input, out) in [(1, 5, 3), (37, 19, 23), (130, 640, 700), (210, 7, 33), (300, 2112, 70)] {
                let (x, w, b) = (normal(&[n, input]), normal(&[out, input]).to_dtype(dtype).unwrap(), normal(&[out]));
                // What a bf16 product sees, where the CPU has one; a composition rounds to either type.
                let widened = dtype == DType::F16 && kernels_run("products of f16 see their input in f32");
                let x = if widened { x } else { rounded(&x, dtype) };
                let wide = w.to_dtype(DType::F32).unwrap();
                let near = |bias: Option<&Tensor>| {
                    let (y, plain) = (ops::linear(&x, &w, bias).unwrap(), ops::linear(&x, &wide, bias).unwrap());
                    assert_eq!(y.dtype(), DType::F32);
                    // A forced kernel may keep one running sum over all of a long input.
                    let long = if choice::forced().is_some() { (input as f32 / 640.0).max(1.0) } else { 1.0 };
                    assert!(distance(&y, &plain) < 1e-4 * long, "{dtype:?} {n} {input} {out}");
                };
                near(Some(&b));
                near(None);
                let rows: Vec<u32> = (0..n as u32).map(|i| i * 7 % out as u32).collect();
                let picked = ops::embedding(&w, &rows).unwrap();
                assert_eq!(distance(&picked, &ops::embedding(&wide, &rows).unwrap()), 0.0);
            }
        }
    }

    #[test]
    fn a_gradient_through_it_is_an_error() {
        if !kernels_run("no gradient through a weight in 16 bits") {
            return;
        }
        let x = Var::from_tensor(&normal(&[4, 6])).unwrap();
        let w = normal(&[3, 6]).to_dtype(DType::BF16).unwrap();
        assert!(ops::linear(&x, &w, None).unwrap().sum_all().unwrap().backward().is_err());
    }
}
