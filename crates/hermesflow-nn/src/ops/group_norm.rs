//! GroupNorm (Wu & He, arXiv:1803.08494) with an optional SiLU, in one pass: `silu((x − μ)/σ · w + b)` with mean and deviation of
//! each image and group of channels.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::measure::profile::{Part, part};
use crate::simd::{add_to, exp, sum_by};
use crate::storage::{elements, host, kernels_take};

/// GroupNorm, then SiLU, `z / (1 + e^-z)`, if `silu`.
///
/// # Shapes
/// `x [b, c, h, w]`, `weight [c]`, `bias [c]` -> `[b, c, h, w]`
///
/// # Errors
/// When shapes do not fit, or `groups` does not divide `c`.
pub(crate) fn group_norm_silu(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let (_, c, _, _) = x.dims4()?;
    if groups == 0 || c % groups != 0 || weight.dims() != [c] || bias.dims() != [c] {
        bail!("group_norm: x {:?}, weight {:?}, {groups} groups do not fit", x.dims(), weight.dims());
    }
    part(Part::Norms, x.device(), || {
        if kernels_take(&[x, weight, bias]) {
            let op = GroupNorm { groups, eps: eps as f32, silu };
            return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op);
        }
        any_device(x, weight, bias, groups, eps, silu)
    })
}

/// [`group_norm_silu`] by candle's operators.
fn any_device(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64, silu: bool) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let xs = x.reshape((b, groups, c / groups * h * w))?;
    let xs = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let variance = xs.sqr()?.mean_keepdim(D::Minus1)?;
    let xs = xs.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape((b, c, h, w))?;
    let ys = xs.broadcast_mul(&weight.reshape((1, c, 1, 1))?)?.broadcast_add(&bias.reshape((1, c, 1, 1))?)?;
    if silu { ys.silu() } else { Ok(ys) }
}

/// The operator on the CPU.
#[derive(Clone, Copy)]
struct GroupNorm {
    groups: usize,
    eps: f32,
    silu: bool,
}

impl GroupNorm {
    /// Mean and `1 / sqrt(variance + eps)` of a group, in two passes.
    fn statistics(self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = sum_by(x, |v| v) / n;
        let variance = sum_by(x, |v| (v - mean) * (v - mean)) / n;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm-silu"
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
        let (_, c, h, w) = l1.shape().dims4()?;
        let (x, weight, bias) = (elements(s1, l1)?, elements(s2, l2)?, elements(s3, l3)?);
        let (channels, pixels) = (c / self.groups, h * w);
        let mut y = vec![0f32; x.len()];
        let size = channels * pixels;
        y.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate().for_each(|(at, (y, x))| {
            let (mean, rstd) = self.statistics(x);
            let first = at % self.groups * channels;
            for (channel, (y, x)) in y.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).enumerate() {
                let scale = rstd * weight[first + channel];
                let shift = bias[first + channel] - mean * scale;
                for (y, x) in y.iter_mut().zip(x) {
                    let z = x * scale + shift;
                    *y = if self.silu { z * sigmoid(z) } else { z };
                }
            }
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
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
        let (_, c, h, w) = x.dims4()?;
        let (x_store, x_layout) = x.storage_and_layout();
        let (w_store, w_layout) = weight.storage_and_layout();
        let (b_store, b_layout) = bias.storage_and_layout();
        let (g_store, g_layout) = grad.storage_and_layout();
        let (xs, gs) = (host(&x_store, x_layout)?, host(&g_store, g_layout)?);
        let (ws, bs) = (host(&w_store, w_layout)?, host(&b_store, b_layout)?);
        let (channels, pixels) = (c / self.groups, h * w);
        let size = channels * pixels;
        let mut dx = vec![0f32; xs.len()];
        let groups = dx.par_chunks_mut(size).zip(xs.par_chunks(size).zip(gs.par_chunks(size)));
        // For each image and group: the sums over each channel of dz·x̂ and of dz.
        let sums: Vec<(Vec<f32>, Vec<f32>)> = groups
            .enumerate()
            .map(|(at, (dx, (x, g)))| {
                let (mean, rstd) = self.statistics(x);
                let first = at % self.groups * channels;
                let (mut dw, mut db) = (vec![0f32; channels], vec![0f32; channels]);
                let (mut sum, mut sum_x) = (0f32, 0f32);
                let planes = dx.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels).zip(g.chunks_exact(pixels)));
                for (channel, (dz, (x, g))) in planes.enumerate() {
                    let (scale, shift) = (ws[first + channel], bs[first + channel]);
                    for ((dz, x), g) in dz.iter_mut().zip(x).zip(g) {
                        let z = (x - mean) * rstd * scale + shift;
                        *dz = if self.silu {
                            let s = sigmoid(z);
                            g * s * (1.0 + z * (1.0 - s))
                        } else {
                            *g
                        };
                    }
                    db[channel] = sum_by(dz, |v| v);
                    let products: f32 = dz
                        .chunks(64)
                        .zip(x.chunks(64))
                        .map(|(dz, x)| dz.iter().zip(x).map(|(dz, x)| dz * (x - mean)).sum::<f32>())
                        .sum();
                    dw[channel] = products * rstd;
                    sum += db[channel] * scale;
                    sum_x += dw[channel] * scale;
                }
                let (mean_g, mean_gx) = (sum / size as f32, sum_x / size as f32);
                let planes = dx.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels));
                for (channel, (dx, x)) in planes.enumerate() {
                    let scale = ws[first + channel];
                    for (dx, x) in dx.iter_mut().zip(x) {
                        *dx = rstd * (*dx * scale - mean_g - (x - mean) * rstd * mean_gx);
                    }
                }
                (dw, db)
            })
            .collect();
        let (mut dw, mut db) = (vec![0f32; c], vec![0f32; c]);
        for (at, (dw_part, db_part)) in sums.iter().enumerate() {
            let first = at % self.groups * channels;
            add_to(&mut dw[first..first + channels], dw_part);
            add_to(&mut db[first..first + channels], db_part);
        }
        let device = x.device();
        let parameter = |values| Tensor::from_vec(values, c, device);
        Ok((Some(Tensor::from_vec(dx, x.shape(), device)?), Some(parameter(dw)?), Some(parameter(db)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, normal};

    #[test]
    fn values_and_gradients_are_those_of_the_plain_form() {
        for silu in [false, true] {
            agree(
                &[normal(&[3, 6, 5, 7]), normal(&[6]), normal(&[6])],
                |args| group_norm_silu(&args[0], &args[1], &args[2], 3, 1e-6, silu),
                |args| any_device(&args[0], &args[1], &args[2], 3, 1e-6, silu),
            );
        }
    }
}
