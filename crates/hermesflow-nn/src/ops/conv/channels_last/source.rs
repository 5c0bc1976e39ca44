//! What a convolution reads: pixels, normalised and upsampled on the way, with zeros around the picture.

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::around::NormBefore;
use crate::ops::conv::padding::Padding;
use crate::simd::{exp, vectorised};
use crate::storage::host;

/// The sizes of a convolution; the input is counted as the kernel sees it, after an upsampling.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Channels, height and width of the input.
    pub(super) c: usize,
    pub(super) h: usize,
    pub(super) w: usize,
    /// Channels of the output.
    pub(super) o: usize,
    /// Side of the kernel.
    pub(super) k: usize,
    /// Height and width of the output.
    pub(super) oh: usize,
    pub(super) ow: usize,
    pub(super) stride: usize,
    pub(super) pad: Padding,
}

/// Pixels of a run, whose squared deviations are summed around the run's own mean before runs are combined.
const RUN: usize = 64;

/// A GroupNorm of a batch, as one factor and one summand per image and channel.
pub(super) struct Coefficients {
    scale: Vec<f32>,
    shift: Vec<f32>,
    silu: bool,
}

impl Coefficients {
    /// The coefficients for the pixels `x [b, h·w, c]`.
    ///
    /// # Errors
    /// When the norm does not fit the channels.
    pub(super) fn new(x: &[f32], b: usize, c: usize, norm: NormBefore) -> Result<Self> {
        if norm.groups == 0 || !c.is_multiple_of(norm.groups) || norm.weight.dims() != [c] || norm.bias.dims() != [c] {
            bail!("group_norm: {c} channels, weight {:?}, {} groups do not fit", norm.weight.dims(), norm.groups);
        }
        let (weight, bias) = (norm.weight.contiguous()?, norm.bias.contiguous()?);
        let (w_store, w_layout) = weight.storage_and_layout();
        let (b_store, b_layout) = bias.storage_and_layout();
        let (ws, bs) = (host(&w_store, w_layout)?, host(&b_store, b_layout)?);
        let (mut scale, mut shift) = (Vec::with_capacity(b * c), Vec::with_capacity(b * c));
        for image in x.chunks_exact((x.len() / b.max(1)).max(1)) {
            let moments = moments(image, c, norm.groups);
            for (channel, (weight, bias)) in ws.iter().zip(bs).enumerate() {
                let (mean, variance) = moments[channel * norm.groups / c];
                let factor = 1.0 / (variance + norm.eps).sqrt() * f64::from(*weight);
                scale.push(factor as f32);
                shift.push((f64::from(*bias) - mean * factor) as f32);
            }
        }
        Ok(Self { scale, shift, silu: norm.silu })
    }
}

/// Mean and variance of each group of channels of an image. Each run of pixels takes two passes within the cache; the runs are
/// combined in their order (Chan, Golub & LeVeque, 1979).
fn moments(image: &[f32], c: usize, groups: usize) -> Vec<(f64, f64)> {
    let runs: Vec<Vec<(f32, f32)>> = image.par_chunks(RUN * c).map(|run| run_moments(run, c, groups)).collect();
    let mut joined = vec![(0f64, 0f64); groups];
    let mut before = 0f64;
    for (run, part) in image.chunks(RUN * c).zip(&runs) {
        let count = (run.len() / groups) as f64;
        let total = before + count;
        for ((mean, squares), &(run_mean, run_squares)) in joined.iter_mut().zip(part) {
            let apart = f64::from(run_mean) - *mean;
            *squares += f64::from(run_squares) + apart * apart * before * count / total;
            *mean += apart * count / total;
        }
        before = total;
    }
    joined.iter_mut().for_each(|(_, squares)| *squares /= before.max(1.0));
    joined
}

/// Mean, and sum of squared deviations from it, of each group in a run of pixels.
fn run_moments(run: &[f32], c: usize, groups: usize) -> Vec<(f32, f32)> {
    let (per_group, count) = (c / groups, (run.len() / groups) as f32);
    let mut sums = vec![0f32; c];
    add_pixels(&mut sums, run);
    let means: Vec<f32> = sums.chunks_exact(per_group).map(|sums| sums.iter().sum::<f32>() / count).collect();
    let centres: Vec<f32> = (0..c).map(|channel| means[channel / per_group]).collect();
    sums.fill(0.0);
    add_squares(&mut sums, &centres, run);
    means.iter().zip(sums.chunks_exact(per_group)).map(|(mean, sums)| (*mean, sums.iter().sum())).collect()
}

/// Where a convolution reads its input from.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// `[b, h, w, c]`, of half the height and width when upsampled.
    pub(super) x: &'a [f32],
    pub(super) sizes: Sizes,
    pub(super) upsample: bool,
    pub(super) norm: Option<&'a Coefficients>,
}

impl Source<'_> {
    /// Reads `count` pixels of row `y` from column `x` on, each into `to.len() / count` numbers: its channels, then zeros. Outside
    /// the image all are zeros.
    pub(super) fn read(&self, image: usize, y: isize, x: isize, count: usize, to: &mut [f32]) {
        let Sizes { c, h, w, .. } = self.sizes;
        if y < 0 || y >= h as isize {
            to.fill(0.0);
            return;
        }
        let up = usize::from(self.upsample);
        let (height, width) = (h >> up, w >> up);
        let row = &self.x[(image * height + (y as usize >> up)) * width * c..][..width * c];
        let wide = to.len() / count;
        let norm = self.norm.map(|norm| {
            let channels = image * c..(image + 1) * c;
            (&norm.scale[channels.clone()], &norm.shift[channels], norm.silu)
        });
        read_pixels(row, x, w, up, c, wide, norm, to);
    }
}

vectorised! {
    fn add_pixels(sums: &mut [f32], run: &[f32]) {
        for pixel in run.chunks_exact(sums.len()) {
            sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
    }

    fn add_squares(sums: &mut [f32], centres: &[f32], run: &[f32]) {
        for pixel in run.chunks_exact(sums.len()) {
            for ((sum, centre), value) in sums.iter_mut().zip(centres).zip(pixel) {
                *sum += (value - centre) * (value - centre);
            }
        }
    }

    fn read_pixels(
        row: &[f32],
        first: isize,
        width: usize,
        up: usize,
        c: usize,
        wide: usize,
        norm: Option<(&[f32], &[f32], bool)>,
        to: &mut [f32],
    ) {
        for (to, x) in to.chunks_exact_mut(wide).zip(first..) {
            if x < 0 || x >= width as isize {
                to.fill(0.0);
                continue;
            }
            let from = &row[(x as usize >> up) * c..][..c];
            let (to, rest) = to.split_at_mut(c);
            match norm {
                None => to.copy_from_slice(from),
                Some((scale, shift, silu)) => {
                    let (scale, shift) = (&scale[..c], &shift[..c]);
                    for i in 0..c {
                        to[i] = from[i] * scale[i] + shift[i];
                    }
                    if silu {
                        to.iter_mut().for_each(|z| *z /= 1.0 + exp(-*z));
                    }
                }
            }
            rest.fill(0.0);
        }
    }
}
