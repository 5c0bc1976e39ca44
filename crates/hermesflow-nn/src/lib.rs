//! Fused, differentiable operators over candle for the CPU, with weights, an
//! optimizer step and seeded random numbers.
//!
//! candle's own fused forms (`candle_nn::LayerNorm`, `softmax_last_dim`,
//! `rope`, `sdpa`) cut the gradient graph without saying so. Every operator
//! here has a backward pass, and a test that compares its values and its
//! gradients with the plain composition of candle's operators. On a device
//! other than the CPU, or for a type other than `f32`, the plain composition
//! runs instead.

pub mod device;
pub mod foreign;
pub mod gradients;
pub mod matmul;
pub mod measure;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod random;
pub(crate) mod simd;
pub mod sizes;
pub(crate) mod storage;
#[cfg(test)]
pub(crate) mod testing;
pub mod weights;
