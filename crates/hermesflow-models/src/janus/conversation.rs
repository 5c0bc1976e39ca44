//! The sequences of Janus-Pro as ids: a question about a picture, a reply, a prompt, and the row without a prompt.
//!
//! Everything is causal. The ids up to `<end_of_image>` are the same for all questions about a picture.

use super::config::JanusConfig;
use super::tokenizer::{ASSISTANT, BEGIN_OF_IMAGE, END, IMAGE_PLACEHOLDER, JanusTokenizer, USER};
use crate::{Error, Result};

/// What stands before every question.
pub const SYSTEM: &str = "You are a helpful language and vision assistant. You are able to understand the visual content \
                          that the user provides, and assist the user with a variety of tasks using natural language.";

/// The text of a question about a picture, whose place [`IMAGE_PLACEHOLDER`] holds.
pub fn question_text(question: &str) -> String {
    format!("{SYSTEM}\n\n{}", turn(&format!("{IMAGE_PLACEHOLDER}\n{question}")))
}

/// The text before the codes of a picture.
pub fn prompt_text(prompt: &str) -> String {
    format!("{}{BEGIN_OF_IMAGE}", turn(prompt))
}

/// The text of a reply, with the space in front and the token that ends it.
pub fn reply_text(reply: &str) -> String {
    format!(" {reply}{END}")
}

/// What the user says, and that the model speaks next. One who says nothing has neither a space nor a blank line.
fn turn(said: &str) -> String {
    // What Python's `strip` takes away: four separators more than Rust's `trim`.
    let said = said.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c));
    match said {
        "" => format!("{USER}:{ASSISTANT}:"),
        said => format!("{USER}: {said}\n\n{ASSISTANT}:"),
    }
}

/// The ids of a question about a picture, cut where the picture's features go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Up to `<begin_of_image>`: the same for all questions.
    pub before: Vec<u32>,
    /// From behind `<end_of_image>` on.
    pub behind: Vec<u32>,
}

/// Builds the ids of sequences.
#[derive(Debug, Clone)]
pub struct Conversation {
    tokenizer: JanusTokenizer,
    image_tokens: usize,
}

impl Conversation {
    /// For a configuration and its tokenizer.
    pub fn new(config: &JanusConfig, tokenizer: JanusTokenizer) -> Self {
        Self { tokenizer, image_tokens: config.image_tokens }
    }

    /// The text tokenizer.
    pub fn tokenizer(&self) -> &JanusTokenizer {
        &self.tokenizer
    }

    /// A question about a picture.
    ///
    /// # Errors
    /// When the question spells the picture's placeholder, or the tokenizer fails.
    pub fn ask(&self, question: &str) -> Result<Asked> {
        refuse_placeholder(question)?;
        let ids = self.tokenizer.encode(&question_text(question))?;
        let placeholder = self.tokenizer.special.image_placeholder;
        let mut parts = ids.split(|id| *id == placeholder);
        let (Some(before), Some(behind), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Error::Invalid(format!("the tokenizer does not read {IMAGE_PLACEHOLDER} as one token")));
        };
        let mut before = before.to_vec();
        before.push(self.tokenizer.special.begin_of_image);
        Ok(Asked { before, behind: behind.to_vec() })
    }

    /// All ids of a question about a picture, placeholders where its features go.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn question(&self, question: &str) -> Result<Vec<u32>> {
        let Asked { before, behind } = self.ask(question)?;
        let special = &self.tokenizer.special;
        let features = vec![special.image_placeholder; self.image_tokens];
        Ok([before, features, vec![special.end_of_image], behind].concat())
    }

    /// A reply, its end token included.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn reply(&self, reply: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode_inside(&reply_text(reply))
    }

    /// What stands before the codes of a picture.
    ///
    /// # Errors
    /// When the prompt spells the picture's placeholder, or the tokenizer fails.
    pub fn prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        refuse_placeholder(prompt)?;
        self.tokenizer.encode(&prompt_text(prompt))
    }

    /// The same without the prompt: as long, with the pad in the place of all ids but the first and the last.
    pub fn unconditional(&self, prompt: &[u32]) -> Vec<u32> {
        let mut ids = prompt.to_vec();
        if let [_, between @ .., _] = ids.as_mut_slice() {
            between.fill(self.tokenizer.special.pad);
        }
        ids
    }
}

fn refuse_placeholder(text: &str) -> Result<()> {
    if text.contains(IMAGE_PLACEHOLDER) {
        let message = format!("a text spells {IMAGE_PLACEHOLDER}, where a picture would go; leave it away: {text:?}");
        return Err(Error::Invalid(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_trimmed_as_a_whole() {
        assert_eq!(prompt_text("  a cat;\n\na dog \n"), "<|User|>: a cat;\n\na dog\n\n<|Assistant|>:<begin_of_image>");
        for nothing in ["", " \n\t", "\u{1f}\u{a0}"] {
            assert_eq!(prompt_text(nothing), "<|User|>:<|Assistant|>:<begin_of_image>");
        }
        let asked = question_text(" What? ");
        assert!(asked.ends_with("language.\n\n<|User|>: <image_placeholder>\n What?\n\n<|Assistant|>:"), "{asked}");
        assert!(question_text("").ends_with("<|User|>: <image_placeholder>\n\n<|Assistant|>:"));
        assert_eq!(reply_text("yes"), " yes<｜end▁of▁sentence｜>");
    }
}
