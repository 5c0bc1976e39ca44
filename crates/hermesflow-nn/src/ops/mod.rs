//! The operators: one file per family, each a function on tensors that keeps
//! the gradient.
//!
//! Shape letters: `n` rows or tokens, `h` hidden size, `d` size of one head,
//! `v` vocabulary, `b` batch, `c` channels.

pub mod attention;
mod by_rows;
pub mod channels_last;
mod composed;
pub mod conv;
pub mod decoder;
mod dot;
pub mod draw;
pub mod frozen;
pub mod gelu;
pub(crate) mod gpu;
pub mod group_norm;
mod half_weight;
pub mod head;
pub mod layer_norm;
pub mod likeliest;
pub mod linear;
pub mod log_prob;
mod node;
mod packed;
mod panels;
pub mod products;
pub(crate) mod raw;
pub mod rotary;
pub mod rows;
pub(crate) mod simd;
#[cfg(test)]
pub(crate) mod testing;
pub mod upsample;
mod wide;

#[allow(unused_imports)]
pub use self::{
    attention::*, channels_last::*, conv::*, decoder::*, draw::*, frozen::*, gelu::*, group_norm::*, head::*,
    layer_norm::*, likeliest::*, linear::*, log_prob::*, products::*, rotary::*, rows::*, upsample::*,
};
pub use half_weight::multiplies_bf16;
pub use raw::on_cpu as by_kernels;
