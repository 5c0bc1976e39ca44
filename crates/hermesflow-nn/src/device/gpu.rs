//! What the driver is asked of a GPU.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUdevice_attribute, CUmemPool_attribute, CUmemoryPool, CUresult, cuDeviceGetMemPool, cuMemPoolGetAttribute,
    cuMemPoolSetAttribute,
};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, result};

use super::{DeviceName, Error, Memory};

pub(super) fn any() -> bool {
    CudaContext::device_count().is_ok_and(|count| count > 0)
}

/// The GPU of this number, which is opened once.
pub(super) fn open(number: usize) -> Result<Device, Error> {
    static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&number) {
        return Ok(device.clone());
    }
    // With a stream of its own: candle's default is one of each thread, and nothing orders two of them.
    let device = Device::new_cuda_with_stream(number).map_err(|error| {
        // Behind the first line there may be a backtrace.
        let message = error.to_string().lines().next().unwrap_or_default().to_owned();
        Error::NotOpened { name: DeviceName::Cuda(number), message }
    })?;
    if let Ok(cuda) = device.as_cuda_device() {
        // SAFETY: all work on this GPU is put into that one stream, which does it in order, frees included; the two events
        // that each tensor would carry order nothing more, and take as long as small kernels.
        unsafe { cuda.disable_event_tracking() };
    }
    // As it comes, the pool gives its memory back whenever the host waits for the GPU: once for each token.
    if let Some(pool) = pool(&device) {
        set(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX);
    }
    open.insert(number, device.clone());
    Ok(device)
}

/// The compute capability of the GPU of this number, which is not opened.
pub(super) fn capability_of(number: usize) -> Option<(i32, i32)> {
    result::init().ok()?;
    let device = result::device::get(i32::try_from(number).ok()?).ok()?;
    // SAFETY: the driver gave the device.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.ok();
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Some((major, attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

fn context(device: &Device) -> Option<Arc<CudaContext>> {
    Some(device.as_cuda_device().ok()?.cuda_stream().context().clone())
}

pub(super) fn capability(device: &Device) -> Option<(i32, i32)> {
    context(device)?.compute_capability().ok()
}

pub(super) fn name(device: &Device) -> Option<String> {
    context(device)?.name().ok()
}

pub(super) fn memory(device: &Device) -> Option<Memory> {
    let (free, total) = context(device)?.mem_get_info().ok()?;
    Some(Memory { total: total as u64, free: free as u64 })
}

/// Where the memory of tensors comes from.
fn pool(device: &Device) -> Option<CUmemoryPool> {
    let context = context(device)?;
    if !context.has_async_alloc() {
        return None;
    }
    let mut pool: CUmemoryPool = std::ptr::null_mut();
    // SAFETY: the context's device is one, and the pool is written where there is room for it.
    let found = unsafe { cuDeviceGetMemPool(&raw mut pool, context.cu_device()) };
    (found == CUresult::CUDA_SUCCESS && !pool.is_null()).then_some(pool)
}

/// Whether the pool took the number.
fn set(pool: CUmemoryPool, attribute: CUmemPool_attribute, mut value: u64) -> bool {
    // SAFETY: the pool is the device's, the attributes used here are numbers of 64 bits.
    let done = unsafe { cuMemPoolSetAttribute(pool, attribute, (&raw mut value).cast::<c_void>()) };
    done == CUresult::CUDA_SUCCESS
}

pub(super) fn reset_peak(device: &Device) {
    if let Some(pool) = pool(device) {
        // Zero makes it what is in use now.
        set(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0);
    }
}

pub(super) fn peak(device: &Device) -> Option<u64> {
    let mut most = 0u64;
    let which = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the pool is the device's, this attribute is a number of 64 bits.
    let told = unsafe { cuMemPoolGetAttribute(pool(device)?, which, (&raw mut most).cast::<c_void>()) };
    (told == CUresult::CUDA_SUCCESS).then_some(most)
}
