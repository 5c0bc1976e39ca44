//! The `model` section of a run's configuration: which checkpoint, in which type, on which device.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hermesflow_models::device::DeviceName;
use hermesflow_models::janus::{JanusConfig, JanusFiles};
use hermesflow_models::kernels::{Choices, LARGE};
use hermesflow_models::showo::read_configs;
use hermesflow_models::{DType, Device, ImageDecoding};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::expect::Expect;
use super::kernels::KernelsName;
use crate::kernels::bf16_is_faster;

/// The model that a run begins with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// The model: `embedded` (a small one inside this program, of the kind that `backbone` names), a checkpoint's folder, or
    /// its name on the hub.
    ///
    /// Default: embedded.
    /// Source: released code, `model.showo.pretrained_model_path`.
    pub checkpoint: String,
    /// Kind of the model. It decides which other keys have a meaning; the others are refused. Of the embedded models `auto`
    /// is the Show-o.
    ///
    /// Default: auto.
    /// Source: this program.
    pub backbone: BackboneName,
    /// The image tokenizer, where it is a checkpoint of its own: its folder, or its name on the hub. `null` is
    /// showlab/magvitv2, or the embedded model's own.
    ///
    /// Source: released code, `model.vq_model.vq_model_name`.
    pub vq: Option<String>,
    /// The text tokenizer, where it is not part of the checkpoint: its `tokenizer.json`, the folder that holds one, or a name
    /// on the hub. `null` is microsoft/phi-1_5, or the embedded model's own.
    ///
    /// Source: released code, `model.showo.llm_model_path`.
    pub tokenizer: Option<String>,
    /// The CLIP vision tower of a checkpoint that understands images by its features (`w_clip_vit`): its folder, or its name
    /// on the hub. `null` is openai/clip-vit-large-patch14-336.
    ///
    /// Source: Show-o.
    pub clip: Option<String>,
    /// Type in which the decoder's matrices are held while it captions, generates and answers, and those of the reference
    /// while it trains. What is trained is in f32; its matrix products follow `train.products`.
    ///
    /// Default: f32.
    /// Source: this program; the released code infers in f32.
    pub dtype: DTypeName,
    /// Device: `cpu`, `cuda:N` (in a build for GPUs), or `auto`: the first GPU if there is one and the model is not the
    /// embedded one, else the CPU. config.yaml says which was chosen.
    ///
    /// Default: cpu.
    /// Source: this program.
    pub device: String,
    /// Kernels of matrix products in bf16 on the CPU. They sum in different orders: results that must be the same on several
    /// machines need one that all of them have. Products in f32 do not depend on it.
    ///
    /// Default: auto.
    /// Source: this program.
    pub kernels: KernelsName,
    /// Facts that the checkpoint must fulfil; those that are absent may be anything.
    #[serde(skip_serializing_if = "Expect::is_empty")]
    pub expect: Expect,
}

/// Kind of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackboneName {
    /// What the checkpoint's `config.json` says; config.yaml says which was found.
    Auto,
    /// Show-o: fills in masked image codes over several steps.
    ShowO,
    /// Janus-Pro: draws one image code after the other, and reads images by features of its vision tower.
    JanusPro,
}

impl BackboneName {
    /// How the backbone generates images; a kind that is not known yet has the settings of masked codes.
    pub fn image_decoding(self) -> ImageDecoding {
        match self {
            Self::Auto | Self::ShowO => ImageDecoding::Masked,
            Self::JanusPro => ImageDecoding::NextCode,
        }
    }

    /// Whether the tokenizers of text and images are part of the checkpoint.
    pub fn is_whole(self) -> bool {
        self == Self::JanusPro
    }
}

impl fmt::Display for BackboneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::ShowO => "show-o",
            Self::JanusPro => "janus-pro",
        })
    }
}

/// `model.checkpoint` of the model inside this program.
pub const EMBEDDED: &str = "embedded";
/// `model.vq` where it is not given: Show-o's image tokenizer.
pub const MAGVIT: &str = "showlab/magvitv2";
/// `model.tokenizer` where it is not given: Show-o's text tokenizer.
pub const PHI: &str = "microsoft/phi-1_5";
/// `model.clip` where it is not given: the vision tower of Show-o's CLIP variants.
pub const CLIP: &str = "openai/clip-vit-large-patch14-336";

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            checkpoint: EMBEDDED.into(),
            backbone: BackboneName::Auto,
            vq: None,
            tokenizer: None,
            clip: None,
            dtype: DTypeName::F32,
            device: "cpu".into(),
            kernels: KernelsName::Auto,
            expect: Expect::default(),
        }
    }
}

impl ModelSettings {
    /// Names the backbone that was left open; `found` is the kind of the checkpoint, where it is known.
    pub(super) fn resolve_backbone(&mut self, found: Option<BackboneName>) {
        if self.backbone == BackboneName::Auto {
            self.backbone = if self.is_embedded() { BackboneName::ShowO } else { found.unwrap_or(BackboneName::Auto) };
        }
    }

    /// Names the device, the type and the tokenizers that were left open; the tokenizers are the published ones, for any
    /// model but the embedded one. No device is opened.
    pub(super) fn resolve(&mut self) {
        if let Ok(name @ DeviceName::Auto) = self.device.parse::<DeviceName>() {
            let name = if self.is_embedded() { DeviceName::Cpu } else { name.resolved() };
            self.device = name.to_string();
        }
        if self.dtype == DTypeName::Auto {
            let faster = !self.is_embedded() && self.is_faster_in_bf16(bf16_is_faster);
            self.dtype = if faster { DTypeName::BF16 } else { DTypeName::F32 };
        }
        if !self.is_embedded() && !self.backbone.is_whole() {
            self.vq.get_or_insert_with(|| MAGVIT.into());
            self.tokenizer.get_or_insert_with(|| PHI.into());
        }
    }

    /// Whether the device multiplies this model's weights faster in bf16: on the CPU as `measured` says, which is given the
    /// elements of a weight and what `model.kernels` pins.
    pub(super) fn is_faster_in_bf16(&self, measured: impl Fn(usize, Option<Choices>) -> bool) -> bool {
        match self.device_name() {
            Ok(DeviceName::Cpu) => measured(self.weight_elements(), self.kernels.pinned()),
            Ok(name) => name.multiplies_bf16(),
            Err(_) => false,
        }
    }

    /// Elements of the smallest matrices of the decoder, if its configuration is on this machine; else as many as those of a
    /// large model.
    fn weight_elements(&self) -> usize {
        let folder = Path::new(&self.checkpoint);
        let width = match self.backbone {
            _ if self.is_embedded() => None,
            BackboneName::Auto => None,
            BackboneName::ShowO => read_configs(folder).ok().map(|(_, phi)| phi.hidden_size),
            BackboneName::JanusPro => {
                let config = JanusFiles::read(folder).and_then(|files| JanusConfig::read(&files));
                config.ok().map(|config| config.language.hidden_size)
            }
        };
        width.map_or(LARGE, |width| width.saturating_mul(width))
    }

    /// Checks the keys against each other. Whether the device is there is seen by what works on it.
    pub(super) fn validate(&self) -> Result<()> {
        let ModelSettings { vq, tokenizer, .. } = self;
        self.device_name()?;
        self.expect.validate()?;
        for (key, value) in [("vq", vq), ("tokenizer", tokenizer)] {
            ensure!(
                !self.is_embedded() || value.is_none(),
                "model.{key}: the embedded model brings its own; remove the key"
            );
        }
        let unwanted = self.is_embedded() && self.clip.is_some();
        ensure!(!unwanted, "model.clip: no embedded model reads by CLIP; remove the key");
        Ok(())
    }

    /// Whether the model is the one inside this program.
    pub fn is_embedded(&self) -> bool {
        self.checkpoint == EMBEDDED
    }

    /// Whether the device is a GPU, there or not.
    pub fn names_a_gpu(&self) -> bool {
        matches!(self.device_name(), Ok(DeviceName::Cuda(_)))
    }

    /// The device's name.
    pub fn device_name(&self) -> Result<DeviceName> {
        self.device.parse().context("model.device")
    }

    /// The device, if this build has it.
    pub fn device(&self) -> Result<Device> {
        self.device_name()?.open().context("model.device")
    }
}

/// Type in which weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DTypeName {
    /// `bf16` where the device multiplies it faster (a GPU from compute capability 8 on, or a CPU that was measured to), else
    /// `f32`; config.yaml says which was chosen.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits with the exponent of f32.
    BF16,
    /// 16 bits with more digits and less range.
    F16,
}

impl From<DTypeName> for DType {
    fn from(name: DTypeName) -> Self {
        match name {
            DTypeName::Auto | DTypeName::F32 => Self::F32,
            DTypeName::BF16 => Self::BF16,
            DTypeName::F16 => Self::F16,
        }
    }
}
