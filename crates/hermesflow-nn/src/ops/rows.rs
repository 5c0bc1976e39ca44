//! Rows of a matrix by number: token embedding and the choice of positions.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::gradients;
use crate::matmul::half_weight;
use crate::simd::add_to;
use crate::storage::{elements, fused, host};

/// A table of at least so many elements has its gradient summed in place, where it is collected.
const LARGE: usize = 1 << 20;

/// The embedding of each id; the table gets the sum of the gradients of its uses.
///
/// # Shapes
/// `table [v, h]`, `ids` n of them -> `[n, h]`
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    gather_rows(table, ids)
}

/// The numbered rows, in the order asked; a row may be asked for often. Those of a 16-bit matrix come in f32.
///
/// # Shapes
/// `x [n, h]`, `rows` m of them -> `[m, h]`
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (n, _) = x.dims2()?;
    if let Some(row) = rows.iter().find(|&&row| row as usize >= n) {
        bail!("row {row} of a matrix {:?}", x.dims());
    }
    if half_weight::is_half(x) {
        half_weight::gather_rows(&x.contiguous()?, rows)
    } else if fused(&[x]) {
        x.contiguous()?.apply_op1(GatherRows { rows: rows.into() })
    } else {
        x.contiguous()?.index_select(&Tensor::new(rows, x.device())?, 0)?.to_dtype(DType::F32)
    }
}

struct GatherRows {
    rows: Box<[u32]>,
}

impl CustomOp1 for GatherRows {
    fn name(&self) -> &'static str {
        "gather-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, h) = layout.shape().dims2()?;
        let x = elements(x, layout)?;
        let mut out = Vec::with_capacity(self.rows.len() * h);
        for &row in &self.rows {
            out.extend_from_slice(&x[row as usize * h..][..h]);
        }
        Ok((CpuStorage::F32(out), (self.rows.len(), h).into()))
    }

    /// Each task owns a run of the table's rows and adds their gradients in
    /// the order of use.
    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        const ROWS: usize = 1024;
        let (n, h) = x.dims2()?;
        let grad = grad.contiguous()?;
        let (store, layout) = grad.storage_and_layout();
        let grad = host(&store, layout)?;
        let scatter = |dx: &mut [f32]| {
            dx.par_chunks_mut((ROWS * h).max(1)).enumerate().for_each(|(run, dx)| {
                for (&row, grad) in self.rows.iter().zip(grad.chunks_exact(h)) {
                    let row = row as usize;
                    if row / ROWS == run {
                        add_to(&mut dx[row % ROWS * h..][..h], grad);
                    }
                }
            });
        };
        let zeros = || {
            let mut dx = vec![0f32; n * h];
            scatter(&mut dx);
            dx
        };
        if x.is_variable() && n * h >= LARGE && gradients::collecting() {
            gradients::add(x, zeros, scatter)?;
            return Ok(None);
        }
        let dx = zeros();
        Ok(Some(Tensor::from_vec(dx, (n, h), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, normal};

    #[test]
    fn agrees_with_plain_candle() {
        let rows: Vec<u32> = (0..300).map(|i| (i * i * 7) % 1500).chain([3, 3, 3]).collect();
        let plain = |x: &Tensor| x.index_select(&Tensor::new(&rows[..], x.device())?, 0);
        agree(&[normal(&[1500, 33])], |v| gather_rows(&v[0], &rows), |v| plain(&v[0]));
        agree(&[normal(&[33, 1500])], |v| embedding(&v[0].t()?, &rows), |v| plain(&v[0].t()?.contiguous()?));
    }

    #[test]
    fn refuses_a_row_outside() {
        assert!(gather_rows(&normal(&[4, 3]), &[0, 4]).is_err());
    }
}
