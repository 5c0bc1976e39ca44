//! Folders that this program fills, beside what others keep there.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hermesflow_records::{AppendLog, temporary};

use super::lock::Lock;
use super::write_atomically;

/// A folder that appears whole or not at all, where nothing is.
#[derive(Debug)]
pub struct NewFolder {
    target: PathBuf,
    temporary: PathBuf,
    _lock: Lock,
}

impl NewFolder {
    /// Begins one under a temporary name; what a kill left there goes.
    ///
    /// # Errors
    /// When something already exists, or another program makes the same folder.
    pub fn begin(target: &Path) -> Result<Self> {
        let read = || target.display().to_string();
        ensure!(target.file_name().is_some(), "{}: is no name of a new folder", target.display());
        let lock = Lock::beside(target)?;
        match fs::symlink_metadata(target) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(read),
            Ok(there) => {
                let empty = there.is_dir() && fs::read_dir(target).with_context(read)?.next().is_none();
                ensure!(empty, "{}: is not empty; choose a new folder", target.display());
            }
        }
        let new = Self { target: target.to_owned(), temporary: temporary(target), _lock: lock };
        new.discard()?;
        fs::create_dir_all(&new.temporary).with_context(|| new.temporary.display().to_string())?;
        Ok(new)
    }

    /// Where it is until it is published.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// Names the folder when that cannot be done.
    pub fn publish(self) -> Result<()> {
        let _ = fs::remove_dir(&self.target); // an empty one
        fs::rename(&self.temporary, &self.target).with_context(|| self.target.display().to_string())
    }

    fn discard(&self) -> Result<()> {
        match fs::remove_dir_all(&self.temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| self.temporary.display().to_string())
            }
            _ => Ok(()),
        }
    }
}

impl Drop for NewFolder {
    /// What was not published goes; after that there is nothing of that name.
    fn drop(&mut self) {
        let _ = self.discard();
    }
}

/// The files that this program has put into a folder: these it may write over, others it may not.
#[derive(Debug)]
pub struct OwnFiles {
    folder: PathBuf,
    list: AppendLog,
    names: HashSet<String>,
}

impl OwnFiles {
    /// The names, a line of JSON each.
    const LIST: &str = ".hermesflow-files";

    /// The files that this program wrote into a folder, which need not exist yet.
    ///
    /// # Errors
    /// When what it holds cannot be read.
    pub fn of(folder: &Path) -> Result<Self> {
        let (mut list, mut names) = (AppendLog::of_lines(&folder.join(Self::LIST))?, HashSet::new());
        list.each(|_, line| names.extend(serde_json::from_slice::<String>(line)))?;
        Ok(Self { folder: folder.to_owned(), list, names })
    }

    /// Writes a file; its path.
    ///
    /// # Errors
    /// When one of that name is there that is not of this program, or it cannot be written.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if !self.names.contains(name) {
            ensure!(
                !path.exists(),
                "{}: already exists, and this program did not write it; choose another folder with --out, or move it away",
                path.display()
            );
            self.list.append((serde_json::to_string(name)? + "\n").as_bytes())?;
            self.names.insert(name.to_owned());
        }
        write_atomically(&path, bytes)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_new_folder_appears_whole_where_nothing_is_and_touches_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("model.tmp")).unwrap();
        fs::create_dir_all(at("full")).unwrap();
        fs::write(at("full/mine"), "").unwrap();
        assert!(NewFolder::begin(&at("full")).unwrap_err().to_string().contains("full: is not empty"));
        assert!(NewFolder::begin(&at("full/mine")).is_err(), "a file");
        let new = NewFolder::begin(&at("model")).unwrap();
        fs::write(new.path().join("x"), "1").unwrap();
        assert!(!at("model").exists());
        assert!(NewFolder::begin(&at("model")).unwrap_err().to_string().contains("in use"));
        std::mem::forget(new); // as a kill leaves it, but for the lock, which the system gives back
        fs::remove_file(at(".model.hermesflow-lock")).unwrap();
        let new = NewFolder::begin(&at("model")).unwrap();
        assert!(!new.path().join("x").exists(), "what a kill left is gone");
        fs::write(new.path().join("y"), "2").unwrap();
        new.publish().unwrap();
        drop(NewFolder::begin(&at("other")).unwrap());
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["full", "model", "model.tmp"]);
        assert_eq!(fs::read_to_string(at("model/y")).unwrap(), "2");
    }

    #[test]
    fn own_files_are_written_over_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (place, mine) = (folder.path().join("out"), folder.path().join("out/sheet.png"));
        OwnFiles::of(&place).unwrap().write("a\nb.png", b"1").unwrap();
        OwnFiles::of(&place).unwrap().write("a\nb.png", b"2").unwrap();
        fs::write(&mine, "mine").unwrap();
        let said = OwnFiles::of(&place).unwrap().write("sheet.png", b"3").unwrap_err().to_string();
        assert!(said.contains("sheet.png: already exists") && said.contains("--out"), "{said}");
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    }
}
