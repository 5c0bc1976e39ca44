//! NVIDIA GPUs: opening one, and what the CUDA driver reports of it.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUdevice_attribute, CUmemPool_attribute, CUmemoryPool, CUresult, cuDeviceGetMemPool, cuMemPoolGetAttribute,
    cuMemPoolSetAttribute,
};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, result};

use super::name::{DeviceName, Error};

/// Whether the driver finds a GPU.
pub(super) fn any() -> bool {
    CudaContext::device_count().is_ok_and(|count| count > 0)
}

/// The GPU that is `by` further than `number`, round all there are.
pub(super) fn further(number: usize, by: usize) -> usize {
    match CudaContext::device_count().ok().and_then(|count| usize::try_from(count).ok()) {
        Some(count) if by > 0 && number < count => (number + by) % count,
        _ => number,
    }
}

/// The GPU of this number, opened at the first call.
pub(super) fn open(number: usize) -> Result<Device, Error> {
    static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&number) {
        return Ok(device.clone());
    }
    // All threads share one stream. By candle's default each thread has its own, and nothing orders the work of two.
    let device = Device::new_cuda_with_stream(number).map_err(|error| {
        // A backtrace may follow the first line.
        let message = error.to_string().lines().next().unwrap_or_default().to_owned();
        Error::NotOpened { name: DeviceName::Cuda(number), message }
    })?;
    if let Ok(cuda) = device.as_cuda_device() {
        // SAFETY: all work on this GPU goes through that one stream, which runs it in order, frees included. The two events per
        // tensor would order nothing more, and cost as much time as small kernels.
        unsafe { cuda.disable_event_tracking() };
    }
    // By default the pool returns its memory to the system whenever the host waits for the GPU: once per token.
    if let Some(pool) = pool(&device) {
        set(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX);
    }
    open.insert(number, device.clone());
    Ok(device)
}

/// The compute capability of the GPU of this number, without opening it.
pub(super) fn capability_of(number: usize) -> Option<(i32, i32)> {
    result::init().ok()?;
    let device = result::device::get(i32::try_from(number).ok()?).ok()?;
    // SAFETY: the device comes from the driver.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.ok();
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Some((major, attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

fn context(device: &Device) -> Option<Arc<CudaContext>> {
    Some(device.as_cuda_device().ok()?.cuda_stream().context().clone())
}

/// The compute capability of an open GPU.
pub(super) fn capability(device: &Device) -> Option<(i32, i32)> {
    context(device)?.compute_capability().ok()
}

/// The model name of a GPU.
pub(super) fn name(device: &Device) -> Option<String> {
    context(device)?.name().ok()
}

/// Free memory, and all of it, in bytes.
pub(super) fn memory(device: &Device) -> Option<(u64, u64)> {
    let (free, total) = context(device)?.mem_get_info().ok()?;
    Some((free as u64, total as u64))
}

/// The driver's memory pool from which tensors are allocated.
fn pool(device: &Device) -> Option<CUmemoryPool> {
    let context = context(device)?;
    if !context.has_async_alloc() {
        return None;
    }
    let mut pool: CUmemoryPool = std::ptr::null_mut();
    // SAFETY: the device is the context's, and `pool` is a valid place for the result.
    let found = unsafe { cuDeviceGetMemPool(&raw mut pool, context.cu_device()) };
    (found == CUresult::CUDA_SUCCESS && !pool.is_null()).then_some(pool)
}

/// Sets an attribute of the pool; whether that succeeded.
fn set(pool: CUmemoryPool, attribute: CUmemPool_attribute, mut value: u64) -> bool {
    // SAFETY: the pool is the device's, and the attributes set here are 64-bit numbers.
    let done = unsafe { cuMemPoolSetAttribute(pool, attribute, (&raw mut value).cast::<c_void>()) };
    done == CUresult::CUDA_SUCCESS
}

/// Starts the measurement of [`peak`] anew.
pub(super) fn reset_peak(device: &Device) {
    if let Some(pool) = pool(device) {
        // Zero resets the high-water mark to what is in use now.
        set(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0);
    }
}

/// The most memory in use since [`reset_peak`], in bytes.
pub(super) fn peak(device: &Device) -> Option<u64> {
    let mut most = 0u64;
    let which = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the pool is the device's, and this attribute is a 64-bit number.
    let told = unsafe { cuMemPoolGetAttribute(pool(device)?, which, (&raw mut most).cast::<c_void>()) };
    (told == CUresult::CUDA_SUCCESS).then_some(most)
}
