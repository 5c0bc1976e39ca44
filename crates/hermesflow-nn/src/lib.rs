//! Differentiable operators over candle, with the devices, weights, optimizer step and measurements that models need.
//!
//! candle's own fused operators (`candle_nn::LayerNorm`, `softmax_last_dim`, `rope`, `sdpa`) cut the gradient graph without an
//! error. Every operator in [`ops`] has a backward pass, and a test that compares its values and gradients with the same
//! computation by candle's basic operators; where one has no backward pass, asking for it is an error.
//!
//! Each operator decides for itself what runs:
//!
//! * on the CPU, for tensors in f32, a kernel of this crate ([`device::uses_kernels`]);
//! * on an NVIDIA GPU (feature `cuda`), a kernel of this crate where its types and sizes fit;
//! * anywhere else, and on the CPU under `HERMESFLOW_CPU=plain`, a composition of candle's operators, in files named
//!   `any_device.rs`.
#![deny(missing_docs, clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]

pub mod device;
pub mod foreign;
pub mod gradients;
pub(crate) mod matmul;
/// Which kernels multiply in bf16 on the CPU, and how fast they are here.
pub mod kernels {
    pub use crate::matmul::calibration::{Timing, bf16_gain, chosen, cpu, is_whole, measure, training_gain};
    pub use crate::matmul::choice::{
        Bf16Kernel, Choices, LARGE, ROWS, check_environment, current, forced, install, is_spoken_for,
    };
}
pub mod measure;
pub mod ops;
pub mod optim;
pub mod parallel;
pub(crate) mod simd;
pub mod sizes;
pub(crate) mod storage;
#[cfg(test)]
pub(crate) mod testing;
pub mod weights;
