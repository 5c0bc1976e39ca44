//! Checks that need no model, made before one is fetched or loaded: `run` stops at the first problem, `doctor` lists all.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hermesflow_models::preprocess;
use hermesflow_records::{InitialRecord, Table};
use rayon::prelude::*;

use super::context::RunContext;
use super::layout::RunLayout;
use super::pictures::Pictures;
use super::questions::LeftOut;
use crate::config::{ImageJudge, RunConfig, Writer};
use crate::files;

/// Number of records whose pictures are checked side by side.
const TOGETHER: usize = 256;
/// For how long pictures are decoded in full; of those after that only the headers are read.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether a run asks the questions of a file.
pub fn asks_a_file(config: &RunConfig) -> bool {
    config.train.objective.has_pairs() && config.pair.judge == ImageJudge::Itself && config.ask.writer == Writer::File
}

/// Whether the folders of a run can be written to.
///
/// # Errors
/// Names the key, and the folder in which nothing can be made.
pub fn folders(run: &RunContext) -> Result<()> {
    places(run).into_iter().try_for_each(|(key, folder)| writable(&folder).context(key))
}

/// Whether a run's first iteration has what it needs beside its models. Scenes that are still to be drawn are good.
///
/// # Errors
/// Names what stands in the way, and the remedy.
pub fn check(run: &RunContext) -> Result<()> {
    let path = run.layout.initial_data();
    let drawn_later = run.config.data.scenes.is_some() && !path.is_file();
    let records = if drawn_later { None } else { Some(files::initial_data(&path)?) };
    if asks_a_file(&run.config) {
        questions(run, records.as_ref())?;
    }
    records.map_or(Ok(()), |records| first_picture(&run.layout, &records))
}

/// The folders that a run writes to, by their keys.
pub fn places(run: &RunContext) -> [(&'static str, PathBuf); 2] {
    [("data.root", run.layout.data().to_owned()), ("output", run.config.output.clone())]
}

/// Whether a folder can be written to, or made.
///
/// # Errors
/// Names the folder in which nothing can be made.
pub fn writable(folder: &Path) -> Result<()> {
    let place = existing(folder)?;
    ensure!(place.is_dir(), "{}: is a file, a folder is needed", place.display());
    tempfile::tempfile_in(&place).map(drop).with_context(|| format!("{}: cannot be written to", place.display()))
}

/// A folder behind its links, or the nearest one above it that exists.
///
/// # Errors
/// When a link leads nowhere, or a folder cannot be looked into.
pub fn existing(folder: &Path) -> Result<PathBuf> {
    let folder = std::path::absolute(folder)?;
    for place in folder.ancestors() {
        if place.symlink_metadata().is_ok() {
            return place
                .canonicalize()
                .with_context(|| format!("{}: is a link to something that does not exist", place.display()));
        }
    }
    bail!("{}: does not exist, nor anything above it", folder.display())
}

/// The questions of `ask.file`: how many records they are about; nothing of it is known before there are records.
///
/// # Errors
/// Names the file that is missing or broken, or is about none of the records.
pub fn questions(run: &RunContext, records: Option<&Table<InitialRecord>>) -> Result<Option<usize>> {
    let path = run.config.ask.file.as_deref().context("ask.file: missing; `ask.writer: file` needs it")?;
    ensure!(path.is_file(), "ask.file: {} does not exist", path.display());
    let Some(records) = records else { return Ok(None) };
    let given = files::given_questions(path, records).context("ask.file")?;
    let left_out: String = LeftOut::of_file(given.found()).lines().iter().map(|line| format!("; {line}")).collect();
    ensure!(
        given.records() > 0,
        "ask.file: {} has no question to ask about the records of {}; its entries are joined to them by id, by image path \
         or by equal caption{left_out}",
        path.display(),
        run.layout.initial_data().display()
    );
    Ok(Some(given.records()))
}

/// Whether any picture can be read.
fn first_picture(layout: &RunLayout, records: &Table<InitialRecord>) -> Result<()> {
    let pictures = Pictures::new(layout, 1);
    let mut first = None;
    for chunk in records.chunks(TOGETHER) {
        for record in records.read(chunk)? {
            match whole(&pictures, &record) {
                None => return Ok(()),
                Some(fault) => first = first.or(Some(fault)),
            }
        }
    }
    let first = first.unwrap_or_default();
    bail!("no picture can be read: {first}; relative paths begin at data.root, {}", layout.data().display())
}

/// What was seen of the pictures of records.
#[derive(Debug, Default)]
pub struct Seen {
    /// Pictures that were read in full.
    pub whole: usize,
    /// Pictures that cannot be read.
    pub broken: usize,
    /// What is wrong with the first of them.
    pub first: Option<String>,
}

/// Looks at the pictures of all records: as `caption` reads them while patience lasts, then at their headers.
pub fn pictures(layout: &RunLayout, records: &Table<InitialRecord>) -> Seen {
    let (pictures, began) = (Pictures::new(layout, 1), Instant::now());
    let mut seen = Seen::default();
    for chunk in records.chunks(TOGETHER) {
        let count = chunk.len();
        let in_full = began.elapsed() < PATIENCE;
        let look = if in_full { whole } else { header };
        let found: Vec<String> = match records.read(chunk) {
            Ok(records) => records.par_iter().filter_map(|record| look(&pictures, record)).collect(),
            Err(error) => vec![error.to_string()],
        };
        seen.whole += if in_full { count } else { 0 };
        seen.broken += found.len();
        seen.first = seen.first.or(found.into_iter().next());
    }
    seen
}

/// What is wrong with a record's picture, if anything.
fn whole(pictures: &Pictures, record: &InitialRecord) -> Option<String> {
    fault(record, pictures.find(record.img_path.as_ref()).and_then(|path| Ok(preprocess::open(&path).map(drop)?)))
}

/// What is wrong with the header of a record's picture, if anything.
fn header(pictures: &Pictures, record: &InitialRecord) -> Option<String> {
    fault(record, pictures.find(record.img_path.as_ref()).and_then(|path| Ok(preprocess::look(&path)?)))
}

fn fault(record: &InitialRecord, outcome: Result<()>) -> Option<String> {
    outcome.err().map(|error| format!("record {}: {error:#}", record.id))
}

/// The file system that holds a folder, or will, and what is free there; none where it cannot be asked.
#[cfg(unix)]
pub fn free(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let place = existing(folder).ok()?;
    let space = rustix::fs::statvfs(&place).ok()?;
    Some((place.metadata().ok()?.dev(), space.f_bavail.saturating_mul(space.f_frsize)))
}

/// The file system that holds a folder, or will, and what is free there; none where it cannot be asked.
#[cfg(not(unix))]
pub fn free(_: &Path) -> Option<(u64, u64)> {
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_is_looked_for_behind_links_and_above_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(writable(&real.join("a/b/c")).is_ok());
        assert!(!real.join("a").exists(), "nothing is made");
        let message = writable(&folder.path().join("file/inside")).unwrap_err().to_string();
        assert!(message.contains("file: is a file"), "{message}");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&real, folder.path().join("link")).unwrap();
            let behind = existing(&folder.path().join("link/later")).unwrap();
            assert_eq!(behind, real.canonicalize().unwrap());
            std::os::unix::fs::symlink(folder.path().join("gone"), folder.path().join("broken")).unwrap();
            let message = format!("{:#}", writable(&folder.path().join("broken/later")).unwrap_err());
            assert!(message.contains("is a link to something"), "{message}");
            let (system, free) = free(&folder.path().join("link/later")).unwrap();
            assert_eq!(system, super::free(&real).unwrap().0);
            assert!(free > 0);
        }
    }
}
