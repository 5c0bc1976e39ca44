//! The files of a checkpoint: reading them, checking them against each other, writing them.

use std::path::Path;

use candle_core::{DType, Device};
use hermesflow_nn::weights::{self, Weights};

use super::config::{self, PhiConfig, ShowoConfig};
use super::magvit::{self, Magvit, MagvitConfig};
use super::phi::{self, Phi};
use super::tokenizer::ShowoTokenizer;
use crate::{Error, Result};

/// Reads the Show-o and Phi configurations of a checkpoint folder.
///
/// # Errors
/// If a file is missing or contradicts itself; it is named.
pub fn read_configs(showo: &Path) -> Result<(ShowoConfig, PhiConfig)> {
    let file = showo.join("config.json");
    let config: ShowoConfig = config::read_json(&file)?;
    config.validate(&file)?;
    let phi = config::read_phi_config(showo, &config)?;
    Ok((config, phi))
}

/// The configurations of a checkpoint whose files fit each other.
#[derive(Debug, Clone)]
pub struct CheckpointConfigs {
    /// The configuration of Show-o.
    pub showo: ShowoConfig,
    /// The configuration of its decoder.
    pub phi: PhiConfig,
    /// The configuration of its image tokenizer.
    pub vq: MagvitConfig,
}

impl CheckpointConfigs {
    /// The side of the model's square images, in pixels.
    pub fn resolution(&self) -> usize {
        self.showo.resolution(&self.vq)
    }
}

/// Checks the files of a checkpoint against each other by their headers, without reading weights.
///
/// # Errors
/// If a file is missing, broken or does not fit the others; it is named.
pub fn check_files(showo: &Path, vq: &Path, tokenizer: &Path) -> Result<CheckpointConfigs> {
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
    Ok(CheckpointConfigs { showo: config, phi, vq: magvit })
}

/// The largest side of a model's images, in pixels.
const MOST_PIXELS: usize = 4096;

/// Checks that an image tokenizer's codes are those of a model, and the size of the images.
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
        let message =
            format!("its images would have {side}×{side} pixels; at most {MOST_PIXELS}×{MOST_PIXELS} are supported");
        return Err(Error::config(origin, message));
    }
    Ok(())
}

/// Checks weights against the configurations of a checkpoint folder.
///
/// # Errors
/// Lists the weights that are missing, unexpected or of another shape.
pub fn check_showo(folder: &Path, config: &ShowoConfig, weights: &Weights) -> Result<()> {
    Phi::new(weights, config, &config::read_phi_config(folder, config)?)?;
    Ok(())
}

/// Writes the configurations of a checkpoint folder: `config.json`, and `phi/config.json` unless the decoder has the
/// configuration of the published Phi-1.5, which Show-o's Python code knows by its name.
///
/// # Errors
/// If a file cannot be written; it is named.
pub fn write_configs(folder: &Path, config: &ShowoConfig, phi: &PhiConfig) -> Result<()> {
    let published = *phi == PhiConfig::default();
    let llm_model_path = if published { config::phi_name() } else { "phi".into() };
    if !published {
        write_json(&folder.join("phi/config.json"), phi)?;
    }
    write_json(&folder.join("config.json"), &ShowoConfig { llm_model_path, ..config.clone() })
}

/// Loads a folder of an image tokenizer, in f32.
///
/// # Errors
/// If a file is missing or does not fit the others; it is named.
pub fn load_magvit(folder: &Path, device: &Device) -> Result<Magvit> {
    let config = read_magvit_config(folder)?;
    Magvit::new(&Weights::load(folder, DType::F32, device)?, &config)
}

/// Reads the configuration of a folder of an image tokenizer.
///
/// # Errors
/// If the file is missing or contradicts itself; it is named.
pub fn read_magvit_config(folder: &Path) -> Result<MagvitConfig> {
    let file = folder.join("config.json");
    let config: MagvitConfig = config::read_json(&file)?;
    config.validate(&file)?;
    Ok(config)
}

/// Writes a configuration as JSON and makes its folder if need be.
///
/// # Errors
/// If the file cannot be written; it is named.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let io = |source| Error::io(path, source);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::config(path, e.to_string()))?;
    text.push('\n');
    std::fs::write(path, text).map_err(io)
}
