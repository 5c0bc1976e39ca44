//! Show-o's text tokenizer: a byte-level BPE with ten tokens added after its vocabulary.
//!
//! One difference from the original: captions, prompts and questions are text, even if they contain the spelling of a
//! control token such as `<|soi|>`, `[PAD]` or `<|endoftext|>`. The original reads these as the tokens, which ends a
//! text or starts an image in the middle of it.

use std::path::Path;

use hermesflow_nn::foreign::{self, decoded, stands_in};
use tokenizers::{AddedToken, Tokenizer};

use super::config::{ADDED_TOKENS, ShowoConfig};
use crate::{Error, Result};

/// The token that serves as `<|sot|>` and as `<|eot|>`.
const END_OF_TEXT: &str = "<|endoftext|>";

/// The ids of the tokens that frame sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// `<|sot|>`, which starts a text.
    pub sot: u32,
    /// `<|eot|>`, which ends a text.
    pub eot: u32,
    /// `<|soi|>`, which starts an image.
    pub soi: u32,
    /// `<|eoi|>`, which ends an image.
    pub eoi: u32,
    /// `<|t2i|>`, which asks for an image.
    pub t2i: u32,
    /// `<|mmu|>`, which asks for a reply about an image.
    pub mmu: u32,
}

impl SpecialIds {
    /// The ids of a configuration, with the id of the text vocabulary's end-of-text token.
    pub fn new(config: &ShowoConfig, end_of_text: u32) -> Self {
        let base = config.llm_vocab_size as u32;
        Self { sot: end_of_text, eot: end_of_text, soi: base + 1, eoi: base + 2, t2i: base + 5, mmu: base + 6 }
    }
}

/// Converts text to token ids and back.
#[derive(Debug, Clone)]
pub struct ShowoTokenizer {
    /// The tokenizer with the added tokens.
    inner: Tokenizer,
    /// The tokenizer without them, which reads the special tokens of its own file as text.
    text: Tokenizer,
    /// The ids of the framing tokens.
    pub special: SpecialIds,
}

impl ShowoTokenizer {
    /// Reads a `tokenizer.json`, which lacks the ten added tokens, and adds them.
    ///
    /// # Errors
    /// If the file is missing, malformed, or does not fit the model's vocabulary; it is named.
    pub fn load(path: &Path, config: &ShowoConfig) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        Self::from_bytes(&bytes, config, path)
    }

    /// The tokenizer as JSON.
    ///
    /// # Errors
    /// Never for a tokenizer that was loaded.
    pub(super) fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| Error::Invalid(format!("the tokenizer cannot be written: {e}")))
    }

    /// Like [`ShowoTokenizer::load`], from memory; `origin` is named in errors.
    ///
    /// # Errors
    /// If the JSON is malformed or does not fit the model's vocabulary.
    pub fn from_bytes(bytes: &[u8], config: &ShowoConfig, origin: &Path) -> Result<Self> {
        let fault = |message: String| Error::Tokenizer { path: origin.to_path_buf(), message };
        if let Some(what) = stands_in(bytes) {
            return Err(fault(what.into()));
        }
        let text = foreign::text(bytes.to_vec()).map_err(|what| fault(what.into()))?;
        let mut inner: Tokenizer =
            decoded(|| text.parse()).map_err(|e| fault(format!("not a tokenizer ({e}); download it again")))?;
        let mut text = inner.clone();
        text.set_encode_special_tokens(true);
        // As in the original, only the padding is special; the others are kept by decoding.
        for token in ADDED_TOKENS {
            let special = token == "[PAD]";
            let added = [AddedToken::from(token, special)];
            let result = if special { inner.add_special_tokens(added) } else { inner.add_tokens(added) };
            result.map_err(|e| fault(e.to_string()))?;
        }
        for token in ADDED_TOKENS {
            let (found, wanted) = (inner.token_to_id(token), config.added_token(token));
            if found != wanted {
                let message = format!(
                    "{token} has id {found:?} but the model's llm_vocab_size {} asks for {wanted:?}; \
                     use the tokenizer that belongs to this checkpoint",
                    config.llm_vocab_size
                );
                return Err(fault(message));
            }
        }
        let last = inner.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if last >= config.vocab_size {
            let message = format!(
                "a token has id {last}, beyond the model's vocab_size {}; use the tokenizer that belongs to this checkpoint",
                config.vocab_size
            );
            return Err(fault(message));
        }
        let end = inner.token_to_id(END_OF_TEXT).ok_or_else(|| {
            fault(format!("has no token {END_OF_TEXT}; use the tokenizer that belongs to this checkpoint"))
        })?;
        Ok(Self { inner, text, special: SpecialIds::new(config, end) })
    }

    /// The token ids of a text. No control tokens result, whatever the text spells.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        ids(&self.text, text)
    }

    /// The token ids of a text in which the spelling of a control token means that token, as the original reads any
    /// text.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_with_controls(&self, text: &str) -> Result<Vec<u32>> {
        ids(&self.inner, text)
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        decoded(|| self.inner.decode(ids, true))
            .map_err(|e| Error::Invalid(format!("the tokenizer cannot write a text: {e}")))
    }

    /// The id of a token; `None` if there is no such token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The size of the vocabulary, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = decoded(|| tokenizer.encode(text, false));
    let encoding = encoding.map_err(|e| Error::Invalid(format!("the tokenizer cannot read a text: {e}")))?;
    Ok(encoding.get_ids().to_vec())
}
