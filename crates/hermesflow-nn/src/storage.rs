//! Access to the values of tensors in memory, for the kernels on the CPU.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

use crate::device::uses_kernels;

/// Whether the CPU's kernels take these tensors: each is in f32 on a device that [`uses_kernels`].
pub(crate) fn kernels_take(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| uses_kernels(tensor.device()) && tensor.dtype() == DType::F32)
}

/// The elements of a contiguous `f32` tensor on the CPU.
pub(crate) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("expected a contiguous tensor, not strides {:?}", layout.stride()),
    }
}

/// [`elements`] of a storage whose device is not known, as backward passes have it.
pub(crate) fn host<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    elements(cpu(storage)?, layout)
}

/// The storage on the CPU; an error for any other.
pub(crate) fn cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// The values of a `[tokens, heads, d]` tensor whose heads lie side by side within rows that begin `stride` elements apart: a
/// contiguous tensor, or a slice of a wider projection.
#[derive(Clone, Copy)]
pub(crate) struct HeadRows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> HeadRows<'a> {
    /// The distance of two tokens in elements, if the layout has this form.
    pub(crate) fn stride_of(layout: &Layout) -> Option<usize> {
        let (&[tokens, heads, d], &[row, head, one]) = (layout.dims(), layout.stride()) else {
            return None;
        };
        let packed = (one == 1 || d == 1) && (head == d || heads == 1);
        let apart = row >= heads * d || tokens <= 1;
        (packed && apart).then_some(row.max(heads * d))
    }

    /// The rows of a tensor on the CPU.
    ///
    /// # Errors
    /// When the layout has another form ([`Self::arrange`] gives one that fits), or the type is not f32.
    pub(crate) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        match Self::stride_of(layout) {
            Some(stride) => {
                let data = &storage.as_slice::<f32>()?[layout.start_offset()..];
                Ok(Self { data, stride })
            }
            None => bail!("expected [tokens, heads, d] rows, not {layout:?}"),
        }
    }

    /// The tensor itself where its layout has this form, else a contiguous copy.
    pub(crate) fn arrange(x: &Tensor) -> Result<Tensor> {
        match Self::stride_of(x.layout()) {
            Some(_) => Ok(x.clone()),
            None => x.contiguous(),
        }
    }

    /// The address of the element `offset` of a token's row.
    ///
    /// # Safety
    /// The token and the offset lie inside the tensor.
    pub(crate) unsafe fn at(&self, token: usize, offset: usize) -> *const f32 {
        debug_assert!(token * self.stride + offset < self.data.len());
        // SAFETY: by the contract of this function.
        unsafe { self.data.as_ptr().add(token * self.stride + offset) }
    }
}

/// A pointer that parallel tasks share; each task writes elements that no other task touches.
pub(crate) struct SharedPointer<T = f32>(pub(crate) *mut T);

impl<T> Clone for SharedPointer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedPointer<T> {}

// SAFETY: the users write disjoint elements, as each of them states.
unsafe impl<T> Send for SharedPointer<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedPointer<T> {}

impl<T> SharedPointer<T> {
    /// The pointer moved by `offset` elements.
    ///
    /// # Safety
    /// The offset lies inside the allocation.
    pub(crate) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: by the contract of this function.
        unsafe { self.0.add(offset) }
    }
}
