//! Show-o's text tokenizer: a byte-level BPE with ten added tokens behind its vocabulary.
//!
//! A deviation: what a caption, a prompt or a question says is text, also where it spells a control token such as
//! `<|soi|>`, `[PAD]` or `<|endoftext|>`. The original reads those as the tokens, which ends a text or opens an image in
//! the middle of it.

use std::path::Path;

use hermesflow_nn::foreign::{decoded, stands_in};
use tokenizers::{AddedToken, Tokenizer};

use super::config::{ADDED_TOKENS, ShowoConfig};
use crate::{Error, Result};

/// The token that serves as `<|sot|>` and `<|eot|>`.
const END_OF_TEXT: &str = "<|endoftext|>";

/// The ids of the tokens that frame sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// Starts a text.
    pub sot: u32,
    /// Ends a text.
    pub eot: u32,
    /// Starts an image.
    pub soi: u32,
    /// Ends an image.
    pub eoi: u32,
    /// Asks for an image.
    pub t2i: u32,
    /// Asks for understanding.
    pub mmu: u32,
}

impl SpecialIds {
    /// The ids that a configuration implies, with the text vocabulary's end-of-text token.
    pub fn new(config: &ShowoConfig, end_of_text: u32) -> Self {
        let base = config.llm_vocab_size as u32;
        Self { sot: end_of_text, eot: end_of_text, soi: base + 1, eoi: base + 2, t2i: base + 5, mmu: base + 6 }
    }
}

/// Text to ids and back.
#[derive(Debug, Clone)]
pub struct ShowoTokenizer {
    /// With the added tokens.
    inner: Tokenizer,
    /// Without them, and to which the special ones of its own file are text.
    text: Tokenizer,
    /// The framing tokens.
    pub special: SpecialIds,
}

impl ShowoTokenizer {
    /// Reads a `tokenizer.json` (without the ten tokens) and adds them.
    ///
    /// # Errors
    /// When the file is missing, malformed, or does not fit the model's vocabulary.
    pub fn load(path: &Path, config: &ShowoConfig) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        Self::from_bytes(&bytes, config, path)
    }

    /// All of it as JSON.
    ///
    /// # Errors
    /// Never for a tokenizer that was loaded.
    pub(super) fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| Error::Invalid(format!("the tokenizer cannot be written: {e}")))
    }

    /// As [`ShowoTokenizer::load`], from memory; `origin` is named in errors.
    ///
    /// # Errors
    /// When the text is malformed or does not fit the model's vocabulary.
    pub fn from_bytes(bytes: &[u8], config: &ShowoConfig, origin: &Path) -> Result<Self> {
        let fault = |message: String| Error::Tokenizer { path: origin.to_path_buf(), message };
        if let Some(what) = stands_in(bytes) {
            return Err(fault(what.into()));
        }
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        let mut inner = decoded(|| Tokenizer::from_bytes(bytes))
            .map_err(|e| fault(format!("not a tokenizer ({e}); download it again")))?;
        let mut text = inner.clone();
        text.set_encode_special_tokens(true);
        // As the original adds them: only the padding is special, the others survive decoding.
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
        let end = inner.token_to_id(END_OF_TEXT).ok_or_else(|| fault(format!("has no {END_OF_TEXT} token")))?;
        Ok(Self { inner, text, special: SpecialIds::new(config, end) })
    }

    /// Token ids of a text, which holds no control tokens whatever it spells.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        ids(&self.text, text)
    }

    /// Token ids of a sequence in which control tokens are spelled out, as the original's tokenizer reads any text.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode_with_controls(&self, text: &str) -> Result<Vec<u32>> {
        ids(&self.inner, text)
    }

    /// The text of ids, special tokens left out.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        decoded(|| self.inner.decode(ids, true))
            .map_err(|e| Error::Invalid(format!("the tokenizer cannot write a text: {e}")))
    }

    /// The id of a token, if there is such a one.
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
