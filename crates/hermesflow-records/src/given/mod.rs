//! Questions that are there already, in the forms that others publish, joined to the records of a run.
//!
//! 1. Ours: `vqa_data.json`, joined by id.
//! 2. TIFA's benchmark, `tifa_v1.0_question_answers.json`: `{id, caption, element, question, choices, answer, …}`,
//!    joined by id or, failing that, by equal caption.
//! 3. JourneyDB's annotation, JSON Lines of `{img_path, Task2: {Caption}, Task3: {"Style Relevant Questions and
//!    Answers": [{Question, Options: {A: …}, Answer: "A"}], "Content Relevant Questions and Answers": […]}}`, joined by
//!    image path, file stem or id, or, failing those, by equal caption.
//!
//! The first record tells the form. Memory holds where the questions about each record are, so that the whole of
//! JourneyDB need not fit in it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::read::{Place, Scan};
use crate::table::Parts;
use crate::{Error, IdKey, InitialRecord, QuestionRecord, Result, Table};

/// Records that are read at a time.
const TOGETHER: usize = 64;

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

/// What was found of questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// The file's form; none for an empty file.
    pub form: Option<QuestionForm>,
    /// Entries of the file about none of the records.
    pub elsewhere: usize,
    /// Questions that were left out because their answer is none of their choices.
    pub unanswered: usize,
    /// Questions that were left out because they lack a part.
    pub incomplete: usize,
    /// Questions that were left out because they have fewer than two choices.
    pub few: usize,
}

/// A file of questions about the records of a run.
#[derive(Debug)]
pub struct Given {
    path: PathBuf,
    file: Mutex<Parts>,
    found: Found,
    /// The entries about each record, by its number and then by their place.
    entries: Vec<Entries>,
}

/// Entries of a file about one record that follow each other.
#[derive(Debug, Clone, Copy)]
struct Entries {
    record: u32,
    line: u32,
    length: u32,
    offset: u64,
}

impl Given {
    /// Looks through a file of questions about these records. `remedy` says what makes the file where it is missing.
    ///
    /// # Errors
    /// Names the file, the line and the record of what cannot be read.
    pub fn open(path: &Path, records: &Table<InitialRecord>, remedy: &'static str) -> Result<Self> {
        let mut scan = Scan::open(path, remedy)?;
        let joint = Joint::new(records)?;
        let mut found = Found::default();
        let mut entries: Vec<Entries> = Vec::new();
        let mut before = None;
        while let Some((place, value)) = scan.next::<Value>()? {
            let entry = Entry { path, line: place.line, value: &value };
            let form = match found.form.or_else(|| form_of(&value)) {
                Some(form) => *found.form.insert(form),
                None => return Err(entry.broken(FORMS.to_string())),
            };
            let mut about = entry.about(form, &joint);
            let asked = entry.asked(form, !about.is_empty())?;
            found.elsewhere += usize::from(about.is_empty());
            found.unanswered += asked.unanswered;
            found.incomplete += asked.incomplete;
            found.few += asked.few;
            if asked.questions.is_empty() {
                about.clear();
            }
            let alone = if let [record] = about[..] { Some(record) } else { None };
            match entries.last_mut().filter(|_| alone.is_some() && alone == before) {
                Some(last) => last.extend(place),
                None => entries.extend(about.iter().map(|record| Entries::new(*record, place))),
            }
            before = alone;
        }
        entries.sort_by_key(|entry| entry.record);
        let file = Mutex::new(Parts::of(scan.into_file()).map_err(Error::io(path))?);
        Ok(Self { path: path.into(), file, found, entries })
    }

    /// What was found of all.
    pub fn found(&self) -> Found {
        self.found
    }

    /// How many records have a question.
    pub fn records(&self) -> usize {
        self.entries.chunk_by(|one, next| one.record == next.record).count()
    }

    /// The questions about a record, which has this number among all; of several alike the first.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what it was.
    pub fn questions(&self, number: usize, record: &InitialRecord) -> Result<Vec<QuestionRecord>> {
        let start = self.entries.partition_point(|entry| (entry.record as usize) < number);
        let of_record = self.entries[start..].iter().take_while(|entry| entry.record as usize == number);
        let (mut questions, mut seen) = (Vec::new(), HashSet::new());
        for entries in of_record {
            let changed = || Error::Changed { path: self.path.clone(), line: entries.line as usize };
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = file.read(entries.offset, entries.length as usize).map_err(Error::io(&self.path))?;
            let text = String::from_utf8(bytes).map_err(|_| changed())?;
            let mut scan = Scan::part(text, entries.line as usize, &self.path);
            while let Some((place, value)) = scan.next::<Value>().map_err(|_| changed())? {
                let entry = Entry { path: &self.path, line: place.line, value: &value };
                let asked = entry.asked(self.found.form.ok_or_else(changed)?, true)?;
                let asked = asked.questions.into_iter().map(|question| question.about(record));
                questions.extend(asked.filter(|one| seen.insert(one.question.clone())));
            }
        }
        Ok(questions)
    }
}

impl Entries {
    fn new(record: u32, place: Place) -> Self {
        Self { record, line: place.line as u32, length: place.length as u32, offset: place.offset }
    }

    /// Takes the next entry of the file in.
    fn extend(&mut self, place: Place) {
        self.length = (place.offset + place.length as u64 - self.offset) as u32;
    }
}

/// The questions of one entry of JourneyDB's annotation about the record that it became; `path` and `line` are named in
/// errors.
///
/// # Errors
/// When the entry has no `Task3`.
pub fn journeydb_questions(
    path: &Path,
    line: usize,
    entry: &Value,
    record: &InitialRecord,
) -> Result<(Vec<QuestionRecord>, Found)> {
    let form = QuestionForm::JourneyDb;
    let Asked { questions, unanswered, incomplete, few } = Entry { path, line, value: entry }.asked(form, true)?;
    let mut seen = HashSet::new();
    let questions = questions.into_iter().map(|question| question.about(record));
    let questions = questions.filter(|one| seen.insert(one.question.clone())).collect();
    Ok((questions, Found { form: Some(form), elsewhere: 0, unanswered, incomplete, few }))
}

/// What joins entries to records.
struct Joint {
    ids: Numbers,
    captions: Numbers,
    paths: Numbers,
    stems: Numbers,
}

impl Joint {
    fn new(records: &Table<InitialRecord>) -> Result<Self> {
        let [mut ids, mut captions, mut paths, mut stems] = [const { Vec::new() }; 4];
        for numbers in records.chunks(TOGETHER) {
            for (record, number) in records.read(numbers.clone())?.iter().zip(numbers.start as u32..) {
                ids.push((record.id.key(), number));
                captions.push((IdKey::of(record.caption.trim()), number));
                paths.push((IdKey::of(without_dot(&record.img_path)), number));
                stems.push((IdKey::of(stem(&record.img_path)), number));
            }
        }
        let [ids, captions, paths, stems] = [ids, captions, paths, stems].map(Numbers::new);
        Ok(Self { ids, captions, paths, stems })
    }
}

/// The numbers of records by a text of theirs.
struct Numbers(Vec<(IdKey, u32)>);

impl Numbers {
    fn new(mut pairs: Vec<(IdKey, u32)>) -> Self {
        pairs.sort_unstable();
        Self(pairs)
    }

    fn all(&self, text: &str) -> impl Iterator<Item = u32> {
        let key = IdKey::of(text);
        let start = self.0.partition_point(|(other, _)| *other < key);
        self.0[start..].iter().take_while(move |(other, _)| *other == key).map(|(_, number)| *number)
    }

    fn last(&self, text: &str) -> Option<u32> {
        self.all(text).last()
    }

    /// The one record of a text; none where there are several.
    fn only(&self, text: &str) -> Option<u32> {
        let mut all = self.all(text);
        all.next().filter(|_| all.next().is_none())
    }
}

/// An entry of a file of questions.
struct Entry<'a> {
    path: &'a Path,
    line: usize,
    value: &'a Value,
}

/// What an entry asks.
#[derive(Default)]
struct Asked {
    questions: Vec<Question>,
    unanswered: usize,
    incomplete: usize,
    few: usize,
}

/// A question that is about no record yet, but for what ours say themselves.
struct Question {
    ours: Option<QuestionRecord>,
    element: String,
    question: String,
    choices: Vec<String>,
    answer: String,
}

impl Question {
    fn about(self, record: &InitialRecord) -> QuestionRecord {
        let Self { ours, element, question, choices, answer } = self;
        if let Some(ours) = ours {
            return QuestionRecord { choices, answer, ..ours };
        }
        let InitialRecord { id, img_path, prompt, caption } = record.clone();
        QuestionRecord { id, img_path, prompt, caption, element, question, choices, answer }
    }
}

impl Entry<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.value.get(key).and_then(Value::as_str)
    }

    /// The numbers of the records that it is about.
    fn about(&self, form: QuestionForm, joint: &Joint) -> Vec<u32> {
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

    /// What it asks; nothing, where it is about none of the records.
    fn asked(&self, form: QuestionForm, joined: bool) -> Result<Asked> {
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

    fn broken(&self, message: String) -> Error {
        let name = ["id", "img_path"].iter().find_map(|key| self.value.get(*key));
        let record =
            name.map_or_else(|| "without id".into(), |id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
        Error::Broken { path: self.path.into(), line: self.line, record, message }
    }
}

impl Asked {
    /// A question with its choices, each once, and the one that the answer means; but a count, where there is none.
    fn add(
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
                self.questions.push(Question { ours, element, question, choices, answer });
            }
        }
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
