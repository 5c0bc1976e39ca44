//! The likeliest columns of rows of logits, found on the device that holds the rows, so that a GPU's logits need not be copied to
//! the host.

use candle_core::{DType, Result, Tensor, bail};

use super::log_prob::log_sum_exp;

/// The likeliest columns of a row of logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Likeliest {
    /// Columns with their logits, the largest logit first; of equal logits the lower column first.
    pub columns: Vec<(u32, f32)>,
    /// The log-sum-exp of the whole row; NaN or infinite if a logit is.
    pub log_sum: f64,
}

/// The `count` columns of a row with the largest logits, or all if it has fewer, the largest first; of equal logits the lower
/// column first.
pub fn likeliest_of_row(logits: &[f32], count: usize) -> Vec<u32> {
    /// Most columns that are found in one pass.
    const FEW: usize = 64;
    let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count > FEW {
        let mut all: Vec<u32> = (0..logits.len() as u32).collect();
        if count < all.len() {
            all.select_nth_unstable_by(count - 1, better);
            all.truncate(count);
        }
        all.sort_unstable_by(better);
        return all;
    }
    // In a long row hardly any column passes the comparison with the last of the few.
    let mut few: Vec<u32> = Vec::with_capacity(count + 1);
    let mut last = f32::NEG_INFINITY;
    for (column, &logit) in logits.iter().enumerate() {
        if few.len() == count && logit <= last {
            continue;
        }
        let at = few.partition_point(|other| logits[*other as usize] >= logit);
        few.insert(at, column as u32);
        few.truncate(count);
        last = few.last().map_or(last, |column| logits[*column as usize]);
    }
    few
}

/// The `count` likeliest columns of each row.
///
/// # Shapes
/// `logits [n, v]` -> n rows
///
/// # Errors
/// When `count` is 0 or more than `v`.
pub fn likeliest(logits: &Tensor, count: usize) -> Result<Vec<Likeliest>> {
    let (_, v) = logits.dims2()?;
    if count == 0 || count > v {
        bail!("the {count} likeliest of {v} columns");
    }
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() && v <= 1 << 24 {
        let rows = super::gpu::likeliest(&logits.contiguous()?, count)?.into_iter();
        return Ok(rows.map(|(columns, log_sum)| Likeliest { columns, log_sum }).collect());
    }
    let of_row = |row: Vec<f32>| {
        let columns = likeliest_of_row(&row, count).into_iter().map(|column| (column, row[column as usize])).collect();
        Likeliest { columns, log_sum: log_sum_exp(&row) }
    };
    Ok(logits.to_dtype(DType::F32)?.to_vec2::<f32>()?.into_iter().map(of_row).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Device;

    fn rows(n: u32, v: u32) -> Vec<Vec<f32>> {
        let logit = |row: u32, i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(row * 977) % 100) as f32 - 50.0;
        (0..n).map(|row| (0..v).map(|i| logit(row, i)).collect()).collect()
    }

    #[test]
    fn the_likeliest_are_those_of_a_whole_sort() {
        let logits = &rows(1, 997)[0];
        let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
        sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        for count in [1, 2, 5, 64, 65, 500, 997, 2000] {
            assert_eq!(likeliest_of_row(logits, count), sorted[..count.min(997)], "{count}");
        }
    }

    #[test]
    fn a_device_finds_what_each_row_says() {
        let rows = rows(3, 200);
        let found = likeliest(&Tensor::new(rows.clone(), &Device::Cpu).unwrap(), 4).unwrap();
        for (row, found) in rows.iter().zip(found) {
            let columns: Vec<u32> = found.columns.iter().map(|(column, _)| *column).collect();
            assert_eq!(columns, likeliest_of_row(row, 4));
            assert!(found.columns.iter().all(|(column, logit)| row[*column as usize] == *logit));
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            assert!((found.log_sum - sum.ln()).abs() < 1e-6);
        }
        let one = Tensor::new(&[[0f32, 1.0]], &Device::Cpu).unwrap();
        assert!(likeliest(&one, 0).is_err() && likeliest(&one, 3).is_err());
    }
}
