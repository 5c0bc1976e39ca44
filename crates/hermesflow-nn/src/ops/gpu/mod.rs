//! This crate's kernels for NVIDIA GPUs: attention that keeps its scores on the chip, and one kernel for everything between two
//! matrix products of a decoder block.
//!
//! Their sources in `kernels/` are compiled by the CUDA toolkit when the crate is built with the feature `cuda`. They take matrices
//! in bf16; for any other type a composition of candle's operators runs.

#[cfg(any(feature = "cuda", test))]
mod work;

#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod frozen;
#[cfg(feature = "cuda")]
mod head;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod product;
#[cfg(feature = "cuda")]
mod rows;
#[cfg(feature = "cuda")]
mod trained;

#[cfg(feature = "cuda")]
pub(super) use self::frozen::{frozen_block, takes_frozen};
#[cfg(feature = "cuda")]
pub(super) use self::head::{head_log_prob, takes_head};
#[cfg(feature = "nccl")]
pub(crate) use self::launch::numbers;
#[cfg(feature = "cuda")]
pub(crate) use self::rows::{DRAWN, adamw, draw, likeliest, squares};
#[cfg(feature = "cuda")]
pub(super) use self::trained::{takes_trained, trained_block};
