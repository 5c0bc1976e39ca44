//! Which kernels multiply in bf16 on the CPU.

use hermesflow_models::kernels::{Bf16Kernel, Choices};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which kernels multiply in bf16 on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KernelsName {
    /// Those that a measurement on this machine finds fastest; a run keeps in kernels.json what it began with.
    Auto,
    /// Those of a table inside this program, by the CPU's instructions, without a measurement.
    Fixed,
    /// AMX (Intel Xeon from the fourth generation on); the CPU must have it.
    Amx,
    /// What `amx` computes, in software, on any CPU; slow.
    Tiles,
    /// AVX512-BF16 with packed operands; the CPU must have it.
    Packed,
    /// AVX512-BF16 with the weight where it lies; the CPU must have it.
    Unpacked,
    /// Weights widened to f32, and f32 products of rounded operands in training, on any CPU.
    Widened,
}

impl KernelsName {
    /// What is pinned, if anything is.
    pub fn pinned(self) -> Option<Choices> {
        let kernel = match self {
            Self::Auto => return None,
            Self::Fixed => return Some(Choices::fixed()),
            Self::Amx => Bf16Kernel::Amx,
            Self::Tiles => Bf16Kernel::Tiles,
            Self::Packed => Bf16Kernel::Packed,
            Self::Unpacked => Bf16Kernel::Unpacked,
            Self::Widened => Bf16Kernel::Widened,
        };
        Some(Choices::all(kernel))
    }
}
