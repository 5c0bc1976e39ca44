//! The configuration files of a Janus-Pro checkpoint; every size comes from them, and they are checked against each other.

mod llama;
mod vision;
mod vq;

use serde::Deserialize;
use serde_json::Value;

pub use llama::LlamaConfig;
pub use vision::{AlignerConfig, SiglipConfig};
pub use vq::{GROUPS, HeadConfig, LOOKUP_FREE, VqConfig};

use self::vision::{AlignerParams, MOST_PIXELS, VisionParams};
use self::vq::{HeadParams, VqParams};
use super::files::{CONFIG, JanusFiles, PREPROCESSOR, PROCESSOR, TOKENIZER_CONFIG};
use super::tokenizer::IMAGE_PLACEHOLDER;
use crate::{Error, Result};

/// Tokens of a picture, at most.
const MOST_TOKENS: usize = 1 << 14;

/// A part of `config.json` with a class and its numbers.
#[derive(Debug, Deserialize)]
struct Part<T> {
    #[serde(default)]
    cls: String,
    params: T,
}

/// `config.json`.
#[derive(Debug, Deserialize)]
struct Parts {
    language_config: LlamaConfig,
    vision_config: Part<VisionParams>,
    aligner_config: Part<AlignerParams>,
    gen_vision_config: Part<VqParams>,
    gen_aligner_config: Part<AlignerParams>,
    gen_head_config: Part<HeadParams>,
}

/// `processor_config.json`; absent keys have the defaults of the original's processor.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Processor {
    num_image_tokens: usize,
    sft_format: String,
    image_tag: String,
}

impl Default for Processor {
    fn default() -> Self {
        Self { num_image_tokens: 576, sft_format: "deepseek".into(), image_tag: IMAGE_PLACEHOLDER.into() }
    }
}

/// `preprocessor_config.json`: how a picture becomes what the vision tower reads. Absent keys have the defaults of the
/// original's image processor.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PreprocessorConfig {
    /// The longer side of a picture becomes this many pixels.
    pub image_size: usize,
    /// The shorter side becomes no less than this many pixels.
    #[serde(default = "min_size")]
    pub min_size: usize,
    /// Levels are multiplied by this first.
    #[serde(default = "rescale_factor")]
    pub rescale_factor: f64,
    /// Whether mean and deviation are applied.
    #[serde(default = "yes")]
    pub do_normalize: bool,
    /// The mean of each channel.
    #[serde(default = "image_mean")]
    pub image_mean: [f64; 3],
    /// The deviation of each channel.
    #[serde(default = "image_std")]
    pub image_std: [f64; 3],
}

fn min_size() -> usize {
    14
}

fn rescale_factor() -> f64 {
    1.0 / 255.0
}

fn yes() -> bool {
    true
}

fn image_mean() -> [f64; 3] {
    [0.481_454_66, 0.457_827_5, 0.408_210_73]
}

fn image_std() -> [f64; 3] {
    [0.268_629_54, 0.261_302_58, 0.275_777_11]
}

/// `tokenizer_config.json`, as far as it matters.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    add_bos_token: Option<bool>,
}

/// The sizes and settings of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct JanusConfig {
    /// Of the LLaMA.
    pub language: LlamaConfig,
    /// Of the vision tower.
    pub vision: SiglipConfig,
    /// Of the layers from the vision tower to the LLaMA.
    pub aligner: AlignerConfig,
    /// Of the layers from a code's embedding to the LLaMA.
    pub gen_aligner: AlignerConfig,
    /// Of the head over the codes.
    pub gen_head: HeadConfig,
    /// Of the image tokenizer.
    pub vq: VqConfig,
    /// Tokens of a picture, read or made (N).
    pub image_tokens: usize,
    /// How pictures are read.
    pub preprocessor: PreprocessorConfig,
    /// Whether a text begins with the begin token.
    pub add_bos: bool,
}

impl JanusConfig {
    /// Reads the configuration files and checks them against each other.
    ///
    /// # Errors
    /// Names the file and the key that is missing, unknown or contradictory.
    pub fn read(files: &JanusFiles) -> Result<Self> {
        let whole: Value = files.json(CONFIG)?;
        let fault = |name: &str, message: String| Error::config(files.path(name), message);
        check_kind(&whole).map_err(|message| fault(CONFIG, message))?;
        let parts: Parts = serde_json::from_value(whole).map_err(|e| fault(CONFIG, e.to_string()))?;
        let processor: Processor = files.json(PROCESSOR)?;
        check_processor(&processor).map_err(|message| fault(PROCESSOR, message))?;
        let preprocessor: PreprocessorConfig = files.json(PREPROCESSOR)?;
        check_preprocessor(&preprocessor).map_err(|message| fault(PREPROCESSOR, message))?;
        let tokenizer = match files.bytes(TOKENIZER_CONFIG) {
            Some(_) => files.json(TOKENIZER_CONFIG)?,
            None => TokenizerConfig::default(),
        };
        let sized = || -> Result<Self, String> {
            parts.language_config.validate()?;
            let config = Self {
                vision: SiglipConfig::new(&parts.vision_config.params)?,
                aligner: AlignerConfig::new("aligner_config", &parts.aligner_config.params)?,
                gen_aligner: AlignerConfig::new("gen_aligner_config", &parts.gen_aligner_config.params)?,
                gen_head: HeadConfig::new(&parts.gen_head_config.params)?,
                vq: VqConfig::new(&parts.gen_vision_config.cls, &parts.gen_vision_config.params)?,
                image_tokens: processor.num_image_tokens,
                preprocessor: preprocessor.clone(),
                add_bos: tokenizer.add_bos_token.unwrap_or(true),
                language: parts.language_config.clone(),
            };
            config.check_widths()?;
            Ok(config)
        };
        let config = sized().map_err(|message| fault(CONFIG, message))?;
        config.check_pictures().map_err(|message| fault(PROCESSOR, message))?;
        let (read, prepared) = (config.vision.image_size, config.preprocessor.image_size);
        if read != prepared {
            let message = format!("image_size {prepared} is not that of the vision tower, {read} ({CONFIG})");
            return Err(fault(PREPROCESSOR, message));
        }
        Ok(config)
    }

    /// Codes of a side of a picture.
    pub fn grid_side(&self) -> usize {
        self.image_tokens.isqrt()
    }

    /// The side of pictures that are made, in pixels.
    pub fn resolution(&self) -> usize {
        self.grid_side() * self.vq.downsampling()
    }

    /// Where one part ends and another begins, both have one width.
    fn check_widths(&self) -> Result<(), String> {
        let hidden = ("language_config.hidden_size", self.language.hidden_size);
        let width = ("the width of the vision tower", self.vision.width);
        let code = ("gen_vision_config.params.n_embed", self.vq.code_width);
        let codes = ("gen_vision_config.params.image_token_size", self.vq.codes);
        let pairs = [
            (("aligner_config.params.input_dim", self.aligner.input), width),
            (("aligner_config.params.n_embed", self.aligner.output), hidden),
            (("gen_aligner_config.params.input_dim", self.gen_aligner.input), code),
            (("gen_aligner_config.params.n_embed", self.gen_aligner.output), hidden),
            (("gen_head_config.params.n_embed", self.gen_head.input), hidden),
            (("gen_head_config.params.image_token_size", self.gen_head.codes), codes),
        ];
        match pairs.iter().find(|(one, other)| one.1 != other.1) {
            Some((one, other)) => Err(format!("{} {} is not {} {}", one.0, one.1, other.0, other.1)),
            None => Ok(()),
        }
    }

    /// A picture has the same number of tokens whether it is read or made.
    fn check_pictures(&self) -> Result<(), String> {
        let (tokens, side) = (self.image_tokens, self.grid_side());
        let (patches, read) = (self.vision.patches(), self.vision.image_size);
        if tokens != patches {
            return Err(format!(
                "num_image_tokens {tokens} is not the {patches} patches of {0}×{0} pixels of a picture of {read}×{read}",
                self.vision.patch_size
            ));
        }
        let grid = read / self.vq.downsampling();
        if side * side != tokens || grid != side || self.resolution() != read {
            return Err(format!(
                "the image tokenizer has a grid of {grid}×{grid} codes for a picture of {read}×{read}, and not \
                 num_image_tokens {tokens}; Janus-Pro makes pictures of the size that it reads, other sizes do not work"
            ));
        }
        Ok(())
    }
}

/// Whether `config.json` is that of a Janus-Pro, by what tells its relatives apart.
fn check_kind(config: &Value) -> Result<(), String> {
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("absent");
    if kind == "janus" {
        return Err("model_type janus is the layout of transformers' port; download the published Janus-Pro folder \
                    (model_type multi_modality)"
            .into());
    }
    if kind != "multi_modality" {
        return Err(format!("model_type {kind:?} is not multi_modality: this is no Janus-Pro"));
    }
    if config.get("vision_gen_enc_config").is_some() || config.get("vision_gen_dec_config").is_some() {
        return Err(
            "this is JanusFlow, which makes pictures without codes (vision_gen_enc_config); only Janus-Pro is \
                    supported"
                .into(),
        );
    }
    let parts = ["language_config", "vision_config", "aligner_config", "gen_vision_config", "gen_aligner_config"];
    match parts.into_iter().chain(["gen_head_config"]).find(|part| config.get(part).is_none()) {
        Some(part) => Err(format!("{part} is missing: this is no whole Janus-Pro configuration")),
        None => Ok(()),
    }
}

fn check_processor(processor: &Processor) -> Result<(), String> {
    hermesflow_nn::sizes::check_ranges(&[("num_image_tokens", processor.num_image_tokens, 1..=MOST_TOKENS)])?;
    if processor.sft_format != "deepseek" {
        return Err(format!(
            "sft_format {:?} is not deepseek: this is another model with the layout of Janus-Pro, such as Janus-1.3B, \
             which is spoken to in other words",
            processor.sft_format
        ));
    }
    if processor.image_tag != IMAGE_PLACEHOLDER {
        return Err(format!("image_tag {:?} is not {IMAGE_PLACEHOLDER}", processor.image_tag));
    }
    Ok(())
}

fn check_preprocessor(config: &PreprocessorConfig) -> Result<(), String> {
    hermesflow_nn::sizes::check_ranges(&[
        ("image_size", config.image_size, 1..=MOST_PIXELS),
        ("min_size", config.min_size, 1..=config.image_size),
    ])?;
    let mut positive = vec![("rescale_factor", config.rescale_factor)];
    positive.extend(config.image_std.map(|deviation| ("image_std", deviation)));
    hermesflow_nn::sizes::check_positive(&positive)?;
    match config.image_mean.iter().find(|mean| !(0.0..=1.0).contains(*mean)) {
        Some(mean) => Err(format!("image_mean {mean} is not within 0 … 1")),
        None => Ok(()),
    }
}
