//! The angles of rotary position embeddings (RoFormer, arXiv 2104.09864) as Phi uses them.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::ops;

use super::config::PhiConfig;
use crate::Result;

/// Positions, a type, and the cosines and sines of their angles in it.
type Tables = (Vec<u32>, DType, (Tensor, Tensor));

/// The rotary frequencies of a decoder, and the tables of the last pass on a GPU: all steps of decoding an image have
/// the same positions.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    /// As the reference has them: it multiplies f32 position and f32 frequency.
    inverse_frequencies: Vec<f32>,
    last: Arc<Mutex<Option<Tables>>>,
}

impl Rotary {
    pub(super) fn new(config: &PhiConfig) -> Self {
        let rotary_dim = config.rotary_dim();
        let frequency = |i: usize| config.rope_theta.powf(-2.0 * i as f64 / rotary_dim as f64) as f32;
        let inverse_frequencies = (0..rotary_dim / 2).map(frequency).collect();
        Self { inverse_frequencies, last: Arc::default() }
    }

    /// Cosines and sines of the angles at `positions`.
    ///
    /// # Shapes
    /// `[positions, rotary_dim / 2]` each, of type `dtype`
    pub(super) fn tables(&self, positions: &[u32], dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((known, of, tables)) = last.as_ref()
                && known == positions
                && *of == dtype
            {
                return Ok(tables.clone());
            }
        }
        let half = self.inverse_frequencies.len();
        let (cos, sin) = ops::rotary_angles(positions, &self.inverse_frequencies);
        let table = |values: Vec<f32>| -> Result<Tensor> {
            Ok(Tensor::from_vec(values, (positions.len(), half), device)?.to_dtype(dtype)?)
        };
        let tables = (table(cos)?, table(sin)?);
        if !device.is_cpu() {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((positions.into(), dtype, tables.clone()));
        }
        Ok(tables)
    }
}
