//! Access to tensor storage on the host, shared by the fused operators.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, bail};

/// Whether the kernels for the CPU apply to this device, not compositions of candle's operators.
pub fn on_cpu(device: &Device) -> bool {
    device.is_cpu() && !super::simd::plain()
}

/// Whether the fused kernels apply: every tensor on the CPU and `f32`.
pub(crate) fn fused(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| on_cpu(t.device()) && t.dtype() == DType::F32)
}

/// The elements of a contiguous `f32` tensor on the CPU.
pub(crate) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("expected a contiguous tensor, not strides {:?}", layout.stride()),
    }
}

/// As [`elements`], for a tensor's storage guard in a backward pass.
pub(crate) fn host<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    elements(cpu(storage)?, layout)
}

/// The storage, when it is on the CPU.
pub(crate) fn cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// A `[tokens, heads, d]` tensor whose heads lie side by side in a row of
/// `stride` elements: a contiguous tensor, or a slice of a wider projection.
#[derive(Clone, Copy)]
pub(crate) struct HeadRows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> HeadRows<'a> {
    /// The distance of two tokens, if the layout has the required form.
    pub(crate) fn stride_of(layout: &Layout) -> Option<usize> {
        let (&[tokens, heads, d], &[row, head, one]) = (layout.dims(), layout.stride()) else {
            return None;
        };
        let packed = (one == 1 || d == 1) && (head == d || heads == 1);
        let apart = row >= heads * d || tokens <= 1;
        (packed && apart).then_some(row.max(heads * d))
    }

    pub(crate) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        match Self::stride_of(layout) {
            Some(stride) => {
                let data = &storage.as_slice::<f32>()?[layout.start_offset()..];
                Ok(Self { data, stride })
            }
            None => bail!("expected [tokens, heads, d] rows, not {layout:?}"),
        }
    }

    /// The tensor itself where its layout has the required form, else a copy.
    pub(crate) fn arrange(x: &Tensor) -> Result<Tensor> {
        match Self::stride_of(x.layout()) {
            Some(_) => Ok(x.clone()),
            None => x.contiguous(),
        }
    }

    /// First element of a token's head.
    ///
    /// # Safety
    /// The token and the offset lie inside the tensor.
    pub(crate) unsafe fn at(&self, token: usize, offset: usize) -> *const f32 {
        debug_assert!(token * self.stride + offset < self.data.len());
        // SAFETY: by the contract of this function.
        unsafe { self.data.as_ptr().add(token * self.stride + offset) }
    }
}

/// A pointer that parallel tasks share; each task writes its own elements.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *mut f32);

// SAFETY: the users write disjoint elements, as each of them states.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer moved by `offset` elements.
    ///
    /// # Safety
    /// The offset lies inside the allocation.
    pub(crate) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: by the contract of this function.
        unsafe { self.0.add(offset) }
    }
}

/// A matrix operand: where it starts and how far apart its rows and columns are.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub(crate) start: *const f32,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl Operand {
    /// A row-major matrix.
    pub(crate) fn rows(start: *const f32, stride: usize) -> Self {
        Self { start, row: stride, column: 1 }
    }

    /// The same elements, transposed.
    pub(crate) fn t(self) -> Self {
        Self { start: self.start, row: self.column, column: self.row }
    }
}

/// `out [m, n] = out (if accumulate) + scale * lhs [m, k] rhs [k, n]`, with the
/// rows of `out` `stride` apart; in parallel when asked.
///
/// # Safety
/// Both operands are readable and `out` is writable in the given shapes, and
/// no other thread touches `out`.
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
    // SAFETY: by the contract of this function; a contiguous `out`.
    if parallel
        && scale == 1.0
        && stride == n
        && unsafe { crate::matmul::packed::exact((m, n, k), out, accumulate, lhs, rhs) }
    {
        return;
    }
    let parallelism = match parallel {
        true => gemm::Parallelism::Rayon(rayon::current_num_threads()),
        false => gemm::Parallelism::None,
    };
    // SAFETY: by the contract of this function.
    crate::measure::product((m, n, k), parallel, || unsafe {
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

/// Column sums of `x [rows, d]`, the same whatever the threads do: partial
/// sums of fixed runs of rows, added in order.
pub(crate) fn column_sums(x: &[f32], d: usize) -> Vec<f32> {
    use rayon::prelude::*;
    const ROWS: usize = 128;
    let partial: Vec<Vec<f32>> = x
        .par_chunks(ROWS * d)
        .map(|rows| {
            let mut sum = vec![0f32; d];
            rows.chunks_exact(d).for_each(|row| super::simd::add_to(&mut sum, row));
            sum
        })
        .collect();
    let mut total = vec![0f32; d];
    partial.iter().for_each(|sum| super::simd::add_to(&mut total, sum));
    total
}
