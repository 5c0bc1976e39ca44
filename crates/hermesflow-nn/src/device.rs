//! Devices by name: `cpu`, `cuda:N`, and `auto` for the first GPU that this build can use.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

use candle_core::Device;

/// A device, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// The first GPU where the build has CUDA and one is found, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// A device is not known or not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the name of a device.
    #[error("{0:?} is no device; expected auto, cpu or cuda:N, such as cuda:0")]
    Name(String),
    /// A GPU in a build for the CPU.
    #[error("{0}: this program was built without CUDA: cargo build --release --features cuda, or model.device=cpu")]
    NotBuilt(DeviceName),
    /// A GPU that cannot be opened.
    #[error("{name}: the GPU cannot be opened ({message}); see what nvidia-smi lists, or model.device=cpu")]
    NotOpened {
        /// The device.
        name: DeviceName,
        /// What CUDA said.
        message: String,
    },
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => {
                let number = name.strip_prefix("cuda:").filter(|number| number.bytes().all(|b| b.is_ascii_digit()));
                let number = number.and_then(|number| number.parse().ok());
                number.map(Self::Cuda).ok_or_else(|| Error::Name(name.into()))
            }
        }
    }
}

impl Display for DeviceName {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceName {
    /// With nothing left open: what `auto` stands for here.
    pub fn resolved(self) -> Self {
        match self {
            Self::Auto if has_gpu() => Self::Cuda(0),
            Self::Auto => Self::Cpu,
            named => named,
        }
    }

    /// The device. A GPU is opened once in a process: tensors of two handles to one GPU do not go together.
    ///
    /// # Errors
    /// When this build or this machine does not have it.
    pub fn open(self) -> Result<Device, Error> {
        match self.resolved() {
            Self::Cuda(number) => gpu(number),
            _ => Ok(Device::Cpu),
        }
    }
}

/// Whether a device multiplies bf16 faster than f32: a GPU from compute capability 8 on, or a CPU with AVX512-BF16.
pub fn multiplies_bf16(device: &Device) -> bool {
    match device {
        Device::Cpu => crate::ops::multiplies_bf16(),
        _ => capability(device).is_some_and(|(major, _)| major >= 8),
    }
}

/// Bytes of a device's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What nobody uses at the moment.
    pub free: u64,
}

/// A GPU's memory, as its driver says; none for the CPU, whose memory the system knows.
#[cfg(feature = "cuda")]
pub fn memory(device: &Device) -> Option<Memory> {
    let (free, total) = device.as_cuda_device().ok()?.cuda_stream().context().mem_get_info().ok()?;
    Some(Memory { total: total as u64, free: free as u64 })
}

/// A GPU's memory, as its driver says; none for the CPU, whose memory the system knows.
#[cfg(not(feature = "cuda"))]
pub fn memory(_: &Device) -> Option<Memory> {
    None
}

#[cfg(feature = "cuda")]
fn has_gpu() -> bool {
    candle_core::cuda_backend::cudarc::driver::CudaContext::device_count().is_ok_and(|count| count > 0)
}

#[cfg(not(feature = "cuda"))]
fn has_gpu() -> bool {
    false
}

#[cfg(feature = "cuda")]
fn gpu(number: usize) -> Result<Device, Error> {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};
    static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&number) {
        return Ok(device.clone());
    }
    // With a stream of its own: candle's default is one of each thread, and nothing orders two of them.
    let device = Device::new_cuda_with_stream(number)
        .map_err(|error| Error::NotOpened { name: DeviceName::Cuda(number), message: error.to_string() })?;
    open.insert(number, device.clone());
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn gpu(number: usize) -> Result<Device, Error> {
    Err(Error::NotBuilt(DeviceName::Cuda(number)))
}

#[cfg(feature = "cuda")]
fn capability(device: &Device) -> Option<(i32, i32)> {
    device.as_cuda_device().ok()?.cuda_stream().context().compute_capability().ok()
}

#[cfg(not(feature = "cuda"))]
fn capability(_: &Device) -> Option<(i32, i32)> {
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (name, device) in [
            ("auto", DeviceName::Auto),
            ("cpu", DeviceName::Cpu),
            ("cuda:0", DeviceName::Cuda(0)),
            ("cuda:12", DeviceName::Cuda(12)),
        ] {
            assert_eq!(name.parse::<DeviceName>().unwrap(), device);
            assert_eq!(device.to_string(), name);
        }
        for name in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "CPU"] {
            let message = name.parse::<DeviceName>().unwrap_err().to_string();
            assert!(message.contains("auto, cpu or cuda:N"), "{message}");
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert!(DeviceName::Cpu.open().unwrap().is_cpu());
        assert_eq!(DeviceName::Cuda(3).resolved(), DeviceName::Cuda(3));
        assert_ne!(DeviceName::Auto.resolved(), DeviceName::Auto);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_gpu_in_a_build_without_cuda_is_an_error_with_a_remedy() {
        assert_eq!(DeviceName::Auto.resolved(), DeviceName::Cpu);
        let message = DeviceName::Cuda(1).open().unwrap_err().to_string();
        assert!(message.starts_with("cuda:1: this program was built without CUDA: cargo build"), "{message}");
        assert!(message.contains("--features cuda") && message.contains("model.device=cpu"), "{message}");
    }
}
