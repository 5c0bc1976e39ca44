//! Where a tensor lies in a weight file.

use std::ops::Range;

use candle_core::DType;

/// A tensor of a weight file: its header, and where its values are, one after the other.
pub(super) struct Held {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    /// The bytes of the file that are the values.
    pub(super) part: Range<usize>,
    /// Whether the first dimension varies fastest, so that the values are those of the transposed tensor.
    pub(super) reversed: bool,
}
