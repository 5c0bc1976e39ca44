//! Questions that cannot be asked: how many, and why.

use hermesflow_records::QuestionCounts;

/// How many questions were left out, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The answer is none of the choices.
    pub unanswered: usize,
    /// A part is missing.
    pub incomplete: usize,
    /// There are fewer than two choices.
    pub few: usize,
    /// No judge could tell two of the choices apart.
    pub alike: usize,
    /// The filter did not keep it.
    pub filtered: usize,
}

impl LeftOut {
    /// Questions of a file that cannot be asked.
    pub fn of_file(found: QuestionCounts) -> Self {
        let QuestionCounts { unanswered, incomplete, few, .. } = found;
        Self { unanswered, incomplete, few, ..Self::default() }
    }

    /// A line for every reason that left any out.
    pub fn lines(&self) -> Vec<String> {
        let reasons = [
            (self.unanswered, "the answer is none of the choices"),
            (self.incomplete, "a part is missing"),
            (self.few, "fewer than two choices"),
            (self.alike, "two choices are the same but for case, punctuation, articles and number words"),
            (self.filtered, "the filter did not keep it"),
        ];
        let line = |(count, why): (usize, &str)| {
            let questions = if count == 1 { "question" } else { "questions" };
            format!("{count} {questions} left out: {why}")
        };
        reasons.into_iter().filter(|(count, _)| *count > 0).map(line).collect()
    }
}
