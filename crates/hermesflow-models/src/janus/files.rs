//! The small files of a checkpoint folder, kept as they came so that a trained model is written back with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hermesflow_nn::foreign;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The sizes of all parts.
pub const CONFIG: &str = "config.json";
/// The tokens of a picture, and how the model is spoken to.
pub const PROCESSOR: &str = "processor_config.json";
/// How pictures are read.
pub const PREPROCESSOR: &str = "preprocessor_config.json";
/// The text tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// Settings of the text tokenizer.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Files without which a folder is no checkpoint.
const NEEDED: [&str; 4] = [CONFIG, PROCESSOR, PREPROCESSOR, TOKENIZER];
/// Files that are kept if they are there.
const OPTIONAL: [&str; 3] = [TOKENIZER_CONFIG, "special_tokens_map.json", "generation_config.json"];

/// The contents of the small files, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JanusFiles {
    contents: BTreeMap<String, Vec<u8>>,
    origin: PathBuf,
}

impl JanusFiles {
    /// Reads the files of a checkpoint folder.
    ///
    /// # Errors
    /// Names the file that is missing or cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut contents = BTreeMap::new();
        for name in NEEDED {
            let path = folder.join(name);
            contents.insert(name.into(), std::fs::read(&path).map_err(|source| Error::io(&path, source))?);
        }
        for name in OPTIONAL {
            let path = folder.join(name);
            if path.exists() {
                contents.insert(name.into(), std::fs::read(&path).map_err(|source| Error::io(&path, source))?);
            }
        }
        Ok(Self { contents, origin: folder.into() })
    }

    /// Files from memory, by name; `origin` is named in errors.
    pub fn from_memory<'a>(contents: impl IntoIterator<Item = (&'a str, Vec<u8>)>, origin: impl Into<PathBuf>) -> Self {
        let contents = contents.into_iter().map(|(name, bytes)| (name.to_string(), bytes)).collect();
        Self { contents, origin: origin.into() }
    }

    /// Writes all files into a folder, byte for byte, making it.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        for (name, bytes) in &self.contents {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|source| Error::io(&path, source))?;
        }
        Ok(())
    }

    /// Where a file is, or would be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.origin.join(name)
    }

    /// The bytes of a file, if it is there.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.contents.get(name).map(Vec::as_slice)
    }

    /// All files, sorted by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.contents.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }

    /// A file as JSON.
    ///
    /// # Errors
    /// Names the file when it is missing or malformed.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.path(name);
        let bytes = self.bytes(name).ok_or_else(|| Error::config(&path, "the file is missing"))?;
        if let Some(what) = foreign::stands_in(bytes) {
            return Err(Error::config(&path, what));
        }
        let text = foreign::text(bytes.to_vec()).map_err(|what| Error::config(&path, what))?;
        serde_json::from_str(&text).map_err(|e| Error::config(&path, e.to_string()))
    }
}
