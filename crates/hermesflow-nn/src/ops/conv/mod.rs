//! 2-D convolution as MAGVIT-v2 uses it: square kernels, stride 1 or 2, padding per side.
//!
//! Each image is unfolded (im2col) in tiles of output rows and multiplied by the kernel; the images of a batch run in parallel.
//! The kernel's gradient is summed over the images in their order, so that results do not depend on the threads. Large pictures
//! without gradients have a faster form in [`channels_last`].

pub(crate) mod channels_last;
pub(crate) mod padding;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use self::padding::Padding;
use crate::matmul::operand::Operand;
use crate::matmul::product::product;
use crate::measure::count;
use crate::measure::profile::{Part, part};
use crate::storage::{elements, host, kernels_take};

/// Most elements of an unfolded tile: it should stay in the cache.
const TILE: usize = 1 << 18;

/// 2-D convolution with bias.
///
/// # Shapes
/// `x [b, c, h, w]`, `weight [o, c, k, k]`, `bias [o]` -> `[b, o, oh, ow]`
///
/// # Errors
/// When shapes do not fit.
pub(crate) fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: Padding) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let (oh, ow) = output_size((c, h, w), weight, bias, stride, pad)?;
    part(Part::Convolutions, x.device(), || {
        if kernels_take(&[x, weight, bias]) {
            return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Conv { stride, pad });
        }
        if !x.device().is_cpu() {
            let o = bias.elem_count();
            count::queued(b, (oh * ow, o, weight.elem_count() / o.max(1)));
        }
        any_device(x, weight, bias, stride, pad)
    })
}

/// Height and width of the output for an input of `c` channels, height `h` and width `w`.
///
/// # Errors
/// When input, weight, bias and stride do not fit.
pub(super) fn output_size(
    (c, h, w): (usize, usize, usize),
    weight: &Tensor,
    bias: &Tensor,
    stride: usize,
    pad: Padding,
) -> Result<(usize, usize)> {
    let (o, wc, k, k2) = weight.dims4()?;
    let (high, wide) = (h + pad.top + pad.bottom, w + pad.left + pad.right);
    if wc != c || k != k2 || bias.dims() != [o] || high < k || wide < k || stride == 0 {
        bail!("conv2d: {:?} pixels, weight {:?}, bias {:?} do not fit", [c, h, w], weight.dims(), bias.dims());
    }
    Ok(((high - k) / stride + 1, (wide - k) / stride + 1))
}

/// [`conv2d`] by candle's operators.
fn any_device(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: Padding) -> Result<Tensor> {
    let x = x.pad_with_zeros(2, pad.top, pad.bottom)?.pad_with_zeros(3, pad.left, pad.right)?;
    x.conv2d(weight, 0, stride, 1, 1)?.broadcast_add(&bias.reshape((1, (), 1, 1))?)
}

/// The operator.
#[derive(Clone, Copy)]
struct Conv {
    stride: usize,
    pad: Padding,
}

/// The sizes of one convolution.
#[derive(Clone, Copy)]
struct Sizes {
    b: usize,
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

impl Sizes {
    fn new(conv: Conv, x: &Shape, weight: &Shape) -> Result<Self> {
        let (b, c, h, w) = x.dims4()?;
        let (o, _, k, _) = weight.dims4()?;
        let Conv { stride, pad } = conv;
        let oh = (h + pad.top + pad.bottom - k) / stride + 1;
        let ow = (w + pad.left + pad.right - k) / stride + 1;
        Ok(Self { b, c, h, w, o, k, oh, ow, stride, pad })
    }

    /// Rows of the unfolded matrix.
    fn patch(&self) -> usize {
        self.c * self.k * self.k
    }

    /// Output rows per tile.
    fn tile_rows(&self) -> usize {
        (TILE / (self.patch() * self.ow).max(1)).clamp(1, self.oh)
    }

    /// The tiles of an image: first output row and number of rows.
    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> {
        let (rows, oh) = (self.tile_rows(), self.oh);
        (0..oh).step_by(rows).map(move |first| (first, rows.min(oh - first)))
    }

    /// The output columns `[from, to)` for which kernel column `kx` reads a column inside the input.
    fn columns(&self, kx: usize) -> (usize, usize) {
        let from = self.pad.left.saturating_sub(kx).div_ceil(self.stride);
        let to = (self.w + self.pad.left).saturating_sub(kx).div_ceil(self.stride).min(self.ow);
        (from.min(to), to)
    }

    /// Calls `row(channel, kernel row, output row within the tile, input row)` for every row of the tile; an input row of `None`
    /// is padding.
    fn for_rows(&self, first: usize, rows: usize, mut row: impl FnMut(usize, usize, usize, Option<usize>)) {
        for channel in 0..self.c {
            for ky in 0..self.k {
                for out in 0..rows {
                    let y = ((first + out) * self.stride + ky).checked_sub(self.pad.top).filter(|y| *y < self.h);
                    row(channel, ky, out, y);
                }
            }
        }
    }

    /// Unfolds the output rows `first .. first + rows` of an image into `col [c·k·k, rows·ow]`.
    fn unfold(&self, image: &[f32], first: usize, rows: usize, col: &mut [f32]) {
        let width = rows * self.ow;
        self.for_rows(first, rows, |channel, ky, out, y| {
            for kx in 0..self.k {
                let at = ((channel * self.k + ky) * self.k + kx) * width + out * self.ow;
                let line = &mut col[at..at + self.ow];
                let Some(y) = y else {
                    line.fill(0.0);
                    continue;
                };
                let source = &image[(channel * self.h + y) * self.w..][..self.w];
                let (from, to) = self.columns(kx);
                line[..from].fill(0.0);
                line[to..].fill(0.0);
                let start = from * self.stride + kx - self.pad.left;
                if self.stride == 1 {
                    line[from..to].copy_from_slice(&source[start..start + (to - from)]);
                } else {
                    let strided = source[start.min(self.w)..].iter().step_by(self.stride);
                    line[from..to].iter_mut().zip(strided).for_each(|(to, from)| *to = *from);
                }
            }
        });
    }

    /// Adds `col` to where [`Sizes::unfold`] read it.
    fn fold(&self, col: &[f32], first: usize, rows: usize, image: &mut [f32]) {
        let width = rows * self.ow;
        self.for_rows(first, rows, |channel, ky, out, y| {
            let Some(y) = y else { return };
            for kx in 0..self.k {
                let at = ((channel * self.k + ky) * self.k + kx) * width + out * self.ow;
                let line = &col[at..at + self.ow];
                let target = &mut image[(channel * self.h + y) * self.w..][..self.w];
                let (from, to) = self.columns(kx);
                let start = from * self.stride + kx - self.pad.left;
                let strided = target[start.min(self.w)..].iter_mut().step_by(self.stride);
                strided.zip(&line[from..to]).for_each(|(to, from)| *to += *from);
            }
        });
    }
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(*self, l1.shape(), l2.shape())?;
        let (x, weight, bias) = (elements(s1, l1)?, elements(s2, l2)?, elements(s3, l3)?);
        let (pixels, patch) = (sizes.oh * sizes.ow, sizes.patch());
        let mut y = vec![0f32; sizes.b * sizes.o * pixels];
        let images = y.par_chunks_mut(sizes.o * pixels).zip(x.par_chunks(sizes.c * sizes.h * sizes.w));
        let alone = sizes.b == 1;
        images.for_each(|(y, x)| {
            y.chunks_exact_mut(pixels).zip(bias).for_each(|(plane, bias)| plane.fill(*bias));
            let mut col = vec![0f32; patch * sizes.tile_rows() * sizes.ow];
            for (first, rows) in sizes.tiles() {
                let width = rows * sizes.ow;
                let col = &mut col[..patch * width];
                sizes.unfold(x, first, rows, col);
                let (w, col) = (Operand::rows(weight.as_ptr(), patch), Operand::rows(col.as_ptr(), width));
                // SAFETY: the tile is [o, width] with rows `pixels` apart inside y; w and col are whole.
                unsafe {
                    let out = y.as_mut_ptr().add(first * sizes.ow);
                    product((sizes.o, width, patch), out, pixels, true, w, col, 1.0, alone);
                }
            }
        });
        Ok((CpuStorage::F32(y), (sizes.b, sizes.o, sizes.oh, sizes.ow).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let sizes = Sizes::new(*self, x.shape(), weight.shape())?;
        let (pixels, patch, planes) = (sizes.oh * sizes.ow, sizes.patch(), sizes.c * sizes.h * sizes.w);
        let (x_store, x_layout) = x.storage_and_layout();
        let (w_store, w_layout) = weight.storage_and_layout();
        let (g_store, g_layout) = grad.storage_and_layout();
        let (xs, ws, gs) = (host(&x_store, x_layout)?, host(&w_store, w_layout)?, host(&g_store, g_layout)?);
        let wants = (x.track_op(), weight.track_op() || bias.track_op());
        let mut dx = vec![0f32; if wants.0 { xs.len() } else { 0 }];
        let one = |x: &[f32], g: &[f32], mut dx: Option<&mut [f32]>| -> (Vec<f32>, Vec<f32>) {
            let mut dw = vec![0f32; if wants.1 { sizes.o * patch } else { 0 }];
            let mut col = vec![0f32; patch * sizes.tile_rows() * sizes.ow];
            for (first, rows) in sizes.tiles() {
                let width = rows * sizes.ow;
                let col = &mut col[..patch * width];
                let start = &g[first * sizes.ow..];
                let g = Operand::rows(start.as_ptr(), pixels);
                if wants.1 {
                    sizes.unfold(x, first, rows, col);
                    let col = Operand::rows(col.as_ptr(), width).t();
                    // SAFETY: g is [o, width] with rows `pixels` apart, col [patch, width], dw [o, patch].
                    unsafe {
                        product((sizes.o, patch, width), dw.as_mut_ptr(), patch, true, g, col, 1.0, false);
                    }
                }
                if let Some(dx) = dx.as_deref_mut() {
                    let w = Operand::rows(ws.as_ptr(), patch).t();
                    // SAFETY: w is [o, patch], g [o, width] as above, col [patch, width].
                    unsafe {
                        product((patch, width, sizes.o), col.as_mut_ptr(), width, false, w, g, 1.0, false);
                    }
                    sizes.fold(col, first, rows, dx);
                }
            }
            let db = match wants.1 {
                true => g.chunks_exact(pixels).map(|plane| crate::simd::sum_by(plane, |v| v)).collect(),
                false => vec![],
            };
            (dw, db)
        };
        let inputs = xs.par_chunks(planes).zip(gs.par_chunks(sizes.o * pixels));
        let parts: Vec<(Vec<f32>, Vec<f32>)> = match wants.0 {
            true => inputs.zip(dx.par_chunks_mut(planes)).map(|((x, g), dx)| one(x, g, Some(dx))).collect(),
            false => inputs.map(|(x, g)| one(x, g, None)).collect(),
        };
        let (mut dw, mut db) = (vec![0f32; sizes.o * patch], vec![0f32; sizes.o]);
        for (dw_part, db_part) in parts.iter().filter(|_| wants.1) {
            crate::simd::add_to(&mut dw, dw_part);
            crate::simd::add_to(&mut db, db_part);
        }
        let device = x.device();
        Ok((
            wants.0.then(|| Tensor::from_vec(dx, x.shape(), device)).transpose()?,
            wants.1.then(|| Tensor::from_vec(dw, weight.shape(), device)).transpose()?,
            wants.1.then(|| Tensor::from_vec(db, sizes.o, device)).transpose()?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, normal};

    #[test]
    fn values_and_gradients_are_those_of_the_plain_form() {
        let same = Padding { top: 1, bottom: 1, left: 1, right: 1 };
        let down = Padding { top: 0, bottom: 1, left: 0, right: 1 };
        let none = Padding { top: 0, bottom: 0, left: 0, right: 0 };
        for (k, stride, pad) in [(3, 1, same), (3, 2, down), (1, 1, none)] {
            let args = [normal(&[2, 5, 9, 7]), normal(&[4, 5, k, k]), normal(&[4])];
            agree(
                &args,
                |args| conv2d(&args[0], &args[1], &args[2], stride, pad),
                |args| any_device(&args[0], &args[1], &args[2], stride, pad),
            );
        }
    }

    #[test]
    fn a_tall_image_is_unfolded_in_tiles() {
        let same = Padding { top: 1, bottom: 1, left: 1, right: 1 };
        let args = [normal(&[1, 32, 40, 48]), normal(&[3, 32, 3, 3]), normal(&[3])];
        agree(
            &args,
            |args| conv2d(&args[0], &args[1], &args[2], 1, same),
            |args| any_device(&args[0], &args[1], &args[2], 1, same),
        );
    }
}
