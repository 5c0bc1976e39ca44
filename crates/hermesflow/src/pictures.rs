//! The pictures that records name.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hermesflow_models::preprocess::{self, load_square};
use image::RgbImage;

use crate::files;

/// Reads pictures, whole or at a model's resolution.
#[derive(Debug, Clone)]
pub struct Pictures {
    root: PathBuf,
    side: usize,
}

impl Pictures {
    /// Pictures whose relative paths begin at `root`, as squares of `side` pixels.
    pub fn new(root: &Path, side: usize) -> Self {
        Self { root: root.into(), side }
    }

    /// Where a picture is: under the root, or relative to the working directory as the Python scripts have it.
    pub fn find(&self, path: &Path) -> Result<PathBuf> {
        let inside = self.root.join(path); // an absolute path stays as it is
        if inside.is_file() {
            return Ok(inside);
        }
        if path.is_file() {
            return Ok(path.into());
        }
        bail!("image {} does not exist; put it there or remove the record", inside.display())
    }

    /// Reads one as a square.
    ///
    /// # Errors
    /// Names the file when it is missing or broken, and what to do.
    pub fn load(&self, path: &Path) -> Result<RgbImage> {
        Ok(load_square(&self.find(path)?, self.side)?)
    }

    /// Reads one whole, whatever its size.
    ///
    /// # Errors
    /// Names the file when it is missing or broken, and what to do.
    pub fn load_whole(&self, path: &Path) -> Result<RgbImage> {
        Ok(preprocess::load(&self.find(path)?)?)
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

/// Writes a PNG under a temporary name and renames it: a file that exists is whole.
///
/// # Errors
/// Names the file that cannot be written.
pub fn save_png(image: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).with_context(|| path.display().to_string())?;
    files::write_atomically(path, bytes.get_ref())
}
