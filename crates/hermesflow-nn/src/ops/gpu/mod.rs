//! Kernels of our own for NVIDIA GPUs, in place of compositions of candle's operators: attention that keeps its scores on the
//! chip, and one kernel for whatever lies between two products.
//!
//! The sources are compiled by the CUDA toolkit when the crate is built (feature `cuda`). They take matrices in bf16; for any
//! other type the compositions run.

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
#[cfg(feature = "cuda")]
pub(crate) use self::rows::{DRAWN, adamw, draw, likeliest, squares};
#[cfg(feature = "cuda")]
pub(super) use self::trained::{takes_trained, trained_block};
