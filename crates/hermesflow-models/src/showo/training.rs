//! The model as it is trained and compared with: how its likelihoods are computed, and a digest of all that decides them.

use hermesflow_nn::device::{multiplies_bf16, uses_kernels};
use hermesflow_nn::ops::Products;

use super::Showo;
use crate::{Error, Result};

impl Showo {
    /// The model as Pair-DPO trains it or compares with it: with these products, and by whole blocks, but for a small one
    /// in f32 on the CPU, which goes on operator by operator.
    ///
    /// A policy and the reference that it begins from compute the same likelihoods, bit for bit, whatever type the
    /// reference is held in: products that do not take its weights get them widened to f32, which is what is trained.
    ///
    /// The gradients of its likelihoods come from [`hermesflow_nn::gradients::backward`] only.
    ///
    /// # Errors
    /// When a weight cannot be widened.
    pub fn training(&self, products: Products) -> Result<Self> {
        let held = match products.take(self.dtype()) {
            true => self.clone(),
            false => self.with_weights(self.weights.widened()?)?,
        };
        let by_operators = products == Products::F32 && self.is_small() && uses_kernels(self.phi.device());
        let phi = if by_operators { held.phi.clone() } else { held.phi.clone().whole(products) };
        Ok(Self { phi, ..held })
    }

    /// The model, whose whole blocks ([`Self::training`]) keep for the backward pass their inputs only, if `on`, and compute
    /// the rest again: the same numbers for less memory and more time. One that runs operator by operator stays as it is.
    pub fn checkpointing(&self, on: bool) -> Self {
        Self { phi: self.phi.clone().checkpointing(on), ..self.clone() }
    }

    /// Everything that decides the model's likelihoods, piece by piece, for a digest: configurations, tokenizer, weights
    /// as they are held, and how they are multiplied.
    ///
    /// # Errors
    /// When a weight cannot be read.
    pub fn each_part(&self, mut see: impl FnMut(&[u8])) -> Result<()> {
        let parse = |e: serde_json::Error| Error::Invalid(format!("a configuration cannot be written: {e}"));
        see(&serde_json::to_vec(&self.config).map_err(parse)?);
        see(&serde_json::to_vec(&self.phi_config).map_err(parse)?);
        see(self.tokenizer.to_json()?.as_bytes());
        see(format!("{:?} {}", self.phi.products(), multiplies_bf16(self.phi.device())).as_bytes());
        if let Some(operators) = self.operators() {
            see(operators.as_bytes());
        }
        self.weights.each_bytes(|described, bytes| {
            see(described.as_bytes());
            see(bytes);
        })?;
        Ok(())
    }

    /// Which operators compute its likelihoods, where they are not the CPU's kernels: they round otherwise.
    fn operators(&self) -> Option<String> {
        let device = self.phi.device();
        (!uses_kernels(device)).then(|| format!("compositions on {}", hermesflow_nn::device::describe(device)))
    }
}
