//! The codes of pictures, kept on disk: encoding is among the longest of all work at full size.
//!
//! A file per image tokenizer, which only grows, with a fixed number of bytes per picture: half the SHA-256 of its file,
//! its codes, and a checksum.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use hermesflow_records::AppendLog;
use sha2::{Digest, Sha256};

/// The key of a picture: the first half of the SHA-256 of its file.
pub type PictureKey = [u8; 16];

/// The key of a picture, from the bytes of its file.
pub fn key(file: &[u8]) -> PictureKey {
    let mut key = PictureKey::default();
    key.copy_from_slice(&Sha256::digest(file)[..16]);
    key
}

/// The codes that one image tokenizer gave.
#[derive(Debug)]
pub struct KnownCodes {
    log: AppendLog,
    /// Codes per picture.
    tokens: usize,
    /// The offset of a picture's entry by half its key; the entry has all of it.
    places: HashMap<[u8; 8], u64>,
}

impl KnownCodes {
    /// Opens the file of pictures that have `tokens` codes each; it need not be there yet.
    ///
    /// # Errors
    /// Names the file when it is there and cannot be read.
    pub fn open(path: &Path, tokens: usize) -> Result<Self> {
        let (mut log, mut places) = (AppendLog::of_size(path, entry_bytes(tokens))?, HashMap::new());
        log.each(|offset, entry| {
            places.insert(half(entry), offset);
        })?;
        Ok(Self { log, tokens, places })
    }

    /// The codes of a picture; none where its entry is damaged.
    pub fn get(&mut self, key: &PictureKey) -> Option<Vec<u32>> {
        let place = *self.places.get(&half(key))?;
        let entry = self.log.read(place, entry_bytes(self.tokens)).ok()?;
        let (content, sum) = entry.split_at(entry.len() - 8);
        if *sum != checksum(content) || content[..key.len()] != *key {
            self.places.remove(&half(key)); // it is kept anew
            return None;
        }
        let (codes, _) = content[key.len()..].as_chunks::<4>();
        Some(codes.iter().map(|code| u32::from_le_bytes(*code)).collect())
    }

    /// Keeps codes, behind the last whole entry; not those of a picture that was encoded again because it was opened
    /// before its codes were known, so that what the file holds depends on no thread's pace.
    ///
    /// # Errors
    /// Names the file when it cannot be written.
    pub fn put<'c>(&mut self, new: impl Iterator<Item = (&'c PictureKey, &'c Vec<u32>)>) -> Result<()> {
        let (mut bytes, mut keys) = (Vec::new(), Vec::new());
        for (key, codes) in new {
            if self.places.contains_key(&half(key)) || keys.contains(key) {
                continue;
            }
            let start = bytes.len();
            bytes.extend_from_slice(key);
            codes.iter().for_each(|code| bytes.extend_from_slice(&code.to_le_bytes()));
            bytes.extend_from_slice(&checksum(&bytes[start..]));
            keys.push(*key);
        }
        if keys.is_empty() {
            return Ok(());
        }
        let mut offset = self.log.append(&bytes).context("cannot keep the codes of pictures")?;
        for key in keys {
            self.places.insert(half(&key), offset);
            offset += entry_bytes(self.tokens) as u64;
        }
        Ok(())
    }
}

/// Bytes of the entry of a picture with so many codes.
fn entry_bytes(tokens: usize) -> usize {
    size_of::<PictureKey>() + 4 * tokens + 8
}

/// The first half of a key, with which an entry begins, too.
fn half(key: &[u8]) -> [u8; 8] {
    let mut half = [0; 8];
    half.copy_from_slice(&key[..8]);
    half
}

fn checksum(content: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&Sha256::digest(content)[..8]);
    sum
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn codes_are_known_again_and_damaged_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codes/vq-64.bin");
        let (a, b, c) = ([1; 16], [2; 16], [3; 16]);
        let mut known = KnownCodes::open(&path, 3).unwrap();
        assert_eq!(known.get(&a), None);
        known.put([(&a, &vec![1, 2, 70_000]), (&b, &vec![4, 5, 6])].into_iter()).unwrap();
        assert_eq!(known.get(&a), Some(vec![1, 2, 70_000]));
        let length = std::fs::metadata(&path).unwrap().len();
        known.put([(&a, &vec![1, 2, 70_000])].into_iter()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length, "kept once");

        // A kill in the middle of the second entry.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let mut known = KnownCodes::open(&path, 3).unwrap();
        assert_eq!((known.get(&a), known.get(&b)), (Some(vec![1, 2, 70_000]), None));
        known.put([(&c, &vec![7, 8, 9])].into_iter()).unwrap();
        let mut known = KnownCodes::open(&path, 3).unwrap();
        assert_eq!((known.get(&b), known.get(&c)), (None, Some(vec![7, 8, 9])));

        // A bit that turned over, and a file of something else.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(KnownCodes::open(&path, 3).unwrap().get(&a), None);
        std::fs::write(&path, "nothing of the kind, but long enough for an entry").unwrap();
        let mut known = KnownCodes::open(&path, 3).unwrap();
        assert_eq!(known.get(&a), None);
        known.put([(&a, &vec![1, 2, 3])].into_iter()).unwrap();
        assert_eq!(known.get(&a), Some(vec![1, 2, 3]));
    }
}
