//! The layers of VQGAN (arXiv 2012.09841), which the encoders and decoders of MAGVIT-v2 and VQ-16 are made of.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::{self, Around, NormBefore, Padding, Segment};
use hermesflow_nn::weights::Weights;

use crate::Result;

const NORM_EPS: f64 = 1e-6;
const SAME: Padding = Padding { top: 1, bottom: 1, left: 1, right: 1 };
const NONE: Padding = Padding { top: 0, bottom: 0, left: 0, right: 0 };
/// Before a halving: a zero column on the right and a zero row below.
const DOWN: Padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };

/// Where a layer's parameters come from: loading them and listing their shapes run the same code.
pub(crate) struct Source<'a> {
    /// What every name is below; empty for none.
    root: &'static str,
    from: From<'a>,
}

enum From<'a> {
    /// Weights, and the type they are converted to; `None` leaves them as they are.
    Load(&'a Weights, Option<DType>),
    List(RefCell<Vec<(String, Vec<usize>)>>),
}

impl<'a> Source<'a> {
    /// Loads the parameters.
    pub(crate) fn load(weights: &'a Weights, root: &'static str, dtype: Option<DType>) -> Self {
        Self { root, from: From::Load(weights, dtype) }
    }

    /// Names and shapes of the parameters that `layers` asks for.
    pub(crate) fn list(
        root: &'static str,
        layers: impl FnOnce(&Source) -> Result<()>,
    ) -> Result<Vec<(String, Vec<usize>)>> {
        let source = Self { root, from: From::List(RefCell::default()) };
        layers(&source)?;
        match source.from {
            From::List(shapes) => Ok(shapes.into_inner()),
            From::Load(..) => Ok(Vec::new()),
        }
    }

    /// The tensor of a name.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = match self.root {
            "" => name.to_owned(),
            root => format!("{root}.{name}"),
        };
        match &self.from {
            From::Load(weights, None) => Ok(weights.get(&name, shape)?),
            From::Load(weights, Some(dtype)) => Ok(weights.get(&name, shape)?.to_dtype(*dtype)?),
            From::List(shapes) => {
                shapes.borrow_mut().push((name, shape.to_vec()));
                Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?)
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: Padding,
}

impl Conv {
    pub(crate) fn new(source: &Source, name: &str, (input, output): (usize, usize), kernel: usize) -> Result<Self> {
        Ok(Self {
            weight: source.get(&format!("{name}.weight"), &[output, input, kernel, kernel])?,
            bias: source.get(&format!("{name}.bias"), &[output])?,
            stride: 1,
            padding: if kernel == 3 { SAME } else { NONE },
        })
    }

    /// A 3×3 convolution that halves height and width.
    pub(crate) fn halving(source: &Source, name: &str, channels: usize) -> Result<Self> {
        Ok(Self { stride: 2, padding: DOWN, ..Self::new(source, name, (channels, channels), 3)? })
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.with(xs, Around::default())
    }

    pub(crate) fn with(&self, xs: &Tensor, around: Around) -> Result<Tensor> {
        Ok(ops::norm_conv2d(xs, &self.weight, &self.bias, self.stride, self.padding, around)?)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Norm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
}

impl Norm {
    pub(crate) fn new(source: &Source, name: &str, channels: usize, groups: usize) -> Result<Self> {
        Ok(Self {
            weight: source.get(&format!("{name}.weight"), &[channels])?,
            bias: source.get(&format!("{name}.bias"), &[channels])?,
            groups,
        })
    }

    fn settings(&self, silu: bool) -> NormBefore<'_> {
        NormBefore { weight: &self.weight, bias: &self.bias, groups: self.groups, eps: NORM_EPS, silu }
    }

    /// This norm, followed by SiLU, before a convolution.
    pub(crate) fn before(&self) -> Around<'_> {
        Around { norm: Some(self.settings(true)), ..Around::default() }
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(ops::norm_before(xs, self.settings(false))?)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ResnetBlock {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    nin_shortcut: Option<Conv>,
}

impl ResnetBlock {
    pub(crate) fn new(source: &Source, name: &str, (input, output): (usize, usize), groups: usize) -> Result<Self> {
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

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = self.conv1.with(xs, self.norm1.before())?;
        let shortcut = self.nin_shortcut.as_ref().map(|shortcut| shortcut.forward(xs)).transpose()?;
        let residual = Some(shortcut.as_ref().unwrap_or(xs));
        self.conv2.with(&ys, Around { residual, ..self.norm2.before() })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct AttentionBlock {
    norm: Norm,
    q: Conv,
    k: Conv,
    v: Conv,
    proj_out: Conv,
}

impl AttentionBlock {
    pub(crate) fn new(source: &Source, name: &str, channels: usize, groups: usize) -> Result<Self> {
        let conv = |part: &str| Conv::new(source, &format!("{name}.{part}"), (channels, channels), 1);
        Ok(Self {
            norm: Norm::new(source, &format!("{name}.norm"), channels, groups)?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            proj_out: conv("proj_out")?,
        })
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
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

/// A residual block, attention, a residual block: the lowest resolution.
#[derive(Debug, Clone)]
pub(crate) struct Middle {
    first: ResnetBlock,
    attention: AttentionBlock,
    second: ResnetBlock,
}

impl Middle {
    /// The blocks named `name.part`, for each of the three parts.
    pub(crate) fn new(
        source: &Source,
        name: &str,
        [first, attention, second]: [&str; 3],
        channels: usize,
        groups: usize,
    ) -> Result<Self> {
        let residual = |part: &str| ResnetBlock::new(source, &format!("{name}.{part}"), (channels, channels), groups);
        Ok(Self {
            first: residual(first)?,
            attention: AttentionBlock::new(source, &format!("{name}.{attention}"), channels, groups)?,
            second: residual(second)?,
        })
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.attention.forward(&self.first.forward(xs)?)?)
    }
}
