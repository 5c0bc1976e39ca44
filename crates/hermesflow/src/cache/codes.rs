//! Pictures as a model reads them: decoded on a thread of their own, one chunk ahead of the model, and encoded once.
//!
//! The codes of a picture stay the same from stage to stage and from one iteration to the next, and encoding is among
//! the longest of all work at full size. They are kept in `.codes/` beside the data: a file per image tokenizer that only
//! grows, with a fixed number of bytes per picture: half the SHA-256 of its file, its codes, and a checksum.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use hermesflow_models::preprocess::{self, Centre, fit_square};
use hermesflow_models::{ImageView, UnifiedModel};
use image::RgbImage;
use sha2::{Digest, Sha256};

use crate::config::ModelSettings;
use crate::models;
use crate::progress::Progress;
use crate::run::layout::RunLayout;
use crate::run::pictures::Pictures;

/// What tells a picture's file from others.
type Key = [u8; 16];

/// Reads the pictures of one data root for one model.
pub struct Reader<'a, M> {
    model: &'a M,
    pictures: Pictures,
    codes: Mutex<KnownCodes>,
}

/// A picture on its way to the model.
pub enum Opened {
    /// Its codes were known.
    Codes(Vec<u32>),
    /// It is still to be read.
    Picture(Key, RgbImage),
}

impl<'a, M: UnifiedModel> Reader<'a, M> {
    /// Opens what is known of the pictures of a run.
    ///
    /// # Errors
    /// When the files of the image tokenizer, or the known codes, cannot be read.
    pub fn new(model: &'a M, settings: &ModelSettings, layout: &RunLayout, progress: &Progress) -> Result<Self> {
        let tokenizer = models::image_tokenizer_identity(settings, progress)?;
        let file = layout.codes().join(format!("{tokenizer}-{}.bin", model.resolution()));
        let codes = Mutex::new(KnownCodes::open(file, model.image_tokens())?);
        Ok(Self { model, pictures: Pictures::new(layout, model.resolution()), codes })
    }

    /// Opens a picture that is to be understood, as far as it goes without the model; on any thread.
    ///
    /// # Errors
    /// Names the file when it is missing or broken, and what to do.
    pub fn open(&self, path: &Path) -> Result<Opened> {
        if self.model.reads_codes() {
            return self.open_codes(path);
        }
        let picture = self.model.fit(preprocess::load(&self.pictures.find(path)?)?)?;
        Ok(Opened::Picture(Key::default(), picture))
    }

    /// Opens a picture whose codes are wanted.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn open_codes(&self, path: &Path) -> Result<Opened> {
        let path = self.pictures.find(path)?;
        let bytes = preprocess::read(&path)?;
        let key = Sha256::digest(&bytes)[..16].try_into()?;
        if let Some(codes) = self.known().get(&key) {
            return Ok(Opened::Codes(codes));
        }
        let picture = preprocess::decode(&bytes, &path)?.into_rgb8();
        Ok(Opened::Picture(key, fit_square(picture, self.model.resolution(), Centre::HalfToEven)?))
    }

    /// The pictures as the model understands them.
    ///
    /// # Errors
    /// When the model fails, or new codes cannot be kept.
    pub fn views(&self, opened: Vec<Opened>) -> Result<Vec<ImageView>> {
        if self.model.reads_codes() {
            return Ok(self.codes(opened)?.into_iter().map(ImageView::Codes).collect());
        }
        let pictures = |opened| match opened {
            Opened::Picture(_, picture) => Some(picture),
            Opened::Codes(_) => None,
        };
        Ok(self.model.read_images(&opened.into_iter().filter_map(pictures).collect::<Vec<_>>())?)
    }

    /// The codes of pictures.
    ///
    /// # Errors
    /// As [`Reader::views`].
    pub fn codes(&self, opened: Vec<Opened>) -> Result<Vec<Vec<u32>>> {
        let (mut keys, mut pictures) = (Vec::new(), Vec::new());
        let mut codes = Vec::with_capacity(opened.len());
        for opened in opened {
            codes.push(match opened {
                Opened::Codes(codes) => Some(codes),
                Opened::Picture(key, picture) => {
                    keys.push(key);
                    pictures.push(picture);
                    None
                }
            });
        }
        let made = self.model.encode_images(&pictures)?;
        self.known().put(keys.iter().zip(&made))?;
        let mut made = made.into_iter();
        Ok(codes.into_iter().filter_map(|known| known.or_else(|| made.next())).collect())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, KnownCodes> {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file of the codes that one image tokenizer gave.
struct KnownCodes {
    path: PathBuf,
    tokens: usize,
    /// The number of a picture's entry by half its key; the entry has all of it.
    places: HashMap<[u8; 8], u32>,
    entries: u64,
    file: Option<File>,
}

impl KnownCodes {
    fn open(path: PathBuf, tokens: usize) -> Result<Self> {
        let mut known = Self { path, tokens, places: HashMap::new(), entries: 0, file: None };
        known.index().with_context(|| known.path.display().to_string())?;
        Ok(known)
    }

    fn entry_bytes(&self) -> usize {
        size_of::<Key>() + 4 * self.tokens + 8
    }

    fn index(&mut self) -> std::io::Result<()> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        self.entries = file.metadata()?.len() / self.entry_bytes() as u64;
        let mut from = std::io::BufReader::new(file);
        for number in 0..self.entries {
            let mut key = Key::default();
            from.read_exact(&mut key)?;
            from.seek_relative((self.entry_bytes() - key.len()) as i64)?;
            self.places.insert(half(&key), number as u32);
        }
        Ok(())
    }

    /// The codes of a picture; none where the entry is damaged.
    fn get(&mut self, key: &Key) -> Option<Vec<u32>> {
        let place = u64::from(*self.places.get(&half(key))?) * self.entry_bytes() as u64;
        let mut entry = vec![0; self.entry_bytes()];
        let file = self.file().ok()?;
        file.seek(SeekFrom::Start(place)).ok()?;
        file.read_exact(&mut entry).ok()?;
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
    fn put<'c>(&mut self, new: impl Iterator<Item = (&'c Key, &'c Vec<u32>)>) -> Result<()> {
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
        let end = self.entries * self.entry_bytes() as u64;
        let written = self.file().and_then(|file| {
            file.seek(SeekFrom::Start(end))?;
            file.write_all(&bytes)
        });
        written.with_context(|| format!("{}: cannot keep the codes of pictures", self.path.display()))?;
        for key in keys {
            self.places.insert(half(&key), self.entries as u32);
            self.entries += 1;
        }
        Ok(())
    }

    fn file(&mut self) -> std::io::Result<&mut File> {
        if self.file.is_none() {
            if let Some(folder) = self.path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.path)?;
            self.file = Some(file);
        }
        self.file.as_mut().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

fn half(key: &Key) -> [u8; 8] {
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
    use crate::config::RunConfig;
    use hermesflow_models::{ImagineJob, ImagineOptions, Reply, ReplyRequest};

    #[test]
    fn codes_are_known_again_and_damaged_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codes/vq-64.bin");
        let (a, b, c) = ([1; 16], [2; 16], [3; 16]);
        let mut known = KnownCodes::open(path.clone(), 3).unwrap();
        assert_eq!(known.get(&a), None);
        known.put([(&a, &vec![1, 2, 70_000]), (&b, &vec![4, 5, 6])].into_iter()).unwrap();
        assert_eq!(known.get(&a), Some(vec![1, 2, 70_000]));
        let length = std::fs::metadata(&path).unwrap().len();
        known.put([(&a, &vec![1, 2, 70_000])].into_iter()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length, "kept once");

        // A kill in the middle of the second entry.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let mut known = KnownCodes::open(path.clone(), 3).unwrap();
        assert_eq!((known.get(&a), known.get(&b)), (Some(vec![1, 2, 70_000]), None));
        known.put([(&c, &vec![7, 8, 9])].into_iter()).unwrap();
        let mut known = KnownCodes::open(path.clone(), 3).unwrap();
        assert_eq!((known.get(&b), known.get(&c)), (None, Some(vec![7, 8, 9])));

        // A bit that turned over, and a file of something else.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(KnownCodes::open(path.clone(), 3).unwrap().get(&a), None);
        std::fs::write(&path, "nothing of the kind, but long enough for an entry").unwrap();
        let mut known = KnownCodes::open(path, 3).unwrap();
        assert_eq!(known.get(&a), None);
        known.put([(&a, &vec![1, 2, 3])].into_iter()).unwrap();
        assert_eq!(known.get(&a), Some(vec![1, 2, 3]));
    }

    /// Counts the pictures that it encodes; a picture's codes are its first red values.
    #[derive(Default)]
    struct Counting {
        encoded: Mutex<usize>,
    }

    impl UnifiedModel for Counting {
        fn resolution(&self) -> usize {
            4
        }
        fn image_tokens(&self) -> usize {
            2
        }
        fn encode_images(&self, images: &[RgbImage]) -> hermesflow_models::Result<Vec<Vec<u32>>> {
            *self.encoded.lock().unwrap() += images.len();
            Ok(images.iter().map(|image| vec![image[(0, 0)][0].into(), image[(1, 0)][0].into()]).collect())
        }
        fn reads_codes(&self) -> bool {
            true
        }
        fn decode_images(&self, _: &[Vec<u32>]) -> hermesflow_models::Result<Vec<RgbImage>> {
            unreachable!()
        }
        fn decode_grids(&self, _: &[Vec<u32>], _: usize, _: usize) -> hermesflow_models::Result<Vec<RgbImage>> {
            unreachable!()
        }
        fn fit(&self, _: RgbImage) -> hermesflow_models::Result<RgbImage> {
            unreachable!()
        }
        fn read_images(&self, _: &[RgbImage]) -> hermesflow_models::Result<Vec<ImageView>> {
            unreachable!()
        }
        fn reply(&self, _: &ImageView, _: &[ReplyRequest]) -> hermesflow_models::Result<Vec<Reply>> {
            unreachable!()
        }
        fn check_question(&self, _: &str, _: usize) -> hermesflow_models::Result<()> {
            unreachable!()
        }
        fn cuts(&self, _: &str) -> hermesflow_models::Result<bool> {
            unreachable!()
        }
        fn imagine(&self, _: &[ImagineJob], _: &ImagineOptions) -> hermesflow_models::Result<Vec<Vec<u32>>> {
            unreachable!()
        }
    }

    #[test]
    fn a_picture_is_encoded_once_in_all_stages_and_again_when_it_changed() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = RunConfig::default();
        config.data.root = folder.path().into();
        config.model.showo = crate::config::EMBEDDED.into();
        let layout = RunLayout::new(&config, 1);
        let draw = |name: &str, red: u8| {
            RgbImage::from_pixel(4, 4, image::Rgb([red, 0, 0])).save(folder.path().join(name)).unwrap();
        };
        draw("a.png", 1);
        draw("b.png", 2);
        let model = Counting::default();
        let read = || {
            let reader = Reader::new(&model, &config.model, &layout, &Progress::stderr()).unwrap();
            let opened = ["a.png", "b.png", "a.png"].map(|name| reader.open(name.as_ref()).unwrap());
            let views = reader.views(opened.into()).unwrap();
            let codes = views.into_iter().map(|view| match view {
                ImageView::Codes(codes) => codes,
                ImageView::Features(_) => unreachable!(),
            });
            (codes.collect::<Vec<_>>(), std::mem::take(&mut *model.encoded.lock().unwrap()))
        };
        assert_eq!(read(), (vec![vec![1, 1], vec![2, 2], vec![1, 1]], 3));
        assert_eq!(read(), (vec![vec![1, 1], vec![2, 2], vec![1, 1]], 0));
        draw("b.png", 3);
        assert_eq!(read(), (vec![vec![1, 1], vec![3, 3], vec![1, 1]], 1));
    }
}
