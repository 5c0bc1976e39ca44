//! What the writing of replies asks of a transformer, whichever backbone it belongs to.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use hermesflow_nn::ops::Segment;

use crate::Result;
use crate::showo::cache::{KvCache, Placement};

/// A causal transformer over packed tokens, with a vocabulary head and a cache of keys and values.
pub trait Decoder {
    /// Where the weights are.
    fn device(&self) -> &Device;

    /// Embeddings of tokens.
    ///
    /// # Shapes
    /// `[tokens, hidden]`
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    fn embed(&self, ids: &[u32]) -> Result<Tensor>;

    /// An empty cache of `rows` rows.
    ///
    /// # Errors
    /// When memory runs out.
    fn cache(&self, rows: usize) -> Result<KvCache>;

    /// The hidden states that the head reads. With a cache, the new keys and values are placed into it first, and the
    /// segments' key ranges are rows of the cache; without one they are rows of `xs`.
    ///
    /// # Shapes
    /// `xs [tokens, hidden]`, one position per token → `[tokens, hidden]`
    ///
    /// # Errors
    /// When shapes or segments do not fit.
    fn forward(
        &self,
        xs: Tensor,
        positions: &[u32],
        segments: &Arc<[Segment]>,
        cache: Option<(&KvCache, &Placement)>,
    ) -> Result<Tensor>;

    /// Logits over the whole vocabulary.
    ///
    /// # Shapes
    /// `[rows, hidden]` → `[rows, vocabulary]`
    ///
    /// # Errors
    /// When shapes do not fit.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;
}
