//! Devices by name: `auto`, `cpu`, `cuda:N`.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

/// The name of a device, as in the setting `model.device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// `auto`: the first GPU if the build has CUDA and a GPU is found, else the CPU.
    Auto,
    /// `cpu`.
    Cpu,
    /// `cuda:N`: the GPU of this number, from 0.
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not the name of a device.
    #[error("{0:?} is no device; expected auto, cpu or cuda:N, such as cuda:0")]
    Name(String),
    /// A GPU was asked for, but the build has no CUDA.
    #[error(
        "{0}: this program was built without CUDA: cargo build --release --features cuda, or choose the CPU (model.device=cpu)"
    )]
    NotBuilt(DeviceName),
    /// The GPU cannot be opened.
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
}
