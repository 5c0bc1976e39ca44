//! The folder of a run, wherever it lies now: its configuration, and its files iteration by iteration.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::config::RunConfig;
use crate::files;
use crate::run::layout::RunLayout;

/// A run that can be reported on.
#[derive(Debug, Clone)]
pub struct RunFolder {
    /// The folder that was given, as it was given.
    pub given: PathBuf,
    /// The configuration, with `output` and `data.root` as they lie now.
    pub config: RunConfig,
}

impl RunFolder {
    /// Opens a run's `output` folder, or the folder of a demo, which holds one.
    ///
    /// A run that was moved or copied is found with its data where both were moved together.
    ///
    /// # Errors
    /// Names the folder that is none of a run, and says which one to give.
    pub fn open(given: &Path) -> Result<Self> {
        ensure!(given.exists(), "{}: does not exist; give the `output` folder of a run", given.display());
        ensure!(
            given.is_dir(),
            "{}: is a file; give the `output` folder of a run, which holds config.yaml",
            given.display()
        );
        let found =
            [given.to_owned(), given.join("run")].into_iter().find(|folder| folder.join("config.yaml").is_file());
        let Some(output) = found else {
            let empty = std::fs::read_dir(given).with_context(|| given.display().to_string())?.next().is_none();
            let what = if empty { "is empty" } else { "holds no config.yaml, so it is not the folder of a run" };
            bail!(
                "{}: {what}; give the `output` folder of a run that `hermesflow run` has begun, or the folder of a demo",
                given.display()
            )
        };
        let path = output.join("config.yaml");
        let config = RunConfig::parse(&files::text(&path)?, &[])
            .with_context(|| format!("{}: not the configuration of a run", path.display()))?;
        Ok(Self { given: given.to_owned(), config: placed(config, output) })
    }

    /// The name by which the page tells runs from each other.
    pub fn name(&self) -> String {
        let whole = std::path::absolute(&self.given).unwrap_or_else(|_| self.given.clone());
        whole.file_name().map_or_else(|| whole.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// The files of an iteration, counted from 1.
    pub fn at(&self, iteration: usize) -> RunLayout {
        RunLayout::new(&self.config, iteration)
    }

    /// The iterations of which there is anything, at least the first.
    pub fn iterations(&self) -> Vec<usize> {
        let begun = |iteration: &usize| {
            let layout = self.at(*iteration);
            let files = [layout.captions(), layout.questions(), layout.answers(), layout.pairs()];
            *iteration == 1 || layout.training().is_dir() || files.iter().any(|file| there(file).is_some())
        };
        (1..=self.config.iterations).filter(begun).collect()
    }
}

/// A stage's file, or the one that grows while the stage works.
pub fn there(file: &Path) -> Option<PathBuf> {
    [file.to_owned(), file.with_extension("jsonl")].into_iter().find(|path| path.is_file())
}

/// The configuration with its folders as they lie now: the run's own where it was found, the data at the same place beside
/// it as before, or where the configuration says.
fn placed(mut config: RunConfig, output: PathBuf) -> RunConfig {
    let beside = relative(&config.data.root, &config.output).map(|steps| output.join(steps));
    if let Some(moved) = beside.filter(|moved| moved.is_dir()) {
        config.data.root = straight(&moved);
    }
    config.output = output;
    config
}

/// A path without steps back behind a name, where that leads to the same folder: behind a link it may not.
fn straight(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match (part, plain.components().next_back()) {
            (Component::ParentDir, Some(Component::Normal(_))) => drop(plain.pop()),
            _ => plain.push(part),
        }
    }
    let same = path.canonicalize().ok() == plain.canonicalize().ok();
    if same && plain.is_dir() { plain } else { path.to_owned() }
}

/// The way from one folder to another, by `..` and names; none between a relative and an absolute one.
pub fn relative(to: &Path, from: &Path) -> Option<PathBuf> {
    if to.is_absolute() != from.is_absolute() {
        return None;
    }
    let same = to.components().zip(from.components()).take_while(|(to, from)| to == from).count();
    let up = from.components().skip(same).map(|_| "..");
    Some(up.map(PathBuf::from).chain(to.components().skip(same).map(|part| part.as_os_str().into())).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_run_is_found_where_it_was_moved_to_with_its_data() {
        let folder = tempfile::tempdir().unwrap();
        let moved = folder.path().join("moved");
        std::fs::create_dir_all(moved.join("data")).unwrap();
        std::fs::create_dir_all(moved.join("run")).unwrap();
        std::fs::write(moved.join("run/config.yaml"), "{ output: a/run, data: { root: a/data } }").unwrap();
        for given in [moved.clone(), moved.join("run")] {
            let run = RunFolder::open(&given).unwrap();
            assert_eq!(run.config.output, moved.join("run"));
            assert_eq!(run.config.data.root.canonicalize().unwrap(), moved.join("data").canonicalize().unwrap());
            assert_eq!(run.iterations(), [1]);
        }
        std::fs::remove_dir(moved.join("data")).unwrap();
        assert_eq!(RunFolder::open(&moved).unwrap().config.data.root, Path::new("a/data"));
    }

    #[test]
    fn what_is_no_run_is_said_in_one_message() {
        let folder = tempfile::tempdir().unwrap();
        let said = |path: &Path| format!("{:#}", RunFolder::open(path).unwrap_err());
        assert!(said(folder.path()).contains("is empty; give the `output` folder"), "{}", said(folder.path()));
        assert!(said(&folder.path().join("none")).contains("does not exist"));
        std::fs::write(folder.path().join("a.txt"), "").unwrap();
        assert!(said(folder.path()).contains("holds no config.yaml"));
        assert!(said(&folder.path().join("a.txt")).contains("is a file"));
        std::fs::write(folder.path().join("config.yaml"), "model_type: gpt2\n").unwrap();
        let message = said(folder.path());
        assert!(message.contains("not the configuration of a run") && message.contains("model_type"), "{message}");
    }
}
