//! The key/value cache: keys and values of earlier tokens, and where those of new tokens are stored.

use candle_core::{Device, Tensor};
use hermesflow_nn::ops;

use crate::{Error, Result};

/// Where the keys and values of new tokens go in a [`KvCache`].
#[derive(Debug, Clone)]
pub enum Placement {
    /// Consecutive rows that start here.
    Rows(usize),
    /// Runs of new tokens, each `(first token, number of tokens, first row)`.
    Runs(Vec<(usize, usize, usize)>),
    /// One new token for each of `samples` regions of `size` rows; the first region begins at row `start`, and the
    /// token goes to row `column` of its region.
    Column {
        /// The first row of the first region.
        start: usize,
        /// The number of regions.
        samples: usize,
        /// The rows of each region.
        size: usize,
        /// The row within each region.
        column: usize,
    },
    /// After the cache's rows, for this pass only: nothing is stored.
    Behind,
}

impl Placement {
    /// The row of each of `tokens` new tokens as a tensor on the device; `None` if they are one run of rows.
    ///
    /// # Shapes
    /// `[tokens]`
    pub(crate) fn rows(&self, tokens: usize, device: &Device) -> Result<Option<Tensor>> {
        let rows: Vec<u32> = match self {
            Self::Rows(_) | Self::Behind => return Ok(None),
            Self::Column { start, samples, size, column } => {
                (0..*samples).map(|sample| (start + sample * size + column) as u32).collect()
            }
            Self::Runs(runs) => {
                let mut rows = Vec::with_capacity(tokens);
                for &(first, count, row) in runs {
                    if first != rows.len() {
                        return Err(Error::Invalid(format!(
                            "a run of tokens from {first}, expected from {}",
                            rows.len()
                        )));
                    }
                    rows.extend(row as u32..(row + count) as u32);
                }
                rows
            }
        };
        if rows.len() != tokens {
            return Err(Error::Invalid(format!("rows for {} of {tokens} new tokens", rows.len())));
        }
        Ok(Some(Tensor::from_vec(rows, tokens, device)?))
    }
}

/// The keys and values of earlier tokens, for each layer `[rows, heads, head_dim]`.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) layers: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    pub(crate) fn store(
        &self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        placement: &Placement,
    ) -> Result<(Tensor, Tensor)> {
        let (k, v) = &self.layers[layer];
        let (keys, values) = (&keys.to_dtype(k.dtype())?, &values.to_dtype(v.dtype())?);
        if matches!(placement, Placement::Behind) {
            return Ok((Tensor::cat(&[k, keys], 0)?, Tensor::cat(&[v, values], 0)?));
        }
        if let Placement::Runs(runs) = placement {
            ops::write_runs(&[(k, keys), (v, values)], runs)?;
            return Ok((k.clone(), v.clone()));
        }
        for (cache, new) in [(k, keys), (v, values)] {
            let (_, heads, head_dim) = new.dims3()?;
            match placement {
                Placement::Rows(start) => cache.slice_set(new, 0, *start)?,
                Placement::Runs(_) | Placement::Behind => {}
                Placement::Column { start, samples, size, column } => {
                    let regions =
                        cache.narrow(0, *start, samples * size)?.reshape((*samples, *size, heads * head_dim))?;
                    regions.slice_set(&new.reshape((*samples, 1, heads * head_dim))?, 1, *column)?;
                }
            }
        }
        Ok((k.clone(), v.clone()))
    }
}
