//! Tensors on a GPU as kernels take them, and the launch of kernels.
//!
//! Everything runs in the device's single stream, in order (see `device/gpu.rs`): a tensor that is dropped after a launch is freed
//! after the kernel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaStream, DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Result, Storage, Tensor, bail};

mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// The compiled files of kernels.
#[derive(Clone, Copy)]
pub(super) enum Module {
    Attention,
    Rows,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    Address(u64),
    Int(i32),
    Long(i64),
    Real(f32),
}

impl From<u64> for Argument {
    fn from(address: u64) -> Self {
        Self::Address(address)
    }
}

impl From<i32> for Argument {
    fn from(number: i32) -> Self {
        Self::Int(number)
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self::Long(number)
    }
}

impl From<f32> for Argument {
    fn from(number: f32) -> Self {
        Self::Real(number)
    }
}

/// The arguments of a kernel, in the order of its parameters.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { [$($crate::ops::gpu::launch::Argument::from($argument)),*] };
}
pub(super) use arguments;

/// A kernel, and the stream that it runs in.
pub(super) struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

/// A kernel by name; its file is compiled for the device at first use.
pub(super) fn kernel(device: &CudaDevice, module: Module, name: &str) -> Result<Kernel> {
    let (file, ptx) = match module {
        Module::Attention => ("hermesflow-attention", ptx::ATTENTION),
        Module::Rows => ("hermesflow-rows", ptx::ROWS),
    };
    // Each kernel is looked up once, because a lookup takes as long as a layer of a short pass.
    static KNOWN: Mutex<BTreeMap<(usize, String), CudaFunction>> = Mutex::new(BTreeMap::new());
    let stream = device.cuda_stream();
    let key = (stream.context().ordinal(), name.to_owned());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let function = match known.get(&key) {
        Some(function) => function.clone(),
        None => {
            let function = device.get_or_load_custom_func(name, file, ptx)?.into_cuda_function();
            known.insert(key, function.clone());
            function
        }
    };
    Ok(Kernel { function, stream })
}

impl Kernel {
    /// Starts `grid` blocks of `threads` threads with `shared` bytes of shared memory each.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and what they point to has the size that it reads and writes.
    pub(super) unsafe fn launch(
        &self,
        grid: (usize, usize),
        threads: usize,
        shared: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        /// Bytes of shared memory above which a kernel must ask for them.
        const UNASKED: usize = 48 << 10;
        if shared > UNASKED {
            let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            self.function.set_attribute(which, shared as i32).w()?;
        }
        let config = LaunchConfig {
            grid_dim: (grid.0 as u32, grid.1 as u32, 1),
            block_dim: (threads as u32, 1, 1),
            shared_mem_bytes: shared as u32,
        };
        let mut call = self.stream.launch_builder(&self.function);
        for argument in arguments {
            match argument {
                Argument::Address(address) => call.arg(address),
                Argument::Int(number) => call.arg(number),
                Argument::Long(number) => call.arg(number),
                Argument::Real(number) => call.arg(number),
            };
        }
        // SAFETY: by the contract of this function.
        unsafe { call.launch(config) }.w()?;
        Ok(())
    }
}

/// The GPU that a tensor is on.
pub(super) fn gpu(tensor: &Tensor) -> Result<&CudaDevice> {
    tensor.device().as_cuda_device()
}

/// The address of a tensor's first element on its GPU. It is valid as long as the tensor lives, and for kernels that were launched
/// before the tensor is dropped.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("expected a tensor on a GPU, not {:?}", tensor.device()) };
    Ok(start(storage)? + (layout.start_offset() * storage.dtype().size_in_bytes()) as u64)
}

fn start(storage: &CudaStorage) -> Result<u64> {
    let stream = storage.device.cuda_stream();
    Ok(match &storage.slice {
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F64(slice) => slice.device_ptr(&stream).0,
        _ => bail!("no kernel takes {:?}", storage.dtype()),
    })
}

/// The [`address`] of a contiguous tensor of this type; an error for any other.
pub(crate) fn numbers(tensor: &Tensor, dtype: DType) -> Result<u64> {
    if tensor.dtype() != dtype || !tensor.is_contiguous() {
        bail!("expected contiguous numbers in {dtype:?}, not {:?} {:?}", tensor.dtype(), tensor.layout());
    }
    address(tensor)
}

/// [`numbers`] of a tensor, or a null pointer if there is none.
pub(super) fn numbers_or_null(tensor: Option<&Tensor>, dtype: DType) -> Result<u64> {
    tensor.map_or(Ok(0), |tensor| numbers(tensor, dtype))
}
