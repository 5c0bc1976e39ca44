//! Judges of texts: the similarity of captions, writing and filtering of questions, and the choice that a reply means.
//!
//! The traits take whole batches, which a neural judge processes at once. [`Lexical`] judges captions and replies
//! without weights; [`neural`] has the judges with weights, [`template`] a question writer without weights, and
//! [`tifa`] the rules around a question writer and its filter.

pub mod altered;
pub mod choice;
pub mod chrf;
pub mod lexical;
pub mod neural;
mod numbers;
pub mod template;
pub mod tifa;

use std::path::{Path, PathBuf};

pub use lexical::Lexical;

/// Why a judge could not judge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A judge's model failed.
    #[error("{judge}: {message}")]
    Judge {
        /// The judge's name in configurations.
        judge: &'static str,
        /// What went wrong.
        message: String,
    },
    /// A file of a judge's model is missing or malformed.
    #[error("{path}: {message}")]
    File {
        /// The file, or the folder that lacks it.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A judge's weights could not be loaded.
    #[error(transparent)]
    Weights(#[from] hermesflow_nn::weights::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn file(path: &Path, message: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_path_buf(), message: message.to_string() }
    }
}

/// The result of judging.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A multiple-choice question about a caption.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Question {
    /// The word or phrase of the caption that it asks about.
    pub element: String,
    /// The question, without its choices.
    pub question: String,
    /// The answers to choose from.
    pub choices: Vec<String>,
    /// The right answer, which is one of the choices.
    pub answer: String,
}

/// Measures how similar captions are to a true one.
pub trait CaptionSimilarity {
    /// The similarity of each candidate to `reference`; higher is more similar. The range depends on the judge.
    ///
    /// # Errors
    /// If the judge's model fails.
    fn similarities(&self, reference: &str, candidates: &[String]) -> Result<Vec<f64>>;
}

/// A reply in free words, and the choices that it may mean.
#[derive(Debug, Clone, Copy)]
pub struct Choosing<'a> {
    /// The reply.
    pub reply: &'a str,
    /// The answers to choose from.
    pub choices: &'a [String],
}

/// Finds the choices that replies mean.
pub trait ChoiceMatcher {
    /// For each reply, the index of the choice that it means; `None` if it means none of them.
    ///
    /// # Errors
    /// If the judge's model fails.
    fn choose(&self, replies: &[Choosing<'_>]) -> Result<Vec<Option<usize>>>;
}

/// Writes questions about captions.
pub trait QuestionWriter {
    /// The questions about each caption.
    ///
    /// # Errors
    /// If the writer's model fails.
    fn write(&self, captions: &[&str]) -> Result<Vec<Vec<Question>>>;
}

/// The answers of a model that reads only the caption to one question.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CaptionAnswer {
    /// The answer given the choices.
    pub multiple_choice: String,
    /// The answer without seeing the choices.
    pub free_form: String,
}

/// Keeps the questions that can be answered from the caption alone.
pub trait QuestionFilter {
    /// The answers to each question, given only the caption.
    ///
    /// # Errors
    /// If the filter's model fails.
    fn answers(&self, caption: &str, questions: &[Question]) -> Result<Vec<CaptionAnswer>>;

    /// The questions, without repetitions, whose right answers [agree](tifa::agrees) with the answers from the caption.
    ///
    /// # Errors
    /// As [`QuestionFilter::answers`].
    fn keep(&self, caption: &str, questions: Vec<Question>) -> Result<Vec<Question>> {
        let questions = tifa::deduplicated(questions);
        let answers = self.answers(caption, &questions)?;
        let judged = questions.into_iter().zip(answers);
        Ok(judged.filter(|(question, answer)| tifa::agrees(question, answer)).map(|(question, _)| question).collect())
    }
}
