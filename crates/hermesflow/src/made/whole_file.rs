//! Files that are written whole each time they are made, and never over those of others.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hermesflow_records::ArrayFile;
use serde::{Deserialize, Serialize};

use super::Origin;
use crate::digest;
use crate::files;

/// A file that this program makes anew each time it is asked to, from what is there then.
#[derive(Debug)]
pub struct WholeFile {
    /// The file.
    pub path: PathBuf,
    /// Where it is noted what was written.
    pub note: PathBuf,
    /// What to do where the file is not this program's.
    pub remedy: &'static str,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// What it was made from, where that is needed.
    #[serde(default)]
    pub origin: Origin,
    /// Digests of the file's content; two while it is replaced.
    #[serde(default)]
    pub written: Vec<String>,
}

impl WholeFile {
    /// What is noted of the file; none where nothing is.
    pub fn noted(&self) -> Option<Note> {
        serde_json::from_slice(&std::fs::read(&self.note).ok()?).ok()
    }

    /// Whether the file is there as this program wrote it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_ours(&self) -> Result<bool> {
        let Some(note) = self.noted().filter(|_| self.path.is_file()) else { return Ok(false) };
        Ok(note.written.contains(&digest::of_file(&self.path)?))
    }

    /// Begins the file; the one that is there stays until it is published.
    ///
    /// # Errors
    /// When the file that is there was given or edited by somebody, and says what to do.
    pub fn begin(&self) -> Result<ArrayFile> {
        ensure!(
            !self.path.exists() || self.is_ours()?,
            "{}: this program did not write it, or it was edited since; {}",
            self.path.display(),
            self.remedy
        );
        Ok(ArrayFile::create(&self.path)?)
    }

    /// Gives the file its name, and notes that it is this program's.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn publish(&self, file: ArrayFile, origin: Origin) -> Result<()> {
        let whole = file.close().context("cannot write the records")?;
        let written = digest::of_file(whole.temporary())?;
        // Noted first, beside what is there still: killed in between, either one is this program's.
        let before = self.noted().unwrap_or_default().written;
        let both = before.into_iter().filter(|one| *one != written).chain([written.clone()]).collect();
        self.keep(&Note { origin: origin.clone(), written: both })?;
        whole.publish().context("cannot write the records")?;
        self.keep(&Note { origin, written: vec![written] })
    }

    /// Notes something of the file.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn keep(&self, note: &Note) -> Result<()> {
        if self.noted().as_ref() == Some(note) {
            return Ok(());
        }
        files::write_atomically(&self.note, (serde_json::to_string_pretty(note)? + "\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn what_somebody_gave_or_edited_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let output = WholeFile { path: at("data.json"), note: at("notes/data.json"), remedy: "move it away" };
        let make = |text: &str| {
            let mut file = output.begin()?;
            file.push(&text)?;
            output.publish(file, Origin::default())
        };
        fs::write(&output.path, "mine").unwrap();
        let said = make("first").unwrap_err().to_string();
        assert!(said.contains("data.json") && said.contains("move it away"), "{said}");
        assert_eq!(fs::read_to_string(&output.path).unwrap(), "mine");
        fs::remove_file(&output.path).unwrap();
        make("first").unwrap();
        let first = fs::read(&output.path).unwrap();
        make("second").unwrap();
        let (second, note) = (fs::read(&output.path).unwrap(), fs::read(&output.note).unwrap());
        assert_ne!(first, second);
        // Killed before and after the file got its name.
        let both = vec![digest::of_file(&output.path).unwrap(), digest::of_file(&output.path).unwrap()];
        output.keep(&Note { origin: Origin::default(), written: both }).unwrap();
        make("second").unwrap();
        assert_eq!(
            (fs::read(&output.path).unwrap(), fs::read(&output.note).unwrap()),
            (second, note),
            "the same bytes"
        );
        fs::write(&output.path, first).unwrap();
        assert!(make("third").is_err(), "put back by somebody");
        fs::remove_file(&output.note).unwrap();
        assert!(make("third").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left behind");
    }
}
