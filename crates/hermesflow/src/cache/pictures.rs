//! The one way of a picture from its file to a model: decoded and prepared ahead of the model, understood or encoded by
//! it, and encoded once: its codes are kept ([`super::codes`]) and stay the same from stage to stage and from one
//! iteration to the next. So are the features of pictures that records name, of which there are fewer than of generated ones
//! and which every iteration reads again.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use hermesflow_models::preprocess::{self, Centre, fit_square};
use hermesflow_models::{Device, ImageView, Prepared, Tensor, UnifiedModel};
use hermesflow_train::{OwnImage, StoredFeatures};
use image::RgbImage;

use super::codes::{KnownCodes, KnownFeatures, PictureKey, key};
use crate::digest::digest;
use crate::models;
use crate::run::context::RunContext;
use crate::run::pictures::Pictures;

/// Reads the pictures of one data root for one model.
pub struct PictureReader<'a, M> {
    model: &'a M,
    pictures: Pictures,
    codes: Mutex<KnownCodes>,
    kept: Option<Kept>,
}

/// The features of records' own pictures.
struct Kept {
    known: Mutex<KnownFeatures>,
    /// Rows and columns.
    shape: (usize, usize),
    /// A name of what computed them.
    eyes: String,
}

/// A picture that the model has to read.
pub struct ToRead {
    prepared: Prepared,
    /// Whether its features are kept.
    keep: bool,
}

/// A picture on its way to the model, which makes a `K` of a `P`.
pub enum Opened<K, P> {
    /// The result for the picture is cached.
    Known(K),
    /// The model still has to read the picture, which has this key.
    Picture(PictureKey, P),
}

/// A picture to be understood.
pub type OpenedView = Opened<ImageView, ToRead>;

/// A picture to be encoded, a square at the model's resolution.
pub type OpenedCodes = Opened<Vec<u32>, RgbImage>;

/// What is known of a picture's file: its key, its codes if they are cached, and what decodes its pixels.
type LookedUp<F> = (PictureKey, Option<Vec<u32>>, F);

impl<'a, M: UnifiedModel> PictureReader<'a, M> {
    /// Opens the cached image codes of a run.
    ///
    /// # Errors
    /// When the files of the image tokenizer, or the known codes, cannot be read.
    pub fn new(model: &'a M, run: &RunContext) -> Result<Self> {
        let eyes = models::eyes_identity(&run.config.model, &run.progress)?;
        let file = run.layout.codes().join(format!("{eyes}-{}-{}.bin", model.resolution(), preprocess::FITTING));
        let codes = Mutex::new(KnownCodes::open(&file, model.image_tokens(), &run.sharing)?);
        let keep = |shape: (usize, usize)| -> Result<Kept> {
            let file = run.layout.codes().join(format!("{eyes}-{}x{}.bin", shape.0, shape.1));
            let known = Mutex::new(KnownFeatures::open(&file, shape.0 * shape.1, &run.sharing)?);
            Ok(Kept { known, shape, eyes: eyes.clone() })
        };
        let kept = model.kept_features().map(keep).transpose()?;
        Ok(Self { model, pictures: Pictures::new(&run.layout, model.resolution()), codes, kept })
    }

    /// Decodes and prepares a picture that is to be understood; does not run the model, and can be called on any thread.
    ///
    /// # Errors
    /// Names the file when it is missing or broken, and what to do.
    pub fn open(&self, path: &Path) -> Result<OpenedView> {
        let (key, known, decode) = self.look_up(path)?;
        if let Some(view) = known.and_then(|codes| self.model.view_of_codes(codes)) {
            return Ok(Opened::Known(view));
        }
        Ok(Opened::Picture(key, ToRead { prepared: self.model.prepare(decode()?)?, keep: false }))
    }

    /// As [`PictureReader::open`], of a picture that a record names: what the model reads of it is kept. With its key.
    ///
    /// # Errors
    /// As [`PictureReader::open`].
    pub fn open_own(&self, path: &Path) -> Result<(PictureKey, OpenedView)> {
        let (key, known, decode) = self.look_up(path)?;
        if let Some(view) = known.and_then(|codes| self.model.view_of_codes(codes)) {
            return Ok((key, Opened::Known(view)));
        }
        if let Some(Kept { known, shape, .. }) = &self.kept
            && let Some(features) = lock(known).get(&key)
        {
            let features = Tensor::from_vec(features, *shape, &Device::Cpu)?;
            return Ok((key, Opened::Known(ImageView::Features(features))));
        }
        Ok((key, Opened::Picture(key, ToRead { prepared: self.model.prepare(decode()?)?, keep: true })))
    }

    /// Decodes a picture whose codes are wanted; does not run the model, and can be called on any thread.
    ///
    /// # Errors
    /// As [`PictureReader::open`].
    pub fn open_codes(&self, path: &Path) -> Result<OpenedCodes> {
        let (key, known, decode) = self.look_up(path)?;
        if let Some(codes) = known {
            return Ok(Opened::Known(codes));
        }
        Ok(Opened::Picture(key, fit_square(decode()?, self.model.resolution(), Centre::HalfToEven)?))
    }

    /// A picture's key and its codes, if they are known; and what decodes its pixels.
    fn look_up(&self, path: &Path) -> Result<LookedUp<impl FnOnce() -> Result<RgbImage>>> {
        let path = self.pictures.find(path)?;
        let bytes = preprocess::read(&path)?;
        let key = key(&bytes);
        let known = self.known().get(&key);
        Ok((key, known, move || Ok(preprocess::decode(&bytes, &path)?.into_rgb8())))
    }

    /// The pictures as the model understands them.
    ///
    /// # Errors
    /// When the model fails, or what it read cannot be kept.
    pub fn views(&self, opened: Vec<OpenedView>) -> Result<Vec<ImageView>> {
        complete(opened, |keys, pictures| {
            let keep: Vec<bool> = pictures.iter().map(|picture| picture.keep).collect();
            let pictures: Vec<Prepared> = pictures.into_iter().map(|picture| picture.prepared).collect();
            let views = self.model.understand(&pictures)?;
            let (mut codes, mut features) = (Vec::new(), Vec::new());
            for ((key, view), keep) in keys.iter().zip(&views).zip(keep) {
                match view {
                    ImageView::Codes(found) => codes.push((key, found)),
                    ImageView::Features(found) if keep && self.kept.is_some() => {
                        features.push((key, found.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>()?));
                    }
                    ImageView::Features(_) => {}
                }
            }
            self.known().put(codes.into_iter())?;
            if let Some(kept) = &self.kept {
                lock(&kept.known).put(features.iter().map(|(key, features)| (*key, features)))?;
            }
            Ok(views)
        })
    }

    /// The codes of pictures.
    ///
    /// # Errors
    /// As [`PictureReader::views`].
    pub fn codes(&self, opened: Vec<OpenedCodes>) -> Result<Vec<Vec<u32>>> {
        complete(opened, |keys, pictures| {
            let codes = self.model.encode_images(&pictures)?;
            self.known().put(keys.iter().zip(&codes))?;
            Ok(codes)
        })
    }

    /// Records' own pictures as training reads them: codes, or features that are stored and read when they are needed, for
    /// as long as [`Self::settle`] moves nothing.
    ///
    /// # Errors
    /// As [`PictureReader::views`].
    pub fn own_images(&self, opened: Vec<(PictureKey, OpenedView)>) -> Result<Vec<OwnImage>> {
        let (keys, opened): (Vec<PictureKey>, Vec<OpenedView>) = opened.into_iter().unzip();
        let own = |(key, view): (PictureKey, ImageView)| match view {
            ImageView::Codes(codes) => Ok(OwnImage::from(codes)),
            ImageView::Features(_) => self.stored(&key).map(OwnImage::Features),
        };
        keys.into_iter().zip(self.views(opened)?).map(own).collect()
    }

    /// Puts what several processes kept in order, at the end of a stage.
    ///
    /// # Errors
    /// When a file cannot be written, or another process is gone.
    pub fn settle(&self) -> Result<()> {
        self.known().settle()?;
        self.kept.as_ref().map_or(Ok(()), |kept| lock(&kept.known).settle())
    }

    /// Whether what is kept goes to files beside the caches, until [`Self::settle`] moves it.
    pub fn is_scattered(&self) -> bool {
        self.known().is_scattered() || self.kept.as_ref().is_some_and(|kept| lock(&kept.known).is_scattered())
    }

    /// The features of a picture where they are stored.
    fn stored(&self, key: &PictureKey) -> Result<StoredFeatures> {
        let kept = self.kept.as_ref().context("the features of this kind of model are not kept")?;
        let stored = lock(&kept.known).stored(key).context("the features of a picture are not stored")?;
        let identity = digest([kept.eyes.as_bytes(), key.as_slice()]);
        let shape = kept.shape;
        Ok(StoredFeatures::new(identity, move || Ok(Tensor::from_vec(stored.read::<f32>()?, shape, &Device::Cpu)?)))
    }

    fn known(&self) -> MutexGuard<'_, KnownCodes> {
        lock(&self.codes)
    }
}

fn lock<T>(held: &Mutex<T>) -> MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known, and what `make` makes of the others, in their order.
fn complete<K, P>(
    opened: Vec<Opened<K, P>>,
    make: impl FnOnce(Vec<PictureKey>, Vec<P>) -> Result<Vec<K>>,
) -> Result<Vec<K>> {
    let (mut keys, mut pictures, mut known) = (Vec::new(), Vec::new(), Vec::with_capacity(opened.len()));
    for opened in opened {
        known.push(match opened {
            Opened::Known(known) => Some(known),
            Opened::Picture(key, picture) => {
                keys.push(key);
                pictures.push(picture);
                None
            }
        });
    }
    let mut made = make(keys, pictures)?.into_iter();
    Ok(known.into_iter().filter_map(|known| known.or_else(|| made.next())).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::RunConfig;
    use crate::progress::Progress;
    use hermesflow_models::{ImagineJob, ImagineOptions, Reply, ReplyRequest};

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
        fn decode_images(&self, _: &[Vec<u32>]) -> hermesflow_models::Result<Vec<RgbImage>> {
            unreachable!()
        }
        fn decode_grids(&self, _: &[Vec<u32>], _: usize, _: usize) -> hermesflow_models::Result<Vec<RgbImage>> {
            unreachable!()
        }
        fn prepare(&self, picture: RgbImage) -> hermesflow_models::Result<Prepared> {
            Ok(Prepared::new(picture))
        }
        fn understand(&self, pictures: &[Prepared]) -> hermesflow_models::Result<Vec<ImageView>> {
            let pictures: Vec<RgbImage> = pictures.iter().map(|picture| picture.pixels().clone()).collect();
            Ok(self.encode_images(&pictures)?.into_iter().map(ImageView::Codes).collect())
        }
        fn view_of_codes(&self, codes: Vec<u32>) -> Option<ImageView> {
            Some(ImageView::Codes(codes))
        }
        fn reply(&self, _: &ImageView, _: &[ReplyRequest]) -> hermesflow_models::Result<Vec<Reply>> {
            unreachable!()
        }
        fn score_replies(
            &self,
            _: &[(&ImageView, &[hermesflow_models::GivenReply])],
        ) -> hermesflow_models::Result<Vec<Vec<hermesflow_models::Likelihood>>> {
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
        let run = RunContext::new(config, 1, Progress::stderr());
        let draw = |name: &str, red: u8| {
            RgbImage::from_pixel(4, 4, image::Rgb([red, 0, 0])).save(folder.path().join(name)).unwrap();
        };
        draw("a.png", 1);
        draw("b.png", 2);
        let model = Counting::default();
        let read = || {
            let reader = PictureReader::new(&model, &run).unwrap();
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
