//! Texts on their way into sequences: how a caption stands there, and what is too long for the model's positions.
//!
//! A prompt that is too long to be imagined is cut, as the method has it ([`Frames::imagine_text`](super::Frames)). A
//! question or a caption is not: another text would be asked or trained than the one that was given.

use super::Showo;
use crate::model::ImageView;
use crate::{Error, Result};

/// A reply of which only the greatest length is known.
pub(super) const UNWRITTEN: &str = "still to be written";
/// Characters of a text that a message shows.
const SHOWN: usize = 60;

/// A caption or an answer as the model writes it in a reply: with the space that records do not keep in front. One that
/// says nothing is the reply that ends at once.
pub fn reply_text(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!(" {text}") }
}

impl Showo {
    /// Whether a prompt is too long to be imagined as a whole.
    pub(super) fn prompt_is_cut(&self, prompt: &str) -> Result<bool> {
        // A token has a byte at least.
        let most = self.config.max_text_len.saturating_sub(3);
        Ok(prompt.len() > most && self.tokenizer.encode(prompt)?.len() > most)
    }

    /// Refuses a question that does not fit the model's positions with a reply of so many tokens, behind an image.
    pub(super) fn question_fits(&self, question: &str, reply: usize) -> Result<()> {
        let image = self.codes_rows(self.config.num_vq_tokens);
        // A token has a byte at least.
        if (image + FRAME + question.len()).saturating_add(reply) <= self.phi_config.max_position_embeddings {
            return Ok(());
        }
        self.fits(image, (question, self.question_ids(question)?.len()), (UNWRITTEN, reply))
    }

    /// Whether a caption fits the model's positions, behind an image and the question.
    ///
    /// # Errors
    /// When it does not, or the tokenizer fails.
    pub fn check_caption(&self, question: &str, caption: &str) -> Result<()> {
        let image = self.codes_rows(self.config.num_vq_tokens);
        if image + FRAME + question.len() + caption.len() <= self.phi_config.max_position_embeddings {
            return Ok(());
        }
        let reply = self.encode_reply(caption)?.len();
        self.fits(image, (question, self.question_ids(question)?.len()), (caption, reply))
    }

    /// The rows of an image of so many codes.
    fn codes_rows(&self, codes: usize) -> usize {
        codes + 3
    }

    /// The rows of an image as it was read.
    pub(super) fn rows_of(&self, image: &ImageView) -> usize {
        match image {
            ImageView::Codes(codes) => self.codes_rows(codes.len()),
            ImageView::Features(features) => self.feature_rows(features.dims().first().copied().unwrap_or(0)),
        }
    }

    /// Refuses a sequence that has more tokens than the model has positions.
    pub(super) fn fits(&self, image: usize, question: (&str, usize), reply: (&str, usize)) -> Result<()> {
        let positions = self.phi_config.max_position_embeddings;
        if (image + question.1).saturating_add(reply.1) <= positions {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "an image of {image} tokens, a question of {} ({:?}) and a reply of {} ({:?}) do not fit the model's {positions} \
             positions; shorten the text, or allow shorter replies",
            question.1,
            shown(question.0),
            reply.1,
            shown(reply.0),
        )))
    }
}

/// Tokens around a question, at most: its frame has fewer bytes.
const FRAME: usize = 32;

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_begins_with_a_space_unless_it_says_nothing() {
        assert_eq!(reply_text(" two dogs\n"), " two dogs");
        assert_eq!((reply_text(""), reply_text(" \t")), (String::new(), String::new()));
    }

    #[test]
    fn long_texts_are_shown_by_their_beginning() {
        assert_eq!(shown("short"), "short");
        assert_eq!(shown(&"ä".repeat(1000)).chars().count(), SHOWN + 1);
    }
}
