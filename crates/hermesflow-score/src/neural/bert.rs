//! The similarity of captions by the last hidden state of the first token, as in the released code with
//! `bert-large-uncased`.

use std::path::Path;

use candle_core::{DType, Device};

use super::Encoder;
use super::TextTokenizer;
use super::cosine;
use crate::{CaptionSimilarity, Result};

/// Scores captions by the cosine of their `[CLS]` states.
#[derive(Debug)]
pub struct Bert {
    encoder: Encoder,
    tokenizer: TextTokenizer,
}

impl Bert {
    /// Loads a folder of a BERT (or MPNet) in f32.
    ///
    /// # Errors
    /// If a file is missing or malformed; it is named.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        Self::load_as(folder, DType::F32, device)
    }

    /// Like [`Bert::load`], with weights held as `dtype`.
    ///
    /// # Errors
    /// As [`Bert::load`].
    pub fn load_as(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let encoder = Encoder::load(folder, dtype, device)?;
        let tokenizer = TextTokenizer::load(folder, encoder.vocab_size())?.limited(encoder.max_tokens())?;
        Ok(Self { encoder, tokenizer })
    }

    /// The token ids of texts, with framing tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn ids<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Vec<u32>>> {
        self.tokenizer.ids(texts)
    }

    /// The last hidden state of each text's first token; all texts are processed together.
    ///
    /// # Errors
    /// If the model fails.
    pub fn first_states<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Vec<f32>>> {
        let states = self.encoder.states(&self.ids(texts)?, self.encoder.layers())?;
        states.iter().map(|state| Ok(state.get(0)?.to_dtype(DType::F32)?.to_vec1::<f32>()?)).collect()
    }
}

impl CaptionSimilarity for Bert {
    fn similarities(&self, reference: &str, candidates: &[String]) -> Result<Vec<f64>> {
        let states = self.first_states([reference].into_iter().chain(candidates.iter().map(String::as_str)))?;
        Ok(states[1..].iter().map(|state| cosine(&states[0], state)).collect())
    }
}
