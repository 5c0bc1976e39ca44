//! The contents of a model folder: JSON files, and weights whose names may have their model's prefix.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use hermesflow_nn::foreign;
use hermesflow_nn::weights::Weights;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Reads the JSON file `name` of a folder.
pub(super) fn read_json<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<T> {
    match optional_json(folder, name)? {
        Some(json) => Ok(json),
        None if folder.is_dir() => {
            let message = "no such file; a model folder holds config.json, weights and tokenizer.json as published";
            Err(Error::file(&folder.join(name), message))
        }
        None => Err(Error::file(folder, "no such folder; give the folder of a downloaded model")),
    }
}

/// Reads the JSON file `name` of a folder; `None` if there is no such file.
pub(super) fn optional_json<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>> {
    let path = folder.join(name);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file(&path, error)),
    };
    if let Some(what) = foreign::stands_in(&bytes) {
        return Err(Error::file(&path, what));
    }
    let text = foreign::text(bytes).map_err(|what| Error::file(&path, what))?;
    let broken = |error| Error::file(&path, format!("{error}; download the file that belongs to this model again"));
    serde_json::from_str(&text).map(Some).map_err(broken)
}

/// Weights whose names may have a prefix, such as `bert.` in a checkpoint with a pretraining head.
#[derive(Debug)]
pub(super) struct Parameters {
    weights: Weights,
    prefix: String,
}

impl Parameters {
    /// Loads a folder's weights. The prefix is the first of `prefixes` with which `probe` is found.
    pub fn load(folder: &Path, dtype: DType, device: &Device, prefixes: &[&str], probe: &str) -> Result<Self> {
        Ok(Self::new(Weights::load(folder, dtype, device)?, prefixes, probe))
    }

    /// Like [`Parameters::load`], from weights in memory.
    pub fn new(weights: Weights, prefixes: &[&str], probe: &str) -> Self {
        let found = prefixes.iter().find(|prefix| weights.tensors().contains_key(&format!("{prefix}{probe}")));
        let prefix = (*found.unwrap_or(&"")).to_string();
        Self { weights, prefix }
    }

    /// Like [`Parameters::get`], for a tensor without the prefix, such as a head.
    pub fn outside(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.weights.get(name, shape)?)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.weights.tensors().contains_key(&format!("{}{name}", self.prefix))
    }

    /// The tensor `name`, which must have this shape. Early checkpoints call a LayerNorm's parameters gamma and beta.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let early = match name.rsplit_once("LayerNorm.") {
            Some((path, "weight")) => Some(format!("{path}LayerNorm.gamma")),
            Some((path, "bias")) => Some(format!("{path}LayerNorm.beta")),
            _ => None,
        };
        let name = early.filter(|early| !self.has(name) && self.has(early)).unwrap_or_else(|| name.to_string());
        Ok(self.weights.get(&format!("{}{name}", self.prefix), shape)?)
    }
}
