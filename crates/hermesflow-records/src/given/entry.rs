//! One entry of a file of questions, in any of the forms.

use std::path::Path;

use serde_json::Value;

use super::choices::{meant, options};
use super::joint::{Joint, stem, without_dot};
use crate::{Error, InitialRecord, QuestionRecord, Result};

/// The message about a file in none of the forms.
pub(super) const FORMS: &str = "neither vqa_data.json's form (id, img_path, prompt, caption, element, question, choices, answer) \
                     nor TIFA's (id, caption, question, choices, answer) nor JourneyDB's (img_path, Task3)";

/// The form of a file of questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuestionForm {
    /// The program's own form, `vqa_data.json`.
    Ours,
    /// The form of TIFA's benchmark.
    Tifa,
    /// The form of JourneyDB's annotation.
    JourneyDb,
}

/// An entry of a file of questions.
pub(super) struct QuestionEntry<'a> {
    pub(super) path: &'a Path,
    pub(super) line: usize,
    pub(super) value: &'a Value,
}

/// The questions of an entry, and how many of them cannot be used.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) questions: Vec<AskedQuestion>,
    pub(super) unanswered: usize,
    pub(super) incomplete: usize,
    pub(super) few: usize,
}

/// A question that is not yet assigned to a record, except for what `vqa_data.json` says itself.
pub(super) struct AskedQuestion {
    ours: Option<QuestionRecord>,
    element: String,
    question: String,
    choices: Vec<String>,
    answer: String,
}

impl AskedQuestion {
    pub(super) fn about(self, record: &InitialRecord) -> QuestionRecord {
        let Self { ours, element, question, choices, answer } = self;
        if let Some(ours) = ours {
            return QuestionRecord { choices, answer, ..ours };
        }
        let InitialRecord { id, img_path, prompt, caption } = record.clone();
        QuestionRecord { id, img_path, prompt, caption, element, question, choices, answer }
    }
}

impl QuestionEntry<'_> {
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.value.get(key).and_then(Value::as_str)
    }

    /// The indices of the records that the entry is about.
    pub(super) fn about(&self, form: QuestionForm, joint: &Joint) -> Vec<u32> {
        let id = || self.value.get("id").map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
        let by_id = || id().and_then(|id| joint.ids.last(&id));
        let by_caption =
            |caption: Option<&str>| caption.map(|caption| joint.captions.all(caption.trim()).collect::<Vec<_>>());
        let (one, caption) = match form {
            QuestionForm::Ours => (by_id(), None),
            QuestionForm::Tifa => (by_id(), self.text("caption")),
            QuestionForm::JourneyDb => {
                let path = self.text("img_path").unwrap_or_default();
                let by_path = joint.paths.last(without_dot(path));
                let by_stem = || joint.stems.only(stem(path)).or_else(|| joint.ids.last(stem(path)));
                let caption = self.value.pointer("/Task2/Caption").and_then(Value::as_str);
                (by_path.or_else(by_stem), Some(caption.unwrap_or_default()))
            }
        };
        one.map(|one| vec![one]).or_else(|| by_caption(caption)).unwrap_or_default()
    }

    /// The entry's questions; none are read if `joined` is false, because the entry is about none of the records.
    pub(super) fn asked(&self, form: QuestionForm, joined: bool) -> Result<Asked> {
        let mut asked = Asked::default();
        match form {
            QuestionForm::Ours => {
                let ours: QuestionRecord =
                    serde_json::from_value(self.value.clone()).map_err(|error| self.broken(error.to_string()))?;
                if joined {
                    let options = ours.choices.iter().map(|choice| (None, choice.clone())).collect();
                    let (question, answer) = (ours.question.clone(), ours.answer.clone());
                    asked.add("", &question, options, &answer, Some(ours));
                }
            }
            QuestionForm::Tifa => {
                let choices = self.value.get("choices").and_then(Value::as_array);
                let (Some(question), Some(choices), Some(answer)) =
                    (self.text("question"), choices, self.text("answer"))
                else {
                    return Err(self.broken("a question of TIFA's form needs question, choices and answer".into()));
                };
                if joined {
                    let texts = choices.iter().filter_map(Value::as_str);
                    let options = texts.map(|choice| (None, choice.to_string())).collect();
                    asked.add(self.text("element").unwrap_or("image"), question, options, answer, None);
                }
            }
            QuestionForm::JourneyDb => {
                let Some(tasks) = self.value.get("Task3").and_then(Value::as_object) else {
                    let message = "a record of JourneyDB's form needs Task3, the questions and answers";
                    return Err(self.broken(message.into()));
                };
                for (name, entries) in tasks.iter().filter(|_| joined) {
                    let element = name.split(' ').next().unwrap_or_default().to_lowercase();
                    for entry in entries.as_array().into_iter().flatten() {
                        let text = |key: &str| entry.get(key).and_then(Value::as_str);
                        let (Some(question), Some(answer)) = (text("Question"), text("Answer")) else {
                            asked.incomplete += 1;
                            continue;
                        };
                        let options = entry.get("Options").map(options).unwrap_or_default();
                        asked.add(&element, question, options, answer, None);
                    }
                }
            }
        }
        Ok(asked)
    }

    pub(super) fn broken(&self, message: String) -> Error {
        let name = ["id", "img_path"].iter().find_map(|key| self.value.get(*key));
        let record =
            name.map_or_else(|| "without id".into(), |id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
        Error::Broken { path: self.path.into(), line: self.line, record, message }
    }
}

impl Asked {
    /// Adds a question with its choices, each once, and the one that the answer means; without one, only counts it.
    pub(super) fn add(
        &mut self,
        element: &str,
        question: &str,
        options: Vec<(Option<String>, String)>,
        answer: &str,
        ours: Option<QuestionRecord>,
    ) {
        let mut choices: Vec<String> = Vec::new();
        for (_, choice) in &options {
            if !choices.contains(choice) {
                choices.push(choice.clone());
            }
        }
        match meant(&options, answer) {
            _ if choices.len() < 2 => self.few += 1,
            None => self.unanswered += 1,
            Some(answer) => {
                let (element, question) = (element.to_string(), question.trim().to_string());
                self.questions.push(AskedQuestion { ours, element, question, choices, answer });
            }
        }
    }
}

pub(super) fn form_of(value: &Value) -> Option<QuestionForm> {
    let has = |keys: &[&str]| keys.iter().all(|key| value.get(*key).is_some());
    match () {
        () if has(&["Task3"]) => Some(QuestionForm::JourneyDb),
        () if has(&["id", "img_path", "question"]) => Some(QuestionForm::Ours),
        () if has(&["question", "choices", "answer"]) => Some(QuestionForm::Tifa),
        () => None,
    }
}
