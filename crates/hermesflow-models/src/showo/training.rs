//! Show-o as a policy or reference of Pair-DPO: how its log-probabilities are computed, and a digest of everything that
//! decides them.

use hermesflow_nn::device::{multiplies_bf16, uses_kernels};
use hermesflow_nn::kernels::{self, Bf16Kernel};
use hermesflow_nn::ops::Products;

use super::Showo;
use crate::{Error, Result};

/// Refuses parts: Show-o has none that is trained alone.
pub(super) fn whole(parts: &[String]) -> Result<()> {
    if parts.is_empty() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "train.parameters: Show-o is trained as a whole, and {} would be a part of it; remove the key",
        parts.join(", ")
    )))
}

impl Showo {
    /// A copy of the model that computes log-probabilities as Pair-DPO needs them, for the policy as well as for the
    /// reference.
    ///
    /// `products` is the precision of its matrix products. Each decoder block runs as one operator with its own
    /// backward pass, except in a small model in f32 on the CPU, which runs operator by operator. If `products` cannot
    /// use weights of the type that the model holds, the copy holds them in f32. A policy and the reference that it
    /// started from therefore give the same log-probabilities, bit for bit, whatever type the reference is stored in.
    ///
    /// Use [`hermesflow_nn::gradients::backward`] to differentiate them; candle's own backward pass does not know these
    /// blocks.
    ///
    /// # Errors
    /// If a weight cannot be converted to f32.
    pub fn training(&self, products: Products) -> Result<Self> {
        let held = match products.take(self.dtype()) {
            true => self.clone(),
            false => self.with_weights(self.weights.widened()?)?,
        };
        let by_operators = products == Products::F32 && self.is_small() && uses_kernels(self.phi.device());
        let phi = if by_operators { held.phi.clone() } else { held.phi.clone().whole(products) };
        Ok(Self { phi, ..held })
    }

    /// A copy of the model whose decoder blocks, if `on`, keep only their inputs for the backward pass and recompute
    /// the rest: the same numbers for less memory and more time. A model that runs operator by operator (see
    /// [`Self::training`]) is returned unchanged.
    pub fn recompute(&self, on: bool) -> Self {
        Self { phi: self.phi.clone().recompute(on), ..self.clone() }
    }

    /// Passes everything that decides the model's log-probabilities to `see`, piece by piece, to be hashed:
    /// configurations, tokenizer, weights in the type that they are held in, and the precision of the matrix products.
    ///
    /// # Errors
    /// If a weight cannot be read or a configuration cannot be written as JSON.
    pub fn each_part(&self, mut see: impl FnMut(&[u8])) -> Result<()> {
        let parse = |e: serde_json::Error| Error::Invalid(format!("a configuration cannot be written: {e}"));
        see(&serde_json::to_vec(&self.config).map_err(parse)?);
        see(&serde_json::to_vec(&self.phi_config).map_err(parse)?);
        see(self.tokenizer.to_json()?.as_bytes());
        see(format!("{:?} {}", self.phi.products(), multiplies_bf16(self.phi.device())).as_bytes());
        if self.phi.products() == Some(Products::Bf16) && self.phi.device().is_cpu() {
            let kernel = kernels::current().training;
            // Earlier versions had these, and their numbers stay known.
            let earlier = if multiplies_bf16(self.phi.device()) { Bf16Kernel::Packed } else { Bf16Kernel::Widened };
            if kernel != earlier {
                see(format!("kernel {kernel}").as_bytes());
            }
        }
        if let Some(operators) = self.operators() {
            see(operators.as_bytes());
        }
        self.weights.each_bytes(|described, bytes| {
            see(described.as_bytes());
            see(bytes);
        })?;
        Ok(())
    }

    /// The operators that compute the log-probabilities, where these are not the CPU's kernels, which round
    /// differently.
    fn operators(&self) -> Option<String> {
        let device = self.phi.device();
        (!uses_kernels(device)).then(|| format!("compositions on {}", hermesflow_nn::device::describe(device)))
    }
}
