//! Devices by name: `cpu`, `cuda:N`, and `auto` for the first GPU that this build can use; and what a device tells of
//! itself.

#[cfg(feature = "cuda")]
mod gpu;
#[cfg(not(feature = "cuda"))]
#[path = "no_gpu.rs"]
mod gpu;

use std::fmt::{Display, Formatter};
use std::str::FromStr;

use candle_core::{Device, DeviceLocation};

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
    #[error(
        "{0}: this program was built without CUDA: cargo build --release --features cuda, or choose the CPU (model.device=cpu)"
    )]
    NotBuilt(DeviceName),
    /// A GPU that cannot be opened.
    #[error(
        "{name}: the GPU cannot be opened ({message}); see what nvidia-smi lists, or choose the CPU (model.device=cpu)"
    )]
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
            Self::Auto if gpu::any() => Self::Cuda(0),
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
            Self::Cuda(number) => gpu::open(number),
            _ => Ok(Device::Cpu),
        }
    }

    /// As [`multiplies_bf16`], without opening the device; a GPU that is not there is taken for one that does.
    pub fn multiplies_bf16(self) -> bool {
        match self.resolved() {
            Self::Cuda(number) => gpu::capability_of(number).is_none_or(is_modern),
            _ => crate::ops::multiplies_bf16(),
        }
    }
}

/// Whether a device multiplies bf16 faster than f32: a GPU from compute capability 8 on, or a CPU with AVX512-BF16.
pub fn multiplies_bf16(device: &Device) -> bool {
    match device {
        Device::Cpu => crate::ops::multiplies_bf16(),
        _ => gpu::capability(device).is_some_and(is_modern),
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
pub fn memory(device: &Device) -> Option<Memory> {
    gpu::memory(device)
}

/// Whether tensor cores of this capability multiply bf16.
fn is_modern((major, _): (i32, i32)) -> bool {
    major >= 8
}

/// A device in words: `cpu`, or a GPU's number with what the driver calls it.
pub fn describe(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cuda { gpu_id } => {
            let name = gpu::name(device).unwrap_or_else(|| "a GPU without a name".into());
            format!("{} ({name})", DeviceName::Cuda(gpu_id))
        }
        _ => DeviceName::Cpu.to_string(),
    }
}

/// Forgets the most memory that tensors on a GPU have had; nothing on the CPU.
pub fn reset_peak(device: &Device) {
    gpu::reset_peak(device);
}

/// The most memory that tensors on a GPU have had since, in bytes; none on the CPU. What CUDA and cuBLAS keep for
/// themselves is not counted.
pub fn peak(device: &Device) -> Option<u64> {
    gpu::peak(device)
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
