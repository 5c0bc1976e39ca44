//! The layers that MAGVIT-v2's encoder and decoder are made of: those of VQGAN (arXiv 2012.09841), which its code is
//! derived from.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops::{self, Around, NormBefore, Padding};
use hermesflow_nn::weights::Weights;

use crate::Result;

const NORM_EPS: f64 = 1e-6;
const SAME: Padding = Padding { top: 1, bottom: 1, left: 1, right: 1 };
const NONE: Padding = Padding { top: 0, bottom: 0, left: 0, right: 0 };

/// Where a layer's parameters come from: loading them and listing their shapes run the same code.
pub(super) enum Source<'a> {
    Load(&'a Weights),
    List(RefCell<Vec<(String, Vec<usize>)>>),
}

impl Source<'_> {
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
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
pub(super) struct Conv {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) stride: usize,
    pub(super) padding: Padding,
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
    groups: usize,
}

impl Norm {
    pub(super) fn new(source: &Source, name: &str, channels: usize, groups: usize) -> Result<Self> {
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
    pub(super) fn before(&self) -> Around<'_> {
        Around { norm: Some(self.settings(true)), ..Around::default() }
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
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
    pub(super) fn new(source: &Source, name: &str, (input, output): (usize, usize), groups: usize) -> Result<Self> {
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
    pub(super) fn new(source: &Source, name: &str, channels: usize, groups: usize) -> Result<Self> {
        let conv = |part: &str| Conv::new(source, &format!("{name}.{part}"), (channels, channels), 1);
        Ok(Self {
            norm: Norm::new(source, &format!("{name}.norm"), channels, groups)?,
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
        let segments: Arc<[ops::Segment]> = (0..b)
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
pub(super) struct Middle {
    block_1: ResnetBlock,
    attn_1: AttentionBlock,
    block_2: ResnetBlock,
}

impl Middle {
    pub(super) fn new(source: &Source, name: &str, channels: usize, groups: usize) -> Result<Self> {
        let shape = (channels, channels);
        Ok(Self {
            block_1: ResnetBlock::new(source, &format!("{name}.block_1"), shape, groups)?,
            attn_1: AttentionBlock::new(source, &format!("{name}.attn_1"), channels, groups)?,
            block_2: ResnetBlock::new(source, &format!("{name}.block_2"), shape, groups)?,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.block_2.forward(&self.attn_1.forward(&self.block_1.forward(xs)?)?)
    }
}
