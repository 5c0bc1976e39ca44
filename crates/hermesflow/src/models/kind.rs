//! What this program asks of a kind of model beside the traits of `hermesflow-models`: its files, its facts before it is
//! opened, random checkpoints, other layouts.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use hermesflow_models::cost::Costs;
use hermesflow_models::{FileFormat, Model, Weights};
use image::RgbImage;
use serde_json::Value;

use super::hub::Parts;
use crate::config::{BackboneName, Facts, ModelSettings};
use crate::progress::Progress;

/// One kind of model.
pub trait Kind: Sync {
    /// The kind's name.
    fn name(&self) -> BackboneName;

    /// Whether a `config.json` is that of a checkpoint of this kind.
    fn has(&self, config: &Value) -> bool;

    /// Whether a checkpoint of this kind was published under a name.
    fn publishes(&self, name: &str) -> bool;

    /// What is known of a checkpoint that was published under these names; none of one that is not known.
    ///
    /// # Errors
    /// Never for the names that are known.
    fn published(&self, settings: &ModelSettings) -> Result<Option<About>>;

    /// The checkpoints that a model is read from.
    fn sources(&self, settings: &ModelSettings) -> Vec<Source>;

    /// What the headers of the files say, which lie at the places of [`Kind::sources`].
    ///
    /// # Errors
    /// Names the file that is missing, broken or does not fit.
    fn about(&self, places: &[PathBuf]) -> Result<About>;

    /// Opens the model of some settings.
    ///
    /// # Errors
    /// Names the file that is missing, broken or does not fit, or the number of `model.expect` that it does not have.
    fn open(&self, settings: &ModelSettings, progress: &Progress) -> Result<Model>;

    /// Opens what was trained in a folder, with whatever of the model of the settings is not trained.
    ///
    /// # Errors
    /// As [`Kind::open`].
    fn open_trained(&self, settings: &ModelSettings, folder: &Path, progress: &Progress) -> Result<Model>;

    /// Loads the image tokenizer.
    ///
    /// # Errors
    /// As [`Kind::open`].
    fn image_tokenizer(&self, settings: &ModelSettings, progress: &Progress) -> Result<Box<dyn ImageTokenizer>>;

    /// A digest of the files that decide which codes, and which features, a picture has.
    ///
    /// # Errors
    /// When a file cannot be read.
    fn eyes(&self, settings: &ModelSettings, progress: &Progress) -> Result<String>;

    /// Digests of the files of a model by what they are, such as `model.vq`: `first` where it is the run's own model, and
    /// not one that was trained on it.
    ///
    /// # Errors
    /// When a file is missing or cannot be read.
    fn files(&self, settings: &ModelSettings, first: bool, progress: &Progress) -> Result<Vec<(String, String)>>;

    /// Writes a checkpoint with random weights.
    ///
    /// # Errors
    /// Names the argument that this kind has no use for, or the file that cannot be written.
    fn random(&self, wanted: &RandomModel, folder: &Path) -> Result<()>;

    /// The small files that belong to weights, by their names in a new folder; nothing where `config.json` is of another
    /// kind.
    ///
    /// # Errors
    /// When weights and configuration do not fit each other.
    fn small_files(&self, folder: &Path, config: &Value, weights: &Weights) -> Result<Option<Vec<SmallFile>>>;
}

/// A file beside weights: its name and its bytes.
pub type SmallFile = (String, Vec<u8>);

/// A checkpoint that a model is read from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The key that names it.
    pub key: &'static str,
    /// The folder, or the name on the hub.
    pub name: String,
    /// What of it is read.
    pub parts: Parts,
}

/// What is known of a model before its weights are read.
#[derive(Debug)]
pub struct About {
    /// What `model.expect` is compared with.
    pub facts: Facts,
    /// What its work costs, on the CPU.
    pub costs: Box<dyn Costs>,
    /// Whether its captions can be trained.
    pub trains_captions: bool,
    /// A further checkpoint that is needed.
    pub further: Option<Source>,
}

/// An image tokenizer alone.
pub trait ImageTokenizer {
    /// The side of the model's square pictures, in pixels.
    fn side(&self) -> usize;

    /// The pictures through image tokens and back.
    ///
    /// # Errors
    /// When a picture has another size.
    fn reconstruct(&self, pictures: &[RgbImage]) -> Result<Vec<RgbImage>>;
}

/// How large a random model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// Two blocks of width 32, pictures of 4×4 tokens
    Tiny,
    /// Eight blocks of width 512 with the published vocabulary and image tokenizer
    Medium,
    /// The published model: 24 blocks of width 2048
    Full,
}

/// A checkpoint with random weights that is wanted.
#[derive(Debug, Clone)]
pub struct RandomModel {
    /// How large it is.
    pub size: Size,
    /// The side of its pictures in pixels, where that is asked for.
    pub resolution: Option<usize>,
    /// The blocks of its decoder, where these are asked for.
    pub layers: Option<usize>,
    /// The layout of the weights.
    pub format: FileFormat,
    /// The seed of the weights.
    pub seed: u64,
    /// Whether it understands images by features of CLIP.
    pub clip: bool,
}
