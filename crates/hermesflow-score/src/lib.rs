//! Text judges: caption similarity, question writing and filtering, choice matching.
//!
//! The traits take whole batches, so that a neural judge can run them at once. [`Lexical`] is the judge of captions and
//! choices that needs no weights; [`neural`] holds those that have weights; [`tifa`] the rules around a question writer
//! and its filter.

pub mod choice;
pub mod chrf;
pub mod lexical;
pub mod neural;
mod numbers;
pub mod template;
pub mod tifa;

use std::path::{Path, PathBuf};

pub use lexical::Lexical;

/// A judge could not judge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A judge's model failed.
    #[error("{judge}: {message}")]
    Judge {
        /// The judge, as configurations name it.
        judge: &'static str,
        /// What went wrong.
        message: String,
    },
    /// A file of a judge's model is missing or not what it should be.
    #[error("{path}: {message}")]
    File {
        /// The file, or the folder in which it should be.
        path: PathBuf,
        /// What is wrong, and what mends it.
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

/// A question about a caption.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Question {
    /// What it is about.
    pub element: String,
    /// The question.
    pub question: String,
    /// What may be answered.
    pub choices: Vec<String>,
    /// The right choice.
    pub answer: String,
}

/// How near captions are to a true one.
pub trait CaptionSimilarity {
    /// A score per candidate; the nearer, the higher.
    ///
    /// # Errors
    /// Why the judge cannot judge.
    fn similarities(&self, reference: &str, candidates: &[String]) -> Result<Vec<f64>>;
}

/// A free reply and the choices that it may mean.
#[derive(Debug, Clone, Copy)]
pub struct Choosing<'a> {
    /// What was replied.
    pub reply: &'a str,
    /// The choices.
    pub choices: &'a [String],
}

/// Which choices free replies mean.
pub trait ChoiceMatcher {
    /// The number of the choice per reply, or none where it means none of them.
    ///
    /// # Errors
    /// Why the judge cannot judge.
    fn choose(&self, replies: &[Choosing<'_>]) -> Result<Vec<Option<usize>>>;
}

/// Writes questions about captions.
pub trait QuestionWriter {
    /// The questions of every caption.
    ///
    /// # Errors
    /// Why the writer cannot write.
    fn write(&self, captions: &[&str]) -> Result<Vec<Vec<Question>>>;
}

/// What a reader of the caption alone answers to a question about it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CaptionAnswer {
    /// Given the choices.
    pub multiple_choice: String,
    /// In its own words.
    pub free_form: String,
}

/// Keeps the questions that can be answered from the caption alone.
pub trait QuestionFilter {
    /// What the reader answers to each question.
    ///
    /// # Errors
    /// Why the reader cannot answer.
    fn answers(&self, caption: &str, questions: &[Question]) -> Result<Vec<CaptionAnswer>>;

    /// The questions, each once, whose answers [`tifa::agrees`] with.
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
