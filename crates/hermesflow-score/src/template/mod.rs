//! A question writer for any English caption that needs no model: a small grammar and word lists.
//!
//! A caption goes through four steps: [`text`] cuts it into words, [`phrases`] finds noun phrases, verbs and
//! prepositions, [`scene`] relates them (who does what, what is where), and [`ask`] writes questions in the forms and
//! kinds of TIFA (Hu et al. 2023, arXiv 2303.11897): a thing is there, what kind it is, how many there are, colour,
//! material, shape, size, what somebody does, holds or wears, where things are. Deviations from TIFA's writer:
//!
//! 1. Some questions have the answer no. The caption must contradict them: "is the car blue?" of a red one.
//! 2. Wrong choices come from word lists and are never a synonym, a kind or a superordinate of what is mentioned.
//! 3. What the grammar does not understand is not asked about: effects, tags of prompts, other languages.

mod ask;
mod choices;
mod lexicon;
mod phrases;
mod scene;
mod text;
mod words;

use crate::{Question, QuestionWriter, Result};

/// The most questions about one caption.
const MOST: usize = 12;

/// A question with its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateQuestion {
    /// What it asks for, one of TIFA's thirteen kinds.
    pub kind: &'static str,
    /// The question.
    pub question: Question,
}

/// Writes questions by rules; the same caption always gets the same questions.
#[derive(Debug, Clone, Copy, Default)]
pub struct TemplateWriter;

/// The questions about a caption, at most twelve; none where it is no English or shows nothing.
pub fn questions(caption: &str) -> Vec<TemplateQuestion> {
    let tokens = text::tokens(caption);
    if !text::is_english(&tokens) {
        return Vec::new();
    }
    let scene = scene::scene(&phrases::phrases(&tokens));
    ask::ask(&scene, &tokens, caption, MOST)
}

impl QuestionWriter for TemplateWriter {
    fn write(&self, captions: &[&str]) -> Result<Vec<Vec<Question>>> {
        let of = |caption: &&str| questions(caption).into_iter().map(|one| one.question).collect();
        Ok(captions.iter().map(of).collect())
    }
}
