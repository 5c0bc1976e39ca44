//! What a model reads of pictures, kept on disk: their codes, or their features. Reading is among the longest of all work at
//! full size.
//!
//! A file per image tokenizer or vision tower, which only grows, with a fixed number of bytes per picture: half the SHA-256
//! of its file, its numbers, and a checksum.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::log::{CacheLog, Place};
use crate::run::sharing::Sharing;

/// The key of a picture: the first half of the SHA-256 of its file.
pub type PictureKey = [u8; 16];

/// The key of a picture, from the bytes of its file.
pub fn key(file: &[u8]) -> PictureKey {
    let mut key = PictureKey::default();
    key.copy_from_slice(&Sha256::digest(file)[..16]);
    key
}

/// The codes that one image tokenizer gave.
pub type KnownCodes = Known<u32>;

/// The features that one vision tower gave.
pub type KnownFeatures = Known<f32>;

/// A number of four bytes.
pub trait Number: Copy {
    /// Its bytes, the lowest first.
    fn bytes(self) -> [u8; 4];

    /// The number of these bytes.
    fn of(bytes: [u8; 4]) -> Self;
}

impl Number for u32 {
    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }

    fn of(bytes: [u8; 4]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

impl Number for f32 {
    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }

    fn of(bytes: [u8; 4]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

/// The numbers that one model read of each picture.
#[derive(Debug)]
pub struct Known<N> {
    log: CacheLog,
    /// Numbers per picture.
    tokens: usize,
    /// The place of a picture's entry by half its key; the entry has all of it.
    places: HashMap<[u8; 8], Place>,
    numbers: PhantomData<N>,
}

/// Where an entry is, to be read later.
#[derive(Debug, Clone)]
pub struct Stored {
    path: PathBuf,
    offset: u64,
    key: PictureKey,
    count: usize,
}

impl Stored {
    /// The numbers.
    ///
    /// # Errors
    /// Names the file when it cannot be read or the entry is damaged, and what to do.
    pub fn read<N: Number>(&self) -> Result<Vec<N>> {
        let mut entry = vec![0; entry_bytes(self.count)];
        let read = || -> std::io::Result<()> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.offset))?;
            file.read_exact(&mut entry)
        };
        let name = || format!("{}: run the same command again", self.path.display());
        let mut read = read;
        read().with_context(name)?;
        sound(&entry, &self.key).context("an entry is damaged").with_context(name)
    }
}

/// The numbers of an entry; nothing where it is damaged or another picture's.
fn sound<N: Number>(entry: &[u8], key: &PictureKey) -> Option<Vec<N>> {
    let (content, sum) = entry.split_at(entry.len() - 8);
    if *sum != checksum(content) || content[..key.len()] != *key {
        return None;
    }
    let (numbers, _) = content[key.len()..].as_chunks::<4>();
    Some(numbers.iter().map(|bytes| N::of(*bytes)).collect())
}

impl<N: Number> Known<N> {
    /// Opens the file of pictures that have `tokens` numbers each; it need not be there yet.
    ///
    /// # Errors
    /// Names the file when it is there and cannot be read.
    pub fn open(path: &Path, tokens: usize, sharing: &Sharing) -> Result<Self> {
        let (mut log, mut places) = (CacheLog::open(path, Some(entry_bytes(tokens)), sharing)?, HashMap::new());
        log.each(|place, entry| {
            places.insert(half(entry), place);
        })?;
        Ok(Self { log, tokens, places, numbers: PhantomData })
    }

    /// The numbers of a picture; none where its entry is damaged.
    pub fn get(&mut self, key: &PictureKey) -> Option<Vec<N>> {
        let place = *self.places.get(&half(key))?;
        let entry = self.log.read(place, entry_bytes(self.tokens)).ok()?;
        let found = sound(&entry, key);
        if found.is_none() {
            self.places.remove(&half(key)); // it is kept anew
        }
        found
    }

    /// Where the numbers of a picture are, to be read later: until [`Self::settle`] moves what several processes kept.
    pub fn stored(&self, key: &PictureKey) -> Option<Stored> {
        let (path, offset) = self.log.locate(*self.places.get(&half(key))?);
        Some(Stored { path: path.to_owned(), offset, key: *key, count: self.tokens })
    }

    /// Whether files of several processes lie beside the cache, which [`Self::settle`] takes over.
    pub fn is_scattered(&self) -> bool {
        self.log.is_scattered()
    }

    /// Keeps numbers, behind the last whole entry; not those of a picture that was encoded again because it was opened
    /// before its numbers were known, so that what the file holds depends on no thread's pace.
    ///
    /// # Errors
    /// Names the file when it cannot be written.
    pub fn put<'c>(&mut self, new: impl Iterator<Item = (&'c PictureKey, &'c Vec<N>)>) -> Result<()>
    where
        N: 'c,
    {
        let (mut entries, mut keys) = (Vec::new(), Vec::new());
        for (key, codes) in new {
            if self.places.contains_key(&half(key)) || keys.contains(key) {
                continue;
            }
            let mut entry = key.to_vec();
            codes.iter().for_each(|code| entry.extend_from_slice(&code.bytes()));
            entry.extend_from_slice(&checksum(&entry));
            entries.push(entry);
            keys.push(*key);
        }
        if keys.is_empty() {
            return Ok(());
        }
        let places = self.log.append(&entries).context("cannot keep what was read of pictures")?;
        self.places.extend(keys.iter().map(|key| half(key)).zip(places));
        Ok(())
    }

    /// Puts what several processes kept in order, at the end of a stage.
    ///
    /// # Errors
    /// When a file cannot be written, or another process is gone.
    pub fn settle(&mut self) -> Result<()> {
        let mut seen = HashSet::new();
        self.log.settle(|entry| {
            let (content, sum) = entry.split_at(entry.len() - 8);
            *sum == checksum(content) && seen.insert(half(entry))
        })
    }
}

/// Bytes of the entry of a picture with so many numbers.
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
        let mut known = KnownCodes::open(&path, 3, &Sharing::default()).unwrap();
        assert_eq!(known.get(&a), None);
        known.put([(&a, &vec![1, 2, 70_000]), (&b, &vec![4, 5, 6])].into_iter()).unwrap();
        assert_eq!(known.get(&a), Some(vec![1, 2, 70_000]));
        let length = std::fs::metadata(&path).unwrap().len();
        known.put([(&a, &vec![1, 2, 70_000])].into_iter()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length, "kept once");

        // A kill in the middle of the second entry.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let mut known = KnownCodes::open(&path, 3, &Sharing::default()).unwrap();
        assert_eq!((known.get(&a), known.get(&b)), (Some(vec![1, 2, 70_000]), None));
        known.put([(&c, &vec![7, 8, 9])].into_iter()).unwrap();
        let mut known = KnownCodes::open(&path, 3, &Sharing::default()).unwrap();
        assert_eq!((known.get(&b), known.get(&c)), (None, Some(vec![7, 8, 9])));

        // A bit that turned over, and a file of something else.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(KnownCodes::open(&path, 3, &Sharing::default()).unwrap().get(&a), None);
        std::fs::write(&path, "nothing of the kind, but long enough for an entry").unwrap();
        let mut known = KnownCodes::open(&path, 3, &Sharing::default()).unwrap();
        assert_eq!(known.get(&a), None);
        known.put([(&a, &vec![1, 2, 3])].into_iter()).unwrap();
        assert_eq!(known.get(&a), Some(vec![1, 2, 3]));
    }
}
