//! Upsampling by two with nearest neighbours.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::storage::{elements, host, kernels_take};

/// Doubles height and width: each pixel becomes four.
///
/// # Shapes
/// `x [b, c, h, w]` -> `[b, c, 2h, 2w]`
///
/// # Errors
/// When `x` has another rank.
pub(crate) fn upsample_nearest2x(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if kernels_take(&[x]) {
        return x.contiguous()?.apply_op1(Upsample);
    }
    // The backward pass of candle's own upsampling overwrites gradients instead of adding to them.
    x.reshape((b, c, h, 1, w, 1))?.broadcast_as((b, c, h, 2, w, 2))?.reshape((b, c, 2 * h, 2 * w))
}

/// The operator on the CPU.
struct Upsample;

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample-nearest2x"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = l1.shape().dims4()?;
        let x = elements(s1, l1)?;
        let mut y = vec![0f32; 4 * x.len()];
        y.par_chunks_mut(4 * h * w).zip(x.par_chunks(h * w)).for_each(|(y, x)| {
            for (rows, line) in y.chunks_exact_mut(4 * w).zip(x.chunks_exact(w)) {
                let (upper, lower) = rows.split_at_mut(2 * w);
                upper.chunks_exact_mut(2).zip(line).for_each(|(two, value)| two.fill(*value));
                lower.copy_from_slice(upper);
            }
        });
        Ok((CpuStorage::F32(y), (b, c, 2 * h, 2 * w).into()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (_, _, h, w) = x.dims4()?;
        let (store, layout) = grad.storage_and_layout();
        let g = host(&store, layout)?;
        let mut dx = vec![0f32; x.elem_count()];
        dx.par_chunks_mut(h * w).zip(g.par_chunks(4 * h * w)).for_each(|(dx, g)| {
            for (line, rows) in dx.chunks_exact_mut(w).zip(g.chunks_exact(4 * w)) {
                let (upper, lower) = rows.split_at(2 * w);
                let pairs = upper.chunks_exact(2).zip(lower.chunks_exact(2));
                line.iter_mut().zip(pairs).for_each(|(d, (a, b))| *d = a[0] + a[1] + b[0] + b[1]);
            }
        });
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, normal};

    #[test]
    fn values_and_gradients_are_those_of_the_plain_form() {
        agree(&[normal(&[2, 3, 5, 4])], |args| upsample_nearest2x(&args[0]), |args| args[0].upsample_nearest2d(10, 8));
    }
}
