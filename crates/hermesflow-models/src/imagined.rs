//! What is known of a generated image.

/// An image that was generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imagined {
    /// The image's codes.
    pub codes: Vec<u32>,
    /// For each code the step, from 0, in which it was drawn and kept: in that step the codes of earlier steps were known and
    /// all others masked. None of a model that draws one code after the other, or where some codes were given.
    pub steps: Option<Vec<u32>>,
}
