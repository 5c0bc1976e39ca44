//! The pictures that records name.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hermesflow_models::preprocess::load_square;
use hermesflow_records::RecordId;
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::context::RunContext;
use super::layout::RunLayout;
use crate::digest;
use crate::files;

/// Reads pictures at a model's resolution.
#[derive(Debug, Clone)]
pub struct Pictures {
    root: PathBuf,
    /// Whether records may name pictures outside the root.
    outside: bool,
    side: usize,
}

impl Pictures {
    /// Pictures whose relative paths begin at a run's data root, as squares of `side` pixels.
    pub fn new(layout: &RunLayout, side: usize) -> Self {
        Self { root: layout.data().into(), outside: layout.allows_outside(), side }
    }

    /// Where a picture is: under the root, or relative to the working directory as the Python scripts have it.
    ///
    /// # Errors
    /// When it is not there, or where a record's data may not lead.
    pub fn find(&self, path: &Path) -> Result<PathBuf> {
        let inside = self.root.join(path); // an absolute path stays as it is
        let Some(file) = [inside.as_path(), path].into_iter().find(|file| file.is_file()) else {
            bail!("image {} does not exist; put it there or remove the record", inside.display())
        };
        ensure!(
            self.outside || lies_within(&self.root, file),
            "image {} lies outside the data root {}; data.allow_outside=true where the records may lead there, or copy it \
             into the root, as `hermesflow import --copy` does",
            file.display(),
            self.root.display()
        );
        Ok(file.into())
    }

    /// Reads a picture as a square of the model's side.
    ///
    /// # Errors
    /// Names the file when it is missing or broken, and what to do.
    pub fn load(&self, path: &Path) -> Result<RgbImage> {
        Ok(load_square(&self.find(path)?, self.side)?)
    }

    /// What a picture's file holds; none where it cannot be read.
    pub fn digest(&self, path: &Path) -> Option<String> {
        digest::of_file(&self.find(path).ok()?).ok()
    }

    /// The codes that a model drew for one of its pictures, if they lie beside it.
    ///
    /// # Errors
    /// Names the file when it is missing or broken, and what to do.
    pub fn codes(&self, path: &Path) -> Result<Option<Vec<u32>>> {
        let file = codes_of(&self.find(path)?);
        if !file.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let broken = || format!("{}: not a list of codes; remove it or imagine the record again", file.display());
        serde_json::from_str(&text).map(Some).with_context(broken)
    }

    /// The step in which each of the codes of one of its pictures was drawn; none where no file beside it says so, or it is
    /// about other codes.
    ///
    /// # Errors
    /// When the picture is not there.
    pub fn steps(&self, path: &Path, codes: &[u32]) -> Result<Option<Vec<u32>>> {
        Ok(steps_beside(&self.find(path)?, codes))
    }
}

/// The step in which each code of a picture was drawn, and a digest of these codes.
#[derive(Serialize, Deserialize)]
struct Steps {
    codes: String,
    steps: Vec<u32>,
}

/// Whether a file lies in a folder, by its path or by where links lead.
fn lies_within(folder: &Path, file: &Path) -> bool {
    let plain = |path: &Path| std::path::absolute(path).map(|path| without_steps_back(&path)).ok();
    let by_path = plain(folder).zip(plain(file)).is_some_and(|(folder, file)| file.starts_with(folder));
    let followed = || folder.canonicalize().ok().zip(file.canonicalize().ok());
    by_path || followed().is_some_and(|(folder, file)| file.starts_with(folder))
}

/// An absolute path without `..`.
fn without_steps_back(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

/// The picture files that arguments name: files as they are, folders by all pictures in them, by name.
///
/// # Errors
/// Names what does not exist, or a folder without pictures.
pub fn named(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            ensure!(path.exists(), "image {} does not exist", path.display());
            files.push(path.clone());
            continue;
        }
        let read = || path.display().to_string();
        let entries = std::fs::read_dir(path).with_context(read)?.collect::<Result<Vec<_>, _>>().with_context(read)?;
        let is_picture = |file: &PathBuf| file.is_file() && image::ImageFormat::from_path(file).is_ok();
        let mut inside: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).filter(is_picture).collect();
        ensure!(!inside.is_empty(), "{}: a folder without pictures", path.display());
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

/// A text as part of a file's name: its first words, in small letters and digits.
pub fn slug(text: &str) -> String {
    let mut slug = String::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let letters = slug.chars().count() + word.chars().count();
        if letters > 48 && !slug.is_empty() {
            break;
        }
        if !slug.is_empty() {
            slug.push('-');
        }
        slug.extend(word.to_lowercase().chars().take(48));
    }
    slug
}

/// Records that a stage skips because their pictures cannot be read.
#[derive(Debug)]
pub struct Skipped<'a> {
    stage: &'static str,
    run: &'a RunContext,
    count: usize,
    first: Option<String>,
}

impl<'a> Skipped<'a> {
    /// No record skipped yet.
    pub fn new(stage: &'static str, run: &'a RunContext) -> Self {
        Self { stage, run, count: 0, first: None }
    }

    /// Counts a record that is skipped, and why; the first ones are named in the log.
    pub fn add(&mut self, id: &RecordId, why: &anyhow::Error) {
        let said = format!("record {id}: {why:#}");
        self.run.progress.log_few(self.stage, self.count, format_args!("skipped {said}"));
        self.count += 1;
        self.first.get_or_insert(said);
    }

    /// Logs how many of `of` records were skipped, by all processes; returns one of them, if any.
    ///
    /// # Errors
    /// When another process is gone.
    pub fn finish(self, of: usize) -> Result<Option<String>> {
        let count = self.run.group().total(self.count)?;
        if count > 0 {
            let line = format!("{}: skipped {count} of {of} records: their pictures cannot be read", self.stage);
            self.run.progress.log(line);
        }
        let firsts = self.run.group().gather(self.first.unwrap_or_default().as_bytes())?;
        let first = firsts.into_iter().find(|first| !first.is_empty());
        Ok(first.map(|first| String::from_utf8_lossy(&first).into_owned()))
    }
}

/// The file of a picture's codes.
fn codes_of(picture: &Path) -> PathBuf {
    picture.with_extension("codes.json")
}

/// Writes the codes of a picture beside it.
///
/// # Errors
/// Names the file that cannot be written.
pub fn save_codes(codes: &[u32], picture: &Path) -> Result<()> {
    files::write_atomically(&codes_of(picture), serde_json::to_string(codes)?.as_bytes())
}

/// The file of the steps in which a picture's codes were drawn.
fn steps_of(picture: &Path) -> PathBuf {
    picture.with_extension("steps.json")
}

/// Writes the steps in which the codes of a picture were drawn beside it.
///
/// # Errors
/// Names the file that cannot be written.
pub fn save_steps(steps: &[u32], codes: &[u32], picture: &Path) -> Result<()> {
    let steps = Steps { codes: of_codes(codes), steps: steps.to_vec() };
    files::write_atomically(&steps_of(picture), serde_json::to_string(&steps)?.as_bytes())
}

/// Whether a picture and its codes lie there with the steps in which these codes were drawn.
pub fn has_steps(picture: &Path) -> bool {
    let codes = std::fs::read_to_string(codes_of(picture)).ok();
    let codes = codes.and_then(|text| serde_json::from_str::<Vec<u32>>(&text).ok());
    codes.is_some_and(|codes| steps_beside(picture, &codes).is_some())
}

fn steps_beside(picture: &Path, codes: &[u32]) -> Option<Vec<u32>> {
    let text = std::fs::read_to_string(steps_of(picture)).ok()?;
    let found: Steps = serde_json::from_str(&text).ok()?;
    (found.codes == of_codes(codes) && found.steps.len() == codes.len()).then_some(found.steps)
}

/// A digest of codes.
fn of_codes(codes: &[u32]) -> String {
    digest::digest([codes.iter().flat_map(|code| code.to_le_bytes()).collect::<Vec<u8>>()])
}

/// Writes a PNG under a temporary name and renames it: a file that exists is whole.
///
/// # Errors
/// Names the file that cannot be written.
pub fn save_png(image: &RgbImage, path: &Path) -> Result<()> {
    files::write_atomically(path, &png(image).with_context(|| path.display().to_string())?)
}

/// A picture as the bytes of a PNG.
///
/// # Errors
/// Never for a picture that fits memory.
pub fn png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::RunConfig;

    #[test]
    fn records_lead_nowhere_but_into_their_root() {
        let folder = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (folder.path().join("root"), folder.path().join("elsewhere"));
        for file in [root.join("a/in.png"), elsewhere.join("out.png"), folder.path().join("rooted.png")] {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        let mut config = RunConfig::default();
        config.data.root = root.clone();
        let strict = Pictures::new(&RunLayout::new(&config, 1), 1);
        config.data.allow_outside = true;
        let open = Pictures::new(&RunLayout::new(&config, 1), 1);
        let absolute = root.join("a/in.png");
        for inside in ["a/in.png", "a/../a/in.png", "./a/in.png", absolute.to_str().unwrap()] {
            assert!(strict.find(inside.as_ref()).is_ok(), "{inside}");
        }
        let out = elsewhere.join("out.png");
        for outside in ["../elsewhere/out.png", "a/../../elsewhere/out.png", out.to_str().unwrap(), "../rooted.png"] {
            let said = strict.find(outside.as_ref()).unwrap_err().to_string();
            assert!(said.contains("outside the data root") && said.contains("data.allow_outside"), "{said}");
            assert!(open.find(outside.as_ref()).is_ok(), "{outside}");
        }
        assert!(open.find("none.png".as_ref()).unwrap_err().to_string().contains("does not exist"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&elsewhere, root.join("link")).unwrap();
            assert!(strict.find("link/out.png".as_ref()).is_ok(), "a link in the root was put there by its owner");
        }
    }

    #[test]
    fn steps_are_those_of_their_codes_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let picture = folder.path().join("0.png");
        std::fs::write(&picture, "").unwrap();
        let mut config = RunConfig::default();
        config.data.root = folder.path().into();
        let pictures = Pictures::new(&RunLayout::new(&config, 1), 1);
        let codes = [5, 70_000, 7];
        let found = || pictures.steps("0.png".as_ref(), &codes).unwrap();
        save_codes(&codes, &picture).unwrap();
        assert_eq!((found(), has_steps(&picture)), (None, false), "as an earlier version drew it");
        save_steps(&[2, 0, 1], &codes, &picture).unwrap();
        assert_eq!((found(), has_steps(&picture)), (Some(vec![2, 0, 1]), true));
        save_codes(&[5, 70_000, 8], &picture).unwrap();
        assert!(!has_steps(&picture), "codes of another drawing");
        save_steps(&[2, 0], &codes, &picture).unwrap();
        assert_eq!(found(), None);
        std::fs::write(folder.path().join("0.steps.json"), "[2, 0, 1]").unwrap();
        assert_eq!(found(), None);
        assert!(pictures.steps("1.png".as_ref(), &codes).is_err());
    }

    #[test]
    fn prompts_become_names() {
        assert_eq!(slug("A large, red circle/../!"), "a-large-red-circle");
        assert_eq!(slug(""), "");
        assert_eq!(slug(&"word ".repeat(40)).len(), "word-".repeat(10).len() - 1);
        assert_eq!(slug(&"ä".repeat(100)).chars().count(), 48);
    }
}
