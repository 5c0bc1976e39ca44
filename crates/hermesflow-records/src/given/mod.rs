//! Files of questions that others have published, joined to the records of a run.
//!
//! 1. The program's own form: `vqa_data.json`, joined by id.
//! 2. TIFA's benchmark, `tifa_v1.0_question_answers.json`: `{id, caption, element, question, choices, answer, …}`,
//!    joined by id or else by equal caption.
//! 3. JourneyDB's annotation, JSON Lines of `{img_path, Task2: {Caption}, Task3: {"Style Relevant Questions and
//!    Answers": [{Question, Options: {A: …}, Answer: "A"}], "Content Relevant Questions and Answers": […]}}`, joined
//!    by image path, file stem or id, or else by equal caption.
//!
//! The first record tells the form. Memory holds only the places of the questions about each record, so that the whole
//! of JourneyDB need not fit.

mod choices;
mod entry;
mod joint;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

pub use entry::QuestionForm;
use entry::{Asked, FORMS, QuestionEntry, form_of};
use joint::Joint;

use crate::read::{Place, Scan};
use crate::table::Parts;
use crate::{Error, InitialRecord, QuestionRecord, Result, Table};

/// How many questions of a file cannot be used, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuestionCounts {
    /// The file's form; `None` for an empty file.
    pub form: Option<QuestionForm>,
    /// Entries that belong to none of the records.
    pub elsewhere: usize,
    /// Questions whose answer is not among their choices.
    pub unanswered: usize,
    /// Questions that lack a part.
    pub incomplete: usize,
    /// Questions with fewer than two choices.
    pub few: usize,
}

/// A file of questions about the records of a run.
#[derive(Debug)]
pub struct QuestionFile {
    path: PathBuf,
    file: Mutex<Parts>,
    found: QuestionCounts,
    /// The entries about each record, ordered by the record's index and then by their place.
    entries: Vec<Entries>,
}

/// Consecutive entries of a file that are about one record.
#[derive(Debug, Clone, Copy)]
struct Entries {
    record: u32,
    line: u32,
    length: u32,
    offset: u64,
}

impl QuestionFile {
    /// Indexes a file of questions about these records. `remedy` says how to make the file if it is missing.
    ///
    /// # Errors
    /// If the file is missing or an entry cannot be read; the file, the line and the record are named.
    pub fn open(path: &Path, records: &Table<InitialRecord>, remedy: &'static str) -> Result<Self> {
        let mut scan = Scan::open(path, remedy)?;
        let joint = Joint::new(records)?;
        let mut found = QuestionCounts::default();
        let mut entries: Vec<Entries> = Vec::new();
        let mut before = None;
        while let Some((place, value)) = scan.next::<Value>()? {
            let entry = QuestionEntry { path, line: place.line, value: &value };
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

    /// The counts of what was found in the file.
    pub fn found(&self) -> QuestionCounts {
        self.found
    }

    /// The number of records that have a question.
    pub fn records(&self) -> usize {
        self.entries.chunk_by(|one, next| one.record == next.record).count()
    }

    /// The questions about the record at index `number`; of several with the same wording, the first.
    ///
    /// # Errors
    /// If the file cannot be read or has changed.
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
                let entry = QuestionEntry { path: &self.path, line: place.line, value: &value };
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

    /// Adds the next entry of the file.
    fn extend(&mut self, place: Place) {
        self.length = (place.offset + place.length as u64 - self.offset) as u32;
    }
}

/// The questions of one entry of JourneyDB's annotation, about the record made from it, and how many cannot be used.
/// `path` and `line` are named in errors.
///
/// # Errors
/// If the entry has no `Task3`.
pub fn journeydb_questions(
    path: &Path,
    line: usize,
    entry: &Value,
    record: &InitialRecord,
) -> Result<(Vec<QuestionRecord>, QuestionCounts)> {
    let form = QuestionForm::JourneyDb;
    let Asked { questions, unanswered, incomplete, few } =
        QuestionEntry { path, line, value: entry }.asked(form, true)?;
    let mut seen = HashSet::new();
    let questions = questions.into_iter().map(|question| question.about(record));
    let questions = questions.filter(|one| seen.insert(one.question.clone())).collect();
    Ok((questions, QuestionCounts { form: Some(form), elsewhere: 0, unanswered, incomplete, few }))
}

#[cfg(test)]
mod tests;
