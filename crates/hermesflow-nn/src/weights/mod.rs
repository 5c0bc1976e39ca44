//! Named tensors: loading, checking, training and saving the weights of a model.
//!
//! Files are `*.safetensors` or PyTorch's `*.bin`, whole or sharded with an `*.index.json`. A `.bin` is a pickle; it is parsed,
//! never executed.
//!
//! When weights are held in a 16-bit type, only matrices are: vectors (biases, norms) stay in f32, as do activations on the CPU.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};

mod by_name;
mod error;
mod mapped;
mod read;
mod write;

pub use error::Error;
pub use mapped::FileBacked;
pub use read::{TensorInfo, each_tensor, files, tensor_infos};
pub use write::{FileFormat, save_tensors};

/// The tensors of a model by name: frozen, or with trainable variables.
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

    /// Loads a weight file, or the weights of a checkpoint folder, one tensor at a time; matrices become `dtype`, and vectors f32 if
    /// `dtype` has 16 bits. Weights already in the requested type are memory-mapped where [`FileBacked`] allows it.
    ///
    /// # Errors
    /// When there are no weights, or a file is broken; the file is named.
    pub fn load(path: &Path, dtype: DType, device: &Device) -> Result<Self, Error> {
        Self::read(path, Some(dtype), device)
    }

    /// Loads weights as [`Weights::load`] does, with every tensor in the type that it has in the file.
    ///
    /// # Errors
    /// When there are no weights, or a file is broken; the file is named.
    pub fn load_unchanged(path: &Path, device: &Device) -> Result<Self, Error> {
        Self::read(path, None, device)
    }

    fn read(path: &Path, dtype: Option<DType>, device: &Device) -> Result<Self, Error> {
        let mut tensors = BTreeMap::new();
        each_tensor(path, dtype, device, |name, tensor| {
            tensors.insert(name, tensor);
            Ok(())
        })?;
        Ok(Self { tensors, variables: BTreeMap::new(), origin: path.to_path_buf() })
    }

    /// Loads weights from the bytes of a safetensors file in memory, such as one inside the program; `origin` is named in errors.
    ///
    /// # Errors
    /// When the bytes are not safetensors.
    pub fn from_bytes(bytes: &[u8], dtype: DType, device: &Device, origin: &str) -> Result<Self, Error> {
        Self::from_bytes_by_name(bytes, |_| Some(dtype), device, origin)
    }

    /// A copy of the weights in which every tensor of floats is a trainable variable in f32.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn trainable(&self) -> Result<Self, Error> {
        let mut variables = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            if tensor.dtype().is_float() {
                let variable = Var::from_tensor(&tensor.detach().to_dtype(DType::F32)?.contiguous()?)?;
                tensors.insert(name.clone(), variable.as_tensor().clone());
                variables.insert(name.clone(), variable);
            } else {
                tensors.insert(name.clone(), tensor.clone());
            }
        }
        Ok(Self { tensors, variables, origin: self.origin.clone() })
    }

    /// The same tensors without gradients. They share their memory, so that updates by an optimizer are visible here.
    pub fn frozen(&self) -> Self {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
        Self { tensors, variables: BTreeMap::new(), origin: self.origin.clone() }
    }

    /// The same values in f32, frozen. Tensors already in f32 share their memory.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn widened(&self) -> Result<Self, Error> {
        let wide = |tensor: &Tensor| match tensor.dtype().is_float() {
            true => tensor.detach().to_dtype(DType::F32),
            false => Ok(tensor.clone()),
        };
        let tensors = self.tensors.iter().map(|(name, tensor)| Ok((name.clone(), wide(tensor)?)));
        let tensors = tensors.collect::<Result<_, Error>>()?;
        Ok(Self { tensors, variables: BTreeMap::new(), origin: self.origin.clone() })
    }

    /// A frozen copy of the present values, which later training does not change.
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

    /// Calls `see` with each tensor's name, type and shape as one text and with its bytes, sorted by name: the input of a digest.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn each_bytes(&self, mut see: impl FnMut(&str, &[u8])) -> Result<(), Error> {
        for (name, tensor) in &self.tensors {
            let described = format!("{name} {:?} {:?}", tensor.dtype(), tensor.dims());
            see(&described, &write::bytes(tensor, None)?);
        }
        Ok(())
    }

    /// Checks that `dtype` can hold every value; a narrower type may turn the largest into infinity.
    ///
    /// # Errors
    /// Names the first tensor with a value that does not fit.
    pub fn check_fit(&self, dtype: DType) -> Result<(), Error> {
        for (name, tensor) in self.tensors.iter().filter(|(_, tensor)| tensor.dtype().is_float()) {
            read::check_finite(&self.origin, name, &write::bytes(tensor, None)?, (tensor.dtype(), dtype))?;
        }
        Ok(())
    }

    /// The number of elements of all tensors together.
    pub fn parameter_count(&self) -> usize {
        self.tensors.values().map(Tensor::elem_count).sum()
    }

    /// The file or folder that the weights came from, or the text that stands for it in errors.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Checks names and shapes against those that a configuration asks for. Further tensors are accepted if their names end in one of
    /// `ignored`.
    ///
    /// # Errors
    /// Lists what is missing, unexpected or of another shape, at most eight.
    pub fn check(&self, expected: &[(String, Vec<usize>)], ignored: &[&str]) -> Result<(), Error> {
        let found: Vec<_> = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        check(&self.origin, &found, expected, ignored)
    }

    /// The tensor `name`, checked to have this shape.
    ///
    /// # Errors
    /// When the tensor is missing or has another shape.
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

    /// The weights whose names start with `prefix.`, to be read by the rest of their names.
    pub fn scope<'a>(&'a self, prefix: &str) -> Scope<'a> {
        Scope { weights: self, prefix: prefix.to_string() }
    }

    /// Writes all tensors to a safetensors file, floats as `dtype`. The file appears at once or not at all (temporary name, then
    /// rename).
    ///
    /// # Errors
    /// When the file cannot be written; the file is named.
    pub fn save(&self, path: &Path, dtype: DType) -> Result<(), Error> {
        write::save_safetensors(path, self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), Some(dtype))
    }

    /// Writes all tensors into a folder in one of the formats in which checkpoints are published, floats as `dtype` if one is given,
    /// and returns the files.
    ///
    /// # Errors
    /// When the folder has weights already, or a file cannot be written; the file is named.
    pub fn save_as(&self, folder: &Path, format: FileFormat, dtype: Option<DType>) -> Result<Vec<PathBuf>, Error> {
        let tensors: Vec<(&str, &Tensor)> = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        write::save_as(folder, &tensors, format, dtype)
    }
}

/// Checks the names and shapes in `found` against those that a configuration asks for. Further tensors are accepted if their names
/// end in one of `ignored`.
///
/// # Errors
/// Names `path` and lists what is missing, unexpected or of another shape, at most eight.
pub fn check(
    path: &Path,
    found: &[(String, Vec<usize>)],
    expected: &[(String, Vec<usize>)],
    ignored: &[&str],
) -> Result<(), Error> {
    let mut faults = Vec::new();
    let there: BTreeMap<&str, &Vec<usize>> = found.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
    let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    for (name, shape) in expected {
        match there.get(name.as_str()) {
            None => faults.push(format!("missing {name} {shape:?}")),
            Some(found) if *found != shape => {
                faults.push(format!("{name} has shape {found:?}, the configuration asks for {shape:?}"));
            }
            Some(_) => {}
        }
    }
    for name in there.keys() {
        if !known.contains(name) && !ignored.iter().any(|end| name.ends_with(end)) {
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
    Err(Error::Mismatch { path: path.to_path_buf(), message })
}

/// The tensors of a [`Weights`] whose names start with a prefix.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
    /// The tensors one level further down: the prefix grows by `.name`.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { weights: self.weights, prefix: format!("{}.{name}", self.prefix) }
    }

    /// The tensor `prefix.name`, checked to have this shape.
    ///
    /// # Errors
    /// When the tensor is missing or has another shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        self.weights.get(&format!("{}.{name}", self.prefix), shape)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn weights() -> Weights {
        let tensor = |seed: u32, shape: &[usize]| {
            let count: usize = shape.iter().product();
            let values = (0..count as u32).map(|i| (i * 7919 + seed) as f32 / 977.0 - 3.0).collect::<Vec<_>>();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let named =
            [("a.weight", tensor(1, &[5, 3])), ("a.bias", tensor(2, &[5])), ("b.weight", tensor(3, &[4, 2, 3, 3]))];
        let counts = Tensor::new(&[1i64, -2, 3], &Device::Cpu).unwrap();
        let named = named.into_iter().chain([("counts", counts)]);
        Weights::from_tensors(named.map(|(name, tensor)| (name.to_string(), tensor)), "test")
    }

    fn bits(weights: &Weights) -> Vec<(String, Vec<usize>, Vec<u32>)> {
        let bits = |tensor: &Tensor| {
            let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        weights.tensors().iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec(), bits(tensor))).collect()
    }

    #[test]
    fn every_format_gives_back_the_same_bits() {
        let folder = tempfile::tempdir().unwrap();
        let weights = weights();
        for format in
            [FileFormat::Bin, FileFormat::ShardedSafetensors(100), FileFormat::ShardedBin(100), FileFormat::Safetensors]
        {
            let folder = folder.path().join(format!("{format:?}"));
            let files = weights.save_as(&folder, format, None).unwrap();
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), files.len(), "{format:?}");
            let there = Weights::load(&folder, DType::F32, &Device::Cpu).unwrap();
            assert_eq!(bits(&there), bits(&weights), "{format:?}");
            let listed: Vec<_> = tensor_infos(&folder).unwrap().into_iter().map(|e| (e.name, e.shape)).collect();
            let wanted: Vec<_> = weights.tensors().iter().map(|(n, t)| (n.clone(), t.dims().to_vec())).collect();
            assert_eq!(listed, wanted, "{format:?}");
        }
    }

    #[test]
    fn weights_that_are_there_stay_and_an_index_names_files_beside_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, victim) = (folder.path().join("model"), folder.path().join("victim.bin"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(&victim, "mine").unwrap();
        let index = inside.join("pytorch_model.safetensors.index.json");
        let absolute = victim.display().to_string();
        for name in ["../victim.bin", &absolute, "sub/victim.bin", "..", "a\\b", "", "C:x"] {
            std::fs::write(&index, serde_json::json!({ "weight_map": { "a": name } }).to_string()).unwrap();
            let message = Weights::load(&inside, DType::F32, &Device::Cpu).unwrap_err().to_string();
            assert!(message.contains("index.json") && message.contains("no file name within"), "{name}: {message}");
            let message = weights().save_as(&inside, FileFormat::Safetensors, None).unwrap_err().to_string();
            assert!(message.contains("index.json: weights are there already"), "{name}: {message}");
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 1, "nothing was written");
    }

    #[test]
    fn sixteen_bits_are_for_matrices() {
        let folder = tempfile::tempdir().unwrap();
        let weights = weights();
        for dtype in [DType::BF16, DType::F16] {
            for format in [FileFormat::Safetensors, FileFormat::Bin] {
                let [plain, narrow] =
                    ["plain", "narrow"].map(|name| folder.path().join(format!("{name}-{format:?}-{dtype:?}")));
                weights.save_as(&plain, format, None).unwrap();
                let there = Weights::load(&plain, dtype, &Device::Cpu).unwrap();
                for (name, tensor) in there.tensors() {
                    let plain = weights.tensors()[name].to_dtype(tensor.dtype()).unwrap();
                    let wanted = if name == "counts" {
                        DType::I64
                    } else if tensor.rank() > 1 {
                        dtype
                    } else {
                        DType::F32
                    };
                    assert_eq!(tensor.dtype(), wanted, "{name}");
                    let distance =
                        (tensor.to_dtype(DType::F32).unwrap() - plain.to_dtype(DType::F32).unwrap()).unwrap();
                    assert_eq!(distance.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0, "{name}");
                }
                // Widened to train, and written in 16 bits for good.
                assert!(there.trainable().unwrap().variables().iter().all(|(_, var)| var.dtype() == DType::F32));
                weights.save_as(&narrow, format, Some(dtype)).unwrap();
                let again = Weights::load(&narrow, dtype, &Device::Cpu).unwrap();
                let matrices =
                    |all: &Weights| bits(all).into_iter().filter(|(_, shape, _)| shape.len() > 1).collect::<Vec<_>>();
                assert_eq!(matrices(&again), matrices(&there));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_listed() {
        let expected = [("a.weight".to_string(), vec![5, 4]), ("c.bias".to_string(), vec![2])];
        let message = weights().check(&expected, &["counts"]).unwrap_err().to_string();
        for part in ["a.weight has shape [5, 3]", "missing c.bias [2]", "unexpected a.bias", "unexpected b.weight"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(!message.contains("counts"), "{message}");
    }

    #[test]
    fn a_file_that_is_cut_off_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for (format, name) in
            [(FileFormat::Safetensors, "pytorch_model.safetensors"), (FileFormat::Bin, "pytorch_model.bin")]
        {
            let folder = folder.path().join(format!("{format:?}"));
            weights().save_as(&folder, format, None).unwrap();
            let path = folder.join(name);
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() - 60]).unwrap();
            let message = Weights::load(&folder, DType::F32, &Device::Cpu).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains("download or export it again"), "{message}");
        }
    }
}
