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

mod choices;
mod entry;
mod joint;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

pub use entry::QuestionForm;
use entry::{Asked, Entry, FORMS, form_of};
use joint::Joint;

use crate::read::{Place, Scan};
use crate::table::Parts;
use crate::{Error, InitialRecord, QuestionRecord, Result, Table};

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

#[cfg(test)]
mod tests;
