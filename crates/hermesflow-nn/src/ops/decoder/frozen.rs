//! A decoder block of Phi whose weights are not trained, with its key/value cache: by kernels of its own where the device has
//! some that take it.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::DecoderBlock;
use crate::ops::Segment;

/// Where the keys and values of a pass go, and which stand before them.
#[derive(Debug, Clone, Copy)]
pub enum Cached<'a> {
    /// Nothing is kept: the pass has only its own.
    Nothing,
    /// They are written into the cache, `[rows, heads, d]` each, in place.
    In {
        /// The cache's keys.
        keys: &'a Tensor,
        /// The cache's values.
        values: &'a Tensor,
        /// The row of each token, in u32 on the device; from `first` on if there are none.
        rows: Option<&'a Tensor>,
        /// The first token's row.
        first: usize,
    },
    /// They stand behind the cache's rows for this pass; the cache stays as it is.
    Behind {
        /// The cache's keys.
        keys: &'a Tensor,
        /// The cache's values.
        values: &'a Tensor,
    },
}

/// Whether the device has kernels for a whole block that is not trained, under such tables of angles.
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

/// `x ← x + attention(norm(x)) + mlp(norm(x))` in place, as [`crate::ops::decoder_block`], with normalised and turned queries and
/// keys, of which those of earlier tokens may stand in a cache.
///
/// # Shapes
/// `x [n, h]` in f32, contiguous and nobody else's; `cos` and `sin` `[n, rotated / 2]` in f32; segments as in
/// [`crate::ops::attention()`]
///
/// # Errors
/// When the device has no kernels for it ([`takes_frozen_block`]), or shapes do not fit.
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
    crate::ops::attention::check(segments, n, keys)?;
    #[cfg(feature = "cuda")]
    crate::ops::gpu::frozen_block(x, block, (cos, sin), segments, &cached)?;
    #[cfg(not(feature = "cuda"))]
    let _ = (cos, sin);
    Ok(())
}
