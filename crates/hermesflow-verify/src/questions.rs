//! Replies of a question writer: the questions that are read from them, and those that the filter keeps.

use std::collections::HashMap;
use std::path::Path;

use hermesflow_score::{CaptionAnswer, Question, QuestionFilter, tifa};
use serde::Deserialize;
use serde_json::Value;

use crate::check::Report;
use crate::others::read;
use crate::{Error, Result};

#[derive(Deserialize)]
struct Case {
    caption: String,
    response: String,
    parsed: Vec<Value>,
    qa_answers: HashMap<String, CaptionAnswer>,
    kept: Vec<Value>,
}

/// Answers with the recorded ones instead of a model's.
struct Recorded<'a>(&'a HashMap<String, CaptionAnswer>);

impl QuestionFilter for Recorded<'_> {
    fn answers(&self, _: &str, questions: &[Question]) -> hermesflow_score::Result<Vec<CaptionAnswer>> {
        let answer = |question: &Question| {
            self.0.get(&question.question).cloned().ok_or_else(|| hermesflow_score::Error::Judge {
                judge: "recorded answers",
                message: format!("no answer to {:?}", question.question),
            })
        };
        questions.iter().map(answer).collect()
    }
}

pub(crate) fn replay(folder: &Path, report: &mut Report) -> Result<()> {
    let path = folder.join("questions.json");
    let cases: Vec<Case> = read(&path)?;
    if cases.is_empty() {
        report.fail("questions", "questions.json is empty");
    }
    for (number, case) in cases.iter().enumerate() {
        let parsed = tifa::parse_reply(&case.response);
        report.equal(format!("reply {number}: questions (differing)"), &recorded(case, &parsed), &case.parsed);
        let kept = Recorded(&case.qa_answers)
            .keep(&case.caption, parsed)
            .map_err(|error| Error::file(&path, format!("reply {number}: {error}")))?;
        report.equal(format!("reply {number}: kept (differing)"), &recorded(case, &kept), &case.kept);
    }
    Ok(())
}

/// Questions as they are recorded: each with its caption.
fn recorded(case: &Case, questions: &[Question]) -> Vec<Value> {
    let with_caption = |Question { element, question, choices, answer }: &Question| {
        serde_json::json!({ "caption": case.caption, "element": element, "question": question,
                            "choices": choices, "answer": answer })
    };
    questions.iter().map(with_caption).collect()
}
