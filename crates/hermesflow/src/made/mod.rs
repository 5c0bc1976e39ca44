//! What results were made from: the one mechanism by which anything that already exists is used again.
//!
//! - An [`Origin`] stands beside results as a whole (a stage's, a training's, a report's): the settings that decided all
//!   of them, and digests of the files that did, such as the model's. Results of another origin are refused, and what
//!   differs is named. Where there are no results yet, nothing is bound: a setting under which nothing was made can be
//!   changed.
//! - A [`Ledger`] stands beside results by record: a digest of whatever decided that record's alone, such as its picture
//!   and its caption. A record whose digest differs is made anew.
//! - A [`WholeFile`] is a file that is written whole each time it is made. One that this program did not write, or that was
//!   edited since, is not written over.
//! - [`unfinished()`] is a file of rows that grows until all are there.
//!
//! Names and places are part of none of these: what is moved stays what it is.

mod ledger;
mod unfinished;
mod whole_file;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use hermesflow_records::TEMPORARY;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config;
use crate::files;

pub use ledger::Ledger;
pub use unfinished::unfinished;
pub use whole_file::{Note, WholeFile};

/// The settings and files that decided results as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// By dotted keys of the configuration, or names of the like.
    settings: Map<String, Value>,
    /// Digests of files, by what they are.
    files: Map<String, Value>,
}

impl Origin {
    /// An origin of settings alone, given as a JSON object; anything else is no setting.
    pub fn of(settings: Value) -> Self {
        let Value::Object(settings) = settings else { return Self::default() };
        Self { settings, files: Map::new() }
    }

    /// The same origin with files added: digests by what the files are, such as `model.vq`.
    pub fn with(mut self, files: impl IntoIterator<Item = (String, String)>) -> Self {
        self.files.extend(files.into_iter().map(|(what, digest)| (what, digest.into())));
        self
    }

    /// A setting by its JSON pointer; null where there is none.
    pub fn setting(&self, pointer: &str) -> Value {
        Value::Object(self.settings.clone()).pointer(pointer).cloned().unwrap_or_default()
    }

    /// The digests of files, by what they are.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(what, digest)| Some((what.as_str(), digest.as_str()?)))
    }

    /// What differs from the origin of what is there, in words.
    pub fn differences(&self, there: &Self) -> Vec<String> {
        let object = |map: &Map<String, Value>| Value::Object(map.clone());
        let mut found = differences(&object(&there.settings), &object(&self.settings));
        for (what, digest) in &self.files {
            match there.files.get(what) {
                Some(other) if other == digest => {}
                Some(_) => found.push(format!("{what}: different content")),
                None => found.push(format!("{what}: was not used there")),
            }
        }
        let gone = there.files.keys().filter(|what| !self.files.contains_key(*what));
        found.extend(gone.map(|what| format!("{what}: is not used here")));
        found
    }

    /// The origin that a file holds; none where there is no such file.
    ///
    /// # Errors
    /// Names the file when it cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = files::if_there(path, |path| std::fs::read_to_string(path))?;
        // One of another form, as of an earlier version, tells nothing.
        let mut origin: Option<Self> = text.map(|text| serde_json::from_str(&text).unwrap_or_default());
        origin.iter_mut().for_each(|origin| config::as_of_today(&mut origin.settings));
        Ok(origin)
    }

    fn write(&self, path: &Path) -> Result<()> {
        files::write_atomically(path, (serde_json::to_string_pretty(self)? + "\n").as_bytes())
    }
}

/// Results that are made step by step and continued after an interruption.
#[derive(Debug)]
pub struct Results<'a> {
    /// What the results are, as messages say it.
    pub what: &'a str,
    /// The file of their origin.
    pub note: PathBuf,
    /// Where the results are: files, or folders that hold something.
    pub files: Vec<PathBuf>,
    /// What to change to have other results beside them.
    pub elsewhere: &'a str,
}

impl Results<'_> {
    /// Refuses results that were made with different settings; where there are none yet, notes the settings of now.
    ///
    /// # Errors
    /// Names what differs and what to do.
    pub fn ensure_same_settings(&self, origin: &Origin) -> Result<()> {
        let there = Origin::read(&self.note)?;
        let Some(result) = self.files.iter().find(|path| holds_something(path)) else {
            // What was never made under a setting is not bound by it.
            return if there.as_ref() == Some(origin) { Ok(()) } else { origin.write(&self.note) };
        };
        let (what, result, elsewhere) = (self.what, result.display(), self.elsewhere);
        let Some(there) = there else {
            bail!(
                "{result}: already exists, and nothing records what it was made from; choose {elsewhere}, or move it away"
            )
        };
        if there == Origin::default() {
            bail!(
                "{result}: was made by an earlier version, which did not record its settings; choose {elsewhere}, or move \
                 it away"
            );
        }
        let differing = origin.differences(&there).join("; ");
        if differing.is_empty() {
            return Ok(());
        }
        bail!(
            "{what} ({result}) were made with different settings: {differing}; restore these, choose {elsewhere}, or \
             remove the results"
        )
    }
}

/// Where two trees of settings differ, in words.
pub fn differences(there: &Value, here: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", there, here, &mut found);
    found
}

/// Whether a file is there, or a folder with more in it than what a kill left half written.
fn holds_something(path: &Path) -> bool {
    let is_whole = |entry: std::fs::DirEntry| !entry.file_name().to_string_lossy().ends_with(TEMPORARY);
    match std::fs::read_dir(path) {
        Ok(entries) => entries.filter_map(Result::ok).any(is_whole),
        Err(_) => path.exists(),
    }
}

/// The dotted keys on which two trees of settings differ.
fn compare(key: &str, there: &Value, here: &Value, differing: &mut Vec<String>) {
    match (there, here) {
        (Value::Object(before), Value::Object(now)) => {
            let gone = before.keys().filter(|name| !now.contains_key(*name));
            for name in now.keys().chain(gone) {
                let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                let of = |map: &Map<String, Value>| map.get(name).cloned().unwrap_or_default();
                compare(&inner, &of(before), &of(now), differing);
            }
        }
        (there, here) if there != here => differing.push(format!("{key}: there {there}, here {here}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn origin(settings: Value, model: &str) -> Origin {
        Origin::of(settings).with([("the model".to_owned(), model.to_owned())])
    }

    #[test]
    fn results_are_bound_by_what_they_were_made_from_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let files = vec![at("captions"), at("images")];
        let results = Results { what: "the captions", note: at("note.json"), files, elsewhere: "another root" };
        let (a, b) =
            (origin(json!({ "seed": 1, "x": { "y": 2 } }), "m"), origin(json!({ "seed": 1, "x": { "z": 2 } }), "n"));
        results.ensure_same_settings(&a).unwrap();
        std::fs::create_dir(at("images")).unwrap();
        results.ensure_same_settings(&b).unwrap();
        results.ensure_same_settings(&a).unwrap();
        std::fs::write(at("images/1.png"), "").unwrap();
        results.ensure_same_settings(&a).unwrap();
        let said = results.ensure_same_settings(&b).unwrap_err().to_string();
        for part in [
            "the captions",
            "images",
            "x.z: there null, here 2",
            "x.y: there 2, here null",
            "the model: different content",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let without = Origin::of(json!({ "seed": 1, "x": { "y": 2 } }));
        assert!(
            results.ensure_same_settings(&without).unwrap_err().to_string().contains("the model: is not used here")
        );
        std::fs::remove_file(at("note.json")).unwrap();
        assert!(
            results.ensure_same_settings(&a).unwrap_err().to_string().contains("nothing records what it was made from")
        );
        std::fs::write(at("note.json"), "{\"seed\": 1, \"of\": \"an earlier form\"}").unwrap();
        assert!(results.ensure_same_settings(&a).unwrap_err().to_string().contains("by an earlier version"));
        std::fs::remove_file(at("images/1.png")).unwrap();
        results.ensure_same_settings(&b).unwrap();
        assert_eq!(Origin::read(&at("note.json")).unwrap(), Some(b), "as it was");
    }
}
