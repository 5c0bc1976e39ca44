//! Attention in which several query heads share a key and value head (Ainslie et al., arXiv:2305.13245).

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::attention::attention;
use super::attention::segment::Segment;

/// As [`attention`], where query head `h` reads key head `⌊h / (heads / key heads)⌋`.
///
/// Single queries (decoding) are laid below one another, so that keys and values are read as they lie; elsewhere they
/// are repeated for each query head.
///
/// # Shapes
/// `q [tq, heads, d]`, `k [tk, key heads, d]`, `v [tk, key heads, d]` -> `[tq, heads * d]`
///
/// # Errors
/// When the heads are no multiple of the key heads, or as [`attention`].
pub fn grouped_attention(q: &Tensor, k: &Tensor, v: &Tensor, segments: &Arc<[Segment]>, scale: f32) -> Result<Tensor> {
    let ((n, heads, d), (_, key_heads, _)) = (q.dims3()?, k.dims3()?);
    if key_heads == 0 || !heads.is_multiple_of(key_heads) {
        bail!("grouped attention: {heads} heads on {key_heads} key heads");
    }
    let sharing = heads / key_heads;
    if sharing == 1 {
        return attention(q, k, v, segments, scale);
    }
    if segments.iter().all(|segment| segment.queries.len() == 1) {
        let wider = |segment: &Segment| Segment {
            queries: segment.queries.start * sharing..segment.queries.end * sharing,
            // A single query is the last of its own keys: it sees them all.
            causal: false,
            ..segment.clone()
        };
        let segments: Arc<[Segment]> = segments.iter().map(wider).collect();
        let q = q.reshape((n, key_heads, sharing, d))?.transpose(1, 2)?.contiguous()?;
        let seen = attention(&q.reshape((n * sharing, key_heads, d))?, k, v, &segments, scale)?;
        let seen = seen.reshape((n, sharing, key_heads, d))?.transpose(1, 2)?.contiguous()?;
        return seen.reshape((n, heads * d));
    }
    // Rows of a cache that nobody sees are left where they are.
    let ranges = segments.iter().flat_map(|segment| segment.sees.iter().chain([&segment.own]));
    let rows = ranges.map(|range| range.end).max().unwrap_or(0).min(k.dim(0)?);
    let repeated = |x: &Tensor| -> Result<Tensor> {
        let x = x.narrow(0, 0, rows)?.unsqueeze(2)?.broadcast_as((rows, key_heads, sharing, d))?;
        x.contiguous()?.reshape((rows, heads, d))
    };
    attention(q, &repeated(k)?, &repeated(v)?, segments, scale)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{agree, close, normal};

    /// Each key head in the place of every query head that reads it.
    fn repeated(x: &Tensor, sharing: usize) -> Result<Tensor> {
        let heads = x.dim(1)?;
        let parts = (0..heads * sharing).map(|head| x.narrow(1, head / sharing, 1)).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 1)
    }

    fn segments() -> Arc<[Segment]> {
        [Segment::causal(0..5, 0..5), Segment::causal(5..9, 5..9).seeing(0..5)].into()
    }

    #[test]
    fn is_attention_on_repeated_heads() {
        for (heads, key_heads) in [(4, 2), (6, 2), (3, 1), (4, 4)] {
            let sharing = heads / key_heads;
            let args = [normal(&[9, heads, 8]), normal(&[9, key_heads, 8]), normal(&[9, key_heads, 8])];
            agree(
                &args,
                |a| grouped_attention(&a[0], &a[1], &a[2], &segments(), 0.3),
                |a| attention(&a[0], &repeated(&a[1], sharing)?, &repeated(&a[2], sharing)?, &segments(), 0.3),
            );
        }
    }

    #[test]
    fn single_queries_on_a_cache_are_the_last_rows_of_a_whole_pass() {
        let (heads, key_heads) = (4, 2);
        let (q, k, v) = (normal(&[9, heads, 8]), normal(&[9, key_heads, 8]), normal(&[9, key_heads, 8]));
        let whole = grouped_attention(&q, &k, &v, &segments(), 0.3).unwrap();
        // The cache has rows behind that nobody sees.
        let longer = |x: &Tensor| Tensor::cat(&[x, &normal(&[7, key_heads, 8])], 0).unwrap();
        let last = q.narrow(0, 8, 1).unwrap();
        let one = [Segment::causal(0..1, 5..9).seeing(0..5)];
        let alone = grouped_attention(&last, &longer(&k), &longer(&v), &one.into(), 0.3).unwrap();
        close(&alone, &whole.narrow(0, 8, 1).unwrap(), 1e-5, "the last row");
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        let (q, k) = (normal(&[9, 4, 8]), normal(&[9, 3, 8]));
        assert!(grouped_attention(&q, &k, &k, &segments(), 0.3).is_err());
    }
}
