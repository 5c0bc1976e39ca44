//! Rows of a matrix by number: token embeddings, chosen positions, and rows written into a cache.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::device::uses_kernels;
use crate::gradients;
use crate::matmul::half_weight;
use crate::simd::add_to;
use crate::storage::{elements, host, kernels_take};

/// Fewest elements of a table whose gradient is summed in place, where it is collected ([`gradients`]).
const LARGE: usize = 1 << 20;

/// The embedding of each id. A row's gradient is the sum over all uses of the row.
///
/// # Shapes
/// `table [v, h]`, `ids` n ids below `v` -> `[n, h]` in f32
///
/// # Errors
/// When an id is not below `v`.
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    gather_rows(table, ids)
}

/// The rows of the given numbers, in that order and in f32; a number may be given several times.
///
/// # Shapes
/// `x [n, h]`, `rows` m numbers below `n` -> `[m, h]`
///
/// # Errors
/// When a number is not below `n`.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (n, _) = x.dims2()?;
    if let Some(row) = rows.iter().find(|&&row| row as usize >= n) {
        bail!("row {row} of a matrix {:?}", x.dims());
    }
    if half_weight::is_half(x) {
        half_weight::gather_rows(&x.contiguous()?, rows)
    } else if kernels_take(&[x]) {
        x.contiguous()?.apply_op1(GatherRows { rows: rows.into() })
    } else {
        x.contiguous()?.index_select(&Tensor::new(rows, x.device())?, 0)?.to_dtype(DType::F32)
    }
}

/// Weighted sums of values: each value is a summand of one sum, which `members` names with the value's weight.
///
/// # Shapes
/// `values [n]`, `members` n pairs of a sum below `sums` and a weight -> `[sums]`
///
/// # Errors
/// When a sum is not below `sums`, or there are fewer or more members than values.
pub fn sums_of_values(values: &Tensor, members: impl IntoIterator<Item = (usize, f32)>, sums: usize) -> Result<Tensor> {
    let n = values.dims1()?;
    let mut membership = vec![0f32; sums * n];
    let mut named = 0;
    for (value, (sum, weight)) in members.into_iter().enumerate() {
        if sum >= sums || value >= n {
            bail!("value {value} of {n} in sum {sum} of {sums}");
        }
        membership[sum * n + value] = weight;
        named += 1;
    }
    if named != n {
        bail!("{named} members of sums of {n} values");
    }
    let membership = Tensor::from_vec(membership, (sums, n), values.device())?;
    membership.matmul(&values.unsqueeze(1)?)?.squeeze(1)
}

/// Writes runs of rows, in place: for each `(first, count, row)` of `runs` and each `(cache, new)` of `caches`, `count` rows of
/// `new` from `first` on become the cache's rows from `row` on.
///
/// # Shapes
/// `cache [rows, ..]`, `new [n, ..]` with the same further dimensions, all caches alike; the runs cover `0..n` in order
///
/// # Errors
/// When shapes or runs do not fit.
pub fn write_runs(caches: &[(&Tensor, &Tensor)], runs: &[(usize, usize, usize)]) -> Result<()> {
    let Some((_, like)) = caches.first() else { return Ok(()) };
    if uses_kernels(like.device()) || runs.len() < 2 {
        for (cache, new) in caches {
            for &(first, count, row) in runs {
                cache.slice_set(&new.narrow(0, first, count)?, 0, row)?;
            }
        }
        return Ok(());
    }
    // A GPU takes as long for each run as for all of them: the row of every number instead.
    let n = like.dim(0)?;
    let mut rows: Vec<u32> = Vec::with_capacity(n);
    for &(first, count, row) in runs {
        if first != rows.len() {
            bail!("a run of rows from {first}, expected from {}", rows.len());
        }
        rows.extend(row as u32..(row + count) as u32);
    }
    if rows.len() != n {
        bail!("runs of {} rows for {:?}", rows.len(), like.dims());
    }
    let mut column = vec![1; like.rank()];
    column[0] = n;
    let rows = Tensor::from_vec(rows, column, like.device())?.broadcast_as(like.shape())?.contiguous()?;
    caches.iter().try_for_each(|(cache, new)| cache.scatter_set(&rows, new, 0))
}

/// The operator on the CPU.
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

    /// Each task has a run of the table's rows and adds the gradients of their uses in order.
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
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{agree, close, normal};

    #[test]
    fn agrees_with_plain_candle() {
        let rows: Vec<u32> = (0..300).map(|i| (i * i * 7) % 1500).chain([3, 3, 3]).collect();
        let plain = |x: &Tensor| x.index_select(&Tensor::new(&rows[..], x.device())?, 0);
        agree(&[normal(&[1500, 33])], |v| gather_rows(&v[0], &rows), |v| plain(&v[0]));
        agree(&[normal(&[33, 1500])], |v| embedding(&v[0].t()?, &rows), |v| plain(&v[0].t()?.contiguous()?));
    }

    #[test]
    fn values_are_summed_by_their_weights_and_none_is_forgotten() {
        let members = [(1, 1.0), (0, 0.5), (1, 2.0), (2, 1.0)];
        let sums = |members: &[(usize, f32)]| {
            sums_of_values(&Tensor::new(&[1f32, 2.0, 3.0, 4.0], &candle_core::Device::Cpu)?, members.to_vec(), 4)
        };
        assert_eq!(sums(&members).unwrap().to_vec1::<f32>().unwrap(), [1.0, 7.0, 4.0, 0.0]);
        assert!(sums(&members[..3]).is_err());
        assert!(sums(&[members, members].concat()).is_err());
        assert!(sums(&[(4, 1.0); 4]).is_err());
    }

    #[test]
    fn runs_of_rows_go_where_they_should() {
        let new = normal(&[5, 2, 3]);
        for runs in [&[(0, 5, 2)][..], &[(0, 2, 5), (2, 3, 0)]] {
            let caches =
                [(); 2].map(|()| new.zeros_like().and_then(|zeros| Tensor::cat(&[&zeros, &zeros], 0)).unwrap());
            write_runs(&[(&caches[0], &new), (&caches[1], &new)], runs).unwrap();
            for cache in &caches {
                for &(first, count, row) in runs {
                    close(&cache.narrow(0, row, count).unwrap(), &new.narrow(0, first, count).unwrap(), 0.0, "a run");
                }
                close(&cache.sum_all().unwrap(), &new.sum_all().unwrap(), 1e-5, "nothing else");
            }
        }
    }

    #[test]
    fn refuses_a_row_outside() {
        assert!(gather_rows(&normal(&[4, 3]), &[0, 4]).is_err());
    }
}
