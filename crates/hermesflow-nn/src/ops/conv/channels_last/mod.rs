//! Convolutions of large pictures without gradients, with the channels innermost.
//!
//! A tensor is "channels last" when it has the shape `[b, c, h, w]` of every other operator here and the strides of a
//! contiguous `[b, h, w, c]`: [`channels_last`] makes one, [`norm_conv2d`] keeps the layout. So laid out, a pixel is a
//! vector, whatever the picture's width: 3×3 kernels run by Winograd's transform ([`winograd`]), others as products of
//! pixels ([`unfolded`]), and the norm before a convolution, an upsampling, and an addition behind it need no pass over
//! memory of their own.

pub(super) mod panels;

mod lanes;
mod source;
mod transforms;
mod unfolded;
mod winograd;

use candle_core::{Layout, Result, Tensor, bail};
use rayon::prelude::*;

use self::lanes::{LANES, Lanes};
use self::source::{Coefficients, Source};
use crate::measure::{Part, part};
use crate::ops::conv::{Padding, conv2d, output_size};
use crate::ops::group_norm::group_norm_silu;
use crate::ops::upsample::upsample_nearest2x;
use crate::storage::{fused, host};

/// A GroupNorm before a convolution, with SiLU if asked for.
#[derive(Debug, Clone, Copy)]
pub struct NormBefore<'a> {
    /// `[c]`
    pub weight: &'a Tensor,
    /// `[c]`
    pub bias: &'a Tensor,
    /// Groups of channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// What happens on the way into a convolution and behind it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Around<'a> {
    /// Applied to the input first.
    pub norm: Option<NormBefore<'a>>,
    /// Whether the (normed) input is doubled in height and width.
    pub upsample: bool,
    /// Added to the output, of whose shape it is.
    pub residual: Option<&'a Tensor>,
}

/// The sizes of a convolution: of its input as the kernel sees it, and of its output.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    c: usize,
    h: usize,
    w: usize,
    o: usize,
    k: usize,
    oh: usize,
    ow: usize,
    stride: usize,
    pad: Padding,
}

/// The same numbers with the channels of a pixel side by side in memory.
///
/// # Errors
/// When `x` is not `[b, c, h, w]`.
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))
}

fn is_channels_last(layout: &Layout) -> bool {
    let (&[_, c, h, w], stride) = (layout.dims(), layout.stride()) else { return false };
    c > 0 && h > 0 && w > 0 && stride == [h * w * c, 1, w * c, c]
}

/// The elements of a channels-last tensor, as `[b, h, w, c]`.
fn pixels(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// [`conv2d`] with what is around it. A channels-last tensor that nothing wants the gradient of takes the fast way and
/// gives a channels-last tensor, which rounds differently; anything else, the operators one after another.
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
    if is_channels_last(x.layout()) && fused(&others) && !others.iter().any(|tensor| tensor.track_op()) {
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

/// GroupNorm, then SiLU if asked for, in the layout of `x`: of a channels-last tensor that nothing wants the gradient of
/// as [`norm_conv2d`] has it, else [`group_norm_silu`].
///
/// # Shapes
/// `x [b, c, h, w]` -> `[b, c, h, w]`
///
/// # Errors
/// When shapes do not fit.
pub fn norm_before(x: &Tensor, norm: NormBefore) -> Result<Tensor> {
    let all = [x, norm.weight, norm.bias];
    if !is_channels_last(x.layout()) || !fused(&all) || all.iter().any(|tensor| tensor.track_op()) {
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
    let target = crate::storage::Shared(y.as_mut_ptr());
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

/// Into how many groups the panels of a block are shared out, so that few blocks still occupy all threads.
fn groups(blocks: usize, panels: usize) -> usize {
    match rayon::current_num_threads() {
        1 => 1,
        threads => (2 * threads).div_ceil(blocks.max(1)).clamp(1, panels.max(1)),
    }
}

/// The panels of a group.
fn share(group: usize, groups: usize, panels: usize) -> std::ops::Range<usize> {
    group * panels / groups..(group + 1) * panels / groups
}

/// Where results go: the output, the bias, and what is added.
#[derive(Clone, Copy)]
struct Target<'a> {
    y: crate::storage::Shared,
    bias: &'a [f32],
    residual: Option<&'a [f32]>,
    o: usize,
}

impl Target<'_> {
    /// Writes what belongs to the channels `first ..` of a pixel (counted over the whole batch), of which there may be
    /// fewer than `values`, with bias and residual.
    ///
    /// # Safety
    /// The pixel lies in the output, and no other thread touches these channels of it.
    #[inline(always)]
    unsafe fn write(&self, pixel: usize, first: usize, values: &[f32]) {
        let count = values.len().min(self.o - first);
        let at = pixel * self.o + first;
        // SAFETY: by the contract of this function.
        let y = unsafe { std::slice::from_raw_parts_mut(self.y.at(at), count) };
        let biased = values.iter().zip(&self.bias[first..]).map(|(value, bias)| value + bias);
        match self.residual {
            Some(residual) => {
                y.iter_mut().zip(biased.zip(&residual[at..])).for_each(|(y, (value, add))| *y = value + add);
            }
            None => y.iter_mut().zip(biased).for_each(|(y, value)| *y = value),
        }
    }

    /// As [`Target::write`], from a register.
    ///
    /// # Safety
    /// As there, on a CPU that has the register.
    #[inline(always)]
    unsafe fn write_lanes<L: Lanes>(&self, pixel: usize, first: usize, value: L) {
        // SAFETY: by the contract of this function; whole registers only where there are as many channels.
        unsafe {
            if first + LANES > self.o {
                let mut values = [0f32; LANES];
                value.store(values.as_mut_ptr());
                return self.write(pixel, first, &values);
            }
            let at = pixel * self.o + first;
            let value = value.add(L::load(self.bias[first..].as_ptr()));
            let value = match self.residual {
                Some(residual) => value.add(L::load(residual[at..].as_ptr())),
                None => value,
            };
            value.store(self.y.at(at));
        }
    }
}

#[cfg(test)]
mod tests;
