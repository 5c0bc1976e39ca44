//! Named tensors: loading, checking, training and saving the weights of a model.
//!
//! Layouts: `*.safetensors` or PyTorch `*.bin`, whole or sharded with an `*.index.json`. A `.bin` is a
//! pickle; it is parsed, never executed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};

/// The names under which a checkpoint folder may keep its weights, in order of preference.
const FILE_NAMES: [&str; 4] =
    ["pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"];

/// Weights could not be loaded, matched or saved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No weights were found.
    #[error(
        "{0}: no weights found; expected one of pytorch_model.safetensors, model.safetensors, \
             diffusion_pytorch_model.safetensors, pytorch_model.bin, or a sharded index of one of them"
    )]
    NotFound(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not a readable set of tensors.
    #[error("{path}: not a readable weight file ({message}); download or export it again")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// The tensors are not those that the configuration asks for.
    #[error(
        "{path}: the weights do not fit their configuration: {message}; \
             use the config.json that belongs to this checkpoint"
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What is missing, unexpected or mis-shaped.
        message: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Tensors by name, either frozen or trainable.
#[derive(Debug, Clone)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
    variables: BTreeMap<String, Var>,
    origin: PathBuf,
}

impl Weights {
    /// Frozen weights from tensors in memory; `origin` is named in errors.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>, origin: impl Into<PathBuf>) -> Self {
        Self { tensors: tensors.into_iter().collect(), variables: BTreeMap::new(), origin: origin.into() }
    }

    /// Loads a weight file, or the weights of a checkpoint folder; floats become `dtype`.
    ///
    /// # Errors
    /// When nothing is found or a file is broken; the file is named.
    pub fn load(path: &Path, dtype: DType, device: &Device) -> Result<Self, Error> {
        let files = if path.is_dir() { files(path)? } else { vec![path.to_path_buf()] };
        let mut tensors = BTreeMap::new();
        for file in files {
            for (name, tensor) in read_file(&file, device)? {
                let tensor = if tensor.dtype().is_float() { tensor.to_dtype(dtype)? } else { tensor };
                tensors.insert(name, tensor);
            }
        }
        Ok(Self { tensors, variables: BTreeMap::new(), origin: path.to_path_buf() })
    }

    /// Loads safetensors bytes that are already in memory (an embedded asset).
    ///
    /// # Errors
    /// When the bytes are not safetensors.
    pub fn from_bytes(bytes: &[u8], dtype: DType, device: &Device, origin: &str) -> Result<Self, Error> {
        let tensors = candle_core::safetensors::load_buffer(bytes, device)
            .map_err(|e| Error::Broken { path: origin.into(), message: e.to_string() })?;
        let tensors = tensors
            .into_iter()
            .map(|(name, tensor)| Ok((name, if tensor.dtype().is_float() { tensor.to_dtype(dtype)? } else { tensor })))
            .collect::<Result<BTreeMap<_, _>, Error>>()?;
        Ok(Self { tensors, variables: BTreeMap::new(), origin: origin.into() })
    }

    /// Makes every float tensor a trainable variable.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn trainable(&self) -> Result<Self, Error> {
        let mut variables = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            if tensor.dtype().is_float() {
                let variable = Var::from_tensor(&tensor.detach().contiguous()?)?;
                tensors.insert(name.clone(), variable.as_tensor().clone());
                variables.insert(name.clone(), variable);
            } else {
                tensors.insert(name.clone(), tensor.clone());
            }
        }
        Ok(Self { tensors, variables, origin: self.origin.clone() })
    }

    /// The same storage without gradients: what is trained elsewhere is seen here.
    pub fn frozen(&self) -> Self {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
        Self { tensors, variables: BTreeMap::new(), origin: self.origin.clone() }
    }

    /// A copy of the present values, frozen: what is trained elsewhere later is not seen here.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn snapshot(&self) -> Result<Self, Error> {
        let tensors = self
            .tensors
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), tensor.detach().copy()?)))
            .collect::<Result<_, Error>>()?;
        Ok(Self { tensors, variables: BTreeMap::new(), origin: self.origin.clone() })
    }

    /// The trainable parameters, sorted by name.
    pub fn variables(&self) -> Vec<(String, Var)> {
        self.variables.iter().map(|(name, variable)| (name.clone(), variable.clone())).collect()
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// How many numbers they hold in all.
    pub fn parameter_count(&self) -> usize {
        self.tensors.values().map(Tensor::elem_count).sum()
    }

    /// Where the weights came from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Checks names and shapes against what a configuration asks for.
    ///
    /// # Errors
    /// Lists everything missing, unexpected and mis-shaped (names in `ignored` may be present).
    pub fn check(&self, expected: &[(String, Vec<usize>)], ignored: &[&str]) -> Result<(), Error> {
        let mut faults = Vec::new();
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        for (name, shape) in expected {
            match self.tensors.get(name) {
                None => faults.push(format!("missing {name} {shape:?}")),
                Some(tensor) if tensor.dims() != shape.as_slice() => {
                    faults.push(format!("{name} has shape {:?}, the configuration asks for {shape:?}", tensor.dims()));
                }
                Some(_) => {}
            }
        }
        for name in self.tensors.keys() {
            if !known.contains(name.as_str()) && !ignored.iter().any(|end| name.ends_with(end)) {
                faults.push(format!("unexpected {name}"));
            }
        }
        if faults.is_empty() {
            return Ok(());
        }
        let more = faults.len().saturating_sub(8);
        faults.truncate(8);
        let mut message = faults.join("; ");
        if more > 0 {
            message.push_str(&format!("; and {more} more"));
        }
        Err(Error::Mismatch { path: self.origin.clone(), message })
    }

    /// The tensor `name`, which must have this shape.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        match self.tensors.get(name) {
            Some(tensor) if tensor.dims() == shape => Ok(tensor.clone()),
            Some(tensor) => Err(Error::Mismatch {
                path: self.origin.clone(),
                message: format!("{name} has shape {:?}, the configuration asks for {shape:?}", tensor.dims()),
            }),
            None => Err(Error::Mismatch { path: self.origin.clone(), message: format!("missing {name} {shape:?}") }),
        }
    }

    /// A view in which names start with `prefix.`, as checkpoints nest them.
    pub fn scope<'a>(&'a self, prefix: &str) -> Scope<'a> {
        Scope { weights: self, prefix: prefix.to_string() }
    }

    /// Writes all tensors as safetensors, floats as `dtype`, through a temporary name.
    ///
    /// # Errors
    /// When the file cannot be written; the file is named.
    pub fn save(&self, path: &Path, dtype: DType) -> Result<(), Error> {
        let mut tensors = HashMap::new();
        for (name, tensor) in &self.tensors {
            let tensor = tensor.detach();
            let tensor = if tensor.dtype().is_float() { tensor.to_dtype(dtype)? } else { tensor };
            tensors.insert(name.clone(), tensor.contiguous()?);
        }
        save_tensors(path, &tensors)
    }
}

/// Writes tensors as safetensors, sorted by name, through a temporary name.
///
/// # Errors
/// When the file cannot be written; the file is named.
pub fn save_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let broken = |e: safetensors::SafeTensorError| Error::Broken { path: path.to_path_buf(), message: e.to_string() };
    let sorted: BTreeMap<&String, &Tensor> = tensors.iter().collect();
    let metadata = Some(HashMap::from([("format".to_string(), "pt".to_string())]));
    let bytes = safetensors::serialize(sorted, metadata).map_err(broken)?;
    let temporary = path.with_extension("safetensors.tmp");
    let mut file = std::fs::File::create(&temporary).map_err(io)?;
    std::io::Write::write_all(&mut file, &bytes).map_err(io)?;
    file.sync_all().map_err(io)?;
    std::fs::rename(&temporary, path).map_err(io)
}

/// [`Weights`] below a prefix.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
    /// One level down.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { weights: self.weights, prefix: format!("{}.{name}", self.prefix) }
    }

    /// The tensor `name` below the prefix, which must have this shape.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        self.weights.get(&format!("{}.{name}", self.prefix), shape)
    }
}

/// The weight files of a checkpoint folder: one, or the shards that an index names.
///
/// # Errors
/// When there are none, or an index is broken.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    for name in FILE_NAMES {
        let whole = folder.join(name);
        if whole.is_file() {
            return Ok(vec![whole]);
        }
        let index = folder.join(format!("{name}.index.json"));
        if index.is_file() {
            return shards(&index);
        }
    }
    Err(Error::NotFound(folder.to_path_buf()))
}

fn shards(index: &Path) -> Result<Vec<PathBuf>, Error> {
    let io = |source| Error::Io { path: index.to_path_buf(), source };
    let broken = |message: &str| Error::Broken { path: index.to_path_buf(), message: message.to_string() };
    let text = std::fs::read_to_string(index).map_err(io)?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| broken(&e.to_string()))?;
    let map = json.get("weight_map").and_then(|map| map.as_object()).ok_or_else(|| broken("no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(|file| file.as_str()).collect();
    let folder = index.parent().unwrap_or_else(|| Path::new("."));
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn read_file(path: &Path, device: &Device) -> Result<Vec<(String, Tensor)>, Error> {
    if !path.is_file() {
        return Err(Error::NotFound(path.to_path_buf()));
    }
    let broken = |e: candle_core::Error| Error::Broken { path: path.to_path_buf(), message: e.to_string() };
    if path.extension().is_some_and(|ending| ending == "safetensors") {
        Ok(candle_core::safetensors::load(path, device).map_err(broken)?.into_iter().collect())
    } else {
        candle_core::pickle::read_all(path)
            .map_err(broken)?
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.to_device(device)?)))
            .collect()
    }
}
