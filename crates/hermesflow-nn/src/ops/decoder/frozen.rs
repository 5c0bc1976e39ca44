//! A decoder block of Phi whose weights are not trained, with its key/value cache, on devices that have kernels for the whole
//! block.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::block::{Cached, DecoderBlock};
use crate::ops::attention::segment::{self, Segment};

/// Whether [`frozen_block`] can compute this block: the device has kernels for its types and sizes and for these tables of angles,
/// and nothing is trained.
pub fn takes_frozen_block(x: &Tensor, block: &DecoderBlock, cos: &Tensor) -> bool {
    #[cfg(feature = "cuda")]
    let takes = crate::ops::gpu::takes_frozen(x, block, cos);
    #[cfg(not(feature = "cuda"))]
    let takes = {
        let _ = cos;
        false
    };
    takes && !x.track_op() && !block.query.weight.track_op()
}

/// `x ← x + attention(norm(x)) + mlp(norm(x))` in place: [`crate::ops::decoder_block`] without gradients, with the keys and values
/// of earlier tokens in a cache.
///
/// # Shapes
/// `x [n, h]` in f32, contiguous and not shared with another tensor; `cos` and `sin` `[n, rot / 2]` in f32; segments as in
/// [`crate::ops::attention()`], with key ranges that are rows of the cache
///
/// # Errors
/// When the device has no kernels for the block (ask [`takes_frozen_block`] first), or shapes or segments do not fit.
pub fn frozen_block(
    x: &Tensor,
    block: &DecoderBlock,
    (cos, sin): (&Tensor, &Tensor),
    segments: &Arc<[Segment]>,
    cached: Cached,
) -> Result<()> {
    if !takes_frozen_block(x, block, cos) {
        bail!("no kernels for a block of {:?} in {:?} on {:?}", x.dims(), block.query.weight.dtype(), x.device());
    }
    let n = x.dim(0)?;
    let keys = match cached {
        Cached::Nothing => n,
        Cached::In { keys, .. } => keys.dim(0)?,
        Cached::Behind { keys, .. } => keys.dim(0)? + n,
    };
    segment::check(segments, n, keys)?;
    #[cfg(feature = "cuda")]
    crate::ops::gpu::frozen_block(x, block, (cos, sin), segments, &cached)?;
    #[cfg(not(feature = "cuda"))]
    let _ = (cos, sin);
    Ok(())
}
