//! Digests: what tells texts, files and models from others. They are of contents alone: a file that is moved or copied
//! stays the same, and one that is edited does not, whatever its name and time say.

mod known;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use hermesflow_models::weight_files;
use sha2::{Digest, Sha256};

/// Digits of a digest that tells files from each other: 128 bits.
const DIGITS: usize = 32;

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
        hexadecimal(&self.0.finalize())
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Half a digest of texts, each apart from the others.
pub fn digest(texts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut pieces = Pieces::default();
    texts.into_iter().for_each(|text| pieces.add(text.as_ref()));
    pieces.text()[..DIGITS].to_owned()
}

/// What a file holds. Of a large one that was read before, and of which the system says that it has not changed since,
/// this is remembered.
///
/// # Errors
/// Names the file when it cannot be read.
pub fn of_file(path: &Path) -> Result<String> {
    known::or_else(path, || read(path)).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> io::Result<String> {
    let (mut file, mut sum, mut block) = (File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hexadecimal(&sum.finalize())[..DIGITS].to_owned()),
            count => sum.update(&block[..count]),
        }
    }
}

/// What was said of models that this program works with.
static LOADED: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());

/// As [`of_model`], of a model that this program works with: asked again, it is what was said first. Files that are
/// replaced meanwhile are not what is in memory.
///
/// # Errors
/// As [`of_model`].
pub fn of_loaded_model(model: &Path) -> Result<String> {
    let place = model.canonicalize().with_context(|| model.display().to_string())?;
    let loaded = || LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = loaded().get(&place) {
        return Ok(known.clone());
    }
    let digest = of_model(model)?;
    loaded().insert(place, digest.clone());
    Ok(digest)
}

/// Forgets the digests in memory, as another command begins.
pub fn forget_loaded() {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// What a model's files hold: its weights, and the configurations and vocabularies beside them.
///
/// # Errors
/// Names the file when one cannot be read.
pub fn of_model(model: &Path) -> Result<String> {
    let mut files = Vec::new();
    if model.is_dir() {
        parts(model, 1, &mut files)?;
    } else {
        files.push(model.to_owned());
        files.extend(Some(model.with_file_name("tokenizer.json")).filter(|file| file.is_file()));
    }
    let named = |path: PathBuf| {
        let name = path.strip_prefix(model).unwrap_or(Path::new("")).display().to_string();
        Ok((name, of_file(&path)?))
    };
    let digests: BTreeMap<String, String> = files.into_iter().map(named).collect::<Result<_>>()?;
    Ok(digest(digests.iter().flat_map(|(name, content)| [name, content])))
}

/// The weights, configurations and vocabularies of a folder, and of those in it down to a depth.
fn parts(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    // Of several sets of weights the one that is read counts.
    let weights = weight_files(folder).unwrap_or_default();
    found.extend(weights.into_iter().filter(|path| path.is_file()));
    let read = || folder.display().to_string();
    for entry in fs::read_dir(folder).with_context(read)? {
        let path = entry.with_context(read)?.path();
        let is_text =
            ["json", "txt", "model"].iter().any(|ending| path.extension().is_some_and(|found| found == *ending));
        if path.is_dir() && depth > 0 {
            parts(&path, depth - 1, found)?;
        } else if path.is_file() && is_text {
            found.push(path);
        }
    }
    Ok(())
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
    fn a_model_is_another_when_a_byte_of_it_is_and_the_same_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, content: &str| {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), content).unwrap();
        };
        let inner = "0_Transformer/pytorch_model.bin";
        for (name, content) in
            [("config.json", "{}"), ("phi/config.json", "{}"), ("model.safetensors", "abc"), (inner, "abc")]
        {
            write(&format!("a/{name}"), content);
        }
        let before = of_model(&at("a")).unwrap();
        let time = fs::metadata(at("a/model.safetensors")).unwrap().modified().unwrap();
        for (name, other, back) in [
            ("model.safetensors", "abd", "abc"),
            ("config.json", "[]", "{}"),
            ("phi/config.json", "[]", "{}"),
            (inner, "abd", "abc"),
        ] {
            write(&format!("a/{name}"), other);
            File::options().write(true).open(at(&format!("a/{name}"))).unwrap().set_modified(time).unwrap();
            assert_ne!(of_model(&at("a")).unwrap(), before, "{name}: same size, same time");
            write(&format!("a/{name}"), back);
        }
        assert_eq!(of_loaded_model(&at("a")).unwrap(), before);
        write("a/config.json", "[]");
        assert_eq!(of_loaded_model(&at("a")).unwrap(), before, "what is in memory");
        write("a/config.json", "{}");
        write("a/README.md", "not read");
        fs::rename(at("a"), at("b")).unwrap();
        assert_eq!(of_model(&at("b")).unwrap(), before);
        assert!(of_model(&at("missing")).is_err());
    }
}
