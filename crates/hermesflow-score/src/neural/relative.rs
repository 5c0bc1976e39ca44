//! Attention with relative position bias (Raffel et al., "T5", arXiv 1910.10683 §2.1); MPNet uses the same buckets.

use std::ops::Range;

use candle_core::{D, DType, Tensor};

use super::packing::Packing;
use crate::Result;

/// The mapping of distances to buckets: half of the buckets are single distances, the others grow logarithmically up to
/// `farthest`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buckets {
    /// The number of buckets.
    pub count: usize,
    /// Larger distances fall into the last bucket.
    pub farthest: usize,
    /// Whether keys after the query have buckets of their own; otherwise they share that of distance 0.
    pub both_ways: bool,
}

impl Buckets {
    /// The bucket of a key for a query, computed in f32 as in the original.
    fn of(self, query: usize, key: usize) -> usize {
        let (count, first) = match self.both_ways {
            true => (self.count / 2, if key > query { self.count / 2 } else { 0 }),
            false => (self.count, 0),
        };
        let distance = if self.both_ways { query.abs_diff(key) } else { query.saturating_sub(key) };
        let exact = count / 2;
        if distance < exact {
            return first + distance;
        }
        let ratio = (self.farthest as f64 / exact as f64).ln() as f32;
        let beyond = (distance as f32 / exact as f32).ln() / ratio * (count - exact) as f32;
        first + (exact + beyond as usize).min(count - 1)
    }

    /// The bias that queries at given positions add to the scores of the first `keys` keys. With `causal`, it is minus
    /// infinity for keys after the query.
    ///
    /// # Shapes
    /// `table` `[buckets, heads]` → `[1, heads, queries, keys]`
    pub fn bias(self, table: &Tensor, queries: Range<usize>, keys: usize, causal: bool) -> Result<Tensor> {
        let heads = table.dim(1)?;
        let pairs = queries.clone().flat_map(|query| (0..keys).map(move |key| (query, key)));
        let buckets: Vec<u32> = pairs.clone().map(|(query, key)| self.of(query, key) as u32).collect();
        let index = Tensor::from_vec(buckets, queries.len() * keys, table.device())?;
        let bias = table.to_dtype(DType::F32)?.index_select(&index, 0)?.t()?;
        let bias = bias.reshape((1, heads, queries.len(), keys))?;
        if !causal {
            return Ok(bias);
        }
        let hidden: Vec<f32> = pairs.map(|(query, key)| if key > query { f32::NEG_INFINITY } else { 0.0 }).collect();
        let hidden = Tensor::from_vec(hidden, (1, 1, queries.len(), keys), table.device())?;
        Ok(bias.broadcast_add(&hidden)?)
    }
}

/// Attention of sentences of equal length: `softmax(scale q kᵀ + bias) v`.
///
/// # Shapes
/// `q` `[b, queries, heads, d]`, `k`, `v` `[b, keys, heads, d]`, `bias` `[1, heads, queries, keys]` → `[b, queries,
/// heads d]`
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor, scale: f64) -> Result<Tensor> {
    let (b, queries, heads, d) = q.dims4()?;
    let by_head = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let scores = by_head(q)?.matmul(&by_head(k)?.transpose(2, 3)?)?.to_dtype(DType::F32)?;
    let scores = (scores * scale)?.broadcast_add(bias)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.to_dtype(q.dtype())?;
    Ok(weights.matmul(&by_head(v)?)?.transpose(1, 2)?.reshape((b, queries, heads * d))?)
}

/// The biases for the lengths of a pass: one per run of [`Packing::runs`].
pub(super) fn biases(buckets: Buckets, table: &Tensor, packing: &Packing) -> Result<Vec<Tensor>> {
    packing.runs().into_iter().map(|(_, _, length)| buckets.bias(table, 0..length, length, false)).collect()
}

/// Attention of packed sentences, each to itself.
///
/// # Shapes
/// `q`, `k`, `v` `[n, heads, d]` → `[n, heads d]`
pub(super) fn packed_attention(
    [q, k, v]: [&Tensor; 3],
    packing: &Packing,
    biases: &[Tensor],
    scale: f64,
) -> Result<Tensor> {
    let (_, heads, d) = q.dims3()?;
    let of_run = |((first, count, length), bias): ((usize, usize, usize), &Tensor)| -> Result<Tensor> {
        let part = |x: &Tensor| x.narrow(0, first, count * length)?.reshape((count, length, heads, d));
        attention(&part(q)?, &part(k)?, &part(v)?, bias, scale)?
            .reshape((count * length, heads * d))
            .map_err(Into::into)
    };
    let seen: Vec<Tensor> = packing.runs().into_iter().zip(biases).map(of_run).collect::<Result<_>>()?;
    Ok(Tensor::cat(&seen, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_begin_where_the_original_has_them_begin() {
        // The first distance of every bucket, from transformers' T5Attention in f32.
        let starts = |buckets: Buckets, away: &dyn Fn(usize) -> (usize, usize)| {
            let of = |distance: usize| {
                let (query, key) = away(distance);
                buckets.of(query, key)
            };
            (0..400).filter(|&distance| distance == 0 || of(distance) != of(distance - 1)).collect::<Vec<_>>()
        };
        let encoder = Buckets { count: 32, farthest: 128, both_ways: true };
        let expected = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        assert_eq!(starts(encoder, &|distance| (distance, 0)), expected);
        assert_eq!(starts(encoder, &|distance| (0, distance)), expected);
        assert_eq!((encoder.of(5, 4), encoder.of(4, 5)), (1, 17));
        let decoder = Buckets { both_ways: false, ..encoder };
        let expected: Vec<usize> =
            (0..17).chain([19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]).collect();
        assert_eq!(starts(decoder, &|distance| (distance, 0)), expected);
        assert_eq!(decoder.of(4, 9), 0);
    }
}
