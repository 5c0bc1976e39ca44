//! What is too long for the model's positions: refused, never cut.

use super::Janus;
use crate::{Error, Result};

/// Characters of a text that a message shows.
const SHOWN: usize = 60;

impl Janus {
    /// Refuses a sequence that has more tokens than the model has positions; `text` is shown.
    pub(super) fn fits(&self, tokens: usize, text: &str) -> Result<()> {
        let positions = self.config.language.max_position_embeddings;
        if tokens <= positions {
            return Ok(());
        }
        let shown: String = text.chars().take(SHOWN).collect();
        let message = format!(
            "a sequence of {tokens} tokens with {shown:?} does not fit the model's {positions} positions; shorten the text, \
             or allow shorter replies"
        );
        Err(Error::Invalid(message))
    }
}
