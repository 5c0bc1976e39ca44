//! The configuration file of the MAGVIT-v2 image tokenizer.

use std::path::Path;

use hermesflow_nn::sizes;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The largest number of levels, and the largest channel multiplier and number of blocks of each.
const MOST_LEVELS: usize = 8;
const MOST_PER_LEVEL: usize = 64;

/// The `config.json` of the MAGVIT-v2 image tokenizer. Absent keys have the published values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MagvitConfig {
    /// The Python class that wrote the file.
    #[serde(rename = "_class_name", default = "magvit_class")]
    pub class_name: String,
    /// The number of channels at full resolution. Default: 128.
    #[serde(default = "d128")]
    pub ch: usize,
    /// The channel multiplier of each level, for encoder and decoder alike. Default: the published ones, which differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ch_mult: Option<Vec<usize>>,
    /// The number of residual blocks of each level, for encoder and decoder alike. Default: the published ones, which
    /// differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_res_blocks: Option<Vec<usize>>,
    /// The number of bits of a code. Default: 13.
    #[serde(default = "d13")]
    pub z_channels: usize,
    /// The side of the images that the tokenizer was trained on, in pixels. Default: 256.
    #[serde(default = "d256")]
    pub resolution: usize,
    /// The number of groups of every GroupNorm. Default: 32.
    #[serde(default = "d32", skip_serializing_if = "is_32")]
    pub norm_groups: usize,
}

impl Default for MagvitConfig {
    /// The published configuration.
    fn default() -> Self {
        Self {
            class_name: magvit_class(),
            ch: d128(),
            ch_mult: None,
            num_res_blocks: None,
            z_channels: d13(),
            resolution: d256(),
            norm_groups: d32(),
        }
    }
}

fn magvit_class() -> String {
    "MAGVITv2".into()
}
fn d128() -> usize {
    128
}
fn d13() -> usize {
    13
}
fn d256() -> usize {
    256
}
fn is_32(groups: &usize) -> bool {
    *groups == 32
}

/// The levels of an encoder or decoder, from full resolution down; each has half the side of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// The number of channels of each level.
    pub channels: Vec<usize>,
    /// The number of residual blocks of each level.
    pub blocks: Vec<usize>,
}

impl MagvitConfig {
    /// The levels of the encoder.
    pub fn encoder(&self) -> Levels {
        self.levels(&[1, 2, 2, 4, 4], &[4, 3, 4, 3, 4])
    }

    /// The levels of the decoder.
    pub fn decoder(&self) -> Levels {
        self.levels(&[1, 1, 2, 2, 4], &[4, 4, 3, 4, 3])
    }

    fn levels(&self, mult: &[usize], blocks: &[usize]) -> Levels {
        let mult = self.ch_mult.as_deref().unwrap_or(mult);
        Levels {
            channels: mult.iter().map(|m| m * self.ch).collect(),
            blocks: self.num_res_blocks.as_deref().unwrap_or(blocks).to_vec(),
        }
    }

    /// The number of pixels along the side of one code.
    pub fn downsampling(&self) -> usize {
        1 << (self.encoder().channels.len() - 1)
    }

    /// Checks the numbers against each other; `path` is named in errors.
    ///
    /// # Errors
    /// Says which number is out of range or contradicts another.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let sized =
            sizes::check_ranges(&[("ch", self.ch, sizes::WIDTH), ("resolution", self.resolution, sizes::WIDTH)]);
        let each = |name: &'static str, list: &Option<Vec<usize>>| {
            let list = list.as_deref().unwrap_or_default();
            sizes::check_ranges(&[(&format!("the length of {name}"), list.len(), 0..=MOST_LEVELS)])?;
            list.iter().try_for_each(|number| sizes::check_ranges(&[(name, *number, 1..=MOST_PER_LEVEL)]))
        };
        sized
            .and_then(|()| each("ch_mult", &self.ch_mult))
            .and_then(|()| each("num_res_blocks", &self.num_res_blocks))
            .map_err(|message| Error::config(path, message))?;
        for levels in [self.encoder(), self.decoder()] {
            if levels.channels.is_empty() || levels.channels.len() != levels.blocks.len() {
                return Err(Error::config(
                    path,
                    "ch_mult and num_res_blocks differ in length; give both one number per level",
                ));
            }
            if self.norm_groups == 0 || levels.channels.iter().any(|c| c % self.norm_groups != 0) {
                let message = format!(
                    "norm_groups is {}; it must divide the channels of every level, {:?}",
                    self.norm_groups, levels.channels
                );
                return Err(Error::config(path, message));
            }
        }
        if self.z_channels == 0 || self.z_channels > 24 {
            return Err(Error::config(path, format!("z_channels is {}; it must be between 1 and 24", self.z_channels)));
        }
        Ok(())
    }
}

fn d32() -> usize {
    32
}
