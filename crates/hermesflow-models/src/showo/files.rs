//! The files of a checkpoint: reading, checking against each other, writing.

use std::path::Path;

use candle_core::{DType, Device};
use hermesflow_nn::weights::{self, Weights};

use super::config::{self, PhiConfig, ShowoConfig};
use super::magvit::{self, Magvit, MagvitConfig};
use super::phi::{self, Phi};
use super::tokenizer::ShowoTokenizer;
use crate::{Error, Result};

/// The Show-o and Phi configurations of a checkpoint folder.
///
/// # Errors
/// Names the file that is missing or inconsistent.
pub fn read_configs(showo: &Path) -> Result<(ShowoConfig, PhiConfig)> {
    let file = showo.join("config.json");
    let config: ShowoConfig = config::read_json(&file)?;
    config.validate(&file)?;
    let phi = config::read_phi_config(showo, &config)?;
    Ok((config, phi))
}

/// The configurations of a checkpoint whose files fit each other.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Of the model.
    pub showo: ShowoConfig,
    /// Of its decoder.
    pub phi: PhiConfig,
    /// Of its image tokenizer.
    pub vq: MagvitConfig,
}

impl Facts {
    /// The side of its pictures in pixels.
    pub fn resolution(&self) -> usize {
        self.showo.resolution(&self.vq)
    }
}

/// Checks the files of a checkpoint against each other by their headers; no weights are read.
///
/// # Errors
/// Names the file that is missing, broken or does not fit.
pub fn check_files(showo: &Path, vq: &Path, tokenizer: &Path) -> Result<Facts> {
    let (config, phi) = read_configs(showo)?;
    let magvit = read_magvit_config(vq)?;
    check_bits(&config, &magvit, showo)?;
    ShowoTokenizer::load(tokenizer, &config)?;
    for (folder, expected, ignored) in [
        (showo, phi::parameter_shapes(&config, &phi), phi::ignored(&config)),
        (vq, Magvit::parameter_shapes(&magvit)?, magvit::IGNORED.to_vec()),
    ] {
        let found: Vec<_> = weights::tensor_infos(folder)?.into_iter().map(|entry| (entry.name, entry.shape)).collect();
        weights::check(folder, &found, &expected, &ignored)?;
    }
    Ok(Facts { showo: config, phi, vq: magvit })
}

/// The side of a model's pictures, at most.
const MOST_PIXELS: usize = 4096;

/// Checks that an image tokenizer's codes are those of a model, and the side of its pictures.
pub(super) fn check_bits(config: &ShowoConfig, vq: &MagvitConfig, origin: &Path) -> Result<()> {
    let bits = vq.z_channels;
    if 1usize << bits != config.codebook_size {
        let message = format!(
            "the image tokenizer has {bits} bits ({} codes), the model codebook_size {}; use the pair that was trained \
             together",
            1usize << bits,
            config.codebook_size
        );
        return Err(Error::config(origin, message));
    }
    let side = config.resolution(vq);
    if side > MOST_PIXELS {
        let message = format!("its pictures would have a side of {side} pixels, more than {MOST_PIXELS}");
        return Err(Error::config(origin, message));
    }
    Ok(())
}

/// Checks the weights of a checkpoint folder against its configurations.
///
/// # Errors
/// Lists what is missing, unexpected or mis-shaped.
pub fn check_showo(folder: &Path, config: &ShowoConfig, weights: &Weights) -> Result<()> {
    Phi::new(weights, config, &config::read_phi_config(folder, config)?)?;
    Ok(())
}

/// Writes the configurations of a checkpoint folder: `config.json`, and `phi/config.json` where the decoder is not the
/// published Phi-1.5, which the original's Python knows by its name.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write_configs(folder: &Path, config: &ShowoConfig, phi: &PhiConfig) -> Result<()> {
    let published = *phi == PhiConfig::default();
    let llm_model_path = if published { config::phi_name() } else { "phi".into() };
    if !published {
        write_json(&folder.join("phi/config.json"), phi)?;
    }
    write_json(&folder.join("config.json"), &ShowoConfig { llm_model_path, ..config.clone() })
}

/// Loads an image tokenizer folder.
///
/// # Errors
/// Names the file that is missing or does not fit.
pub fn load_magvit(folder: &Path, device: &Device) -> Result<Magvit> {
    let config = read_magvit_config(folder)?;
    Magvit::new(&Weights::load(folder, DType::F32, device)?, &config)
}

/// The configuration of an image tokenizer folder.
///
/// # Errors
/// Names the file that is missing or inconsistent.
pub fn read_magvit_config(folder: &Path) -> Result<MagvitConfig> {
    let file = folder.join("config.json");
    let config: MagvitConfig = config::read_json(&file)?;
    config.validate(&file)?;
    Ok(config)
}

/// Writes a configuration, making its folder.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let io = |source| Error::io(path, source);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::config(path, e.to_string()))?;
    text.push('\n');
    std::fs::write(path, text).map_err(io)
}
