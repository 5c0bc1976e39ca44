//! MAGVIT-v2: the convolutional image tokenizer with lookup-free quantization (arXiv 2310.05737).
//!
//! A code is the sign pattern of the encoder's output, most significant bit first; nothing is looked
//! up. Weight paths mirror the checkpoint's names (VQGAN's encoder and decoder).

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::{self, Around, NormBefore, Padding};
use hermesflow_nn::parallel;
use hermesflow_nn::weights::Weights;
use image::RgbImage;

use super::config::{Levels, MagvitConfig};
use crate::{Error, Result};

/// Pictures that go through the convolutions as one batch, if they have no more than 256² pixels.
const BATCH: usize = 4;
const BATCH_PIXELS: usize = BATCH * 256 * 256;

/// Pictures of `pixels` pixels each that go through the convolutions as one batch.
pub fn batch(pixels: usize) -> usize {
    (BATCH_PIXELS / pixels.max(1)).clamp(1, BATCH)
}
const NORM_EPS: f64 = 1e-6;
/// Endings of names that a checkpoint may have beside the parameters.
pub(super) const IGNORED: &[&str] = &["quantize.embedding", "quantize.power_vals"];
const SAME: Padding = Padding { top: 1, bottom: 1, left: 1, right: 1 };
const NONE: Padding = Padding { top: 0, bottom: 0, left: 0, right: 0 };
const DOWN: Padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };

/// Collects what a layer needs: loading it and listing its parameters are one piece of code.
enum Source<'a> {
    Load(&'a Weights),
    List(std::cell::RefCell<Vec<(String, Vec<usize>)>>),
}

impl Source<'_> {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self {
            Self::Load(weights) => Ok(weights.get(name, shape)?),
            Self::List(shapes) => {
                shapes.borrow_mut().push((name.to_string(), shape.to_vec()));
                Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?)
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: Padding,
}

impl Conv {
    fn new(source: &Source, name: &str, (input, output): (usize, usize), kernel: usize) -> Result<Self> {
        Ok(Self {
            weight: source.get(&format!("{name}.weight"), &[output, input, kernel, kernel])?,
            bias: source.get(&format!("{name}.bias"), &[output])?,
            stride: 1,
            padding: if kernel == 3 { SAME } else { NONE },
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.with(xs, Around::default())
    }

    fn with(&self, xs: &Tensor, around: Around) -> Result<Tensor> {
        Ok(ops::norm_conv2d(xs, &self.weight, &self.bias, self.stride, self.padding, around)?)
    }
}

#[derive(Debug, Clone)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
}

impl Norm {
    fn new(source: &Source, name: &str, channels: usize, groups: usize) -> Result<Self> {
        Ok(Self {
            weight: source.get(&format!("{name}.weight"), &[channels])?,
            bias: source.get(&format!("{name}.bias"), &[channels])?,
            groups,
        })
    }

    fn settings(&self, silu: bool) -> NormBefore<'_> {
        NormBefore { weight: &self.weight, bias: &self.bias, groups: self.groups, eps: NORM_EPS, silu }
    }

    /// With SiLU, before a convolution.
    fn before(&self) -> Around<'_> {
        Around { norm: Some(self.settings(true)), ..Around::default() }
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(ops::norm_before(xs, self.settings(false))?)
    }
}

#[derive(Debug, Clone)]
struct ResnetBlock {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    nin_shortcut: Option<Conv>,
}

impl ResnetBlock {
    fn new(source: &Source, name: &str, (input, output): (usize, usize), groups: usize) -> Result<Self> {
        let nin_shortcut = if input == output {
            None
        } else {
            Some(Conv::new(source, &format!("{name}.nin_shortcut"), (input, output), 1)?)
        };
        Ok(Self {
            norm1: Norm::new(source, &format!("{name}.norm1"), input, groups)?,
            conv1: Conv::new(source, &format!("{name}.conv1"), (input, output), 3)?,
            norm2: Norm::new(source, &format!("{name}.norm2"), output, groups)?,
            conv2: Conv::new(source, &format!("{name}.conv2"), (output, output), 3)?,
            nin_shortcut,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = self.conv1.with(xs, self.norm1.before())?;
        let shortcut = self.nin_shortcut.as_ref().map(|shortcut| shortcut.forward(xs)).transpose()?;
        let residual = Some(shortcut.as_ref().unwrap_or(xs));
        self.conv2.with(&ys, Around { residual, ..self.norm2.before() })
    }
}

#[derive(Debug, Clone)]
struct AttentionBlock {
    norm: Norm,
    q: Conv,
    k: Conv,
    v: Conv,
    proj_out: Conv,
}

impl AttentionBlock {
    fn new(source: &Source, name: &str, channels: usize, groups: usize) -> Result<Self> {
        let conv = |part: &str| Conv::new(source, &format!("{name}.{part}"), (channels, channels), 1);
        Ok(Self {
            norm: Norm::new(source, &format!("{name}.norm"), channels, groups)?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            proj_out: conv("proj_out")?,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = xs.dims4()?;
        let normed = self.norm.forward(xs)?;
        // One head over all pixels of each image, as packed rows [b*h*w, 1, c].
        let rows = |conv: &Conv| -> Result<Tensor> {
            let ys = conv.forward(&normed)?.permute((0, 2, 3, 1))?;
            Ok(ys.contiguous()?.reshape((b * h * w, 1, c))?)
        };
        let segments: std::sync::Arc<[ops::Segment]> = (0..b)
            .map(|image| {
                let own = image * h * w..(image + 1) * h * w;
                ops::Segment { queries: own.clone(), sees: vec![], own, causal: false }
            })
            .collect();
        let scale = 1.0 / (c as f32).sqrt();
        let ys = ops::attention(&rows(&self.q)?, &rows(&self.k)?, &rows(&self.v)?, &segments, scale)?;
        let ys = ys.reshape((b, h, w, c))?.permute((0, 3, 1, 2))?;
        self.proj_out.with(&ys, Around { residual: Some(xs), ..Around::default() })
    }
}

#[derive(Debug, Clone)]
struct Middle {
    block_1: ResnetBlock,
    attn_1: AttentionBlock,
    block_2: ResnetBlock,
}

impl Middle {
    fn new(source: &Source, name: &str, channels: usize, groups: usize) -> Result<Self> {
        let shape = (channels, channels);
        Ok(Self {
            block_1: ResnetBlock::new(source, &format!("{name}.block_1"), shape, groups)?,
            attn_1: AttentionBlock::new(source, &format!("{name}.attn_1"), channels, groups)?,
            block_2: ResnetBlock::new(source, &format!("{name}.block_2"), shape, groups)?,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.block_2.forward(&self.attn_1.forward(&self.block_1.forward(xs)?)?)
    }
}

#[derive(Debug, Clone)]
struct Level {
    blocks: Vec<ResnetBlock>,
    resample: Option<Conv>,
}

#[derive(Debug, Clone)]
struct Encoder {
    conv_in: Conv,
    down: Vec<Level>,
    mid: Middle,
    norm_out: Norm,
    conv_out: Conv,
    quant_conv: Conv,
}

impl Encoder {
    fn new(source: &Source, levels: &Levels, bits: usize, groups: usize) -> Result<Self> {
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
                Some(Conv { stride: 2, padding: DOWN, ..Conv::new(source, &name, (channels, channels), 3)? })
            } else {
                None
            };
            down.push(Level { blocks, resample });
        }
        Ok(Self {
            conv_in,
            down,
            mid: Middle::new(source, "encoder.mid", channels, groups)?,
            norm_out: Norm::new(source, "encoder.norm_out", channels, groups)?,
            conv_out: Conv::new(source, "encoder.conv_out", (channels, bits), 3)?,
            quant_conv: Conv::new(source, "encoder.quant_conv", (bits, bits), 1)?,
        })
    }

    fn forward(&self, images: &Tensor) -> Result<Tensor> {
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
struct Decoder {
    post_quant_conv: Conv,
    conv_in: Conv,
    mid: Middle,
    /// From the lowest resolution up.
    up: Vec<Level>,
    norm_out: Norm,
    conv_out: Conv,
}

impl Decoder {
    fn new(source: &Source, levels: &Levels, bits: usize, groups: usize) -> Result<Self> {
        let mut channels = levels.channels.last().copied().unwrap_or(bits);
        let post_quant_conv = Conv::new(source, "decoder.post_quant_conv", (bits, bits), 1)?;
        let conv_in = Conv::new(source, "decoder.conv_in", (bits, channels), 3)?;
        let mid = Middle::new(source, "decoder.mid", channels, groups)?;
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

    fn forward(&self, bits: &Tensor) -> Result<Tensor> {
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

/// The image tokenizer.
#[derive(Debug, Clone)]
pub struct Magvit {
    config: MagvitConfig,
    encoder: Encoder,
    decoder: Decoder,
    dtype: DType,
    device: Device,
    /// Whether pieces of work are done side by side: its operators are too small to be shared between threads.
    apart: bool,
}

impl Magvit {
    /// Names and shapes of all trainable parameters.
    ///
    /// # Errors
    /// Never for a validated configuration.
    pub fn parameter_shapes(config: &MagvitConfig) -> Result<Vec<(String, Vec<usize>)>> {
        let source = Source::List(Default::default());
        Encoder::new(&source, &config.encoder(), config.z_channels, config.norm_groups)?;
        Decoder::new(&source, &config.decoder(), config.z_channels, config.norm_groups)?;
        match source {
            Source::List(shapes) => Ok(shapes.into_inner()),
            Source::Load(_) => Ok(Vec::new()),
        }
    }

    /// Takes the weights (their dtype and device are the model's).
    ///
    /// # Errors
    /// Lists what is missing, unexpected or mis-shaped.
    pub fn new(weights: &Weights, config: &MagvitConfig) -> Result<Self> {
        weights.check(&Self::parameter_shapes(config)?, IGNORED)?;
        let source = Source::Load(weights);
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

    /// Where the weights live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The configuration.
    pub fn config(&self) -> &MagvitConfig {
        &self.config
    }

    /// The encoder's output before quantization.
    ///
    /// # Shapes
    /// `[b, 3, R, R]` in [-1, 1] → `[b, bits, R/d, R/d]`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.encoder.forward(&self.laid_out(images)?)?.contiguous()?)
    }

    /// Pictures from quantized features (each ±1, or straight-through estimates of it).
    ///
    /// # Shapes
    /// `[b, bits, h, w]` → `[b, 3, h·d, w·d]`, about [-1, 1]
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn decode(&self, features: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&self.laid_out(features)?)
    }

    /// In the layout in which a large model's convolutions are fastest; a small model keeps the rounding of the plain layout.
    fn laid_out(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(if self.apart { xs.clone() } else { ops::convolution_layout(xs)? })
    }

    /// Codes from the encoder's output: the sign bits, most significant first.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn quantize(&self, encoder_out: &Tensor) -> Result<Vec<Vec<u32>>> {
        let (b, bits, h, w) = encoder_out.dims4()?;
        let rows = encoder_out.to_dtype(DType::F32)?.reshape((b, bits, h * w))?.to_vec3::<f32>()?;
        let code = |channels: &[Vec<f32>], at: usize| {
            channels.iter().fold(0u32, |code, channel| (code << 1) | u32::from(channel[at] > 0.0))
        };
        Ok(rows.iter().map(|channels| (0..h * w).map(|at| code(channels, at)).collect()).collect())
    }

    /// The ±1 features that codes stand for.
    ///
    /// # Shapes
    /// `[b, bits, side, side]`
    ///
    /// # Errors
    /// When the codes are not square or outside the codebook.
    pub fn features(&self, codes: &[Vec<u32>]) -> Result<Tensor> {
        let side = codes.first().map_or(0, Vec::len).isqrt();
        self.grid_features(codes, side, side)
    }

    /// As [`Magvit::features`], of any height and width.
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

    /// Pixels of pictures as the encoder reads them.
    ///
    /// # Shapes
    /// `[b, 3, R, R]` in [-1, 1]
    ///
    /// # Errors
    /// When the pictures differ in size.
    pub fn pixels(&self, images: &[RgbImage]) -> Result<Tensor> {
        let (width, height) = images.first().map_or((0, 0), RgbImage::dimensions);
        if width == 0 || images.iter().any(|image| image.dimensions() != (width, height)) {
            return Err(Error::Invalid("the pictures of one batch must have one size".into()));
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

    /// Codes of pictures.
    ///
    /// # Errors
    /// When the pictures differ in size.
    pub fn encode_images(&self, images: &[RgbImage]) -> Result<Vec<Vec<u32>>> {
        let pixels = images.first().map_or(0, |image| (image.width() * image.height()) as usize);
        let chunks: Vec<&[RgbImage]> = images.chunks(batch(pixels)).collect();
        let codes = parallel::map(self.apart, &chunks, |chunk| self.quantize(&self.encode(&self.pixels(chunk)?)?));
        Ok(codes.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    /// Pictures of codes.
    ///
    /// # Errors
    /// When the codes are not square or outside the codebook.
    pub fn decode_images(&self, codes: &[Vec<u32>]) -> Result<Vec<RgbImage>> {
        let side = codes.first().map_or(0, Vec::len).isqrt();
        self.decode_grids(codes, side, side)
    }

    /// Pictures of `height`×`width` codes each, row by row.
    ///
    /// # Errors
    /// When they are not so many, or outside the codebook.
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
                .ok_or_else(|| Error::Invalid("a decoded picture has the wrong size".into()))
        };
        decoded.flatten_all()?.to_vec1::<f32>()?.chunks_exact((3 * h * w).max(1)).map(picture).collect()
    }
}
