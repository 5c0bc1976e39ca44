//! The files of a run by their contents: what each holds, and which command makes it.

mod folder;
pub mod lock;

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use hermesflow_models::foreign;

use hermesflow_records::{AnswerRecord, CaptionRecord, InitialRecord, PairRecord, QuestionFile, QuestionRecord, Table};

pub use folder::{NewFolder, OwnFiles};

/// Opens the images with their true captions (initial_data.json); there is at least one.
///
/// # Errors
/// Names the file, the line and the record of what cannot be read, and what to do.
pub fn initial_data(path: &Path) -> Result<Table<InitialRecord>> {
    let remedy = "give it images and captions, or a `data.scenes` section that draws some";
    Ok(Table::unique(path, remedy)?)
}

/// Opens the captions that the model wrote (understanding_caption_results.json).
///
/// # Errors
/// As [`initial_data`].
pub fn captions(path: &Path) -> Result<Table<CaptionRecord>> {
    Ok(Table::unique(path, "`hermesflow caption` makes it")?)
}

/// Opens the questions, several per record (vqa_data.json).
///
/// # Errors
/// As [`initial_data`].
pub fn questions(path: &Path) -> Result<Table<QuestionRecord>> {
    Ok(Table::grouped(path, "`hermesflow ask` makes it, or give your own in that form")?)
}

/// Opens questions that the user already has (`ask.file`), in one of several forms, joined to the records.
///
/// # Errors
/// As [`initial_data`].
pub fn given_questions(path: &Path, records: &Table<InitialRecord>) -> Result<QuestionFile> {
    let remedy = "ask.file must be questions in the form of vqa_data.json, TIFA's benchmark or JourneyDB's annotation";
    Ok(QuestionFile::open(path, records, remedy)?)
}

/// Opens the accuracies of the images (generation_vqa_results.json).
///
/// # Errors
/// As [`initial_data`].
pub fn answers(path: &Path) -> Result<Table<AnswerRecord>> {
    Ok(Table::unique(path, "`hermesflow answer` makes it")?)
}

/// Opens the preference pairs (pair_dpo_data.json); there may be none.
///
/// # Errors
/// As [`initial_data`].
pub fn pairs(path: &Path) -> Result<Table<PairRecord>> {
    Ok(Table::open(path, "`hermesflow pair` makes it")?)
}

/// What a file holds; none if it is not there.
///
/// # Errors
/// Names the file when it is there and cannot be read.
pub fn if_there<T>(path: &Path, read: impl FnOnce(&Path) -> std::io::Result<T>) -> Result<Option<T>> {
    match read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        held => held.map(Some).with_context(|| path.display().to_string()),
    }
}

/// A text as people write them: UTF-8, whose byte order mark is left out.
///
/// # Errors
/// Names the file when it cannot be read, or is in another encoding.
pub fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    foreign::text(bytes).map_err(|what| anyhow!("{}: {what}", path.display()))
}

/// Refuses to write over files of these names in a folder where this program has not worked before.
///
/// # Errors
/// Names the file that is there.
pub fn refuse_foreign(folder: &Path, names: &[&str], worked_here: bool) -> Result<()> {
    let there = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
    match there.filter(|_| !worked_here) {
        None => Ok(()),
        Some(path) => {
            bail!("{}: already exists, and this program did not write it; choose another folder", path.display())
        }
    }
}

/// Writes a file under a temporary name and renames it, making its folder.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    hermesflow_records::write_atomically(path, bytes).context("cannot write a file")
}

/// Writes a file as [`write_atomically`] does, unless it holds these bytes already; no bytes make no file.
///
/// # Errors
/// Names the file that cannot be read or written.
pub fn write_if_other(path: &Path, bytes: &[u8]) -> Result<()> {
    let there = if_there(path, |path| std::fs::read(path))?.unwrap_or_default();
    if there == bytes { Ok(()) } else { write_atomically(path, bytes) }
}
