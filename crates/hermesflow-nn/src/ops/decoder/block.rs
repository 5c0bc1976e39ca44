//! What a decoder block is made of, and where its keys and values may be kept.

use candle_core::Tensor;

use crate::matmul::training::Products;
use crate::ops::affine::Affine;

/// A decoder block of Phi: `x + attention(norm(x)) + mlp(norm(x))`, with hidden size `h`, `heads` heads of size
/// `d = h / heads` and an inner layer of size `m`. Queries and keys are normalised per head, then rotated.
#[derive(Debug, Clone)]
pub struct DecoderBlock {
    /// LayerNorm of the input of both attention and MLP, `[h]`.
    pub norm: Affine,
    /// Map to the queries, `[h, h]`.
    pub query: Affine,
    /// Map to the keys, `[h, h]`.
    pub key: Affine,
    /// Map to the values, `[h, h]`.
    pub value: Affine,
    /// Map of what attention gives, `[h, h]`.
    pub dense: Affine,
    /// LayerNorm of each head's query, `[d]`.
    pub query_norm: Affine,
    /// LayerNorm of each head's key, `[d]`.
    pub key_norm: Affine,
    /// First map of the MLP, `[m, h]`; GELU (tanh form) follows.
    pub up: Affine,
    /// Second map of the MLP, `[h, m]`.
    pub down: Affine,
    /// Number of heads, a divisor of `h`.
    pub heads: usize,
    /// Epsilon of all three LayerNorms, added to the variance.
    pub eps: f64,
    /// Type of the operands of matrix products in training.
    pub products: Products,
    /// Activation recomputation: the backward pass keeps only the block's input and computes the rest again. The numbers are
    /// the same; it takes less memory and more time.
    pub recompute: bool,
}

/// The key/value cache of a pass through a block, `[rows, heads, d]` each.
#[derive(Debug, Clone, Copy)]
pub enum Cached<'a> {
    /// No cache: attention sees the keys of this pass only, and nothing is kept.
    Nothing,
    /// Keys and values of this pass are written into the cache, in place.
    In {
        /// The cache's keys.
        keys: &'a Tensor,
        /// The cache's values.
        values: &'a Tensor,
        /// The row of each token, in u32 on the device; `None` for consecutive rows from `first` on.
        rows: Option<&'a Tensor>,
        /// The first token's row.
        first: usize,
    },
    /// Keys and values of this pass follow the cache's rows for this pass only; the cache stays as it is.
    Behind {
        /// The cache's keys.
        keys: &'a Tensor,
        /// The cache's values.
        values: &'a Tensor,
    },
}
