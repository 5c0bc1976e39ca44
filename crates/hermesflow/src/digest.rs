//! Digests: what tells texts, and models, from others.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The SHA-256 of pieces, each apart from the others.
#[derive(Default)]
pub struct Pieces(Sha256);

impl Pieces {
    /// Adds a piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.update((piece.len() as u64).to_le_bytes());
        self.0.update(piece);
    }

    /// The digest, in hexadecimal digits.
    pub fn text(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Half a digest of texts, each apart from the others.
pub fn digest(texts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut pieces = Pieces::default();
    texts.into_iter().for_each(|text| pieces.add(text.as_ref()));
    pieces.text()[..32].to_owned()
}

/// What tells a model from another: where it really lies, and the names, sizes and times of its files.
///
/// # Errors
/// When the folder cannot be read.
pub fn identity(model: &Path) -> Result<String> {
    let place = model.canonicalize().with_context(|| model.display().to_string())?;
    let mut files = Vec::new();
    if place.is_dir() {
        for entry in std::fs::read_dir(&place).with_context(|| place.display().to_string())? {
            let path = entry.with_context(|| place.display().to_string())?.path();
            files.push(path);
        }
    } else {
        files.push(place.clone());
    }
    files.sort();
    let described = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).with_context(|| path.display().to_string())?;
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let seconds = modified.map_or(0, |time| time.as_secs());
        Ok(format!("{} {} {seconds}", path.display(), metadata.len()))
    };
    let described: Vec<String> = files.iter().map(described).collect::<Result<_>>()?;
    Ok(digest(described.iter().map(String::as_str))[..12].to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn digests_keep_texts_apart() {
        assert_ne!(digest(["ab", "c"]), digest(["a", "bc"]));
        assert_ne!(digest(["a"]), digest(["a", ""]));
        assert_eq!(digest(["a"]).len(), 32);
    }

    #[test]
    fn a_model_that_changed_is_another() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let before = identity(folder.path()).unwrap();
        assert_eq!(identity(folder.path()).unwrap(), before);
        std::fs::write(folder.path().join("config.json"), "{ }").unwrap();
        assert_ne!(identity(folder.path()).unwrap(), before);
        assert!(identity(&folder.path().join("missing")).is_err());
    }
}
