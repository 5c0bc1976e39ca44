//! The image of a training pair that its captions describe, as the model understands it: codes, or features that are read
//! from where they are stored whenever a step needs them, because those of all pairs may not fit memory.

use std::fmt;
use std::sync::Arc;

use hermesflow_models::{ImageView, Tensor};
use serde::{Serialize, Serializer};

use crate::trainer::ObjectiveError;
use crate::{Error, Result};

/// Reads the features of one image.
type Load = Arc<dyn Fn() -> std::result::Result<Tensor, ObjectiveError> + Send + Sync>;

/// A record's own image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum OwnImage {
    /// Codes of the image tokenizer.
    Codes(Vec<u32>),
    /// Features of a vision encoder.
    Features(StoredFeatures),
}

impl Default for OwnImage {
    /// No image.
    fn default() -> Self {
        Self::Codes(Vec::new())
    }
}

impl From<Vec<u32>> for OwnImage {
    fn from(codes: Vec<u32>) -> Self {
        Self::Codes(codes)
    }
}

impl OwnImage {
    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Codes(codes) if codes.is_empty())
    }

    /// The image as the model understands it.
    ///
    /// # Errors
    /// If stored features cannot be read.
    pub fn view(&self) -> Result<ImageView> {
        match self {
            Self::Codes(codes) => Ok(ImageView::Codes(codes.clone())),
            Self::Features(stored) => Ok(ImageView::Features((stored.load)().map_err(Error::Features)?)),
        }
    }

    /// Bytes that tell this image from others.
    pub fn identity(&self) -> Vec<u8> {
        match self {
            Self::Codes(codes) => codes.iter().flat_map(|code| code.to_le_bytes()).collect(),
            Self::Features(stored) => stored.digest.clone().into_bytes(),
        }
    }
}

/// The features of an image where they are stored. Equal digests mean equal features.
#[derive(Clone)]
pub struct StoredFeatures {
    digest: String,
    load: Load,
}

impl StoredFeatures {
    /// Features with this digest, that `load` reads.
    pub fn new(
        digest: String,
        load: impl Fn() -> std::result::Result<Tensor, ObjectiveError> + Send + Sync + 'static,
    ) -> Self {
        Self { digest, load: Arc::new(load) }
    }
}

impl fmt::Debug for StoredFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredFeatures({})", self.digest)
    }
}

impl PartialEq for StoredFeatures {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Serialize for StoredFeatures {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.digest)
    }
}
