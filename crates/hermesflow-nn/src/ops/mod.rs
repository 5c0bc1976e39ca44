//! The operators: functions on tensors that keep the gradient, one file or folder per family.
//!
//! Shape letters: `n` rows or tokens, `h` hidden size, `d` size of one head, `v` vocabulary, `b` batch, `c` channels, `t`
//! tokens (`tq` queries, `tk` keys).
//!
//! What other crates use is listed at the end of this file; everything else is private to this crate.

pub(crate) mod affine;
pub(crate) mod any_device;
pub(crate) mod attention;
pub(crate) mod by_rows;
pub(crate) mod conv;
pub(crate) mod decoder;
pub(crate) mod draw;
pub(crate) mod gelu;
pub(crate) mod gpu;
pub(crate) mod group_norm;
pub(crate) mod grouped_heads;
pub(crate) mod head;
pub(crate) mod host_block;
pub(crate) mod layer_norm;
pub(crate) mod likeliest;
pub(crate) mod linear;
pub(crate) mod llama_block;
pub(crate) mod log_prob;
pub(crate) mod node;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod rows;
pub(crate) mod swiglu;
pub(crate) mod upsample;

pub use self::affine::Affine;
pub use self::attention::grouped::plan::SCORES_AT_ONCE;
pub use self::attention::segment::Segment;
pub use self::attention::{attention, key_value_dtype, own_key_value_dtype};
pub use self::conv::channels_last::around::{Around, NormBefore};
pub use self::conv::channels_last::{convolution_layout, norm_before, norm_conv2d};
pub use self::conv::padding::Padding;
pub use self::decoder::block::{Cached, DecoderBlock};
pub use self::decoder::decoder_block;
pub use self::decoder::frozen::{frozen_block, takes_frozen_block};
pub use self::draw::{draw_guided, draw_rows};
pub use self::gelu::{gelu_erf, gelu_quick, gelu_tanh};
pub use self::grouped_heads::grouped_attention;
pub use self::head::any_device::ROWS as HEAD_ROWS_ON_A_GPU;
pub use self::head::head_log_prob;
pub use self::layer_norm::layer_norm;
pub use self::likeliest::{Likeliest, likeliest, likeliest_of_row};
pub use self::linear::{Then, linear, linear_all};
pub use self::llama_block::{LlamaBlock, llama_block};
pub use self::log_prob::{all_finite, for_each_row, log_prob, log_sum_exp, soften_row};
pub use self::rms_norm::rms_norm;
pub use self::rotary::{rotary, rotary_angles};
pub use self::rows::{embedding, gather_rows, sums_of_values, write_runs};
pub use self::swiglu::swiglu;
pub use crate::matmul::training::Products;
