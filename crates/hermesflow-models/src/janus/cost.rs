//! What a Janus-Pro costs before it is loaded: bytes of memory and floating-point operations of each kind of work, computed
//! from its configuration alone.
//!
//! Memory is the weights, the key/value cache, and the activations that exist at the same time, as [`super::llama`],
//! [`super::siglip`], [`super::vq`] and the block of `hermesflow-nn` (`ops/llama_block/`) allocate them. Operations are two
//! per weight and row, plus the products of attention.

mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device};
use hermesflow_nn::ops::{self, Products};
use hermesflow_nn::weights;

use super::config::JanusConfig;
use super::picture_tokenizer::PictureTokenizer;
use super::training::{self, TRAINED};
use super::vq;
use super::{check_files, imagine, parameter_shapes};
use crate::Result;
use crate::cost::{Cost, Costs, Task, TrainedSides, TrainingCost, TrainingWork};
use crate::model::{ImagineOptions, NextCodeOptions};
use crate::showo::reply;

/// Bytes of an activation in f32.
const F32: u64 = 4;
/// Full-resolution feature maps that exist at the same time in a residual block of the image tokenizer.
const FEATURE_MAPS: u64 = 6;
/// Feature maps' worth of memory of a GPU's convolution, which copies the neighbours of each pixel.
const UNFOLDED: u64 = 9;
/// Which parts are read for what. Of the table of words, which is not here, a few rows are.
const READ: [(&str, &[Task]); 10] = {
    use Task::{Pictures, Replies};
    [
        ("vision_model.vision_tower.", &[Replies]),
        ("aligner.", &[Replies]),
        ("language_model.model.layers.", &[Replies, Pictures]),
        ("language_model.model.norm.", &[Replies, Pictures]),
        ("language_model.lm_head.", &[Replies]),
        ("gen_embed.", &[Pictures]),
        ("gen_aligner.", &[Pictures]),
        ("gen_head.", &[Pictures]),
        ("gen_vision_model.decoder.", &[Pictures]),
        ("gen_vision_model.post_quant_conv.", &[Pictures]),
    ]
};
/// Tokens of what stands before a picture that is read: the system text and the beginning of the user's turn.
const BEFORE: usize = 60;

/// The sizes of a model that decide its costs.
#[derive(Debug, Clone)]
pub struct Sizes {
    config: JanusConfig,
    vq: Vec<(String, Vec<usize>)>,
    /// The parameters of everything but the image tokenizer.
    parameters: Vec<Parameter>,
    /// The types in the file of those parameters that stay there, memory-mapped, where they are held in this type.
    in_file: BTreeMap<String, DType>,
    /// Whether the model runs on a GPU, and the type of its keys and values: of replies, and of pictures that are drawn.
    gpu: bool,
    kept: DType,
    drawn: DType,
}

/// A parameter, how many numbers it is, and whether it is held in f32 whatever the type of matrices.
#[derive(Debug, Clone)]
struct Parameter {
    name: String,
    count: u64,
    is_vector: bool,
}

impl Parameter {
    /// Bytes where matrices are held as `dtype`.
    fn bytes(&self, dtype: DType) -> u64 {
        self.count * self.held(dtype).size_in_bytes() as u64
    }

    /// Its type where matrices are held as `dtype`.
    fn held(&self, dtype: DType) -> DType {
        if self.is_vector { DType::F32 } else { dtype }
    }
}

impl Sizes {
    /// The sizes of a model with this configuration.
    ///
    /// # Errors
    /// Never for a configuration that was read.
    pub fn new(config: &JanusConfig) -> Result<Self> {
        let shapes = parameter_shapes(config)?.into_iter().filter(|(name, _)| !name.starts_with(vq::ROOT));
        let parameter = |(name, shape): (String, Vec<usize>)| {
            let is_vector = shape.len() == 1 || name.ends_with("pos_embed");
            Parameter { name, count: shape.iter().product::<usize>() as u64, is_vector }
        };
        let vq = PictureTokenizer::parameter_shapes(&config.vq)?;
        Ok(Self {
            config: config.clone(),
            vq,
            parameters: shapes.map(parameter).collect(),
            in_file: BTreeMap::new(),
            gpu: false,
            kept: DType::F32,
            drawn: DType::F32,
        })
    }

    /// The sizes of the checkpoint in a folder, whose headers are checked.
    ///
    /// # Errors
    /// As [`super::check_files`].
    pub fn of_files(folder: &Path) -> Result<(JanusConfig, Self)> {
        let config = check_files(folder)?;
        let sizes = Self::new(&config)?;
        let infos = weights::tensor_infos(folder)?.into_iter().filter(|info| info.stays_in_file(info.dtype));
        Ok((config, Self { in_file: infos.map(|info| (info.name, info.dtype)).collect(), ..sizes }))
    }

    /// The sizes of a checkpoint as it was published: all of it in bf16.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn published(config: &JanusConfig) -> Result<Self> {
        let sizes = Self::new(config)?;
        let names =
            sizes.parameters.iter().map(|parameter| &parameter.name).chain(sizes.vq.iter().map(|(name, _)| name));
        Ok(Self { in_file: names.map(|name| (name.clone(), DType::BF16)).collect(), ..sizes })
    }

    /// Whether a parameter held as `dtype` is in memory while the model does something.
    fn is_in_memory(&self, task: Task, name: &str, dtype: DType) -> bool {
        let stays = !self.gpu && self.in_file.get(name) == Some(&dtype);
        !stays
            || task == Task::Training
            || READ.iter().any(|(part, tasks)| name.starts_with(part) && tasks.contains(&task))
    }

    /// The parameters of some parts; of none, those that are trained by default.
    fn of<'a>(&'a self, parts: &'a [String]) -> impl Iterator<Item = &'a Parameter> {
        self.parameters.iter().filter(move |Parameter { name, .. }| match parts {
            [] => TRAINED.iter().any(|part| name.starts_with(part)),
            parts => parts.iter().any(|part| name.starts_with(part)),
        })
    }

    fn hidden(&self) -> u64 {
        self.config.language.hidden_size as u64
    }

    fn mlp(&self) -> u64 {
        self.config.language.intermediate_size as u64
    }

    fn blocks(&self) -> u64 {
        self.config.language.num_hidden_layers as u64
    }

    /// Width of all keys, or all values, of a token.
    fn keys(&self) -> u64 {
        (self.config.language.key_heads() * self.config.language.head_size()) as u64
    }

    /// Bytes of the key/value cache per token, kept in a type.
    fn cache_row(&self, kept: DType) -> u64 {
        2 * self.blocks() * self.keys() * kept.size_in_bytes() as u64
    }

    /// Operations of the LLaMA for one token that attends to `keys` keys, without a head.
    fn row(&self, keys: f64) -> f64 {
        let hidden = self.hidden();
        let block = 2 * hidden * hidden + 2 * hidden * self.keys() + 3 * hidden * self.mlp();
        self.blocks() as f64 * (2.0 * block as f64 + 4.0 * keys * hidden as f64)
    }

    /// Operations of the text head for one token.
    fn text_head(&self) -> f64 {
        2.0 * self.hidden() as f64 * self.config.language.vocab_size as f64
    }

    /// Operations of the head over the codes for one token, and of embedding a code.
    fn code_head(&self) -> f64 {
        let head = &self.config.gen_head;
        2.0 * (head.input * head.inner + head.inner * head.codes) as f64 + 2.0 * (self.hidden() * self.hidden()) as f64
    }

    /// Bytes of a pass of the LLaMA over `rows` tokens: the residual stream, its norm, queries, keys and values, or the
    /// parts of the feed-forward layer.
    fn pass(&self, rows: u64) -> u64 {
        rows * (6 * self.hidden() + 4 * self.keys()).max(3 * self.hidden() + 3 * self.mlp()) * F32
    }

    /// The cost of the vision tower's features of `images` images, aligned.
    fn read(&self, images: usize) -> Cost {
        let vision = &self.config.vision;
        let (width, mlp, patches) = (vision.width as u64, vision.mlp_width as u64, vision.patches() as u64);
        let block = 2.0 * (4 * width * width + 2 * width * mlp) as f64 + 4.0 * (patches * width) as f64;
        let tower = vision.blocks as f64 * block * patches as f64;
        let aligner = 2.0 * (width * self.hidden() + self.hidden() * self.hidden()) as f64 * patches as f64;
        let together = images.clamp(1, super::together(self.gpu)) as u64;
        let bytes = together * patches * (5 * width).max(2 * width + 2 * mlp) * F32;
        Cost { bytes, operations: images as f64 * (tower + aligner) }
    }

    /// The cost of the encoder (or the decoder) of the image tokenizer over `images` images.
    fn convolutions(&self, part: &str, images: usize) -> Cost {
        let side = self.config.resolution() as u64;
        let channels = if part == "encoder" { &self.config.vq.encoder } else { &self.config.vq.decoder };
        let levels = channels.len();
        let level = |name: &str| match name.split('.').skip(1).collect::<Vec<_>>()[..] {
            // The encoder's levels run from the picture down, the decoder's from the coarsest up.
            ["encoder", "conv_blocks" | "down", level, ..] | ["decoder", "up", level, ..] => level.parse().unwrap_or(0),
            ["decoder", "conv_blocks", level, ..] => levels - 1 - level.parse::<usize>().unwrap_or(0).min(levels - 1),
            ["encoder", "conv_in", ..] | ["decoder", "conv_out", ..] => 0,
            _ => levels - 1,
        };
        let pixels = |name: &str| ((side >> level(name)) * (side >> level(name))) as f64;
        let start = format!("{}.{part}", vq::ROOT.trim_end_matches('.'));
        let of = self.vq.iter().filter(|(name, shape)| name.starts_with(&start) && shape.len() == 4);
        let operations: f64 = of.map(|(name, shape)| 2.0 * shape.iter().product::<usize>() as f64 * pixels(name)).sum();
        let together = vq::batch((side * side) as usize).min(images.max(1)) as u64;
        let map = |level: usize| channels[level] as u64 * (side >> level) * (side >> level);
        let heaviest = (0..levels).map(map).max().unwrap_or(0);
        let maps = if self.gpu { FEATURE_MAPS + UNFOLDED } else { FEATURE_MAPS };
        Cost { bytes: together * maps * heaviest * F32, operations: operations * images as f64 }
    }

    /// The cost of replies about images that are read already.
    fn replies(&self, images: usize, questions: usize, samples: usize, words: usize, length: usize) -> Cost {
        let block = BEFORE + self.config.image_tokens;
        let replies = questions * samples;
        let rows = block + questions * words + replies * length;
        let together =
            reply::images_together(images, replies, rows, (self.cache_row(self.kept) as usize, self.gpu)) as u64;
        let prefix = (block + questions * words) as u64;
        let logits = together * replies as u64 * self.config.language.vocab_size as u64 * 2 * F32;
        let embedded = together * prefix * self.hidden() * F32;
        let pass = self.pass((together * prefix).min((reply::PASS + block) as u64));
        let bytes = together * rows as u64 * self.cache_row(self.kept) + (embedded + pass).max(logits);
        let operations = prefix as f64 * self.row(block as f64 / 2.0)
            + (replies * length) as f64 * (self.row((block + words) as f64) + self.text_head());
        Cost { bytes, operations: operations * images as f64 }
    }

    /// The cost of the codes of images.
    fn codes(&self, images: usize, words: usize, options: &NextCodeOptions) -> Cost {
        let (rows, tokens) = (if options.guidance == 0.0 { 1 } else { 2 }, self.config.image_tokens);
        let one = rows * tokens * self.cache_row(self.drawn) as usize;
        let together = imagine::together(images, one, options.cache_bytes) as u64;
        let pass = (2 * words as u64).max(together * rows as u64);
        let codes = self.config.vq.codes as u64;
        let logits = together * rows as u64 * codes * 3 * F32;
        let bytes = together * one as u64 + self.pass(pass) + logits;
        let row = self.row(words as f64 + tokens as f64 / 2.0) + self.code_head();
        Cost { bytes, operations: (images * rows * tokens) as f64 * row }
    }
}

impl Costs for Sizes {
    fn on_gpu(self: Box<Self>, dtype: DType) -> Box<dyn Costs> {
        Box::new(Self { gpu: true, kept: dtype, drawn: dtype, ..*self })
    }

    fn on_cpu(self: Box<Self>, dtype: DType) -> Box<dyn Costs> {
        let drawn = ops::own_key_value_dtype(dtype, &Device::Cpu, self.config.language.head_size());
        Box::new(Self { drawn, ..*self })
    }

    fn is_on_gpu(&self) -> bool {
        self.gpu
    }

    fn parameters(&self) -> u64 {
        let vq: usize = self.vq.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        self.parameters.iter().map(|parameter| parameter.count).sum::<u64>() + vq as u64
    }

    fn trained(&self, parts: &[String]) -> u64 {
        self.of(parts).map(|parameter| parameter.count).sum()
    }

    fn check_parts(&self, parts: &[String], sides: TrainedSides) -> Result<()> {
        training::check_parts(parts, sides, || self.parameters.iter().map(|parameter| parameter.name.as_str()))
    }

    fn trained_tensors(&self, parts: &[String]) -> usize {
        self.of(parts).count()
    }

    fn decoder_bytes(&self, dtype: DType) -> u64 {
        self.parameters.iter().map(|parameter| parameter.bytes(dtype)).sum()
    }

    fn tokenizer_bytes(&self) -> u64 {
        self.vq.iter().map(|(_, shape)| shape.iter().product::<usize>() as u64 * F32).sum()
    }

    fn in_memory(&self, task: Task, dtype: DType) -> u64 {
        let own = self.parameters.iter().filter(|own| self.is_in_memory(task, &own.name, own.held(dtype)));
        let vq = self.vq.iter().filter(|(name, _)| self.is_in_memory(task, name, DType::F32));
        let vq = vq.map(|(_, shape)| shape.iter().product::<usize>() as u64 * F32).sum::<u64>();
        own.map(|parameter| parameter.bytes(dtype)).sum::<u64>() + vq
    }

    fn widened(&self, products: Products, dtype: DType) -> u64 {
        let names = self.parameters.iter().filter(|parameter| parameter.held(dtype) != DType::F32);
        let widened = names.filter(|parameter| training::is_widened(&parameter.name, products, dtype));
        widened.map(|parameter| parameter.count * F32).sum()
    }

    fn written(&self, parts: &[String], products: Products, dtype: DType) -> u64 {
        // What is trained, and what training widened, in f32; the rest as it is held, the image tokenizer too.
        let trained: BTreeSet<&str> = self.of(parts).map(|parameter| parameter.name.as_str()).collect();
        let bytes = |parameter: &Parameter| {
            let name = parameter.name.as_str();
            let wide = trained.contains(name) || training::is_widened(name, products, dtype);
            parameter.bytes(if wide { DType::F32 } else { dtype })
        };
        self.parameters.iter().map(bytes).sum::<u64>() + self.tokenizer_bytes()
    }

    fn resolution(&self) -> usize {
        self.config.resolution()
    }

    fn image_tokens(&self) -> usize {
        self.config.image_tokens
    }

    fn encode(&self, images: usize) -> Cost {
        self.convolutions("encoder", images)
    }

    fn decode(&self, images: usize) -> Cost {
        self.convolutions("decoder", images)
    }

    fn reply(&self, images: usize, questions: usize, samples: usize, words: usize, length: usize) -> Cost {
        self.replies(images, questions, samples, words, length).then(self.read(images))
    }

    fn imagine(&self, images: usize, words: usize, options: &ImagineOptions) -> Cost {
        match options {
            ImagineOptions::NextCode(options) => self.codes(images, words, options).then(self.decode(images)),
            ImagineOptions::Masked(_) => Cost::default(), // refused by the model
        }
    }

    fn passes(&self, _: &ImagineOptions) -> usize {
        self.config.image_tokens
    }

    fn train(&self, work: &TrainingWork) -> TrainingCost {
        self.step(work)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::pretrain::{files, published_config};
    use super::*;

    pub(super) fn published(seven: bool) -> Sizes {
        Sizes::new(&JanusConfig::read(&files(&published_config(seven), 576, 384, "{}")).unwrap()).unwrap()
    }

    #[test]
    fn the_published_sizes_are_as_the_files_have_them() {
        for (seven, parameters, cache) in [(false, 2.07e9, 393_216), (true, 7.4e9, 983_040)] {
            let sizes = published(seven);
            // Without what nothing reads: the tower's pooling and the record of used codes.
            assert!((sizes.parameters() as f64 / parameters - 1.0).abs() < 0.01, "{}", sizes.parameters());
            assert_eq!(sizes.cache_row(sizes.kept), cache, "0.39 and 0.98 MB of a token in f32");
            let trained = sizes.trained(&[]);
            assert!(trained < sizes.parameters() && trained > sizes.parameters() * 3 / 4);
        }
    }

    #[test]
    fn keys_of_drawn_pictures_count_in_their_own_type() {
        let (f32, options) =
            (published(false), NextCodeOptions { cache_bytes: 64 << 30, ..NextCodeOptions::default() });
        let bf16 = Sizes { drawn: DType::BF16, ..published(false) };
        // Eight pictures under guidance: sixteen rows of 576 codes, of which each keeps half as much.
        let saved = 16 * 576 * 393_216 / 2;
        assert_eq!(f32.codes(8, 20, &options).bytes - bf16.codes(8, 20, &options).bytes, saved);
        let here = ops::own_key_value_dtype(DType::BF16, &Device::Cpu, f32.config.language.head_size());
        let expected = if here == DType::BF16 { saved } else { 0 };
        let options = ImagineOptions::NextCode(options);
        let on_cpu =
            |dtype| (Box::new(published(false)) as Box<dyn Costs>).on_cpu(dtype).imagine(8, 20, &options).bytes;
        assert_eq!(on_cpu(DType::F32) - on_cpu(DType::BF16), expected);
        assert_eq!(on_cpu(DType::F32), f32.imagine(8, 20, &options).bytes);
    }

    #[test]
    fn weights_count_where_they_are_read_or_copied() {
        let config = JanusConfig::read(&files(&published_config(false), 576, 384, "{}")).unwrap();
        let (copied, mapped) = (Sizes::new(&config).unwrap(), Sizes::published(&config).unwrap());
        let gigabytes = |sizes: &Sizes, task, dtype| sizes.in_memory(task, dtype) as f64 / 1e9;
        let all = |dtype| (copied.decoder_bytes(dtype) + copied.tokenizer_bytes()) as f64 / 1e9;
        for task in [Task::Replies, Task::Pictures, Task::Training] {
            // Held in another type than the file's, all is copied, as it is where nothing is known of a file.
            assert_eq!(gigabytes(&copied, task, DType::F32), all(DType::F32));
            assert_eq!(gigabytes(&mapped, task, DType::F32), all(DType::F32));
        }
        assert_eq!(gigabytes(&mapped, Task::Training, DType::BF16), all(DType::BF16), "its digest reads them all");
        // By hand, in GB of bf16: 24 blocks of 4·2048² + 3·2048·5632 weights 2.47, the text head 0.42, the tower 0.61, the
        // hand 0.08; and the image tokenizer, copied to f32, 0.29.
        for (task, expected) in [(Task::Replies, 2.47 + 0.42 + 0.61 + 0.29), (Task::Pictures, 2.47 + 0.08 + 0.29)] {
            let counted = gigabytes(&mapped, task, DType::BF16);
            assert!((counted / expected - 1.0).abs() < 0.03, "{task:?}: {counted}, {expected} by hand");
        }
    }

    #[test]
    fn parts_are_what_is_trained() {
        let sizes = published(false);
        let parts = |parts: &[&str]| parts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let two = parts(&["language_model.model.layers.22.", "language_model.model.layers.23."]);
        let block = 4 * 2048 * 2048 + 3 * 2048 * 5632 + 2 * 2048;
        assert_eq!(sizes.trained(&two), 2 * block);
        assert!(sizes.trained(&parts(&["language_model."])) < sizes.trained(&[]));
        assert!(sizes.check_parts(&two, TrainedSides::Both).is_ok());
        for wrong in ["vision_model.", "language_model.model.layers.24.", ""] {
            let said = sizes.check_parts(&parts(&[wrong]), TrainedSides::Both).unwrap_err().to_string();
            assert!(said.contains("train.parameters") && said.contains("language_model."), "{said}");
        }
        let held = |parts: &[String]| sizes.written(parts, Products::Bf16, DType::BF16);
        assert_eq!(held(&[]) - held(&two), 2 * (sizes.trained(&[]) - 2 * block - small(&sizes)));
    }

    /// Parameters that are in f32 whether they are trained or not: vectors, and what no whole operator multiplies by.
    fn small(sizes: &Sizes) -> u64 {
        let wide = |own: &&Parameter| own.is_vector || training::is_widened(&own.name, Products::Bf16, DType::BF16);
        sizes
            .of(&[])
            .filter(|own| !own.name.contains(".layers.22.") && !own.name.contains(".layers.23."))
            .filter(wide)
            .map(|own| own.count)
            .sum()
    }

    #[test]
    fn what_is_more_work_costs_more() {
        let sizes = published(false);
        let options = |guidance| NextCodeOptions { guidance, ..NextCodeOptions::default() };
        let (free, guided) = (sizes.codes(4, 30, &options(0.0)), sizes.codes(4, 30, &options(4.0)));
        assert!(guided.operations > 1.8 * free.operations && guided.bytes > free.bytes);
        assert!(sizes.imagine(4, 30, &options(4.0).into()).operations > guided.operations, "pictures are decoded, too");
        // Two rows of 576 codes through 24 blocks of 2048 wide: about 1.3 G weights each way.
        let by_hand = 2.0 * 576.0 * 2.0 * 1.31e9;
        assert!((sizes.codes(1, 30, &NextCodeOptions::default()).operations / by_hand - 1.0).abs() < 0.2);
        assert!(sizes.decode(1).operations > 0.0 && sizes.encode(1).operations > 0.0);
        assert!(sizes.reply(1, 1, 10, 20, 100).operations > 10.0 * 100.0 * 2.0 * 1.2e9);
    }
}
