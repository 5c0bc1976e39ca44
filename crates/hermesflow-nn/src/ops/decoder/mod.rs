//! A decoder block of Phi as one operator with a backward pass of its own, for training large models, and without one for
//! inference ([`frozen`]).
//!
//! Operator by operator, candle would add each of a block's thirty gradients to zeros in new memory and keep every intermediate
//! result. Here the backward pass keeps only what is expensive to compute again and frees it as early as possible, and the
//! weights' gradients are summed in place ([`crate::gradients`]).

mod any_device;
pub(crate) mod block;
mod cpu;
pub(crate) mod frozen;

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use self::block::DecoderBlock;
use super::attention::segment::{self, Segment};
use crate::device::uses_kernels;

/// `x + attention(norm(x)) + mlp(norm(x))`, with queries and keys normalised per head and then rotated.
///
/// The backward pass runs in [`crate::gradients::backward`] only.
///
/// # Shapes
/// `x [n, h]`, `cos` and `sin` `[n, rot / 2]` of the `rot` dimensions of each head that are rotated -> `[n, h]`; segments as
/// in [`super::attention()`]
///
/// # Errors
/// When shapes or segments do not fit, or when weights are trained and `x` has no graph: their gradients would be lost.
pub fn decoder_block(
    x: &Tensor,
    block: &DecoderBlock,
    (cos, sin): (&Tensor, &Tensor),
    segments: &Arc<[Segment]>,
) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    if block.heads == 0 || !width.is_multiple_of(block.heads) {
        bail!("decoder block: {} heads in x {:?}", block.heads, x.dims());
    }
    if block.query.weight.track_op() && !x.track_op() {
        bail!("decoder block: the weights are trained, but the input x is not part of the graph");
    }
    segment::check(segments, n, n)?;
    #[cfg(feature = "cuda")]
    if super::gpu::takes_trained(x, block, cos) {
        return super::gpu::trained_block(x, block, (cos, sin), segments);
    }
    match uses_kernels(x.device()) {
        true => cpu::block(x, block, (cos, sin), segments),
        false => any_device::block(x, block, (cos, sin), segments),
    }
}

#[cfg(test)]
mod tests;
