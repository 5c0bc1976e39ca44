//! Questions that are there already, in the forms that others publish, joined to the records of a run.
//!
//! 1. Ours: `vqa_data.json`, joined by id.
//! 2. TIFA's benchmark, `tifa_v1.0_question_answers.json`: `{id, caption, element, question, choices, answer, …}`,
//!    joined by id or, failing that, by equal caption.
//! 3. JourneyDB's annotation, JSON Lines of `{img_path, Task2: {Caption}, Task3: {"Style Relevant Questions and
//!    Answers": [{Question, Options: {A: …}, Answer: "A"}], "Content Relevant Questions and Answers": […]}}`, joined by
//!    image path, file stem or id, or, failing those, by equal caption.
//!
//! The first record tells the form. JSON Lines are read line by line, so that the whole of JourneyDB need not fit in
//! memory.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

use serde_json::Value;

use crate::{Error, InitialRecord, QuestionRecord, Result, parse};

/// Said of a file in none of the forms.
const FORMS: &str = "neither vqa_data.json's form (id, img_path, prompt, caption, element, question, choices, answer) \
                     nor TIFA's (id, caption, question, choices, answer) nor JourneyDB's (img_path, Task3)";

/// The form of a file of questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuestionForm {
    /// `vqa_data.json`.
    Ours,
    /// TIFA's benchmark.
    Tifa,
    /// JourneyDB's annotation.
    JourneyDb,
}

/// What a file of questions held.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    /// The questions about the records, in the records' order.
    pub questions: Vec<QuestionRecord>,
    /// The file's form; none for an empty file.
    pub form: Option<QuestionForm>,
    /// Entries of the file about none of the records.
    pub elsewhere: usize,
    /// Questions that were left out because their answer is none of their choices.
    pub unanswered: usize,
    /// Questions that were left out because they lack a part or have fewer than two choices.
    pub incomplete: usize,
}

/// Reads the questions of a file about these records. `remedy` says what makes the file where it is missing.
///
/// # Errors
/// Names the file, the line and the record of what cannot be read.
pub fn given_questions(path: &Path, records: &[InitialRecord], remedy: &'static str) -> Result<Given> {
    let mut reader = Reader::new(path, records);
    let file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(source) if source.kind() == ErrorKind::NotFound => {
            return Err(Error::Missing { path: path.into(), remedy });
        }
        Err(source) => return Err(Error::io(path)(source)),
    };
    for (number, line) in file.lines().enumerate() {
        let Ok(line) = line else { return reader.whole() }; // not UTF-8: the other reader names the place
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        match serde_json::from_str::<Value>(line) {
            Ok(value) if value.is_object() => reader.take(number + 1, &value)?,
            // An array, objects over several lines, or something broken.
            _ => return reader.whole(),
        }
    }
    Ok(reader.finish())
}

/// The questions of one entry of JourneyDB's annotation about the record that it became; `path` and `line` are named in
/// errors.
///
/// # Errors
/// When the entry has no `Task3`.
pub fn journeydb_questions(path: &Path, line: usize, entry: &Value, record: &InitialRecord) -> Result<Given> {
    let mut reader = Reader::new(path, std::slice::from_ref(record));
    reader.form = Some(QuestionForm::JourneyDb);
    reader.journeydb_tasks(line, entry, &[0])?;
    Ok(reader.finish())
}

struct Reader<'a> {
    path: &'a Path,
    records: &'a [InitialRecord],
    ids: HashMap<&'a str, usize>,
    captions: HashMap<&'a str, Vec<usize>>,
    paths: HashMap<&'a str, usize>,
    /// Stems of several images join nothing.
    stems: HashMap<&'a str, Option<usize>>,
    asked: Vec<Vec<QuestionRecord>>,
    form: Option<QuestionForm>,
    elsewhere: usize,
    unanswered: usize,
    incomplete: usize,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, records: &'a [InitialRecord]) -> Self {
        let mut reader = Self {
            path,
            records,
            ids: HashMap::new(),
            captions: HashMap::new(),
            paths: HashMap::new(),
            stems: HashMap::new(),
            asked: vec![Vec::new(); records.len()],
            form: None,
            elsewhere: 0,
            unanswered: 0,
            incomplete: 0,
        };
        for (number, record) in records.iter().enumerate() {
            reader.ids.insert(record.id.as_str(), number);
            reader.captions.entry(record.caption.trim()).or_default().push(number);
            reader.paths.insert(without_dot(&record.img_path), number);
            let other = reader.stems.insert(stem(&record.img_path), Some(number));
            if other.is_some() {
                reader.stems.insert(stem(&record.img_path), None);
            }
        }
        reader
    }

    /// Begins again with the whole file, which is no JSON Lines.
    fn whole(self) -> Result<Given> {
        let bytes = std::fs::read(self.path).map_err(Error::io(self.path))?;
        let mut reader = Self::new(self.path, self.records);
        for (line, value) in parse::<Value>(&bytes, self.path)? {
            reader.take(line, &value)?;
        }
        Ok(reader.finish())
    }

    fn finish(self) -> Given {
        let mut questions = Vec::new();
        for asked in self.asked {
            let mut seen = HashSet::new();
            questions.extend(asked.into_iter().filter(|one| seen.insert(one.question.clone())));
        }
        let Self { form, elsewhere, unanswered, incomplete, .. } = self;
        Given { questions, form, elsewhere, unanswered, incomplete }
    }

    fn take(&mut self, line: usize, value: &Value) -> Result<()> {
        let form = match self.form.or_else(|| form_of(value)) {
            Some(form) => *self.form.insert(form),
            None => return Err(self.broken(line, value, FORMS.to_string())),
        };
        match form {
            QuestionForm::JourneyDb => self.journeydb(line, value),
            QuestionForm::Ours => {
                let given: QuestionRecord = serde_json::from_value(value.clone())
                    .map_err(|error| self.broken(line, value, error.to_string()))?;
                let Some(&record) = self.ids.get(given.id.as_str()) else {
                    self.elsewhere += 1;
                    return Ok(());
                };
                let choices = given.choices.iter().map(|choice| (None, choice.clone())).collect();
                if let Some((choices, answer)) = self.settled(choices, &given.answer) {
                    self.asked[record].push(QuestionRecord { choices, answer, ..given });
                }
                Ok(())
            }
            QuestionForm::Tifa => self.tifa(line, value),
        }
    }

    fn tifa(&mut self, line: usize, value: &Value) -> Result<()> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let choices = value.get("choices").and_then(Value::as_array);
        let (Some(question), Some(choices), Some(answer)) = (text("question"), choices, text("answer")) else {
            let message = "a question of TIFA's form needs question, choices and answer".to_string();
            return Err(self.broken(line, value, message));
        };
        let id = value.get("id").map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
        let by_id = id.as_deref().and_then(|id| self.ids.get(id)).map(|record| vec![*record]);
        let by_caption = || text("caption").and_then(|caption| self.captions.get(caption.trim())).cloned();
        let Some(records) = by_id.or_else(by_caption) else {
            self.elsewhere += 1;
            return Ok(());
        };
        let choices = choices.iter().filter_map(Value::as_str).map(|choice| (None, choice.to_string())).collect();
        if let Some((choices, answer)) = self.settled(choices, answer) {
            self.push(&records, text("element").unwrap_or("image"), question, &choices, &answer);
        }
        Ok(())
    }

    fn journeydb(&mut self, line: usize, value: &Value) -> Result<()> {
        let path = value.get("img_path").and_then(Value::as_str).unwrap_or_default();
        let caption = value.pointer("/Task2/Caption").and_then(Value::as_str).unwrap_or_default();
        let by_path = self.paths.get(without_dot(path)).copied();
        let by_stem = || self.stems.get(stem(path)).copied().flatten().or_else(|| self.ids.get(stem(path)).copied());
        let by_caption = || self.captions.get(caption.trim()).cloned();
        let records = by_path.or_else(by_stem).map(|record| vec![record]).or_else(by_caption);
        self.elsewhere += usize::from(records.is_none());
        self.journeydb_tasks(line, value, &records.unwrap_or_default())
    }

    /// The questions of an entry about these records.
    fn journeydb_tasks(&mut self, line: usize, value: &Value, records: &[usize]) -> Result<()> {
        let Some(tasks) = value.get("Task3").and_then(Value::as_object) else {
            let message = "a record of JourneyDB's form needs Task3, the questions and answers".to_string();
            return Err(self.broken(line, value, message));
        };
        if records.is_empty() {
            return Ok(());
        }
        for (name, entries) in tasks {
            let element = name.split(' ').next().unwrap_or_default().to_lowercase();
            for entry in entries.as_array().into_iter().flatten() {
                let text = |key: &str| entry.get(key).and_then(Value::as_str);
                let (Some(question), Some(answer)) = (text("Question"), text("Answer")) else {
                    self.incomplete += 1;
                    continue;
                };
                let options = entry.get("Options").map(options).unwrap_or_default();
                if let Some((choices, answer)) = self.settled(options, answer) {
                    self.push(records, &element, question, &choices, &answer);
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, records: &[usize], element: &str, question: &str, choices: &[String], answer: &str) {
        for &number in records {
            let record = &self.records[number];
            self.asked[number].push(QuestionRecord {
                id: record.id.clone(),
                img_path: record.img_path.clone(),
                prompt: record.prompt.clone(),
                caption: record.caption.clone(),
                element: element.to_string(),
                question: question.trim().to_string(),
                choices: choices.to_vec(),
                answer: answer.to_string(),
            });
        }
    }

    /// The choices, each once, and the one that the answer means; nothing, but a count, where there is none.
    fn settled(&mut self, options: Vec<(Option<String>, String)>, answer: &str) -> Option<(Vec<String>, String)> {
        let mut choices: Vec<String> = Vec::new();
        for (_, choice) in &options {
            if !choices.contains(choice) {
                choices.push(choice.clone());
            }
        }
        if choices.len() < 2 {
            self.incomplete += 1;
            return None;
        }
        let meant = meant(&options, answer);
        self.unanswered += usize::from(meant.is_none());
        meant.map(|answer| (choices, answer))
    }

    fn broken(&self, line: usize, value: &Value, message: String) -> Error {
        let name = ["id", "img_path"].iter().find_map(|key| value.get(*key));
        let record =
            name.map_or_else(|| "without id".into(), |id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
        Error::Broken { path: self.path.into(), line, record, message }
    }
}

fn form_of(value: &Value) -> Option<QuestionForm> {
    let has = |keys: &[&str]| keys.iter().all(|key| value.get(*key).is_some());
    match () {
        () if has(&["Task3"]) => Some(QuestionForm::JourneyDb),
        () if has(&["id", "img_path", "question"]) => Some(QuestionForm::Ours),
        () if has(&["question", "choices", "answer"]) => Some(QuestionForm::Tifa),
        () => None,
    }
}

/// Options with their letters: `{"A": "red"}`, `["red"]` or `["A. red"]`.
fn options(value: &Value) -> Vec<(Option<String>, String)> {
    match value {
        Value::Object(map) => map
            .iter()
            .filter_map(|(letter, choice)| {
                Some((Some(letter.trim().to_uppercase()), choice.as_str()?.trim().to_string()))
            })
            .collect(),
        Value::Array(list) => {
            let texts: Vec<&str> = list.iter().filter_map(Value::as_str).map(str::trim).collect();
            let lettered: Option<Vec<_>> = texts.iter().map(|text| lettered(text)).collect();
            match lettered {
                Some(lettered) => lettered.into_iter().map(|(letter, rest)| (Some(letter), rest)).collect(),
                None => texts.into_iter().map(|text| (None, text.to_string())).collect(),
            }
        }
        _ => Vec::new(),
    }
}

/// The choice that an answer means: the same text, or its letter, alone or before the text ("B", "(b)", "B. blue").
fn meant(options: &[(Option<String>, String)], answer: &str) -> Option<String> {
    let answer = answer.trim();
    let same = |text: &str| {
        options.iter().find(|(_, choice)| choice.eq_ignore_ascii_case(text)).map(|(_, choice)| choice.clone())
    };
    let by_letter = |letter: &str| {
        let letter = letter.to_uppercase();
        let named = options.iter().find(|(name, _)| name.as_deref() == Some(letter.as_str()));
        let place =
            letter.bytes().next().filter(|_| letter.len() == 1).map(|byte| usize::from(byte.wrapping_sub(b'A')));
        let lettered = options.iter().any(|(name, _)| name.is_some());
        named
            .or_else(|| place.filter(|_| !lettered).and_then(|place| options.get(place)))
            .map(|(_, choice)| choice.clone())
    };
    let bare = answer.trim_matches(['(', ')', '.', ':', ' ']);
    same(answer).or_else(|| if bare.len() == 1 { by_letter(bare) } else { None }).or_else(|| {
        lettered(answer)
            .and_then(|(letter, rest)| by_letter(&letter).filter(|choice| choice.eq_ignore_ascii_case(&rest)))
    })
}

/// The letter and the text of "A. red", "(a) red", "B: blue".
fn lettered(text: &str) -> Option<(String, String)> {
    let text = text.trim_start_matches('(');
    let letter = text.chars().next().filter(char::is_ascii_alphabetic)?;
    let rest = text[1..].strip_prefix(['.', ')', ':'])?;
    Some((letter.to_uppercase().to_string(), rest.trim().to_string()))
}

fn without_dot(path: &str) -> &str {
    path.trim_start_matches("./")
}

fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

#[cfg(test)]
mod tests;
