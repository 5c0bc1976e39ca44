//! What a model's pictures are worth under one sampler and another, by the oracle alone.
//!
//! Prompts and draws are those of an evaluation with the same split and seed, so that samplers are compared on the same
//! ones, and with `hermesflow eval`.

use anyhow::Result;
use hermesflow_models::{ImageDecoding, ImagineOptions, UnifiedModel};
use serde::{Deserialize, Serialize};

use super::evaluate::{BLOCK, EvalSettings, Verdict, pictures_by, verdict};
use super::statistics::Mean;
use crate::config::ImagineSettings;
use crate::progress::Progress;

/// What is varied of a sampler; the rest is the run's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampler {
    /// Denoising steps; 0 of a model that draws one code after the other.
    pub steps: usize,
    /// The noise on the confidence, or the temperature of a model that draws one code after the other
    /// (`imagine.temperature`).
    pub noise: f64,
    /// Classifier-free guidance.
    pub guidance: f64,
}

impl Sampler {
    /// The run's sampler with these numbers, for a model that generates images in this way.
    pub fn options(self, imagine: ImagineSettings, decoding: ImageDecoding) -> ImagineOptions {
        let Self { steps, noise, guidance } = self;
        ImagineSettings { steps, guidance, temperature: noise, ..imagine }.options(decoding)
    }

    /// How often a picture goes through the decoder, in words.
    pub fn passes(self) -> String {
        match (self.steps, self.guidance == 0.0) {
            (0, true) => "one pass of the decoder per code".into(),
            (0, false) => "two passes of the decoder per code".into(),
            (steps, true) => format!("{steps} passes of the decoder per picture"),
            (steps, false) => format!("{} passes of the decoder per picture", 2 * steps),
        }
    }
}

impl std::fmt::Display for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.steps {
            0 => write!(f, "temperature {}, guidance {}", self.noise, self.guidance),
            steps => write!(f, "{steps} steps, noise {}, guidance {}", self.noise, self.guidance),
        }
    }
}

/// Pictures of all prompts under one sampler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drawn {
    /// The sampler.
    pub sampler: Sampler,
    /// Prompt by prompt.
    pub verdicts: Vec<Verdict>,
}

impl Drawn {
    /// The mean share of facts.
    pub fn generation(&self) -> Mean {
        Mean::of(self.verdicts.iter().map(|verdict| verdict.facts))
    }

    /// The share of pictures that are entirely right.
    pub fn all_right(&self) -> Mean {
        Mean::of(self.verdicts.iter().map(|verdict| f64::from(u8::from(verdict.all))))
    }
}

/// Draws and judges the pictures of all prompts under one sampler.
///
/// # Errors
/// When the model fails.
pub fn draw(
    model: &impl UnifiedModel,
    imagine: ImagineSettings,
    settings: &EvalSettings,
    sampler: Sampler,
    progress: &Progress,
) -> Result<Drawn> {
    let task = progress.task(&sampler.to_string(), "prompts", settings.prompts, 0);
    let mut verdicts = Vec::with_capacity(settings.prompts);
    while verdicts.len() < settings.prompts {
        let indices: Vec<usize> = (verdicts.len()..settings.prompts.min(verdicts.len() + BLOCK)).collect();
        let pictures = pictures_by(model, &sampler.options(imagine, model.image_decoding()), settings, &indices)?;
        verdicts.extend(indices.iter().zip(&pictures).map(|(&index, picture)| verdict(settings, index, picture)));
        task.advance(indices.len());
    }
    Ok(Drawn { sampler, verdicts })
}
