//! Devices: opening one by name, which kernels run on it, and what its driver reports.

#[cfg(feature = "cuda")]
mod gpu;
// Both files offer the same functions, so that nothing else asks whether the build has CUDA.
#[cfg(not(feature = "cuda"))]
#[path = "no_gpu.rs"]
mod gpu;
mod name;
#[cfg(feature = "nccl")]
pub mod peers;

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, DeviceLocation};

pub use self::name::{DeviceName, Error};
use crate::simd;

/// By how much the number of the GPU that this process opens is above the one that is named.
static FURTHER: AtomicUsize = AtomicUsize::new(0);

/// Lets this process, the `number`-th from 0 of several on one host, open the GPU that many further than the one that is named,
/// counted round all GPUs that it sees: one that sees only its own opens that one. To be called before a GPU is opened.
pub fn take_gpu(number: usize) {
    FURTHER.store(number, Ordering::Relaxed);
}

impl DeviceName {
    /// The device that this name stands for on this machine: itself, or for `auto` the first GPU or the CPU.
    pub fn resolved(self) -> Self {
        match self {
            Self::Auto if gpu::any() => Self::Cuda(0),
            Self::Auto => Self::Cpu,
            named => named,
        }
    }

    /// Opens the device. A GPU is opened once per process and shared from then on, because candle refuses to combine tensors of
    /// two handles to one GPU.
    ///
    /// # Errors
    /// When this build has no CUDA, or the GPU cannot be opened.
    pub fn open(self) -> Result<Device, Error> {
        match self.resolved() {
            Self::Cuda(number) => gpu::open(gpu::further(number, FURTHER.load(Ordering::Relaxed))),
            _ => Ok(Device::Cpu),
        }
    }

    /// Whether the device multiplies bf16 faster than f32, as [`multiplies_bf16`] but without opening it; true for a GPU that
    /// cannot be asked.
    pub fn multiplies_bf16(self) -> bool {
        match self.resolved() {
            Self::Cuda(number) => gpu::capability_of(number).is_none_or(is_modern),
            _ => simd::bf16(),
        }
    }
}

/// Whether this crate's kernels for the CPU run on a device: true for the CPU, unless `HERMESFLOW_CPU=plain`.
///
/// Everywhere else operators are compositions of candle's own, or kernels for that device. Their results differ in rounding, and
/// so do the faster ways to use them; operators decide for themselves, and a model asks here only where its own work depends on
/// it.
pub fn uses_kernels(device: &Device) -> bool {
    device.is_cpu() && !simd::plain()
}

/// Whether a device multiplies bf16 faster than f32: a GPU of compute capability 8 or later, or a CPU with AVX512-BF16.
pub fn multiplies_bf16(device: &Device) -> bool {
    match device {
        Device::Cpu => simd::bf16(),
        _ => gpu::capability(device).is_some_and(is_modern),
    }
}

/// A device's own memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The size of the memory.
    pub total: u64,
    /// What no process uses at the moment.
    pub free: u64,
}

/// A GPU's memory as its driver reports it; `None` for the CPU.
pub fn memory(device: &Device) -> Option<Memory> {
    gpu::memory(device).map(|(free, total)| Memory { total, free })
}

/// Whether the tensor cores of GPUs of this compute capability multiply bf16.
fn is_modern((major, _): (i32, i32)) -> bool {
    major >= 8
}

/// A device in words: `cpu`, or a GPU's name with the model that the driver reports, as in `cuda:0 (NVIDIA H100)`.
pub fn describe(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cuda { gpu_id } => {
            let name = gpu::name(device).unwrap_or_else(|| "a GPU without a name".into());
            format!("{} ({name})", DeviceName::Cuda(gpu_id))
        }
        _ => DeviceName::Cpu.to_string(),
    }
}

/// Starts the measurement of [`peak`] anew; does nothing on the CPU.
pub fn reset_peak(device: &Device) {
    gpu::reset_peak(device);
}

/// The most memory that tensors on a GPU have used since [`reset_peak`], in bytes; `None` on the CPU. Memory that CUDA and cuBLAS
/// use themselves is not counted.
pub fn peak(device: &Device) -> Option<u64> {
    gpu::peak(device)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_cpu_is_always_there() {
        assert!(DeviceName::Cpu.open().unwrap().is_cpu());
        assert_eq!(DeviceName::Cuda(3).resolved(), DeviceName::Cuda(3));
        assert_ne!(DeviceName::Auto.resolved(), DeviceName::Auto);
        assert_eq!(describe(&Device::Cpu), "cpu");
        assert_eq!(peak(&Device::Cpu), None);
        assert_eq!(DeviceName::Cpu.multiplies_bf16(), multiplies_bf16(&Device::Cpu));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_gpu_in_a_build_without_cuda_is_an_error_with_a_remedy() {
        assert_eq!(DeviceName::Auto.resolved(), DeviceName::Cpu);
        assert!(DeviceName::Cuda(0).multiplies_bf16(), "another machine's");
        let message = DeviceName::Cuda(1).open().unwrap_err().to_string();
        assert!(message.starts_with("cuda:1: this program was built without CUDA: cargo build"), "{message}");
        assert!(message.contains("--features cuda") && message.contains("model.device=cpu"), "{message}");
    }
}
