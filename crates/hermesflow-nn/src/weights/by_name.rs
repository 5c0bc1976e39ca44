//! Weights of which some are trained and others are not, or that are held in different types: chosen by their names.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use super::{Error, Weights, read};

impl Weights {
    /// As [`Weights::load`], with the matrices of each name in the type that `dtype` gives for it; none leaves a tensor in
    /// the type that the file has.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn load_by_name(path: &Path, dtype: impl Fn(&str) -> Option<DType>, device: &Device) -> Result<Self, Error> {
        let mut tensors = BTreeMap::new();
        read::each_tensor(path, None, device, |name, tensor| {
            let tensor = held(tensor, dtype(&name))?;
            tensors.insert(name, tensor);
            Ok(())
        })?;
        Ok(Self { tensors, variables: BTreeMap::new(), origin: path.to_path_buf() })
    }

    /// As [`Weights::from_bytes`], with types as in [`Weights::load_by_name`].
    ///
    /// # Errors
    /// As [`Weights::from_bytes`].
    pub fn from_bytes_by_name(
        bytes: &[u8],
        dtype: impl Fn(&str) -> Option<DType>,
        device: &Device,
        origin: &str,
    ) -> Result<Self, Error> {
        let tensors = candle_core::safetensors::load_buffer(bytes, device)
            .map_err(|e| Error::Broken { path: origin.into(), message: e.to_string() })?;
        let tensors = tensors.into_iter().map(|(name, tensor)| {
            let tensor = held(tensor, dtype(&name))?;
            Ok((name, tensor))
        });
        let tensors = tensors.collect::<Result<BTreeMap<_, _>, Error>>()?;
        Ok(Self { tensors, variables: BTreeMap::new(), origin: origin.into() })
    }

    /// Makes the float tensors of some names trainable variables, in f32; the others stay as they are and share their
    /// values with these weights.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn trainable_by_name(&self, is_trained: impl Fn(&str) -> bool) -> Result<Self, Error> {
        let (mut tensors, mut variables) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in &self.tensors {
            if tensor.dtype().is_float() && is_trained(name) {
                let variable = Var::from_tensor(&tensor.detach().to_dtype(DType::F32)?.copy()?)?;
                tensors.insert(name.clone(), variable.as_tensor().clone());
                variables.insert(name.clone(), variable);
            } else {
                tensors.insert(name.clone(), tensor.detach());
            }
        }
        Ok(Self { tensors, variables, origin: self.origin.clone() })
    }

    /// The float tensors of some names in f32; the others stay as they are. What is trained, which is in f32, stays so.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn widened_by_name(&self, is_widened: impl Fn(&str) -> bool) -> Result<Self, Error> {
        let wide = |(name, tensor): (&String, &Tensor)| {
            let wide = tensor.dtype().is_float() && is_widened(name);
            Ok((name.clone(), if wide { tensor.to_dtype(DType::F32)? } else { tensor.clone() }))
        };
        let tensors = self.tensors.iter().map(wide).collect::<Result<_, Error>>()?;
        Ok(Self { tensors, variables: self.variables.clone(), origin: self.origin.clone() })
    }

    /// A copy of the present values of what is trained here, frozen; what is not is shared.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn snapshot_of_trained(&self) -> Result<Self, Error> {
        let copy = |(name, tensor): (&String, &Tensor)| {
            let tensor = tensor.detach();
            let tensor = if self.variables.contains_key(name) { tensor.copy()? } else { tensor };
            Ok((name.clone(), tensor))
        };
        let tensors = self.tensors.iter().map(copy).collect::<Result<_, Error>>()?;
        Ok(Self { tensors, variables: BTreeMap::new(), origin: self.origin.clone() })
    }
}

/// A tensor as it is held where its matrices are wanted in a type.
fn held(tensor: Tensor, wanted: Option<DType>) -> Result<Tensor, Error> {
    let Some(wanted) = wanted else { return Ok(tensor) };
    Ok(tensor.to_dtype(read::held(tensor.dtype(), wanted, tensor.rank()))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn weights() -> Weights {
        let tensor = |value: f32| Tensor::full(value, (2, 3), &Device::Cpu).unwrap();
        let named = [("a.weight", tensor(1.25)), ("b.weight", tensor(2.5))];
        Weights::from_tensors(named.map(|(name, tensor)| (name.to_string(), tensor)), "test")
    }

    fn first(weights: &Weights, name: &str) -> f32 {
        weights.tensors()[name].flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap()[0]
    }

    #[test]
    fn only_the_named_are_trained_and_snapshots_do_not_follow() {
        let trained = weights().trainable_by_name(|name| name.starts_with("a.")).unwrap();
        let snapshot = trained.snapshot_of_trained().unwrap();
        let variables = trained.variables();
        assert_eq!(variables.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a.weight"]);
        variables[0].1.set(&(variables[0].1.as_detached_tensor() * 2.0).unwrap()).unwrap();
        assert_eq!((first(&trained, "a.weight"), first(&trained.frozen(), "a.weight")), (2.5, 2.5));
        assert_eq!((first(&snapshot, "a.weight"), first(&snapshot, "b.weight")), (1.25, 2.5));
        assert!(!trained.tensors()["b.weight"].track_op());
    }

    #[test]
    fn types_are_chosen_by_name() {
        let folder = tempfile::tempdir().unwrap();
        weights().save(&folder.path().join("model.safetensors"), DType::F32).unwrap();
        let bf16 = |name: &str| name.starts_with("a.").then_some(DType::BF16);
        let there = Weights::load_by_name(folder.path(), bf16, &Device::Cpu).unwrap();
        let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
        let in_memory = Weights::from_bytes_by_name(&bytes, bf16, &Device::Cpu, "memory").unwrap();
        assert_eq!(in_memory.tensors()["a.weight"].dtype(), DType::BF16);
        assert_eq!((first(&in_memory, "a.weight"), first(&in_memory, "b.weight")), (1.25, 2.5));
        let types = ["a.weight", "b.weight"].map(|name| there.tensors()[name].dtype());
        assert_eq!(types, [DType::BF16, DType::F32]);
        assert_eq!((first(&there, "a.weight"), first(&there, "b.weight")), (1.25, 2.5));
        let wide = there.widened_by_name(|name| name.starts_with("a.")).unwrap();
        assert_eq!((wide.tensors()["a.weight"].dtype(), first(&wide, "a.weight")), (DType::F32, 1.25));
    }
}
