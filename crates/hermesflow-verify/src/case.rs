//! A model case: its description, its recorded tensors and its models, and recorded rows of tokens in packed form.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use hermesflow_models::showo::sequence::Packed;
use hermesflow_models::showo::{Frames, PhiConfig, ShowoConfig, SpecialIds, read_configs};
use hermesflow_nn::weights::Weights;
use hermesflow_train::{AdamWSettings, Schedule};
use serde::Deserialize;

use crate::{Error, Result};

/// The description of a case, `case.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Case {
    special_ids: HashMap<String, u32>,
    pub(crate) num_vq_tokens: usize,
    max_text_len: usize,
    pub(crate) guidance_scale: f64,
    pub(crate) generation_temperature: f64,
    pub(crate) timesteps: usize,
    pub(crate) texts: Vec<Vec<u32>>,
    pub(crate) beta: f64,
    pub(crate) optimizer: Optimizer,
    pub(crate) schedule: ScheduleNumbers,
    pub(crate) steps: usize,
    pub(crate) max_new_tokens: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Optimizer {
    pub(crate) learning_rate: f64,
    pub(crate) betas: (f64, f64),
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ScheduleNumbers {
    pub(crate) kind: hermesflow_train::ScheduleKind,
    pub(crate) warmup_steps: usize,
    pub(crate) total_steps: usize,
}

impl Optimizer {
    /// The settings of the optimizer.
    pub(crate) fn settings(&self) -> AdamWSettings {
        let Self { betas: (beta1, beta2), eps, weight_decay, .. } = *self;
        AdamWSettings { beta1, beta2, eps, weight_decay }
    }

    /// The learning rates of the first `steps` steps.
    pub(crate) fn rates(&self, schedule: &ScheduleNumbers, steps: usize) -> Vec<f64> {
        let ScheduleNumbers { kind, warmup_steps, total_steps } = *schedule;
        let schedule = Schedule { kind, learning_rate: self.learning_rate, warmup_steps, steps: total_steps };
        (0..steps).map(|step| schedule.learning_rate(step)).collect()
    }
}

/// A case with its recorded tensors, which stay in the host's memory, and its models.
pub(crate) struct Loaded {
    pub(crate) folder: PathBuf,
    pub(crate) case: Case,
    trace: HashMap<String, Tensor>,
    pub(crate) config: ShowoConfig,
    pub(crate) phi_config: PhiConfig,
    pub(crate) weights: Weights,
    pub(crate) pad: u32,
    pub(crate) special: SpecialIds,
    pub(crate) frames: Frames,
    pub(crate) device: Device,
}

impl Loaded {
    pub(crate) fn new(folder: &Path, device: &Device) -> Result<Self> {
        let file = folder.join("case.json");
        let text = std::fs::read_to_string(&file).map_err(|e| Error::file(&file, e))?;
        let case: Case = serde_json::from_str(&text).map_err(|e| Error::file(&file, e))?;
        let file = folder.join("trace.safetensors");
        let trace = candle_core::safetensors::load(&file, &Device::Cpu).map_err(|e| Error::file(&file, e))?;
        let (mut config, phi_config) = read_configs(&folder.join("showo"))?;
        // The original's limit does not count the first token.
        config.max_text_len = case.max_text_len + 1;
        let weights = Weights::load(&folder.join("showo"), DType::F32, device)?;
        let id = |name: &str| {
            let missing = || Error::file(&folder.join("case.json"), format!("special_ids has no {name}"));
            case.special_ids.get(name).copied().ok_or_else(missing)
        };
        let special = SpecialIds {
            sot: id("<|sot|>")?,
            eot: id("<|eot|>")?,
            soi: id("<|soi|>")?,
            eoi: id("<|eoi|>")?,
            t2i: id("<|t2i|>")?,
            mmu: id("<|mmu|>")?,
        };
        let pad = id("[PAD]")?;
        let frames = Frames::new(&config, special);
        let device = device.clone();
        Ok(Self { folder: folder.into(), case, trace, config, phi_config, weights, pad, special, frames, device })
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Tensor> {
        let missing = || Error::file(&self.folder.join("trace.safetensors"), format!("has no {name}"));
        self.trace.get(name).ok_or_else(missing)
    }

    pub(crate) fn trace(&self) -> BTreeMap<&String, &Tensor> {
        self.trace.iter().collect()
    }

    /// The number of tokens of an image, `<|soi|>` and `<|eoi|>` included.
    pub(crate) fn segment(&self) -> usize {
        self.case.num_vq_tokens + 2
    }

    /// Packs one recorded row of an image from text, padded on the left; returns its first row and the length of the
    /// padding.
    pub(crate) fn pack_imagine(&self, packed: &mut Packed, row: &[u32]) -> Result<(usize, usize)> {
        let padding = row.iter().take_while(|id| **id == self.pad).count();
        let text = row.len().checked_sub(self.segment()).filter(|end| *end > padding);
        let text = text.ok_or_else(|| Error::Case("an imagine row is shorter than its image".into()))?;
        let prefix = packed.push(&row[padding..text], 0, vec![], true);
        let first = prefix.start;
        packed.push(&row[text..], prefix.len(), vec![prefix], false);
        Ok((first, padding))
    }

    /// Packs one recorded row of a reply about an image, padded on the right; returns its first row and its length.
    pub(crate) fn pack_understanding(&self, packed: &mut Packed, row: &[u32]) -> Result<(usize, usize)> {
        let length = row.len() - row.iter().rev().take_while(|id| **id == self.pad).count();
        let block = self.segment() + 1;
        if length <= block {
            return Err(Error::Case("an understanding row ends before its text".into()));
        }
        let rows = packed.push(&row[..block], 0, vec![], false);
        let first = rows.start;
        packed.push(&row[block..length], block, vec![rows], true);
        Ok((first, length))
    }
}
