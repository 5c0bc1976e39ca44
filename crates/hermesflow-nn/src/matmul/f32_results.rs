//! Matrix products of operands of one type (f32, bf16 or f16) with sums and results in f32, on any device: those of training and
//! attention where no kernel of this crate takes them. candle's own product would round its result to the operands' type.
//!
//! On a GPU a product is one call of cuBLAS, which can also add to an existing result. On the CPU the operands are first widened
//! to f32, so that the same computation can be tried without a GPU.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, DType, InplaceOp3, Layout, Result, Shape, Tensor, bail};
use half::slice::HalfFloatSliceExt;

use super::operand::Operand;
use super::product::product;
use crate::measure::profile::{Part, part};

/// `x y` in f32, without a graph; operands may be transposed views.
///
/// # Shapes
/// `x [m, k]`, `y [k, n]` -> `[m, n]`, or `x [b, m, k]`, `y [b, k, n]` -> `[b, m, n]`
pub(crate) fn multiply(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (x, y) = (arranged(x)?, arranged(y)?);
    let size = Size::new(x.layout(), y.layout())?;
    if size.batch * size.m * size.n * size.k == 0 {
        return Tensor::zeros(size.shape(x.rank()), DType::F32, x.device());
    }
    part(Part::Products, x.device(), || x.apply_op2_no_bwd(&y, &Multiply))
}

/// `sum ← sum + x y` in place; operands may be transposed views.
///
/// # Shapes
/// `sum [m, n]` in f32, `x [m, k]`, `y [k, n]`
pub(crate) fn add(sum: &Tensor, x: &Tensor, y: &Tensor) -> Result<()> {
    let (x, y) = (arranged(x)?, arranged(y)?);
    let size = Size::new(x.layout(), y.layout())?;
    if size.batch != 1 || sum.dims() != [size.m, size.n] || !sum.is_contiguous() || sum.dtype() != DType::F32 {
        bail!("a product {:?} {:?} cannot be added to {:?}", x.dims(), y.dims(), sum.layout());
    }
    part(Part::Products, x.device(), || sum.inplace_op3(&x, &y, &Multiply))
}

/// The tensor without a graph: itself if it is contiguous or the transpose of a contiguous one, else a contiguous copy.
fn arranged(x: &Tensor) -> Result<Tensor> {
    let x = x.detach();
    let transposed = x.rank() > 1 && x.t()?.is_contiguous();
    if x.is_contiguous() || transposed { Ok(x) } else { x.contiguous() }
}

/// The sizes of a product, and which operands are transposed views.
#[derive(Clone, Copy)]
struct Size {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    x_transposed: bool,
    y_transposed: bool,
}

impl Size {
    fn new(x: &Layout, y: &Layout) -> Result<Self> {
        let (batch, m, k, n) = match (x.dims(), y.dims()) {
            (&[m, k], &[depth, n]) if k == depth => (1, m, k, n),
            (&[b, m, k], &[batch, depth, n]) if k == depth && b == batch => (b, m, k, n),
            (x, y) => bail!("no product of {x:?} and {y:?}"),
        };
        Ok(Self { batch, m, n, k, x_transposed: !x.is_contiguous(), y_transposed: !y.is_contiguous() })
    }

    fn shape(self, rank: usize) -> Shape {
        if rank == 2 { (self.m, self.n).into() } else { (self.batch, self.m, self.n).into() }
    }
}

struct Multiply;

/// The elements of an operand in f32.
fn wide(storage: &CpuStorage, layout: &Layout) -> Result<Vec<f32>> {
    let elements = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    let mut wide = vec![0f32; elements.len()];
    match storage {
        CpuStorage::F32(values) => wide.copy_from_slice(&values[elements]),
        CpuStorage::BF16(values) => values[elements].convert_to_f32_slice(&mut wide),
        CpuStorage::F16(values) => values[elements].convert_to_f32_slice(&mut wide),
        _ => bail!("a product of operands in f32, bf16 or f16"),
    }
    Ok(wide)
}

/// `out = out (if accumulate) + x y` for each batch, on the CPU.
fn multiply_on_cpu(out: &mut [f32], accumulate: bool, size: Size, x: &[f32], y: &[f32]) {
    let Size { batch, m, n, k, x_transposed, y_transposed } = size;
    assert!(out.len() == batch * m * n && x.len() == batch * m * k && y.len() == batch * k * n);
    for ((out, x), y) in out.chunks_exact_mut(m * n).zip(x.chunks_exact(m * k)).zip(y.chunks_exact(k * n)) {
        let x = if x_transposed { Operand::rows(x.as_ptr(), m).t() } else { Operand::rows(x.as_ptr(), k) };
        let y = if y_transposed { Operand::rows(y.as_ptr(), k).t() } else { Operand::rows(y.as_ptr(), n) };
        // SAFETY: the slices have the sizes of the operands, as asserted above.
        unsafe { product((m, n, k), out.as_mut_ptr(), n, accumulate, x, y, 1.0, m * n * k > 64 * 1024) };
    }
}

impl CustomOp2 for Multiply {
    fn name(&self) -> &'static str {
        "product in f32"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, y: &CpuStorage, yl: &Layout) -> Result<(CpuStorage, Shape)> {
        let size = Size::new(xl, yl)?;
        let mut out = vec![0f32; size.batch * size.m * size.n];
        multiply_on_cpu(&mut out, false, size, &wide(x, xl)?, &wide(y, yl)?);
        Ok((CpuStorage::F32(out), size.shape(xl.dims().len())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout, y: &CudaStorage, yl: &Layout) -> Result<(CudaStorage, Shape)> {
        let size = Size::new(xl, yl)?;
        let device = &x.device;
        // SAFETY: with beta = 0 cuBLAS writes every element of the result and reads none.
        let mut out = unsafe { device.alloc::<f32>(size.batch * size.m * size.n)? };
        cuda::run(&mut out, 0, 0.0, size, (x, xl), (y, yl))?;
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), size.shape(xl.dims().len())))
    }
}

impl InplaceOp3 for Multiply {
    fn name(&self) -> &'static str {
        "sum of products in f32"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        sum_layout: &Layout,
        x: &CpuStorage,
        xl: &Layout,
        y: &CpuStorage,
        yl: &Layout,
    ) -> Result<()> {
        let CpuStorage::F32(values) = sum else { bail!("a sum of products is in f32") };
        let from = sum_layout.start_offset();
        let out = &mut values[from..from + sum_layout.shape().elem_count()];
        multiply_on_cpu(out, true, Size::new(xl, yl)?, &wide(x, xl)?, &wide(y, yl)?);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        sum: &mut CudaStorage,
        sum_layout: &Layout,
        x: &CudaStorage,
        xl: &Layout,
        y: &CudaStorage,
        yl: &Layout,
    ) -> Result<()> {
        let out = sum.as_cuda_slice_mut::<f32>()?;
        cuda::run(out, sum_layout.start_offset(), 1.0, Size::new(xl, yl)?, (x, xl), (y, yl))
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::cuda_backend::cudarc::cublas::{result, sys};
    use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
    use candle_core::cuda_backend::{CudaDType, WrapErr};
    use candle_core::{CudaStorage, DType, Layout, Result, bail};
    use half::{bf16, f16};

    use super::Size;

    type Side<'a> = (&'a CudaStorage, &'a Layout);

    /// `out ← beta out + x y`, where `out` begins at its element `from`.
    pub(crate) fn run(out: &mut CudaSlice<f32>, from: usize, beta: f32, size: Size, x: Side, y: Side) -> Result<()> {
        use sys::cudaDataType_t as Kind;
        match candle_core::backend::BackendStorage::dtype(x.0) {
            DType::BF16 => of::<bf16>(Kind::CUDA_R_16BF, out, from, beta, size, x, y),
            DType::F16 => of::<f16>(Kind::CUDA_R_16F, out, from, beta, size, x, y),
            DType::F32 => of::<f32>(Kind::CUDA_R_32F, out, from, beta, size, x, y),
            other => bail!("a product of operands in f32, bf16 or f16, not {other:?}"),
        }
    }

    /// [`run`] for operands of type `T`, which cuBLAS calls `kind`. cuBLAS is column-major: a row-major `x y` is its `yᵀ xᵀ`.
    fn of<T: CudaDType>(
        kind: sys::cudaDataType_t,
        out: &mut CudaSlice<f32>,
        from: usize,
        beta: f32,
        size: Size,
        (x, x_layout): Side,
        (y, y_layout): Side,
    ) -> Result<()> {
        use sys::cublasOperation_t::{CUBLAS_OP_N as AS_IT_IS, CUBLAS_OP_T as TRANSPOSED};
        let Size { batch, m, n, k, x_transposed, y_transposed } = size;
        crate::measure::count::queued(batch, (m, n, k));
        let cublas = x.device.cublas_handle();
        let stream = x.device.cuda_stream();
        let x = x.as_cuda_slice::<T>()?.slice(x_layout.start_offset()..);
        let y = y.as_cuda_slice::<T>()?.slice(y_layout.start_offset()..);
        let mut out = out.slice_mut(from..);
        let ((x, _x), (y, _y)) = (x.device_ptr(&stream), y.device_ptr(&stream));
        let (out, _out) = out.device_ptr_mut(&stream);
        let alpha = 1f32;
        // SAFETY: the operands lie in the slices, each contiguous or transposed; `out` has room for [batch, m, n]; alpha and beta
        // are f32, as CUBLAS_COMPUTE_32F requires.
        unsafe {
            result::gemm_strided_batched_ex(
                *cublas.handle(),
                if y_transposed { TRANSPOSED } else { AS_IT_IS },
                if x_transposed { TRANSPOSED } else { AS_IT_IS },
                n as i32,
                m as i32,
                k as i32,
                (&raw const alpha).cast(),
                y as *const _,
                kind,
                if y_transposed { k } else { n } as i32,
                (k * n) as i64,
                x as *const _,
                kind,
                if x_transposed { m } else { k } as i32,
                (m * k) as i64,
                (&raw const beta).cast(),
                out as *mut _,
                sys::cudaDataType_t::CUDA_R_32F,
                n as i32,
                (m * n) as i64,
                batch as i32,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .w()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{close, normal};

    #[test]
    fn agrees_with_candle_either_way_round() {
        let views = |t: Tensor| [t.clone(), t.transpose(0, 1).unwrap().contiguous().unwrap().t().unwrap()];
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let (x, y) = (normal(&[7, 33]).to_dtype(dtype).unwrap(), normal(&[33, 5]).to_dtype(dtype).unwrap());
            let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
            let plain = wide(&x).matmul(&wide(&y)).unwrap();
            for x in views(x) {
                for y in views(y.clone()) {
                    let ours = multiply(&x, &y).unwrap();
                    close(&ours, &plain, 1e-6, "product");
                    add(&ours, &x, &y).unwrap();
                    close(&ours, &(&plain * 2.0).unwrap(), 1e-6, "sum");
                }
            }
        }
    }

    #[test]
    fn batches_and_slices_are_each_their_own() {
        let (x, y) = (normal(&[4, 6, 8]), normal(&[4, 10, 8]));
        let (x, y) = (x.narrow(0, 1, 2).unwrap(), y.narrow(0, 1, 2).unwrap());
        let ours = multiply(&x, &y.t().unwrap()).unwrap();
        close(&ours, &x.contiguous().unwrap().matmul(&y.t().unwrap().contiguous().unwrap()).unwrap(), 1e-6, "batch");
        assert!(multiply(&x, &y).is_err() && add(&normal(&[6, 10]), &x, &y.t().unwrap()).is_err());
        assert_eq!(multiply(&normal(&[0, 8]), &normal(&[8, 3])).unwrap().dims(), [0, 3]);
    }
}
