//! Texts on their way into sequences: the spelling of captions, and what does not fit the model's positions.
//!
//! A prompt that is too long is cut, as in the original ([`Frames::imagine_text`](super::Frames)). A question or a
//! caption that is too long is refused, because another text than the given one would be asked or trained.

use super::Showo;
use crate::model::ImageView;
use crate::{Error, Result};

/// Stands in messages for a reply of which only the largest length is known.
pub(super) const UNWRITTEN: &str = "still to be written";
/// The number of characters of a text that a message shows.
const SHOWN: usize = 60;

/// A caption or an answer as the model writes it in a reply: with a leading space, which records do not store. An empty
/// text is the reply that ends at once.
pub fn reply_text(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!(" {text}") }
}

impl Showo {
    /// Whether a prompt is too long, so that its end is left out.
    pub(super) fn prompt_is_cut(&self, prompt: &str) -> Result<bool> {
        // A token has at least one byte.
        let most = self.config.max_text_len.saturating_sub(3);
        Ok(prompt.len() > most && self.tokenizer.encode(prompt)?.len() > most)
    }

    /// Refuses a question that, with an image before it and a reply of `reply` tokens, does not fit the model's
    /// positions.
    pub(super) fn question_fits(&self, question: &str, reply: usize) -> Result<()> {
        let image = self.codes_rows(self.config.num_vq_tokens);
        // A token has at least one byte.
        if (image + FRAME + question.len()).saturating_add(reply) <= self.phi_config.max_position_embeddings {
            return Ok(());
        }
        self.fits(image, (question, self.question_ids(question)?.len()), (UNWRITTEN, reply))
    }

    /// Checks that a caption, with an image and the question before it, fits the model's positions. The caption is given as
    /// records hold it.
    ///
    /// # Errors
    /// If it does not, or the tokenizer fails.
    pub fn check_caption(&self, question: &str, caption: &str) -> Result<()> {
        let image = self.codes_rows(self.config.num_vq_tokens);
        // With the space that a reply begins with.
        if image + FRAME + question.len() + caption.len() < self.phi_config.max_position_embeddings {
            return Ok(());
        }
        let reply = self.encode_reply(&reply_text(caption))?.len();
        self.fits(image, (question, self.question_ids(question)?.len()), (caption, reply))
    }

    /// The number of tokens of an image of `codes` codes.
    fn codes_rows(&self, codes: usize) -> usize {
        codes + 3
    }

    /// The number of tokens of an image in the form in which the model understands it.
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

/// The largest number of tokens of the frame around a question: it has fewer bytes.
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
