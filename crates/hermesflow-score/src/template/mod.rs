//! A question writer for any English caption that needs no weights: a small grammar and word lists.
//!
//! A caption is processed in four steps: [`text`] splits it into words, [`phrases`] finds noun phrases, verbs and
//! prepositions, [`scene`] relates them (who does what, what is where), and [`ask`] writes questions in the forms and
//! of the types of TIFA (Hu et al. 2023, arXiv 2303.11897): whether a thing is there, of which kind it is, how many
//! there are, colour, material, shape, size, what somebody does, holds or wears, and where things are. Differences from
//! TIFA's writer:
//!
//! 1. Some questions have the answer no, but only if the caption contradicts them: "is the car blue?" about a red one.
//! 2. Wrong choices come from word lists and are never a synonym, a kind or a generic term of anything mentioned.
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

/// A question with its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateQuestion {
    /// What the question asks for, one of TIFA's thirteen types.
    pub kind: &'static str,
    /// The question with its choices and its answer.
    pub question: Question,
}

/// Writes questions by rules. A caption always gets the same questions.
#[derive(Debug, Clone, Copy, Default)]
pub struct TemplateWriter;

/// At most twelve questions about a caption; none if it is not English or names nothing visible.
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
