//! The operators: one file per family, each a function on tensors that keeps
//! the gradient.
//!
//! Shape letters: `n` rows or tokens, `h` hidden size, `d` size of one head,
//! `v` vocabulary, `b` batch, `c` channels.

pub(crate) mod any_device;
pub mod attention;
pub(crate) mod by_rows;
pub mod conv;
pub mod decoder;
pub mod draw;
pub mod gelu;
pub(crate) mod gpu;
pub mod group_norm;
pub mod head;
pub mod layer_norm;
pub mod likeliest;
pub mod linear;
pub mod log_prob;
pub(crate) mod node;
pub mod rotary;
pub mod rows;
pub mod upsample;

#[allow(unused_imports)]
pub use self::{
    attention::*, conv::channels_last::*, conv::*, decoder::frozen::*, decoder::*, draw::*, gelu::*, group_norm::*,
    head::*, layer_norm::*, likeliest::*, linear::*, log_prob::*, rotary::*, rows::*, upsample::*,
};
pub use crate::matmul::multiplies_bf16;
pub use crate::matmul::training::*;
pub use crate::storage::on_cpu as by_kernels;
