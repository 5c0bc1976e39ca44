//! VQ-16, LlamaGen's image tokenizer (arXiv 2406.06525): VQGAN's encoder and decoder around a codebook whose rows count by
//! their direction alone. Weight paths mirror the checkpoint's names; `quantize.codebook_used` is never used.

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::{self, Around};
use hermesflow_nn::parallel;
use hermesflow_nn::weights::Weights;
use image::RgbImage;

use super::config::{GROUPS, VqConfig};
use super::pictures::{level, symmetric};
use crate::vqgan::{AttentionBlock, Conv, Middle, Norm, ResnetBlock, Source};
use crate::{Error, Result};

/// What the names of the image tokenizer's parameters begin with.
pub(super) const ROOT: &str = "gen_vision_model";
/// The parts of the lowest resolution.
const MIDDLE: [&str; 3] = ["0", "1", "2"];

/// Pictures that go through the convolutions as one batch, if they have no more than 256² pixels.
const BATCH: usize = 4;
const BATCH_PIXELS: usize = BATCH * 256 * 256;
/// The least length of a vector that is normalised.
const SHORTEST: f64 = 1e-12;

/// Residual blocks of one size of picture, each followed by attention where the picture is smallest.
#[derive(Debug, Clone)]
struct Level {
    blocks: Vec<(ResnetBlock, Option<AttentionBlock>)>,
    /// The convolution at the end, for the next level.
    resample: Option<Conv>,
}

impl Level {
    /// `count` blocks from `input` to `output` channels.
    fn new(source: &Source, name: &str, (input, output): (usize, usize), count: usize, attends: bool) -> Result<Self> {
        let block = |at: usize| {
            let input = if at == 0 { input } else { output };
            let residual = ResnetBlock::new(source, &format!("{name}.res.{at}"), (input, output), GROUPS)?;
            let attention = || AttentionBlock::new(source, &format!("{name}.attn.{at}"), output, GROUPS);
            Ok((residual, attends.then(attention).transpose()?))
        };
        Ok(Self { blocks: (0..count).map(block).collect::<Result<_>>()?, resample: None })
    }

    fn forward(&self, xs: Tensor) -> Result<Tensor> {
        let mut xs = xs;
        for (residual, attention) in &self.blocks {
            xs = residual.forward(&xs)?;
            if let Some(attention) = attention {
                xs = attention.forward(&xs)?;
            }
        }
        Ok(xs)
    }
}

#[derive(Debug, Clone)]
struct Encoder {
    conv_in: Conv,
    levels: Vec<Level>,
    mid: Middle,
    norm_out: Norm,
    conv_out: Conv,
    quant_conv: Conv,
}

impl Encoder {
    fn new(source: &Source, config: &VqConfig) -> Result<Self> {
        let mut channels = config.encoder[0];
        let conv_in = Conv::new(source, "encoder.conv_in", (3, channels), 3)?;
        let (mut levels, last) = (Vec::new(), config.encoder.len() - 1);
        for (at, &output) in config.encoder.iter().enumerate() {
            let name = format!("encoder.conv_blocks.{at}");
            let mut level = Level::new(source, &name, (channels, output), config.blocks, at == last)?;
            channels = output;
            if at < last {
                level.resample = Some(Conv::halving(source, &format!("{name}.downsample.conv"), channels)?);
            }
            levels.push(level);
        }
        Ok(Self {
            conv_in,
            levels,
            mid: Middle::new(source, "encoder.mid", MIDDLE, channels, GROUPS)?,
            norm_out: Norm::new(source, "encoder.norm_out", channels, GROUPS)?,
            conv_out: Conv::new(source, "encoder.conv_out", (channels, config.z_channels), 3)?,
            quant_conv: Conv::new(source, "quant_conv", (config.z_channels, config.code_width), 1)?,
        })
    }

    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut xs = self.conv_in.forward(images)?;
        for level in &self.levels {
            xs = level.forward(xs)?;
            if let Some(conv) = &level.resample {
                xs = conv.forward(&xs)?;
            }
        }
        let xs = self.conv_out.with(&self.mid.forward(&xs)?, self.norm_out.before())?;
        self.quant_conv.forward(&xs)
    }
}

#[derive(Debug, Clone)]
struct Decoder {
    post_quant_conv: Conv,
    conv_in: Conv,
    mid: Middle,
    /// In the order of execution, the smallest picture first.
    levels: Vec<Level>,
    norm_out: Norm,
    conv_out: Conv,
}

impl Decoder {
    fn new(source: &Source, config: &VqConfig) -> Result<Self> {
        let (z, last) = (config.z_channels, config.decoder.len() - 1);
        let mut channels = config.decoder[last];
        let post_quant_conv = Conv::new(source, "post_quant_conv", (config.code_width, z), 1)?;
        let conv_in = Conv::new(source, "decoder.conv_in", (z, channels), 3)?;
        let mid = Middle::new(source, "decoder.mid", MIDDLE, channels, GROUPS)?;
        let mut levels = Vec::new();
        for (at, &output) in config.decoder.iter().rev().enumerate() {
            let name = format!("decoder.conv_blocks.{at}");
            let mut level = Level::new(source, &name, (channels, output), config.blocks + 1, at == 0)?;
            channels = output;
            if at < last {
                level.resample = Some(Conv::new(source, &format!("{name}.upsample.conv"), (channels, channels), 3)?);
            }
            levels.push(level);
        }
        let norm_out = Norm::new(source, "decoder.norm_out", channels, GROUPS)?;
        let conv_out = Conv::new(source, "decoder.conv_out", (channels, 3), 3)?;
        Ok(Self { post_quant_conv, conv_in, mid, levels, norm_out, conv_out })
    }

    fn forward(&self, vectors: &Tensor) -> Result<Tensor> {
        let xs = self.conv_in.forward(&self.post_quant_conv.forward(vectors)?)?;
        let mut xs = self.mid.forward(&xs)?;
        for level in &self.levels {
            xs = level.forward(xs)?;
            if let Some(conv) = &level.resample {
                xs = conv.with(&xs, Around { upsample: true, ..Around::default() })?;
            }
        }
        self.conv_out.with(&xs, self.norm_out.before())
    }
}

/// The image tokenizer; it computes in f32 whatever type its weights are held in.
#[derive(Debug, Clone)]
pub struct Vq {
    config: VqConfig,
    encoder: Encoder,
    decoder: Decoder,
    /// Rows of length 1, `[codes, code width]`.
    codebook: Tensor,
    /// Whether pieces of work are done side by side: its operators are too small to be shared between threads.
    apart: bool,
}

impl Vq {
    /// Names and shapes of all parameters.
    ///
    /// # Errors
    /// Never for a validated configuration.
    pub fn parameter_shapes(config: &VqConfig) -> Result<Vec<(String, Vec<usize>)>> {
        Source::list(ROOT, |source| {
            Encoder::new(source, config)?;
            Decoder::new(source, config)?;
            source.get("quantize.embedding.weight", &[config.codes, config.code_width])?;
            Ok(())
        })
    }

    /// Takes the weights.
    ///
    /// # Errors
    /// Says what is missing or mis-shaped.
    pub fn new(weights: &Weights, config: &VqConfig) -> Result<Self> {
        let source = Source::load(weights, ROOT, Some(DType::F32));
        let codebook = source.get("quantize.embedding.weight", &[config.codes, config.code_width])?;
        let parameters: usize =
            Self::parameter_shapes(config)?.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        Ok(Self {
            encoder: Encoder::new(&source, config)?,
            decoder: Decoder::new(&source, config)?,
            apart: parameters < parallel::SMALL && codebook.device().is_cpu(),
            codebook: normalised(&codebook.detach())?,
            config: config.clone(),
        })
    }

    fn device(&self) -> &Device {
        self.codebook.device()
    }

    /// The encoder's output before quantization.
    ///
    /// # Shapes
    /// `[b, 3, R, R]` in [-1, 1] → `[b, code width, R/d, R/d]`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.encoder.forward(&self.laid_out(images)?)?.contiguous()?)
    }

    /// Pictures from the vectors of codes.
    ///
    /// # Shapes
    /// `[b, code width, h, w]` → `[b, 3, h·d, w·d]`, about [-1, 1]
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn decode(&self, vectors: &Tensor) -> Result<Tensor> {
        Ok(self.decoder.forward(&self.laid_out(vectors)?)?.contiguous()?)
    }

    /// As a large model's convolutions are fastest on the CPU; a small one keeps to the exact order of its operators.
    fn laid_out(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(if self.apart { xs.clone() } else { ops::convolution_layout(xs)? })
    }

    /// Codes from the encoder's output, row by row: the codebook's row of the nearest direction, the first of equals.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn quantize(&self, encoder_out: &Tensor) -> Result<Vec<Vec<u32>>> {
        let (b, width, h, w) = encoder_out.dims4()?;
        if width != self.config.code_width {
            let message = format!("vectors of {width} numbers, the codebook has {}", self.config.code_width);
            return Err(Error::Invalid(message));
        }
        let pixels = encoder_out.permute((0, 2, 3, 1))?.contiguous()?.reshape((b * h * w, width))?;
        // Of directions the nearest is the one with the largest product.
        let products = ops::linear(&normalised(&pixels)?, &self.codebook, None)?;
        let mut codes = vec![0u32; b * h * w];
        ops::for_each_row(&products, codes.iter_mut().collect(), |code, row| {
            let best = row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (at, &product)| {
                if product > best.1 { (at, product) } else { best }
            });
            *code = best.0 as u32;
        })?;
        Ok(codes.chunks_exact((h * w).max(1)).map(<[u32]>::to_vec).collect())
    }

    /// The vectors that codes stand for.
    ///
    /// # Shapes
    /// `[b, code width, side, side]`
    ///
    /// # Errors
    /// When the codes are not square or outside the codebook.
    pub fn vectors(&self, codes: &[Vec<u32>]) -> Result<Tensor> {
        let tokens = codes.first().map_or(0, Vec::len);
        let side = tokens.isqrt();
        let valid = |row: &Vec<u32>| row.len() == tokens && row.iter().all(|&code| (code as usize) < self.config.codes);
        if tokens == 0 || side * side != tokens || !codes.iter().all(valid) {
            let message = format!("image codes must be a square of numbers below {}", self.config.codes);
            return Err(Error::Invalid(message));
        }
        let vectors = ops::gather_rows(&self.codebook, &codes.concat())?;
        let vectors = vectors.reshape((codes.len(), side, side, self.config.code_width))?;
        Ok(vectors.permute((0, 3, 1, 2))?.contiguous()?)
    }

    /// Codes of square pictures of one size.
    ///
    /// # Errors
    /// When a picture has another size.
    pub fn encode_images(&self, images: &[RgbImage], side: usize) -> Result<Vec<Vec<u32>>> {
        let chunks: Vec<&[RgbImage]> = images.chunks(batch(side * side)).collect();
        let encode = |chunk: &&[RgbImage]| {
            let pixels = symmetric(chunk, side, self.device())?;
            self.quantize(&self.encode(&pixels)?)
        };
        let codes = parallel::map(self.apart, &chunks, encode);
        Ok(codes.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    /// Pictures of codes.
    ///
    /// # Errors
    /// When the codes are not square or outside the codebook.
    pub fn decode_images(&self, codes: &[Vec<u32>]) -> Result<Vec<RgbImage>> {
        let pixels = codes.first().map_or(0, Vec::len) * self.config.downsampling().pow(2);
        let chunks: Vec<&[Vec<u32>]> = codes.chunks(batch(pixels)).collect();
        let decode = |chunk: &&[Vec<u32>]| pictures(&self.decode(&self.vectors(chunk)?)?);
        let images = parallel::map(self.apart, &chunks, decode);
        Ok(images.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }
}

/// Pictures of `pixels` pixels each that go through the convolutions as one batch.
pub(super) fn batch(pixels: usize) -> usize {
    (BATCH_PIXELS / pixels.max(1)).clamp(1, BATCH)
}

/// Decoded pictures as levels.
///
/// # Shapes
/// `[b, 3, h, w]`
///
/// # Errors
/// When shapes do not fit.
pub fn pictures(decoded: &Tensor) -> Result<Vec<RgbImage>> {
    let decoded = decoded.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?.contiguous()?;
    let (_, h, w, _) = decoded.dims4()?;
    let picture = |pixels: &[f32]| {
        RgbImage::from_raw(w as u32, h as u32, pixels.iter().map(|value| level(*value)).collect())
            .ok_or_else(|| Error::Invalid("a decoded picture has the wrong size".into()))
    };
    decoded.flatten_all()?.to_vec1::<f32>()?.chunks_exact((3 * h * w).max(1)).map(picture).collect()
}

/// Rows of length 1.
fn normalised(rows: &Tensor) -> Result<Tensor> {
    let length = rows.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(SHORTEST)?;
    Ok(rows.broadcast_div(&length)?)
}
