//! MAGVIT-v2, the convolutional image tokenizer with lookup-free quantization (arXiv 2310.05737).
//!
//! A code is the sign pattern of the encoder's output, most significant bit first, so no codebook is looked up. Fields
//! are named like the checkpoint's weights (those of VQGAN's encoder and decoder).

mod coder;
mod config;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops;
use hermesflow_nn::parallel;
use hermesflow_nn::weights::Weights;
use image::RgbImage;

use coder::{Decoder, Encoder};
pub use config::{Levels, MagvitConfig};

use crate::vqgan::Source;
use crate::{Error, Result};

/// Images of at most 256² pixels that go through the convolutions as one batch.
const BATCH: usize = 4;
const BATCH_PIXELS: usize = BATCH * 256 * 256;

/// The number of images of `pixels` pixels each that go through the convolutions as one batch.
pub(super) fn batch(pixels: usize) -> usize {
    (BATCH_PIXELS / pixels.max(1)).clamp(1, BATCH)
}
/// Endings of names that a checkpoint may have beside the parameters.
pub(super) const IGNORED: &[&str] = &["quantize.embedding", "quantize.power_vals"];
/// The image tokenizer: from pixels to codes and back.
#[derive(Debug, Clone)]
pub struct Magvit {
    config: MagvitConfig,
    encoder: Encoder,
    decoder: Decoder,
    dtype: DType,
    device: Device,
    /// Whether images are processed in parallel, because single operators are too small to be shared between threads.
    apart: bool,
}

impl Magvit {
    /// Names and shapes of all trainable parameters.
    ///
    /// # Errors
    /// Never for a validated configuration.
    pub fn parameter_shapes(config: &MagvitConfig) -> Result<Vec<(String, Vec<usize>)>> {
        Source::list("", |source| {
            Encoder::new(source, &config.encoder(), config.z_channels, config.norm_groups)?;
            Decoder::new(source, &config.decoder(), config.z_channels, config.norm_groups)?;
            Ok(())
        })
    }

    /// Builds the tokenizer from its weights, in their type and on their device.
    ///
    /// # Errors
    /// Lists the weights that are missing, unexpected or of another shape.
    pub fn new(weights: &Weights, config: &MagvitConfig) -> Result<Self> {
        weights.check(&Self::parameter_shapes(config)?, IGNORED)?;
        let source = Source::load(weights, "", None);
        let probe = weights.get("encoder.conv_in.bias", &[config.encoder().channels[0]])?;
        Ok(Self {
            encoder: Encoder::new(&source, &config.encoder(), config.z_channels, config.norm_groups)?,
            decoder: Decoder::new(&source, &config.decoder(), config.z_channels, config.norm_groups)?,
            config: config.clone(),
            dtype: probe.dtype(),
            device: probe.device().clone(),
            apart: weights.parameter_count() < parallel::SMALL && probe.device().is_cpu(),
        })
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The tokenizer's configuration.
    pub fn config(&self) -> &MagvitConfig {
        &self.config
    }

    /// The encoder's output before quantization. R is the side of the images and d the number of pixels along the side
    /// of a code.
    ///
    /// # Shapes
    /// `[b, 3, R, R]` in [-1, 1] → `[b, bits, R/d, R/d]`
    ///
    /// # Errors
    /// If the images have another shape.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.encoder.forward(&self.laid_out(images)?)?.contiguous()?)
    }

    /// Images from quantized features, each −1 or 1 (or straight-through estimates of these).
    ///
    /// # Shapes
    /// `[b, bits, h, w]` → `[b, 3, h·d, w·d]`, about in [-1, 1]
    ///
    /// # Errors
    /// If the features have another shape.
    pub fn decode(&self, features: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&self.laid_out(features)?)
    }

    /// The input in the memory layout in which a large model's convolutions are fastest on the CPU. A small model keeps
    /// the exact order of its operators.
    fn laid_out(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(if self.apart { xs.clone() } else { ops::convolution_layout(xs)? })
    }

    /// The codes of the encoder's output: its signs as bits, most significant first; row by row for each image.
    ///
    /// # Shapes
    /// `[b, bits, h, w]` → `b` lists of `h·w` codes
    ///
    /// # Errors
    /// If the output has another shape.
    pub fn quantize(&self, encoder_out: &Tensor) -> Result<Vec<Vec<u32>>> {
        let (b, bits, h, w) = encoder_out.dims4()?;
        let rows = encoder_out.to_dtype(DType::F32)?.reshape((b, bits, h * w))?.to_vec3::<f32>()?;
        let code = |channels: &[Vec<f32>], at: usize| {
            channels.iter().fold(0u32, |code, channel| (code << 1) | u32::from(channel[at] > 0.0))
        };
        Ok(rows.iter().map(|channels| (0..h * w).map(|at| code(channels, at)).collect()).collect())
    }

    /// The features, each −1 or 1, that square images' codes stand for.
    ///
    /// # Shapes
    /// `[b, bits, side, side]`
    ///
    /// # Errors
    /// If the number of codes is not a square, or a code is outside the codebook.
    pub fn features(&self, codes: &[Vec<u32>]) -> Result<Tensor> {
        let side = codes.first().map_or(0, Vec::len).isqrt();
        self.grid_features(codes, side, side)
    }

    /// Like [`Magvit::features`], for grids of any height and width.
    fn grid_features(&self, codes: &[Vec<u32>], height: usize, width: usize) -> Result<Tensor> {
        let bits = self.config.z_channels;
        let tokens = height * width;
        let valid = |row: &Vec<u32>| row.len() == tokens && row.iter().all(|&code| code < 1 << bits);
        if tokens == 0 || !codes.iter().all(valid) {
            let shape = if height == width { "a square".into() } else { format!("{height}×{width}") };
            let message = format!("image codes must be {shape} of numbers below {}", 1u32 << bits);
            return Err(Error::Invalid(message));
        }
        let mut values = Vec::with_capacity(codes.len() * bits * tokens);
        for row in codes {
            for bit in (0..bits).rev() {
                values.extend(row.iter().map(|code| if code >> bit & 1 == 1 { 1f32 } else { -1.0 }));
            }
        }
        Ok(Tensor::from_vec(values, (codes.len(), bits, height, width), &self.device)?.to_dtype(self.dtype)?)
    }

    /// The pixels of images as the encoder reads them.
    ///
    /// # Shapes
    /// `[b, 3, R, R]` in [-1, 1]
    ///
    /// # Errors
    /// If the images differ in size.
    pub fn pixels(&self, images: &[RgbImage]) -> Result<Tensor> {
        let (width, height) = images.first().map_or((0, 0), RgbImage::dimensions);
        if width == 0 || images.iter().any(|image| image.dimensions() != (width, height)) {
            return Err(Error::Invalid("the images of a batch differ in size; scale them to one size".into()));
        }
        let (w, h) = (width as usize, height as usize);
        let mut values = vec![0f32; images.len() * 3 * h * w];
        for (image, planes) in images.iter().zip(values.chunks_exact_mut(3 * h * w)) {
            for (at, pixel) in image.pixels().enumerate() {
                for channel in 0..3 {
                    // torchvision: ToTensor, then Normalize(0.5, 0.5).
                    planes[channel * h * w + at] = (f32::from(pixel[channel]) / 255.0 - 0.5) / 0.5;
                }
            }
        }
        Ok(Tensor::from_vec(values, (images.len(), 3, h, w), &self.device)?.to_dtype(self.dtype)?)
    }

    /// The codes of images, row by row for each image.
    ///
    /// # Errors
    /// If the images differ in size.
    pub fn encode_images(&self, images: &[RgbImage]) -> Result<Vec<Vec<u32>>> {
        let pixels = images.first().map_or(0, |image| (image.width() * image.height()) as usize);
        let chunks: Vec<&[RgbImage]> = images.chunks(batch(pixels)).collect();
        let codes = parallel::map(self.apart, &chunks, |chunk| self.quantize(&self.encode(&self.pixels(chunk)?)?));
        Ok(codes.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    /// The images of square grids of codes, each given row by row.
    ///
    /// # Errors
    /// If the number of codes is not a square, or a code is outside the codebook.
    pub fn decode_images(&self, codes: &[Vec<u32>]) -> Result<Vec<RgbImage>> {
        let side = codes.first().map_or(0, Vec::len).isqrt();
        self.decode_grids(codes, side, side)
    }

    /// The images of grids of `height`×`width` codes, each given row by row.
    ///
    /// # Errors
    /// If a grid has another number of codes, or a code is outside the codebook.
    pub fn decode_grids(&self, codes: &[Vec<u32>], height: usize, width: usize) -> Result<Vec<RgbImage>> {
        let chunks: Vec<&[Vec<u32>]> =
            codes.chunks(batch(height * width * self.config.downsampling().pow(2))).collect();
        let decode = |chunk: &&[Vec<u32>]| self.decode_chunk(&self.grid_features(chunk, height, width)?);
        let images = parallel::map(self.apart, &chunks, decode);
        Ok(images.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn decode_chunk(&self, features: &Tensor) -> Result<Vec<RgbImage>> {
        let decoded = self.decode(features)?.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?;
        let (_, h, w, _) = decoded.dims4()?;
        let level = |value: &f32| ((value.clamp(-1.0, 1.0) + 1.0) / 2.0 * 255.0) as u8;
        let picture = |pixels: &[f32]| {
            RgbImage::from_raw(w as u32, h as u32, pixels.iter().map(level).collect())
                .ok_or_else(|| Error::Invalid("a decoded image has the wrong size".into()))
        };
        decoded.flatten_all()?.to_vec1::<f32>()?.chunks_exact((3 * h * w).max(1)).map(picture).collect()
    }
}
