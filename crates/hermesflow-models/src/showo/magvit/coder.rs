//! MAGVIT-v2's encoder, from pixels to the numbers whose signs are a code, and its decoder.

use candle_core::Tensor;
use hermesflow_nn::ops::Around;

use super::config::Levels;
use crate::Result;
use crate::vqgan::{Conv, Middle, Norm, ResnetBlock, Source};

/// The parts of the lowest resolution.
const MIDDLE: [&str; 3] = ["block_1", "attn_1", "block_2"];

#[derive(Debug, Clone)]
struct Level {
    blocks: Vec<ResnetBlock>,
    resample: Option<Conv>,
}

#[derive(Debug, Clone)]
pub(super) struct Encoder {
    conv_in: Conv,
    down: Vec<Level>,
    mid: Middle,
    norm_out: Norm,
    conv_out: Conv,
    quant_conv: Conv,
}

impl Encoder {
    pub(super) fn new(source: &Source, levels: &Levels, bits: usize, groups: usize) -> Result<Self> {
        let mut channels = levels.channels[0];
        let conv_in = Conv::new(source, "encoder.conv_in", (3, channels), 3)?;
        let mut down = Vec::new();
        for (level, (&output, &count)) in levels.channels.iter().zip(&levels.blocks).enumerate() {
            let mut blocks = Vec::new();
            for block in 0..count {
                let name = format!("encoder.down.{level}.block.{block}");
                blocks.push(ResnetBlock::new(source, &name, (channels, output), groups)?);
                channels = output;
            }
            let resample = if level + 1 < levels.channels.len() {
                let name = format!("encoder.down.{level}.downsample.conv");
                Some(Conv::halving(source, &name, channels)?)
            } else {
                None
            };
            down.push(Level { blocks, resample });
        }
        Ok(Self {
            conv_in,
            down,
            mid: Middle::new(source, "encoder.mid", MIDDLE, channels, groups)?,
            norm_out: Norm::new(source, "encoder.norm_out", channels, groups)?,
            conv_out: Conv::new(source, "encoder.conv_out", (channels, bits), 3)?,
            quant_conv: Conv::new(source, "encoder.quant_conv", (bits, bits), 1)?,
        })
    }

    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut xs = self.conv_in.forward(images)?;
        for level in &self.down {
            for block in &level.blocks {
                xs = block.forward(&xs)?;
            }
            if let Some(conv) = &level.resample {
                xs = conv.forward(&xs)?;
            }
        }
        let xs = self.conv_out.with(&self.mid.forward(&xs)?, self.norm_out.before())?;
        self.quant_conv.forward(&xs)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Decoder {
    post_quant_conv: Conv,
    conv_in: Conv,
    mid: Middle,
    /// The levels from the lowest resolution up.
    up: Vec<Level>,
    norm_out: Norm,
    conv_out: Conv,
}

impl Decoder {
    pub(super) fn new(source: &Source, levels: &Levels, bits: usize, groups: usize) -> Result<Self> {
        let mut channels = levels.channels.last().copied().unwrap_or(bits);
        let post_quant_conv = Conv::new(source, "decoder.post_quant_conv", (bits, bits), 1)?;
        let conv_in = Conv::new(source, "decoder.conv_in", (bits, channels), 3)?;
        let mid = Middle::new(source, "decoder.mid", MIDDLE, channels, groups)?;
        let mut up = Vec::new();
        for (level, (&output, &count)) in levels.channels.iter().zip(&levels.blocks).enumerate().rev() {
            let mut blocks = Vec::new();
            for block in 0..count {
                let name = format!("decoder.up.{level}.block.{block}");
                blocks.push(ResnetBlock::new(source, &name, (channels, output), groups)?);
                channels = output;
            }
            let resample = if level > 0 {
                let name = format!("decoder.up.{level}.upsample.conv");
                Some(Conv::new(source, &name, (channels, channels), 3)?)
            } else {
                None
            };
            up.push(Level { blocks, resample });
        }
        let norm_out = Norm::new(source, "decoder.norm_out", channels, groups)?;
        let conv_out = Conv::new(source, "decoder.conv_out", (channels, 3), 3)?;
        Ok(Self { post_quant_conv, conv_in, mid, up, norm_out, conv_out })
    }

    pub(super) fn forward(&self, bits: &Tensor) -> Result<Tensor> {
        let xs = self.conv_in.forward(&self.post_quant_conv.forward(bits)?)?;
        let mut xs = self.mid.forward(&xs)?;
        for level in &self.up {
            for block in &level.blocks {
                xs = block.forward(&xs)?;
            }
            if let Some(conv) = &level.resample {
                xs = conv.with(&xs, Around { upsample: true, ..Around::default() })?;
            }
        }
        self.conv_out.with(&xs, self.norm_out.before())
    }
}
