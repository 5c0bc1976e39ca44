//! Janus-Pro's text tokenizer: a byte-level BPE whose special tokens are looked up by their spelling, as their ids differ
//! between checkpoints.

use std::path::{Path, PathBuf};

use hermesflow_nn::foreign::{self, decoded, stands_in};
use tokenizers::Tokenizer;

use crate::{Error, Result};

/// Begins every text.
pub const BEGIN: &str = "<｜begin▁of▁sentence｜>";
/// Ends a reply.
pub const END: &str = "<｜end▁of▁sentence｜>";
/// Stands in the prompt's place in the unconditional row.
pub const PAD: &str = "<｜▁pad▁｜>";
/// Stands where a picture's features go.
pub const IMAGE_PLACEHOLDER: &str = "<image_placeholder>";
/// Stands before a picture.
pub const BEGIN_OF_IMAGE: &str = "<begin_of_image>";
/// Stands behind a picture that is read.
pub const END_OF_IMAGE: &str = "<end_of_image>";
/// Says that the user speaks.
pub const USER: &str = "<|User|>";
/// Says that the model speaks.
pub const ASSISTANT: &str = "<|Assistant|>";

/// The ids of the special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// Of [`BEGIN`].
    pub begin: u32,
    /// Of [`END`].
    pub end: u32,
    /// Of [`PAD`].
    pub pad: u32,
    /// Of [`IMAGE_PLACEHOLDER`].
    pub image_placeholder: u32,
    /// Of [`BEGIN_OF_IMAGE`].
    pub begin_of_image: u32,
    /// Of [`END_OF_IMAGE`].
    pub end_of_image: u32,
    /// Of [`USER`].
    pub user: u32,
    /// Of [`ASSISTANT`].
    pub assistant: u32,
}

/// Text to ids and back.
#[derive(Debug, Clone)]
pub struct JanusTokenizer {
    inner: Tokenizer,
    add_bos: bool,
    /// The ids of the special tokens.
    pub special: SpecialIds,
}

impl JanusTokenizer {
    /// Reads a `tokenizer.json`; `origin` is named in errors. With `add_bos` a text begins with [`BEGIN`].
    ///
    /// # Errors
    /// When the file is malformed, lacks a special token, or has an id that is not below `vocab_size`.
    pub fn from_bytes(bytes: &[u8], vocab_size: usize, add_bos: bool, origin: &Path) -> Result<Self> {
        let fault = |message: String| Error::Tokenizer { path: PathBuf::from(origin), message };
        if let Some(what) = stands_in(bytes) {
            return Err(fault(what.into()));
        }
        let text = foreign::text(bytes.to_vec()).map_err(|what| fault(what.into()))?;
        let mut inner: Tokenizer =
            decoded(|| text.parse()).map_err(|e| fault(format!("not a tokenizer ({e}); download it again")))?;
        inner.with_padding(None);
        decoded(|| inner.with_truncation(None).map(|_| ())).map_err(&fault)?;
        let id = |spelling: &str| {
            let missing = || fault(format!("has no token {spelling}; use the tokenizer of a Janus-Pro checkpoint"));
            inner.token_to_id(spelling).ok_or_else(missing)
        };
        let special = SpecialIds {
            begin: id(BEGIN)?,
            end: id(END)?,
            pad: id(PAD)?,
            image_placeholder: id(IMAGE_PLACEHOLDER)?,
            begin_of_image: id(BEGIN_OF_IMAGE)?,
            end_of_image: id(END_OF_IMAGE)?,
            user: id(USER)?,
            assistant: id(ASSISTANT)?,
        };
        let last = inner.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if last >= vocab_size {
            let message = format!(
                "a token has id {last}, beyond the model's vocab_size {vocab_size}; use the tokenizer that belongs to this \
                 checkpoint"
            );
            return Err(fault(message));
        }
        Ok(Self { inner, add_bos, special })
    }

    /// Token ids of a text as a sequence begins: [`BEGIN`] once in front, unless the checkpoint leaves it away. Special
    /// tokens that the text spells are recognised.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = if self.add_bos { vec![self.special.begin] } else { Vec::new() };
        ids.extend(self.encode_inside(text)?);
        Ok(ids)
    }

    /// Token ids of a text in the middle of a sequence.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode_inside(&self, text: &str) -> Result<Vec<u32>> {
        // Without the file's own post-processing, which may add the begin token or not.
        let encoding = decoded(|| self.inner.encode(text, false))
            .map_err(|e| Error::Invalid(format!("the tokenizer cannot read a text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, special tokens left out; an id that the tokenizer does not know is no text.
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
}
