//! Convolutions of large pictures without gradients, with the channels innermost in memory.
//!
//! A tensor is "channels last" if it has the shape `[b, c, h, w]` of every other operator here and the strides of a contiguous
//! `[b, h, w, c]`. [`convolution_layout`] makes one, and [`norm_conv2d`] keeps the layout. A pixel then is a vector, whatever the
//! picture's width: 3×3 kernels run by Winograd's transform ([`winograd`]), others as products of pixels ([`unfolded`]). A norm
//! or an upsampling before a convolution and an addition after it need no pass over memory of their own.

pub(crate) mod around;

mod lanes;
mod panels;
mod source;
mod target;
mod tiling;
mod transforms;
mod unfolded;
mod winograd;

use candle_core::{Layout, Result, Tensor, bail};
use rayon::prelude::*;

use self::around::{Around, NormBefore};
use self::source::{Coefficients, Sizes, Source};
use self::target::Target;
use super::padding::Padding;
use super::{conv2d, output_size};
use crate::device::uses_kernels;
use crate::measure::profile::{Part, part};
use crate::ops::group_norm::group_norm_silu;
use crate::ops::upsample::upsample_nearest2x;
use crate::storage::{SharedPointer, host, kernels_take};

/// The same tensor in the layout in which [`norm_conv2d`] is fastest on its device: channels last for the CPU's kernels,
/// unchanged elsewhere. Results in the two layouts differ in rounding.
///
/// # Shapes
/// `x [b, c, h, w]` -> `[b, c, h, w]`
///
/// # Errors
/// When `x` has another rank.
pub fn convolution_layout(x: &Tensor) -> Result<Tensor> {
    if uses_kernels(x.device()) { channels_last(x) } else { Ok(x.clone()) }
}

/// The same tensor with the channels of a pixel side by side in memory.
fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))
}

/// Whether a layout is channels last.
fn is_channels_last(layout: &Layout) -> bool {
    let (&[_, c, h, w], stride) = (layout.dims(), layout.stride()) else { return false };
    c > 0 && h > 0 && w > 0 && stride == [h * w * c, 1, w * c, c]
}

/// The elements of a channels-last tensor, as `[b, h, w, c]`.
fn pixels(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// A 2-D convolution with bias, with a norm and an upsampling before it and an addition after it, each if [`Around`] asks for it.
///
/// A channels-last tensor without gradients takes a faster path, which gives a channels-last tensor and rounds differently. Any
/// other input takes the operators one after another.
///
/// # Shapes
/// `x [b, c, h, w]`, `weight [o, c, k, k]`, `bias [o]` -> `[b, o, oh, ow]`
///
/// # Errors
/// When shapes do not fit.
pub fn norm_conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    stride: usize,
    pad: Padding,
    around: Around,
) -> Result<Tensor> {
    let mut others = vec![x, weight, bias];
    others.extend(around.norm.iter().flat_map(|norm| [norm.weight, norm.bias]));
    others.extend(around.residual);
    if is_channels_last(x.layout()) && kernels_take(&others) && !others.iter().any(|tensor| tensor.track_op()) {
        return part(Part::Convolutions, x.device(), || forward(x, weight, bias, stride, pad, around));
    }
    let mut xs = x.clone();
    if let Some(norm) = around.norm {
        xs = group_norm_silu(&xs, norm.weight, norm.bias, norm.groups, norm.eps, norm.silu)?;
    }
    if around.upsample {
        xs = upsample_nearest2x(&xs)?;
    }
    let ys = conv2d(&xs, weight, bias, stride, pad)?;
    match around.residual {
        Some(residual) => residual + ys,
        None => Ok(ys),
    }
}

/// GroupNorm, then SiLU if `norm.silu`, in the layout of `x`: computed as in [`norm_conv2d`] for a channels-last tensor without
/// gradients, else by the operator for any layout.
///
/// # Shapes
/// `x [b, c, h, w]` -> `[b, c, h, w]`
///
/// # Errors
/// When shapes do not fit.
pub fn norm_before(x: &Tensor, norm: NormBefore) -> Result<Tensor> {
    let all = [x, norm.weight, norm.bias];
    if !is_channels_last(x.layout()) || !kernels_take(&all) || all.iter().any(|tensor| tensor.track_op()) {
        return group_norm_silu(x, norm.weight, norm.bias, norm.groups, norm.eps, norm.silu);
    }
    let (b, c, h, w) = x.dims4()?;
    let x = pixels(x)?;
    let (store, layout) = x.storage_and_layout();
    let xs = host(&store, layout)?;
    let coefficients = Coefficients::new(xs, b, c, norm)?;
    let pad = Padding { top: 0, bottom: 0, left: 0, right: 0 };
    let sizes = Sizes { c, h, w, o: c, k: 1, oh: h, ow: w, stride: 1, pad };
    let source = Source { x: xs, sizes, upsample: false, norm: Some(&coefficients) };
    let mut y = vec![0f32; xs.len()];
    y.par_chunks_mut(w * c).enumerate().for_each(|(row, to)| source.read(row / h, (row % h) as isize, 0, w, to));
    Tensor::from_vec(y, (b, h, w, c), x.device())?.permute((0, 3, 1, 2))
}

/// The fast path of [`norm_conv2d`].
fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: Padding, around: Around) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let (o, _, k, _) = weight.dims4()?;
    let (h, w) = if around.upsample { (2 * h, 2 * w) } else { (h, w) };
    let (oh, ow) = output_size((c, h, w), weight, bias, stride, pad)?;
    let sizes = Sizes { c, h, w, o, k, oh, ow, stride, pad };
    let residual = match around.residual {
        Some(residual) if residual.dims() != [b, o, sizes.oh, sizes.ow] => {
            bail!("conv2d: {:?} cannot be added to {:?}", residual.dims(), [b, o, sizes.oh, sizes.ow])
        }
        Some(residual) => Some(pixels(residual)?),
        None => None,
    };
    let (x, weight, bias) = (pixels(x)?, weight.contiguous()?, bias.contiguous()?);
    let (x_store, x_layout) = x.storage_and_layout();
    let (w_store, w_layout) = weight.storage_and_layout();
    let (b_store, b_layout) = bias.storage_and_layout();
    let residual = residual.as_ref().map(Tensor::storage_and_layout);
    let residual = residual.as_ref().map(|(store, layout)| host(store, layout)).transpose()?;
    let (xs, ws, bs) = (host(&x_store, x_layout)?, host(&w_store, w_layout)?, host(&b_store, b_layout)?);
    let coefficients = around.norm.map(|norm| Coefficients::new(xs, b, c, norm)).transpose()?;
    let source = Source { x: xs, sizes, upsample: around.upsample, norm: coefficients.as_ref() };
    let count = b * sizes.oh * sizes.ow * o;
    let mut y: Vec<f32> = Vec::with_capacity(count);
    let target = SharedPointer(y.as_mut_ptr());
    let write = Target { y: target, bias: bs, residual, o };
    if k == 3 && stride == 1 {
        winograd::run(&source, ws, b, &write);
    } else {
        unfolded::run(&source, ws, b, &write);
    }
    // SAFETY: both ways write every element of the output.
    unsafe { y.set_len(count) };
    Tensor::from_vec(y, (b, sizes.oh, sizes.ow, o), x.device())?.permute((0, 3, 1, 2))
}

#[cfg(test)]
mod tests;
