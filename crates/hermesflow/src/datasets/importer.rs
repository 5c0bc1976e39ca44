//! From entries of any source to a data root.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use hermesflow_records::{ArrayFile, IdKey, InitialRecord, journeydb_questions};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::At;
use super::Broken;
use super::Entry;
use super::Place;
use super::Reason;
use super::counted;
use super::fields::{Names, Parts, Picture, is_journeydb};
use super::meter::Meter;
use super::pictures::Gallery;
use super::sources;
use crate::files::lock::Lock;
use crate::made::{Note, Origin, WholeFile};
use crate::progress::Progress;

/// Records whose images are checked and written together.
const TOGETHER: usize = 64;

/// Bytes of images that are held at most before they are written.
const HELD: usize = 64 << 20;

/// What is imported, and how.
#[derive(Debug, Clone)]
pub struct ImportSettings {
    /// Files, folders and patterns.
    pub sources: Vec<String>,
    /// The data root.
    pub root: PathBuf,
    /// What the records call their parts.
    pub names: Names,
    /// Where relative image paths begin.
    pub images: Option<PathBuf>,
    /// Copy image files into the root.
    pub copy: bool,
    /// Check the beginning of images only.
    pub quick: bool,
    /// At most so many records.
    pub limit: Option<usize>,
}

/// What was imported.
#[derive(Debug)]
pub struct Imported {
    /// The records.
    pub records: PathBuf,
    /// JourneyDB's questions, if there were any.
    pub questions: Option<PathBuf>,
}

/// Imports all sources.
///
/// # Errors
/// When a source is missing or nothing that is read, no record is usable, or a file cannot be written.
pub fn import(settings: &ImportSettings, progress: &Progress) -> Result<Imported> {
    let files = sources::files(&settings.sources)?;
    let _lock = Lock::take([settings.root.join(".settings/import.lock")])?;
    let origin = origin(settings);
    let begun = ensure_same_settings(settings, &origin)?;
    let size = |file: &PathBuf| file.metadata().map_or(0, |metadata| metadata.len());
    let total = files.iter().map(size).sum::<u64>() / 1000;
    let task = progress.task("import", "kB", total as usize, 0);
    let meter = Meter::new(&task);
    let mut importer = Importer::new(settings, begun, progress)?;
    for file in &files {
        sources::read(file, &settings.names, &meter, &mut |entry| {
            let more = importer.take(entry)?;
            task.message(format!("{} records", importer.records.len()));
            Ok(more)
        })?;
        if importer.is_full() {
            break;
        }
    }
    importer.flush()?;
    task.message(format!("{} records", importer.records.len()));
    drop(task);
    importer.finish(origin)
}

/// The records, and where it is noted what they were made from.
fn records(root: &Path) -> WholeFile {
    let (path, note) = (root.join("initial_data.json"), root.join(".settings/import.json"));
    WholeFile { path, note, remedy: "choose another --to, or move it away" }
}

/// JourneyDB's questions about them.
fn asked(root: &Path) -> WholeFile {
    let (path, note) = (root.join("journeydb_questions.json"), root.join(".settings/import_questions.json"));
    WholeFile { path, note, remedy: "choose another --to, or move it away" }
}

/// Refuses to write over records that were made from something else, and notes what these are made from. Whether an import
/// into this root was begun before.
fn ensure_same_settings(settings: &ImportSettings, origin: &Origin) -> Result<bool> {
    let records = records(&settings.root);
    let before = records.noted();
    let made_from = match &before {
        Some(note) if records.is_ours()? => note.origin.differences(origin).join("; "),
        _ => "not by `hermesflow import`, or edited since".into(),
    };
    ensure!(
        !records.path.exists() || made_from.is_empty(),
        "{}: already exists, and was made from something else ({made_from}); choose another --to, or remove it",
        records.path.display()
    );
    let begun = before.is_some();
    records.keep(&Note { origin: origin.clone(), ..before.unwrap_or_default() })?;
    Ok(begun)
}

/// What the records are made from.
fn origin(settings: &ImportSettings) -> Origin {
    let absolute =
        |path: &str| std::path::absolute(path).map_or_else(|_| path.into(), |path| path.display().to_string());
    let sources: Vec<String> = settings.sources.iter().map(|source| absolute(source)).collect();
    let Names { id, image, caption, prompt } = &settings.names;
    Origin::of(json!({
        "sources": sources, "id": id, "image": image, "caption": caption, "prompt": prompt,
        "images": settings.images, "copy": settings.copy, "limit": settings.limit,
    }))
}

/// A record that waits for its image to be checked.
struct Waiting {
    place: Place,
    parts: Parts,
    /// The entry, where it holds JourneyDB's questions.
    journeydb: Option<Value>,
}

struct Importer<'a> {
    settings: &'a ImportSettings,
    progress: &'a Progress,
    gallery: Gallery,
    records: ArrayFile,
    questions: Option<ArrayFile>,
    waiting: Vec<Waiting>,
    held: usize,
    ids: HashSet<IdKey>,
    skipped: BTreeMap<Reason, usize>,
    first: Option<String>,
    /// Records of shards that lacked something, by their place: what they lack may stand elsewhere in the shard.
    lacking: HashMap<String, Reason>,
    /// Questions that were left out: their answer is none of the choices, or they lack a part.
    unanswered: usize,
    incomplete: usize,
    /// Records whose images stay outside the root.
    outside: usize,
}

impl<'a> Importer<'a> {
    fn new(settings: &'a ImportSettings, begun: bool, progress: &'a Progress) -> Result<Self> {
        let ImportSettings { root, images, copy, quick, .. } = settings.clone();
        Ok(Self {
            settings,
            progress,
            records: records(&root).begin()?,
            gallery: Gallery { root, images, copy, quick, begun },
            questions: None,
            waiting: Vec::new(),
            held: 0,
            ids: HashSet::new(),
            skipped: BTreeMap::new(),
            first: None,
            lacking: HashMap::new(),
            unanswered: 0,
            incomplete: 0,
            outside: 0,
        })
    }

    fn is_full(&self) -> bool {
        self.settings.limit.is_some_and(|limit| self.records.len() >= limit)
    }

    fn take(&mut self, entry: Result<Entry, Broken>) -> Result<ControlFlow<()>> {
        match entry.and_then(|entry| self.waiting(entry)) {
            Ok(waiting) => {
                if let Picture::Bytes(bytes) = &waiting.parts.picture {
                    self.held += bytes.len();
                }
                self.waiting.push(waiting);
            }
            Err(broken) => self.skip(&broken),
        }
        let left = self.settings.limit.map_or(TOGETHER, |limit| limit.saturating_sub(self.records.len()));
        if self.waiting.len() >= left.min(TOGETHER) || self.held >= HELD {
            self.flush()?;
        }
        Ok(if self.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Looks a record's parts up.
    fn waiting(&mut self, mut entry: Entry) -> Result<Waiting, Broken> {
        let parts = self.settings.names.parts(&mut entry)?;
        if !self.ids.insert(parts.id.key()) {
            return Err(Broken::new(&entry.place, Reason::DuplicateId, parts.id.as_str()));
        }
        let journeydb = (is_journeydb(&entry.fields) && entry.fields.contains_key("Task3"))
            .then(|| Value::Object(std::mem::take(&mut entry.fields)));
        Ok(Waiting { place: entry.place, parts, journeydb })
    }

    /// Checks the images of the records that wait, and writes them in order.
    fn flush(&mut self) -> Result<()> {
        self.held = 0;
        let waiting = std::mem::take(&mut self.waiting);
        let gallery = &self.gallery;
        let placed: Vec<_> = waiting
            .into_par_iter()
            .map(|Waiting { place, parts, journeydb }| {
                let Parts { id, picture, caption, prompt, from } = parts;
                let placed = gallery.place(&id, picture, &place.file);
                placed.map(|placed| {
                    let record = |img_path| InitialRecord { id, img_path, prompt, caption };
                    let placed = placed.map(record).map_err(|(reason, detail)| Broken::new(&place, reason, detail));
                    (placed, place, journeydb, from)
                })
            })
            .collect::<Result<_>>()?;
        for (placed, place, journeydb, from) in placed {
            match placed {
                Ok(record) => self.write(&record, &place, journeydb, &from)?,
                Err(broken) => self.skip(&broken),
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        record: &InitialRecord,
        place: &Place,
        journeydb: Option<Value>,
        from: &[String; 4],
    ) -> Result<()> {
        if self.records.is_empty() {
            let [id, image, caption, prompt] = from;
            self.progress.log(format!("import: id: {id}; image: {image}; caption: {caption}; prompt: {prompt}"));
        }
        self.records.push(record)?;
        self.outside += usize::from(Path::new(&record.img_path).is_absolute());
        let Some(entry) = journeydb else { return Ok(()) };
        let At::Record { line, .. } = place.at else { return Ok(()) };
        let Ok((questions, found)) = journeydb_questions(&place.file, line, &entry, record) else { return Ok(()) };
        self.unanswered += found.unanswered;
        self.incomplete += found.incomplete + found.few;
        let file = match &mut self.questions {
            Some(file) => file,
            none => none.insert(asked(&self.settings.root).begin()?),
        };
        for question in &questions {
            file.push(question)?;
        }
        Ok(())
    }

    fn skip(&mut self, broken: &Broken) {
        let before: usize = self.skipped.values().sum();
        *self.skipped.entry(broken.reason).or_default() += 1;
        match (broken.reason, &broken.place.at) {
            (Reason::NoCaption | Reason::NoImage, At::Key(_)) => {
                self.lacking.insert(broken.place.to_string(), broken.reason);
            }
            (Reason::NotAdjacent, _) => {
                // One record is counted once, under what is wrong with it.
                let counted = self.lacking.remove(&broken.place.to_string());
                if let Some(count) = counted.and_then(|reason| self.skipped.get_mut(&reason)) {
                    *count -= 1;
                }
                self.skipped.retain(|_, count| *count > 0);
            }
            _ => {}
        }
        self.progress.log_few("import", before, format_args!("skipped {broken}"));
        self.first.get_or_insert_with(|| broken.to_string());
    }

    fn finish(self, origin: Origin) -> Result<Imported> {
        let (kept, skipped) = (self.records.len(), self.skipped.values().sum::<usize>());
        if kept == 0 {
            let Some(first) = self.first else { bail!("{}: no record", self.settings.sources.join(", ")) };
            let remedy = remedy(&self.skipped);
            bail!("no record is usable ({}); the first: {first}; {remedy}", counted(&self.skipped));
        }
        if self.skipped.contains_key(&Reason::DuplicateId) {
            self.progress.log("import: of records with one id the first counts; --id names another column");
        }
        if self.outside > 0 {
            self.progress.log(format!(
                "import: {} images stay outside {}: runs take them with data.allow_outside=true; --copy puts them into it",
                self.outside,
                self.settings.root.display()
            ));
        }
        let root = &self.settings.root;
        let mut asked = None;
        if let Some(file) = self.questions {
            let (output, count) = (self::asked(root), file.len());
            output.publish(file, Origin::default())?;
            let lost = self.unanswered + self.incomplete;
            let lost =
                if lost == 0 { String::new() } else { format!("; left out {lost} without an answer or choices") };
            self.progress.log(format!(
                "import: {count} questions{lost}; a run asks them with ask.writer=file ask.file={}",
                output.path.display()
            ));
            asked = Some(output.path);
        }
        let output = records(root);
        output.publish(self.records, origin)?;
        let counts = if skipped == 0 { String::new() } else { format!(": {}", counted(&self.skipped)) };
        self.progress.log(format!("import: {kept} records; skipped {skipped}{counts}"));
        Ok(Imported { records: output.path, questions: asked })
    }
}

/// What to do where no record is usable.
fn remedy(skipped: &BTreeMap<Reason, usize>) -> &'static str {
    match skipped.iter().max_by_key(|(_, count)| **count).map(|(reason, _)| reason) {
        Some(Reason::NoCaption) => "name the field with --caption",
        Some(Reason::NoImage) => "name the field with --image",
        Some(Reason::MissingImage) => "--images DIR says where relative paths begin",
        Some(Reason::NotAdjacent) => "pack the shards again, with `tar --sort=name`",
        Some(Reason::Url) => "download the images first, as img2dataset does, or name another field with --image",
        Some(Reason::NoId | Reason::BadId | Reason::DuplicateId) => "name another field with --id",
        _ => "give JSON, JSON Lines, Parquet or WebDataset shards of images and captions",
    }
}
