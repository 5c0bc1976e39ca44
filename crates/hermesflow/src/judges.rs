//! The judges of texts and images that a configuration names.

use anyhow::Result;
use hermesflow_records::{derive_seed, three_decimals};
use hermesflow_scenes::parse_caption;
use hermesflow_score::{CaptionSimilarity, ChoiceMatcher, Choosing, Lexical, Question, QuestionWriter};
use image::RgbImage;

pub use hermesflow_score::choice::prompt;

use crate::config::TextJudge;
use crate::stage::text_number;

/// The judge of captions.
pub fn caption_similarity(judge: TextJudge) -> Box<dyn CaptionSimilarity> {
    match judge {
        TextJudge::Lexical => Box::new(Lexical),
    }
}

fn choice_matcher(judge: TextJudge) -> Box<dyn ChoiceMatcher> {
    match judge {
        TextJudge::Lexical => Box::new(Lexical),
    }
}

/// A reply to a question with choices, and what would be right.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// What was replied.
    pub reply: &'a str,
    /// The choices.
    pub choices: &'a [String],
    /// The right one.
    pub answer: &'a str,
}

/// Whether each reply means the right choice.
///
/// # Errors
/// When the judge fails.
pub fn right(judge: TextJudge, answered: &[Answered<'_>]) -> Result<Vec<bool>> {
    let replies: Vec<_> = answered.iter().map(|Answered { reply, choices, .. }| Choosing { reply, choices }).collect();
    let meant = choice_matcher(judge).choose(&replies)?;
    let is_right = |(one, meant): (&Answered<'_>, Option<usize>)| meant.is_some_and(|at| one.choices[at] == one.answer);
    Ok(answered.iter().zip(meant).map(is_right).collect())
}

/// Reads captions of the scenes world and asks about all that they say; nothing about other captions.
///
/// The same caption gets the same questions in every iteration.
#[derive(Debug, Clone, Copy)]
pub struct SceneWriter {
    /// Decides which wrong choices are offered.
    pub seed: u64,
}

impl QuestionWriter for SceneWriter {
    fn write(&self, captions: &[&str]) -> hermesflow_score::Result<Vec<Vec<Question>>> {
        let of = |caption: &&str| {
            let seed = derive_seed(self.seed, &[text_number("ask"), text_number(caption)]);
            let questions = parse_caption(caption).map(|facts| hermesflow_scenes::picture_questions(&facts, seed));
            let without_kind = |one: hermesflow_scenes::SceneQuestion| Question {
                element: one.element,
                question: one.question,
                choices: one.choices,
                answer: one.answer,
            };
            questions.unwrap_or_default().into_iter().map(without_kind).collect()
        };
        Ok(captions.iter().map(of).collect())
    }
}

/// The share of a caption's statements that the oracle sees in a picture, rounded to three decimals.
pub fn oracle(picture: &RgbImage, caption: &str) -> f64 {
    parse_caption(caption)
        .map_or(0.0, |facts| three_decimals(hermesflow_scenes::oracle::judge(picture, &facts).fact_accuracy()))
}
