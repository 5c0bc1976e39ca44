//! The layers of the VQ image tokenizer.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::{self, Around, NormBefore, Padding, Segment};
use hermesflow_nn::weights::Weights;

use crate::Result;
use crate::janus::config::GROUPS;

/// What the names of the image tokenizer's parameters begin with.
pub(in crate::janus) const ROOT: &str = "gen_vision_model";
const NORM_EPS: f64 = 1e-6;
const SAME: Padding = Padding { top: 1, bottom: 1, left: 1, right: 1 };
const NONE: Padding = Padding { top: 0, bottom: 0, left: 0, right: 0 };
/// Before a halving: a zero column on the right and a zero row below.
const DOWN: Padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };

/// Collects what a layer needs: loading it and listing its parameters are one piece of code.
pub(super) enum Source<'a> {
    Load(&'a Weights),
    List(RefCell<Vec<(String, Vec<usize>)>>),
}

impl Source<'_> {
    /// The tensor `gen_vision_model.NAME`, in f32.
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = format!("{}.{name}", ROOT);
        match self {
            Self::Load(weights) => Ok(weights.get(&name, shape)?.to_dtype(DType::F32)?),
            Self::List(shapes) => {
                shapes.borrow_mut().push((name, shape.to_vec()));
                Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?)
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: Padding,
}

impl Conv {
    pub(super) fn new(source: &Source, name: &str, (input, output): (usize, usize), kernel: usize) -> Result<Self> {
        Ok(Self {
            weight: source.get(&format!("{name}.weight"), &[output, input, kernel, kernel])?,
            bias: source.get(&format!("{name}.bias"), &[output])?,
            stride: 1,
            padding: if kernel == 3 { SAME } else { NONE },
        })
    }

    /// A 3×3 convolution that halves height and width.
    pub(super) fn halving(source: &Source, name: &str, channels: usize) -> Result<Self> {
        Ok(Self { stride: 2, padding: DOWN, ..Self::new(source, name, (channels, channels), 3)? })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.with(xs, Around::default())
    }

    pub(super) fn with(&self, xs: &Tensor, around: Around) -> Result<Tensor> {
        Ok(ops::norm_conv2d(xs, &self.weight, &self.bias, self.stride, self.padding, around)?)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    pub(super) fn new(source: &Source, name: &str, channels: usize) -> Result<Self> {
        Ok(Self {
            weight: source.get(&format!("{name}.weight"), &[channels])?,
            bias: source.get(&format!("{name}.bias"), &[channels])?,
        })
    }

    fn settings(&self, silu: bool) -> NormBefore<'_> {
        NormBefore { weight: &self.weight, bias: &self.bias, groups: GROUPS, eps: NORM_EPS, silu }
    }

    /// With SiLU, before a convolution.
    pub(super) fn before(&self) -> Around<'_> {
        Around { norm: Some(self.settings(true)), ..Around::default() }
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(ops::norm_before(xs, self.settings(false))?)
    }
}

#[derive(Debug, Clone)]
pub(super) struct ResnetBlock {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    nin_shortcut: Option<Conv>,
}

impl ResnetBlock {
    pub(super) fn new(source: &Source, name: &str, (input, output): (usize, usize)) -> Result<Self> {
        let shortcut = || Conv::new(source, &format!("{name}.nin_shortcut"), (input, output), 1);
        Ok(Self {
            norm1: Norm::new(source, &format!("{name}.norm1"), input)?,
            conv1: Conv::new(source, &format!("{name}.conv1"), (input, output), 3)?,
            norm2: Norm::new(source, &format!("{name}.norm2"), output)?,
            conv2: Conv::new(source, &format!("{name}.conv2"), (output, output), 3)?,
            nin_shortcut: (input != output).then(shortcut).transpose()?,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = self.conv1.with(xs, self.norm1.before())?;
        let shortcut = self.nin_shortcut.as_ref().map(|shortcut| shortcut.forward(xs)).transpose()?;
        let residual = Some(shortcut.as_ref().unwrap_or(xs));
        self.conv2.with(&ys, Around { residual, ..self.norm2.before() })
    }
}

#[derive(Debug, Clone)]
pub(super) struct AttentionBlock {
    norm: Norm,
    q: Conv,
    k: Conv,
    v: Conv,
    proj_out: Conv,
}

impl AttentionBlock {
    pub(super) fn new(source: &Source, name: &str, channels: usize) -> Result<Self> {
        let conv = |part: &str| Conv::new(source, &format!("{name}.{part}"), (channels, channels), 1);
        Ok(Self {
            norm: Norm::new(source, &format!("{name}.norm"), channels)?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            proj_out: conv("proj_out")?,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = xs.dims4()?;
        let normed = self.norm.forward(xs)?;
        // One head over all pixels of each image, as packed rows [b*h*w, 1, c].
        let rows = |conv: &Conv| -> Result<Tensor> {
            let ys = conv.forward(&normed)?.permute((0, 2, 3, 1))?;
            Ok(ys.contiguous()?.reshape((b * h * w, 1, c))?)
        };
        let pixels = |image: usize| image * h * w..(image + 1) * h * w;
        let segments: Arc<[Segment]> = (0..b).map(|image| Segment::block(pixels(image), pixels(image))).collect();
        let scale = 1.0 / (c as f32).sqrt();
        let ys = ops::attention(&rows(&self.q)?, &rows(&self.k)?, &rows(&self.v)?, &segments, scale)?;
        let ys = ys.reshape((b, h, w, c))?.permute((0, 3, 1, 2))?;
        self.proj_out.with(&ys, Around { residual: Some(xs), ..Around::default() })
    }
}

/// Residual, attention, residual: `mid.0`, `mid.1`, `mid.2`.
#[derive(Debug, Clone)]
pub(super) struct Middle {
    first: ResnetBlock,
    attention: AttentionBlock,
    second: ResnetBlock,
}

impl Middle {
    pub(super) fn new(source: &Source, name: &str, channels: usize) -> Result<Self> {
        Ok(Self {
            first: ResnetBlock::new(source, &format!("{name}.0"), (channels, channels))?,
            attention: AttentionBlock::new(source, &format!("{name}.1"), channels)?,
            second: ResnetBlock::new(source, &format!("{name}.2"), (channels, channels))?,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.attention.forward(&self.first.forward(xs)?)?)
    }
}

/// Residual blocks of one size of picture, each followed by attention where the picture is smallest.
#[derive(Debug, Clone)]
pub(super) struct Level {
    blocks: Vec<(ResnetBlock, Option<AttentionBlock>)>,
    /// The convolution at the end, for the next level.
    pub(super) resample: Option<Conv>,
}

impl Level {
    /// `count` blocks from `input` to `output` channels.
    pub(super) fn new(
        source: &Source,
        name: &str,
        (input, output): (usize, usize),
        count: usize,
        attends: bool,
    ) -> Result<Self> {
        let block = |at: usize| {
            let input = if at == 0 { input } else { output };
            let residual = ResnetBlock::new(source, &format!("{name}.res.{at}"), (input, output))?;
            let attention = || AttentionBlock::new(source, &format!("{name}.attn.{at}"), output);
            Ok((residual, attends.then(attention).transpose()?))
        };
        Ok(Self { blocks: (0..count).map(block).collect::<Result<_>>()?, resample: None })
    }

    pub(super) fn forward(&self, xs: Tensor) -> Result<Tensor> {
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
